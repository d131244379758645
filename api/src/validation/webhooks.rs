//! Admission webhooks and policies, and aggregated APIs.

use serde_json::Value;

use super::check::{At, Errors};
use super::meta;
use crate::cel::admission::{Conditions, Policy};
use crate::field::Error;
use crate::names;
use crate::value::items;

pub(super) fn validating(e: &mut Errors, object: &At) {
    configuration(e, object, false);
}

pub(super) fn mutating(e: &mut Errors, object: &At) {
    configuration(e, object, true);
}

fn configuration(e: &mut Errors, object: &At, mutating: bool) {
    meta::object_meta(e, object, false, meta::subdomain);
    let hooks = object.at("webhooks");
    for hook in hooks.items() {
        webhook(e, &hook);
        if mutating {
            e.maybe_one_of(&hook.at("reinvocationPolicy"), &["IfNeeded", "Never"]);
        }
    }
    e.unique(hooks.items().map(|h| h.at("name")));
}

/// A domain of three labels at least.
fn qualified_domain(e: &mut Errors, at: &At) {
    let before = e.0.len();
    e.required_form(at, names::dns_subdomain);
    if !e.has_since(before) && at.str().split('.').count() < 3 {
        e.invalid(at, "should be a domain with at least three segments separated by dots");
    }
}

fn webhook(e: &mut Errors, hook: &At) {
    qualified_domain(e, &hook.at("name"));
    hook.at("rules").items().for_each(|rule| self::rule(e, &rule));
    policies(e, hook);
    let side_effects = hook.at("sideEffects");
    if side_effects.is_set() {
        e.maybe_one_of(&side_effects, &["None", "NoneOnDryRun"]);
    } else {
        e.required(&side_effects, "must specify one of None, NoneOnDryRun");
    }
    let timeout = hook.at("timeoutSeconds");
    if timeout.int().is_some_and(|n| !(1..=30).contains(&n)) {
        e.invalid(&timeout, "the timeout value must be between 1 and 30 seconds");
    }
    for field in ["namespaceSelector", "objectSelector"] {
        meta::label_selector(e, &hook.at(field));
    }
    client(e, &hook.at("clientConfig"));
    let conditions = hook.at("matchConditions");
    e.0.extend(Conditions::compile(items(conditions.value, &[]), &conditions.path).1);
    let versions = hook.at("admissionReviewVersions");
    if versions.is_empty() {
        e.required(&versions, "must specify one of v1, v1beta1");
    } else if !versions.texts().iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        e.invalid(&versions, "must include at least one of v1, v1beta1");
    }
}

fn policies(e: &mut Errors, at: &At) {
    e.maybe_one_of(&at.at("failurePolicy"), &["Fail", "Ignore"]);
    e.maybe_one_of(&at.at("matchPolicy"), &["Equivalent", "Exact"]);
}

fn rule(e: &mut Errors, rule: &At) {
    let operations = rule.at("operations");
    for field in [&operations, &rule.at("apiGroups"), &rule.at("apiVersions"), &rule.at("resources")] {
        e.filled(field);
    }
    for (field, what) in [("operations", "operations"), ("apiGroups", "groups"), ("apiVersions", "versions")] {
        let list = rule.at(field);
        if list.len() > 1 && list.texts().contains(&"*") {
            e.invalid(&list, format!("if '*' is present, must not specify other {}", if what == "groups" { "API groups" } else if what == "versions" { "API versions" } else { what }));
        }
    }
    for operation in operations.items() {
        e.maybe_one_of(&operation, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
    }
    e.maybe_one_of(&rule.at("scope"), &["*", "Cluster", "Namespaced"]);
}

/// Where a webhook is: a URL or a Service.
pub(super) fn client(e: &mut Errors, at: &At) {
    let (url, service) = (at.at("url"), at.at("service"));
    if url.is_set() == service.is_set() {
        return e.required(at, "exactly one of url or service is required");
    }
    let form = "; desired format: https://host[/path]";
    if url.is_set() {
        match url.str().split_once("://") {
            Some(("https", rest)) if rest.split('/').next().unwrap_or("").is_empty() => {
                e.invalid_value(&url, "", format!("host must be specified{form}"));
            }
            Some(("https", rest)) if rest.contains(['?', '#']) => e.invalid(&url, format!("query parameters and fragments are not permitted{form}")),
            Some(("https", _)) => {}
            scheme => e.invalid_value(&url, scheme.map_or("", |(s, _)| s), format!("'https' is the only allowed URL scheme{form}")),
        }
    } else {
        for field in ["name", "namespace"].map(|f| service.at(f)) {
            e.filled(&field);
        }
        if service.at("port").is_set() {
            e.port_number(&service.at("port"));
        }
        if !service.at("path").is_empty() && !service.at("path").str().starts_with('/') {
            e.invalid(&service.at("path"), "must start with a '/'");
        }
    }
}

pub(super) fn configuration_update(e: &mut Errors, new: &At, _old: &Value) {
    validating(e, new);
}

pub(super) fn mutating_update(e: &mut Errors, new: &At, _old: &Value) {
    mutating(e, new);
}

pub(super) fn policy(e: &mut Errors, object: &At) {
    meta::object_meta(e, object, false, meta::subdomain);
    let spec = object.at("spec");
    e.maybe_one_of(&spec.at("failurePolicy"), &["Fail", "Ignore"]);
    let lists = ["validations", "auditAnnotations"].map(|f| spec.at(f));
    if object.at("kind").str() == "ValidatingAdmissionPolicy" && lists.iter().all(|l| l.is_empty()) {
        for list in &lists {
            e.required(list, "validations or auditAnnotations must contain at least one item");
        }
    }
    e.0.extend(Policy::compile(spec.value).1);
    let constraints = spec.at("matchConstraints");
    if !constraints.is_set() {
        return e.required(&constraints, "");
    }
    e.maybe_one_of(&constraints.at("matchPolicy"), &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        meta::label_selector(e, &constraints.at(field));
    }
    let rules = constraints.at("resourceRules");
    e.filled(&rules);
    rules.items().for_each(|r| rule(e, &r));
}

pub(super) fn policy_update(e: &mut Errors, new: &At, old: &Value) {
    policy(e, new);
    meta::meta_update(e, new, old);
}

pub(super) fn policy_binding(e: &mut Errors, object: &At) {
    meta::object_meta(e, object, false, meta::subdomain);
    let spec = object.at("spec");
    e.required_form(&spec.at("policyName"), names::dns_subdomain);
    if object.at("kind").str() == "ValidatingAdmissionPolicyBinding" {
        let actions = spec.at("validationActions");
        e.filled(&actions);
        actions.items().for_each(|a| e.maybe_one_of(&a, &["Audit", "Deny", "Warn"]));
        e.unique(actions.items());
        let texts = actions.texts();
        if texts.contains(&"Deny") && texts.contains(&"Warn") {
            e.invalid(&actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
        }
    }
}

pub(super) fn api_service(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let wanted = format!("{}.{}", spec.at("version").str(), spec.at("group").str());
    let name = object.at("metadata.name");
    if name.str() != wanted {
        e.invalid(&name, format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
    }
    meta::labels(e, &object.at("metadata.labels"));
    meta::annotations(e, &object.at("metadata.annotations"));
    e.optional_form(&spec.at("group"), names::dns_subdomain);
    e.form(&spec.at("version"), names::dns1035_label);
    let (group, version) = (spec.at("groupPriorityMinimum"), spec.at("versionPriority"));
    if !(1..=20_000).contains(&group.number()) {
        e.invalid_value(&group, group.number(), "must be positive and less than 20000");
    }
    if !(1..=1000).contains(&version.number()) {
        e.invalid_value(&version, version.number(), "must be positive and less than 1000");
    }
    let (service, bundle, insecure) = (spec.at("service"), spec.at("caBundle"), spec.at("insecureSkipTLSVerify"));
    if service.is_set() {
        for field in ["namespace", "name"].map(|f| service.at(f)) {
            e.filled(&field);
        }
        if service.at("port").is_set() {
            e.port_number(&service.at("port"));
        }
        if insecure.flag() && !bundle.is_empty() {
            e.push(Error { value: Some("true".into()), ..Error::invalid(&insecure.path, "", "may not be true if caBundle is present") });
        }
        return;
    }
    if !bundle.is_empty() {
        e.invalid(&bundle, "local APIServices may not have a caBundle");
    }
    if insecure.flag() {
        e.invalid(&insecure, "local APIServices may not have insecureSkipTLSVerify");
    }
}

pub(super) fn api_service_update(e: &mut Errors, new: &At, old: &Value) {
    meta::meta_update(e, new, old);
    api_service(e, new);
}
