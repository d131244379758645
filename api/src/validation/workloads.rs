//! The workloads of the apps group, and ReplicationControllers.

use serde_json::{Value, json};

use super::check::{At, Errors, int_or_percent_value, same};
use super::{meta, pod, storage};
use crate::labels::Selector;
use crate::names;
use crate::value::items;

const MISMATCH: &str = "`selector` does not match template `labels`";

/// A selector that can be read: keys, operators and values are as they must be.
pub(super) fn chosen(selector: &Value) -> Option<Selector> {
    let mut faults = Errors::default();
    meta::label_selector(&mut faults, &At::root(selector));
    if faults.0.is_empty() { Selector::from_label_selector(selector).ok() } else { None }
}

/// The template's labels must be what the selector (the object form) chooses.
pub(super) fn matching_template(e: &mut Errors, selector: &Value, template: &At) {
    let labels = template.at("metadata.labels");
    if chosen(selector).is_some_and(|s| !s.is_empty() && !s.matches(labels.value)) {
        e.invalid(&labels, MISMATCH);
    }
}

/// The template of pods that are to run for ever.
fn lasting_template(e: &mut Errors, template: &At, kind: &str) {
    pod::template(e, template);
    let (policy, deadline) = (template.at("spec.restartPolicy"), template.at("spec.activeDeadlineSeconds"));
    if policy.str() != "Always" {
        e.unsupported(&policy, &["Always"]);
    }
    if deadline.is_set() {
        e.forbidden(&deadline, format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// A selector that must be there and choose something. `None` when it is none at all.
fn selector(e: &mut Errors, at: &At, kind: &str) -> Option<Selector> {
    let before = e.0.len();
    meta::label_selector(e, at);
    let read = if e.has_since(before) { None } else { Selector::from_label_selector(at.value).ok() };
    if at.is_set() && at.at("matchLabels").is_empty() && at.at("matchExpressions").is_empty() {
        e.invalid(at, format!("empty selector is invalid for {kind}"));
    }
    read
}

/// The selector and the template together, as ReplicaSets and Deployments have them.
fn selector_and_template(e: &mut Errors, spec: &At) {
    let at = spec.at("selector");
    if !at.is_set() {
        e.required(&at, "");
    }
    match selector(e, &at, "deployment") {
        None => e.invalid(&at, "invalid label selector"),
        Some(_) => {
            matching_template(e, at.value, &spec.at("template"));
            lasting_template(e, &spec.at("template"), "ReplicaSet");
        }
    }
}

pub(super) fn deployment(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    e.non_negative(&spec.at("replicas"));
    selector_and_template(e, spec);
    let strategy = spec.at("strategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").str() {
        "Recreate" if rolling.is_set() => e.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'"),
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => e.required(&rolling, "this should be defaulted and never be nil"),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            e.int_or_percent(&unavailable);
            e.int_or_percent(&surge);
            if int_or_percent_value(&unavailable) == 0 && int_or_percent_value(&surge) == 0 {
                e.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            e.at_most_all(&unavailable);
        }
        _ => e.unsupported(&strategy, &["Recreate", "RollingUpdate"]),
    }
    let (ready, deadline) = (spec.at("minReadySeconds"), spec.at("progressDeadlineSeconds"));
    e.non_negative(&ready);
    e.non_negative(&spec.at("revisionHistoryLimit"));
    e.non_negative(&deadline);
    if deadline.int().is_some_and(|d| d <= ready.number()) {
        e.invalid(&deadline, "must be greater than minReadySeconds");
    }
}

pub(super) fn replica_set(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    e.non_negative(&spec.at("replicas"));
    e.non_negative(&spec.at("minReadySeconds"));
    selector_and_template(e, spec);
}

/// The counts of a status, none of which may exceed what it is a part of.
pub(super) fn counts_status(e: &mut Errors, new: &At, old: &Value, fields: &[&str]) {
    let status = new.at("status");
    for field in fields {
        e.non_negative(&status.at(field));
    }
    e.non_negative(&status.at("observedGeneration"));
    if fields.contains(&"replicas") {
        let (all, ready) = (status.at("replicas").number(), status.at("readyReplicas"));
        let parts = fields.iter().filter(|field| !matches!(**field, "replicas" | "unavailableReplicas" | "terminatingReplicas"));
        for part in parts.map(|field| status.at(field)) {
            e.at_most(&part, all, "cannot be greater than status.replicas");
        }
        if fields.contains(&"readyReplicas") && status.at("availableReplicas").number() > ready.number() {
            let most = if fields.contains(&"currentReplicas") { "status.readyReplicas" } else { "readyReplicas" };
            e.invalid(&status.at("availableReplicas"), format!("cannot be greater than {most}"));
        }
    }
    let collisions = status.at("collisionCount");
    if collisions.int().is_some_and(|c| c < At::root(old).at("status.collisionCount").number()) {
        e.invalid(&collisions, "cannot be decremented");
    }
}

pub(super) fn daemon_set(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    let at = spec.at("selector");
    meta::label_selector(e, &at);
    matching_template(e, at.value, &spec.at("template"));
    if at.is_set() && at.at("matchLabels").is_empty() && at.at("matchExpressions").is_empty() {
        e.invalid(&at, "empty selector is invalid for daemonset");
    }
    lasting_template(e, &spec.at("template"), "DaemonSet");
    let strategy = spec.at("updateStrategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").str() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => e.required(&rolling, ""),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            e.int_or_percent(&unavailable);
            e.int_or_percent(&surge);
            match (int_or_percent_value(&unavailable) != 0, int_or_percent_value(&surge) != 0) {
                (false, false) => e.required(&unavailable, "cannot be 0 when maxSurge is 0"),
                (true, true) => e.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
                _ => {}
            }
            e.at_most_all(&unavailable);
            e.at_most_all(&surge);
        }
        _ => e.unsupported(&strategy, &["RollingUpdate", "OnDelete"]),
    }
    e.non_negative(&spec.at("minReadySeconds"));
    e.non_negative(&spec.at("revisionHistoryLimit"));
}

pub(super) fn stateful_set(e: &mut Errors, object: &At) {
    set_spec(e, &object.at("spec"), true);
}

/// The spec; of one that is not new, what can't change is not looked at.
fn set_spec(e: &mut Errors, spec: &At, new: bool) {
    let policy = spec.at("podManagementPolicy");
    match policy.str() {
        "" => e.required(&policy, ""),
        "OrderedReady" | "Parallel" => {}
        _ => e.invalid(&policy, "must be 'OrderedReady' or 'Parallel'"),
    }
    set_strategy(e, &spec.at("updateStrategy"));
    for field in ["whenDeleted", "whenScaled"] {
        let at = spec.at("persistentVolumeClaimRetentionPolicy").at(field);
        e.maybe_one_of(&at, &["Retain", "Delete"]);
    }
    spec.at("volumeClaimTemplates").items().filter(|_| new).for_each(|claim| storage::claim_spec(e, &claim.at("spec")));
    ["replicas", "minReadySeconds", "ordinals.start"].into_iter().for_each(|field| e.non_negative(&spec.at(field)));
    if new {
        e.optional_form(&spec.at("serviceName"), names::dns_label);
    }
    let at = spec.at("selector");
    if !at.is_set() {
        e.required(&at, "");
    }
    if selector(e, &at, "statefulset").is_none() {
        e.invalid(&at, "");
    } else {
        matching_template(e, at.value, &spec.at("template"));
        let template = with_claims(spec);
        lasting_template(e, &At { value: &template, ..spec.at("template") }, "StatefulSet");
    }
}

/// The template as the controller will use it: with a volume for each claim, and names of its own.
fn with_claims(spec: &At) -> Value {
    let mut template = spec.at("template").value.clone();
    for given in ["subdomain", "hostname"] {
        crate::value::remove(&mut template, &["spec", given]);
    }
    let claims: Vec<Value> = spec.at("volumeClaimTemplates").items().map(|claim| claim.at("metadata.name").str().into()).collect();
    if !claims.is_empty() {
        let others = items(&template, &["spec", "volumes"]).iter().filter(|volume| !claims.contains(&volume["name"])).cloned();
        let mut volumes: Vec<Value> = Vec::new();
        for volume in claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).chain(others) {
            if !volumes.contains(&volume) {
                volumes.push(volume);
            }
        }
        template["spec"]["volumes"] = volumes.into();
    }
    template
}

fn set_strategy(e: &mut Errors, strategy: &At) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").str() {
        "" => e.required(strategy, ""),
        "OnDelete" if rolling.is_set() => e.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'"),
        "OnDelete" => {}
        "RollingUpdate" => {
            e.non_negative(&rolling.at("partition"));
        }
        _ => e.invalid(strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// What may change of a StatefulSet's spec.
const SET_UPDATABLE: [&str; 7] =
    ["replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy", "minReadySeconds"];

pub(super) fn stateful_set_update(e: &mut Errors, new: &At, old: &Value) {
    set_spec(e, &new.at("spec"), false);
    let rest = |spec: &Value| {
        let mut copy = spec.clone();
        for field in SET_UPDATABLE {
            crate::value::remove(&mut copy, &[field]);
        }
        // What the templates of claims say of their status means nothing.
        for claim in copy["volumeClaimTemplates"].as_array_mut().into_iter().flatten() {
            crate::value::remove(claim, &["status"]);
        }
        copy
    };
    let spec = new.at("spec");
    if !same(&rest(spec.value), &rest(&old["spec"])) {
        let listed = "'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
            'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds'";
        e.forbidden(&spec, format!("updates to statefulset spec for fields other than {listed} are forbidden"));
    }
}

pub(super) fn controller_revision(e: &mut Errors, object: &At) {
    let data = object.at("data");
    if !data.is_set() {
        e.required(&data, "data is mandatory");
    } else if !data.value.is_object() {
        e.required(&data, "data must be a valid JSON object");
    }
    e.non_negative(&object.at("revision"));
}

pub(super) fn replication_controller(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    e.non_negative(&spec.at("minReadySeconds"));
    let selector = spec.at("selector");
    e.filled(&selector);
    if spec.at("replicas").is_set() {
        e.non_negative(&spec.at("replicas"));
    } else {
        e.required(&spec.at("replicas"), "");
    }
    let template = spec.at("template");
    if !template.is_set() {
        return e.required(&template, "");
    }
    let labels = template.at("metadata.labels");
    let chosen = Selector::from_map(selector.value);
    if !chosen.is_empty() && !chosen.matches(labels.value) {
        e.invalid(&labels, MISMATCH);
    }
    lasting_template(e, &template, "ReplicationController");
}

pub(super) fn pod_template(e: &mut Errors, object: &At) {
    pod::template(e, &object.at("template"));
}

