//! Nothing is made in a namespace that isn't there, or is going.

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::status::{Cause, Details, GroupResource};
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::cache::FRESH_TIMEOUT;

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let call = request.call;
        let namespace = &call.info.namespace;
        if request.old.is_some() || !call.resource.namespaced {
            return Ok(());
        }
        let gr = GroupResource { group: "", resource: "namespaces" };
        let key = format!("/registry/namespaces/{namespace}");
        let cache = call.server.cache.resource("/registry/namespaces/").ok_or_else(Status::no_such_resource)?;
        let cached = cache.get(&key);
        let current = match cached {
            Some(found) => found.value().map_err(Status::internal)?,
            // It may have been made a moment ago.
            None => {
                let entry = call.server.store.get(&key).await?.ok_or_else(|| Status::not_found(gr, namespace))?;
                // Other plugins look at the cache; should that lag for long, theirs is the word.
                let _ = call.server.cache.reached(entry.modified, FRESH_TIMEOUT).await;
                cache.read(entry.key, entry.modified, entry.value).and_then(|o| o.value()).map_err(Status::internal)?
            }
        };
        if value::text(&current, &["status", "phase"]) != "Terminating" {
            return Ok(());
        }
        let name = value::text(object, &["metadata", "name"]);
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(call.resource.group_resource(), name, why);
        let cause = Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        };
        let details = status.details.take().map_or_else(Details::default, |d| *d);
        status.details = Some(Box::new(Details { causes: vec![cause], ..details }));
        Err(status)
    }
}
