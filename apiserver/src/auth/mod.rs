//! Who asks, and whether they may.

mod bootstrap;
pub mod node;
pub mod pki;
pub mod rbac;
pub mod tokens;

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use skiff_api::Status;
use skiff_api::status::GroupResource;

use crate::http::info::RequestInfo;
use crate::server::Server;

/// The group of those who may do anything.
pub const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
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
    /// A user that has shown who they are.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Nobody known.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// Whether the user is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The name of the node that the user is.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|_| self.in_group(NODES))
    }
}

/// Finds out who asks. `peer` is who the TLS connection, or the process itself, has shown to be.
pub(crate) async fn authenticate(server: &Server, peer: Option<&User>, headers: &HeaderMap) -> Result<User, Status> {
    if let Some(user) = peer {
        return Ok(user.clone());
    }
    let Some(authorization) = headers.get(header::AUTHORIZATION) else { return Ok(User::anonymous()) };
    let text = authorization.to_str().map_err(|_| Status::unauthorized())?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            if let Some((id, secret)) = bootstrap::parts(token.trim()) {
                return bootstrap::authenticate(server, id, secret).ok_or_else(Status::unauthorized);
            }
            server.tokens.authenticate(server, token.trim(), &[]).await.map(|a| a.user).ok_or_else(Status::unauthorized)
        }
        _ => Ok(User::anonymous()),
    }
}

/// Puts the user in another's place where the `Impersonate-` headers ask for it and rules allow it.
pub(crate) fn impersonate(server: &Server, user: User, headers: &HeaderMap) -> Result<User, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let (name, uid) = (text("impersonate-user"), text("impersonate-uid"));
    if name.is_empty() {
        return match groups.is_empty() && uid.is_empty() {
            true => Ok(user),
            false => Err(Status::bad_request("requested impersonation without impersonating a user")),
        };
    }
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let mut wanted: Vec<(&str, &str, &str)> = groups.iter().map(|group| ("groups", "", group.as_str())).collect();
    match account {
        Some((namespace, account)) => wanted.push(("serviceaccounts", namespace, account)),
        None => wanted.push(("users", "", &name)),
    }
    for (resource, namespace, name) in wanted {
        let info = RequestInfo {
            is_resource: true,
            verb: "impersonate",
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        authorize(server, &user, &info)?;
    }
    let mut groups = groups;
    if let Some((namespace, _)) = account
        && groups.is_empty()
    {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let anonymous = name == "system:anonymous";
    let own = if anonymous { "system:unauthenticated" } else { AUTHENTICATED };
    if !groups.iter().any(|g| g == own) {
        groups.push(own.into());
    }
    Ok(User { name, uid, groups, ..User::default() })
}

/// What somebody wants to do. Upstream's authorizer attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For what is no resource; empty for a resource.
    pub path: &'a str,
}

impl<'a> From<&'a RequestInfo> for Attributes<'a> {
    fn from(info: &'a RequestInfo) -> Self {
        Self {
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: if info.is_resource { "" } else { &info.path },
        }
    }
}

/// Whether the user may do that.
pub(crate) fn allowed(server: &Server, user: &User, attributes: &Attributes<'_>) -> bool {
    user.in_group(MASTERS) || node::allowed(server, user, attributes) || rbac::allowed(server, user, attributes)
}

/// Refuses what the user may not do.
pub(crate) fn authorize(server: &Server, user: &User, info: &RequestInfo) -> Result<(), Status> {
    let attributes = Attributes::from(info);
    if allowed(server, user, &attributes) {
        return Ok(());
    }
    let (name, verb) = (&user.name, attributes.verb);
    if !info.is_resource {
        let why = format!("User {name:?} cannot {verb} path {:?}", info.path);
        return Err(Status::forbidden(GroupResource { group: "", resource: "" }, "", why));
    }
    let resource = if info.subresource.is_empty() { info.resource.clone() } else { format!("{}/{}", info.resource, info.subresource) };
    let scope =
        if info.namespace.is_empty() { "at the cluster scope".to_owned() } else { format!("in the namespace {:?}", info.namespace) };
    let why = format!("User {name:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", info.group);
    Err(Status::forbidden(GroupResource { group: &info.group, resource: &info.resource }, &info.name, why))
}
