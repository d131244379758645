//! Who asks, and whether they may.

mod access;
mod bootstrap;
mod der;
mod files;
mod impersonation;
mod jwt;
pub(crate) mod node;
pub mod pki;
pub mod rbac;
mod reload;
mod remote;
mod secrets;
pub mod tokens;

use std::collections::BTreeMap;

use http::HeaderValue;
use skiff_api::Status;
use skiff_api::status::GroupResource;

use crate::http::info::RequestInfo;
use crate::server::Server;
use crate::verbs::Notes;

pub(crate) use access::{Access, FromProxy, Peer, attempted, authenticate, decide, decide_now, identify, unlisted};
pub(crate) use files::{kubeconfig, yaml};
pub(crate) use impersonation::impersonate;
pub(crate) use reload::run as reload;
pub(crate) use secrets::run as fill_secrets;

/// The group of those who may do anything.
pub const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";
const NODES: &str = "system:nodes";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid, where there is one.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else the authenticator knew.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user that has shown who they are. Who is said (by a proxy, or a webhook) to be nobody known stays that.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut user = Self { name: name.into(), groups: groups.into_iter().map(Into::into).collect(), ..Self::default() };
        if user.name != ANONYMOUS && !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
            user.groups.push(AUTHENTICATED.into());
        }
        user
    }

    /// Nobody known.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, [UNAUTHENTICATED])
    }

    /// Whether the user is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The name of the node that the user is. One without a name is none: it would be where pods are that are nowhere yet.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|name| !name.is_empty() && self.in_group(NODES))
    }
}

/// What a header says. Names may be in any language; what is no text is not left out, for then somebody else would be meant.
fn said(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Who a token shows its bearer to be.
pub(crate) struct Authenticated {
    pub user: User,
    /// For whom the token is, of those who were asked for.
    pub audiences: Vec<String>,
}

/// What somebody wants to do. Upstream's authorizer attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For what is no resource; empty for a resource.
    pub path: &'a str,
    /// What of the resource is asked for; empty for all of it.
    pub field_selector: &'a str,
    pub label_selector: &'a str,
}

impl<'a> From<&'a RequestInfo> for Attributes<'a> {
    fn from(info: &'a RequestInfo) -> Self {
        Self {
            verb: info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: if info.is_resource { "" } else { &info.path },
            field_selector: &info.field_selector,
            label_selector: &info.label_selector,
        }
    }
}

/// What an authorizer says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny,
    /// It is for the next one to say.
    NoOpinion,
}

/// A verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub verdict: Verdict,
    /// Why; may be empty.
    pub reason: String,
    /// What went wrong on the way; empty for nothing.
    pub error: String,
}

impl Decision {
    pub fn allow(reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::Allow, reason: reason.into(), error: String::new() }
    }

    pub fn no_opinion(reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::NoOpinion, reason: reason.into(), error: String::new() }
    }

    pub fn allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

/// Whether the user may do that.
pub(crate) async fn allowed(server: &Server, user: &User, attributes: &Attributes<'_>) -> bool {
    decide(server, user, attributes).await.allowed()
}

/// Refuses what the user may not do.
pub(crate) async fn authorize(server: &Server, user: &User, a: &Attributes<'_>) -> Result<(), Status> {
    let decision = decide(server, user, a).await;
    if decision.allowed() { Ok(()) } else { Err(refusal(user, a, &decision)) }
}

/// Refuses a request that the user may not make. The audit log is told why it was decided so.
pub(crate) async fn admit(server: &Server, user: &User, info: &RequestInfo, notes: &Notes) -> Result<(), Status> {
    let attributes = Attributes::from(info);
    let decision = decide(server, user, &attributes).await;
    let refused = if decision.allowed() { Ok(()) } else { Err(refusal(user, &attributes, &decision)) };
    if notes.audited().is_some() {
        let said = if decision.error.is_empty() { decision.reason } else { format!("internal error: {}", decision.error) };
        notes.annotate("authorization.k8s.io/decision".into(), if refused.is_ok() { "allow" } else { "forbid" }.into());
        notes.annotate("authorization.k8s.io/reason".into(), said);
    }
    refused
}

fn refusal(user: &User, a: &Attributes<'_>, decision: &Decision) -> Status {
    let (name, verb) = (&user.name, a.verb);
    let because = if decision.reason.is_empty() { String::new() } else { format!(": {}", decision.reason) };
    if !a.path.is_empty() {
        let why = format!("User {name:?} cannot {verb} path {:?}{because}", a.path);
        return Status::forbidden(GroupResource { group: "", resource: "" }, "", why);
    }
    let resource = if a.subresource.is_empty() { a.resource.to_owned() } else { format!("{}/{}", a.resource, a.subresource) };
    let scope = if a.namespace.is_empty() { "at the cluster scope".to_owned() } else { format!("in the namespace {:?}", a.namespace) };
    let why = format!("User {name:?} cannot {verb} resource {resource:?} in API group {:?} {scope}{because}", a.group);
    Status::forbidden(GroupResource { group: a.group, resource: a.resource }, a.name, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_a_node() {
        let check = |name: &str, group: &str, expected: Option<&str>| assert_eq!(User::new(name, [group]).node(), expected, "{name} of {group}");
        check("system:node:a", NODES, Some("a"));
        check("system:node:a", "other", None);
        check("system:node:", NODES, None);
        check("a", NODES, None);
    }

    #[test]
    fn who_is_known() {
        let check = |name: &str, groups: &[&str], expected: &[&str]| assert_eq!(User::new(name, groups.iter().copied()).groups, expected, "{name} of {groups:?}");
        check("jane", &["dev"], &["dev", AUTHENTICATED]);
        check("jane", &[AUTHENTICATED, "dev"], &[AUTHENTICATED, "dev"]);
        check("jane", &[UNAUTHENTICATED], &[UNAUTHENTICATED]);
        check(ANONYMOUS, &["dev"], &["dev"]);
    }
}
