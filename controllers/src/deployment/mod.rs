//! Deployment: moves pods from one ReplicaSet to the next, a few at a time, and keeps a history of revisions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::pods::{controller_of, is_finished};
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::{claim, is_controlled_by, selects};
use crate::controller::{Again, Controller, owners};
use crate::error::Error;
use crate::kind::{By, Change, Key, Kind, is_namespace_terminating, is_taken, message};

mod plan;
mod status;
mod template;
#[cfg(test)]
mod tests;

use plan::{Observed, Plan};

/// The name that events carry.
const SOURCE: &str = "deployment-controller";

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let deployments = context.kinds.deployments.clone();
    let (all, sets) = (deployments.clone(), context.kinds.replica_sets.clone());
    Controller::new(SOURCE, &deployments)
        .owns(&*context.kinds.replica_sets)
        .on(&*context.kinds.replica_sets, move |change: &Change<ReplicaSet>| would_adopt(&all, change))
        .on(&*context.kinds.pods, move |change: &Change<Pod>| last_pod_left(&sets, change))
        .run(context, reconcile)
}

/// The Deployments that would adopt a ReplicaSet without owner.
fn would_adopt(all: &Kind<Deployment>, change: &Change<ReplicaSet>) -> Vec<ObjectRef<Deployment>> {
    let Some(set) = change.new.as_ref().filter(|s| controller_of(&s.metadata).is_none()) else { return Vec::new() };
    let mut found = all.find(&By::Namespace(set.metadata.namespace.clone().unwrap_or_default()));
    found.retain(|d| selects(&selector::of(d.spec.as_ref().map(|s| &s.selector)), &**set));
    found.iter().map(|d| Key::of(&d.metadata).reference()).collect()
}

/// A Deployment that recreates waits until the last pod of its old sets is gone.
fn last_pod_left(sets: &Kind<ReplicaSet>, change: &Change<Pod>) -> Vec<ObjectRef<Deployment>> {
    let Some(pod) = change.old.as_ref().filter(|_| change.new.as_ref().is_none_or(|p| is_finished(p))) else {
        return Vec::new();
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let owner = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet");
    let set = owner.and_then(|o| sets.get(namespace, &o.name));
    set.map(|set| owners(&Change { old: None, new: Some(set) })).unwrap_or_default()
}

fn spec(deployment: &Deployment) -> Option<&DeploymentSpec> {
    deployment.spec.as_ref()
}

async fn reconcile(context: Arc<Context>, deployment: Arc<Deployment>) -> Result<Again, Error> {
    let Some(spec) = spec(&deployment) else { return Ok(None) };
    let kinds = &context.kinds;
    let wants = selector::of(Some(&spec.selector));
    if wants.is_empty() {
        let why = "This deployment is selecting all pods. A non-empty selector is required.";
        context.events.warning(SOURCE, &*deployment, "SelectingAll", why);
        return Ok(None);
    }
    let sets = claim(&*deployment, &kinds.replica_sets, |set| selects(&wants, set), |_| true).await?;
    let running = |set: &ReplicaSet| kinds.pods.controlled_by(&set.metadata).iter().any(|p| !is_finished(p));
    let observed = Observed {
        running: sets.iter().filter(|set| running(set)).filter_map(|set| set.metadata.uid.clone()).collect(),
        deployment: &deployment,
        sets,
        now: clock::now(),
    };
    let plan = plan::plan(&observed);
    act(&context, &deployment, plan).await
}

async fn act(context: &Arc<Context>, deployment: &Arc<Deployment>, plan: Plan) -> Result<Again, Error> {
    let kinds = &context.kinds;
    if let Some(set) = &plan.create {
        let name = set.metadata.name.as_deref().unwrap_or("");
        match kinds.replica_sets.create(set).await {
            Ok(_) => {}
            Err(error) if is_taken(&error) => {
                let taken = kinds.replica_sets.get(set.metadata.namespace.as_deref().unwrap_or(""), name);
                if taken.is_none_or(|t| is_controlled_by(&t.metadata, &**deployment)) {
                    // Ours, only not in the cache yet: the next look will find it.
                    return Err(Error::on("creating a replica set")(error));
                }
                let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1;
                let patch = json!({ "status": { "collisionCount": count } });
                kinds
                    .deployments
                    .patch_status(&deployment.metadata, &Patch::Merge(patch))
                    .await
                    .map_err(Error::on("noting a name collision"))?;
                return Ok(None);
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(None),
            Err(error) => {
                let why = format!("Failed to create new replica set {name:?}: {}", message(&error));
                context.events.warning(SOURCE, &**deployment, "ReplicaSetCreateError", &why);
                if let Some(failed) = status::creation_failed(deployment, &why, clock::now()) {
                    kinds.deployments.replace_status(&failed).await.map_err(Error::on("updating the status"))?;
                }
                return Err(Error::on("creating a replica set")(error));
            }
        }
    }
    for (meta, patch) in &plan.patches {
        kinds
            .replica_sets
            .patch(meta, &Patch::Merge(patch))
            .await
            .map_err(Error::on("updating a replica set"))?;
    }
    for text in plan.events {
        context.events.normal(SOURCE, &**deployment, "ScalingReplicaSet", text);
    }
    for meta in &plan.delete {
        kinds.replica_sets.delete(meta, None).await.map_err(Error::on("deleting an old replica set"))?;
    }
    if plan.revision.is_some() || Some(&plan.status) != deployment.status.as_ref() {
        // The revision goes with the status, which (unlike a change of the object itself) leaves the generation alone.
        let mut updated = Deployment { status: Some(plan.status), ..(**deployment).clone() };
        if let Some(revision) = plan.revision {
            updated.metadata.annotations.get_or_insert_default().insert(template::REVISION.into(), revision);
        }
        kinds.deployments.replace_status(&updated).await.map_err(Error::on("updating the status"))?;
    }
    Ok(plan.again)
}
