//! CronJob: makes Jobs by the clock.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PropagationPolicy;
use skiff_api::clock;

use crate::Context;
use crate::claim::{controller_ref, is_controlled_by};
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::events::reference;
use crate::job::{holds, is_over};
use crate::kind::{is_namespace_terminating, is_taken, message};

/// The name that events carry.
const SOURCE: &str = "cronjob-controller";
/// What upstream says of a schedule that no time matches too.
const TOO_CLOSE: &str = "time difference between two schedules is less than 1 second";
/// For which time a Job was made.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// How long after the time a look is taken, for clocks that go a little apart.
const MARGIN: Duration = Duration::from_millis(100);
/// With more missed times than this something is wrong.
const MANY: i64 = 100;
/// The longest sleep: what lies further away is looked up again.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    Controller::new(SOURCE, &context.kinds.cron_jobs).owns(&*context.kinds.jobs).run(context, reconcile)
}

/// When Jobs are due.
#[derive(Debug)]
enum Schedule {
    /// By the fields minute, hour, day, month, weekday.
    Fields(Box<Cron>, TimeZone),
    /// `@every 1h30m`.
    Every(SignedDuration),
}

impl Schedule {
    /// Reads a schedule; errors are for people.
    fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            let every: SignedDuration = every.trim().parse().map_err(|e| format!("failed to parse duration {every}: {e}"))?;
            return Ok(Self::Every(SignedDuration::from_secs(every.as_secs().max(1))));
        }
        let fields = text.split_whitespace().count();
        if !text.starts_with('@') && fields != 5 {
            return Err(format!("expected exactly 5 fields, found {fields}: [{text}]"));
        }
        if text.contains(['L', 'W', '#']) && !text.starts_with('@') && !has_names_only(text) {
            return Err(format!("failed to parse: {text}"));
        }
        let cron = Cron::from_str(text).map_err(|error| error.to_string())?;
        Ok(Self::Fields(Box::new(cron), zone))
    }

    /// The next time after `at`; none when there is none.
    fn after(&self, at: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(every) => {
                let whole = Timestamp::from_second(at.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
            Self::Fields(cron, zone) => {
                let next = cron.find_next_occurrence(&at.to_zoned(zone.clone()), false).ok()?;
                Some(next.timestamp()).filter(|next| *next > at)
            }
        }
    }

    /// The latest time after `start` and not after `now`, and how many were missed, roughly.
    fn latest(&self, start: Timestamp, now: Timestamp) -> Result<(Option<Timestamp>, i64), String> {
        let Some(first) = self.after(start) else { return Err(TOO_CLOSE.into()) };
        if now < first {
            return Ok((None, 0));
        }
        let Some(second) = self.after(first).filter(|second| now >= *second) else { return Ok((Some(first), 0)) };
        let between = second.duration_since(first).as_secs();
        if between < 1 {
            return Err(TOO_CLOSE.into());
        }
        // Not all missed times are gone through: there may be decades of them.
        let missed = now.duration_since(first).as_secs() / between + 1;
        let near = first + SignedDuration::from_secs((missed - 2).max(0) * between);
        let mut latest = None;
        let mut at = self.after(near);
        while let Some(time) = at.filter(|time| *time <= now) {
            latest = Some(time);
            at = self.after(time);
        }
        Ok((latest, missed))
    }
}

/// Whether the letters are only those of names of months and weekdays.
fn has_names_only(text: &str) -> bool {
    const NAMES: [&str; 19] = [
        "SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT",
        "NOV", "DEC",
    ];
    let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    !text.contains('#') && words.into_iter().all(|word| NAMES.contains(&word.to_ascii_uppercase().as_str()))
}

/// What is to be done.
#[derive(Debug, Default)]
struct Plan {
    /// Events: whether a warning, reason, message.
    events: Vec<(bool, &'static str, String)>,
    /// Finished Jobs beyond the history.
    expire: Vec<Arc<Job>>,
    /// Running Jobs that make room for the new one.
    replace: Vec<Arc<Job>>,
    /// The Job to make, and the time that it is for.
    make: Option<(Job, Timestamp)>,
    /// The status, before the new Job is in it.
    status: CronJobStatus,
    /// When to look again.
    again: Again,
}

fn finished(job: &Job) -> Option<&'static str> {
    let status = job.status.as_ref()?;
    ["Complete", "Failed"].into_iter().find(|type_| holds(status, type_).is_some())
}

fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    follow_jobs(&mut plan, jobs);
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.expire = history(jobs, "Failed", spec.failed_jobs_history_limit);
    plan.expire.extend(history(jobs, "Complete", spec.successful_jobs_history_limit));
    let zone = spec.time_zone.as_deref().filter(|zone| !zone.is_empty());
    let zone = match zone.map(TimeZone::get).transpose() {
        Ok(zone) => zone.unwrap_or(TimeZone::UTC),
        Err(error) => {
            let name = spec.time_zone.as_deref().unwrap_or("");
            plan.events.push((true, "UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")));
            return plan;
        }
    };
    if spec.suspend.unwrap_or(false) {
        return plan;
    }
    let schedule = match Schedule::parse(&spec.schedule, zone.clone()) {
        Ok(schedule) => schedule,
        Err(why) => {
            plan.events.push((true, "UnparseableSchedule", format!("unparseable schedule: {:?} : {why}", spec.schedule)));
            return plan;
        }
    };
    let next = schedule.after(now).map(|at| (clock::until(at) + MARGIN).min(LONGEST));
    plan.again = next;
    due(&mut plan, cron, spec, jobs, &schedule, &zone, now);
    plan
}

/// Makes a Job when it is time.
fn due(
    plan: &mut Plan,
    cron: &CronJob,
    spec: &CronJobSpec,
    jobs: &[Arc<Job>],
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) {
    let made = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = plan.status.last_schedule_time.as_ref().map(|t| t.0);
    let mut start = last.unwrap_or(made);
    if let Some(seconds) = spec.starting_deadline_seconds {
        start = start.max(now - SignedDuration::from_secs(seconds));
    }
    let (at, missed) = match schedule.latest(start, now) {
        Ok(latest) => latest,
        Err(why) => {
            plan.events.push((true, "InvalidSchedule", format!("invalid schedule: {} : {why}", spec.schedule)));
            return;
        }
    };
    let Some(at) = at else { return };
    if missed > MANY {
        let why = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((true, "TooManyMissedTimes", why.into()));
    }
    if spec.starting_deadline_seconds.is_some_and(|seconds| at + SignedDuration::from_secs(seconds) < now) {
        let time = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        plan.events.push((true, "MissSchedule", format!("Missed scheduled time to start a job: {time}")));
        return;
    }
    let name = format!("{}-{}", cron.metadata.name.as_deref().unwrap_or(""), at.as_second().div_euclid(60));
    let active = plan.status.active.as_deref().unwrap_or_default();
    if last == Some(at) || active.iter().any(|a| a.name.as_deref() == Some(name.as_str())) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let why = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((false, "JobAlreadyActive", why.into()));
            return;
        }
        Some("Replace") => {
            let running = |j: &&Arc<Job>| active.iter().any(|a| a.uid == j.metadata.uid);
            plan.replace = jobs.iter().filter(running).cloned().collect();
        }
        _ => {}
    }
    plan.make = Some((job(cron, spec, name, at, zone), at));
}

/// Brings the list of running Jobs up to date.
fn follow_jobs(plan: &mut Plan, jobs: &[Arc<Job>]) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in jobs {
        let name = job.metadata.name.as_deref().unwrap_or("");
        let listed = active.iter().position(|a| a.uid == job.metadata.uid);
        match (finished(job), listed) {
            (None, None) => {
                let why = format!("Saw a job that the controller did not create or forgot: {name}");
                plan.events.push((true, "UnexpectedJob", why));
            }
            (Some(how), Some(at)) => {
                active.remove(at);
                plan.events.push((false, "SawCompletedJob", format!("Saw completed job: {name}, condition: {how}")));
            }
            _ => {}
        }
        let done = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| finished(job) == Some("Complete"));
        if done > plan.status.last_successful_time {
            plan.status.last_successful_time = done;
        }
    }
    active.retain(|a| {
        let there = jobs.iter().any(|j| j.metadata.uid == a.uid);
        if !there {
            let name = a.name.as_deref().unwrap_or("");
            plan.events.push((false, "MissingJob", format!("Active job went missing: {name}")));
        }
        there
    });
    plan.status.active = (!active.is_empty()).then_some(active);
}

/// The oldest Jobs that finished this way, beyond those that are kept.
fn history(jobs: &[Arc<Job>], how: &str, kept: Option<i32>) -> Vec<Arc<Job>> {
    let Some(kept) = kept else { return Vec::new() };
    let mut done: Vec<_> = jobs.iter().filter(|j| finished(j) == Some(how)).cloned().collect();
    done.sort_by_key(|j| {
        let start = j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        (start.is_none(), start, j.metadata.name.clone())
    });
    done.truncate(done.len().saturating_sub(usize::try_from(kept).unwrap_or(0)));
    done.retain(|j| j.metadata.deletion_timestamp.is_none());
    done
}

/// The Job for a time. Its name follows from the time, so that none is made twice.
fn job(cron: &CronJob, spec: &CronJobSpec, name: String, at: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let format = if *zone == TimeZone::UTC { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    annotations.insert(SCHEDULED.into(), at.to_zoned(zone.clone()).strftime(format).to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

async fn reconcile(context: Arc<Context>, cron: Arc<CronJob>) -> Result<Again, Error> {
    let jobs = context.kinds.jobs.controlled_by(&cron.metadata);
    let plan = plan(&cron, &jobs, clock::now());
    for (warning, reason, text) in plan.events {
        match warning {
            true => context.events.warning(SOURCE, &*cron, reason, text),
            false => context.events.normal(SOURCE, &*cron, reason, text),
        }
    }
    let mut status = plan.status;
    for gone in plan.expire.iter().chain(&plan.replace) {
        delete(&context, &cron, gone).await?;
        if let Some(active) = &mut status.active {
            active.retain(|a| a.uid != gone.metadata.uid);
        }
    }
    if let Some((wanted, at)) = plan.make
        && let Some(made) = make(&context, &cron, &wanted).await?
    {
        status.active.get_or_insert_default().push(ObjectReference { ..reference(&*made) });
        status.last_schedule_time = Some(Time(at));
    }
    if status.active.as_ref().is_some_and(Vec::is_empty) {
        status.active = None;
    }
    if cron.status.clone().unwrap_or_default() != status {
        let updated = CronJob { status: Some(status), ..(*cron).clone() };
        context.kinds.cron_jobs.replace_status(&updated).await.map_err(Error::on("updating the status of a cron job"))?;
    }
    Ok(plan.again)
}

/// Makes the Job. None when it can't or needn't be.
async fn make(context: &Context, cron: &CronJob, wanted: &Job) -> Result<Option<Arc<Job>>, Error> {
    match context.kinds.jobs.create(wanted).await {
        Ok(made) => {
            let name = made.metadata.name.as_deref().unwrap_or("");
            context.events.normal(SOURCE, cron, "SuccessfulCreate", format!("Created job {name}"));
            Ok(Some(made))
        }
        Err(error) if is_namespace_terminating(&error) => Ok(None),
        Err(error) if is_taken(&error) => {
            // Made before, but the status could not be written then.
            let namespace = wanted.metadata.namespace.as_deref().unwrap_or("");
            let there = context.kinds.jobs.get(namespace, wanted.metadata.name.as_deref().unwrap_or(""));
            Ok(there.filter(|job| is_controlled_by(&job.metadata, cron) && !is_over(job)))
        }
        Err(error) => {
            context.events.warning(SOURCE, cron, "FailedCreate", format!("Error creating job: {}", message(&error)));
            Err(Error::on("creating a job")(error))
        }
    }
}

async fn delete(context: &Context, cron: &CronJob, job: &Job) -> Result<(), Error> {
    let name = job.metadata.name.as_deref().unwrap_or("");
    match context.kinds.jobs.delete(&job.metadata, Some(PropagationPolicy::Background)).await {
        Ok(()) => {
            context.events.normal(SOURCE, cron, "SuccessfulDelete", format!("Deleted job {name}"));
            Ok(())
        }
        Err(error) => {
            context.events.warning(SOURCE, cron, "FailedDelete", format!("Deleted job: {}", message(&error)));
            Err(Error::on("deleting a job")(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn schedules() {
        let check = |text: &str, zone: &str, after: &str, expected: &str| {
            let zone = TimeZone::get(zone).expect("a zone");
            let next = Schedule::parse(text, zone).map(|s| s.after(at(after)).map(|t| t.to_string()));
            match expected.strip_prefix("error ") {
                Some(expected) => assert_eq!(next.expect_err(text), expected),
                None => assert_eq!(next.expect(text).as_deref(), Some(expected), "{text}"),
            }
        };
        check("*/5 * * * *", "UTC", "2026-01-01T00:03:20Z", "2026-01-01T00:05:00Z");
        check("*/5 * * * *", "UTC", "2026-01-01T00:05:00Z", "2026-01-01T00:10:00Z");
        check("0 9 * * MON-FRI", "UTC", "2026-01-02T10:00:00Z", "2026-01-05T09:00:00Z");
        check("0 9 * JUL *", "UTC", "2026-01-02T10:00:00Z", "2026-07-01T09:00:00Z");
        check("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        check("@hourly", "UTC", "2026-01-01T00:03:20Z", "2026-01-01T01:00:00Z");
        check("@every 1h30m", "UTC", "2026-01-01T00:03:20.5Z", "2026-01-01T01:33:20Z");
        check("30 8 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T06:30:00Z");
        check("* * * * * *", "UTC", "2026-01-01T00:00:00Z", "error expected exactly 5 fields, found 6: [* * * * * *]");
        check("0 0 L * *", "UTC", "2026-01-01T00:00:00Z", "error failed to parse: 0 0 L * *");
    }

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut all = json!({ "schedule": "0 * * * *", "concurrencyPolicy": "Allow",
                              "jobTemplate": { "spec": { "template": { "spec": { "containers": [] } } } } });
        json_patch::merge(&mut all, &spec);
        let value = json!({ "metadata": { "name": "c", "namespace": "default", "uid": "c", "creationTimestamp": "2026-01-01T00:30:00Z" },
                            "spec": all, "status": { "lastScheduleTime": last, "active": [] } });
        serde_json::from_value(value).expect("a cron job")
    }

    fn running(name: &str) -> Arc<Job> {
        Arc::new(serde_json::from_value(json!({ "metadata": { "name": name, "uid": name } })).expect("a job"))
    }

    /// The name of the Job to be made, the names of those replaced, the events' reasons.
    fn check(cron: &CronJob, jobs: &[Arc<Job>], now: &str, expected: (Option<&str>, usize, &[&str])) {
        let plan = plan(cron, jobs, at(now));
        let made = plan.make.and_then(|(job, _)| job.metadata.name);
        let reasons: Vec<_> = plan.events.iter().map(|(_, reason, _)| *reason).collect();
        assert_eq!((made.as_deref(), plan.replace.len(), reasons.as_slice()), expected);
    }

    #[test]
    fn when_jobs_are_made() {
        let one = at("2026-01-01T01:00:00Z").as_second() / 60;
        let (first, third) = (format!("c-{one}"), format!("c-{}", one + 120));
        check(&cron(json!({}), None), &[], "2026-01-01T00:59:00Z", (None, 0, &[]));
        check(&cron(json!({}), None), &[], "2026-01-01T01:00:01Z", (Some(&first), 0, &[]));
        check(&cron(json!({}), Some("2026-01-01T01:00:00Z")), &[], "2026-01-01T01:30:00Z", (None, 0, &[]));
        check(&cron(json!({}), None), &[], "2026-01-01T03:30:00Z", (Some(&third), 0, &[]));
        check(&cron(json!({ "suspend": true }), None), &[], "2026-01-01T03:30:00Z", (None, 0, &[]));
        check(&cron(json!({ "startingDeadlineSeconds": 60 }), None), &[], "2026-01-01T03:30:00Z", (None, 0, &[]));
        check(&cron(json!({ "startingDeadlineSeconds": 60 }), None), &[], "2026-01-01T03:00:30Z", (Some(&third), 0, &[]));
        check(&cron(json!({ "schedule": "huh" }), None), &[], "2026-01-01T03:00:30Z", (None, 0, &["UnparseableSchedule"]));
        check(&cron(json!({ "schedule": "59 23 31 2 *" }), None), &[], "2026-01-01T03:00:30Z", (None, 0, &["InvalidSchedule"]));
        check(&cron(json!({ "timeZone": "Huh/Huh" }), None), &[], "2026-01-01T03:00:30Z", (None, 0, &["UnknownTimeZone"]));
        let late = cron(json!({ "schedule": "* * * * *" }), None);
        let minute = format!("c-{}", one + 60 * 24);
        check(&late, &[], "2026-01-02T01:00:30Z", (Some(&minute), 0, &["TooManyMissedTimes"]));
    }

    #[test]
    fn what_becomes_of_running_jobs() {
        let busy = |policy: &str| {
            let mut cron = cron(json!({ "concurrencyPolicy": policy }), Some("2026-01-01T01:00:00Z"));
            let active = json!([{ "name": "c-1", "uid": "c-1" }]);
            cron.status.get_or_insert_default().active = serde_json::from_value(active).expect("references");
            cron
        };
        let second = format!("c-{}", at("2026-01-01T02:00:00Z").as_second() / 60);
        let now = "2026-01-01T02:00:01Z";
        check(&busy("Allow"), &[running("c-1")], now, (Some(&second), 0, &[]));
        check(&busy("Forbid"), &[running("c-1")], now, (None, 0, &["JobAlreadyActive"]));
        check(&busy("Replace"), &[running("c-1")], now, (Some(&second), 1, &[]));
        check(&busy("Forbid"), &[], now, (Some(&second), 0, &["MissingJob"]));
    }

    #[test]
    fn history_is_kept_within_its_limits() {
        let done = |name: &str, how: &str, hour: u8| {
            let value = json!({ "metadata": { "name": name, "uid": name }, "status": {
                "startTime": format!("2026-01-01T{hour:02}:00:00Z"), "conditions": [{ "type": how, "status": "True" }] } });
            Arc::new(serde_json::from_value::<Job>(value).expect("a job"))
        };
        let jobs = [done("b", "Complete", 2), done("a", "Complete", 1), done("c", "Complete", 3), done("f", "Failed", 1)];
        let gone = |how, kept| history(&jobs, how, kept).iter().filter_map(|j| j.metadata.name.clone()).collect::<Vec<_>>();
        assert_eq!(gone("Complete", Some(1)), ["a", "b"]);
        assert_eq!(gone("Failed", Some(1)), Vec::<String>::new());
        assert_eq!(gone("Failed", Some(0)), ["f"]);
        assert_eq!(gone("Complete", None), Vec::<String>::new());
    }
}
