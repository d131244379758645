//! FlowSchemas and PriorityLevelConfigurations, read once: which requests belong together, and what levels there are.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use skiff_api::value::{at, items, text};

use super::dispatch::Queuing;
use super::share::Claim;
use crate::auth::User;
use crate::http::info::RequestInfo;

const ALL: &str = "*";

/// A level, as its object says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LevelSpec {
    pub name: String,
    pub uid: String,
    /// Whether its requests never wait.
    pub exempt: bool,
    pub claim: Claim,
    /// `None`: who finds no seat is refused.
    pub queuing: Option<Queuing>,
}

impl LevelSpec {
    /// Reads a PriorityLevelConfiguration, defaulted and valid.
    pub fn read(object: &Value) -> Self {
        let exempt = text(object, &["spec", "type"]) == "Exempt";
        let part = at(object, &["spec", if exempt { "exempt" } else { "limited" }]);
        let number = |of: &Value, key: &str| of[key].as_u64().map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let queuing = at(part, &["limitResponse", "queuing"]);
        let size = |key: &str, default: u32| number(queuing, key).unwrap_or(default) as usize;
        Self {
            name: text(object, &["metadata", "name"]).into(),
            uid: text(object, &["metadata", "uid"]).into(),
            exempt,
            claim: Claim {
                shares: number(part, "nominalConcurrencyShares").unwrap_or(if exempt { 0 } else { 30 }),
                lendable: number(part, "lendablePercent").unwrap_or(0).min(100),
                borrowing: number(part, "borrowingLimitPercent"),
            },
            queuing: queuing.is_object().then(|| Queuing { queues: size("queues", 64), hand: size("handSize", 8), length: size("queueLengthLimit", 50) }),
        }
    }
}

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    User,
    Namespace,
}

#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
    /// A namespace's service account, or with [`ALL`] each of them.
    Account(String, String),
}

#[derive(Clone, Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    /// Verbs and paths.
    others: Vec<(Vec<String>, Vec<String>)>,
}

/// A FlowSchema.
#[derive(Clone, Debug)]
pub(super) struct SchemaSpec {
    pub name: String,
    pub uid: String,
    /// The level of its requests.
    pub level: String,
    /// Lower goes first.
    pub precedence: u64,
    distinguisher: Option<Distinguisher>,
    rules: Vec<Rule>,
}

fn texts(of: &Value, key: &str) -> Vec<String> {
    items(of, &[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

impl SchemaSpec {
    /// Reads a FlowSchema, defaulted and valid.
    pub fn read(object: &Value) -> Self {
        let subject = |subject: &Value| match text(subject, &["kind"]) {
            "User" => Subject::User(text(subject, &["user", "name"]).into()),
            "Group" => Subject::Group(text(subject, &["group", "name"]).into()),
            _ => Subject::Account(text(subject, &["serviceAccount", "namespace"]).into(), text(subject, &["serviceAccount", "name"]).into()),
        };
        let resource = |rule: &Value| ResourceRule {
            verbs: texts(rule, "verbs"),
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            namespaces: texts(rule, "namespaces"),
            cluster: rule["clusterScope"] == true,
        };
        let rule = |rule: &Value| Rule {
            subjects: items(rule, &["subjects"]).iter().map(subject).collect(),
            resources: items(rule, &["resourceRules"]).iter().map(resource).collect(),
            others: items(rule, &["nonResourceRules"]).iter().map(|rule| (texts(rule, "verbs"), texts(rule, "nonResourceURLs"))).collect(),
        };
        Self {
            name: text(object, &["metadata", "name"]).into(),
            uid: text(object, &["metadata", "uid"]).into(),
            level: text(object, &["spec", "priorityLevelConfiguration", "name"]).into(),
            precedence: at(object, &["spec", "matchingPrecedence"]).as_u64().unwrap_or(1_000),
            distinguisher: match text(object, &["spec", "distinguisherMethod", "type"]) {
                "ByUser" => Some(Distinguisher::User),
                "ByNamespace" => Some(Distinguisher::Namespace),
                _ => None,
            },
            rules: items(object, &["spec", "rules"]).iter().map(rule).collect(),
        }
    }

    /// Whether the request belongs to this schema.
    pub fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|subject| subject.is(user))
                && if info.is_resource {
                    rule.resources.iter().any(|rule| rule.matches(info))
                } else {
                    rule.others.iter().any(|(verbs, paths)| has(verbs, info.verb) && paths.iter().any(|path| covers(path, &info.path)))
                }
        })
    }

    /// The request's flow within this schema, hashed.
    pub fn flow(&self, user: &User, info: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.distinguisher {
            Some(Distinguisher::User) => user.name.hash(&mut hasher),
            Some(Distinguisher::Namespace) => info.namespace.hash(&mut hasher),
            None => {}
        }
        hasher.finish()
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == ALL || *name == user.name,
            Self::Group(name) => name == ALL || user.in_group(name),
            Self::Account(namespace, name) => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|account| account.split_once(':'))
                .is_some_and(|(ns, account)| ns == namespace && (name == ALL || name == account)),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = |wanted: &String| {
            wanted == ALL
                || match wanted.split_once('/') {
                    None => info.subresource.is_empty() && *wanted == info.resource,
                    Some((resource, sub)) => resource == info.resource && sub == info.subresource,
                }
        };
        has(&self.verbs, info.verb)
            && has(&self.groups, &info.group)
            && self.resources.iter().any(resource)
            && if info.namespace.is_empty() { self.cluster } else { has(&self.namespaces, &info.namespace) }
    }
}

/// Whether a rule's path is this one: itself, or all that begins as it does before its star.
fn covers(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(beginning) => path.starts_with(beginning),
        None => rule == path,
    }
}

/// Puts schemas in the order in which they are tried.
pub(super) fn in_order(mut schemas: Vec<SchemaSpec>) -> Vec<SchemaSpec> {
    schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
    schemas
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::flow::objects;
    use crate::http::query::Query;

    /// Which of the first schemas a request belongs to.
    fn check(user: &str, groups: &[&str], method: &Method, path: &str, expected: &str) {
        let schemas = in_order(objects::schemas().iter().map(SchemaSpec::read).collect());
        let user = User::new(user, groups.iter().copied());
        let info = RequestInfo::new(method, path, &Query::parse(""));
        let found = schemas.iter().find(|schema| schema.matches(&user, &info)).map(|schema| schema.name.as_str());
        assert_eq!(found, Some(expected), "{} {method} {path}", user.name);
    }

    #[test]
    fn the_first_schemas_sort_requests_as_upstreams_do() {
        const NODES: &[&str] = &["system:nodes"];
        const ACCOUNTS: &[&str] = &["system:serviceaccounts"];
        let (get, put) = (&Method::GET, &Method::PUT);
        check("admin", &["system:masters"], get, "/api/v1/pods", "exempt");
        check("jane", &[], get, "/readyz", "probes");
        check("jane", &[], get, "/version", "global-default");
        check("jane", &[], get, "/api/v1/namespaces/a/pods", "global-default");
        check("system:node:a", NODES, put, "/api/v1/nodes/a/status", "system-node-high");
        check("system:node:a", NODES, put, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a", "system-node-high");
        check("system:node:a", NODES, get, "/api/v1/namespaces/a/pods/b", "system-nodes");
        check("system:kube-scheduler", &[], put, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a", "system-leader-election");
        check("system:kube-scheduler", &[], get, "/api/v1/nodes", "kube-scheduler");
        check("system:kube-controller-manager", &[], get, "/api/v1/nodes", "kube-controller-manager");
        check("system:serviceaccount:kube-system:endpoint-controller", ACCOUNTS, put, "/api/v1/namespaces/a/endpoints/b", "endpoint-controller");
        check("system:serviceaccount:kube-system:job-controller", ACCOUNTS, put, "/api/v1/namespaces/a/pods/b", "kube-system-service-accounts");
        check("system:serviceaccount:a:b", ACCOUNTS, put, "/api/v1/namespaces/a/pods/b", "service-accounts");
        let nobody = User { name: "x".into(), ..User::default() };
        let schemas = in_order(objects::schemas().iter().map(SchemaSpec::read).collect());
        assert!(!schemas.iter().any(|schema| schema.matches(&nobody, &RequestInfo::default())));
    }

    #[test]
    fn flows_are_told_apart_by_what_the_schema_says() {
        let schema = |name: &str| objects::schemas().iter().map(SchemaSpec::read).find(|schema| schema.name == name).expect("a schema");
        let flow = |schema: &SchemaSpec, user: &str, namespace: &str| {
            schema.flow(&User { name: user.into(), ..User::default() }, &RequestInfo { namespace: namespace.into(), ..RequestInfo::default() })
        };
        let (by_user, by_namespace, neither) = (schema("service-accounts"), schema("kube-scheduler"), schema("exempt"));
        assert_eq!(flow(&by_user, "a", "x"), flow(&by_user, "a", "y"));
        assert_ne!(flow(&by_user, "a", "x"), flow(&by_user, "b", "x"));
        assert_eq!(flow(&by_namespace, "a", "x"), flow(&by_namespace, "b", "x"));
        assert_ne!(flow(&by_namespace, "a", "x"), flow(&by_namespace, "a", "y"));
        assert_eq!(flow(&neither, "a", "x"), flow(&neither, "b", "y"));
    }
}
