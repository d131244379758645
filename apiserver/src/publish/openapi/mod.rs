//! OpenAPI, versions 2 and 3: structure and merge facts from the schemas that the server itself decodes by,
//! descriptions from the client library's types. Made when it is asked for, for what is served at that moment, with what
//! servers behind this one say of themselves.

mod custom;
mod definitions;
mod descriptions;
mod gnostic;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use skiff_api::Status;
use skiff_api::resource::Resource;
use tokio::sync::Mutex;

use super::no_such_path;
use crate::aggregate::{Remotes, merge};
use crate::http::body::{Reply, full, reply};
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

/// The document of version 2, kept while what is served stays the same: making it takes a while, and it is large. Whoever holds
/// it makes documents, so that one is made at a time.
#[derive(Clone, Default)]
pub(crate) struct OpenApi(Arc<Mutex<Option<Kept>>>);

struct Kept {
    served: Arc<Served>,
    remotes: Remotes,
    json: Document,
    /// The same in protobuf, once somebody asked for that.
    binary: Option<Document>,
}

/// Bytes, and the tag by which clients know that they have them already.
#[derive(Clone)]
struct Document {
    bytes: Bytes,
    tag: String,
}

impl Document {
    fn new(bytes: Vec<u8>) -> Self {
        Self { tag: format!("\"{:X}\"", Sha256::digest(&bytes)), bytes: bytes.into() }
    }

    fn answer(self, headers: &HeaderMap, content_type: &'static str) -> Reply {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(&self.tag);
        let mut answer = if known { reply(304, content_type, full("")) } else { reply(200, content_type, full(self.bytes)) };
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            answer.headers_mut().insert(header::ETAG, tag);
        }
        answer
    }
}

/// The document of version 2, the one that is kept where it is still right.
fn kept_v2(kept: &mut Option<Kept>, served: &Arc<Served>, remotes: &Remotes, binary: bool) -> Document {
    if let Some(kept) = kept.as_ref().filter(|k| Arc::ptr_eq(&k.served, served) && Arc::ptr_eq(&k.remotes, remotes)) {
        match (&kept.binary, binary) {
            (_, false) => return kept.json.clone(),
            (Some(document), true) => return document.clone(),
            (None, true) => {}
        }
    }
    let mut document = v2(served);
    merge::into_openapi(&mut document, remotes);
    let json = Document::new(document.to_string().into());
    let written = binary.then(|| Document::new(gnostic::encode(&document)));
    let wanted = written.clone().unwrap_or_else(|| json.clone());
    *kept = Some(Kept { served: Arc::clone(served), remotes: Arc::clone(remotes), json, binary: written });
    wanted
}

/// Answers below `/openapi`. What takes that long to make is made beside the threads that answer requests.
pub(super) async fn serve(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Result<Reply, Status> {
    let mut kept = Arc::clone(&server.openapi.0).lock_owned().await;
    let (server, path, headers) = (Arc::clone(server), path.to_owned(), headers.clone());
    tokio::task::spawn_blocking(move || answer(&server, &path, &headers, &mut kept)).await.map_err(Status::internal)
}

fn answer(server: &Server, path: &str, headers: &HeaderMap, kept: &mut Option<Kept>) -> Reply {
    let served = server.registry.now();
    match path {
        "/openapi/v2" => {
            let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
            let binary = accept.split(',').any(|clause| gnostic::MEDIA_TYPES.contains(&clause.trim()));
            let document = kept_v2(kept, &served, &server.aggregator.now(), binary);
            document.answer(headers, if binary { gnostic::MEDIA_TYPES[0] } else { JSON })
        }
        "/openapi/v3" => reply(200, JSON, full(index(&served, &server.aggregator.now()).to_string())),
        path => {
            let parts: Vec<&str> = path.split('/').collect();
            let (group, version) = match parts[..] {
                ["", "openapi", "v3", "api", version] => ("", version),
                ["", "openapi", "v3", "apis", group, version] => (group, version),
                _ => return no_such_path(),
            };
            if !served.has_version(group, version) {
                return no_such_path();
            }
            Document::new(v3(&served, group, version).to_string().into()).answer(headers, JSON)
        }
    }
}

/// Where the documents of the single versions are.
fn index(served: &Served, remotes: &Remotes) -> Value {
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
    for remote in remotes.iter() {
        if let Some(url) = &remote.documents.v3 {
            paths.insert(remote.path().trim_start_matches('/').to_owned(), json!({"serverRelativeURL": url}));
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
