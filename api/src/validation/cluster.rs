//! Autoscalers, budgets, priorities, runtime classes, leases, flow control.

use serde_json::Value;

use super::check::{At, Errors};
use super::{meta, pod, resources, scheduling};
use crate::field::Error;
use crate::names;

pub(super) fn autoscaler_status(e: &mut Errors, new: &At) {
    ["currentReplicas", "desiredReplicas"].into_iter().for_each(|field| e.non_negative(&new.at("status").at(field)));
}

pub(super) fn autoscaler(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let (min, max) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    e.at_least(&min, 1, "must be greater than or equal to 1");
    if max.number() < 1 {
        e.required(&max, "must be set and greater than 0");
    }
    if min.int().is_some_and(|n| max.number() < n) {
        e.invalid_value(&max, max.number(), "must be greater than or equal to `minReplicas`");
    }
    let target = spec.at("scaleTargetRef");
    // The one kind of the core group that scales is known without its group.
    scale_target(e, &target, target.at("kind").str() != "ReplicationController");
    let metrics = spec.at("metrics");
    metrics.items().for_each(|metric| metric_spec(e, &metric));
    if min.int() == Some(0) && !metrics.items().any(|m| matches!(m.at("type").str(), "Object" | "External")) {
        e.forbidden(&metrics, "must specify at least one Object or External metric to support scaling to zero replicas");
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(direction);
        if rules.is_set() {
            scaling_rules(e, &rules);
        }
    }
}

fn scale_target(e: &mut Errors, at: &At, needs_group: bool) {
    ["kind", "name"].iter().for_each(|f| e.required_form(&at.at(f), names::path_segment));
    let version = at.at("apiVersion");
    if version.str().matches('/').count() > 1 {
        e.invalid(&version, format!("unexpected GroupVersion string: {}", version.str()));
    } else if needs_group && !version.str().contains('/') {
        e.invalid_value(&version, version.str(), "apiVersion must specify API group");
    }
}

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn metric_spec(e: &mut Errors, metric: &At) {
    let kind = metric.at("type");
    let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let known = kinds.contains(&kind.str());
    e.wanted(&kind, "must specify a metric source type");
    let unknown = || Error::not_supported(&kind.path, kind.str(), &kinds);
    if !known {
        e.push(unknown());
    }
    let given: Vec<&str> = SOURCES.iter().map(|(_, field)| *field).filter(|field| metric.at(field).is_set()).collect();
    if let Some(field) = given.first() {
        metric_source(e, field, &metric.at(field));
    }
    // Upstream looks twice.
    if !known {
        e.push(unknown());
    }
    let expected = SOURCES.iter().find(|(k, _)| *k == kind.str()).map_or("", |(_, field)| field);
    if known && !metric.at(expected).is_set() {
        e.required(&metric.at(expected), "must populate information for the given metric source");
    }
    if given.len() > 1 {
        for field in given.iter().filter(|f| **f != expected) {
            e.forbidden(&metric.at(field), "must populate the given metric source only");
        }
    }
}

fn metric_source(e: &mut Errors, kind: &str, source: &At) {
    let target = source.at("target");
    match kind {
        "resource" | "containerResource" => {
            let (name, container) = (source.at("name"), source.at("container"));
            if name.is_empty() {
                e.required(&name, "must specify a resource name");
            } else if kind == "containerResource" {
                resources::container_name(e, &name, name.str());
            }
            if kind == "containerResource" {
                e.wanted(&container, "must specify a container");
                e.optional_form(&container, names::dns_label);
            }
        }
        _ => {
            if kind == "object" {
                scale_target(e, &source.at("describedObject"), false);
            }
            let name = source.at("metric.name");
            e.wanted(&name, "must specify a metric name");
            e.optional_form(&name, names::path_segment);
        }
    }
    metric_target(e, &target);
    let (value, average, utilization) = (target.at("value"), target.at("averageValue"), target.at("averageUtilization"));
    match (kind, value.is_set(), average.is_set(), utilization.is_set()) {
        ("object", false, false, _) => e.required(&average, "must set either a target value or averageValue"),
        ("external", false, false, _) => e.required(&average, "must set either a target value for metric or a per-pod target"),
        ("external", true, true, _) => e.forbidden(&value, "may not set both a target value for metric and a per-pod target"),
        ("pods", _, false, _) => e.required(&average, "must specify a positive target averageValue"),
        ("resource" | "containerResource", _, false, false) => {
            e.required(&utilization, "must set either a target raw value or a target utilization");
        }
        ("resource" | "containerResource", _, true, true) => {
            e.forbidden(&average, "may not set both a target raw value and a target utilization");
        }
        _ => {}
    }
}

fn metric_target(e: &mut Errors, target: &At) {
    let kind = target.at("type");
    e.wanted(&kind, "must specify a metric target type");
    if !matches!(kind.str(), "Utilization" | "Value" | "AverageValue") {
        e.invalid_value(&kind, kind.str(), "must be either Utilization, Value, or AverageValue");
    }
    for amount in ["value", "averageValue"].map(|f| target.at(f)) {
        if amount.quantity().is_some_and(|q| q.signum() <= 0) {
            e.invalid(&amount, "must be positive");
        }
    }
    e.at_least(&target.at("averageUtilization"), 1, "must be greater than 0");
}

fn scaling_rules(e: &mut Errors, rules: &At) {
    let window = rules.at("stabilizationWindowSeconds");
    e.at_least(&window, 0, "must be greater than or equal to zero");
    e.at_most(&window, 3600, "must be less than or equal to 3600");
    e.maybe_one_of(&rules.at("selectPolicy"), &["Disabled", "Max", "Min"]);
    let policies = rules.at("policies");
    e.wanted(&policies, "must specify at least one Policy");
    for policy in policies.items() {
        e.maybe_one_of(&policy.at("type"), &["Percent", "Pods"]);
        ["value", "periodSeconds"].iter().for_each(|f| e.positive(&policy.at(f), "must be greater than zero"));
        e.at_most(&policy.at("periodSeconds"), 1800, "must be less than or equal to 1800");
    }
    e.non_negative_quantity(&rules.at("tolerance"));
}

pub(super) fn scale(e: &mut Errors, object: &At) {
    e.non_negative(&object.at("spec.replicas"));
}

pub(super) fn budget(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    let counts = ["minAvailable", "maxUnavailable"].map(|f| spec.at(f));
    if counts.iter().all(At::is_set) {
        e.invalid(spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for count in &counts {
        e.int_or_percent(count);
        e.at_most_all(count);
    }
    meta::label_selector(e, &spec.at("selector"));
    e.maybe_one_of(&spec.at("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
}

pub(super) fn budget_status(e: &mut Errors, new: &At) {
    meta::conditions(e, &new.at("status.conditions"));
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        e.non_negative(&new.at("status").at(field));
    }
}

/// The status of what flow control knows: conditions whose types are told apart by name alone.
pub(super) fn flow_status(e: &mut Errors, new: &At) {
    let kinds: Vec<At> = new.at("status.conditions").items().map(|c| c.at("type")).collect();
    for (i, kind) in kinds.iter().enumerate() {
        if kinds[..i].iter().any(|other| other.str() == kind.str()) {
            e.duplicate(kind);
        }
        e.filled(kind);
    }
}

/// The priorities that come with every cluster.
const SYSTEM_PRIORITIES: [(&str, i64); 2] = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn priority_class(e: &mut Errors, class: &At) {
    let (name, value) = (class.at("metadata.name"), class.at("value"));
    if name.str().starts_with("system-") {
        let known = SYSTEM_PRIORITIES.iter().find(|(known, _)| *known == name.str());
        let fault = match known {
            None => Some(format!("{} is not a known system priority class", name.str())),
            Some((_, priority)) if *priority != value.number() => Some(format!("value of {} PriorityClass must be {priority}", name.str())),
            Some(_) if class.at("globalDefault").flag() => Some(format!("globalDefault of {} PriorityClass must be false", name.str())),
            Some(_) => None,
        };
        if let Some(fault) = fault {
            let words = "priority class names with 'system-' prefix are reserved for system use only. error:";
            e.forbidden(&name, format!("{words} {fault}"));
        }
    } else if value.number() > HIGHEST_USER_PRIORITY {
        e.forbidden(&value, format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"));
    }
    if class.at("preemptionPolicy").is_set() {
        e.one_of(&class.at("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
    }
}

pub(super) fn priority_class_update(e: &mut Errors, new: &At, old: &Value) {
    if meta::changed(new, old, "value") {
        e.forbidden(&new.at("value"), "may not be changed in an update.");
    }
}

pub(super) fn runtime_class(e: &mut Errors, class: &At) {
    e.required_form(&class.at("handler"), names::dns_label);
    pod::overhead(e, &class.at("overhead.podFixed").called("overhead"));
    meta::labels(e, &class.at("scheduling.nodeSelector"));
    let tolerations = class.at("scheduling.tolerations");
    scheduling::tolerations(e, &tolerations);
    let mut seen: Vec<[&str; 4]> = Vec::new();
    for toleration in tolerations.items() {
        let key = ["key", "operator", "value", "effect"].map(|field| toleration.at(field).str());
        if seen.contains(&key) { e.duplicate(&toleration) } else { seen.push(key) }
    }
}

pub(super) fn lease(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    let duration = spec.at("leaseDurationSeconds");
    e.at_least(&duration, 1, "must be greater than 0");
    e.non_negative(&spec.at("leaseTransitions"));
}

pub(super) fn flow_schema(e: &mut Errors, schema: &At) {
    let spec = schema.at("spec");
    let (level, precedence, method) = (spec.at("priorityLevelConfiguration.name"), spec.at("matchingPrecedence"), spec.at("distinguisherMethod"));
    e.positive(&precedence, "must be a positive value");
    e.at_most(&precedence, 10_000, "must not be greater than 10000");
    if precedence.number() == 1 && schema.at("metadata.name").str() != "exempt" {
        e.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if method.is_set() && !matches!(method.at("type").str(), "ByNamespace" | "ByUser") {
        e.unsupported(&method.called(method.below("type")), &["ByNamespace", "ByUser"]);
    }
    e.wanted(&level, "must reference a priority level");
    e.optional_form(&level, names::dns_subdomain);
    for rule in spec.at("rules").items() {
        e.wanted(&rule.at("subjects"), "subjects must contain at least one value");
        rule.at("subjects").items().for_each(|subject| flow_subject(e, &subject));
        if rule.at("resourceRules").is_empty() && rule.at("nonResourceRules").is_empty() {
            e.required(&rule, "at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        for rule in rule.at("resourceRules").items() {
            flow_list(e, &rule.at("verbs"), "verbs", "verbs must contain at least one value");
            flow_list(e, &rule.at("apiGroups"), "api groups", "resource rules must supply at least one api group");
            flow_list(e, &rule.at("resources"), "resources", "resource rules must supply at least one resource");
            let namespaces = rule.at("namespaces");
            if !rule.at("clusterScope").flag() || !namespaces.is_empty() {
                flow_list(e, &namespaces, "namespaces", "resource rules that are not cluster scoped must supply at least one namespace");
            }
            for namespace in namespaces.items().filter(|_| !namespaces.texts().contains(&"*")) {
                for fault in names::dns_label(namespace.str()) {
                    e.invalid(&namespace, format!("each member of this list must be '*' or a DNS-1123 label; {fault}"));
                }
            }
        }
        for rule in rule.at("nonResourceRules").items() {
            let urls = rule.at("nonResourceURLs");
            flow_list(e, &rule.at("verbs"), "verbs", "verbs must contain at least one value");
            flow_list(e, &urls, "non-resource URLs", "nonResourceURLs must contain at least one value");
            urls.items().filter(|_| !urls.texts().contains(&"*")).for_each(|url| flow_url(e, &url));
        }
    }
}

/// A list that must say something, and nothing beside everything.
fn flow_list(e: &mut Errors, list: &At, what: &str, nothing: &str) {
    const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    let texts = list.texts();
    if list.is_empty() {
        e.required(list, nothing);
    } else if texts.contains(&"*") {
        if list.len() > 1 {
            e.invalid(list, format!("if '*' is present, must not specify other {what}"));
        }
    } else if what == "verbs" && !texts.iter().all(|verb| VERBS.contains(verb)) {
        e.unsupported(list, &VERBS);
    }
}

fn flow_subject(e: &mut Errors, subject: &At) {
    const KINDS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject.at("kind");
    let Some((_, own)) = KINDS.iter().find(|(name, _)| *name == kind.str()) else {
        return e.push(Error::not_supported(&kind.path, kind.str(), &["Group", "ServiceAccount", "User"]));
    };
    let named = subject.at(own);
    let (name, namespace) = (named.at("name"), named.at("namespace"));
    if !named.is_set() {
        e.required(&named, &format!("{own} is required when subject kind is '{}'", kind.str()));
    } else if *own == "serviceAccount" {
        if name.str() != "*" {
            e.required_form(&name, names::dns_subdomain);
        }
        e.wanted(&namespace, "must specify namespace for service account");
        e.optional_form(&namespace, names::dns_label);
    } else {
        e.filled(&name);
    }
    for (name, field) in KINDS.iter().filter(|(_, field)| field != own && subject.at(field).is_set()) {
        e.forbidden(&subject.at(field), format!("{field} is forbidden when subject kind is not '{name}'"));
    }
}

/// A path, or all paths below one.
fn flow_url(e: &mut Errors, url: &At) {
    let text = url.str();
    let fault = match text {
        "" => "must not be empty",
        "/" => return,
        _ if !text.starts_with('/') => "must start with slash",
        _ if text.contains(' ') => "must not contain white-space",
        _ if text.contains("//") => "must not contain double slash",
        _ if text.strip_suffix("/*").unwrap_or(text).contains('*') => "wildcard can only do suffix matching",
        _ => return,
    };
    e.invalid_value(url, text, fault);
}

pub(super) fn priority_level(e: &mut Errors, level: &At) {
    let spec = level.at("spec");
    let (limited, exempt) = (spec.at("limited"), spec.at("exempt"));
    match spec.at("type").str() {
        "Exempt" => {
            if limited.is_set() {
                e.forbidden(&limited, "must be nil if the type is Exempt");
            }
        }
        "Limited" => {
            if exempt.is_set() {
                e.forbidden(&exempt, "must be nil if the type is Limited");
            }
            if limited.is_set() { limited_level(e, &limited) } else { e.required(&limited, "must not be empty when type is Limited") }
        }
        other => e.push(Error::not_supported(spec.below("type"), other, &["Exempt", "Limited"])),
    }
}

fn limited_level(e: &mut Errors, limited: &At) {
    let shares = limited.at("nominalConcurrencyShares");
    e.at_least(&shares, 0, "must be a non-negative integer");
    let (lent, borrowed) = (limited.at("lendablePercent"), limited.at("borrowingLimitPercent"));
    e.in_range(&lent, 0, 100);
    e.at_least(&borrowed, 0, "if specified, must be a non-negative integer");
    let response = limited.at("limitResponse");
    let queuing = response.at("queuing");
    match response.at("type").str() {
        "Reject" if queuing.is_set() => e.forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited"),
        "Reject" => {}
        "Queue" if !queuing.is_set() => e.required(&queuing, "must not be empty if limited.limitResponse.type is Limited"),
        "Queue" => {
            let (queues, hand, length) = (queuing.at("queues"), queuing.at("handSize"), queuing.at("queueLengthLimit"));
            e.positive(&length, "must be positive");
            if queues.number() <= 0 {
                e.invalid_value(&queues, queues.number(), "must be positive");
            } else if queues.number() > 10_000_000 {
                e.invalid(&queues, "must not be greater than 10000000");
            }
            if hand.number() <= 0 {
                e.invalid_value(&hand, hand.number(), "must be positive");
            } else if hand.number() > queues.number() {
                e.invalid(&hand, format!("should not be greater than queues ({})", queues.number()));
            }
        }
        other => e.push(Error::not_supported(response.below("type"), other, &["Queue", "Reject"])),
    }
}
