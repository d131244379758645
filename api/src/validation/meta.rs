//! Metadata: names, labels, annotations, finalizers, owners. And label selectors, which stand in many kinds.

use std::collections::HashSet;

use serde_json::Value;

use super::check::{At, Errors, same};
use crate::names;

/// The form of a kind's names; true asks for the form of a name's beginning (`generateName`).
pub(super) type NameRule = fn(&str, bool) -> Vec<String>;

/// A beginning may end in a dash: what is put after it makes it whole.
fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(rest) if prefix && !rest.is_empty() => format!("{}a", &rest[..rest.len() - rest.chars().next_back().map_or(0, char::len_utf8)]),
        _ => name.to_owned(),
    }
}

pub(super) fn subdomain(name: &str, prefix: bool) -> Vec<String> {
    names::dns_subdomain(&masked(name, prefix))
}

pub(super) fn label(name: &str, prefix: bool) -> Vec<String> {
    names::dns_label(&masked(name, prefix))
}

pub(super) fn path_segment(name: &str, _prefix: bool) -> Vec<String> {
    names::path_segment(name)
}

/// The most bytes that all annotations of an object may have together.
pub(crate) const ANNOTATIONS_MAX: usize = 256 * 1024;

/// The metadata of an object to be created.
pub(super) fn object_meta(e: &mut Errors, object: &At, namespaced: bool, rule: NameRule) {
    let meta = object.at("metadata");
    object_meta_at(e, &meta, namespaced, rule);
    meta.at("finalizers").items().for_each(|finalizer| standard_finalizer(e, &finalizer, &finalizer));
}

fn object_meta_at(e: &mut Errors, meta: &At, namespaced: bool, rule: NameRule) {
    let (name, prefix, namespace) = (meta.at("name"), meta.at("generateName"), meta.at("namespace"));
    if !prefix.is_empty() {
        for fault in rule(prefix.str(), true) {
            e.invalid(&prefix, fault);
        }
    }
    if name.is_empty() {
        e.required(&name, "name or generateName is required");
    } else {
        for fault in rule(name.str(), false) {
            e.invalid(&name, fault);
        }
    }
    if namespaced {
        e.required_form(&namespace, names::dns_label);
    } else if !namespace.is_empty() {
        e.forbidden(&namespace, "not allowed on this type");
    }
    e.non_negative(&meta.at("generation"));
    labels(e, &meta.at("labels"));
    annotations(e, &meta.at("annotations"));
    owners(e, &meta.at("ownerReferences"));
    finalizers(e, &meta.at("finalizers"));
    managers(e, &meta.at("managedFields"));
}

/// The metadata of a custom resource: its finalizers need only be qualified names.
pub(super) fn custom_meta(e: &mut Errors, object: &At, namespaced: bool, rule: NameRule) {
    object_meta_at(e, &object.at("metadata"), namespaced, rule);
}

/// The metadata of an object within another: it may go without a name, and live in a namespace or in none.
pub(super) fn embedded_meta(e: &mut Errors, object: &At) {
    let meta = object.at("metadata");
    let start = e.0.len();
    object_meta_at(e, &meta, !meta.at("namespace").is_empty(), path_segment);
    let nameless = meta.at("name").is_empty();
    let mut index = 0;
    e.0.retain(|error| {
        index += 1;
        index <= start || !nameless || error.path != meta.below("name")
    });
}

/// Metadata against what it was.
pub(super) fn meta_update(e: &mut Errors, new: &At, old: &Value) {
    let meta = new.at("metadata");
    let old = &old["metadata"];
    if !old["deletionTimestamp"].is_null() {
        let had = At::root(old).at("finalizers").texts();
        let added: Vec<String> = meta.at("finalizers").texts().into_iter().filter(|f| !had.contains(f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let words = "no new finalizers can be added if the object is being deleted, found new finalizers";
            e.forbidden(&meta.at("finalizers"), format!("{words} []string{{{}}}", added.join(", ")));
        }
    }
    if meta.at("generation").number() < old["generation"].as_i64().unwrap_or(0) {
        e.invalid_value(&meta.at("generation"), meta.at("generation").number(), "must not be decremented");
    }
    e.unchanged(&meta, old, &["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]);
    labels(e, &meta.at("labels"));
    annotations(e, &meta.at("annotations"));
    owners(e, &meta.at("ownerReferences"));
    managers(e, &meta.at("managedFields"));
}

/// Labels, or the labels that a selector requires: keys and values of the right form. The errors are all of the map.
pub(super) fn labels(e: &mut Errors, map: &At) {
    for (key, value) in map.entries() {
        e.text_form(map, key, names::qualified_name);
        e.text_form(map, value.str(), names::label_value);
    }
}

pub(super) fn annotations(e: &mut Errors, map: &At) {
    for (key, _) in map.entries() {
        for fault in names::qualified_name(&key.to_lowercase()) {
            e.invalid_value(map, key, fault);
        }
    }
    let size: usize = map.entries().map(|(key, value)| key.len() + value.str().len()).sum();
    if size > ANNOTATIONS_MAX {
        e.too_long(map, ANNOTATIONS_MAX);
    }
}

fn owners(e: &mut Errors, list: &At) {
    let mut controller: Option<String> = None;
    for owner in list.items() {
        // Upstream names no item here.
        let at = |name: &str| owner.at(name).called(list.below(name));
        let (group_version, kind) = (at("apiVersion"), at("kind"));
        if group_version.str().rsplit('/').next().unwrap_or("").is_empty() {
            e.invalid_value(&group_version, group_version.str(), "version must not be empty");
        }
        for field in [kind.clone(), at("name"), at("uid")] {
            if field.is_empty() {
                e.invalid_value(&field, field.str(), "must not be empty");
            }
        }
        if kind.str() == "Event" && matches!(group_version.str(), "v1" | "events.k8s.io/v1") {
            let shown = owner.at("name").str();
            e.invalid_value(list, owner.value.clone(), format!("{} is disallowed from being an owner", if shown.is_empty() { "Event" } else { shown }));
        }
        if owner.at("controller").flag() {
            let name = owner.at("name").str();
            if let Some(first) = &controller {
                let words = "Only one reference can have Controller set to true. Found \"true\" in references for";
                e.invalid(list, format!("{words} {first} and {name}"));
            }
            controller = Some(name.to_owned());
        }
    }
}

fn finalizers(e: &mut Errors, list: &At) {
    list.items().for_each(|finalizer| e.form(&finalizer, names::qualified_name));
    let texts = list.texts();
    if texts.contains(&"orphan") && texts.contains(&"foregroundDeletion") {
        e.invalid(list, "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

/// A finalizer without a domain must be one of upstream's own. The error is put at `place`.
pub(super) fn standard_finalizer(e: &mut Errors, finalizer: &At, place: &At) {
    let standard = ["kubernetes", "orphan", "foregroundDeletion"];
    if !finalizer.str().contains('/') && !standard.contains(&finalizer.str()) {
        e.invalid_value(place, finalizer.str(), "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// What is said of a custom resource's finalizers that are new: each should name whose it is.
pub(super) fn finalizer_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let of = |object: &Value| -> Vec<String> {
        let mut all: Vec<String> = At::root(object).at("metadata.finalizers").texts().into_iter().map(str::to_owned).collect();
        all.sort();
        all.dedup();
        all
    };
    let before = old.map(of).unwrap_or_default();
    let mut warnings = Vec::new();
    for finalizer in of(new).into_iter().filter(|f| !before.contains(f)) {
        let say = |why: &str| format!("metadata.finalizers: {finalizer:?}: {why}");
        warnings.extend(names::qualified_name(&finalizer).iter().map(|why| say(why)));
        if !finalizer.contains('/') && !matches!(finalizer.as_str(), "kubernetes" | "orphan" | "foregroundDeletion") {
            let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
            warnings.push(say(&format!("prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers")));
        }
    }
    warnings
}

fn managers(e: &mut Errors, list: &At) {
    for entry in list.items() {
        let (operation, form, name) = (entry.at("operation"), entry.at("fieldsType"), entry.at("manager"));
        if !operation.is_empty() && !matches!(operation.str(), "Apply" | "Update") {
            e.invalid(&operation, "must be `Apply` or `Update`");
        }
        if !form.is_empty() && form.str() != "FieldsV1" {
            e.invalid(&form, "must be `FieldsV1`");
        }
        e.no_longer(&name, 128);
    }
}

/// The name of a kind.
pub(super) fn kind_name(e: &mut Errors, kind: &At) {
    let faults = names::dns1035_label(&kind.str().to_lowercase());
    if !faults.is_empty() {
        e.invalid(kind, format!("may have mixed case, but should otherwise match: {}", faults.join(",")));
    }
}

/// The values of a requirement, which its operator needs or doesn't take. Whether the operator is one of those for sets.
pub(super) fn operator_values(e: &mut Errors, requirement: &At) -> bool {
    let (operator, values) = (requirement.at("operator").str(), requirement.at("values"));
    match (operator, values.len()) {
        ("In" | "NotIn", 0) => e.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
        ("Exists" | "DoesNotExist", 1..) => e.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        _ => {}
    }
    matches!(operator, "In" | "NotIn" | "Exists" | "DoesNotExist")
}

/// A LabelSelector, where there is one.
pub(super) fn label_selector(e: &mut Errors, selector: &At) {
    labels(e, &selector.at("matchLabels"));
    for expression in selector.at("matchExpressions").items() {
        let (operator, values) = (expression.at("operator"), expression.at("values"));
        if !operator_values(e, &expression) {
            e.invalid_value(&operator, operator.str(), "not a valid selector operator");
        }
        e.form(&expression.at("key"), names::qualified_name);
        values.items().for_each(|value| e.form(&value, names::label_value));
    }
}

/// What the status of a condition may be.
pub(super) const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// Conditions of the common form, each type once.
pub(super) fn conditions(e: &mut Errors, list: &At) {
    let mut types = HashSet::new();
    for condition in list.items() {
        let (kind, status, reason, message) = (condition.at("type"), condition.at("status"), condition.at("reason"), condition.at("message"));
        e.once(&kind, &mut types);
        e.form(&kind, names::qualified_name);
        if !STATUSES.contains(&status.str()) {
            e.unsupported(&status, &STATUSES);
        }
        e.at_least(&condition.at("observedGeneration"), 0, "must be greater than or equal to zero");
        e.filled(&condition.at("lastTransitionTime"));
        e.required_form(&reason, names::condition_reason);
        [(reason, 1024), (message, 32 * 1024)].into_iter().for_each(|(text, max)| e.no_longer(&text, max));
    }
}

/// The annotation of that name, where there is one.
pub(super) fn annotation<'a>(object: &At<'a>, name: &str) -> Option<&'a str> {
    object.at("metadata.annotations").value.get(name).and_then(Value::as_str)
}

/// Whether the value at the name is other than before.
pub(super) fn changed(new: &At, old: &Value, name: &str) -> bool {
    !same(new.at(name).value, At::root(old).at(name).value)
}
