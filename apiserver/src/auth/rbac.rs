//! Role-based access control, evaluated over an index of all bindings that is made anew when one of them changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;
use skiff_api::value;
use skiff_store::Revision;

use super::{Attributes, Decision, User};
use crate::cache::{Cache, Filter, Object};
use crate::server::Server;

/// One rule of a role.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// What may be done; `*` is everything.
    pub verbs: Vec<String>,
    /// To resources of which groups.
    pub api_groups: Vec<String>,
    /// To which resources (`pods`, `pods/log`, `*/scale`).
    pub resources: Vec<String>,
    /// Of which names; empty for all.
    pub resource_names: Vec<String>,
    /// On which paths that are no resources; `/healthz/*` takes all below.
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == "*" || i == item)
}

impl Rule {
    /// The rule that allows everything.
    pub(crate) fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Self { verbs: all(), api_groups: all(), resources: all(), resource_names: Vec::new(), non_resource_urls: all() }
    }

    /// Whether the rule allows it.
    pub(crate) fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if !a.path.is_empty() {
            return self.non_resource_urls.iter().any(|url| {
                url == "*" || url == a.path || url.strip_suffix('*').is_some_and(|start| a.path.starts_with(start))
            });
        }
        has(&self.api_groups, a.group)
            && self.resources.iter().any(|r| {
                r == "*"
                    || match a.subresource {
                        "" => r == a.resource,
                        sub => r.split_once('/').is_some_and(|(res, s)| s == sub && (res == "*" || res == a.resource)),
                    }
            })
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name))
    }
}

/// Rules given to a subject, in one namespace or (`None`) everywhere.
#[derive(Clone, Debug)]
struct Grant {
    namespace: Option<String>,
    rules: Arc<[Rule]>,
    /// What gives it, as reasons tell it.
    why: Arc<str>,
    /// What is wrong with it: the role isn't there.
    fault: Option<Arc<str>>,
}

/// All bindings, by subject.
#[derive(Debug, Default)]
struct Index {
    /// The newest changes of the four resources that this was made of.
    made_of: [Revision; 4],
    grants: HashMap<Subject, Vec<Grant>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

const PREFIXES: [&str; 4] =
    ["/registry/roles/", "/registry/clusterroles/", "/registry/rolebindings/", "/registry/clusterrolebindings/"];

/// The index, remade when it is out of date.
#[derive(Debug, Default)]
pub struct Rbac {
    index: Mutex<Arc<Index>>,
}

impl Rbac {
    fn index(&self, cache: &Cache) -> Arc<Index> {
        let now = PREFIXES.map(|prefix| cache.resource(prefix).map_or(0, |c| *c.subscribe().borrow()));
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if index.made_of != now || index.grants.is_empty() {
            *index = Arc::new(build(cache, now));
        }
        Arc::clone(&index)
    }

    /// The rules that the user has in the namespace (empty: in the whole cluster), and what is wrong with some.
    pub fn rules(&self, cache: &Cache, user: &User, namespace: &str) -> (Vec<Rule>, Vec<Arc<str>>) {
        let index = self.index(cache);
        let rules = grants(&index, user, namespace).flat_map(|g| g.rules.iter().cloned()).collect();
        (rules, grants(&index, user, namespace).filter_map(|g| g.fault.clone()).collect())
    }
}

fn grants<'a>(index: &'a Index, user: &User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> + use<'a> {
    let groups = user.groups.iter().map(|g| Subject::Group(g.clone()));
    let subjects: Vec<Subject> = std::iter::once(Subject::User(user.name.clone())).chain(groups).collect();
    subjects
        .into_iter()
        .filter_map(|subject| index.grants.get(&subject))
        .flatten()
        .filter(move |g| g.namespace.as_deref().is_none_or(|n| n == namespace && !namespace.is_empty()))
}

/// Whether a binding gives the user that.
pub(crate) fn decide(server: &Server, user: &User, attributes: &Attributes<'_>) -> Decision {
    let index = server.rbac.index(&server.cache);
    let mut faults: Vec<Arc<str>> = Vec::new();
    for grant in grants(&index, user, attributes.namespace) {
        if grant.rules.iter().any(|rule| rule.allows(attributes)) {
            return Decision::allow(format!("RBAC: allowed by {}", grant.why));
        }
        faults.extend(grant.fault.clone().filter(|fault| !faults.contains(fault)));
    }
    Decision::no_opinion(if faults.is_empty() { String::new() } else { format!("RBAC: {}", aggregated(&faults)) })
}

/// Several faults as Go's aggregate shows them.
pub(crate) fn aggregated<T: AsRef<str>>(faults: &[T]) -> String {
    match faults {
        [one] => one.as_ref().to_owned(),
        many => format!("[{}]", many.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")),
    }
}

fn objects(cache: &Cache, prefix: &str) -> Vec<Arc<Object>> {
    cache.resource(prefix).map_or_else(Vec::new, |c| c.list(&Filter::default(), 0).objects)
}

fn build(cache: &Cache, made_of: [Revision; 4]) -> Index {
    let mut rules: HashMap<String, Arc<[Rule]>> = HashMap::new();
    for prefix in &PREFIXES[..2] {
        for object in objects(cache, prefix) {
            let read = object.value().ok().and_then(|o| serde_json::from_value::<Option<Vec<Rule>>>(o["rules"].clone()).ok());
            // `namespace/name` for a role, `name` for a cluster role.
            rules.insert(object.path().to_owned(), read.flatten().unwrap_or_default().into());
        }
    }
    let mut index = Index { made_of, grants: HashMap::new() };
    for prefix in &PREFIXES[2..] {
        for object in objects(cache, prefix) {
            let Ok(binding) = object.value() else { continue };
            let namespace = Some(object.namespace().to_owned()).filter(|n| !n.is_empty());
            let name = value::text(&binding, &["roleRef", "name"]);
            let path = match (value::text(&binding, &["roleRef", "kind"]), &namespace) {
                ("Role", Some(namespace)) => format!("{namespace}/{name}"),
                _ => name.to_owned(),
            };
            let kind = value::text(&binding, &["roleRef", "kind"]);
            let of = format!("of {kind} {name:?}");
            let binding_name = value::text(&binding, &["metadata", "name"]);
            let given = match &namespace {
                Some(namespace) => format!("RoleBinding {:?} {of}", format!("{binding_name}/{namespace}")),
                None => format!("ClusterRoleBinding {binding_name:?} {of}"),
            };
            let fault = || format!("{}.rbac.authorization.k8s.io {name:?} not found", kind.to_lowercase()).into();
            let (rules, fault) = match rules.get(&path) {
                Some(rules) => (Arc::clone(rules), None),
                None => (Arc::default(), Some(fault())),
            };
            for one in value::items(&binding, &["subjects"]) {
                let Some(subject) = subject(one, namespace.as_deref()) else { continue };
                let why = format!("{given} to {}", shown(one, namespace.as_deref())).into();
                let grant = Grant { namespace: namespace.clone(), rules: Arc::clone(&rules), why, fault: fault.clone() };
                index.grants.entry(subject).or_default().push(grant);
            }
        }
    }
    index
}

/// A subject as reasons tell it.
fn shown(subject: &Value, namespace: Option<&str>) -> String {
    let (kind, name) = (value::text(subject, &["kind"]), value::text(subject, &["name"]));
    if kind != "ServiceAccount" {
        return format!("{kind} {name:?}");
    }
    let own = value::text(subject, &["namespace"]);
    format!("{kind} {:?}", format!("{name}/{}", if own.is_empty() { namespace.unwrap_or("") } else { own }))
}

fn subject(subject: &Value, namespace: Option<&str>) -> Option<Subject> {
    let name = value::text(subject, &["name"]);
    match value::text(subject, &["kind"]) {
        "User" => Some(Subject::User(name.into())),
        "Group" => Some(Subject::Group(name.into())),
        "ServiceAccount" => {
            let own = value::text(subject, &["namespace"]);
            let namespace = if own.is_empty() { namespace? } else { own };
            Some(Subject::User(format!("system:serviceaccount:{namespace}:{name}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &Value, attributes: Attributes<'_>, expected: bool) {
        let rule: Rule = serde_json::from_value(rule.clone()).expect("a rule");
        assert_eq!(rule.allows(&attributes), expected, "{rule:?} {attributes:?}");
    }

    #[test]
    fn rules() {
        let pods = serde_json::json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"], "resourceNames": ["a"]});
        let get = Attributes { verb: "get", resource: "pods", name: "a", ..Attributes::default() };
        check(&pods, get.clone(), true);
        check(&pods, Attributes { name: "b", ..get.clone() }, false);
        check(&pods, Attributes { verb: "list", ..get.clone() }, false);
        check(&pods, Attributes { group: "apps", ..get.clone() }, false);
        check(&pods, Attributes { subresource: "log", ..get.clone() }, true);
        check(&pods, Attributes { subresource: "exec", ..get.clone() }, false);
        check(&pods, Attributes { resource: "x", subresource: "scale", ..get.clone() }, true);
        check(&pods, Attributes { path: "/healthz", ..get.clone() }, false);
        let health = serde_json::json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz/*"]});
        check(&health, Attributes { verb: "get", path: "/healthz", ..Attributes::default() }, true);
        check(&health, Attributes { verb: "get", path: "/readyz/etcd", ..Attributes::default() }, true);
        check(&health, Attributes { verb: "get", path: "/metrics", ..Attributes::default() }, false);
        check(&health, get, false);
    }
}
