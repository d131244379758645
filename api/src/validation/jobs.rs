//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::check::{At, Errors};
use super::cron;
use super::workloads::{chosen as chosen_by, matching_template};
use super::{meta, pod};
use crate::field::Error;
use crate::names;

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";

pub(super) fn job(e: &mut Errors, job: &At) {
    // Labels that it has of its template are judged there.
    let mut own = json!({"metadata": job.at("metadata").value});
    if job.at("metadata.labels").value == job.at("spec.template.metadata.labels").value {
        crate::value::remove(&mut own, &["metadata", "labels"]);
    }
    meta::object_meta(e, &At::root(&own), true, meta::subdomain);
    let spec = job.at("spec");
    let selector = spec.at("selector");
    if !spec.at("manualSelector").flag() && selector.is_set() {
        let labels = spec.at("template.metadata.labels");
        let (uid, name) = (job.at("metadata.uid").value, job.at("metadata.name").value);
        let generated = [("controller-uid", uid), ("job-name", name), (UID_LABEL, uid), ("batch.kubernetes.io/job-name", name)];
        for (key, value) in generated {
            let label = labels.key(key);
            let wanted = format!("must be '{}'", value.as_str().unwrap_or(""));
            if !label.is_set() {
                e.required(&label, &wanted);
            } else if label.value != value {
                e.invalid(&labels.called(&label.path), wanted);
            }
        }
        let generated: Value = generated.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        if chosen_by(selector.value).is_some_and(|s| !s.matches(&generated)) {
            e.invalid(&selector, "`selector` not auto-generated");
        }
    }
    job_with_selector(e, &spec);
    // The pods of an indexed job are called by its name and their index.
    let (name, completions) = (job.at("metadata.name"), spec.at("completions").number());
    let last = format!("{}-{}", name.str(), completions - 1);
    if spec.at("completionMode").str() == "Indexed" && completions > 0 && !names::dns_label(&last).is_empty() {
        e.invalid_value(&name, name.str(), format!("will not able to create pod with invalid DNS label: {last}"));
    }
}

fn job_with_selector(e: &mut Errors, spec: &At) {
    job_spec(e, spec);
    let selector = spec.at("selector");
    if selector.is_set() {
        meta::label_selector(e, &selector);
    } else {
        e.required(&selector, "");
    }
    if chosen_by(selector.value).is_some_and(|s| !s.is_empty()) {
        matching_template(e, selector.value, &spec.at("template"));
    } else if !selector.is_set() {
        e.invalid(&spec.at("template.metadata.labels"), "`selector` does not match template `labels`");
    }
}

/// A job's spec, or that of a template of jobs.
fn job_spec(e: &mut Errors, spec: &At) {
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex"] {
        e.non_negative(&spec.at(field));
    }
    let (per_index, failed, indexed) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"), spec.at("completionMode").str() == "Indexed");
    e.non_negative(&failed);
    if failed.is_set() && !per_index.is_set() {
        e.required(&per_index, "when maxFailedIndexes is specified");
    }
    let manager = spec.at("managedBy");
    if manager.is_set() {
        domain_path(e, &manager);
        e.no_longer(&manager, 63);
    }
    e.maybe_one_of(&spec.at("completionMode"), &["NonIndexed", "Indexed"]);
    if indexed {
        indexed_job(e, spec);
    }
    for field in [&per_index, &failed].into_iter().filter(|f| f.is_set() && !indexed) {
        e.invalid(field, "requires indexed completion mode");
    }
    let policy = spec.at("podFailurePolicy");
    if policy.is_set() {
        failure_policy(e, &policy, spec);
    }
    let replacement = spec.at("podReplacementPolicy");
    if policy.is_set() {
        e.maybe_one_of(&replacement, &["Failed"]);
    } else {
        e.maybe_one_of(&replacement, &["Failed", "TerminatingOrFailed"]);
    }
    if spec.at("successPolicy").is_set() {
        success_policy(e, spec);
    }
    let template = spec.at("template");
    pod::template(e, &template);
    let restart = template.at("spec.restartPolicy");
    if matches!(restart.str(), "" | "Always") {
        e.required(&restart, "valid values: \"OnFailure\", \"Never\"");
    } else if !matches!(restart.str(), "OnFailure" | "Never") {
        e.unsupported(&restart, &["OnFailure", "Never"]);
    } else if policy.is_set() && restart.str() != "Never" {
        e.invalid(&restart, "only \"Never\" is supported when podFailurePolicy is specified");
    }
}

/// `acme.io/foo`
pub(super) fn domain_path(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    match at.str().split_once('/') {
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            e.text_form(at, host, names::dns_subdomain);
            if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
                e.invalid_value(at, path, names::regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]));
            }
        }
        _ => e.invalid(at, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
}

/// The most pods at once, and the most indexes, of an indexed job.
const MAX_INDEXES: i64 = 100_000;

fn indexed_job(e: &mut Errors, spec: &At) {
    let (completions, parallelism, failed) = (spec.at("completions"), spec.at("parallelism"), spec.at("maxFailedIndexes"));
    if !completions.is_set() {
        e.required(&completions, "when completion mode is Indexed");
    }
    e.at_most(&parallelism, MAX_INDEXES, format!("must be less than or equal to {MAX_INDEXES} when completion mode is Indexed"));
    if completions.is_set() && failed.number() > completions.number() {
        e.invalid(&failed, "must be less than or equal to completions");
    }
}

fn failure_policy(e: &mut Errors, policy: &At, spec: &At) {
    let rules = policy.at("rules");
    e.too_many(&rules, 20);
    let containers: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| spec.at("template.spec").at(l).items()).map(|c| c.at("name").str()).collect();
    for rule in rules.items() {
        let action = rule.at("action");
        chosen(e, &action, &["Count", "FailIndex", "FailJob", "Ignore"]);
        if action.str() == "FailIndex" && !spec.at("backoffLimitPerIndex").is_set() {
            e.invalid(&action, "requires the backoffLimitPerIndex to be set");
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        if codes.is_set() {
            exit_codes(e, &codes, &containers);
        }
        for condition in conditions.items() {
            e.form(&condition.at("type"), names::qualified_name);
            chosen(e, &condition.at("status"), &["False", "True", "Unknown"]);
        }
        let without_value = |words: &str| Error { value: None, ..Error::invalid(&rule.path, "", words) };
        match (codes.is_set(), !conditions.is_empty()) {
            (true, true) => e.push(without_value("specifying both OnExitCodes and OnPodConditions is not supported")),
            (false, false) => e.push(without_value("specifying one of OnExitCodes and OnPodConditions is required")),
            _ => {}
        }
    }
}

/// One of the values, which are told to who gives none.
fn chosen(e: &mut Errors, at: &At, supported: &[&str]) {
    if at.is_empty() {
        let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        e.required(at, &format!("valid values: [{}]", quoted.join(" ")));
    } else {
        e.maybe_one_of(at, supported);
    }
}

/// The indexes of `1,3-5` of so many completions: how many there are.
pub(super) fn indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (None, 0);
    let increasing = |before: i64, now: i64| format!("non-increasing order, previous: {before}, current: {now}");
    let number = |part: &str| match part.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {part:?}")),
        Ok(n) if n >= completions => Err(format!("too large index: {part:?}")),
        Ok(n) => Ok(n),
    };
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = interval.split('-').collect();
        if parts.len() > 2 {
            return Err(format!("the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"));
        }
        let first = number(parts[0])?;
        let end = parts.get(1).map_or(Ok(first), |part| number(part))?;
        if parts.len() > 1 && first >= end {
            return Err(increasing(first, end));
        }
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(increasing(last, first));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn exit_codes(e: &mut Errors, codes: &At, containers: &[&str]) {
    let (operator, values, name) = (codes.at("operator"), codes.at("values"), codes.at("containerName"));
    chosen(e, &operator, &["In", "NotIn"]);
    if name.is_set() && !containers.contains(&name.str()) {
        e.invalid(&name, "must be one of the container or initContainer names in the pod template");
    }
    if values.is_empty() {
        e.invalid(&values, "at least one value is required");
    } else if values.len() > 255 {
        e.push(Error::too_many(&values.path, values.len(), 255));
    }
    let numbers: Vec<i64> = values.items().map(|value| value.number()).collect();
    for (i, value) in values.items().enumerate() {
        if operator.str() == "In" && value.number() == 0 {
            e.invalid(&value, "must not be 0 for the In operator");
        }
        if numbers[..i].contains(&value.number()) {
            e.duplicate(&value);
        }
    }
    if !numbers.is_sorted() {
        e.invalid(&values, "must be ordered");
    }
}

fn success_policy(e: &mut Errors, spec: &At) {
    let rules = spec.at("successPolicy.rules");
    if spec.at("completionMode").str() != "Indexed" {
        let policy = spec.at("successPolicy");
        return e.invalid(&policy, "requires indexed completion mode");
    }
    e.wanted(&rules, "at least one rules must be specified when the successPolicy is specified");
    e.too_many(&rules, 20);
    for rule in rules.items() {
        let (count, indexes_at) = (rule.at("succeededCount"), rule.at("succeededIndexes"));
        if !count.is_set() && !indexes_at.is_set() {
            e.required(&rule, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let listed = indexes(indexes_at.str(), spec.at("completions").number());
        if let Err(why) = &listed {
            e.invalid(&indexes_at, format!("error parsing succeededIndexes: {why}"));
        }
        e.non_negative(&count);
        if count.number() > spec.at("completions").number() {
            e.invalid(&count, format!("must be less than or equal to {} (the number of specified completions)", spec.at("completions").number()));
        }
        let listed = listed.unwrap_or(0);
        if count.is_set() && indexes_at.is_set() && count.number() > listed {
            e.invalid(&count, format!("must be less than or equal to {listed} (the number of indexes in the specified succeededIndexes field)"));
        }
    }
}

pub(super) fn job_update(e: &mut Errors, new: &At, old: &Value) {
    let (spec, was) = (new.at("spec"), At::root(&old["spec"]));
    job_with_selector(e, &spec);
    let (completions, indexed) = (spec.at("completions"), spec.at("completionMode").str() == "Indexed");
    if completions.value != was.at("completions").value && !(indexed && completions.value == spec.at("parallelism").value) {
        e.immutable(&completions);
    }
    e.unchanged(&spec, was.value, &["selector"]);
    let template = spec.at("template");
    let mut before = was.at("template").value.clone();
    if was.at("suspend").flag() && !At::root(old).at("status.startTime").is_set() {
        // Where the pods of a job that never began are to run may still be said.
        for path in [&["spec", "nodeSelector"][..], &["spec", "affinity"], &["spec", "tolerations"], &["spec", "schedulingGates"],
            &["metadata", "labels"], &["metadata", "annotations"]]
        {
            crate::value::remove(&mut before, path);
            let now = crate::value::at(template.value, path);
            if let ([parent @ .., last], false) = (path, now.is_null()) {
                crate::value::object_mut(&mut before, parent).insert((*last).to_owned(), now.clone());
            }
        }
    }
    if !super::check::same(template.value, &before) {
        e.immutable(&template);
    }
    e.unchanged(&spec, was.value, &["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]);
}

pub(super) fn cron_job(e: &mut Errors, object: &At) {
    // Eleven characters are put after the name for each job.
    let name = object.at("metadata.name");
    if name.str().len() > 52 {
        e.invalid(&name, "must be no more than 52 characters");
    }
    cron_job_spec(e, object);
}

/// What holds of an update too: a name that was too long may stay so.
pub(super) fn cron_job_spec(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let schedule = spec.at("schedule");
    if schedule.is_empty() {
        e.required(&schedule, "");
    } else {
        if let Err(fault) = cron::check(schedule.str()) {
            e.invalid(&schedule, fault);
        }
        if schedule.str().contains("TZ") {
            e.invalid(&schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
    }
    e.non_negative(&spec.at("startingDeadlineSeconds"));
    let zone = spec.at("timeZone");
    match zone.value.as_str() {
        None => {}
        Some("") => e.invalid(&zone, "timeZone must be nil or non-empty string"),
        Some(name) if name.eq_ignore_ascii_case("local") => {
            e.invalid(&zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
        }
        // A machine without the database of zones can't tell.
        Some(name) if !jiff::tz::db().is_definitively_empty() && jiff::tz::db().get(name).is_err() => {
            e.invalid(&zone, format!("unknown time zone {name}"));
        }
        Some(_) => {}
    }
    e.one_of(&spec.at("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
    let template = spec.at("jobTemplate.spec");
    job_spec(e, &template);
    if template.at("manualSelector").flag() {
        e.push(Error::not_supported(template.below("manualSelector"), true, &["nil", "false"]));
    }
    if template.at("selector").is_set() {
        e.invalid(&template.at("selector"), "`selector` will be auto-generated");
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        e.non_negative(&spec.at(field));
    }
}

