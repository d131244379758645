//! Custom resources: what a definition adds to the catalogue, as data like every built-in resource.

mod order;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cel::Rules;
use crate::defaults;
use crate::print::custom_columns;
use crate::resource::{Resource, ResourceSchema, SelectableField, Subresource, Text, Verbs};
use crate::schema::Schema;
use crate::value::{at, items, text};

pub use order::compare_versions;

/// What a custom resource has beyond what every resource has.
#[derive(Debug)]
pub struct Custom {
    /// The structural schema of this version.
    pub schema: Arc<Schema>,
    /// The same as the definition has it: value rules are checked and OpenAPI is published by it.
    pub source: Value,
    /// The structural schemas of all versions, served or not: objects may be stored in any of them.
    pub versions: Arc<BTreeMap<String, Arc<Schema>>>,
    /// The kind of lists.
    pub list_kind: String,
    /// Where replicas are counted, for a resource that can be scaled.
    pub scale: Option<Scale>,
    /// What clients of a deprecated version are told.
    pub warning: Option<String>,
    /// Whether the definition is on its way out: no object may be created any more.
    pub terminating: bool,
    /// The definition's `spec.conversion.webhook`, where versions are converted by one.
    pub webhook: Option<Arc<Value>>,
    /// Made when it is first asked for.
    digest: OnceLock<String>,
    /// `x-kubernetes-validations`, compiled when they are first asked for.
    rules: OnceLock<Rules>,
}

/// Where a scalable object keeps its counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// The wanted replicas: `["spec", "replicas"]`.
    pub spec: Vec<String>,
    /// The present replicas.
    pub status: Vec<String>,
    /// The selector of the replicas, as text.
    pub selector: Option<Vec<String>>,
}

impl Custom {
    /// What tells this schema from others.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| STANDARD.encode(Sha256::digest(self.source.to_string())))
    }

    /// The rules of this version's schema.
    pub fn rules(&self) -> &Rules {
        self.rules.get_or_init(|| Rules::compile(&self.source))
    }

    /// Makes of a stored object what Go's decoder makes of it: what the schema of its version doesn't know goes, defaults
    /// come. An object in a version that the definition doesn't name stays as it is.
    pub fn tidy(&self, object: &mut Value) {
        let version = text(object, &["apiVersion"]).rsplit('/').next().unwrap_or("");
        let Some(schema) = self.versions.get(version) else { return };
        // Metadata of a wrong type can't be stored through this server; others' is shown as it is.
        if schema.prune(object).is_ok() {
            defaults::apply_schema(schema, object);
        }
    }

    /// Takes out of an object what the schema of its version doesn't know: the last step of a conversion.
    pub fn prune(&self, object: &mut Value) {
        let version = text(object, &["apiVersion"]).rsplit('/').next().unwrap_or("");
        if let Some(schema) = self.versions.get(version) {
            let _ = schema.prune(object);
        }
    }
}

/// A simple path, `.spec.replicas`, as its steps.
fn steps(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

/// The resources that a definition makes: one a served version, in the order of discovery. The names are those that were
/// accepted, as `accepted` has them.
pub fn resources(definition: &Value, accepted: &Value, terminating: bool) -> Vec<Resource> {
    let spec = at(definition, &["spec"]);
    let versions = items(spec, &["versions"]);
    let schemas: BTreeMap<String, Arc<Schema>> =
        versions.iter().map(|v| (text(v, &["name"]).to_owned(), Arc::new(schema_of(v)))).collect();
    let schemas = Arc::new(schemas);
    let stored = versions.iter().find(|v| v["storage"] == true).map_or("", |v| text(v, &["name"]));
    let mut served: Vec<&Value> = versions.iter().filter(|v| v["served"] == true).collect();
    served.sort_by(|a, b| compare_versions(text(a, &["name"]), text(b, &["name"])));
    served.iter().filter_map(|version| resource(spec, accepted, version, &served, stored, &schemas, terminating)).collect()
}

fn schema_of(version: &Value) -> Schema {
    let source = at(version, &["schema", "openAPIV3Schema"]);
    // The definition's validation has refused what can't be read; what was stored all the same is taken as it comes.
    Schema::from_crd(source).unwrap_or_else(|_| Schema::any().clone())
}

fn resource(
    spec: &Value,
    accepted: &Value,
    version: &Value,
    served: &[&Value],
    stored: &str,
    schemas: &Arc<BTreeMap<String, Arc<Schema>>>,
    terminating: bool,
) -> Option<Resource> {
    let owned = |text: &str| Text::Owned(text.to_owned());
    let list = |name: &str| items(accepted, &[name]).iter().filter_map(Value::as_str).map(owned).collect();
    let (group, name) = (text(spec, &["group"]), text(version, &["name"]));
    let (plural, kind) = (text(accepted, &["plural"]), text(accepted, &["kind"]));
    let paths = at(version, &["subresources", "scale"]);
    let scale = paths.is_object().then(|| Scale {
        spec: steps(text(paths, &["specReplicasPath"])),
        status: steps(text(paths, &["statusReplicasPath"])),
        selector: Some(text(paths, &["labelSelectorPath"])).filter(|p| !p.is_empty()).map(steps),
    });
    let subresource = |name: &'static str, group: &str, version: &str, kind: &str| Subresource {
        name: name.into(),
        group: owned(group),
        version: owned(version),
        kind: owned(kind),
        verbs: Verbs::parse("get,patch,update"),
    };
    let mut subresources = Vec::new();
    if scale.is_some() {
        subresources.push(subresource("scale", "autoscaling", "v1", "Scale"));
    }
    if at(version, &["subresources", "status"]).is_object() {
        subresources.push(subresource("status", group, name, kind));
    }
    let selectable = items(version, &["selectableFields"]).iter().map(|field| {
        let path = text(field, &["jsonPath"]).trim_start_matches('.');
        SelectableField { label: owned(path), path: path.split('.').map(owned).collect(), absent: "".into() }
    });
    Some(Resource {
        group: owned(group),
        version: owned(name),
        kind: owned(kind),
        plural: owned(plural),
        singular: owned(text(accepted, &["singular"])),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: text(spec, &["scope"]) == "Namespaced",
        verbs: Verbs::ALL,
        subresources,
        stored_as: format!("{group}/{stored}").into(),
        storage_prefix: format!("/registry/{group}/{plural}/").into(),
        storage_version_hash: version_hash(group, stored, kind).into(),
        selectable_fields: selectable.collect(),
        selector_error: "field label not supported: <label>".into(),
        columns: custom_columns(version).into(),
        schema: ResourceSchema::Custom(Arc::new(Custom {
            schema: Arc::clone(schemas.get(name)?),
            source: at(version, &["schema", "openAPIV3Schema"]).clone(),
            versions: Arc::clone(schemas),
            list_kind: text(accepted, &["listKind"]).to_owned(),
            scale,
            warning: (version["deprecated"] == true).then(|| deprecation(group, kind, version, served)),
            terminating,
            webhook: Some(at(spec, &["conversion"])).filter(|c| c["strategy"] == "Webhook").map(|c| Arc::new(c["webhook"].clone())),
            digest: OnceLock::new(),
            rules: OnceLock::new(),
        })),
    })
}

/// The hash that discovery shows of the storage version.
fn version_hash(group: &str, version: &str, kind: &str) -> String {
    let hash = Sha256::digest(format!("{group}/{version}/{kind}"));
    STANDARD.encode(&hash[..8])
}

/// What is said of a deprecated version: the definition's words, or upstream's, which name the next better version.
fn deprecation(group: &str, kind: &str, version: &Value, served: &[&Value]) -> String {
    if let Some(words) = version["deprecationWarning"].as_str() {
        return words.to_owned();
    }
    let name = text(version, &["name"]);
    let better = served.iter().take_while(|v| text(v, &["name"]) != name).find(|v| v["deprecated"] != true);
    let instead = better.map(|v| format!("; use {group}/{} {kind}", text(v, &["name"]))).unwrap_or_default();
    format!("{group}/{name} {kind} is deprecated{instead}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_makes_a_resource_of_each_served_version() {
        let spec = |size: &str| json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
            size: {"type": "integer", "default": 1}}}}}});
        let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["f"], "categories": ["all"]});
        let definition = json!({"spec": {"group": "x.io", "scope": "Namespaced", "names": names, "versions": [
            {"name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": spec("old")},
            {"name": "v1", "served": true, "storage": true, "schema": spec("size"), "selectableFields": [{"jsonPath": ".spec.size"}],
             "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.n"}}},
            {"name": "v0", "served": false, "storage": false, "schema": spec("older")},
        ]}});
        let made = resources(&definition, &names, false);
        assert_eq!(made.iter().map(|r| r.version.as_ref()).collect::<Vec<_>>(), ["v1", "v1beta1"]);
        let (new, old) = (&made[0], &made[1]);
        assert_eq!((new.storage_prefix.as_ref(), old.stored_as.as_ref()), ("/registry/x.io/foos/", "x.io/v1"));
        assert_eq!(new.subresources.iter().map(|s| s.name.as_ref()).collect::<Vec<_>>(), ["scale", "status"]);
        assert_eq!(new.custom().and_then(|c| c.scale.clone()).map(|s| s.spec), Some(vec!["spec".into(), "size".into()]));
        assert_eq!(new.selectable_fields[0].value(&json!({"spec": {"size": 3}})), "3");
        assert_eq!(old.custom().and_then(|c| c.warning.as_deref()), Some("x.io/v1beta1 Foo is deprecated; use x.io/v1 Foo"));
        let custom = new.custom().expect("custom");
        let mut object = json!({"apiVersion": "x.io/v0", "kind": "Foo", "metadata": {"name": "a"}, "spec": {"older": 2, "size": 5}});
        custom.tidy(&mut object);
        assert_eq!(object["spec"], json!({"older": 2}));
        let mut object = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": {}});
        custom.tidy(&mut object);
        assert_eq!(object["spec"], json!({"size": 1}));
    }
}
