//! The plain kinds of the core group, and events.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{At, Errors};
use super::{address, meta, resources, scheduling};
use crate::names;

/// The most bytes of a ConfigMap's or Secret's data.
const DATA_MAX: usize = 1024 * 1024;

fn decoded_len(at: &At) -> usize {
    let text = at.str();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count()
}

pub(super) fn config_map(e: &mut Errors, map: &At) {
    let binary = map.at("binaryData");
    let mut size = 0;
    for (key, value) in map.at("data").entries() {
        e.text_form(&value, key, names::config_key);
        if binary.value.get(key).is_some() {
            e.invalid_value(&value, key, "duplicate of key present in binaryData");
        }
        size += value.str().len();
    }
    for (key, value) in binary.entries() {
        e.text_form(&value, key, names::config_key);
        size += decoded_len(&value);
    }
    if size > DATA_MAX {
        e.too_long(&map.called("[]"), DATA_MAX);
    }
}

/// A ConfigMap or Secret that says it is immutable stays as it is.
pub(super) fn frozen(e: &mut Errors, new: &At, old: &Value) {
    if old["immutable"] != true {
        return;
    }
    let words = "field is immutable when `immutable` is set";
    if !new.at("immutable").flag() {
        e.forbidden(&new.at("immutable"), words);
    }
    for field in ["data", "binaryData"].iter().filter(|field| meta::changed(new, old, field)) {
        e.forbidden(&new.at(field), words);
    }
}

pub(super) fn secret(e: &mut Errors, secret: &At) {
    let data = secret.at("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        e.text_form(&value, key, names::config_key);
        size += decoded_len(&value);
    }
    if size > DATA_MAX {
        e.too_long(&data, DATA_MAX);
    }
    let missing = |key: &str| !data.key(key).is_set();
    let kind = secret.at("type").str();
    match kind.strip_prefix("kubernetes.io/").unwrap_or("") {
        "service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            e.filled(&secret.at("metadata.annotations").key(name));
        }
        "dockercfg" => docker_config(e, &data.key(".dockercfg")),
        "dockerconfigjson" => docker_config(e, &data.key(".dockerconfigjson")),
        "basic-auth" if missing("username") && missing("password") => {
            e.required(&data.key("username"), "");
            e.required(&data.key("password"), "");
        }
        "ssh-auth" => e.filled(&data.key("ssh-privatekey")),
        "tls" => {
            for key in ["tls.crt", "tls.key"].map(|key| data.key(key)).iter().filter(|key| !key.is_set()) {
                e.required(key, "");
            }
        }
        _ => {}
    }
}

fn docker_config(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return e.required(at, "");
    }
    let bytes = STANDARD.decode(at.str()).unwrap_or_default();
    let fault = match crate::json::parse(&bytes) {
        Ok(parsed) if parsed.value.is_object() || parsed.value.is_null() => return,
        Ok(_) => "json: cannot unmarshal into Go value of type map[string]interface {}".to_owned(),
        Err(fault) => fault,
    };
    e.invalid_value(at, "<secret contents redacted>", fault);
}

pub(super) fn namespace(e: &mut Errors, namespace: &At) {
    finalizers(e, namespace, false);
}

fn finalizers(e: &mut Errors, namespace: &At, by_item: bool) {
    let list = namespace.at("spec.finalizers");
    for finalizer in list.items() {
        let place = if by_item { finalizer.clone() } else { finalizer.called(&list.path) };
        e.form(&place, names::qualified_name);
        meta::standard_finalizer(e, &finalizer, &place);
    }
}

pub(super) fn namespace_finalize(e: &mut Errors, new: &At) {
    finalizers(e, new, true);
}

pub(super) fn namespace_status(e: &mut Errors, new: &At) {
    let phase = new.at("status.phase").called("status.Phase");
    match (new.at("metadata.deletionTimestamp").is_set(), phase.str()) {
        (false, phase_now) if phase_now != "Active" => e.invalid(&phase, "may only be 'Active' if `deletionTimestamp` is empty"),
        (true, phase_now) if phase_now != "Terminating" => e.invalid(&phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"),
        _ => {}
    }
}

pub(super) fn node(e: &mut Errors, node: &At) {
    scheduling::taints(e, &node.at("spec.taints").called("metadata.taints"));
    node_resources(e, node);
    let ranges = node.at("spec.podCIDRs");
    ranges.items().for_each(|range| address::range(e, &range));
    address::one_of_each_family(e, &ranges, |r| r.str(), "may specify no more than one CIDR for each IP family");
}

fn node_resources(e: &mut Errors, node: &At) {
    for list in ["capacity", "allocatable"] {
        for (name, amount) in node.at("status").at(list).entries() {
            resources::amount(e, &amount.called(format!("status.{list}.{name}")), name);
        }
    }
}

pub(super) fn node_update(e: &mut Errors, new: &At, old: &Value) {
    node_resources(e, new);
    let addresses = new.at("status.addresses");
    e.unique(addresses.items());
    let spec = new.at("spec");
    let was = At::root(&old["spec"]);
    let words = |what: &str| format!("node updates may not change {what} except from \"\" to valid");
    if !was.at("podCIDRs").is_empty() && meta::changed(&spec, was.value, "podCIDRs") {
        e.forbidden(&spec.at("podCIDRs"), words("podCIDR"));
    }
    if !was.at("providerID").is_empty() && meta::changed(&spec, was.value, "providerID") {
        e.forbidden(&spec.at("providerID"), words("providerID"));
    }
    // Upstream looks at these twice.
    scheduling::taints(e, &spec.at("taints").called("metadata.taints"));
    scheduling::taints(e, &spec.at("taints").called("metadata.taints"));
}

pub(super) fn limit_range(e: &mut Errors, range: &At) {
    let limits = range.at("spec.limits");
    limits.items().for_each(|limit| limit_item(e, &limit));
    e.unique(limits.items().map(|l| l.at("type")));
}

fn limit_item(e: &mut Errors, limit: &At) {
    let kind = limit.at("type");
    let before = e.0.len();
    e.form(&kind, names::qualified_name);
    if !e.has_since(before) && !kind.str().contains('/') && !matches!(kind.str(), "Pod" | "Container" | "PersistentVolumeClaim") {
        e.invalid(&kind, "must be a standard limit type or fully qualified");
    }
    let is_pod = kind.str() == "Pod";
    let mut named: Vec<&str> = Vec::new();
    let lists = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"].map(|name| limit.at(name));
    for (i, list) in lists.iter().enumerate() {
        if is_pod && matches!(i, 2 | 3) {
            if !list.is_empty() {
                e.forbidden(list, "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        if i == 4 && kind.str() == "PersistentVolumeClaim" && !lists[0].key("storage").is_set() && !lists[1].key("storage").is_set() {
            e.required(&limit.at("limits"), "either minimum or maximum storage value is required, but neither was provided");
        }
        for (name, entry) in list.entries() {
            match kind.str() {
                "Pod" | "Container" => resources::container_name(e, &entry, name),
                _ => resources::any_name(e, &entry, name),
            }
            named.push(name);
        }
    }
    named.sort_unstable();
    named.dedup();
    for name in named {
        let [max, min, default, request, ratio] = lists.each_ref().map(|list| list.key(name));
        let mut order = |low: &At, high: &At, low_name: &str, high_name: &str, place: &At, shown: &At| {
            if low.quantity().zip(high.quantity()).is_some_and(|(l, h)| l > h) {
                e.invalid_value(place, shown.str(), format!("{low_name} value {} is greater than {high_name} value {}", low.str(), high.str()));
            }
        };
        order(&min, &max, "min", "max", &min, &min);
        order(&min, &request, "min", "default request", &request, &request);
        order(&request, &max, "default request", "max", &request, &request);
        order(&request, &default, "default request", "default limit", &request, &request);
        order(&min, &default, "min", "default", &default, &min);
        order(&default, &max, "default", "max", &default, &max);
        if ratio.quantity().is_some_and(|r| r.milli_value() < 1000) {
            e.invalid(&ratio, format!("ratio {} is less than 1", ratio.str()));
        }
        if let (Some(wanted), Some(low), Some(high)) = (ratio.quantity(), min.quantity(), max.quantity()) {
            let most = high.as_f64() / low.as_f64();
            if wanted.as_f64() > most {
                e.invalid(&ratio, format!("ratio {} is greater than max/min = {most:.6}", ratio.str()));
            }
        }
        if !resources::may_overcommit(name) && default.is_set() && request.is_set() && default.quantity() != request.quantity() {
            let words = format!("default value {} must equal to defaultRequest value {} in {name}", default.str(), request.str());
            e.invalid(&request, words);
        }
    }
}

const SCOPES: [&str; 7] =
    ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating", "VolumeAttributesClass"];

/// Whether a quota of that scope can limit the resource.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let of_pods = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory", "pods", "requests.ephemeral-storage",
        "limits.ephemeral-storage", "ephemeral-storage"];
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => of_pods.contains(&resource),
        _ => true,
    }
}

pub(super) fn resource_quota(e: &mut Errors, quota: &At) {
    quota_spec(e, &quota.at("spec"));
    quota_status(e, quota);
}

pub(super) fn quota_status(e: &mut Errors, quota: &At) {
    ["status.hard", "status.used"].into_iter().for_each(|list| quota_amounts(e, &quota.at(list)));
}

fn quota_amounts(e: &mut Errors, list: &At) {
    for (name, amount) in list.entries() {
        resources::quota_name(e, &amount, name);
        resources::amount(e, &amount, name);
    }
}

fn quota_spec(e: &mut Errors, spec: &At) {
    let hard = spec.at("hard");
    quota_amounts(e, &hard);
    let scopes = spec.at("scopes");
    let unfit = |scope: &str| hard.entries().any(|(name, _)| resources::is_standard_of_quota(name) && !scope_fits(scope, name));
    for scope in scopes.texts() {
        if !SCOPES.contains(&scope) {
            e.invalid(&scopes, "unsupported scope");
        }
        if unfit(scope) {
            e.invalid(&scopes, "unsupported scope applied to resource");
        }
    }
    let conflicting = |list: &[&str]| {
        [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]].iter().any(|pair| pair.iter().all(|s| list.contains(s)))
    };
    if conflicting(&scopes.texts()) {
        e.invalid(&scopes, "conflicting scopes");
    }
    let selector = spec.at("scopeSelector.matchExpressions");
    for expression in selector.items() {
        // Upstream names no item here.
        let at = |name: &str| expression.at(name).called(selector.below(name));
        let (scope, operator, values) = (at("scopeName"), at("operator"), at("values"));
        if !SCOPES.contains(&scope.str()) {
            e.invalid_value(&scope, scope.str(), "unsupported scope");
        }
        if unfit(scope.str()) {
            e.invalid(&spec.at("scopeSelector").called(&selector.path), "unsupported scope applied to resource");
        }
        if !matches!(scope.str(), "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope.str()) && operator.str() != "Exists" {
            let kinds = "ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            e.invalid_value(&operator, operator.str(), format!("must be 'Exists' when scope is any of {kinds}"));
        }
        match (operator.str(), values.len()) {
            ("In" | "NotIn", 0) => e.required(&values, "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            ("Exists" | "DoesNotExist", 1..) => {
                e.invalid(&values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector");
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            _ => e.invalid_value(&operator, operator.str(), "not a valid selector operator"),
        }
    }
}

pub(super) fn quota_update(e: &mut Errors, new: &At, old: &Value) {
    quota_spec(e, &new.at("spec"));
    let sorted = |at: &At| {
        let mut texts: Vec<String> = at.texts().into_iter().map(str::to_owned).collect();
        texts.sort();
        texts
    };
    let scopes = new.at("spec.scopes");
    if sorted(&scopes) != sorted(&At::root(old).at("spec.scopes")) {
        e.immutable(&scopes);
    }
}

/// The namespace of events about things that are in none.
const DEFAULT_NAMESPACE: &str = "default";

/// Whether it is an event of the newer group.
fn is_new_style(event: &At) -> bool {
    event.schema.property("regarding").is_some()
}

/// An event of either group.
pub(super) fn event(e: &mut Errors, event: &At) {
    event_rules(e, event, true);
    if is_new_style(event) {
        series(e, event);
    }
}

/// What an event says of its repetition.
fn series(e: &mut Errors, event: &At) {
    let series = event.at("series");
    if series.is_set() && series.at("count").number() < 2 {
        e.invalid_value(&series.at("count"), "", "should be at least 2");
    }
    if series.is_set() && series.at("lastObservedTime").is_empty() {
        e.required(&series.at("lastObservedTime"), "");
    }
}

fn event_rules(e: &mut Errors, event: &At, is_new: bool) {
    let new_style = is_new_style(event);
    let (own, about) = (event.at("metadata.namespace"), event.at(if new_style { "regarding" } else { "involvedObject" }).at("namespace"));
    let about = about.called("involvedObject.namespace");
    let timed = event.at("eventTime").is_set();
    // Events of the newer form may be kept elsewhere than the object that they are about.
    let fits = match (timed, about.str()) {
        (true, "") => matches!(own.str(), DEFAULT_NAMESPACE | "kube-system"),
        (true, _) => true,
        (false, "") => own.str() == DEFAULT_NAMESPACE,
        (false, namespace) => namespace == own.str(),
    };
    if !fits {
        e.invalid_value(&about, about.str(), "does not match event.namespace");
    }
    if new_style || timed {
        new_event(e, event, new_style, is_new);
    }
}

fn new_event(e: &mut Errors, event: &At, new_style: bool, is_new: bool) {
    let (controller, message) = if new_style { ("reportingController", "note") } else { ("reportingComponent", "message") };
    let controller = event.at(controller).called("reportingController");
    if !event.at("eventTime").is_set() {
        return e.required(&event.at("eventTime"), "");
    }
    e.filled(&controller);
    e.form(&controller, names::qualified_name);
    for (field, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let at = event.at(field);
        e.filled(&at);
        if at.str().len() > max {
            e.invalid_value(&at, "", format!("can have at most {max} characters"));
        }
    }
    let deprecated = [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp"), ("deprecatedCount", "count"), ("deprecatedSource", "source")];
    for (field, shown) in deprecated.into_iter().filter(|_| new_style && is_new) {
        let at = event.at(field);
        if !at.is_empty() && at.number() != 0 || at.value.is_string() && !at.is_empty() || at.value.is_object() && !at.is_empty() {
            e.invalid_value(&at.called(shown), "", "needs to be unset");
        }
    }
    if event.at(message).str().len() > 1024 {
        e.invalid_value(&event.at(message).called("message"), "", "can have at most 1024 characters");
    }
    let kind = event.at("type");
    if new_style && is_new && !matches!(kind.str(), "Normal" | "Warning") {
        e.invalid_value(&kind, "", format!("has invalid value: {}", kind.str()));
    }
}

pub(super) fn event_update(e: &mut Errors, new: &At, old: &Value) {
    event_rules(e, new, false);
    if !is_new_style(new) {
        return;
    }
    meta::meta_update(e, new, old);
    if meta::changed(new, old, "series") {
        series(e, new);
    }
    // Upstream looks at the reason twice.
    for (field, shown) in [("regarding", "involvedObject"), ("reason", "reason"), ("note", "message"), ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp"), ("deprecatedCount", "count"),
        ("reason", "reason"), ("type", "type"), ("eventTime", "eventTime"), ("action", "action"), ("related", "related"),
        ("reportingController", "reportingController"), ("reportingInstance", "reportingInstance")]
    {
        if meta::changed(new, old, field) {
            e.immutable(&new.at(field).called(shown));
        }
    }
}
