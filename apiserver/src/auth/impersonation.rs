//! Acting as another, by the `Impersonate-` headers, where rules allow it.

use http::HeaderMap;
use http::header::HeaderName;
use skiff_api::Status;

use super::{AUTHENTICATED, Attributes, User, access, authorize};
use crate::server::Server;

const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// What the headers begin with that say what else is known of the user.
const EXTRA: &str = "impersonate-extra-";

/// Whom the headers ask for, and what must be allowed for it: group, resource, subresource, namespace and name.
struct Wanted {
    user: User,
    checks: Vec<[String; 5]>,
}

/// Reads the headers; `None` when they ask for nobody.
fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    const GROUP: &str = "authentication.k8s.io";
    let text = |name: &'static str| headers.get(HeaderName::from_static(name)).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut groups: Vec<String> = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let (name, uid, extra) = (text("impersonate-user"), text("impersonate-uid"), access::extra(headers, &[EXTRA.to_owned()]));
    let check = |parts: [&str; 5]| parts.map(str::to_owned);
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')).filter(|(n, a)| !n.is_empty() && !a.is_empty() && !a.contains(':'));
    let mut checks = Vec::new();
    match account {
        Some((namespace, account)) => checks.push(check(["", "serviceaccounts", "", namespace, account])),
        None if !name.is_empty() => checks.push(check(["", "users", "", "", &name])),
        None => {}
    }
    checks.extend(groups.iter().map(|group| check(["", "groups", "", "", group])));
    checks.extend(extra.iter().flat_map(|(key, values)| values.iter().map(|value| check([GROUP, "userextras", key, "", value]))));
    if !uid.is_empty() {
        checks.push(check([GROUP, "uids", "", "", &uid]));
    }
    if name.is_empty() {
        let list = |values: &[String]| format!("[]string{{{}}}", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "));
        let known: Vec<String> = extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
        let extra = if known.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", known.join(", ")) };
        let groups = if groups.is_empty() { "[]string(nil)".to_owned() } else { list(&groups) };
        let asked = format!("&user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:{groups}, Extra:map[string][]string{extra}}}");
        return if checks.is_empty() { Ok(None) } else { Err(Status::bad_request(format!("requested {asked} without impersonating a user name"))) };
    }
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let own = if name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    // Who asks to be nobody known is not made somebody.
    if !groups.iter().any(|g| g == own || g == UNAUTHENTICATED) {
        groups.push(own.into());
    }
    Ok(Some(Wanted { user: User { name, uid, groups, extra }, checks }))
}

/// Puts the user in another's place where the headers ask for it and rules allow it; `None` when they don't ask.
pub(crate) async fn impersonate(server: &Server, user: &User, headers: &HeaderMap) -> Result<Option<User>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    for [group, resource, subresource, namespace, name] in &wanted.checks {
        let version = if group.is_empty() { "" } else { "v1" };
        authorize(server, user, &Attributes { verb: "impersonate", group, version, resource, subresource, namespace, name, ..Attributes::default() }).await?;
    }
    Ok(Some(wanted.user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[(&'static str, &'static str)], expected: Result<Option<(&str, &[&str], usize)>, &str>) {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, value.parse().expect("a value"));
        }
        let found = wanted(&headers).map_err(|status| status.message);
        let found = found.as_ref().map(|w| w.as_ref().map(|w| (w.user.name.as_str(), w.user.groups.iter().map(String::as_str).collect::<Vec<_>>(), w.checks.len())));
        assert_eq!(found.map_err(String::as_str), expected.map(|w| w.map(|(n, g, c)| (n, g.to_vec(), c))), "{given:?}");
    }

    #[test]
    fn headers() {
        check(&[], Ok(None));
        check(&[("impersonate-user", "jane")], Ok(Some(("jane", &["system:authenticated"], 1))));
        check(&[("impersonate-user", "jane"), ("impersonate-group", "a"), ("impersonate-group", "b")], Ok(Some(("jane", &["a", "b", "system:authenticated"], 3))));
        check(&[("impersonate-user", "jane"), ("impersonate-group", UNAUTHENTICATED)], Ok(Some(("jane", &[UNAUTHENTICATED], 2))));
        check(&[("impersonate-user", ANONYMOUS)], Ok(Some((ANONYMOUS, &[UNAUTHENTICATED], 1))));
        let account = ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"];
        check(&[("impersonate-user", "system:serviceaccount:n:a")], Ok(Some(("system:serviceaccount:n:a", &account, 1))));
        check(&[("impersonate-user", "jane"), ("impersonate-uid", "1"), ("impersonate-extra-acme.com%2fteam", "x")], Ok(Some(("jane", &["system:authenticated"], 3))));
        check(&[("impersonate-group", "a")], Err("requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"a\"}, Extra:map[string][]string(nil)} without impersonating a user name"));
    }
}
