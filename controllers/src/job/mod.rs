//! Job: pods that run to their end, so many of them, counted exactly once each.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{Patch, PropagationPolicy};
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::pods::controller_of;
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::{claim, controller_ref, selects};
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, Key, Kind, is_gone};
use crate::pods;
use crate::queue::Queue;

mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

pub use plan::{holds, is_over};
use plan::{FAILURES, IGNORED_FAILURES, INDEX, Make, Observed, TRACKING};

/// The name that events carry.
const SOURCE: &str = "job-controller";
/// The variable that tells a container its pod's index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The longest prefix of a generated name, in bytes.
const PREFIX_LIMIT: usize = 58;
/// How many requests for one Job are under way at once.
const PARALLEL: usize = 32;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let (all, jobs) = (context.kinds.jobs.clone(), context.kinds.jobs.clone());
    let controller = Controller::new(SOURCE, &context.kinds.jobs)
        .owns(&*context.kinds.pods)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| would_adopt(&all, change));
    // A pod whose Job is gone waits for nobody to count it.
    let (queue, work) = Queue::<Key>::new();
    let (of_jobs, pods) = (queue.clone(), context.kinds.pods.clone());
    context.kinds.pods.on_change(move |change: &Change<Pod>| {
        if let Some(pod) = change.new.as_ref().filter(|p| is_stray(p, &jobs)) {
            queue.add(Key::of(&pod.metadata));
        }
    });
    context.kinds.jobs.on_change(move |change: &Change<Job>| {
        if let (Some(old), None) = (&change.old, &change.new) {
            pods.controlled_by(&old.metadata).iter().for_each(|p| of_jobs.add(Key::of(&p.metadata)));
        }
    });
    let strays = context.clone();
    async move {
        let release_strays = async {
            strays.kinds.ready().await;
            work.run(SOURCE, PARALLEL, |key| release_stray(strays.clone(), key)).await;
        };
        futures::join!(controller.run(context, reconcile), release_strays);
    }
}

/// Whether a pod on its way out waits to be counted by a Job that isn't there.
fn is_stray(pod: &Pod, jobs: &Kind<Job>) -> bool {
    let tracked = pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING);
    tracked && pod.metadata.deletion_timestamp.is_some() && {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let owner = controller_of(&pod.metadata).filter(|o| o.kind == "Job");
        let job = owner.and_then(|o| jobs.get(namespace, &o.name).filter(|j| j.metadata.uid.as_ref() == Some(&o.uid)));
        job.is_none()
    }
}

async fn release_stray(context: Arc<Context>, key: Key) -> Result<Again, Error> {
    if let Some(pod) = context.kinds.pods.get(&key.namespace, &key.name).filter(|p| is_stray(p, &context.kinds.jobs)) {
        release(&context, &pod).await?;
    }
    Ok(None)
}

fn would_adopt(all: &Kind<Job>, change: &Change<Pod>) -> Vec<ObjectRef<Job>> {
    let Some(pod) = change.new.as_ref().filter(|p| controller_of(&p.metadata).is_none()) else { return Vec::new() };
    let mut found = all.find(&By::Namespace(pod.metadata.namespace.clone().unwrap_or_default()));
    found.retain(|j| selects(&selector::of(plan::spec(j).selector.as_ref()), &**pod));
    found.iter().map(|j| Key::of(&j.metadata).reference()).collect()
}

async fn reconcile(context: Arc<Context>, job: Arc<Job>) -> Result<Again, Error> {
    let managed_elsewhere = plan::spec(&job).managed_by.as_deref().is_some_and(|m| m != "kubernetes.io/job-controller");
    if is_over(&job) || managed_elsewhere {
        return Ok(None);
    }
    let wants = selector::of(plan::spec(&job).selector.as_ref());
    let all = claim(&*job, &context.kinds.pods, |pod| selects(&wants, pod), |_| true).await?;
    let plan = plan::plan(&Observed { job: &job, pods: &all, now: clock::now() });
    let acted = act(&context, &job, &plan).await;

    // The cache shows what was done: what is counted is what there is now.
    let after = context.kinds.pods.controlled_by(&job.metadata);
    let over = acted.is_ok() && !after.iter().any(|p| skiff_api::typed::pods::is_active(p));
    let now = clock::now();
    let track = plan::track(&Observed { job: &job, pods: &after, now }, plan.end.filter(|_| over));
    for (warning, reason, message) in track.events {
        match warning {
            true => context.events.warning(SOURCE, &*job, &reason, message),
            false => context.events.normal(SOURCE, &*job, &reason, message),
        }
    }
    let current = write(&context, &job, track.before.clone()).await?;
    let released = release_all(&context, track.release).await;
    let left = context.kinds.pods.controlled_by(&job.metadata);
    let (status, finished) = plan::conclude(&current, track.before, &left, track.end.as_ref(), now);
    write(&context, &current, status).await?;
    if let Some(end) = track.end.filter(|_| finished) {
        match end.success {
            true => context.events.normal(SOURCE, &*job, "Completed", "Job completed"),
            false => context.events.warning(SOURCE, &*job, &end.reason, end.message),
        }
    }
    acted.and(released).map(|()| plan.again)
}

/// Writes the status if it is another.
async fn write(
    context: &Context,
    job: &Arc<Job>,
    status: k8s_openapi::api::batch::v1::JobStatus,
) -> Result<Arc<Job>, Error> {
    if job.status.as_ref() == Some(&status) {
        return Ok(job.clone());
    }
    let updated = Job { status: Some(status), ..(**job).clone() };
    context.kinds.jobs.replace_status(&updated).await.map_err(Error::on("updating the status of a job"))
}

async fn act(context: &Arc<Context>, job: &Arc<Job>, plan: &plan::Plan) -> Result<(), Error> {
    if plan.uncounted {
        // What is only too many has not failed.
        release_all(context, plan.delete.clone()).await?;
    }
    pods::delete(context, SOURCE, &**job, plan.delete.clone()).await?;
    let made = plan.make.iter().map(|make| pod(job, make)).collect();
    pods::create(context, SOURCE, &**job, made).await
}

/// A pod of the Job, not yet made.
fn pod(job: &Job, make: &Make) -> Pod {
    let namespace = job.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pods::from_template(&plan::spec(job).template, namespace, controller_ref(job));
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == TRACKING) {
        finalizers.push(TRACKING.into());
    }
    let Some(index) = make.index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or("");
    let suffix = format!("-{index}-");
    let mut kept = name.len().min(PREFIX_LIMIT.saturating_sub(suffix.len()));
    while !name.is_char_boundary(kept) {
        kept -= 1;
    }
    pod.metadata.generate_name = Some(format!("{}{suffix}", &name[..kept]));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some((failed, ignored)) = make.failures {
        annotations.insert(FAILURES.into(), failed.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(tell_index);
    }
    pod
}

fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|v| v.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    let value = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    variables.push(EnvVar { name: INDEX_VARIABLE.into(), value_from: Some(value), value: None });
}

async fn release_all(context: &Arc<Context>, pods: Vec<Arc<Pod>>) -> Result<(), Error> {
    let mut answers = futures::stream::iter(pods.into_iter().map(|pod| {
        let context = context.clone();
        async move { release(&context, &pod).await }
    }))
    .buffer_unordered(PARALLEL);
    let mut outcome = Ok(());
    while let Some(answer) = answers.next().await {
        outcome = outcome.and(answer);
    }
    outcome
}

/// Takes the finalizer off a pod that is counted.
async fn release(context: &Context, pod: &Pod) -> Result<(), Error> {
    if !pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING) {
        return Ok(());
    }
    let patch = json!({ "metadata": { "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING] } });
    match context.kinds.pods.patch(&pod.metadata, &Patch::Strategic(patch)).await {
        Err(error) if !is_gone(&error) => Err(Error::on("releasing a finished pod")(error)),
        _ => Ok(()),
    }
}

/// Runs the controller that deletes Jobs some time after they finished.
pub fn run_ttl(context: Arc<Context>) -> impl Future<Output = ()> {
    Controller::new("ttl-after-finished-controller", &context.kinds.jobs).run(context, expire)
}

async fn expire(context: Arc<Context>, job: Arc<Job>) -> Result<Again, Error> {
    let Some(left) = time_left(&job, clock::now()) else { return Ok(None) };
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let kind = &context.kinds.jobs;
    let foreground = Some(PropagationPolicy::Foreground);
    kind.delete(&job.metadata, foreground).await.map_err(Error::on("deleting a job whose time is over"))?;
    Ok(None)
}

/// For how long the finished Job stays; none for ever.
fn time_left(job: &Job, now: jiff::Timestamp) -> Option<Duration> {
    let ttl = plan::spec(job).ttl_seconds_after_finished?;
    let status = job.status.as_ref().filter(|_| job.metadata.deletion_timestamp.is_none())?;
    let finished = holds(status, "Complete").or(holds(status, "Failed"))?.last_transition_time.as_ref()?.0;
    let left = SignedDuration::from_secs(ttl.into()) - now.duration_since(finished);
    Some(left.try_into().unwrap_or(Duration::ZERO))
}
