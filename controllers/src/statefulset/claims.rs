//! The volume claims of a StatefulSet's pods, and who owns them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Patch;
use serde_json::json;

use super::SOURCE;
use super::plan::{ordinal, replicas, start};
use crate::Context;
use crate::claim::controller_ref;
use crate::error::Error;
use crate::kind::{is_gone, is_taken, message};

/// The name of a claim.
fn name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    let of = |name: &Option<String>| name.clone().unwrap_or_default();
    format!("{}-{}-{ordinal}", of(&template.metadata.name), of(&set.metadata.name))
}

fn templates(spec: &StatefulSetSpec) -> &[PersistentVolumeClaim] {
    spec.volume_claim_templates.as_deref().unwrap_or_default()
}

/// Gives a pod the volumes of its claims.
pub fn mount(set: &StatefulSet, spec: &StatefulSetSpec, pod: &mut Pod, ordinal: i32) {
    let Some(pod) = &mut pod.spec else { return };
    let claims = templates(spec);
    let mut volumes: Vec<Volume> = claims
        .iter()
        .map(|template| Volume {
            name: template.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name(set, template, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let own = pod.volumes.take().unwrap_or_default();
    volumes.extend(own.into_iter().filter(|v| !claims.iter().any(|c| c.metadata.name.as_ref() == Some(&v.name))));
    pod.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// Makes the claims of a pod that are missing. Fails while one of them is being deleted.
pub async fn ensure(context: &Context, set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Result<(), Error> {
    let kind = &context.kinds.volume_claims;
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    for template in templates(spec) {
        let claim_name = name(set, template, ordinal);
        let pod = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or(""));
        match kind.get(namespace, &claim_name) {
            Some(there) if there.metadata.deletion_timestamp.is_some() => {
                return Err(Error::Impossible(format!("pvc {claim_name} is being deleted")));
            }
            Some(there) if is_left_over(&there, &pod, context) => {
                return Err(Error::Impossible(format!("pvc {claim_name} belongs to an earlier pod {pod}")));
            }
            Some(_) => continue,
            None => {}
        }
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name.clone());
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        let of = format!("{} in StatefulSet {}", pod, set.metadata.name.as_deref().unwrap_or(""));
        match kind.create(&claim).await {
            Ok(_) => {
                let text = format!("Create Claim {claim_name} Pod {of} success");
                context.events.normal(SOURCE, set, "SuccessfulCreate", text);
            }
            Err(error) if is_taken(&error) => {}
            Err(error) => {
                let text = format!("Create Claim {claim_name} for Pod {of} failed error: {}", message(&error));
                context.events.warning(SOURCE, set, "FailedCreate", text);
                return Err(Error::on("creating a volume claim")(error));
            }
        }
    }
    Ok(())
}

/// Whether the claim is about to go with an earlier pod of the same name.
fn is_left_over(claim: &PersistentVolumeClaim, pod: &str, context: &Context) -> bool {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
    let now = context.kinds.pods.get(namespace, pod);
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| o.kind == "Pod" && o.name == pod && now.as_ref().and_then(|p| p.metadata.uid.as_ref()) != Some(&o.uid))
}

/// Sees to it that claims go, or stay, with their pods and their set, as the retention policy has it.
pub async fn retain(context: &Context, set: &StatefulSet, spec: &StatefulSetSpec, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let kind = &context.kinds.volume_claims;
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    for pod in pods {
        let Some(ordinal) = ordinal(set, pod) else { continue };
        for template in templates(spec) {
            let Some(claim) = kind.get(namespace, &name(set, template, ordinal)) else { continue };
            let owners = claim.metadata.owner_references.clone().unwrap_or_default();
            let Some(wanted) = owners_of(set, spec, pod, ordinal, &owners) else { continue };
            let patch = json!({ "metadata": {
                "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version, "ownerReferences": wanted } });
            match kind.patch(&claim.metadata, &Patch::Merge(patch)).await {
                Err(error) if !is_gone(&error) => return Err(Error::on("changing the owner of a volume claim")(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The owners that a claim should have; none when it has them, or is none of ours to change.
fn owners_of(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &Pod,
    ordinal: i32,
    owners: &[OwnerReference],
) -> Option<Vec<OwnerReference>> {
    let (set_ref, pod_ref) = (controller_ref(set), controller_ref(pod));
    let alike = |o: &OwnerReference, wanted: &OwnerReference| o.kind == wanted.kind && o.name == wanted.name;
    let ours = |o: &OwnerReference| alike(o, &set_ref) || alike(o, &pod_ref);
    // An owner of the same name but another uid: the claim goes with that one.
    let stale = |o: &OwnerReference| {
        (alike(o, &set_ref) && o.uid != set_ref.uid) || (alike(o, &pod_ref) && o.uid != pod_ref.uid)
    };
    let foreign = owners.iter().any(|o| o.controller == Some(true) && !ours(o));
    if owners.iter().any(stale) || (foreign && !owners.iter().any(ours)) {
        return None;
    }
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |what: Option<&String>| what.is_some_and(|w| w == "Delete");
    let when_scaled = deletes(policy.and_then(|p| p.when_scaled.as_ref()));
    let when_deleted = deletes(policy.and_then(|p| p.when_deleted.as_ref()));
    let first = start(spec);
    let scaled_down = !(first..first + replicas(spec)).contains(&ordinal);
    let mut wanted: Vec<OwnerReference> = owners.iter().filter(|o| !ours(o)).cloned().collect();
    if !foreign {
        if when_scaled && scaled_down {
            wanted.push(pod_ref.clone());
        }
        if when_deleted && !(when_scaled && scaled_down) {
            wanted.push(set_ref.clone());
        }
    }
    let same = wanted.len() == owners.len() && wanted.iter().all(|w| owners.contains(w));
    (!same).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owns_a_claim() {
        let check = |scaled: &str, deleted: &str, ordinal: i32, owners: &[(&str, &str, &str)], expected: Option<&[&str]>| {
            let set: StatefulSet = serde_json::from_value(json!({
                "metadata": { "name": "web", "uid": "s" },
                "spec": { "replicas": 2, "selector": {}, "template": {}, "serviceName": "web",
                          "persistentVolumeClaimRetentionPolicy": { "whenScaled": scaled, "whenDeleted": deleted } } }))
            .expect("a set");
            let pod: Pod =
                serde_json::from_value(json!({ "metadata": { "name": format!("web-{ordinal}"), "uid": "p" } })).expect("a pod");
            let own = |(kind, name, uid): &(&str, &str, &str)| OwnerReference {
                kind: (*kind).into(),
                name: (*name).into(),
                uid: (*uid).into(),
                api_version: if *kind == "Pod" { "v1" } else { "apps/v1" }.into(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            };
            let owners: Vec<_> = owners.iter().map(own).collect();
            let spec = set.spec.clone().expect("a spec");
            let wanted = owners_of(&set, &spec, &pod, ordinal, &owners);
            let kinds = wanted.as_ref().map(|all| all.iter().map(|o| o.kind.as_str()).collect::<Vec<_>>());
            assert_eq!(kinds.as_deref(), expected);
        };
        check("Retain", "Retain", 0, &[], None);
        check("Retain", "Delete", 0, &[], Some(&["StatefulSet"]));
        check("Retain", "Delete", 0, &[("StatefulSet", "web", "s")], None);
        check("Retain", "Retain", 0, &[("StatefulSet", "web", "s")], Some(&[]));
        check("Delete", "Retain", 5, &[], Some(&["Pod"]));
        check("Delete", "Delete", 5, &[("StatefulSet", "web", "s")], Some(&["Pod"]));
        check("Delete", "Delete", 0, &[], Some(&["StatefulSet"]));
        check("Delete", "Delete", 0, &[("StatefulSet", "web", "earlier")], None);
        check("Delete", "Delete", 0, &[("Other", "x", "x")], None);
    }
}
