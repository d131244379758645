//! Paths and operations, written from the catalogue.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_api::resource::{Resource, ResourceSchema, Subresource};

use super::{Dialect, Used, definition_name, list_name};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA: [&str; 5] = [
    "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const CUSTOM_MEDIA: [&str; 2] = ["application/json", "application/yaml"];
const PATCHES: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];

/// The paths of the resources, and the definitions that they refer to.
pub(super) fn of(resources: &[&Arc<Resource>], dialect: Dialect) -> (Map<String, Value>, Used) {
    let mut writer = Writer { dialect, paths: Map::new(), used: Used::new() };
    for resource in resources {
        writer.resource(resource);
    }
    writer.share();
    (writer.paths, writer.used)
}

/// One operation, before it is written.
struct Operation<'a> {
    resource: &'a Resource,
    method: &'static str,
    /// `x-kubernetes-action`, and what the operation's id begins with.
    action: &'static str,
    id: String,
    /// What it does, in a sentence.
    description: String,
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
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const DELETE_ALL: &[(&str, &str)] = &[
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];

/// The subresources that stream, and what they are asked.
const CONNECTS: [(&str, &[(&str, &str)]); 5] = [
    ("attach", &[("container", "string"), ("stderr", "boolean"), ("stdin", "boolean"), ("stdout", "boolean"), ("tty", "boolean")]),
    ("exec", &[("command", "string"), ("container", "string"), ("stderr", "boolean"), ("stdin", "boolean"), ("stdout", "boolean"), ("tty", "boolean")]),
    ("log", &[
        ("container", "string"), ("follow", "boolean"), ("insecureSkipTLSVerifyBackend", "boolean"), ("limitBytes", "integer"),
        ("previous", "boolean"), ("sinceSeconds", "integer"), ("stream", "string"), ("tailLines", "integer"), ("timestamps", "boolean"),
    ]),
    ("portforward", &[("ports", "integer")]),
    ("proxy", &[("path", "string")]),
];

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
        let operation = |method, action, id: String, description: String, body: Option<String>, answer: String, query| {
            Operation { resource, method, action, id, description, kind: gvk, body, answer, query }
        };
        let (list, status, options) = (list_name(resource), format!("{META}.Status"), format!("{META}.DeleteOptions"));
        let own = Some(definition.clone());
        let about = |what: &str| format!("{what} the specified {kind}");
        if resource.verbs.has("list") {
            let description = format!("list {}objects of kind {kind}", if resource.verbs.has("watch") { "or watch " } else { "" });
            self.add(&collection, operation("get", "list", format!("list{words}{space}{kind}"), description.clone(), None, list.clone(), LIST));
            if resource.namespaced {
                let all = format!("{base}/{}", resource.plural);
                self.add(&all, operation("get", "list", format!("list{words}{kind}ForAllNamespaces"), description, None, list, LIST));
            }
        }
        if resource.verbs.has("watch") && resource.custom().is_none() {
            let event = format!("{META}.WatchEvent");
            let old = "deprecated: use the 'watch' parameter with a list operation instead";
            let one = format!("watch changes to an object of kind {kind}. {old}, filtered to a single item with the 'fieldSelector' parameter.");
            let many = format!("watch individual changes to a list of {kind}. {old}.");
            let watch = |action, id: String, description: &str| operation("get", action, id, description.to_owned(), None, event.clone(), LIST);
            self.add(&format!("{base}/watch{scope}/{}/{{name}}", resource.plural), watch("watch", format!("watch{words}{space}{kind}"), &one));
            self.add(&format!("{base}/watch{scope}/{}", resource.plural), watch("watchlist", format!("watch{words}{space}{kind}List"), &many));
            if resource.namespaced {
                let id = format!("watch{words}{kind}ListForAllNamespaces");
                self.add(&format!("{base}/watch/{}", resource.plural), watch("watchlist", id, &many));
            }
        }
        let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" };
        if resource.verbs.has("create") {
            let id = format!("create{words}{space}{kind}");
            self.add(&collection, operation("post", "post", id, format!("create {article} {kind}"), own.clone(), definition.clone(), WRITE));
        }
        if resource.verbs.has("deletecollection") {
            let (id, description) = (format!("delete{words}Collection{space}{kind}"), format!("delete collection of {kind}"));
            self.add(&collection, operation("delete", "deletecollection", id, description, Some(options.clone()), status.clone(), DELETE_ALL));
        }
        if resource.verbs.has("get") {
            self.add(&object, operation("get", "get", format!("read{words}{space}{kind}"), about("read"), None, definition.clone(), &[]));
        }
        if resource.verbs.has("update") {
            self.add(&object, operation("put", "put", format!("replace{words}{space}{kind}"), about("replace"), own, definition.clone(), WRITE));
        }
        if resource.verbs.has("patch") {
            let id = format!("patch{words}{space}{kind}");
            self.add(&object, operation("patch", "patch", id, about("partially update"), Some(format!("{META}.Patch")), definition.clone(), PATCH));
        }
        if resource.verbs.has("delete") {
            let id = format!("delete{words}{space}{kind}");
            let answer = if shows_deleted(resource) { definition.clone() } else { status };
            self.add(&object, operation("delete", "delete", id, format!("delete {article} {kind}"), Some(options), answer, DELETE));
        }
        for sub in &resource.subresources {
            self.subresource(resource, sub, &object, &definition, &format!("{words}{space}{kind}{}", capital(&sub.name)));
        }
    }

    fn subresource(&mut self, resource: &Resource, sub: &Subresource, object: &str, definition: &str, words: &str) {
        let path = format!("{object}/{}", sub.name);
        let own = sub.kind == resource.kind;
        let body = if own { definition.to_owned() } else { foreign_definition(sub) };
        let query = CONNECTS.iter().find(|(name, _)| *name == sub.name).map(|(_, query)| *query);
        let connects = query.is_some() && sub.name != "log";
        let methods = [("get", "get", "read"), ("update", "put", "replace"), ("create", "post", "create"), ("delete", "delete", ""), ("patch", "patch", "patch")];
        for (verb, method, start) in methods.into_iter().filter(|(verb, ..)| sub.verbs.has(verb)) {
            let (what, kind) = (&sub.name, &resource.kind);
            let description = match verb {
                _ if connects => format!("connect {} requests to {what} of {kind}", method.to_uppercase()),
                "get" => format!("read {what} of the specified {kind}"),
                "update" => format!("replace {what} of the specified {kind}"),
                "create" => format!("create {what} of a {kind}"),
                _ => format!("partially update {what} of the specified {kind}"),
            };
            let given = match verb {
                "get" => None,
                _ if connects => None,
                "patch" => Some(format!("{META}.Patch")),
                _ => Some(body.clone()),
            };
            let asked = match (query, verb) {
                (Some(query), _) => query,
                (None, "get") => &[],
                (None, "patch") => PATCH,
                _ => WRITE,
            };
            let id = if connects { format!("connect{}", words.replacen(&group_words(resource), &(group_words(resource) + &capital(method)), 1)) } else { format!("{start}{words}") };
            let log = (resource.group.as_ref(), resource.version.as_ref(), resource.kind.as_ref());
            let operation = |id: String| Operation {
                resource,
                method,
                action: if connects { "connect" } else { method },
                id,
                description: description.clone(),
                kind: if sub.name == "log" { log } else { (&sub.group, &sub.version, &sub.kind) },
                body: given.clone(),
                answer: body.clone(),
                query: asked,
            };
            self.add(&path, operation(id.clone()));
            if sub.name == "proxy" {
                self.add(&format!("{path}/{{path}}"), operation(format!("{id}WithPath")));
            }
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

    fn parameter(&self, name: &str, place: &str, kind: &str, about: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "uniqueItems": true});
        if place == "path" {
            parameter["required"] = true.into();
            parameter["description"] = match name {
                "name" => format!("name of the {about}"),
                "path" => "path to the resource".to_owned(),
                _ => "object name and auth scope, such as for teams and projects".to_owned(),
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
            "tags": [format!("{tag}_{}", resource.version)], "operationId": operation.id, "description": operation.description,
            "x-kubernetes-action": operation.action, "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut parameters: Vec<Value> = operation.query.iter().map(|(name, kind)| self.parameter(name, "query", kind, "")).collect();
        let custom = matches!(resource.schema, ResourceSchema::Custom(_));
        let streams = matches!(operation.action, "list" | "watch" | "watchlist");
        let produced = match operation.action {
            "connect" => vec!["*/*"],
            _ if custom => CUSTOM_MEDIA.to_vec(),
            "get" if operation.answer.is_empty() => [&["text/plain"], &MEDIA[..3]].concat(),
            _ => MEDIA[..if streams { 5 } else { 3 }].to_vec(),
        };
        let consumed = match operation.method {
            "patch" if operation.body.is_some() => PATCHES.into_iter().filter(|p| !custom || !p.contains("strategic")).collect(),
            "get" => vec!["*/*"],
            _ if custom => CUSTOM_MEDIA.to_vec(),
            _ => vec!["*/*"],
        };
        let codes: &[(&str, &str)] = match (operation.action, operation.method) {
            ("post", _) => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            ("put" | "patch", _) => &[("200", "OK"), ("201", "Created")],
            ("delete", _) => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let answer = self.schema(&operation.answer);
        let body = operation.body.as_deref().map(|definition| self.schema(definition));
        let needed = operation.method != "delete";
        match self.dialect {
            Dialect::V2 => {
                if let Some(schema) = body {
                    let mut body = json!({"name": "body", "in": "body", "schema": schema});
                    if needed {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                written["consumes"] = json!(consumed);
                written["produces"] = json!(produced);
                written["schemes"] = json!(["https"]);
                written["responses"] = codes.iter().map(|(code, said)| ((*code).to_owned(), json!({"description": said, "schema": answer}))).collect();
            }
            Dialect::V3 => {
                let content = |media: &[&str], schema: &Value| -> Value {
                    media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
                };
                if let Some(body) = body {
                    written["requestBody"] = json!({"content": content(&consumed, &body)});
                    if needed {
                        written["requestBody"]["required"] = true.into();
                    }
                }
                written["responses"] =
                    codes.iter().map(|(code, said)| ((*code).to_owned(), json!({"description": said, "content": content(&produced, &answer)}))).collect();
            }
        }
        written["responses"]["401"] = json!({"description": "Unauthorized"});
        if !parameters.is_empty() {
            written["parameters"] = parameters.into();
        }
        let about = if operation.action == "connect" { kind } else { resource.kind.as_ref() };
        let about = if operation.action != "connect" && kind != about && !operation.answer.is_empty() && kind != "Status" { kind } else { about };
        let given = ["name", "namespace", "path"].into_iter().filter(|p| path.contains(&format!("{{{p}}}")));
        let mut shared: Vec<Value> = given.map(|p| self.parameter(p, "path", "string", about)).collect();
        if operation.action != "connect" {
            shared.push(self.parameter("pretty", "query", "string", ""));
        }
        let entry = self.paths.entry(path).or_insert_with(|| json!({}));
        entry[operation.method] = written;
        entry["parameters"] = shared.into();
    }

    /// What all operations of a path ask for is said once, of the path.
    fn share(&mut self) {
        for path in self.paths.values_mut().filter_map(Value::as_object_mut) {
            let asked = |operation: &Value| operation["parameters"].as_array().cloned().unwrap_or_default();
            let operations: Vec<String> = path.keys().filter(|key| *key != "parameters").cloned().collect();
            let Some(first) = operations.first().map(|method| asked(&path[method])) else { continue };
            let common: Vec<Value> =
                first.into_iter().filter(|p| p["in"] != "body" && operations.iter().all(|method| asked(&path[method]).contains(p))).collect();
            for method in &operations {
                let rest: Vec<Value> = asked(&path[method]).into_iter().filter(|p| !common.contains(p)).collect();
                if let Some(operation) = path.get_mut(method).and_then(Value::as_object_mut) {
                    operation.remove("parameters");
                    if !rest.is_empty() {
                        operation.insert("parameters".into(), rest.into());
                    }
                }
            }
            if let Some(shared) = path.get_mut("parameters").and_then(Value::as_array_mut) {
                shared.extend(common);
                shared.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
            }
        }
    }
}

/// Whether the answer to a deletion is the object, by upstream's word of it.
fn shows_deleted(resource: &Resource) -> bool {
    const CORE: [&str; 7] = ["PersistentVolume", "PersistentVolumeClaim", "Pod", "PodTemplate", "ResourceQuota", "Service", "ServiceAccount"];
    match resource.group.as_ref() {
        "" => CORE.contains(&resource.kind.as_ref()),
        "resource.k8s.io" => true,
        "storage.k8s.io" => resource.kind != "CSIStorageCapacity",
        _ => false,
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
