//! What a request is about, read off its method, path and query: the facts that authorization, audit and the verbs use.

use http::Method;

use super::query::Query;

/// What a request is about. Upstream's `RequestInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource (`/api/v1/pods`) and not something else (`/healthz`, `/apis/apps`).
    pub is_resource: bool,
    /// The path as it came.
    pub path: String,
    /// `get list watch create update patch delete deletecollection`, or the lower-case method for other paths.
    pub verb: &'static str,
    /// The API group, empty for the core one.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural.
    pub resource: String,
    /// The subresource (`status`), empty for none.
    pub subresource: String,
    /// What follows the subresource, for proxies: `/a/b` of `.../proxy/a/b`.
    pub rest: String,
    /// The namespace, empty for none.
    pub namespace: String,
    /// The object's name, empty for a collection.
    pub name: String,
    /// What of a collection is asked for, by fields; empty for all.
    pub field_selector: String,
    /// The same by labels.
    pub label_selector: String,
}

impl RequestInfo {
    /// Reads a request.
    pub fn new(method: &Method, path: &str, query: &Query) -> Self {
        let other = Self { path: path.into(), verb: method_verb(method), ..Self::default() };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version) = match parts.as_slice() {
            ["api", version, _, ..] => ("", *version),
            ["apis", group, version, _, ..] => (*group, *version),
            _ => return other,
        };
        parts.drain(..if group.is_empty() { 2 } else { 3 });
        // The old way to ask for a watch: /api/v1/watch/namespaces/x/pods.
        let old_watch = parts[0] == "watch" && parts.len() > 1;
        if old_watch {
            parts.remove(0);
        }
        let mut namespace = "";
        if let ["namespaces", ns, rest @ ..] = parts.as_slice() {
            namespace = ns;
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") {
                parts.drain(..2);
            }
        }
        let part = |i: usize| parts.get(i).copied().unwrap_or("");
        let (resource, subresource) = (part(0), part(2));
        let mut name = decoded(part(1));
        let mut verb = match (method.as_str(), name.is_empty()) {
            ("GET" | "HEAD", false) => "get",
            ("GET" | "HEAD", true) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", false) => "delete",
            ("DELETE", true) => "deletecollection",
            _ => "",
        };
        if old_watch || (verb == "list" && query.flag("watch")) {
            verb = "watch";
        }
        let selector = |key: &str| if matches!(verb, "list" | "watch" | "deletecollection") { query.get(key).unwrap_or("").to_owned() } else { String::new() };
        let (field_selector, label_selector) = (selector("fieldSelector"), selector("labelSelector"));
        // A list of one object by its name is authorized by that name.
        if name.is_empty()
            && matches!(verb, "list" | "watch" | "deletecollection")
            && let Some(selector) = query.get("fieldSelector")
            && let Ok(selector) = skiff_api::fields::Selector::parse(selector)
        {
            name = selector.required("metadata.name").unwrap_or("").to_owned();
        }
        let rest = if parts.len() > 3 { format!("/{}", parts[3..].join("/")) } else { String::new() };
        // A trailing slash after `proxy` asks for the root there.
        let rest = if subresource == "proxy" && path.ends_with('/') { format!("{}/", rest) } else { rest };
        Self {
            is_resource: true,
            verb,
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            rest,
            namespace: decoded(namespace),
            name,
            field_selector,
            label_selector,
            ..other
        }
    }

    /// Whether the path names one object.
    pub fn is_object(&self) -> bool {
        !matches!(self.verb, "list" | "watch" | "deletecollection") && !self.name.is_empty()
    }
}

fn method_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "HEAD" => "head",
        "OPTIONS" => "options",
        _ => "",
    }
}

/// A path's segment without its percent escapes.
fn decoded(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.into();
    }
    // A plus is itself in a path, and a space in a form.
    let escaped = segment.replace('+', "%2B");
    form_urlencoded::parse(escaped.as_bytes()).next().map_or_else(String::new, |(key, _)| key.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: &str) {
        let method: Method = method.parse().expect("a method");
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let i = RequestInfo::new(&method, path, &Query::parse(query));
        let shown = [i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.name, &i.subresource, &i.rest].join("|");
        assert_eq!(shown, expected, "{uri}");
    }

    #[test]
    fn requests() {
        check("GET", "/healthz", "get|||||||");
        check("GET", "/api/v1", "get|||||||");
        check("GET", "/apis/apps/v1", "get|||||||");
        check("GET", "/api/v1/pods", "list||v1||pods|||");
        check("GET", "/api/v1/pods?watch=1", "watch||v1||pods|||");
        check("GET", "/api/v1/watch/namespaces/a/pods", "watch||v1|a|pods|||");
        check("GET", "/api/v1/namespaces", "list||v1||namespaces|||");
        check("GET", "/api/v1/namespaces/a", "get||v1|a|namespaces|a||");
        check("PUT", "/api/v1/namespaces/a/finalize", "update||v1|a|namespaces|a|finalize|");
        check("POST", "/api/v1/namespaces/a/pods", "create||v1|a|pods|||");
        check("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "patch|apps|v1|a|deployments|b|scale|");
        check("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection|apps|v1|a|deployments|||");
        check("GET", "/api/v1/namespaces/a/services/http:b:80/proxy/x/y", "get||v1|a|services|http:b:80|proxy|/x/y");
        check("GET", "/api/v1/nodes/n/proxy/", "get||v1||nodes|n|proxy|/");
        check("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list||v1||pods|x||");
        check("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", "get|rbac.authorization.k8s.io|v1||clusterroles|system:node||");
    }
}
