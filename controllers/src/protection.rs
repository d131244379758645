//! Claims, volumes and classes of volume attributes stay while they are in use: the finalizers that protect them go when nothing
//! needs them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{Change, Kind, Object, is_gone};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

/// Runs the controller of claims.
pub fn run_claims(context: Arc<Context>) -> impl Future<Output = ()> {
    let used = context.kinds.pods.changes(|change: &Change<Pod>| {
        let named = |pod: &Arc<Pod>| claims_of(pod).into_iter().map(|name| ObjectRef::new(&name).within(pod.metadata.namespace.as_deref().unwrap_or(""))).collect::<Vec<_>>();
        // Only a pod that goes can set a claim free.
        if change.new.is_none() { change.old.iter().flat_map(named).collect() } else { Vec::new() }
    });
    Controller::new("pvc-protection-controller", &context.kinds.volume_claims).on_stream(used).run(context, claim)
}

/// Runs the controller of volumes.
pub fn run_volumes(context: Arc<Context>) -> impl Future<Output = ()> {
    Controller::new("pv-protection-controller", &context.kinds.volumes).run(context, volume)
}

/// Runs the controller of classes of volume attributes.
pub fn run_attributes(context: Arc<Context>) -> impl Future<Output = ()> {
    // Only what had a class can set it free.
    let named = |names: Vec<&str>| names.into_iter().map(ObjectRef::new).collect::<Vec<_>>();
    let of_claims = context.kinds.volume_claims.changes(move |change| change.old.iter().flat_map(|claim| named(attributes_of(claim))).collect());
    let of_volumes = context.kinds.volumes.changes(move |change| {
        change.old.iter().flat_map(|volume| named(attributes_of_volume(volume).into_iter().collect())).collect()
    });
    let controller = Controller::new("volumeattributesclass-protection-controller", &context.kinds.attributes_classes);
    controller.on_stream(of_claims).on_stream(of_volumes).run(context, attributes)
}

/// The classes of volume attributes that the claim asks for, has, or is on its way to.
fn attributes_of(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let wanted = claim.spec.iter().filter_map(|spec| spec.volume_attributes_class_name.as_deref());
    let current = claim.status.iter().filter_map(|status| status.current_volume_attributes_class_name.as_deref());
    let next = claim.status.iter().filter_map(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref());
    wanted.chain(current).chain(next).collect()
}

fn attributes_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

/// The names of the claims that the pod may use, those of its ephemeral volumes too.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let name = pod.metadata.name.as_deref().unwrap_or("");
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    });
    claims.collect()
}

/// Whether the pod needs the claim: one that is on no node doesn't yet.
fn uses(pod: &Pod, claim: &ObjectMeta) -> bool {
    let scheduled = !skiff_api::typed::pods::node_name(pod).is_empty();
    scheduled && claims_of(pod).iter().any(|name| Some(name) == claim.name.as_ref())
}

/// What is to become of the finalizer: whether it is to be there, if it isn't as it should be.
fn wanted(meta: &ObjectMeta, finalizer: &str, used: bool) -> Option<bool> {
    let there = meta.finalizers.iter().flatten().any(|f| f == finalizer);
    match meta.deletion_timestamp.is_some() {
        true => (there && !used).then_some(false),
        false => (!there).then_some(true),
    }
}

async fn settle<K: Object>(kind: &Kind<K>, object: &K, finalizer: &str, used: bool) -> Result<Again, Error> {
    let Some(protect) = wanted(object.meta(), finalizer, used) else { return Ok(None) };
    let mut changed = object.clone();
    let finalizers = changed.meta_mut().finalizers.get_or_insert_default();
    finalizers.retain(|f| f != finalizer);
    if protect {
        finalizers.push(finalizer.to_owned());
    }
    match kind.replace(&changed).await {
        Err(error) if !is_gone(&error) => Err(Error::on("writing a protecting finalizer")(error)),
        _ => Ok(None),
    }
}

async fn claim(context: Arc<Context>, claim: Arc<PersistentVolumeClaim>) -> Result<Again, Error> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
    // What a cache doesn't know yet must not lose its data: the server is asked.
    let used = match wanted(&claim.metadata, CLAIM, false) {
        Some(false) => {
            let pods = Api::<Pod>::namespaced(context.client(), namespace).list(&ListParams::default()).await;
            pods.map_err(Error::on("listing the pods that may use a claim"))?.items.iter().any(|pod| uses(pod, &claim.metadata))
        }
        _ => false,
    };
    settle(&context.kinds.volume_claims, &claim, CLAIM, used).await
}

async fn volume(context: Arc<Context>, volume: Arc<PersistentVolume>) -> Result<Again, Error> {
    let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    settle(&context.kinds.volumes, &volume, VOLUME, bound).await
}

async fn attributes(context: Arc<Context>, class: Arc<VolumeAttributesClass>) -> Result<Again, Error> {
    let (kinds, name) = (&context.kinds, class.metadata.name.as_deref().unwrap_or(""));
    let used = kinds.volumes.all().iter().any(|volume| attributes_of_volume(volume) == Some(name))
        || kinds.volume_claims.all().iter().any(|claim| attributes_of(claim).contains(&name));
    settle(&kinds.attributes_classes, &class, ATTRIBUTES, used).await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str, volume: Value) -> Pod {
        let spec = json!({"nodeName": node, "containers": [], "volumes": [volume]});
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn pods_on_nodes_use_their_claims() {
        let check = |node: &str, volume: Value, expected: bool| {
            let claim = ObjectMeta { name: Some("p-data".into()), ..ObjectMeta::default() };
            assert_eq!(uses(&pod(node, volume.clone()), &claim), expected, "{node} {volume}");
        };
        check("a", json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-data"}}), true);
        check("", json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-data"}}), false);
        check("a", json!({"name": "v", "persistentVolumeClaim": {"claimName": "other"}}), false);
        check("a", json!({"name": "data", "ephemeral": {}}), true);
        check("a", json!({"name": "data", "emptyDir": {}}), false);
    }

    #[test]
    fn claims_use_the_attributes_they_have_or_will_have() {
        let check = |claim: Value, expected: &[&str]| {
            let read: PersistentVolumeClaim = serde_json::from_value(claim.clone()).expect("a claim");
            assert_eq!(attributes_of(&read), expected, "{claim}");
        };
        check(json!({}), &[]);
        check(json!({"spec": {"volumeAttributesClassName": "gold"}}), &["gold"]);
        let moving = json!({"currentVolumeAttributesClassName": "gold", "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "silver"}});
        check(json!({"status": moving}), &["gold", "silver"]);
    }

    #[test]
    fn finalizers_come_and_go() {
        let check = |meta: Value, used: bool, expected: Option<bool>| {
            let read: ObjectMeta = serde_json::from_value(meta.clone()).expect("metadata");
            assert_eq!(wanted(&read, CLAIM, used), expected, "{meta} {used}");
        };
        let deleted = || json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x", CLAIM]});
        check(json!({}), false, Some(true));
        check(json!({"finalizers": [CLAIM]}), false, None);
        check(deleted(), false, Some(false));
        check(deleted(), true, None);
        check(json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]}), false, None);
    }
}
