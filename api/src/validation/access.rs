//! Roles, their bindings, and signing requests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{At, Errors};
use super::meta;
use crate::field::Error;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

fn rules(e: &mut Errors, role: &At, namespaced: bool) {
    for rule in role.at("rules").items() {
        let urls = rule.at("nonResourceURLs");
        e.wanted(&rule.at("verbs"), "verbs must contain at least one value");
        if !urls.is_empty() {
            if namespaced {
                e.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|f| !rule.at(f).is_empty()) {
                e.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        e.wanted(&rule.at("apiGroups"), "resource rules must supply at least one api group");
        e.wanted(&rule.at("resources"), "resource rules must supply at least one resource");
    }
}

pub(super) fn role(e: &mut Errors, role: &At) {
    rules(e, role, true);
}

pub(super) fn cluster_role(e: &mut Errors, role: &At) {
    rules(e, role, false);
    let selectors = role.at("aggregationRule.clusterRoleSelectors");
    if role.at("aggregationRule").is_set() && selectors.is_empty() {
        e.required(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    for selector in selectors.items() {
        let before = e.0.len();
        meta::label_selector(e, &selector);
        if e.has_since(before) {
            e.invalid_value(&selector, Value::Null, "invalid label selector.");
        }
    }
}

pub(super) fn role_binding(e: &mut Errors, object: &At) {
    binding(e, object, true);
}

pub(super) fn cluster_role_binding(e: &mut Errors, object: &At) {
    binding(e, object, false);
}

fn binding(e: &mut Errors, object: &At, namespaced: bool) {
    let role = object.at("roleRef");
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    e.maybe_one_of(&role.at("apiGroup"), &[GROUP]);
    e.maybe_one_of(&role.at("kind"), kinds);
    e.required_form(&role.at("name"), names::path_segment);
    for subject in object.at("subjects").items() {
        let (name, group, kind) = (subject.at("name"), subject.at("apiGroup"), subject.at("kind"));
        e.filled(&name);
        match kind.str() {
            "ServiceAccount" => {
                e.optional_form(&name, names::dns_subdomain);
                if !group.is_empty() {
                    e.unsupported(&group, &[""]);
                }
                if !namespaced && subject.at("namespace").is_empty() {
                    e.required(&subject.at("namespace"), "");
                }
            }
            "User" | "Group" if group.str() != GROUP => e.push(Error::not_supported(&group.path, group.str(), &[GROUP])),
            "User" | "Group" => {}
            other => e.push(Error::not_supported(&kind.path, other, &["ServiceAccount", "User", "Group"])),
        }
    }
}

pub(super) fn binding_update(e: &mut Errors, new: &At, old: &Value) {
    if meta::changed(new, old, "roleRef") {
        let role = new.at("roleRef");
        e.invalid(&role, "cannot change roleRef");
    }
}

pub(super) fn signing_request(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let request = spec.at("request");
    let bytes = STANDARD.decode(request.str()).unwrap_or_default();
    if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        e.invalid(&request, "PEM block type must be CERTIFICATE REQUEST");
    }
    let usages = spec.at("usages");
    e.filled(&usages);
    let known = [
        "signing", "digital signature", "content commitment", "key encipherment", "key agreement", "data encipherment", "cert sign", "crl sign",
        "encipher only", "decipher only", "any", "server auth", "client auth", "code signing", "email protection", "s/mime", "ipsec end system",
        "ipsec tunnel", "ipsec user", "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc",
    ];
    let mut sorted = known;
    sorted.sort_unstable();
    usages.items().for_each(|usage| e.maybe_one_of(&usage, &sorted));
    e.unique(usages.items());
    signer_name(e, &spec.at("signerName"));
    let seconds = spec.at("expirationSeconds");
    e.at_least(&seconds, 600, "may not specify a duration less than 600 seconds (10 minutes)");
}

fn signer_name(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    let Some((domain, path)) = at.str().split_once('/').filter(|(_, path)| !path.contains('/')) else {
        return e.invalid(at, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    for label in domain.split('.').flat_map(names::dns_label) {
        e.invalid_value(at, domain, format!("validating label {domain:?}: {label}"));
    }
    if !domain.contains('.') {
        e.invalid_value(at, domain, "should be a domain with at least two segments separated by dots");
    }
    for fault in path.split('.').flat_map(names::dns_label) {
        e.invalid_value(at, path, format!("validating label {path:?}: {fault}"));
    }
}

/// What is wrong with PEM text that is to be certificates.
fn certificate_fault(encoded: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN ";
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut kinds = text.lines().filter_map(|line| line.strip_prefix(BEGIN)?.strip_suffix("-----")).peekable();
    if kinds.peek().is_none() {
        return Some("must contain at least one CERTIFICATE PEM block".into());
    }
    kinds.find(|kind| *kind != "CERTIFICATE").map(|kind| format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"))
}

pub(super) fn signing_request_update(e: &mut Errors, new: &At, old: &Value) {
    signing_request_change(e, new, old, false, false);
}

pub(super) fn signing_request_status(e: &mut Errors, new: &At, old: &Value) {
    signing_request_change(e, new, old, true, false);
}

pub(super) fn signing_request_approval(e: &mut Errors, new: &At, old: &Value) {
    signing_request_change(e, new, old, false, true);
}

/// An update, which may bring a certificate or a word on approval where it is made for that. What was wrong before may
/// stay.
fn signing_request_change(e: &mut Errors, new: &At, old: &Value, certified: bool, judged: bool) {
    const JUDGED: [&str; 2] = ["Approved", "Denied"];
    let (conditions, was) = (new.at("status.conditions"), At::root(old).at("status.conditions"));
    let types = |list: &At| list.items().map(|c| c.at("type").str().to_owned()).collect::<Vec<_>>();
    let (before, repeated) = (types(&was), |all: &[String]| (1..all.len()).any(|i| all[..i].contains(&all[i])));
    let (both, repeats) = (JUDGED.iter().all(|t| before.iter().any(|b| b == t)), repeated(&before));
    let mut seen: Vec<&str> = Vec::new();
    for condition in conditions.items() {
        let (kind, status) = (condition.at("type"), condition.at("status"));
        if kind.is_empty() && !before.contains(&String::new()) {
            e.required(&kind, "");
        }
        let fixed = JUDGED.contains(&kind.str()) || kind.str() == "Failed";
        e.one_of(&status, if fixed { &["True"][..] } else { &meta::STATUSES });
        let other = JUDGED.iter().find(|other| **other != kind.str());
        if !both && JUDGED.contains(&kind.str()) && other.is_some_and(|other| seen.contains(other)) {
            e.invalid_value(&conditions, kind.str(), "Approved and Denied conditions are mutually exclusive");
        }
        if !repeats && seen.contains(&kind.str()) {
            e.duplicate(&kind);
        }
        seen.push(kind.str());
    }
    let of = |list: &At, kind: &str| list.items().filter(|c| c.at("type").str() == kind).map(|c| c.value.clone()).collect::<Vec<_>>();
    for kind in [JUDGED[0], JUDGED[1], "Failed"] {
        if of(&conditions, kind).len() < of(&was, kind).len() {
            e.forbidden(&conditions, format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    for kind in JUDGED.iter().filter(|_| !judged) {
        let (now, then) = (of(&conditions, kind), of(&was, kind));
        if now.len() > then.len() {
            e.forbidden(&conditions, format!("updates may not add a condition of type {kind:?}"));
        } else if now.len() == then.len() && now != then {
            e.forbidden(&conditions, format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    let (certificate, had) = (new.at("status.certificate"), At::root(old).at("status.certificate"));
    if certificate.str() != had.str() {
        if !certified {
            e.forbidden(&certificate, "updates may not set certificate content");
        } else if !had.is_empty() {
            e.forbidden(&certificate, "updates may not modify existing certificate content");
        } else if let Some(fault) = certificate_fault(certificate.str()) {
            e.invalid_value(&certificate, "<certificate data>", fault);
        }
    }
}

/// What an access review asks about: a resource or a path, and by whom where that isn't the one who asks.
fn review(e: &mut Errors, review: &At, by_another: bool, metadata: &str) {
    let spec = review.at("spec");
    let (resource, path, user) = (spec.at("resourceAttributes"), spec.at("nonResourceAttributes"), spec.at("user"));
    match (resource.is_set(), path.is_set()) {
        (true, true) => e.invalid(&path, "cannot be specified in combination with resourceAttributes"),
        (false, false) => e.invalid(&resource, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        _ => {}
    }
    if by_another && user.is_empty() && spec.at("groups").is_empty() {
        e.invalid_value(&user, user.str(), "at least one of user or group must be specified");
    }
    for name in ["fieldSelector", "labelSelector"] {
        let selector = resource.at(name);
        let (raw, requirements) = (selector.at("rawSelector"), selector.at("requirements"));
        if !raw.is_empty() && !requirements.is_empty() {
            e.invalid(&raw, "may not specified at the same time as requirements");
        }
        if selector.is_set() && raw.is_empty() && requirements.is_empty() {
            e.required(&requirements, &format!("when {} is specified, requirements or rawSelector is required", selector.path));
        }
        for requirement in requirements.items() {
            let (key, values) = (requirement.at("key"), requirement.at("values"));
            // Operators that a newer client knows are let pass.
            meta::operator_values(e, &requirement);
            if name == "labelSelector" {
                e.form(&key, names::qualified_name);
                values.items().for_each(|value| e.form(&value, names::label_value));
            } else if key.is_empty() {
                e.required(&key, "must be specified");
            }
        }
    }
    let meta = review.at("metadata");
    let local = metadata != "must be empty";
    let given = |(key, value): (&str, At)| !value.is_empty() && key != "managedFields" && !(local && key == "namespace");
    if meta.entries().any(given) {
        e.invalid(&meta, metadata);
    }
    if local {
        let namespace = resource.at("namespace");
        if resource.is_set() && namespace.str() != meta.at("namespace").str() {
            e.invalid_value(&namespace, namespace.str(), "must match metadata.namespace");
        }
        if path.is_set() {
            e.invalid(&path, "disallowed on this kind of request");
        }
    }
}

pub(super) fn access_review(e: &mut Errors, object: &At) {
    review(e, object, true, "must be empty");
}

pub(super) fn self_access_review(e: &mut Errors, object: &At) {
    review(e, object, false, "must be empty");
}

pub(super) fn local_access_review(e: &mut Errors, object: &At) {
    review(e, object, true, "must be empty except for namespace");
}

