//! Paths and operations, written from the catalogue.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_api::resource::{Resource, ResourceSchema, Subresource};

use super::{Dialect, Used, definition_name, list_name};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];

/// The paths of the resources, and the definitions that they refer to.
pub(super) fn of(resources: &[&Arc<Resource>], dialect: Dialect) -> (Map<String, Value>, Used) {
    let mut writer = Writer { dialect, paths: Map::new(), used: Used::new() };
    for resource in resources {
        writer.resource(resource);
    }
    (writer.paths, writer.used)
}

/// One operation, before it is written.
struct Operation<'a> {
    resource: &'a Resource,
    method: &'static str,
    /// `x-kubernetes-action`, and what the operation's id begins with.
    action: &'static str,
    id: String,
    /// The group, version and kind that it is about.
    kind: (&'a str, &'a str, &'a str),
    /// The definition of the body; none for no body.
    body: Option<String>,
    /// The definition of the answer.
    answer: String,
    /// Query parameters: name and type.
    query: &'static [(&'static str, &'static str)],
}

const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE: &[(&str, &str)] =
    &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("orphanDependents", "boolean"), ("propagationPolicy", "string")];

/// What the query parameters mean.
const DESCRIBED: [(&str, &str); 17] = [
    ("allowWatchBookmarks", "Whether a watch may have events of type BOOKMARK, which only tell how far it has come."),
    ("continue", "The token of the page before: the list goes on where that ended."),
    ("dryRun", "With All nothing is kept: the answer is what would have been."),
    ("fieldManager", "The name under which the changed fields are owned."),
    ("fieldSelector", "Narrows the list of returned objects by their fields. Defaults to everything."),
    ("fieldValidation", "What becomes of unknown and repeated fields: Ignore, Warn (the default) or Strict."),
    ("force", "Whether an apply takes over fields that others own. Only for apply patches."),
    ("gracePeriodSeconds", "How many seconds the object has before it is deleted; zero means at once."),
    ("labelSelector", "Narrows the list of returned objects by their labels. Defaults to everything."),
    ("limit", "The most objects that a list has; the rest follows by its continue token."),
    ("orphanDependents", "Deprecated: propagationPolicy says it. Whether dependents stay."),
    ("propagationPolicy", "What becomes of dependents: Orphan, Background or Foreground."),
    ("resourceVersion", "Which version of the data is asked for; how exactly, resourceVersionMatch says."),
    ("resourceVersionMatch", "How resourceVersion is meant: Exact or NotOlderThan."),
    ("sendInitialEvents", "Whether a watch begins with what there is, and a bookmark after it."),
    ("timeoutSeconds", "How long the list or watch may take."),
    ("watch", "Watch for changes to the described resources, as a stream of events, in place of a list."),
];

struct Writer {
    dialect: Dialect,
    paths: Map<String, Value>,
    used: Used,
}

/// `rbac.authorization.k8s.io` and `v1` as `RbacAuthorizationV1`.
fn group_words(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core" } else { resource.group.trim_end_matches(".k8s.io") };
    group.split('.').chain([resource.version.as_ref()]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

impl Writer {
    fn resource(&mut self, resource: &Resource) {
        let base = if resource.group.is_empty() { format!("/api/{}", resource.version) } else { format!("/apis/{}", resource.api_version()) };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{base}{scope}/{}", resource.plural);
        let object = format!("{collection}/{{name}}");
        let definition = definition_name(resource);
        let words = group_words(resource);
        let space = if resource.namespaced { "Namespaced" } else { "" };
        let kind = resource.kind.as_ref();
        let gvk = (resource.group.as_ref(), resource.version.as_ref(), kind);
        let operation = |method, action, id: String, body: Option<String>, answer: String, query| Operation { resource, method, action, id, kind: gvk, body, answer, query };
        let (list, status, options) = (list_name(resource), format!("{META}.Status"), format!("{META}.DeleteOptions"));
        if resource.verbs.has("list") {
            self.add(&collection, operation("get", "list", format!("list{words}{space}{kind}"), None, list.clone(), LIST));
            if resource.namespaced {
                let all = format!("{base}/{}", resource.plural);
                self.add(&all, operation("get", "list", format!("list{words}{kind}ForAllNamespaces"), None, list, LIST));
            }
        }
        if resource.verbs.has("create") {
            self.add(&collection, operation("post", "post", format!("create{words}{space}{kind}"), Some(definition.clone()), definition.clone(), WRITE));
        }
        if resource.verbs.has("deletecollection") {
            let id = format!("delete{words}Collection{space}{kind}");
            self.add(&collection, operation("delete", "deletecollection", id, Some(options.clone()), status.clone(), LIST));
        }
        if resource.verbs.has("get") {
            self.add(&object, operation("get", "get", format!("read{words}{space}{kind}"), None, definition.clone(), &[]));
        }
        if resource.verbs.has("update") {
            self.add(&object, operation("put", "put", format!("replace{words}{space}{kind}"), Some(definition.clone()), definition.clone(), WRITE));
        }
        if resource.verbs.has("patch") {
            self.add(&object, operation("patch", "patch", format!("patch{words}{space}{kind}"), Some(format!("{META}.Patch")), definition.clone(), PATCH));
        }
        if resource.verbs.has("delete") {
            self.add(&object, operation("delete", "delete", format!("delete{words}{space}{kind}"), Some(options), status, DELETE));
        }
        for sub in &resource.subresources {
            self.subresource(resource, sub, &object, &definition, &format!("{words}{space}{kind}{}", capital(&sub.name)));
        }
    }

    fn subresource(&mut self, resource: &Resource, sub: &Subresource, object: &str, definition: &str, words: &str) {
        let path = format!("{object}/{}", sub.name);
        let own = sub.kind == resource.kind;
        let body = if own { definition.to_owned() } else { foreign_definition(sub) };
        for (verb, method, start) in [("get", "get", "read"), ("create", "post", "create"), ("update", "put", "replace"), ("patch", "patch", "patch")] {
            if !sub.verbs.has(verb) {
                continue;
            }
            let (given, query) = match verb {
                "get" => (None, &[][..]),
                "patch" => (Some(format!("{META}.Patch")), PATCH),
                _ => (Some(body.clone()), WRITE),
            };
            let operation = Operation {
                resource,
                method,
                action: method,
                id: format!("{start}{words}"),
                kind: (&sub.group, &sub.version, &sub.kind),
                body: given,
                answer: body.clone(),
                query,
            };
            self.add(&path, operation);
        }
    }

    fn schema(&mut self, definition: &str) -> Value {
        // Options of connections have no definition of their own: they are all in the query.
        if definition.is_empty() {
            return json!({"type": "string"});
        }
        if !definition.ends_with("List") {
            self.used.insert(definition.to_owned());
        }
        json!({"$ref": self.dialect.reference(definition)})
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "uniqueItems": true});
        if place == "path" {
            parameter["required"] = true.into();
            parameter["description"] = match name {
                "name" => "name of the object",
                _ => "object name and auth scope, such as for teams and projects",
            }
            .into();
        }
        if let Some((_, words)) = DESCRIBED.iter().find(|(known, _)| *known == name).filter(|_| place == "query") {
            parameter["description"] = (*words).into();
        }
        match self.dialect {
            Dialect::V2 => parameter["type"] = kind.into(),
            Dialect::V3 => {
                if let Some(map) = parameter.as_object_mut() {
                    map.remove("uniqueItems");
                }
                parameter["schema"] = json!({"type": kind, "uniqueItems": true});
            }
        }
        parameter
    }

    fn add(&mut self, path: &str, operation: Operation<'_>) {
        let resource = operation.resource;
        let (group, version, kind) = operation.kind;
        let tag = if resource.group.is_empty() { "core".to_owned() } else { camel(&resource.group) };
        let mut written = json!({
            "tags": [format!("{tag}_{}", resource.version)], "operationId": operation.id,
            "description": format!("{} {}", operation.action, kind),
            "x-kubernetes-action": operation.action, "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut parameters: Vec<Value> = operation.query.iter().map(|(name, kind)| self.parameter(name, "query", kind)).collect();
        let custom = matches!(resource.schema, ResourceSchema::Custom(_));
        let patches: Vec<&str> = PATCHES.into_iter().filter(|p| !custom || !p.contains("strategic")).collect();
        let media: Vec<&str> = if operation.method == "patch" { patches } else { MEDIA[..2].to_vec() };
        let answer = self.schema(&operation.answer);
        let codes: &[(&str, &str)] = match operation.action {
            "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "put" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let spoken: Vec<&str> = match operation.action {
            "list" => MEDIA.into_iter().chain(STREAMS).collect(),
            _ => MEDIA.to_vec(),
        };
        // Custom resources have no messages.
        let spoken: Vec<&str> = spoken.into_iter().filter(|media| !custom || !media.contains("protobuf")).collect();
        let answers = |answer: &dyn Fn(&str) -> Value| -> Value {
            let unauthorized = ("401".to_owned(), json!({"description": "Unauthorized"}));
            codes.iter().map(|(code, words)| ((*code).to_owned(), answer(words))).chain([unauthorized]).collect::<Map<_, _>>().into()
        };
        let body = operation.body.as_deref().map(|definition| self.schema(definition));
        match self.dialect {
            Dialect::V2 => {
                if let Some(body) = body {
                    parameters.push(json!({"name": "body", "in": "body", "required": operation.method != "delete", "schema": body}));
                }
                written["consumes"] = if operation.method == "get" { json!(["*/*"]) } else { json!(media) };
                written["produces"] = json!(spoken);
                written["schemes"] = json!(["https"]);
                written["responses"] = answers(&|words| json!({"description": words, "schema": answer}));
            }
            Dialect::V3 => {
                let content = |media: &[&str], schema: &Value| -> Value {
                    media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
                };
                if let Some(body) = body {
                    written["requestBody"] = json!({"content": content(&media, &body)});
                }
                written["responses"] = answers(&|words| json!({"description": words, "content": content(&spoken, &answer)}));
            }
        }
        if !parameters.is_empty() {
            written["parameters"] = parameters.into();
        }
        let in_path: Vec<Value> =
            ["name", "namespace"].iter().filter(|p| path.contains(&format!("{{{p}}}"))).map(|p| self.parameter(p, "path", "string")).collect();
        let entry = self.paths.entry(path).or_insert_with(|| json!({}));
        entry[operation.method] = written;
        let mut shared = in_path;
        shared.push(match self.dialect {
            Dialect::V2 => json!({"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}),
            Dialect::V3 => json!({"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": true}}),
        });
        entry["parameters"] = shared.into();
    }
}

/// `rbac.authorization.k8s.io` as `rbacAuthorization`.
fn camel(group: &str) -> String {
    let words: String = group.trim_end_matches(".k8s.io").split('.').map(capital).collect();
    let mut chars = words.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

/// The definition of a subresource's own kind; empty for options that travel in the query.
fn foreign_definition(sub: &Subresource) -> String {
    if sub.kind.ends_with("Options") {
        return String::new();
    }
    let group = if sub.group.is_empty() { "core" } else { sub.group.split('.').next().unwrap_or("") };
    format!("io.k8s.api.{group}.{}.{}", sub.version, sub.kind)
}
