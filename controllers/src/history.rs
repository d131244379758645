//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::Patch;
use serde_json::{Value, json};
use skiff_api::labels::Selector;

use crate::Context;
use crate::claim::{claim, controller_ref, is_controlled_by, selects};
use crate::error::Error;
use crate::hash::hash;
use crate::kind::{Object, is_taken};

/// The label of a DaemonSet's revisions and of its pods, with the hash for a value.
pub const DAEMON_HASH: &str = "controller-revision-hash";
/// The label of a StatefulSet's revisions.
pub const STATEFUL_HASH: &str = "controller.kubernetes.io/hash";

/// The present revision and the earlier ones.
#[derive(Debug)]
pub struct History {
    /// The revision of the present template.
    pub present: Arc<ControllerRevision>,
    /// All others, the oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
}

/// What came of bringing the history up to date.
#[derive(Debug)]
pub enum Outcome {
    /// It is.
    Current(History),
    /// The new revision's name is taken by another's: it must be made with a higher collision count.
    Collision,
}

/// What a revision keeps: a patch that brings the template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".into(), "replace".into());
    }
    json!({ "spec": { "template": template } })
}

/// Leaves out what is null: that is how other writers spell absence.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// The hash in a revision's labels.
pub fn hash_of<'a>(revision: &'a ControllerRevision, label: &str) -> &'a str {
    revision.metadata.labels.as_ref().and_then(|l| l.get(label)).map_or("", String::as_str)
}

fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or("")
}

/// What is to be done about the history.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The revision at this place is the present one and the newest.
    Keep(usize),
    /// It is the present one and becomes the newest: the template was rolled back.
    Raise(usize, i64),
    /// A new one with this number.
    Make(i64),
}

/// Decides which revision is the present one.
fn plan(revisions: &[Arc<ControllerRevision>], wanted: &Value) -> Plan {
    let wanted = without_nulls(wanted);
    let same = |r: &Arc<ControllerRevision>| r.data.as_ref().is_some_and(|d| without_nulls(&d.0) == wanted);
    let present = (0..revisions.len()).filter(|&i| same(&revisions[i])).max_by_key(|&i| revisions[i].revision);
    let newest = revisions.iter().enumerate().filter(|(i, _)| Some(*i) != present).map(|(_, r)| r.revision).max();
    let next = newest.unwrap_or(0).saturating_add(1);
    match present {
        Some(i) if revisions[i].revision < next => Plan::Raise(i, next),
        Some(i) => Plan::Keep(i),
        None => Plan::Make(next),
    }
}

/// Brings the history of `owner` up to date.
pub async fn sync<P: Object>(
    context: &Arc<Context>,
    owner: &P,
    template: &PodTemplateSpec,
    selector: &Selector,
    label: &str,
    collisions: Option<i32>,
) -> Result<Outcome, Error> {
    let kind = &context.kinds.controller_revisions;
    let mut revisions = claim(owner, kind, |revision| selects(selector, revision), |_| true).await?;
    revisions.sort_by(|a, b| (a.revision, name_of(a)).cmp(&(b.revision, name_of(b))));
    let wanted = data(template);
    let present = match plan(&revisions, &wanted) {
        Plan::Keep(i) => revisions.remove(i),
        Plan::Raise(i, number) => {
            let patch = json!({ "metadata": { "uid": revisions[i].metadata.uid }, "revision": number });
            let raised = kind.patch(&revisions[i].metadata, &Patch::Merge(patch)).await;
            revisions.remove(i);
            raised.map_err(Error::on("raising the number of a revision"))?
        }
        Plan::Make(number) => {
            let revision = revision(owner, template, wanted.clone(), label, collisions, number);
            match kind.create(&revision).await {
                Ok(made) => made,
                Err(error) if is_taken(&error) => {
                    let namespace = owner.meta().namespace.as_deref().unwrap_or("");
                    let there = kind.get(namespace, name_of(&revision));
                    let same = |r: &&Arc<ControllerRevision>| {
                        is_controlled_by(&r.metadata, owner)
                            && r.data.as_ref().is_some_and(|d| without_nulls(&d.0) == without_nulls(&wanted))
                    };
                    match there.as_ref().filter(same) {
                        Some(same) => same.clone(),
                        None if there.is_some() => return Ok(Outcome::Collision),
                        // Somebody was faster, and the cache doesn't know yet.
                        None => return Err(Error::on("creating a revision")(error)),
                    }
                }
                Err(error) => return Err(Error::on("creating a revision")(error)),
            }
        }
    };
    Ok(Outcome::Current(History { present, old: revisions }))
}

fn revision<P: Object>(
    owner: &P,
    template: &PodTemplateSpec,
    data: Value,
    label: &str,
    collisions: Option<i32>,
    number: i64,
) -> ControllerRevision {
    let hash = hash(template, collisions);
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(label.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or(""))),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The template that a revision keeps.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Deletes old revisions beyond those that are kept and those that `lives` says are still in use.
pub async fn prune(
    context: &Arc<Context>,
    history: &History,
    kept: i32,
    lives: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let idle: Vec<_> = history.old.iter().filter(|r| !lives(r)).collect();
    let surplus = idle.len().saturating_sub(usize::try_from(kept).unwrap_or(0));
    for revision in &idle[..surplus] {
        let kind = &context.kinds.controller_revisions;
        kind.delete(&revision.metadata, None).await.map_err(Error::on("deleting an old revision"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_revision_is_present() {
        let template = |image: &str| -> PodTemplateSpec {
            let value = json!({ "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "c", "image": image }] } });
            serde_json::from_value(value).expect("a template")
        };
        let revision = |image: &str, number| {
            Arc::new(ControllerRevision { data: Some(RawExtension(data(&template(image)))), revision: number, ..Default::default() })
        };
        let check = |have: &[Arc<ControllerRevision>], image, expected| assert_eq!(plan(have, &data(&template(image))), expected);
        check(&[], "v1", Plan::Make(1));
        check(&[revision("v1", 1)], "v1", Plan::Keep(0));
        check(&[revision("v1", 1)], "v2", Plan::Make(2));
        check(&[revision("v1", 1), revision("v2", 2)], "v1", Plan::Raise(0, 3));
        assert_eq!(super::template(&revision("v1", 1)), Some(template("v1")));
    }
}
