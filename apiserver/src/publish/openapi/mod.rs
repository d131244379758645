//! OpenAPI, versions 2 and 3: structure and merge facts from the schemas that the server itself decodes by,
//! descriptions from the client library's types. Made when it is asked for, for what is served at that moment.

mod custom;
mod definitions;
mod descriptions;
mod gnostic;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use skiff_api::Status;
use skiff_api::resource::Resource;

use crate::http::body::{Reply, full, reply, text};
use crate::registry::Served;
use crate::server::Server;

/// Which OpenAPI is written: they differ in where things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition.
    fn reference(self, definition: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{definition}"),
            Self::V3 => format!("#/components/schemas/{definition}"),
        }
    }
}

const JSON: &str = "application/json";

/// Answers below `/openapi`.
pub(super) fn serve(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Result<Reply, Status> {
    let served = server.registry.now();
    match path {
        "/openapi/v2" => {
            let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
            let binary = accept.split(',').any(|clause| gnostic::MEDIA_TYPES.contains(&clause.trim()));
            let document = v2(&served);
            Ok(match binary {
                true => tagged(headers, gnostic::MEDIA_TYPES[0], gnostic::encode(&document)),
                false => tagged(headers, JSON, document.to_string().into()),
            })
        }
        "/openapi/v3" => Ok(reply(200, "application/json", full(index(&served).to_string()))),
        path => {
            let group_version = path.trim_start_matches("/openapi/v3/");
            let (group, version) = match group_version.split('/').collect::<Vec<_>>().as_slice() {
                ["api", version] => (String::new(), (*version).to_owned()),
                ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
                _ => return Ok(text(404, "404 page not found\n")),
            };
            if !served.has_version(&group, &version) {
                return Ok(text(404, "404 page not found\n"));
            }
            Ok(tagged(headers, JSON, v3(&served, &group, &version).to_string().into()))
        }
    }
}

/// A document with a tag by which clients know that they have it already.
fn tagged(headers: &HeaderMap, content_type: &'static str, bytes: Vec<u8>) -> Reply {
    let tag = format!("\"{:x}\"", Sha256::digest(&bytes)).to_ascii_uppercase();
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(&tag);
    let mut answer = if known { reply(304, content_type, full("")) } else { reply(200, content_type, full(bytes)) };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// Where the documents of the single versions are.
fn index(served: &Served) -> Value {
    let mut paths = Map::new();
    for (group, versions) in served.groups() {
        for version in versions {
            let key = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            // What the document depends on: the resources, and the server's own version.
            let mut hash = Sha256::new();
            for resource in served.ordered.iter().filter(|r| r.group == group && r.version == version) {
                hash.update(format!("{:?}", (&resource.plural, &resource.kind, &resource.subresources, resource.verbs)));
                if let Some(custom) = resource.custom() {
                    hash.update(custom.digest());
                }
            }
            hash.update(env!("CARGO_PKG_VERSION"));
            let url = format!("/openapi/v3/{key}?hash={:X}", hash.finalize());
            paths.insert(key, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": super::MAJOR_MINOR_PATCH})
}

fn v3(served: &Served, group: &str, version: &str) -> Value {
    let resources: Vec<&Arc<Resource>> = served.ordered.iter().filter(|r| r.group == group && r.version == version).collect();
    let (paths, used) = paths::of(&resources, Dialect::V3);
    let schemas = definitions::closure(&resources, used, Dialect::V3);
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}})
}

fn v2(served: &Served) -> Value {
    let resources: Vec<&Arc<Resource>> = served.ordered.iter().collect();
    let (paths, used) = paths::of(&resources, Dialect::V2);
    let definitions = definitions::closure(&resources, used, Dialect::V2);
    json!({
        "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions,
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
        "security": [{"BearerToken": []}],
    })
}

/// The name of a kind's definition. Custom kinds are named as upstream names them: by their group, reversed.
fn definition_name(resource: &Resource) -> String {
    match &resource.schema {
        skiff_api::resource::ResourceSchema::Builtin(name) => (*name).to_owned(),
        skiff_api::resource::ResourceSchema::Custom(_) => custom_name(resource, &resource.kind),
    }
}

/// The name of the definition of a kind's lists.
fn list_name(resource: &Resource) -> String {
    match resource.custom() {
        Some(custom) => custom_name(resource, &custom.list_kind),
        None => format!("{}List", definition_name(resource)),
    }
}

fn custom_name(resource: &Resource, kind: &str) -> String {
    let mut parts: Vec<&str> = resource.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), resource.version)
}

/// The definitions that paths refer to.
type Used = BTreeSet<String>;
/// Definitions by name.
type Definitions = BTreeMap<String, Value>;
