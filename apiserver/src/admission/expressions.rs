//! What expressions are told of a request.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::Status;
use skiff_api::cel::admission::Input;
use skiff_api::cel::{Authorizer, Decision, Query};
use skiff_api::resource::Resource;

use super::Request;
use super::webhooks::{review, show};
use crate::auth::{self, Attributes, User};
use crate::server::Server;

/// The server's authorizer, asked about the requesting user or a service account.
struct Asker {
    server: Arc<Server>,
    user: User,
}

impl Authorizer for Asker {
    fn check(&self, query: &Query) -> Decision {
        let account = query.account.as_ref().map(|(namespace, name)| {
            let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            User::new(format!("system:serviceaccount:{namespace}:{name}"), groups)
        });
        let attributes = Attributes {
            verb: &query.verb,
            group: &query.group,
            resource: &query.resource,
            subresource: &query.subresource,
            namespace: &query.namespace,
            name: &query.name,
            path: query.path.as_deref().unwrap_or(""),
            version: "*",
            ..Attributes::default()
        };
        let decision = auth::decide_now(&self.server, account.as_ref().unwrap_or(&self.user), &attributes);
        Decision { allowed: decision.allowed(), reason: decision.reason, error: decision.error }
    }
}

/// A request as expressions see it: everything in the version in which the judge wants to see it.
pub(super) struct Seen {
    object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    asker: Arc<Asker>,
}

impl Seen {
    pub fn new(request: &Request<'_>, matched: &Resource, object: Option<&Value>) -> Result<Self, Status> {
        let call = request.call;
        let in_none = call.info.namespace.is_empty() || call.resource.group.is_empty() && call.resource.plural == "namespaces";
        let mut namespace = if in_none { Value::Null } else { request.namespace_object()? };
        if let Some(metadata) = namespace.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            metadata.remove("ownerReferences");
        }
        Ok(Self {
            object: object.map_or(Value::Null, |o| show(request, matched, o)),
            old: request.old.map_or(Value::Null, |o| show(request, matched, o)),
            request: review::request(request, matched, object),
            namespace,
            asker: Arc::new(Asker { server: Arc::clone(&call.server), user: call.user.clone() }),
        })
    }

    /// The same after a mutation.
    pub fn with_object(self, object: Value) -> Self {
        Self { object, ..self }
    }

    pub fn input<'a>(&'a self, params: &'a Value) -> Input<'a> {
        Input {
            object: &self.object,
            old: &self.old,
            request: &self.request,
            namespace: &self.namespace,
            params,
            authorizer: Arc::clone(&self.asker) as Arc<dyn Authorizer>,
        }
    }
}
