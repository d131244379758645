//! What a failed pod means for its Job, and which successes are enough.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use skiff_api::typed::pods::{is_finished, phase};

use super::indexes::Indexes;

/// What the failure policy says of a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It counts as a failure.
    Counts,
    /// It doesn't count.
    Ignored,
    /// Its index has failed for good.
    FailsIndex,
    /// The Job has failed; why.
    FailsJob(String),
}

/// Whether the pod counts as failed. Deleted pods do, too, unless the Job replaces none that may still run.
pub fn is_failed(pod: &Pod, job: &Job) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && !replaces_only_failed(job),
    }
}

/// Whether pods are replaced only once they have finished.
pub fn replaces_only_failed(job: &Job) -> bool {
    let Some(spec) = &job.spec else { return false };
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// What the policy says of a failed pod. The first rule that fits decides.
pub fn meaning(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Meaning {
    for (index, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let (namespace, name) =
            (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        let why = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code} matching {} rule at index {index}", rule.action)
            })
        } else {
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let matches = |c: &&k8s_openapi::api::core::v1::PodCondition| {
                let mut patterns = rule.on_pod_conditions.iter().flatten();
                patterns.any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
            };
            conditions.into_iter().find(matches).map(|c| {
                format!("Pod {namespace}/{name} has condition {} matching {} rule at index {index}", c.type_, rule.action)
            })
        };
        let Some(why) = why else { continue };
        return match rule.action.as_str() {
            "Ignore" => Meaning::Ignored,
            "FailIndex" => Meaning::FailsIndex,
            "FailJob" => Meaning::FailsJob(why),
            _ => Meaning::Counts,
        };
    }
    Meaning::Counts
}

/// The first container, init containers last, that exited with a code that the rule names.
fn exited<'a>(pod: &'a Pod, rule: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let find = |all: &'a Option<Vec<ContainerStatus>>| {
        all.iter().flatten().find_map(|c| {
            let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
            let named = rule.container_name.as_ref().is_none_or(|name| *name == c.name);
            let listed = rule.values.contains(&code);
            let fits = match rule.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            (named && code != 0 && fits).then_some((c.name.as_str(), code))
        })
    };
    find(&status.container_statuses).or_else(|| find(&status.init_container_statuses))
}

/// Why the Job has failed, if one of its pods says so.
pub fn fails_job(job: &Job, pods: &[Arc<Pod>]) -> Option<String> {
    let policy = job.spec.as_ref()?.pod_failure_policy.as_ref()?;
    pods.iter().filter(|p| is_failed(p, job)).find_map(|p| match meaning(Some(policy), p) {
        Meaning::FailsJob(why) => Some(why),
        _ => None,
    })
}

/// Which rule of the success policy is met.
pub fn succeeds(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = policy?.rules.iter().position(|rule| {
        let enough = |have: usize| rule.succeeded_count.is_some_and(|count| have >= usize::try_from(count).unwrap_or(0));
        match &rule.succeeded_indexes {
            Some(indexes) => {
                let wanted = Indexes::parse(indexes, completions);
                let have = wanted.common(succeeded);
                !wanted.is_empty() && (have == wanted.len() || enough(have))
            }
            None => enough(succeeded.len()),
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

/// Whether containers that are restarted in place have failed too often.
pub fn restarted_too_often(job: &Job, pods: &[Arc<Pod>]) -> bool {
    let Some(spec) = &job.spec else { return false };
    let restarts_in_place = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
    let limit = spec.backoff_limit.unwrap_or(6);
    let statuses = pods.iter().filter(|p| !is_finished(p)).filter_map(|p| p.status.as_ref());
    let count = |all: &Option<Vec<ContainerStatus>>| all.iter().flatten().map(|c| c.restart_count).sum::<i32>();
    let restarts: i32 = statuses.map(|s| count(&s.init_container_statuses) + count(&s.container_statuses)).sum();
    restarts_in_place && if limit == 0 { restarts > 0 } else { restarts >= limit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn failed_pods() {
        let pod = |exit: i32, condition: &str| -> Pod {
            let value = json!({
                "metadata": { "namespace": "ns", "name": "p" },
                "status": { "phase": "Failed", "conditions": [{ "type": condition, "status": "True" }], "containerStatuses": [
                    { "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "terminated": { "exitCode": exit } } }] },
            });
            serde_json::from_value(value).expect("a pod")
        };
        let rules = json!({ "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            { "action": "FailJob", "onExitCodes": { "containerName": "main", "operator": "In", "values": [42] } },
            { "action": "FailIndex", "onExitCodes": { "operator": "NotIn", "values": [1, 2] } },
        ] });
        let policy: PodFailurePolicy = serde_json::from_value(rules).expect("a policy");
        let check = |exit, condition, expected| assert_eq!(meaning(Some(&policy), &pod(exit, condition)), expected);
        check(1, "DisruptionTarget", Meaning::Ignored);
        let why = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        check(42, "Ready", Meaning::FailsJob(why.into()));
        check(7, "Ready", Meaning::FailsIndex);
        check(2, "Ready", Meaning::Counts);
        assert_eq!(meaning(None, &pod(42, "Ready")), Meaning::Counts);
    }

    #[test]
    fn enough_successes() {
        let check = |rule: Value, succeeded: &str, expected: bool| {
            let policy: SuccessPolicy = serde_json::from_value(json!({ "rules": [rule] })).expect("a policy");
            let met = succeeds(Some(&policy), 10, &Indexes::parse(succeeded, 10));
            assert_eq!(met.as_deref(), expected.then_some("Matched rules at index 0"), "{policy:?} {succeeded}");
        };
        check(json!({ "succeededIndexes": "0-2" }), "0-2,5", true);
        check(json!({ "succeededIndexes": "0-2" }), "0,1,5", false);
        check(json!({ "succeededIndexes": "0-2", "succeededCount": 2 }), "0,2", true);
        check(json!({ "succeededCount": 2 }), "4", false);
        check(json!({ "succeededCount": 1 }), "4", true);
    }
}
