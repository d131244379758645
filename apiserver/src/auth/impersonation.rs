//! Acting as another, by the `Impersonate-` headers, where rules allow it: as a node, a service account or somebody else, each
//! by verbs of its own that also say what may be done meanwhile; or, as ever, by the verb `impersonate`.

use http::HeaderMap;
use http::header::HeaderName;
use skiff_api::{Status, names};

use super::{ANONYMOUS, AUTHENTICATED, Attributes, Decision, MASTERS, NODES, UNAUTHENTICATED, User, access, authorize, refusal, said};
use crate::http::info::RequestInfo;
use crate::server::Server;

const GROUP: &str = "authentication.k8s.io";
/// What the headers begin with, and those that say what else is known of the user.
const HEADERS: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
/// What an asker's token says of the node that it is on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whom somebody acts as.
pub(crate) struct Impersonated {
    pub user: User,
    /// The verb that allowed it; none for plain `impersonate`.
    pub constraint: Option<String>,
}

/// A way to act as another. They are tried in this order; upstream's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As the node that the asker, a service account, is on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    /// By `impersonate` alone, whatever is done meanwhile.
    Legacy,
}

const MODES: [Mode; 5] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

/// Something of the user that it must be allowed to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Check {
    group: &'static str,
    resource: &'static str,
    subresource: String,
    namespace: String,
    name: String,
}

fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, account) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (names::dns_label(namespace).is_empty() && names::dns_subdomain(account).is_empty()).then_some((namespace, account))
}

fn node(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|node| names::dns_subdomain(node).is_empty())
}

impl Mode {
    /// Its name in its verbs; none for the one that has no verbs of its own.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::AssociatedNode => Some("associated-node"),
            Self::ArbitraryNode => Some("arbitrary-node"),
            Self::ServiceAccount => Some("serviceaccount"),
            Self::UserInfo => Some("user-info"),
            Self::Legacy => None,
        }
    }

    fn verb(self) -> String {
        self.name().map_or_else(|| "impersonate".to_owned(), |name| format!("impersonate:{name}"))
    }

    /// Whether the asker could become that user in this way.
    fn applies(self, wanted: &User, asker: &User) -> bool {
        let name_alone = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        match self {
            Self::AssociatedNode => {
                let own = asker.extra.get(NODE_NAME).and_then(|names| <&[String; 1]>::try_from(names.as_slice()).ok());
                name_alone && account(&asker.name).is_some() && node(&wanted.name).is_some_and(|node| own.is_some_and(|[own]| own == node))
            }
            Self::ArbitraryNode => name_alone && node(&wanted.name).is_some(),
            Self::ServiceAccount => name_alone && account(&wanted.name).is_some(),
            Self::UserInfo => node(&wanted.name).is_none() && account(&wanted.name).is_none(),
            Self::Legacy => true,
        }
    }

    /// What must be allowed, and who the asker is then. An error is what nobody may be, and why.
    fn checks(self, wanted: &User) -> Result<(Vec<Check>, User), (Check, &'static str)> {
        let constrained = self != Self::Legacy;
        let check = |resource, name: &str| Check { group: if constrained { GROUP } else { "" }, resource, name: name.to_owned(), ..Check::default() };
        let of_group = |check: Check| Check { group: GROUP, ..check };
        let mut user = wanted.clone();
        let mut checks = Vec::new();
        match (account(&wanted.name), node(&wanted.name).filter(|_| constrained)) {
            (Some((namespace, account)), _) => {
                checks.push(Check { namespace: namespace.to_owned(), ..check("serviceaccounts", account) });
                if wanted.groups.is_empty() {
                    user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
                }
            }
            (_, Some(node)) => {
                // Whoever may be its own node may be so on any.
                checks.push(check("nodes", if self == Self::AssociatedNode { "*" } else { node }));
                user.groups = vec![NODES.into()];
            }
            (None, None) => checks.push(check("users", &wanted.name)),
        }
        if !wanted.uid.is_empty() {
            checks.push(of_group(check("uids", &wanted.uid)));
        }
        for group in &wanted.groups {
            match group.as_str() {
                "" if constrained => return Err((check("groups", ""), "impersonating the empty string group is not allowed")),
                MASTERS if constrained => return Err((check("groups", MASTERS), "impersonating the system:masters group is not allowed")),
                group => checks.push(check("groups", group)),
            }
        }
        for (key, values) in &wanted.extra {
            let domain = key.split_once('/').is_some_and(|(domain, rest)| names::dns_subdomain(domain).is_empty() && !rest.is_empty());
            if constrained && !domain {
                return Err((check("userextras", ""), "impersonating an invalid key in extra is not allowed"));
            }
            if constrained && values.iter().any(String::is_empty) {
                return Err((check("userextras", ""), "impersonating the empty string value in extra is not allowed"));
            }
            checks.extend(values.iter().map(|value| Check { subresource: key.clone(), ..of_group(check("userextras", value)) }));
        }
        // Who asks to be nobody known is not made somebody.
        let own = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
        if !user.in_group(own) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(own.into());
        }
        Ok((checks, user))
    }

    /// Becomes that user in this way, if rules allow it for what is asked.
    async fn attempt(self, server: &Server, asker: &User, wanted: &User, info: &RequestInfo) -> Result<Impersonated, Status> {
        let mut asker = asker.clone();
        if self == Self::AssociatedNode {
            // What is allowed then is the same on every node, so that rules can't hang on which one it is.
            let keys = std::mem::take(&mut asker.extra).into_keys().collect();
            asker.extra.insert("authentication.kubernetes.io/associated-node-keys".into(), keys);
        }
        if let Some(name) = self.name() {
            let verb = format!("impersonate-on:{name}:{}", info.verb);
            authorize(server, &asker, &Attributes { verb: &verb, ..Attributes::from(info) }).await?;
        }
        let verb = self.verb();
        let (checks, user) = self.checks(wanted).map_err(|(check, why)| refusal(&asker, &check.attributes(&verb), &Decision::no_opinion(why)))?;
        for check in &checks {
            authorize(server, &asker, &check.attributes(&verb)).await?;
        }
        Ok(Impersonated { user, constraint: self.name().map(|_| verb) })
    }
}

impl Check {
    fn attributes<'a>(&'a self, verb: &'a str) -> Attributes<'a> {
        let Self { group, resource, subresource, namespace, name } = self;
        Attributes { verb, group, version: "v1", resource, subresource, namespace, name, ..Attributes::default() }
    }
}

/// Whom the headers ask for, as they say it; `None` when they ask for nobody.
fn wanted(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |name: &'static str| headers.get(HeaderName::from_static(name)).map(said).unwrap_or_default();
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().map(said).collect();
    let wanted = User { name: text("impersonate-user"), uid: text("impersonate-uid"), groups, extra: access::extra(headers, &[EXTRA.to_owned()]) };
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted == User::default() {
        return Ok(None);
    }
    let User { uid, groups, extra, .. } = wanted;
    let list = |values: &[String]| format!("[]string{{{}}}", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "));
    let known: Vec<String> = extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
    let extra = if known.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", known.join(", ")) };
    let groups = if groups.is_empty() { "[]string(nil)".to_owned() } else { list(&groups) };
    let asked = format!("&user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:{groups}, Extra:map[string][]string{extra}}}");
    Err(Status::bad_request(format!("requested {asked} without impersonating a user name")))
}

/// Puts the user in another's place where the headers ask for it and rules allow it; `None` when they don't ask. The headers go:
/// nobody behind this is to know of them.
pub(crate) async fn impersonate(server: &Server, asker: &User, headers: &mut HeaderMap, info: &RequestInfo) -> Result<Option<Impersonated>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(HEADERS)).cloned().collect();
    own.iter().for_each(|name| drop(headers.remove(name)));
    let mut first = None;
    for mode in MODES.into_iter().filter(|mode| mode.applies(&wanted, asker)) {
        match mode.attempt(server, asker, &wanted, info).await {
            Ok(impersonated) => return Ok(Some(impersonated)),
            Err(refused) => first = first.or(Some(refused)),
        }
    }
    Err(first.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(given: &[(&'static str, &'static str)]) -> Result<Option<User>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        wanted(&headers).map_err(|status| status.message)
    }

    /// By which ways the headers could be followed for this asker; and in the last, plain one, who that is and how many checks it takes.
    fn check(given: &[(&'static str, &'static str)], asker: &User, modes: &[Mode], expected: (&[&str], usize)) {
        let wanted = user(given).expect("headers").expect("a user");
        let applying: Vec<Mode> = MODES.into_iter().filter(|mode| mode.applies(&wanted, asker)).collect();
        assert_eq!(applying, [modes, &[Mode::Legacy]].concat(), "{given:?}");
        let (checks, user) = Mode::Legacy.checks(&wanted).expect("checks");
        assert_eq!((user.groups, checks.len()), (expected.0.iter().map(|g| (*g).to_owned()).collect(), expected.1), "{given:?}");
    }

    #[test]
    fn headers() {
        let jane = User::new("jane", ["x"]);
        let others = [Mode::UserInfo];
        check(&[("impersonate-user", "joe")], &jane, &others, (&["system:authenticated"], 1));
        check(&[("impersonate-user", "joe"), ("impersonate-group", "a"), ("impersonate-group", "b")], &jane, &others, (&["a", "b", "system:authenticated"], 3));
        check(&[("impersonate-user", "joe"), ("impersonate-group", UNAUTHENTICATED)], &jane, &others, (&[UNAUTHENTICATED], 2));
        check(&[("impersonate-user", ANONYMOUS)], &jane, &others, (&[UNAUTHENTICATED], 1));
        let of_account = ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"];
        check(&[("impersonate-user", "system:serviceaccount:n:a")], &jane, &[Mode::ServiceAccount], (&of_account, 1));
        check(&[("impersonate-user", "system:serviceaccount:n:a"), ("impersonate-group", "g")], &jane, &[], (&["g", "system:authenticated"], 2));
        check(&[("impersonate-user", "joe"), ("impersonate-uid", "1"), ("impersonate-extra-acme.com%2fteam", "x")], &jane, &others, (&["system:authenticated"], 3));
        check(&[("impersonate-user", "system:node:a")], &jane, &[Mode::ArbitraryNode], (&["system:authenticated"], 1));
        let agent = User { extra: [(NODE_NAME.to_owned(), vec!["a".to_owned()])].into(), ..User::new("system:serviceaccount:n:agent", ["x"]) };
        check(&[("impersonate-user", "system:node:a")], &agent, &[Mode::AssociatedNode, Mode::ArbitraryNode], (&["system:authenticated"], 1));
        check(&[("impersonate-user", "system:node:b")], &agent, &[Mode::ArbitraryNode], (&["system:authenticated"], 1));
        check(&[("impersonate-user", "jörg"), ("impersonate-group", "männer")], &jane, &others, (&["männer", "system:authenticated"], 2));
        assert_eq!(user(&[]), Ok(None));
        let expected = "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"a\"}, Extra:map[string][]string(nil)} without impersonating a user name";
        assert_eq!(user(&[("impersonate-group", "a")]), Err(expected.to_owned()));
    }

    #[test]
    fn what_the_ways_of_their_own_ask_for() {
        let told = |mode: Mode, wanted: &User| match mode.checks(wanted) {
            Ok((checks, user)) => (checks.iter().map(|c| format!("{}/{} {}{}", c.group, c.resource, c.subresource, c.name)).collect::<Vec<_>>(), user.groups),
            Err((check, why)) => (vec![format!("{} {}: {why}", check.resource, check.name)], Vec::new()),
        };
        let nodes = || vec!["system:nodes".to_owned(), "system:authenticated".to_owned()];
        let node = User { name: "system:node:a".into(), ..User::default() };
        assert_eq!(told(Mode::AssociatedNode, &node), (vec!["authentication.k8s.io/nodes *".into()], nodes()));
        assert_eq!(told(Mode::ArbitraryNode, &node), (vec!["authentication.k8s.io/nodes a".into()], nodes()));
        let user = |group: &str, key: &str| User { name: "joe".into(), groups: vec![group.into()], extra: [(key.to_owned(), vec!["v".to_owned()])].into(), ..User::default() };
        let all = ["authentication.k8s.io/users joe", "authentication.k8s.io/groups g", "authentication.k8s.io/userextras x.io/kv"];
        assert_eq!(told(Mode::UserInfo, &user("g", "x.io/k")).0, all);
        assert_eq!(told(Mode::UserInfo, &user(MASTERS, "x.io/k")).0, ["groups system:masters: impersonating the system:masters group is not allowed"]);
        assert_eq!(told(Mode::UserInfo, &user("g", "k")).0, ["userextras : impersonating an invalid key in extra is not allowed"]);
        assert_eq!(told(Mode::Legacy, &user(MASTERS, "k")).0, ["/users joe", "/groups system:masters", "authentication.k8s.io/userextras kv"]);
    }
}
