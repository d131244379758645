//! What a Deployment's status says.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{max_unavailable, replicas};

/// A rollout without a deadline has the largest number there is, as kubectl writes it.
const NO_DEADLINE: i32 = i32::MAX;

/// The condition of this type.
pub fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// Sets a condition. One with the same status and reason stays as it is.
fn set(status: &mut DeploymentStatus, type_: &str, is: &str, reason: &str, message: String, now: Timestamp) {
    let old = condition(status, type_).cloned();
    if old.as_ref().is_some_and(|c| c.status == is && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = old.filter(|c| c.status == is).and_then(|c| c.last_transition_time).unwrap_or(Time(now));
    remove(status, type_);
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: type_.into(),
        status: is.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since),
    });
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != type_);
    }
}

/// The deadline for progress in seconds, if there is one.
fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|&seconds| seconds != NO_DEADLINE)
}

/// The status with its counts and the Available condition. `sets` are all ReplicaSets, `present` the one of the
/// present template.
pub fn count(deployment: &Deployment, sets: &[ReplicaSet], present: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| sets.iter().map(of).sum::<i32>();
    let of_status = |set: &ReplicaSet| set.status.as_ref().map_or(0, |s| s.replicas);
    let available = sum(|s| s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0));
    let ready = sum(|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let unavailable = (sum(replicas) - available).max(0);
    let old = deployment.status.clone().unwrap_or_default();
    let unless_zero = |count: i32| (count != 0).then_some(count);
    // Known only when every set that was looked at tells; new ones have none yet.
    let terminating = sets.iter().filter_map(|s| s.status.as_ref()).filter(|s| s.observed_generation.unwrap_or(0) > 0);
    let terminating: Option<Vec<i32>> = terminating.map(|s| s.terminating_replicas).collect();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: unless_zero(sets.iter().map(of_status).sum()),
        updated_replicas: unless_zero(present.map_or(0, of_status)),
        ready_replicas: unless_zero(ready),
        available_replicas: unless_zero(available),
        unavailable_replicas: unless_zero(unavailable),
        collision_count: old.collision_count,
        terminating_replicas: terminating.map(|counts| counts.iter().sum()),
        conditions: old.conditions,
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    if available >= wanted - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".into();
        set(&mut status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".into();
        set(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

/// Whether the rollout is done: all pods are of the present template and available.
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    [status.updated_replicas, status.replicas, status.available_replicas].iter().all(|n| n.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Adds how the rollout goes. Returns when a lack of progress becomes a failure, if nothing changes until then.
pub fn progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    sets: &[ReplicaSet],
    present: Option<&ReplicaSet>,
    now: Timestamp,
) -> Option<Timestamp> {
    let subject = match present {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or("")),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or("")),
    };
    let before = deployment.status.clone().unwrap_or_default();
    let current = condition(status, "Progressing").cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or("");
    let settled = status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
    let limit = deadline(deployment);
    if limit.is_none() {
        remove(status, "Progressing");
    } else if !settled {
        if complete(deployment, status) {
            let message = format!("{subject} has successfully progressed.");
            set(status, "Progressing", "True", "NewReplicaSetAvailable", message, now);
        } else if progressed(&before, status) {
            // Said anew each time, with the time of the latest progress.
            let since = current.as_ref().filter(|c| c.status == "True").and_then(|c| c.last_transition_time.clone());
            remove(status, "Progressing");
            set(status, "Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
            if let (Some(since), Some(conditions)) = (since, &mut status.conditions) {
                conditions.iter_mut().filter(|c| c.type_ == "Progressing").for_each(|c| {
                    c.last_transition_time = Some(since.clone());
                });
            }
        } else if due(status, limit).is_some_and(|at| at < now) {
            let message = format!("{subject} has timed out progressing.");
            set(status, "Progressing", "False", "ProgressDeadlineExceeded", message, now);
        }
    }
    let failures = present.into_iter().chain(sets).flat_map(|s| s.status.iter()).flat_map(|s| s.conditions.iter().flatten());
    match failures.into_iter().find(|c| c.type_ == "ReplicaFailure") {
        Some(failure) => {
            let (reason, message) = (failure.reason.as_deref().unwrap_or(""), failure.message.clone().unwrap_or_default());
            set(status, "ReplicaFailure", &failure.status.clone(), reason, message, now);
        }
        None => remove(status, "ReplicaFailure"),
    }
    if complete(deployment, status) { None } else { due(status, limit) }
}

/// When a lack of progress becomes a failure.
fn due(status: &DeploymentStatus, limit: Option<i32>) -> Option<Timestamp> {
    let progressing = condition(status, "Progressing")?;
    if matches!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded")) {
        return None;
    }
    let since = progressing.last_update_time.as_ref()?.0;
    since.checked_add(SignedDuration::from_secs(limit?.into())).ok()
}

fn progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(after.updated_replicas) > n(before.updated_replicas)
        || old(after) < old(before)
        || n(after.ready_replicas) > n(before.ready_replicas)
        || n(after.available_replicas) > n(before.available_replicas)
}

/// Notes that a ReplicaSet was made or found for the present template.
pub fn note_set(deployment: &Deployment, status: &mut DeploymentStatus, name: &str, created: bool, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    if created {
        let message = format!("Created new replica set {name:?}");
        set(status, "Progressing", "True", "NewReplicaSetCreated", message, now);
    } else if condition(status, "Progressing").is_none() {
        let message = format!("Found new replica set {name:?}");
        set(status, "Progressing", "True", "FoundNewReplicaSet", message, now);
    }
}

/// Notes that the Deployment was paused or resumed, so that the time between isn't held against it.
pub fn note_pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = condition(status, "Progressing").and_then(|c| c.reason.clone()).unwrap_or_default();
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    match (paused, reason.as_str()) {
        (_, "ProgressDeadlineExceeded") | (true, "DeploymentPaused") => {}
        (true, _) => {
            let message = "Deployment is paused".into();
            set(status, "Progressing", "Unknown", "DeploymentPaused", message, now);
        }
        (false, "DeploymentPaused") => {
            let message = "Deployment is resumed".into();
            set(status, "Progressing", "Unknown", "DeploymentResumed", message, now);
        }
        (false, _) => {}
    }
}

/// The Deployment with the note that a ReplicaSet could not be made; none when it says so already.
pub fn creation_failed(deployment: &Deployment, why: &str, now: Timestamp) -> Option<Deployment> {
    deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    set(&mut status, "Progressing", "False", "ReplicaSetCreateError", why.to_owned(), now);
    (Some(&status) != deployment.status.as_ref()).then(|| Deployment { status: Some(status), ..deployment.clone() })
}
