//! Custom resource definitions.

use serde_json::Value;

use super::check::{At, Errors, same};
use super::webhooks::client;
use super::{meta, structural};
use crate::field::{Error, ErrorType};
use crate::names;

/// What versions may have each for itself. Where all agree, messages speak of the definition as a whole.
const PER_VERSION: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

pub(super) fn definition(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let (names, group) = (spec.at("names"), spec.at("group"));
    let wanted = format!("{}.{}", names.at("plural").str(), group.str());
    let name = object.at("metadata.name");
    if name.is_empty() {
        e.required(&name, "name or generateName is required");
    } else if name.str() != wanted {
        e.form(&name, names::dns_subdomain);
        e.invalid(&name, "must be spec.names.plural+\".\"+spec.group");
    }
    meta::labels(e, &object.at("metadata.labels"));
    meta::annotations(e, &object.at("metadata.annotations"));
    definition_spec(e, &spec, &Value::Null);
    stored_versions(e, object);
    approval(e, object);
}

/// `old` is the spec before an update.
fn definition_spec(e: &mut Errors, spec: &At, old: &Value) {
    let group = spec.at("group");
    let before = e.0.len();
    e.required_form(&group, names::dns_subdomain);
    if !e.has_since(before) && !group.str().contains('.') {
        e.invalid(&group, "should be a domain with at least one dot");
    }
    e.one_of(&spec.at("scope"), &["Cluster", "Namespaced"]);
    let versions = spec.at("versions");
    let storage: Vec<At> = versions.items().filter(|v| v.at("storage").flag()).collect();
    let agreed = agreed(&versions);
    for version in versions.items() {
        e.form(&version.at("name"), names::dns1035_label);
        deprecation(e, &version);
        if !version.at("schema.openAPIV3Schema").is_set() {
            e.required(&version.at("schema.openAPIV3Schema"), "");
        }
        if !agreed {
            version_rules(e, &version, old, &version.path, &version.below("schema.openAPIV3Schema"));
        }
    }
    e.unique(versions.items().map(|v| v.at("name")));
    if storage.len() != 1 {
        let mut shown = Value::Array(versions.items().map(|version| version.value.clone()).collect());
        for version in shown.as_array_mut().into_iter().flatten().filter(|_| agreed) {
            PER_VERSION.iter().for_each(|field| drop(crate::value::remove(version, &[field])));
        }
        e.invalid(&At { value: &shown, ..versions.clone() }, "must have exactly one version marked as storage version");
    }
    if let Some(first) = versions.items().next() {
        e.optional_form(&first.at("name").called(spec.below("version")), names::dns1035_label);
        if agreed {
            version_rules(e, &first, old, &spec.path, &spec.below("validation.openAPIV3Schema"));
        }
    }
    definition_names(e, &spec.at("names"));
    if spec.at("preserveUnknownFields").flag() {
        let instead = "set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.invalid(&spec.at("preserveUnknownFields"), format!("cannot set to true, {instead}"));
    }
    conversion(e, &spec.at("conversion"));
}

fn deprecation(e: &mut Errors, version: &At) {
    let words = version.at("deprecationWarning");
    let Some(text) = words.value.as_str() else { return };
    if !version.at("deprecated").flag() {
        return e.invalid(&words, "can only be set for deprecated versions");
    }
    if text.len() > 256 {
        e.invalid(&words, "must be <= 256 characters long");
    }
    if text.is_empty() {
        e.invalid(&words, "must not be an empty string");
    }
    if let Some((i, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        e.invalid(&words, format!("must only contain printable UTF-8 characters; non-printable character found at index {i}"));
    }
}

/// Whether all versions agree in what each may have for itself.
fn agreed(versions: &At) -> bool {
    let all: Vec<At> = versions.items().collect();
    all.iter().all(|v| PER_VERSION.iter().all(|field| same(v.at(field).value, all[0].at(field).value)))
}

fn definition_names(e: &mut Errors, names: &At) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let at = names.at(field);
        if at.is_empty() {
            e.required(&at, "");
            continue;
        }
        let lower = if field.ends_with("ind") { at.str().to_lowercase() } else { at.str().to_owned() };
        for fault in names::dns1035_label(&lower) {
            e.invalid(&at, if field.ends_with("ind") { format!("may have mixed case, but should otherwise match: {fault}") } else { fault });
        }
    }
    for list in ["shortNames", "categories"] {
        names.at(list).items().for_each(|name| e.form(&name, names::dns1035_label));
    }
    if !names.at("kind").is_empty() && names.at("kind").value == names.at("listKind").value {
        e.invalid(&names.at("listKind"), "kind and listKind may not be the same");
    }
}

/// What a version says for itself. `place` and `schema_place` are where messages put it; `old` is the spec before an update.
fn version_rules(e: &mut Errors, version: &At, old: &Value, place: &str, schema_place: &str) {
    let schema = version.at("schema.openAPIV3Schema").called(schema_place);
    let at = |field: &str| version.at(field).called(format!("{place}.{field}"));
    if schema.is_set() {
        if at("subresources").at("status").is_set() {
            structural::root_with_status(e, &schema);
        }
        if schema.at("nullable").flag() {
            e.forbidden(&schema.at("nullable"), "nullable cannot be true at the root");
        }
        let before = crate::value::items(old, &["versions"]).iter().find(|v| v["name"] == *version.at("name").value);
        let stored = before.is_some_and(|v| same(&v["schema"]["openAPIV3Schema"], schema.value));
        structural::schema(e, &schema, stored);
    }
    scale(e, &at("subresources").at("scale"));
    for column in at("additionalPrinterColumns").items() {
        e.filled(&column.at("name"));
        let (kind, format) = (column.at("type"), column.at("format"));
        match kind.str() {
            "" => e.required(&kind, "must be one of boolean,date,integer,number,string"),
            "boolean" | "date" | "integer" | "number" | "string" => {}
            _ => e.invalid(&kind, "must be one of boolean,date,integer,number,string"),
        }
        if !matches!(format.str(), "" | "byte" | "date" | "date-time" | "double" | "float" | "int32" | "int64" | "password") {
            e.invalid(&format, "must be one of byte,date,date-time,double,float,int32,int64,password");
        }
        let path = column.at("jsonPath").called(column.below("JSONPath"));
        e.filled(&path);
        simple_path(e, &path);
    }
    selectable_fields(e, &at("selectableFields"), &schema);
}

/// How many fields a version may have for selectors.
const MAX_SELECTABLE: usize = 8;

fn selectable_fields(e: &mut Errors, fields: &At, schema: &At) {
    let mut seen: Vec<&str> = Vec::new();
    for path in fields.items().map(|field| field.at("jsonPath")) {
        if path.is_empty() {
            e.required(&path, "");
            continue;
        }
        let found = match structural::field(schema, path.str()) {
            Ok(found) => found,
            Err(why) => {
                e.invalid(&path, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if path.str() == ".metadata" || path.str().starts_with(".metadata.") {
            e.invalid(&path, "must not point to fields in metadata");
        }
        if !matches!(found.at("type").str(), "string" | "boolean" | "integer") {
            e.invalid(&path, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
        }
        if seen.contains(&path.str()) {
            e.duplicate(&path);
        } else {
            seen.push(path.str());
        }
    }
    if seen.len() > MAX_SELECTABLE {
        e.push(Error::too_many(&fields.path, seen.len(), MAX_SELECTABLE));
    }
}

fn simple_path(e: &mut Errors, path: &At) {
    if !path.is_empty() && !path.str().starts_with('.') {
        e.invalid(path, "must be a simple json path starting with .");
    }
}

fn scale(e: &mut Errors, scale: &At) {
    if !scale.is_set() {
        return;
    }
    for (field, root) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let path = scale.at(field);
        if path.is_empty() {
            e.required(&path, "");
        } else if !path.str().starts_with('.') {
            simple_path(e, &path);
        } else if !path.str().starts_with(&format!("{root}.")) {
            e.invalid(&path, format!("should be a json path under {root}"));
        }
    }
    let selector = scale.at("labelSelectorPath");
    if !selector.is_empty() && !selector.str().starts_with('.') {
        simple_path(e, &selector);
    } else if !selector.is_empty() && ![".spec.", ".status."].iter().any(|root| selector.str().starts_with(root)) {
        e.invalid(&selector, "should be a json path under either .spec or .status");
    }
}

fn conversion(e: &mut Errors, conversion: &At) {
    if !conversion.is_set() {
        return;
    }
    let (hook, versions) = (conversion.at("webhook"), conversion.at("webhook.conversionReviewVersions").called(conversion.below("conversionReviewVersions")));
    match conversion.at("strategy").str() {
        "Webhook" => {
            let config = hook.at("clientConfig").called(conversion.below("webhookClientConfig"));
            if config.is_set() { client(e, &config) } else { e.required(&config, "required when strategy is set to Webhook") }
            e.filled(&versions);
        }
        _ => {
            e.one_of(&conversion.at("strategy"), &["None", "Webhook"]);
            for field in [hook.at("clientConfig").called(conversion.below("webhookClientConfig")), versions].iter().filter(|field| !matches!(field.value, Value::Null) && (field.value.is_object() || !field.is_empty())) {
                e.forbidden(field, "should not be set when strategy is not set to Webhook");
            }
        }
    }
}

fn stored_versions(e: &mut Errors, object: &At) {
    let (stored, versions) = (object.at("status.storedVersions"), object.at("spec.versions"));
    if stored.is_empty() {
        e.invalid_value(&stored, Value::Null, "must have at least one stored version");
    }
    for version in stored.items().filter(|s| !versions.items().any(|v| v.at("name").str() == s.str())) {
        let name = version.str();
        let words = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage \
             migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        e.invalid(&version, words);
    }
}

/// What keeps the schemas of a definition from being structural.
pub(super) fn non_structural(object: &At) -> Vec<Error> {
    let mut e = Errors::default();
    let preserve = object.at("spec.preserveUnknownFields");
    if preserve.flag() {
        e.invalid(&preserve, "must be false");
    }
    for schema in object.at("spec.versions").items().map(|v| v.at("schema.openAPIV3Schema")).filter(At::is_set) {
        e.0.extend(structural::violations(&schema));
    }
    e.0
}

/// What clients who write a definition are warned of.
pub(super) fn warnings(definition: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for version in crate::value::items(definition, &["spec", "versions"]) {
        structural::warnings(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn approval(e: &mut Errors, object: &At) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let group = object.at("spec.group").str();
    let protected = [".k8s.io", ".kubernetes.io"].iter().any(|suffix| group.ends_with(suffix));
    let at = object.at("metadata.annotations").key(ANNOTATION);
    if protected && at.is_empty() {
        let see = "see https://github.com/kubernetes/enhancements/pull/1111";
        e.required(&at, &format!("protected groups must have approval annotation {ANNOTATION:?}, {see}"));
    }
}

pub(super) fn definition_update(e: &mut Errors, new: &At, old: &Value) {
    let before = e.0.len();
    let spec = new.at("spec");
    if established(old) {
        e.unchanged(&spec, &old["spec"], &["scope"]);
        e.unchanged(&spec.at("names"), &old["spec"]["names"], &["kind", "plural"]);
    }
    e.unchanged(&spec, &old["spec"], &["group"]);
    if !e.has_since(before) {
        definition_spec(e, &spec, &old["spec"]);
        stored_versions(e, new);
        approval(e, new);
    }
}

fn established(old: &Value) -> bool {
    crate::value::condition(old, "Established").is_some_and(|c| c["status"] == "True")
}

pub(super) fn definition_status(e: &mut Errors, new: &At) {
    let stored = new.at("status.storedVersions");
    if stored.is_empty() {
        e.push(Error { kind: ErrorType::Invalid, ..Error::invalid(&stored.path, Value::Null, "must have at least one stored version") });
    }
}
