//! Deletes the objects of a definition that is being deleted, then lets it go.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use http::{HeaderMap, Method};
use serde_json::Value;
use skiff_api::Status;
use skiff_api::resource::{Resource, is_built_in};
use skiff_api::value::{at, items, object_mut, text};

use super::{FINALIZER, GROUP, plan, write};
use crate::auth::{MASTERS, User};
use crate::bootstrap;
use crate::cache::{Filter, Object, ResourceCache};
use crate::http::info::RequestInfo;
use crate::http::negotiate::Shape;
use crate::http::query::Query;
use crate::server::Server;
use crate::verbs::{Call, DeleteOptions, delete_object, now_text};

/// How many objects are deleted at a time.
const PARALLEL: usize = 16;
/// How long the last objects are waited for before that is told; upstream's minute.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon it is tried again when something is in the way.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until the definition is let go.
pub(super) async fn run(server: &Arc<Server>, name: &str) {
    loop {
        match attempt(server, name).await {
            Ok(()) => return,
            Err(status) => {
                if status.code != 409 {
                    tracing::warn!(name, error = status.message, "objects of a custom resource definition not deleted yet");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// The definition as it is now, if it still waits.
async fn waiting(server: &Arc<Server>, name: &str) -> Result<Option<Value>, Status> {
    let key = format!("/registry/{GROUP}/customresourcedefinitions/{name}");
    let Some(entry) = server.store.get(&key).await? else { return Ok(None) };
    let mut definition: Value = serde_json::from_slice(&entry.value).map_err(Status::internal)?;
    object_mut(&mut definition, &["metadata"]).insert("resourceVersion".into(), entry.modified.to_string().into());
    Ok(plan::waits(&definition).then_some(definition))
}

async fn tell(server: &Arc<Server>, name: &str, is: &str, reason: &str, message: &str) -> Result<(), Status> {
    let Some(mut definition) = waiting(server, name).await? else { return Ok(()) };
    let before = definition["status"].clone();
    super::set_condition(&mut definition["status"], "Terminating", is, reason, message, &now_text());
    if definition["status"] == before { Ok(()) } else { write(server, name, &definition).await }
}

async fn attempt(server: &Arc<Server>, name: &str) -> Result<(), Status> {
    let Some(definition) = waiting(server, name).await? else { return Ok(()) };
    tell(server, name, "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress").await?;
    let (group, plural) = (text(&definition, &["spec", "group"]), text(&definition, &["spec", "names", "plural"]));
    let served = server.registry.now();
    // In the version that they are stored in, so that nothing has to be converted.
    let mut versions = served.ordered.iter().filter(|r| r.custom().is_some() && r.group == group && r.plural == plural);
    let made = versions.clone().find(|r| r.stored_as == r.api_version()).or_else(|| versions.next()).cloned();
    let (reason, message) = match made {
        _ if is_built_in(group, plural) => ("OverlappingBuiltInResource", "instances overlap with built-in resources in storage"),
        Some(resource) if plan::is(&definition, "Established") => {
            if let Err((reason, why)) = delete_all(server, &resource).await {
                tell(server, name, "True", reason, &why).await?;
                return Err(Status::new(500, "", why));
            }
            ("InstanceDeletionCompleted", "removed all instances")
        }
        // Established, but no version is served: nobody can have made any since, but there may be older ones.
        None if plan::is(&definition, "Established") => {
            delete_unserved(server, &definition).await?;
            ("InstanceDeletionCompleted", "removed all instances")
        }
        _ => ("NeverEstablished", "resource was never established"),
    };
    tell(server, name, "False", reason, message).await?;
    let Some(definition) = waiting(server, name).await? else { return Ok(()) };
    let left: Vec<&Value> = items(&definition, &["metadata", "finalizers"]).iter().filter(|f| *f != FINALIZER).collect();
    let patch = serde_json::json!({"metadata": {"resourceVersion": at(&definition, &["metadata", "resourceVersion"]), "finalizers": left}});
    bootstrap::patch(server, &format!("/apis/{GROUP}/v1/customresourcedefinitions/{name}"), &patch).await
}

/// Deletes all objects and waits until they are gone. An error is a condition's reason and message.
async fn delete_all(server: &Arc<Server>, resource: &Arc<Resource>) -> Result<(), (&'static str, String)> {
    let gone = || ("InstanceDeletionFailed", format!("could not list instances: {} are not kept", resource.plural));
    let cache = server.cache.resource(&resource.storage_prefix).ok_or_else(gone)?;
    server.cache.fresh().await.map_err(|error| ("InstanceDeletionFailed", format!("could not list instances: {error}")))?;
    let listed = cache.list(&Filter::default(), 0).whole().map_err(|error| ("InstanceDeletionFailed", format!("could not list instances: {error}")))?;
    let faults: Vec<String> = stream::iter(listed.objects)
        .map(|object| async move {
            match delete(server, resource, &object).await {
                Err(status) if status.code != 404 => Some(status.message),
                _ => None,
            }
        })
        .buffered(PARALLEL)
        .filter_map(std::future::ready)
        .collect()
        .await;
    if !faults.is_empty() {
        let all = if faults.len() == 1 { faults.concat() } else { format!("[{}]", faults.join(", ")) };
        return Err(("InstanceDeletionFailed", format!("could not issue all deletes: {all}")));
    }
    tokio::time::timeout(PATIENCE, emptied(&cache)).await.map_err(|_| {
        ("InstanceDeletionCheck", "could not confirm zero CustomResources remaining: timed out waiting for the condition".to_owned())
    })
}

async fn emptied(cache: &ResourceCache) {
    let mut bell = cache.subscribe();
    while !cache.is_empty() {
        bell.mark_unchanged();
        if cache.is_empty() || bell.changed().await.is_err() {
            return;
        }
    }
}

/// Deletes one object, as a client would who may do anything.
async fn delete(server: &Arc<Server>, resource: &Arc<Resource>, object: &Object) -> Result<(), Status> {
    let scope = if resource.namespaced { format!("/namespaces/{}", object.namespace()) } else { String::new() };
    let path = format!("/apis/{}{scope}/{}/{}", resource.api_version(), resource.plural, object.name());
    let query = Query::default();
    let call = Call {
        server: Arc::clone(server),
        info: RequestInfo::new(&Method::DELETE, &path, &query),
        query,
        headers: HeaderMap::new(),
        user: User::new("system:apiserver", [MASTERS]),
        resource: Arc::clone(resource),
        shape: Shape::JSON,
        upgrade: None,
        notes: Arc::default(),
    };
    delete_object(&call, object.name(), &DeleteOptions::default()).await.map(drop)
}

/// Deletes what the store holds of a kind of which no version is served.
async fn delete_unserved(server: &Arc<Server>, definition: &Value) -> Result<(), Status> {
    let prefix = format!("/registry/{}/{}/", text(definition, &["spec", "group"]), text(definition, &["spec", "names", "plural"]));
    let page = server.store.list(&prefix, &skiff_store::prefix_end(&prefix), 0, None).await?;
    for entry in page.entries {
        server.store.commit(&entry.key, skiff_store::Guard::Modified(entry.modified), None).await?;
    }
    Ok(())
}
