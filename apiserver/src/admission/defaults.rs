//! What objects get that said nothing of it: tolerations, classes, protecting finalizers.

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::cache::Filter;

/// Pods stay for a while on nodes that have gone quiet.
pub(super) struct DefaultTolerationSeconds;

const QUIET_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.is_of("", "pods") {
            return Ok(());
        }
        for key in QUIET_TAINTS {
            let tolerated = value::items(pod, &["spec", "tolerations"]).iter().any(|t| {
                let (k, effect) = (value::text(t, &["key"]), value::text(t, &["effect"]));
                (k == key || k.is_empty()) && matches!(effect, "NoExecute" | "")
            });
            if !tolerated
                && let Value::Array(tolerations) = value::object_mut(pod, &["spec"]).entry("tolerations").or_insert_with(|| json!([]))
            {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
            }
        }
        Ok(())
    }
}

/// The newest object of a resource that an annotation marks as the default one: its name.
fn marked_default(request: &Request<'_>, prefix: &str, annotation: &str) -> Option<String> {
    let cache = request.call.server.cache.resource(prefix)?;
    let mut marked: Vec<Value> = cache
        .list(&Filter::default(), 0)
        .objects
        .iter()
        .filter_map(|o| o.value().ok())
        .filter(|o| value::text(o, &["metadata", "annotations", annotation]) == "true")
        .collect();
    marked.sort_by_key(|o| (value::text(o, &["metadata", "creationTimestamp"]).to_owned(), value::text(o, &["metadata", "name"]).to_owned()));
    marked.last().map(|o| value::text(o, &["metadata", "name"]).to_owned())
}

/// Claims without a word on their class get the default one.
pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let said = !value::at(object, &["spec", "storageClassName"]).is_null()
            || !value::at(object, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]).is_null();
        if request.creates("", "persistentvolumeclaims")
            && !said
            && let Some(name) = marked_default(request, "/registry/storageclasses/", "storageclass.kubernetes.io/is-default-class")
        {
            object["spec"]["storageClassName"] = name.into();
        }
        Ok(())
    }
}

/// The same for ingresses.
pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let said = !value::at(object, &["spec", "ingressClassName"]).is_null()
            || !value::at(object, &["metadata", "annotations", "kubernetes.io/ingress.class"]).is_null();
        if request.creates("networking.k8s.io", "ingresses")
            && !said
            && let Some(name) = marked_default(request, "/registry/ingressclasses/", "ingressclass.kubernetes.io/is-default-class")
        {
            object["spec"]["ingressClassName"] = name.into();
        }
        Ok(())
    }
}

/// Volumes and claims aren't gone while they are in use.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let finalizer = if request.creates("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if request.creates("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if request.creates("storage.k8s.io", "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        if let Value::Array(finalizers) = value::object_mut(object, &["metadata"]).entry("finalizers").or_insert_with(|| json!([]))
            && !finalizers.iter().any(|f| f == finalizer)
        {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}
