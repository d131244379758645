//! What is to be done for a Job. All the judgement is here; nothing here does IO.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_api::typed::pods::{condition as pod_condition, is_active, is_finished, is_ready, phase};

use super::indexes::Indexes;
use super::policy::{self, Meaning, is_failed, meaning, replaces_only_failed};
use crate::pods::{BURST, sort_active};

/// The finalizer that keeps a pod until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod of an indexed Job, as an annotation and a label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often pods of its index had failed when a pod was made.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often they had failed without it counting.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// How many finished pods are counted at once, so that the status stays small.
const UNCOUNTED: usize = 500;
/// The wait after the first failure; it doubles from failure to failure.
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait.
const LAST_BACKOFF: SignedDuration = SignedDuration::from_mins(10);

/// A Job with its pods.
pub struct Observed<'a> {
    /// The Job.
    pub job: &'a Job,
    /// Its pods, finished and terminating ones included.
    pub pods: &'a [Arc<Pod>],
    /// The time.
    pub now: Timestamp,
}

/// How a Job ends.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Whether it ends well.
    pub success: bool,
    /// The machine-readable reason.
    pub reason: String,
    /// The reason for people.
    pub message: String,
}

/// A pod to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Make {
    /// Its index.
    pub index: Option<i32>,
    /// How often pods of its index have failed: counting, and ignored.
    pub failures: Option<(i32, i32)>,
}

/// What is to be done with pods.
#[derive(Debug, Default)]
pub struct Plan {
    /// How the Job ends, if it does.
    pub end: Option<End>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// Whether the deleted ones count: not when they are only too many.
    pub uncounted: bool,
    /// Pods to make.
    pub make: Vec<Make>,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

pub fn spec(job: &Job) -> &JobSpec {
    static NONE: std::sync::LazyLock<JobSpec> = std::sync::LazyLock::new(JobSpec::default);
    job.spec.as_ref().unwrap_or(&NONE)
}

fn is_indexed(job: &Job) -> bool {
    spec(job).completion_mode.as_deref() == Some("Indexed")
}

fn is_suspended(job: &Job) -> bool {
    spec(job).suspend.unwrap_or(false)
}

fn completions(job: &Job) -> i32 {
    spec(job).completions.unwrap_or(0)
}

/// The condition of this type that is true.
pub fn holds<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True")
}

/// Whether the Job has ended.
pub fn is_over(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|s| holds(s, "Complete").or(holds(s, "Failed")).is_some())
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

fn number(pod: &Pod, annotation: &str) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(annotation)?.parse().ok().filter(|&n: &i32| n >= 0)
}

/// The pod's index, if it has one that counts.
fn index(job: &Job, pod: &Pod) -> Option<i32> {
    number(pod, INDEX).filter(|&i| i < completions(job))
}

fn counts(job: &Job, pod: &Pod) -> bool {
    !is_indexed(job) || index(job, pod).is_some()
}

fn uncounted(status: &JobStatus) -> (HashSet<&str>, HashSet<&str>) {
    let set = |of: fn(&UncountedTerminatedPods) -> &Option<Vec<String>>| {
        status.uncounted_terminated_pods.iter().flat_map(|u| of(u).iter().flatten()).map(String::as_str).collect()
    };
    (set(|u| &u.succeeded), set(|u| &u.failed))
}

/// What the pods come to.
struct Tally {
    active: Vec<Arc<Pod>>,
    terminating: usize,
    succeeded: i32,
    failed: i32,
    succeeded_indexes: Indexes,
    /// With a back-off limit per index.
    failed_indexes: Option<Indexes>,
    /// By index: the failed pod that waits for its replacement.
    replaced: BTreeMap<i32, Arc<Pod>>,
}

fn tally(observed: &Observed<'_>) -> Tally {
    let Observed { job, pods, .. } = *observed;
    let status = job.status.clone().unwrap_or_default();
    let (counted_succeeded, counted_failed) = uncounted(&status);
    let uid = |p: &Pod| p.metadata.uid.clone().unwrap_or_default();
    let fresh = |p: &Pod| is_tracked(p) && counts(job, p);
    let policy = spec(job).pod_failure_policy.as_ref();
    let succeeded =
        pods.iter().filter(|p| fresh(p) && phase(p) == "Succeeded" && !counted_succeeded.contains(uid(p).as_str()));
    let failed = pods.iter().filter(|p| fresh(p) && is_failed(p, job) && !counted_failed.contains(uid(p).as_str()));
    let failed = failed.filter(|p| meaning(policy, p) != Meaning::Ignored).count();
    let active: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
    let terminating = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && !is_finished(p);
    let mut tally = Tally {
        terminating: pods.iter().filter(terminating).count(),
        succeeded: status.succeeded.unwrap_or(0) + (succeeded.count() + counted_succeeded.len()) as i32,
        failed: status.failed.unwrap_or(0) + (failed + counted_failed.len()) as i32,
        active,
        succeeded_indexes: Indexes::default(),
        failed_indexes: None,
        replaced: BTreeMap::new(),
    };
    if is_indexed(job) {
        let before = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""), completions(job));
        let new = pods.iter().filter(|p| phase(p) == "Succeeded" && is_tracked(p)).filter_map(|p| index(job, p));
        tally.succeeded_indexes = before.with(new);
        tally.succeeded = tally.succeeded_indexes.len() as i32;
        if let Some(limit) = spec(job).backoff_limit_per_index {
            tally.failed_indexes = Some(failed_indexes(job, pods, limit));
            tally.replaced = replaced(job, pods, &tally);
        }
    }
    tally
}

fn failed_indexes(job: &Job, pods: &[Arc<Pod>], limit: i32) -> Indexes {
    let status = job.status.as_ref();
    let before = Indexes::parse(status.and_then(|s| s.failed_indexes.as_deref()).unwrap_or(""), completions(job));
    let new = pods.iter().filter(|p| is_tracked(p) && is_failed(p, job)).filter(|p| {
        match meaning(spec(job).pod_failure_policy.as_ref(), p) {
            Meaning::FailsIndex => true,
            Meaning::Ignored => false,
            _ => number(p, FAILURES).unwrap_or(0) >= limit,
        }
    });
    before.with(new.filter_map(|p| index(job, p)))
}

fn failures(pod: &Pod) -> i32 {
    number(pod, FAILURES).unwrap_or(0) + number(pod, IGNORED_FAILURES).unwrap_or(0)
}

/// By index the last pod that failed, where nothing runs and nothing is decided: it stays until its replacement, which
/// inherits its count, is there.
fn replaced(job: &Job, pods: &[Arc<Pod>], tally: &Tally) -> BTreeMap<i32, Arc<Pod>> {
    let running: HashSet<i32> = tally.active.iter().filter_map(|p| index(job, p)).collect();
    let mut last: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| is_tracked(p) && is_failed(p, job)) {
        let Some(i) = index(job, pod) else { continue };
        let decided = tally.succeeded_indexes.contains(i) || tally.failed_indexes.as_ref().is_some_and(|f| f.contains(i));
        if decided || running.contains(&i) {
            continue;
        }
        let later = last.get(&i).is_none_or(|known| (failures(known), finished_at(known)) <= (failures(pod), finished_at(pod)));
        if later {
            last.insert(i, pod.clone());
        }
    }
    last
}

/// When the pod finished, as best as can be told.
fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let of = |all: &Option<Vec<ContainerStatus>>| -> Option<Timestamp> {
        let all: Option<Vec<_>> =
            all.iter().flatten().map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
        all?.into_iter().max()
    };
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| {
        t.0 - SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0))
    });
    status
        .and_then(|s| of(&s.container_statuses))
        .or_else(|| pod_condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.as_ref().map(|t| t.0))
        .or(deleted)
        .or(pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How long to wait after so many failures in a row, the last one then.
fn backoff(failures: i32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    if failures <= 0 {
        return None;
    }
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(10);
    let wait = (FIRST_BACKOFF * (1 << doublings)).min(LAST_BACKOFF);
    let left = wait - now.duration_since(last);
    left.is_positive().then(|| left.try_into().unwrap_or(Duration::ZERO))
}

/// How long to wait for the failures since the last success.
fn backoff_of_job(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let success = pods.iter().filter(|p| phase(p) == "Succeeded").map(|p| finished_at(p)).max();
    let failures: Vec<Timestamp> = pods
        .iter()
        .filter(|p| is_failed(p, job))
        .map(|p| finished_at(p))
        .filter(|at| success.is_none_or(|success| *at > success))
        .collect();
    backoff(failures.len() as i32, failures.iter().copied().max()?, now)
}

fn end(success: bool, reason: &str, message: impl Into<String>) -> End {
    End { success, reason: reason.into(), message: message.into() }
}

/// How the Job ends, if it does, and when it will have run for too long.
fn judge(observed: &Observed<'_>, tally: &Tally) -> (Option<End>, Option<Duration>) {
    let Observed { job, pods, now } = *observed;
    let status = job.status.clone().unwrap_or_default();
    let limit = spec(job);
    let known = |c: &JobCondition, success| {
        end(success, c.reason.as_deref().unwrap_or(""), c.message.clone().unwrap_or_default())
    };
    if let Some(met) = holds(&status, "SuccessCriteriaMet") {
        return (Some(known(met, true)), None);
    }
    if let Some(failed) = holds(&status, "FailureTarget") {
        return (Some(known(failed, false)), None);
    }
    if let Some(why) = policy::fails_job(job, pods) {
        return (Some(end(false, "PodFailurePolicy", why)), None);
    }
    if tally.failed > limit.backoff_limit.unwrap_or(6) || policy::restarted_too_often(job, pods) {
        let why = "Job has reached the specified backoff limit";
        return (Some(end(false, "BackoffLimitExceeded", why)), None);
    }
    let mut left = None;
    if let (Some(seconds), Some(start), false) = (limit.active_deadline_seconds, &status.start_time, is_suspended(job)) {
        let remaining = SignedDuration::from_secs(seconds) - now.duration_since(start.0);
        if !remaining.is_positive() {
            let why = "Job was active longer than specified deadline";
            return (Some(end(false, "DeadlineExceeded", why)), None);
        }
        left = remaining.try_into().ok();
    }
    if let Some(failed) = &tally.failed_indexes {
        if limit.max_failed_indexes.is_some_and(|most| failed.len() > usize::try_from(most).unwrap_or(0)) {
            let why = "Job has exceeded the specified maximal number of failed indexes";
            return (Some(end(false, "MaxFailedIndexesExceeded", why)), None);
        }
        if !failed.is_empty() && (failed.len() + tally.succeeded_indexes.len()) as i32 >= completions(job) {
            return (Some(end(false, "FailedIndexes", "Job has failed indexes")), None);
        }
    }
    if is_indexed(job)
        && let Some(met) = policy::succeeds(limit.success_policy.as_ref(), completions(job), &tally.succeeded_indexes)
    {
        return (Some(end(true, "SuccessPolicy", met)), None);
    }
    (None, left)
}

/// Decides what is to be done with the pods of a Job that isn't over.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { job, pods, now } = *observed;
    let tally = tally(observed);
    let (end_now, again) = judge(observed, &tally);
    let mut plan = Plan { again, ..Plan::default() };
    if end_now.is_some() {
        plan.delete = tally.active;
        plan.end = end_now;
        return plan;
    }
    if job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let active = tally.active.len();
    if is_suspended(job) {
        plan.end = complete(job, &tally, 0);
        plan.delete = tally.active;
        plan.uncounted = true;
        return plan;
    }
    let parallelism = usize::try_from(spec(job).parallelism.unwrap_or(1)).unwrap_or(0);
    let wanted = match spec(job).completions {
        None if tally.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => usize::try_from(completions - tally.succeeded).unwrap_or(0).min(parallelism),
    };
    plan.delete = surplus(job, &tally, active.saturating_sub(wanted));
    plan.uncounted = true;
    if plan.delete.is_empty() {
        let waiting = if replaces_only_failed(job) { tally.terminating } else { 0 };
        let missing = wanted.saturating_sub(active + waiting).min(BURST);
        if missing > 0 {
            make(job, pods, &tally, missing, now, &mut plan);
        }
    }
    if plan.make.is_empty() {
        plan.end = complete(job, &tally, active - plan.delete.len());
    }
    plan
}

fn complete(job: &Job, tally: &Tally, active: usize) -> Option<End> {
    let enough = match spec(job).completions {
        None => tally.succeeded > 0,
        Some(completions) => tally.succeeded >= completions,
    };
    (enough && active == 0).then(|| end(true, "CompletionsReached", "Reached expected number of succeeded pods"))
}

/// The active pods that go: those of the same index, or of none that counts, and as many more as must.
fn surplus(job: &Job, tally: &Tally, at_least: usize) -> Vec<Arc<Pod>> {
    let mut left = tally.active.clone();
    sort_active(&mut left);
    let mut gone = Vec::new();
    if is_indexed(job) {
        let mut by_index: BTreeMap<Option<i32>, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in left {
            by_index.entry(index(job, &pod)).or_default().push(pod);
        }
        left = Vec::new();
        for (index, mut pods) in by_index {
            // The last is the one that is missed most.
            left.extend(index.and_then(|_| pods.pop()));
            gone.extend(pods);
        }
        sort_active(&mut left);
    }
    let more = at_least.saturating_sub(gone.len());
    gone.extend(left.into_iter().take(more));
    gone.truncate(BURST);
    gone
}

fn make(job: &Job, pods: &[Arc<Pod>], tally: &Tally, missing: usize, now: Timestamp, plan: &mut Plan) {
    let soonest = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
    let per_index = spec(job).backoff_limit_per_index.is_some();
    if !per_index && let Some(wait) = backoff_of_job(job, pods, now) {
        plan.again = soonest(plan.again, Some(wait));
        return;
    }
    if !is_indexed(job) {
        plan.make = vec![Make { index: None, failures: None }; missing];
        return;
    }
    let mut taken = tally.succeeded_indexes.with(tally.active.iter().filter_map(|p| index(job, p)));
    if replaces_only_failed(job) {
        let terminating = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !is_finished(p));
        taken = taken.with(terminating.filter_map(|p| index(job, p)));
    }
    if let Some(failed) = &tally.failed_indexes {
        taken = taken.union(failed);
    }
    let mut wait = None;
    for i in taken.missing(completions(job), missing) {
        let before = tally.replaced.get(&i).filter(|_| per_index);
        if let Some(left) = before.and_then(|p| backoff(failures(p) + 1, finished_at(p), now)) {
            wait = soonest(wait, Some(left));
            continue;
        }
        let counted = before.map_or((0, 0), |p| {
            let (failed, ignored) = (number(p, FAILURES).unwrap_or(0), number(p, IGNORED_FAILURES).unwrap_or(0));
            match meaning(spec(job).pod_failure_policy.as_ref(), p) {
                Meaning::Ignored => (failed, ignored + 1),
                _ => (failed + 1, ignored),
            }
        });
        plan.make.push(Make { index: Some(i), failures: per_index.then_some(counted) });
    }
    if plan.make.is_empty() {
        plan.again = soonest(plan.again, wait);
    }
}

/// How a Job's status changes, in two steps around the release of its finished pods.
#[derive(Debug)]
pub struct Track {
    /// The status to write first: it remembers the pods that are about to be released.
    pub before: JobStatus,
    /// Pods to release: they are counted, or need not be.
    pub release: Vec<Arc<Pod>>,
    /// How the Job ends, once all are counted.
    pub end: Option<End>,
    /// Events about the Job: whether a warning, reason, message.
    pub events: Vec<(bool, String, String)>,
}

/// Decides what is counted. `observed` is how things are after the plan was carried out; `end` how the Job ends.
pub fn track(observed: &Observed<'_>, end: Option<End>) -> Track {
    let Observed { job, pods, now } = *observed;
    let tally = tally(observed);
    let mut status = job.status.clone().unwrap_or_default();
    let mut events = Vec::new();
    if status.start_time.is_none() && !is_suspended(job) {
        status.start_time = Some(Time(now));
    }
    if end.is_none() && job.metadata.deletion_timestamp.is_none() {
        note_suspension(job, &mut status, now, &mut events);
    }
    status.active = unless_zero(tally.active.len() as i32);
    status.ready = Some(tally.active.iter().filter(|p| is_ready(p)).count() as i32);
    status.terminating = Some(tally.terminating as i32);
    settle(&mut status, pods);
    let (known_succeeded, known_failed) = {
        let (succeeded, failed) = uncounted(&status);
        let own = |set: HashSet<&str>| set.into_iter().map(str::to_owned).collect::<HashSet<String>>();
        (own(succeeded), own(failed))
    };
    let policy = spec(job).pod_failure_policy.as_ref();
    let failing = end.as_ref().is_some_and(|e| !e.success);
    let ending = end.is_some() || job.metadata.deletion_timestamp.is_some();
    let mut release = Vec::new();
    let mut new_indexes = Vec::new();
    let previous = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""), completions(job));
    let mut more = UncountedTerminatedPods::default();
    for pod in pods.iter().filter(|p| is_tracked(p)) {
        let failed = is_failed(pod, job);
        let awaits_replacement = index(job, pod)
            .and_then(|i| tally.replaced.get(&i))
            .is_some_and(|waiting| waiting.metadata.uid == pod.metadata.uid);
        if !(ending || phase(pod) == "Succeeded" || (failed && !awaits_replacement)) {
            continue;
        }
        release.push(pod.clone());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if phase(pod) == "Succeeded" && !known_failed.contains(&uid) {
            if is_indexed(job) {
                new_indexes.extend(index(job, pod).filter(|i| !previous.contains(*i)));
            } else if !known_succeeded.contains(&uid) {
                more.succeeded.get_or_insert_default().push(uid);
            }
        } else if (phase(pod) == "Failed" || failing || (failed && !ending)) && !known_failed.contains(&uid) && counts(job, pod) {
            // When the Job has failed, so has every pod that isn't done; when it succeeded, those are only left over.
            if meaning(policy, pod) != Meaning::Ignored {
                more.failed.get_or_insert_default().push(uid);
            }
        }
        if release.len() >= UNCOUNTED {
            break;
        }
    }
    let list = status.uncounted_terminated_pods.get_or_insert_default();
    list.succeeded.get_or_insert_default().extend(more.succeeded.into_iter().flatten());
    list.failed.get_or_insert_default().extend(more.failed.into_iter().flatten());
    if is_indexed(job) {
        let done = previous.with(new_indexes);
        status.succeeded = unless_zero(done.len() as i32);
        status.completed_indexes = Some(done.to_string()).filter(|text| !text.is_empty());
        status.failed_indexes = tally.failed_indexes.as_ref().map(ToString::to_string);
    }
    if let Some(end) = &end {
        let target = if end.success { "SuccessCriteriaMet" } else { "FailureTarget" };
        if holds(&status, target).is_none() {
            add(&mut status, target, end, now);
        }
    }
    tidy(&mut status);
    Track { before: status, release, end, events }
}

/// The status after the pods were released. `pods` are those that there are then. None when it isn't to change.
pub fn conclude(job: &Job, mut status: JobStatus, pods: &[Arc<Pod>], end: Option<&End>, now: Timestamp) -> (JobStatus, bool) {
    settle(&mut status, pods);
    let (succeeded, failed) = uncounted(&status);
    let waiting = pods.iter().any(|p| p.metadata.deletion_timestamp.is_some() && !is_finished(p));
    let counted = succeeded.is_empty() && failed.is_empty() && !pods.iter().any(|p| is_tracked(p) && is_finished(p));
    status.terminating =
        Some(pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !is_finished(p)).count() as i32);
    let mut over = false;
    if let Some(end) = end.filter(|_| counted && !waiting && !is_over(job)) {
        add(&mut status, if end.success { "Complete" } else { "Failed" }, end, now);
        if end.success {
            status.completion_time = Some(Time(now));
        }
        over = true;
    }
    tidy(&mut status);
    (status, over)
}

/// Moves pods that are released, or gone, from the list of uncounted ones to the counters.
fn settle(status: &mut JobStatus, pods: &[Arc<Pod>]) {
    let held: HashSet<&str> = pods.iter().filter(|p| is_tracked(p)).filter_map(|p| p.metadata.uid.as_deref()).collect();
    let Some(list) = &mut status.uncounted_terminated_pods else { return };
    for (uids, count) in [(&mut list.succeeded, &mut status.succeeded), (&mut list.failed, &mut status.failed)] {
        let Some(uids) = uids else { continue };
        let before = uids.len();
        uids.retain(|uid| held.contains(uid.as_str()));
        *count = unless_zero(count.unwrap_or(0) + (before - uids.len()) as i32);
    }
}

fn unless_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Leaves out what is empty, as upstream does.
fn tidy(status: &mut JobStatus) {
    let list = status.uncounted_terminated_pods.get_or_insert_default();
    for uids in [&mut list.succeeded, &mut list.failed] {
        if uids.as_ref().is_some_and(Vec::is_empty) {
            *uids = None;
        }
    }
    if status.conditions.as_ref().is_some_and(Vec::is_empty) {
        status.conditions = None;
    }
}

fn add(status: &mut JobStatus, type_: &str, end: &End, now: Timestamp) {
    put(status, type_, "True", &end.reason, &end.message, now);
}

fn put(status: &mut JobStatus, type_: &str, is: &str, reason: &str, message: &str, now: Timestamp) {
    let all = status.conditions.get_or_insert_default();
    let new = JobCondition {
        type_: type_.into(),
        status: is.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match all.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

fn note_suspension(job: &Job, status: &mut JobStatus, now: Timestamp, events: &mut Vec<(bool, String, String)>) {
    let known = status.conditions.iter().flatten().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
    match (is_suspended(job), known) {
        (true, Some(true)) | (false, None | Some(false)) => {}
        (true, _) => {
            put(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
            events.push((false, "Suspended".into(), "Job suspended".into()));
        }
        (false, _) => {
            put(status, "Suspended", "False", "JobResumed", "Job resumed", now);
            events.push((false, "Resumed".into(), "Job resumed".into()));
            // The time while it was suspended doesn't count.
            status.start_time = Some(Time(now));
        }
    }
}
