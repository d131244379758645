//! StatefulSet: pods with lasting names and volumes, made and replaced in order.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::pods::controller_of;
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::{claim, controller_ref, selects};
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::history::{self, History, Outcome, STATEFUL_HASH};
use crate::kind::{By, Change, Key, Kind, is_gone, is_namespace_terminating, message};
use crate::pods;

mod claims;
mod plan;

use plan::{Observed, POD_INDEX, POD_NAME, REVISION, ordinal};

/// The name that events carry.
const SOURCE: &str = "statefulset-controller";

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let all = context.kinds.stateful_sets.clone();
    Controller::new(SOURCE, &context.kinds.stateful_sets)
        .owns(&*context.kinds.pods)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| would_adopt(&all, change))
        .run(context, reconcile)
}

fn would_adopt(all: &Kind<StatefulSet>, change: &Change<Pod>) -> Vec<ObjectRef<StatefulSet>> {
    let Some(pod) = change.new.as_ref().filter(|p| controller_of(&p.metadata).is_none()) else { return Vec::new() };
    let mut found = all.find(&By::Namespace(pod.metadata.namespace.clone().unwrap_or_default()));
    found.retain(|s| {
        let selector = selector::of(s.spec.as_ref().map(|s| &s.selector));
        ordinal(s, pod).is_some() && selects(&selector, &**pod)
    });
    found.iter().map(|s| Key::of(&s.metadata).reference()).collect()
}

async fn reconcile(context: Arc<Context>, set: Arc<StatefulSet>) -> Result<Again, Error> {
    let Some(spec) = &set.spec else { return Ok(None) };
    let kinds = &context.kinds;
    let wants = selector::of(Some(&spec.selector));
    let collisions = set.status.as_ref().and_then(|s| s.collision_count);
    let history = match history::sync(&context, &*set, &spec.template, &wants, STATEFUL_HASH, collisions).await? {
        Outcome::Current(history) => history,
        Outcome::Collision => {
            let patch = json!({ "status": { "collisionCount": collisions.unwrap_or(0) + 1 } });
            let noted = kinds.stateful_sets.patch_status(&set.metadata, &Patch::Merge(patch)).await;
            return noted.map(|_| None).map_err(Error::on("noting a name collision"));
        }
    };
    let current = current(&set, &history);
    let revisions = Revisions { current: current.clone(), update: history.present.clone() };
    let named = |revision: &Arc<ControllerRevision>| revision.metadata.name.clone().unwrap_or_default();
    let (current, update) = (named(&revisions.current), named(&revisions.update));

    let member = |pod: &Pod| ordinal(&set, pod).is_some() && selects(&wants, pod);
    let mine = claim(&*set, &kinds.pods, member, |_| true).await?;
    let observe = |pods| Observed { set: &set, spec, pods, current: &current, update: &update, now: clock::now() };
    let plan = plan::plan(&observe(&mine));
    let outcome = act(&context, &set, spec, &plan, &revisions).await;

    let after = kinds.pods.controlled_by(&set.metadata);
    let kept = claims::retain(&context, &set, spec, &after).await;
    let lives = |r: &ControllerRevision| {
        let name = r.metadata.name.as_deref().unwrap_or("");
        name == current || after.iter().any(|p| plan::revision(p) == name)
    };
    history::prune(&context, &history, spec.revision_history_limit.unwrap_or(10), lives).await?;
    let (status, again) = plan::status(&observe(&after));
    if Some(&status) != set.status.as_ref() {
        let updated = StatefulSet { status: Some(status), ..(*set).clone() };
        let written = kinds.stateful_sets.replace_status(&updated).await;
        written.map_err(Error::on("updating the status of a stateful set"))?;
    }
    outcome.and(kept).map(|()| again.into_iter().chain(plan.again).min())
}

/// The two revisions that pods may be of.
struct Revisions {
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
}

/// The revision that all pods were of before the present one.
fn current(set: &StatefulSet, history: &History) -> Arc<ControllerRevision> {
    let name = set.status.as_ref().and_then(|s| s.current_revision.as_ref());
    let known = history.old.iter().find(|r| r.metadata.name.as_ref() == name);
    known.unwrap_or(&history.present).clone()
}

async fn act(
    context: &Arc<Context>,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    plan: &plan::Plan,
    revisions: &Revisions,
) -> Result<(), Error> {
    for ordinal in &plan.claims {
        claims::ensure(context, set, spec, *ordinal).await?;
    }
    for pod in &plan.label {
        let name = pod.metadata.name.as_deref().unwrap_or("");
        let index = ordinal(set, pod).unwrap_or(0).to_string();
        let patch = json!({ "metadata": { "uid": pod.metadata.uid, "labels": { POD_NAME: name, POD_INDEX: index } } });
        let patched = context.kinds.pods.patch(&pod.metadata, &Patch::Merge(patch)).await;
        tell(context, set, "Update", name, patched.as_ref().err());
        patched.map_err(Error::on("labelling a pod"))?;
    }
    for (ordinal, newer) in &plan.create {
        create(context, set, spec, *ordinal, if *newer { &revisions.update } else { &revisions.current }).await?;
    }
    for pod in &plan.delete {
        let name = pod.metadata.name.as_deref().unwrap_or("");
        let deleted = context.kinds.pods.delete(&pod.metadata, None).await;
        tell(context, set, "Delete", name, deleted.as_ref().err());
        deleted.map_err(Error::on("deleting a pod"))?;
    }
    Ok(())
}

async fn create(
    context: &Arc<Context>,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    ordinal: i32,
    revision: &ControllerRevision,
) -> Result<(), Error> {
    let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or(""));
    claims::ensure(context, set, spec, ordinal).await?;
    let template = history::template(revision).unwrap_or_else(|| spec.template.clone());
    let pod = pod(set, spec, &template, ordinal, revision.metadata.name.as_deref().unwrap_or(""));
    match context.kinds.pods.create(&pod).await {
        Ok(_) => {
            tell(context, set, "Create", &name, None);
            Ok(())
        }
        Err(error) if is_namespace_terminating(&error) => Ok(()),
        Err(error) => {
            if !is_gone(&error) {
                tell(context, set, "Create", &name, Some(&error));
            }
            Err(Error::on("creating a pod")(error))
        }
    }
}

/// A pod of the set, not yet made.
fn pod(set: &StatefulSet, spec: &StatefulSetSpec, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pods::from_template(template, namespace, controller_ref(set));
    let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or(""));
    pod.metadata.generate_name = Some(format!("{}-", set.metadata.name.as_deref().unwrap_or("")));
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(REVISION.into(), revision.to_owned());
    if let Some(own) = &mut pod.spec {
        own.hostname = Some(name);
        own.subdomain = spec.service_name.clone();
    }
    claims::mount(set, spec, &mut pod, ordinal);
    pod
}

/// Tells of an action on a pod.
fn tell(context: &Context, set: &StatefulSet, verb: &str, pod: &str, error: Option<&kube::Error>) {
    let name = set.metadata.name.as_deref().unwrap_or("");
    match error {
        None => {
            let text = format!("{verb} Pod {pod} in StatefulSet {name} successful");
            context.events.normal(SOURCE, set, &format!("Successful{verb}"), text);
        }
        Some(error) => {
            let text = format!("{verb} Pod {pod} in StatefulSet {name} failed error: {}", message(error));
            context.events.warning(SOURCE, set, &format!("Failed{verb}"), text);
        }
    }
}
