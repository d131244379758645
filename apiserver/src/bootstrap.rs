//! What every cluster begins with: written when it isn't there, never changed when somebody has changed it; but for roles
//! and bindings, which are given back what they lack. Some of it is made anew as soon as somebody deletes it.

mod rbac;
mod repair;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::select_all;
use futures::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use skiff_api::{Status, clock, resource, value};

use crate::auth::{MASTERS, User};
use crate::cache::{Filter, ResourceCache};
use crate::http::body::{self, Reply, full};
use crate::server::Server;
use crate::strategy::{CLAIM_PREFIXES, give_back, orphaned};
use crate::verbs::now_text;

/// Who writes the first objects.
const AUTHOR: &str = "system:apiserver";

/// How many objects are written at a time.
const PARALLEL: usize = 32;

/// Writes what isn't there.
pub(crate) async fn write(server: &Arc<Server>) -> Result<(), Status> {
    lasting(server).await?;
    for (name, number, description) in [
        ("system-cluster-critical", 2_000_000_000, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
        ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
    ] {
        let class = json!({"kind": "PriorityClass", "metadata": {"name": name}, "value": number, "description": description});
        ensure(server, "scheduling.k8s.io/v1", class).await?;
    }
    // Side by side, so that a durable store makes them durable in few strokes.
    let policy = rbac::objects().into_iter().map(|object| ensure_policy(server, object));
    stream::iter(policy).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    // The address may be another one than last time.
    for (collection, make) in [("endpointslices", slice as Make), ("endpoints", endpoints)] {
        let object = make(server);
        let version = value::text(&object, &["apiVersion"]);
        let base = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
        request(server, Method::PUT, &format!("{base}/namespaces/default/{collection}/kubernetes"), "application/json", &object).await?;
    }
    release_orphaned_claims(server).await
}

type Make = fn(&Server) -> Value;

/// What is made anew when somebody deletes it: its key in the store, and how it is made.
const LASTING: &[(&str, Make)] = &[
    ("/registry/namespaces/default", |_| namespace("default")),
    ("/registry/namespaces/kube-system", |_| namespace("kube-system")),
    ("/registry/namespaces/kube-public", |_| namespace("kube-public")),
    ("/registry/namespaces/kube-node-lease", |_| namespace("kube-node-lease")),
    ("/registry/services/specs/default/kubernetes", service),
    ("/registry/services/endpoints/default/kubernetes", endpoints),
    ("/registry/endpointslices/default/kubernetes", slice),
    ("/registry/configmaps/kube-system/kube-apiserver-legacy-service-account-token-tracking", |_| tracking()),
];

/// Makes what is to be there always and isn't.
async fn lasting(server: &Arc<Server>) -> Result<(), Status> {
    for (key, make) in LASTING {
        if cache_of(server, key).is_none_or(|cache| cache.get(key).is_none()) {
            let object = make(server);
            let version = value::text(&object, &["apiVersion"]).to_owned();
            ensure(server, &version, object).await?;
        }
    }
    service_range(server).await
}

/// Makes anew what somebody deletes that is to be there always, until the server ends.
pub(crate) async fn keep(server: Arc<Server>) {
    let keys = LASTING.iter().map(|(key, _)| *key).chain([SERVICE_RANGE]);
    let mut bells: Vec<_> = keys.filter_map(|key| cache_of(&server, key)).map(|cache| cache.subscribe()).collect();
    loop {
        bells.iter_mut().for_each(|bell| bell.mark_unchanged());
        if let Err(error) = lasting(&server).await {
            tracing::warn!(%error, "what every cluster has can't be made anew");
        }
        let (rung, ..) = select_all(bells.iter_mut().map(|bell| Box::pin(bell.changed()))).await;
        if rung.is_err() {
            return;
        }
    }
}

/// The cache of the resource whose object has this key.
fn cache_of(server: &Server, key: &str) -> Option<Arc<ResourceCache>> {
    key.rmatch_indices('/').find_map(|(at, _)| server.cache.resource(&key[..=at]))
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// Since when the use of tokens that are kept in Secrets is noted on these.
fn tracking() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-apiserver-legacy-service-account-token-tracking", "namespace": "kube-system"},
        "data": {"since": clock::now().strftime("%Y-%m-%d").to_string()},
    })
}

/// The key of the range that the addresses of Services come from.
const SERVICE_RANGE: &str = "/registry/servicecidrs/kubernetes";

/// Tells of the range that the addresses of Services come from.
async fn service_range(server: &Arc<Server>) -> Result<(), Status> {
    let known = server.cache.resource("/registry/servicecidrs/").and_then(|cache| cache.get(SERVICE_RANGE));
    if known.is_some() {
        return Ok(());
    }
    const VERSION: &str = "networking.k8s.io/v1";
    let metadata = json!({"name": "kubernetes"});
    let range = json!({"kind": "ServiceCIDR", "metadata": metadata, "spec": {"cidrs": [server.allocator.range()]}});
    ensure(server, VERSION, range).await?;
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": now_text(), "message": "Kubernetes default Service CIDR is ready"});
    let status = json!({"apiVersion": VERSION, "kind": "ServiceCIDR", "metadata": metadata, "status": {"conditions": [ready]}});
    let path = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes/status?force=true&fieldManager=kubernetes-service-cidr-controller";
    request(server, Method::PATCH, path, "application/apply-patch+yaml", &status).await
}

/// The path of an object's collection.
fn collection(version: &str, resource: &resource::Resource, namespace: &str) -> String {
    let base = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let scope = if resource.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
    format!("{base}{scope}/{}", resource.plural)
}

/// Makes a role or binding, or gives one that is there what it lacks, unless its annotation says to leave it alone.
async fn ensure_policy(server: &Arc<Server>, object: Value) -> Result<(), Status> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let version = format!("{GROUP}/v1");
    let resource = resource::find_kind(GROUP, "v1", value::text(&object, &["kind"])).ok_or_else(Status::no_such_resource)?;
    let (namespace, name) = (value::text(&object, &["metadata", "namespace"]), value::text(&object, &["metadata", "name"]));
    let known = server.cache.resource(&resource.storage_prefix).and_then(|cache| cache.get(&server.key(resource, namespace, name)));
    let Some(known) = known else { return ensure(server, &version, object).await };
    let known = known.value().map_err(Status::internal)?;
    let path = format!("{}/{name}", collection(&version, resource, namespace));
    match repair::plan(&known, &object) {
        repair::Plan::Leave => Ok(()),
        // Another server may be at it, too.
        repair::Plan::Write(repaired) => request(server, Method::PUT, &path, "application/json", &repaired).await,
        repair::Plan::Replace => {
            accepted(&path, ask(server, Method::DELETE, &path, "application/json", &json!({})).await?).await?;
            request(server, Method::POST, &collection(&version, resource, namespace), "application/json", &with_version(object, &version)).await
        }
    }
}

fn with_version(mut object: Value, version: &str) -> Value {
    object["apiVersion"] = version.into();
    object
}

/// Creates the object, through the same door as everybody, unless it is there.
async fn ensure(server: &Arc<Server>, version: &str, object: Value) -> Result<(), Status> {
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    let kind = value::text(&object, &["kind"]);
    let resource = resource::find_kind(group, short, kind).ok_or_else(Status::no_such_resource)?;
    let (namespace, name) = (value::text(&object, &["metadata", "namespace"]), value::text(&object, &["metadata", "name"]));
    let key = server.key(resource, namespace, name);
    // The cache has read the whole store before this; what has come since is found when it is created.
    if server.cache.resource(&resource.storage_prefix).is_some_and(|cache| cache.get(&key).is_some()) {
        return Ok(());
    }
    request(server, Method::POST, &collection(version, resource, namespace), "application/json", &with_version(object, version)).await
}

/// Creates an object in a collection, as a client would, unless it is there.
pub(crate) async fn create(server: &Arc<Server>, collection: &str, object: &Value) -> Result<(), Status> {
    request(server, Method::POST, collection, "application/json", object).await
}

/// Deletes an object, as a client would.
pub(crate) async fn delete(server: &Arc<Server>, path: &str) -> Result<(), Status> {
    accepted(path, ask(server, Method::DELETE, path, "application/json", &json!({})).await?).await
}

/// Asks the server itself for something, as a client would. That somebody else was quicker is no error.
pub(crate) async fn request(server: &Arc<Server>, method: Method, path: &str, content_type: &str, object: &Value) -> Result<(), Status> {
    let reply = ask(server, method, path, content_type, object).await?;
    if reply.status() == http::StatusCode::CONFLICT { Ok(()) } else { accepted(path, reply).await }
}

/// Changes an object by a merge patch, as a client would. A conflict is an error.
pub(crate) async fn patch(server: &Arc<Server>, path: &str, patch: &Value) -> Result<(), Status> {
    accepted(path, ask(server, Method::PATCH, path, "application/merge-patch+json", patch).await?).await
}

/// Replaces an object, as a client would. A conflict is an error.
pub(crate) async fn replace(server: &Arc<Server>, path: &str, object: &Value) -> Result<(), Status> {
    accepted(path, ask(server, Method::PUT, path, "application/json", object).await?).await
}

/// Sends what a client would send.
pub(crate) async fn send(server: &Arc<Server>, method: Method, path: &str, object: &Value) -> Result<(), Status> {
    accepted(path, ask(server, method, path, "application/json", object).await?).await
}

async fn ask(server: &Arc<Server>, method: Method, path: &str, content_type: &str, object: &Value) -> Result<Reply, Status> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .header(http::header::USER_AGENT, "kube-apiserver")
        .body(full(object.to_string()))
        .map_err(Status::internal)?;
    Ok(server.handle(request, Some(User::new(AUTHOR, [MASTERS]))).await)
}

async fn accepted(path: &str, reply: Reply) -> Result<(), Status> {
    if reply.status().is_success() {
        return Ok(());
    }
    let (code, said): (u16, Bytes) = (reply.status().as_u16(), body::collect(reply.into_body()).await?);
    Err(Status::new(code, "", format!("{path}: {}", String::from_utf8_lossy(&said))))
}

/// The Service by which pods find the API.
fn service(server: &Server) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": server.allocator.first().to_string(), "type": "ClusterIP", "sessionAffinity": "None", "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": server.advertise.1}],
        },
    })
}

/// Where it leads. A loopback address leads nobody here but processes of this machine, and is no endpoint by the rules.
fn slice(server: &Server) -> Value {
    let (address, port) = server.advertise;
    let endpoint = json!([{"addresses": [address.to_string()], "conditions": {"ready": true}}]);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "endpoints": if address.is_loopback() { json!([]) } else { endpoint },
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

/// The same in its older form.
fn endpoints(server: &Server) -> Value {
    let (address, port) = server.advertise;
    let subset = json!([{"addresses": [{"ip": address.to_string()}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]);
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": if address.is_loopback() { json!([]) } else { subset },
    })
}

/// Gives back the addresses and ports that a crash left without a Service.
async fn release_orphaned_claims(server: &Arc<Server>) -> Result<(), Status> {
    server.cache.fresh().await?;
    let services = server.cache.resource("/registry/services/specs/").ok_or_else(Status::no_such_resource)?;
    // What can't be read may be claimed by what can't be read.
    let Ok(services) = services.list(&Filter::default(), 0).whole() else { return Ok(()) };
    let services: Vec<Value> = services.objects.iter().filter_map(|o| o.value().ok()).collect();
    for prefix in CLAIM_PREFIXES {
        let page = server.store.list(prefix, &skiff_store::prefix_end(prefix), 0, None).await?;
        for key in orphaned(page.entries.iter().map(|e| e.key.as_ref()), &services) {
            give_back(server, &key).await;
        }
    }
    Ok(())
}
