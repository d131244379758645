//! Role-based access control, evaluated over an index of all roles and bindings.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

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

/// A role given to a subject, in one namespace or (`None`) everywhere.
#[derive(Clone, Debug)]
struct Grant {
    namespace: Option<String>,
    /// `Role` or `ClusterRole`.
    kind: String,
    /// Where the role is: `namespace/name` of a role, `name` of a cluster role.
    role: String,
    /// What gives it, as reasons tell it.
    why: String,
}

impl Grant {
    /// What is said of a role that isn't there.
    fn missing(&self) -> String {
        let name = self.role.rsplit('/').next().unwrap_or("");
        format!("{}.rbac.authorization.k8s.io {name:?} not found", self.kind.to_lowercase())
    }
}

/// All roles, and all bindings by subject. Kept up by the changes since it was last looked at: a change costs what it changes,
/// however many bindings there are.
#[derive(Debug, Default)]
struct Index {
    /// How far each of [`PREFIXES`] is taken in; nothing is before the first look.
    seen: Option<[Revision; 4]>,
    /// The rules of each role, by where it is.
    roles: HashMap<String, Vec<Rule>>,
    /// What each subject is given, by the binding's key.
    grants: HashMap<Subject, BTreeMap<Arc<str>, Grant>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

const PREFIXES: [&str; 4] =
    ["/registry/roles/", "/registry/clusterroles/", "/registry/rolebindings/", "/registry/clusterrolebindings/"];

/// The index, brought up to date when it is asked.
#[derive(Debug, Default)]
pub struct Rbac {
    index: RwLock<Index>,
}

impl Rbac {
    fn index(&self, cache: &Cache) -> RwLockReadGuard<'_, Index> {
        let now = PREFIXES.map(|prefix| cache.resource(prefix).map_or(0, |c| *c.subscribe().borrow()));
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        if index.seen == Some(now) {
            return index;
        }
        drop(index);
        self.index.write().unwrap_or_else(PoisonError::into_inner).catch_up(cache, now);
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules that the user has in the namespace (empty: in the whole cluster), and what is wrong with some.
    pub fn rules(&self, cache: &Cache, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.index(cache);
        let rules = index.grants(user, namespace).flat_map(|grant| index.roles.get(&grant.role)).flatten().cloned().collect();
        (rules, index.grants(user, namespace).filter(|grant| !index.roles.contains_key(&grant.role)).map(Grant::missing).collect())
    }
}

impl Index {
    /// Takes in what changed up to the revisions `now`, and what more there is by then.
    fn catch_up(&mut self, cache: &Cache, now: [Revision; 4]) {
        // What was seen of a store that has gone back is of no use.
        let known = self.seen.filter(|seen| seen.iter().zip(now).all(|(seen, now)| *seen <= now)).is_some_and(|seen| {
            let changes = PREFIXES.iter().zip(seen).map(|(prefix, after)| cache.resource(prefix).map_or(Ok(Vec::new()), |c| c.changes(after, usize::MAX)));
            let Ok(changes) = changes.collect::<Result<Vec<_>, _>>() else { return false };
            for (at, change) in changes.iter().enumerate().flat_map(|(at, changes)| changes.iter().map(move |change| (at, change))) {
                self.take_in(at, change.old.as_deref(), change.new.as_deref());
            }
            let newest = |at: usize| changes[at].last().map_or(0, |change| change.revision).max(now[at]).max(seen[at]);
            self.seen = Some([0, 1, 2, 3].map(newest));
            true
        });
        if known {
            return;
        }
        *self = Self::default();
        let mut newest = now;
        for (at, prefix) in PREFIXES.iter().enumerate() {
            let Some(listed) = cache.resource(prefix).map(|c| c.list(&Filter::default(), 0)) else { continue };
            listed.objects.iter().for_each(|object| self.take_in(at, None, Some(object)));
            newest[at] = listed.newest;
        }
        self.seen = Some(newest);
    }

    fn take_in(&mut self, at: usize, old: Option<&Object>, new: Option<&Object>) {
        let Some(object) = new.or(old) else { return };
        let old = old.and_then(|o| o.value().ok());
        let new = new.and_then(|o| o.value().inspect_err(|error| gives_nothing(&o.key, error)).ok());
        if PREFIXES[at].ends_with("bindings/") {
            self.bind(&object.key, object.namespace(), old.as_ref(), new.as_ref());
        } else {
            self.define(object.path(), new.as_ref());
        }
    }

    fn define(&mut self, path: &str, role: Option<&Value>) {
        match role {
            Some(role) => {
                let rules = serde_json::from_value::<Option<Vec<Rule>>>(role["rules"].clone()).inspect_err(|error| gives_nothing(path, error));
                self.roles.insert(path.to_owned(), rules.unwrap_or_default().unwrap_or_default());
            }
            None => drop(self.roles.remove(path)),
        }
    }

    fn bind(&mut self, key: &Arc<str>, namespace: &str, old: Option<&Value>, new: Option<&Value>) {
        let namespace = Some(namespace.to_owned()).filter(|n| !n.is_empty());
        let subjects = |binding| value::items(binding, &["subjects"]).iter().filter_map(|one| Some((subject(one, namespace.as_deref())?, one)));
        for (subject, _) in old.into_iter().flat_map(subjects) {
            if let Some(grants) = self.grants.get_mut(&subject) {
                grants.remove(key);
                if grants.is_empty() {
                    self.grants.remove(&subject);
                }
            }
        }
        let Some(binding) = new else { return };
        for odd in value::items(binding, &["subjects"]).iter().filter(|one| subject(one, namespace.as_deref()).is_none()) {
            gives_nothing(key, &format!("a subject that is nobody: {odd}"));
        }
        let (kind, name) = (value::text(binding, &["roleRef", "kind"]), value::text(binding, &["roleRef", "name"]));
        let role = match (kind, &namespace) {
            ("Role", Some(namespace)) => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        };
        let own = value::text(binding, &["metadata", "name"]);
        let given = match &namespace {
            Some(namespace) => format!("RoleBinding {:?}", format!("{own}/{namespace}")),
            None => format!("ClusterRoleBinding {own:?}"),
        };
        for (subject, one) in subjects(binding) {
            let why = format!("{given} of {kind} {name:?} to {}", shown(one, namespace.as_deref()));
            let grant = Grant { namespace: namespace.clone(), kind: kind.to_owned(), role: role.clone(), why };
            self.grants.entry(subject).or_default().insert(Arc::clone(key), grant);
        }
    }

    fn grants<'a>(&'a self, user: &User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> + use<'a> {
        let groups = user.groups.iter().map(|g| Subject::Group(g.clone()));
        let subjects: Vec<Subject> = std::iter::once(Subject::User(user.name.clone())).chain(groups).collect();
        subjects
            .into_iter()
            .filter_map(|subject| self.grants.get(&subject))
            .flat_map(BTreeMap::values)
            .filter(move |g| g.namespace.as_deref().is_none_or(|n| n == namespace && !namespace.is_empty()))
    }

    fn decide(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        let mut faults: Vec<String> = Vec::new();
        for grant in self.grants(user, attributes.namespace) {
            match self.roles.get(&grant.role) {
                Some(rules) if rules.iter().any(|rule| rule.allows(attributes)) => return Decision::allow(format!("RBAC: allowed by {}", grant.why)),
                Some(_) => {}
                None => faults.extend(Some(grant.missing()).filter(|fault| !faults.contains(fault))),
            }
        }
        Decision::no_opinion(if faults.is_empty() { String::new() } else { format!("RBAC: {}", aggregated(&faults)) })
    }
}

/// Whether a binding gives the user that.
pub(crate) fn decide(server: &Server, user: &User, attributes: &Attributes<'_>) -> Decision {
    server.rbac.index(&server.cache).decide(user, attributes)
}

/// Tells of a role or binding, or a part of it, that can't be read: it gives nobody anything.
fn gives_nothing(key: &str, error: &dyn std::fmt::Display) {
    tracing::warn!(key, %error, "what can't be read of a role or binding gives nothing");
}

/// Several faults as Go's aggregate shows them.
pub(crate) fn aggregated<T: AsRef<str>>(faults: &[T]) -> String {
    match faults {
        [one] => one.as_ref().to_owned(),
        many => format!("[{}]", many.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")),
    }
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
    fn bindings_come_change_and_go() {
        let key: Arc<str> = "/registry/rolebindings/n/b".into();
        let binding = |role: &str, user: &str| {
            let subjects = [serde_json::json!({"kind": "User", "name": user}), serde_json::json!({"kind": "ServiceAccount", "name": "a"})];
            serde_json::json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": role}, "subjects": subjects})
        };
        let mut index = Index::default();
        let check = |index: &Index, user: &str, namespace: &str, expected: &str| {
            let get = Attributes { verb: "get", resource: "pods", namespace, ..Attributes::default() };
            assert_eq!(index.decide(&User::new(user, ["x"]), &get).reason, expected, "{user} in {namespace:?}");
        };
        let (first, second) = (binding("r", "jane"), binding("s", "joe"));
        index.bind(&key, "n", None, Some(&first));
        check(&index, "jane", "n", "RBAC: role.rbac.authorization.k8s.io \"r\" not found");
        index.define("n/r", Some(&serde_json::json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})));
        check(&index, "jane", "n", "RBAC: allowed by RoleBinding \"b/n\" of Role \"r\" to User \"jane\"");
        check(&index, "system:serviceaccount:n:a", "n", "RBAC: allowed by RoleBinding \"b/n\" of Role \"r\" to ServiceAccount \"a/n\"");
        check(&index, "jane", "m", "");
        check(&index, "jane", "", "");
        index.bind(&key, "n", Some(&first), Some(&second));
        check(&index, "jane", "n", "");
        check(&index, "joe", "n", "RBAC: role.rbac.authorization.k8s.io \"s\" not found");
        index.bind(&key, "n", Some(&second), None);
        index.define("n/r", None);
        assert!(index.grants.is_empty() && index.roles.is_empty(), "nothing is left behind");
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
