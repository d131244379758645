//! What ties a Deployment to its ReplicaSets: the template and its hash, annotations, revisions.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claim::controller_ref;
use crate::hash::hash;

/// The label that keeps the pods of different ReplicaSets apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// The number of a revision.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that a ReplicaSet had before it was rolled back to.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas as a ReplicaSet knows them: tells a change of scale from a rollout.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods the Deployment may have, surge included: the base of proportions.
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The longest list of earlier revisions, in bytes.
const HISTORY_LIMIT: usize = 2000;
/// Annotations that belong to the Deployment alone.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The longest name of an object, in bytes.
const NAME_LIMIT: usize = 253;

/// Whether the templates are the same but for the hash label.
pub fn same(a: Option<&PodTemplateSpec>, b: Option<&PodTemplateSpec>) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        if meta.labels.as_ref().is_some_and(BTreeMap::is_empty) {
            meta.labels = None;
        }
        meta.creation_timestamp = None;
        template
    };
    a.map(plain) == b.map(plain)
}

/// The ReplicaSet for the Deployment's present template, not yet scaled.
pub fn new_set(deployment: &Deployment) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let name = deployment.metadata.name.as_deref().unwrap_or("");
    let mut kept = name.len().min(NAME_LIMIT - 1 - hash.len());
    while !name.is_char_boundary(kept) {
        kept -= 1;
    }
    Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", &name[..kept])),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![controller_ref(deployment)]),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The revision number of a set, 0 when it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The replicas that the Deployment had when the set was last scaled.
pub fn desired(set: &ReplicaSet) -> Option<i32> {
    annotation(set, DESIRED).and_then(|text| text.parse().ok()).filter(|&n: &i32| n >= 0)
}

/// The most pods that the Deployment could have when the set was last scaled.
pub fn max(set: &ReplicaSet) -> Option<i32> {
    annotation(set, MAX).and_then(|text| text.parse().ok()).filter(|&n: &i32| n >= 0)
}

/// Notes the Deployment's replicas on a set.
pub fn note_replicas(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.into(), desired.to_string());
    annotations.insert(MAX.into(), max.to_string());
}

/// Gives the present set the Deployment's annotations and a revision number above all others.
pub fn note_revision(deployment: &Deployment, set: &mut ReplicaSet, newest_old: i64) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let next = newest_old.saturating_add(1);
    let old = annotations.get(REVISION).cloned().unwrap_or_default();
    let Ok(current) = (if old.is_empty() { Ok(0) } else { old.parse::<i64>() }) else { return };
    if current >= next {
        return;
    }
    annotations.insert(REVISION.into(), next.to_string());
    if old.is_empty() {
        return;
    }
    // The set is rolled back to: keep the numbers it had, the oldest dropped when they are too many.
    let earlier = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
    let mut history: Vec<&str> = earlier.split(',').filter(|r| !r.is_empty()).collect();
    history.push(&old);
    while history.len() > 1 && history.iter().map(|r| r.len() + 1).sum::<usize>() > HISTORY_LIMIT {
        history.remove(0);
    }
    let history = history.join(",");
    annotations.insert(REVISION_HISTORY.into(), history);
}
