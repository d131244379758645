//! Custom resource definitions.

use serde_json::{Value, json};

use super::check::{At, Errors, same};
use super::webhooks::client;
use super::{custom, meta};
use crate::field::{Error, ErrorType};
use crate::jsonpath::JsonPath;
use crate::cel::Rules;
use crate::names;
use crate::schema::Schema;

/// What versions may have each for itself. Where all agree, messages speak of the definition as a whole.
const PER_VERSION: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

pub(super) fn definition(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    let (names, group) = (spec.at("names"), spec.at("group"));
    let wanted = format!("{}.{}", names.at("plural").str(), group.str());
    let name = object.at("metadata.name");
    if name.str() != wanted {
        e.invalid(&name, "must be spec.names.plural+\".\"+spec.group");
    }
    meta::labels(e, &object.at("metadata.labels"));
    meta::annotations(e, &object.at("metadata.annotations"));
    definition_spec(e, &spec);
    stored_versions(e, object);
    approval(e, object);
}

fn definition_spec(e: &mut Errors, spec: &At) {
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
        if !version.at("schema.openAPIV3Schema").is_set() {
            e.required(&version.at("schema.openAPIV3Schema"), "");
        }
        if !agreed {
            version_rules(e, &version, &version.path, &version.below("schema.openAPIV3Schema"));
        }
    }
    e.unique(versions.items().map(|v| v.at("name")));
    if storage.len() != 1 {
        e.invalid_shown(&versions, shown_versions(&versions, agreed), "must have exactly one version marked as storage version");
    }
    if let Some(first) = versions.items().next() {
        e.form(&first.at("name").called(spec.below("version")), names::dns1035_label);
        if agreed {
            version_rules(e, &first, &spec.path, &spec.below("validation.openAPIV3Schema"));
        }
    }
    definition_names(e, &spec.at("names"));
    if spec.at("preserveUnknownFields").flag() {
        let instead = "set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.invalid(&spec.at("preserveUnknownFields"), format!("cannot set to true, {instead}"));
    }
    conversion(e, &spec.at("conversion"));
}

/// Whether all versions agree in what each may have for itself.
fn agreed(versions: &At) -> bool {
    let all: Vec<At> = versions.items().collect();
    all.iter().all(|v| PER_VERSION.iter().all(|field| same(v.at(field).value, all[0].at(field).value)))
}

fn shown_versions(versions: &At, agreed: bool) -> String {
    let schema = Schema::builtin("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion").unwrap_or(Schema::any());
    let shown = versions.items().map(|version| {
        let mut copy = version.value.clone();
        for field in PER_VERSION.iter().filter(|_| agreed) {
            crate::value::remove(&mut copy, &[field]);
        }
        schema.shown_go(&copy)
    });
    format!("[{}]", shown.collect::<Vec<_>>().join(","))
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

/// What a version says for itself. `place` and `schema_place` are where messages put it.
fn version_rules(e: &mut Errors, version: &At, place: &str, schema_place: &str) {
    let schema = version.at("schema.openAPIV3Schema").called(schema_place);
    let at = |field: &str| version.at(field).called(format!("{place}.{field}"));
    if schema.is_set() {
        if schema.at("type").is_empty() {
            e.required(&schema.at("type"), "must not be empty at the root");
        } else if schema.at("type").str() != "object" {
            e.invalid(&schema.at("type"), "must be object at the root");
        }
        schema_rules(e, &schema, 0);
        e.0.extend(Rules::compile(schema.value, &schema.path).1);
    }
    for column in at("additionalPrinterColumns").items() {
        e.filled(&column.at("name"));
        let kind = column.at("type");
        match kind.str() {
            "" => e.required(&kind, "must be one of boolean,date,integer,number,string"),
            "boolean" | "date" | "integer" | "number" | "string" => {}
            _ => e.invalid(&kind, "must be one of boolean,date,integer,number,string"),
        }
        let path = column.at("jsonPath").called(column.below("JSONPath"));
        e.filled(&path);
        simple_path(e, &path);
    }
    scale(e, &at("subresources").at("scale"));
    for field in at("selectableFields").items() {
        let path = field.at("jsonPath");
        e.filled(&path);
        if !path.is_empty() && !refers(&schema, path.str()) {
            e.invalid(&path, "is an invalid path: does not refer to a valid field");
        }
    }
}

fn simple_path(e: &mut Errors, path: &At) {
    if !path.is_empty() && (!path.str().starts_with('.') || JsonPath::parse(path.str()).is_err()) {
        e.invalid(path, "must be a simple json path starting with .");
    }
}

/// Whether the schema has what the path names.
fn refers(schema: &At, path: &str) -> bool {
    let mut here = schema.clone();
    for name in path.trim_start_matches('.').split('.') {
        here = At { value: here.at("properties").value.get(name).unwrap_or(&Value::Null), path: String::new() };
    }
    here.is_set()
}

fn scale(e: &mut Errors, scale: &At) {
    if !scale.is_set() {
        return;
    }
    for (field, root) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let path = scale.at(field);
        if path.is_empty() {
            e.required(&path, "");
        } else if !path.str().starts_with(&format!("{root}.")) {
            e.invalid(&path, format!("should be a json path under {root}"));
        }
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
        "None" if hook.is_set() => e.forbidden(&hook.called(conversion.below("webhookClientConfig")), "should not be set when strategy is not set to Webhook"),
        _ => e.one_of(&conversion.at("strategy"), &["None", "Webhook"]),
    }
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// The rules of a structural schema.
fn schema_rules(e: &mut Errors, schema: &At, depth: usize) {
    if depth > 100 {
        return e.forbidden(schema, "the schema nests too deeply");
    }
    let kind = schema.at("type");
    if !kind.is_empty() {
        e.maybe_one_of(&kind, &TYPES);
    }
    if kind.str() == "array" && !schema.at("items").is_set() {
        e.required(&schema.at("items"), "must be specified");
    }
    let pattern = schema.at("pattern");
    if pattern.is_set() && regex::Regex::new(pattern.str()).is_err() {
        let fault = go_regex_fault(pattern.str());
        e.invalid(&pattern, format!("must be a valid regular expression, but isn't: error parsing regexp: {fault}"));
    }
    if let Some(default) = schema.value.get("default") {
        default_fits(e, schema, default);
    }
    if schema.at("uniqueItems").flag() {
        e.forbidden(&schema.at("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    let untyped = |at: &At| {
        at.at("type").is_empty() && !at.at("x-kubernetes-int-or-string").flag() && !at.at("x-kubernetes-preserve-unknown-fields").flag()
    };
    for (_, property) in schema.at("properties").entries() {
        if untyped(&property) {
            e.required(&property.at("type"), "must not be empty for specified object fields");
        }
        schema_rules(e, &property, depth + 1);
    }
    let (items, values) = (schema.at("items"), schema.at("additionalProperties"));
    if items.value.is_object() {
        if untyped(&items) {
            e.required(&items.at("type"), "must not be empty for specified array items");
        }
        schema_rules(e, &items, depth + 1);
    }
    if values.value.is_object() {
        if untyped(&values) {
            e.required(&values.at("type"), "must not be empty for specified object fields");
        }
        if !schema.at("properties").is_empty() {
            e.forbidden(&values, "additionalProperties and properties are mutual exclusive");
        }
        schema_rules(e, &values, depth + 1);
    }
}

/// What Go says of an expression that can't be read; of the many faults only the common ones.
fn go_regex_fault(pattern: &str) -> String {
    let (open, close) = (pattern.matches('(').count(), pattern.matches(')').count());
    match open.cmp(&close) {
        std::cmp::Ordering::Greater => format!("missing closing ): `{pattern}`"),
        std::cmp::Ordering::Less => format!("unexpected ): `{pattern}`"),
        std::cmp::Ordering::Equal => format!("invalid syntax: `{pattern}`"),
    }
}

fn default_fits(e: &mut Errors, schema: &At, default: &Value) {
    let Ok(parsed) = Schema::from_crd(&json!({"type": "object", "properties": {"value": schema.value}})) else { return };
    let Some(property) = parsed.property("value") else { return };
    for error in custom::value_errors(&property.schema, default) {
        e.push(Error { path: schema.below("default"), ..error });
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
    meta::meta_update(e, new, old);
    let before = e.0.len();
    let spec = new.at("spec");
    if established(old) {
        e.unchanged(&spec, &old["spec"], &["scope"]);
        e.unchanged(&spec.at("names"), &old["spec"]["names"], &["kind", "plural"]);
    }
    e.unchanged(&spec, &old["spec"], &["group"]);
    if !e.has_since(before) {
        definition_spec(e, &spec);
        stored_versions(e, new);
        approval(e, new);
    }
}

fn established(old: &Value) -> bool {
    crate::value::condition(old, "Established").is_some_and(|c| c["status"] == "True")
}

pub(super) fn definition_status(e: &mut Errors, new: &At, old: &Value) {
    meta::meta_update(e, new, old);
    let stored = new.at("status.storedVersions");
    if stored.is_empty() {
        e.push(Error { kind: ErrorType::Invalid, ..Error::invalid(&stored.path, Value::Null, "must have at least one stored version") });
    }
}
