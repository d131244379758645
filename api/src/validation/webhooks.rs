//! Admission webhooks and policies, and aggregated APIs.

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
    ["namespaceSelector", "objectSelector"].into_iter().for_each(|field| meta::label_selector(e, &hook.at(field)));
    client(e, &hook.at("clientConfig"));
    let conditions = hook.at("matchConditions");
    e.0.extend(Conditions::compile(items(conditions.value, &[]), &conditions.path).1);
    let versions = hook.at("admissionReviewVersions");
    if versions.is_empty() {
        return e.required(&versions, "must specify one of v1, v1beta1");
    }
    for (i, version) in versions.items().enumerate() {
        if versions.texts()[..i].contains(&version.str()) {
            e.invalid(&version, "duplicate version");
        } else {
            e.form(&version, names::dns1035_label);
        }
    }
    if !versions.texts().iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        e.invalid(&versions, "must include at least one of v1, v1beta1");
    }
}

fn policies(e: &mut Errors, at: &At) {
    e.maybe_one_of(&at.at("failurePolicy"), &["Fail", "Ignore"]);
    e.maybe_one_of(&at.at("matchPolicy"), &["Equivalent", "Exact"]);
}

/// What requests are looked at, perhaps of named objects alone.
fn rule(e: &mut Errors, rule: &At) {
    let names = rule.at("resourceNames");
    names.items().for_each(|name| e.form(&name, names::path_segment));
    e.unique(names.items());
    for (field, what) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let list = rule.at(field);
        e.filled(&list);
        if list.len() > 1 && list.texts().contains(&"*") {
            e.invalid(&list, format!("if '*' is present, must not specify other {what}"));
        }
        match field {
            "operations" => list.items().for_each(|operation| e.maybe_one_of(&operation, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"])),
            "apiVersions" => list.items().for_each(|version| e.filled(&version)),
            _ => {}
        }
    }
    resources(e, &rule.at("resources"));
    e.maybe_one_of(&rule.at("scope"), &["*", "Cluster", "Namespaced"]);
}

/// Resources and their parts, of which none is covered by another.
fn resources(e: &mut Errors, list: &At) {
    e.filled(list);
    let (mut whole, mut part_of_all) = (Vec::new(), Vec::new());
    for item in list.items() {
        e.filled(&item);
        let Some((resource, part)) = item.str().split_once('/') else { continue };
        if whole.contains(&resource) {
            e.invalid(&item, format!("if '{resource}/*' is present, must not specify {}", item.str()));
        }
        if part_of_all.contains(&part) {
            e.invalid(&item, format!("if '*/{part}' is present, must not specify {}", item.str()));
        }
        if part == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            part_of_all.push(part);
        }
    }
    let texts = list.texts();
    if list.len() > 1 && texts.contains(&"*/*") {
        e.invalid(list, "if '*/*' is present, must not specify other resources");
    }
    if texts.contains(&"*") && texts.iter().any(|text| !text.is_empty() && *text != "*" && !text.contains('/')) {
        e.invalid(list, "if '*' is present, must not specify other resources without subresources");
    }
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
            scheme => {
                e.invalid_value(&url, scheme.map_or("", |(s, _)| s), format!("'https' is the only allowed URL scheme{form}"));
                if scheme.is_none_or(|(_, rest)| rest.split('/').next().unwrap_or("").is_empty()) {
                    e.invalid_value(&url, "", format!("host must be specified{form}"));
                }
            }
        }
    } else {
        ["name", "namespace"].iter().for_each(|f| e.filled(&service.at(f)));
        if service.at("port").is_set() {
            e.port_number(&service.at("port"));
        }
        if !service.at("path").is_empty() && !service.at("path").str().starts_with('/') {
            e.invalid(&service.at("path"), "must start with a '/'");
        }
    }
}

pub(super) fn policy(e: &mut Errors, object: &At) {
    let (spec, mutating) = (object.at("spec"), object.at("kind").str() == "MutatingAdmissionPolicy");
    e.maybe_one_of(&spec.at("failurePolicy"), &["Fail", "Ignore"]);
    param_kind(e, &spec.at("paramKind"));
    let constraints = spec.at("matchConstraints");
    if constraints.is_set() {
        matched(e, &constraints, mutating);
        e.filled(&constraints.at("resourceRules"));
    } else {
        e.required(&constraints, "");
    }
    if mutating {
        mutations(e, &spec);
    }
    let lists = ["validations", "auditAnnotations"].map(|f| spec.at(f));
    if !mutating && lists.iter().all(|l| l.is_empty()) {
        for list in &lists {
            e.required(list, "validations or auditAnnotations must contain at least one item");
        }
    }
    let name = object.at("metadata.name");
    for key in lists[1].items().map(|annotation| annotation.at("key")) {
        if name.is_empty() {
            e.invalid_value(&key, key.str(), "requires metadata.name be non-empty");
        } else {
            let whole = format!("{}/{}", name.str(), key.str());
            e.text_form(&key, &whole, names::qualified_name);
        }
    }
    e.unique(lists[1].items().map(|annotation| annotation.at("key")));
    for validation in lists[0].items() {
        for field in ["messageExpression", "message"].map(|f| validation.at(f)) {
            let trimmed = field.str().trim();
            if !field.is_empty() && trimmed.is_empty() {
                e.invalid(&field, "must be non-empty if specified");
            } else if field.path.ends_with("message") && trimmed.contains(['\n', '\r']) {
                e.invalid(&field, "must not contain line breaks");
            }
        }
        e.maybe_one_of(&validation.at("reason"), &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
    e.0.extend(Policy::compile(spec.value).1);
}

fn param_kind(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let (api_version, kind) = (at.at("apiVersion"), at.at("kind"));
    let text = api_version.str();
    if text.is_empty() {
        e.required(&api_version, "");
    } else if text.matches('/').count() > 1 {
        e.invalid(&api_version, format!("unexpected GroupVersion string: {text}"));
    } else {
        let (group, version) = text.split_once('/').unwrap_or(("", text));
        let mut joined = |value: &str, faults: Vec<String>| {
            if !faults.is_empty() {
                e.invalid_value(&api_version, value, faults.join(","));
            }
        };
        joined(group, if group.is_empty() { Vec::new() } else { names::dns_subdomain(group) });
        joined(version, names::dns1035_label(version));
    }
    if kind.is_empty() { e.required(&kind, "") } else { meta::kind_name(e, &kind) }
}

/// What a policy or its binding looks at.
fn matched(e: &mut Errors, at: &At, mutating: bool) {
    e.maybe_one_of(&at.at("matchPolicy"), &["Equivalent", "Exact"]);
    ["namespaceSelector", "objectSelector"].into_iter().for_each(|field| meta::label_selector(e, &at.at(field)));
    for list in ["resourceRules", "excludeResourceRules"] {
        at.at(list).items().for_each(|r| rule(e, &r));
    }
    if mutating {
        for operation in at.at("resourceRules").items().flat_map(|rule| rule.at("operations").items()) {
            e.maybe_one_of(&operation.called(at.below("resourceRules.operations")), &["*", "CONNECT", "CREATE", "UPDATE"]);
        }
    }
}

fn mutations(e: &mut Errors, spec: &At) {
    let list = spec.at("mutations");
    e.wanted(&list, "mutations must contain at least one item");
    for mutation in list.items() {
        let kind = mutation.at("patchType");
        let (own, other) = match kind.str() {
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            _ => {
                e.one_of(&kind, &["ApplyConfiguration", "JSONPatch"]);
                continue;
            }
        };
        if !mutation.at(own).is_set() {
            e.required(&mutation.at(own), &format!("must be specified when patchType is {}", kind.str()));
        }
        if mutation.at(other).is_set() {
            e.invalid_value(&mutation.at(other), format!("{{{other}}}"), format!("must not be specified when patchType is {}", kind.str()));
        }
    }
    e.one_of(&spec.at("reinvocationPolicy"), &["IfNeeded", "Never"]);
}

pub(super) fn policy_status(e: &mut Errors, new: &At) {
    for warning in new.at("status.typeChecking.expressionWarnings").items() {
        e.filled(&warning.at("warning"));
        e.filled(&warning.at("fieldRef"));
    }
    meta::conditions(e, &new.at("status.conditions"));
}

pub(super) fn policy_binding(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    e.required_form(&spec.at("policyName"), names::dns_subdomain);
    let parameters = spec.at("paramRef");
    if parameters.is_set() {
        let (name, selector, missing) = (parameters.at("name"), parameters.at("selector"), parameters.at("parameterNotFoundAction"));
        e.optional_form(&name, names::path_segment);
        meta::label_selector(e, &selector);
        if !name.is_empty() && selector.is_set() {
            e.forbidden(&name, "name and selector are mutually exclusive");
            e.forbidden(&selector, "name and selector are mutually exclusive");
        }
        if name.is_empty() && !selector.is_set() {
            e.required(&parameters, "one of name or selector must be specified");
        }
        e.one_of(&missing, &["Deny", "Allow"]);
    }
    let validating = object.at("kind").str() == "ValidatingAdmissionPolicyBinding";
    if spec.at("matchResources").is_set() {
        matched(e, &spec.at("matchResources"), !validating);
    }
    if validating {
        let actions = spec.at("validationActions");
        actions.items().for_each(|a| e.maybe_one_of(&a, &["Audit", "Deny", "Warn"]));
        e.unique(actions.items());
        let texts = actions.texts();
        if texts.contains(&"Deny") && texts.contains(&"Warn") {
            e.invalid(&actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
        }
        e.wanted(&actions, "at least one validation action is required");
    }
}

pub(super) fn api_service(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let wanted = format!("{}.{}", spec.at("version").str(), spec.at("group").str());
    let name = object.at("metadata.name");
    if name.is_empty() {
        e.required(&name, "name or generateName is required");
    } else if name.str() != wanted {
        e.invalid(&name, format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
    }
    meta::labels(e, &object.at("metadata.labels"));
    meta::annotations(e, &object.at("metadata.annotations"));
    e.optional_form(&spec.at("group"), names::dns_subdomain);
    if spec.at("group").is_empty() && spec.at("version").str() != "v1" {
        e.required(&spec.at("group"), "only v1 may have an empty group and it better be legacy kube");
    }
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
        ["namespace", "name"].iter().for_each(|f| e.filled(&service.at(f)));
        let port = service.at("port");
        if let Some(fault) = port.int().and_then(|n| names::port_number(n).into_iter().next()) {
            e.invalid(&port, format!("port is not valid: {fault}"));
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

