//! The status of a job: what its controller, which may be anybody's, can say of it. Each rule looks at what has changed
//! alone, so that a status that was wrong before can still be mended.

use serde_json::Value;

use super::check::{At, Errors};
use super::jobs::indexes;
use super::meta;
use crate::field::Error;
use crate::value;

/// Whether the job has the condition.
fn is(job: &Value, condition: &str) -> bool {
    value::condition(job, condition).is_some_and(|c| c["status"] == "True")
}

fn finished(job: &Value) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

/// Pods that have ended and are not counted yet: each once.
fn uncounted(e: &mut Errors, pods: &At) {
    let mut seen: Vec<&str> = Vec::new();
    for pod in ["succeeded", "failed"].iter().flat_map(|list| pods.at(list).items()) {
        if pod.is_empty() {
            e.invalid(&pod, "must not be empty");
        } else if seen.contains(&pod.str()) {
            e.duplicate(&pod);
        }
        seen.push(pod.str());
    }
}

pub(super) fn update(e: &mut Errors, new: &At, old: &Value) {
    let (spec, status, was) = (new.at("spec"), new.at("status"), At::root(old).at("status"));
    let at = |field: &str| status.at(field);
    ["active", "succeeded", "failed", "ready", "terminating"].into_iter().for_each(|field| e.non_negative(&at(field)));
    uncounted(e, &at("uncountedTerminatedPods"));
    let job = new.value;
    let changed = |fields: &[&str]| fields.iter().any(|field| meta::changed(&status, was.value, field));
    let turned = |condition: &str| is(job, condition) != is(old, condition);
    let (complete, failed, done) = (is(job, "Complete"), is(job, "Failed"), finished(job));
    let (met, target) = (is(job, "SuccessCriteriaMet"), is(job, "FailureTarget"));
    let done_turned = done != finished(old);
    // Upstream shows no value here.
    let conditions = |e: &mut Errors, words: String| e.push(Error { value: None, ..Error::invalid(status.below("conditions"), Value::Null, words) });
    let forbid = |e: &mut Errors, both: bool, words: &str| if both { conditions(e, format!("cannot set {words}")) };
    let (completion, start, active) = (at("completionTime"), at("startTime"), at("active"));
    forbid(e, (turned("Complete") || turned("Failed")) && complete && failed, "Complete=True and Failed=true conditions");
    forbid(e, (turned("Complete") || turned("FailureTarget")) && complete && target, "Complete=True and FailureTarget=true conditions");
    if turned("Complete") || changed(&["completionTime"]) {
        if completion.is_set() && !complete {
            e.invalid(&completion, "cannot set completionTime when there is no Complete=True condition");
        }
        if complete && !completion.is_set() {
            e.required(&completion, "completionTime is required for Complete jobs");
        }
    }
    if changed(&["startTime", "completionTime"]) && start.is_set() && completion.is_set() && completion.str() < start.str() {
        e.invalid(&completion, "must be equal to or after `startTime`");
    }
    forbid(e, (turned("Failed") || changed(&["failedIndexes"])) && failed && !target, "Failed=True condition without the FailureTarget=true condition");
    forbid(e, (turned("Complete") || turned("SuccessCriteriaMet")) && complete && !met, "Complete=True condition without the SuccessCriteriaMet=true condition");
    if (done_turned || changed(&["active"])) && active.number() > 0 && done {
        e.invalid(&active, "active>0 is invalid for finished job");
    }
    let nothing_to_do = spec.at("suspend").flag() && spec.at("completions").int() == Some(0);
    if (done_turned || changed(&["startTime"])) && !nothing_to_do && done && !start.is_set() {
        e.required(&start, "startTime is required for finished job");
    }
    let left = at("uncountedTerminatedPods");
    if (done_turned || changed(&["uncountedTerminatedPods"])) && done && !(left.at("failed").is_empty() && left.at("succeeded").is_empty()) {
        e.invalid(&left, "must be empty for finished job");
    }
    index_lists(e, &spec, &status, |field| changed(&[field]));
    if (done_turned || changed(&["terminating"])) && done && at("terminating").number() > 0 {
        e.invalid(&at("terminating"), "terminating>0 is invalid for finished job");
    }
    if changed(&["ready", "active"]) && at("ready").number() > active.number() {
        e.invalid(&at("ready"), "cannot set more ready pods than active");
    }
    forbid(e, met && failed, "SuccessCriteriaMet=True and Failed=true conditions");
    forbid(e, met && target, "SuccessCriteriaMet=True and FailureTarget=true conditions");
    forbid(e, spec.at("successPolicy").is_set() && !met && complete, "Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    for condition in ["Failed", "Complete", "FailureTarget"].iter().filter(|c| is(old, c) && !is(job, c)) {
        conditions(e, format!("cannot disable the terminal {condition}=True condition"));
    }
    // Of a job that can be made smaller, what has succeeded can become less.
    let elastic = spec.at("completionMode").str() == "Indexed" && spec.at("completions").value == spec.at("parallelism").value;
    for (counter, fixed) in [("failed", true), ("succeeded", !elastic)] {
        if fixed && at(counter).number() < was.at(counter).number() {
            e.invalid_value(&at(counter), at(counter).number(), format!("cannot decrease the {counter} counter"));
        }
    }
    if completion.is_set() && was.at("completionTime").is_set() && changed(&["completionTime"]) {
        e.immutable(&completion);
    }
    let resumes = is(old, "Suspended") && value::condition(job, "Suspended").is_some_and(|c| c["status"] == "False");
    if changed(&["startTime"]) && !resumes && was.at("startTime").is_set() && !spec.at("suspend").flag() {
        e.invalid(&start, "field is immutable for unsuspended job once set");
    }
}

/// The indexes that have succeeded and failed.
fn index_lists(e: &mut Errors, spec: &At, status: &At, changed: impl Fn(&str) -> bool) {
    let completions = spec.at("completions").int();
    let (succeeded, failed) = (status.at("completedIndexes"), status.at("failedIndexes"));
    let per_index = spec.at("backoffLimitPerIndex").is_set();
    for (list, looked_at) in [(&succeeded, true), (&failed, per_index && failed.is_set())] {
        let field = list.path.rsplit('.').next().unwrap_or("");
        if let (Some(completions), true) = (completions, looked_at && changed(field))
            && let Err(why) = indexes(list.str(), completions)
        {
            e.invalid_value(list, list.str(), format!("error parsing {field}: {why}"));
        }
    }
    if changed("completedIndexes") && !succeeded.is_empty() && spec.at("completionMode").str() != "Indexed" {
        e.invalid(&succeeded, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if changed("failedIndexes") && failed.is_set() && !per_index {
        e.invalid(&failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(old: Value, status: Value, expected: &[&str]) {
        let job = |status: Value| json!({"metadata": {"name": "j"}, "spec": {"completions": 2}, "status": status});
        let (old, new) = (job(old), job(status));
        let mut e = Errors::default();
        update(&mut e, &At::root(&new), &old);
        assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{new}");
    }

    #[test]
    fn a_status_is_whole() {
        let holds = |types: &[&str]| types.iter().map(|t| json!({"type": t, "status": "True"})).collect::<Vec<_>>();
        let (start, end) = ("2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z");
        check(json!({}), json!({"active": 2, "ready": 1, "startTime": start}), &[]);
        let complete = json!({"conditions": holds(&["SuccessCriteriaMet", "Complete"]), "startTime": start, "completionTime": end, "succeeded": 2});
        check(json!({"active": 2, "startTime": start}), complete.clone(), &[]);
        check(json!({}), json!({"conditions": holds(&["Complete"])}), &[
            "status.completionTime: Required value: completionTime is required for Complete jobs",
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            "status.startTime: Required value: startTime is required for finished job",
        ]);
        let mut reopened = complete.clone();
        reopened["conditions"] = json!([]);
        check(complete, reopened, &[
            "status.completionTime: Invalid value: \"2024-01-01T00:00:01Z\": cannot set completionTime when there is no Complete=True condition",
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
        ]);
        check(json!({"failed": 2}), json!({"failed": 1, "ready": 1}), &[
            "status.ready: Invalid value: 1: cannot set more ready pods than active",
            "status.failed: Invalid value: 1: cannot decrease the failed counter",
        ]);
    }
}
