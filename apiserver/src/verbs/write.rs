//! What all writes share: reading a body, the system's own metadata, the transaction on the store, the answer.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header;
use serde_json::{Map, Value};
use skiff_api::apply::{self, Manager, Operation};
use skiff_api::schema::{Schema, shown_value};
use skiff_api::{Status, cbor, clock, defaults, field, json, protobuf, random, resource, validation, value};
use skiff_store::{Entry, Error, Guard};

use super::{Call, add_warning};
use super::options::{FieldValidation, WriteOptions};
use crate::admission::Claim;
use crate::cache::encode;
use crate::convert;
use crate::http::body::Reply;
use crate::http::encode::Shown;
use crate::http::yaml;
use crate::strategy::Claims;

/// How often a write is tried again when somebody else was quicker, before the server gives up.
const MAX_TRIES: usize = 100;

/// One write on its way: the call, its options and what to warn the client of.
pub(crate) struct Write<'a> {
    pub call: &'a Call,
    pub options: WriteOptions,
    pub warnings: Vec<String>,
    /// What of quotas this write claims, until it is over.
    pub held: Mutex<Vec<Claim>>,
    /// How often the object was loaded for this write.
    tries: usize,
}

/// Changes the object that a write's request names: the expression makes a [`Transaction`] of the object as it is now
/// and its store entry, and is evaluated again when somebody else was quicker. Gives what was kept.
macro_rules! transact {
    ($write:ident, |$current:ident, $entry:ident| $change:expr) => {
        loop {
            let ($current, $entry) = $write.load().await?;
            let next = $change;
            if let Some(shown) = $write.commit(&$entry, next).await? {
                break shown;
            }
        }
    };
}
pub(crate) use transact;

/// What a transaction makes of the object that is there.
pub(crate) enum Transaction {
    /// Keep this instead; the claims are settled when that is done.
    Put(Value, Claims),
    /// Keep nothing: the write let go of the last finalizer of a deleted object.
    Delete(Value),
}

impl<'a> Write<'a> {
    pub fn new(call: &'a Call, options_kind: &str) -> Result<Self, Status> {
        Self::with(call, options_kind, Vec::new())
    }

    /// The same, where there are errors in the options already.
    pub fn with(call: &'a Call, options_kind: &str, errors: Vec<field::Error>) -> Result<Self, Status> {
        Ok(Self { call, options: WriteOptions::read(call, options_kind, errors)?, warnings: Vec::new(), held: Mutex::default(), tries: 0 })
    }

    /// Reads a body of JSON or YAML as an object of the resource, in the resource's version: pruned by the schema, with
    /// defaults.
    pub fn decode(&mut self, body: &Bytes) -> Result<Value, Status> {
        let object = parse_body(self.call, body, &self.call.resource.kind)?;
        self.take_in(object.value, object.duplicates, if is_json(self.call) { body } else { &[] })
    }

    /// Prunes, checks and defaults an object that a client made. `text` is the JSON that it was read from, if it was: what is
    /// wrong is told in its order.
    pub fn take_in(&mut self, object: Value, duplicates: Vec<String>, text: &[u8]) -> Result<Value, Status> {
        let resource = &self.call.resource;
        let cannot = cannot(&resource.kind, &resource.version);
        let text = if resource.custom().is_some() { &[] } else { text };
        self.take_in_as(object, duplicates, text, Schema::prune, &cannot)
    }

    /// The same with another way of reading, and what a refusal is made of the reason. For what a patch made.
    pub fn take_in_as(&mut self, mut object: Value, duplicates: Vec<String>, text: &[u8], prune: Prune, cannot: &dyn Fn(&Value, String) -> Status) -> Result<Value, Status> {
        let resource = &self.call.resource;
        let kind = Kind { kind: &resource.kind, version: &resource.api_version(), schema: resource.schema() };
        self.warnings.extend(kind.take_in(&mut object, duplicates, text, self.options.validation, prune, cannot)?);
        if !object.get("metadata").is_some_and(Value::is_object) {
            object["metadata"] = Value::Object(Map::new());
        }
        defaults::apply(resource, &mut object);
        Ok(object)
    }

    /// Who writes, for the object's `managedFields`.
    pub fn manager(&self, operation: Operation) -> Manager {
        Manager {
            name: self.call.field_manager(),
            operation,
            api_version: self.call.resource.api_version(),
            subresource: self.call.info.subresource.clone(),
            time: clock::now(),
        }
    }

    /// Books in `managedFields` what this write changed.
    pub fn book(&self, old: Option<&Value>, new: &mut Value, reset: &[&[&str]]) {
        let manager = self.manager(Operation::Update);
        apply::update_managed_fields(self.call.resource.schema(), old, new, &manager, reset);
    }

    /// Refuses an object with errors.
    pub fn check(&self, object: &Value, errors: &[field::Error]) -> Result<(), Status> {
        let name = value::text(object, &["metadata", "name"]);
        let resource = &self.call.resource;
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid(resource.kind_group(), &resource.kind, name, errors)) }
    }

    /// Notes what the client is to be warned of, which is nothing below an object.
    pub fn note(&self, object: &Value, old: Option<&Value>) {
        if !self.call.info.subresource.is_empty() {
            return;
        }
        validation::warnings(&self.call.resource, object, old).into_iter().for_each(|warning| self.call.notes.warn(warning));
    }

    /// Keeps a new object (or in a dry run only says what would be kept), and settles its claims.
    pub async fn insert(&self, object: Value, claims: Claims) -> Result<Shown, Status> {
        let resource = &self.call.resource;
        let name = value::text(&object, &["metadata", "name"]).to_owned();
        let key = self.call.server.key(resource, &self.call.info.namespace, &name);
        if self.options.dry_run {
            return match self.call.server.store.get(&key).await? {
                Some(_) => Err(Status::already_exists(resource.group_resource(), &name)),
                None => Ok(Shown::Value(object)),
            };
        }
        let server = &self.call.server;
        let bytes: Bytes = match convert::stored(server, resource, object).await {
            Ok(object) => encode(&object).into(),
            Err(status) => {
                claims.cancel(server).await;
                return Err(status);
            }
        };
        let result = server.store.commit(&key, Guard::Absent, Some(bytes.clone())).await;
        claims.settle(server, &result).await;
        match result {
            Ok(revision) => self.stored(&key, revision, bytes).await,
            Err(Error::Conflict(_)) => Err(Status::already_exists(resource.group_resource(), &name)),
            Err(error) => Err(error.into()),
        }
    }

    async fn stored(&self, key: &str, revision: u64, bytes: Bytes) -> Result<Shown, Status> {
        self.call.settle(revision).await;
        let object = self.call.cache()?.read(key.into(), revision, bytes).map_err(Status::internal)?;
        self.call.ready(Shown::Stored(Arc::new(object))).await
    }

    /// The object that the request names, to be changed and handed to [`Self::commit`]; see [`transact`].
    pub async fn load(&mut self) -> Result<(Value, Entry), Status> {
        self.tries += 1;
        if self.tries > MAX_TRIES {
            return Err(Status::stale(self.call.resource.group_resource(), &self.call.info.name));
        }
        let entry = self.call.server.store.get(&self.call.key()).await?.ok_or_else(|| self.call.not_found())?;
        Ok((self.current(&entry).await?, entry))
    }

    /// Keeps what became of the object that was loaded as `entry`; `None` when somebody else was quicker. Nothing is
    /// written when nothing changed.
    pub async fn commit(&self, entry: &Entry, next: Transaction) -> Result<Option<Shown>, Status> {
        let (object, claims) = match next {
            Transaction::Put(object, claims) => (object, Some(claims)),
            Transaction::Delete(object) => (object, None),
        };
        if self.options.dry_run {
            let mut object = object;
            value::object_mut(&mut object, &["metadata"]).insert("resourceVersion".into(), entry.modified.to_string().into());
            return Ok(Some(Shown::Value(object)));
        }
        let (server, keep) = (&self.call.server, claims.is_some());
        let bytes: Bytes = encode(&convert::stored(server, &self.call.resource, object).await?).into();
        let result = if keep && bytes == entry.value && !server.store.is_stale(&entry.key) {
            Ok(entry.modified)
        } else {
            server.store.commit(&entry.key, Guard::Modified(entry.modified), keep.then(|| bytes.clone())).await
        };
        if let Some(claims) = claims {
            claims.settle(server, &result).await;
        }
        match result {
            Ok(revision) => {
                if !keep {
                    server.deleted(&self.call.resource, entry).await;
                }
                self.stored(&entry.key, revision, bytes).await.map(Some)
            }
            Err(Error::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The stored object in the resource's version, with its resource version.
    pub async fn current(&self, entry: &Entry) -> Result<Value, Status> {
        let object = self.call.cache()?.read(Arc::clone(&entry.key), entry.modified, entry.value.clone()).map_err(Status::internal)?;
        let value = object.value().map_err(Status::internal)?;
        convert::current(&self.call.server, &self.call.resource, value).await
    }

    /// The answer, with the warnings.
    pub fn answer(&self, code: u16, shown: &Shown) -> Result<Reply, Status> {
        self.warn(self.call.encoder().object(code, shown)?)
    }

    /// The same of an answer that is made already.
    pub fn warn(&self, mut reply: Reply) -> Result<Reply, Status> {
        self.warnings.iter().for_each(|warning| add_warning(&mut reply, warning));
        Ok(reply)
    }
}

/// How an object is made to fit its schema.
type Prune = fn(&Schema, &mut Value) -> Result<Vec<String>, String>;

/// What is said of an object that can't be read as this kind, for a reason.
fn cannot(kind: &str, version: &str) -> impl Fn(&Value, String) -> Status {
    move |object, why| {
        let given = |key: &str, own: &str| Some(value::text(object, &[key])).filter(|given| !given.is_empty()).unwrap_or(own).to_owned();
        let (given_kind, given_version) = (given("kind", kind), given("apiVersion", version));
        let short = given_version.rsplit('/').next().unwrap_or("");
        Status::bad_request(format!("{given_kind} in version {short:?} cannot be handled as a {kind}: {why}"))
    }
}

/// A kind of object, to read one.
struct Kind<'a> {
    kind: &'a str,
    version: &'a str,
    schema: &'a Schema,
}

impl Kind<'_> {
    /// Checks the object's type and prunes it by the schema. Gives what there is to warn of, in the order of `text`.
    fn take_in(
        &self,
        object: &mut Value,
        duplicates: Vec<String>,
        text: &[u8],
        validation: FieldValidation,
        prune: Prune,
        cannot: &dyn Fn(&Value, String) -> Status,
    ) -> Result<Vec<String>, Status> {
        check_type(object, self.kind, self.version).map_err(|why| cannot(object, why))?;
        let unknown = prune(self.schema, object).map_err(|why| cannot(object, why))?;
        if validation == FieldValidation::Ignore {
            return Ok(Vec::new());
        }
        let faults = if text.is_empty() || duplicates.is_empty() && unknown.is_empty() {
            duplicates.into_iter().chain(unknown.iter().map(|path| format!("unknown field {path:?}"))).collect()
        } else {
            json::faults(text, &unknown)
        };
        if validation == FieldValidation::Strict && !faults.is_empty() {
            return Err(cannot(object, format!("strict decoding error: {}", faults.join(", "))));
        }
        Ok(faults)
    }
}

/// Reads the body of a subresource that takes another kind than its resource's: pruned by the schema of its
/// `definition`, `io.k8s.api.policy.v1.Eviction`. The query's options of a write are checked too.
pub(crate) fn decode_as(call: &Call, body: &Bytes, kind: &str, version: &str, definition: &str) -> Result<Value, Status> {
    let options = WriteOptions::read(call, if call.info.verb == "update" { "UpdateOptions" } else { "CreateOptions" }, Vec::new())?;
    let read = parse_body(call, body, kind)?;
    let mut object = read.value;
    let schema = Schema::builtin(definition).unwrap_or_else(Schema::any);
    let cannot = cannot(kind, version.rsplit('/').next().unwrap_or(version));
    let text: &[u8] = if is_json(call) { body } else { &[] };
    let warnings = Kind { kind, version, schema }.take_in(&mut object, read.duplicates, text, options.validation, Schema::prune, &cannot)?;
    warnings.into_iter().for_each(|warning| call.notes.warn(warning));
    Ok(object)
}

/// Reads a body as JSON, YAML, protobuf or CBOR, whatever it says it is of these; `kind` is what it should be.
fn parse_body(call: &Call, body: &Bytes, kind: &str) -> Result<json::Parsed, Status> {
    let mut read = read_body(call, body, kind)?;
    if read.value.is_null() {
        read.value = Value::Object(Map::new());
    }
    let unrecognized = |why: &str| Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summary(body)));
    typed(&read.value).map_err(|why| unrecognized(&format!("couldn't get version/kind; json parse error: {why}")))?;
    let version = value::text(&read.value, &["apiVersion"]);
    if version.matches('/').count() > 1 {
        return Err(unrecognized(&format!("unexpected GroupVersion string: {version}")));
    }
    call.notes.sent(&read.value);
    Ok(read)
}

/// Refuses what has no type at all, in the words of Go's decoder.
pub(super) fn typed(object: &Value) -> Result<(), String> {
    let Value::Object(map) = object else {
        let head = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        return Err(format!("json: cannot unmarshal {} into Go value of type {head}", shown_value(object)));
    };
    for key in ["apiVersion", "kind"] {
        if let Some(odd) = map.get(key).filter(|v| !v.is_string() && !v.is_null()) {
            return Err(format!("json: cannot unmarshal {} into Go struct field .{key} of type string", shown_value(odd)));
        }
    }
    Ok(())
}

/// The beginning of a body, for people who look for what is wrong with it.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let (head, rest) = body.split_at(body.len().min(SHOWN));
    let shown = match head.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    shown + if rest.is_empty() { "" } else { " ..." }
}

/// The media type that the body says it is of; one with a parameter that is none is no media type.
fn media(call: &Call) -> &str {
    let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let mut parts = content_type.split(';').map(str::trim);
    let media = parts.next().unwrap_or("");
    if parts.any(|parameter| !parameter.is_empty() && !parameter.contains('=')) { "?" } else { media }
}

fn is_json(call: &Call) -> bool {
    matches!(media(call), "" | "application/json")
}

fn read_body(call: &Call, body: &Bytes, kind: &str) -> Result<json::Parsed, Status> {
    let unrecognized = |why: String| Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summary(body)));
    match media(call) {
        _ if is_json(call) => json::parse(body).map_err(|why| unrecognized(format!("couldn't get version/kind; json parse error: {why}"))),
        "application/yaml" => parse_yaml(body),
        protobuf::MEDIA_TYPE => match protobuf::decode(body) {
            Err(error @ protobuf::Error::NoMagic) => Err(unrecognized(error.to_string())),
            other => other.map(|value| json::Parsed { value, duplicates: Vec::new() }).map_err(|e| Status::bad_request(e.to_string())),
        },
        cbor::MEDIA_TYPE => parse_cbor(body),
        _ => {
            let message = format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, {}",
                protobuf::MEDIA_TYPE
            );
            Err(Status::new(415, "UnsupportedMediaType", message))
        }
    }
}

/// Reads YAML as the JSON that it stands for.
pub(crate) fn parse_yaml(body: &[u8]) -> Result<json::Parsed, Status> {
    let yaml::Read { value, repeated } = read_yaml(body)?;
    let duplicates = if repeated.is_empty() { Vec::new() } else { vec![format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  "))] };
    Ok(json::Parsed { value, duplicates })
}

/// The same, with each repeated key by itself.
pub(super) fn read_yaml(body: &[u8]) -> Result<yaml::Read, Status> {
    let text = std::str::from_utf8(body).map_err(|e| Status::bad_request(format!("error parsing YAML: {e}")))?;
    yaml::parse(text).map_err(|e| Status::bad_request(format!("error converting YAML to JSON: {e}")))
}

/// Reads protobuf as the JSON that it stands for.
pub(crate) fn parse_protobuf(body: &[u8]) -> Result<json::Parsed, Status> {
    let value = protobuf::decode(body).map_err(|e| Status::bad_request(e.to_string()))?;
    Ok(json::Parsed { value, duplicates: Vec::new() })
}

/// Reads CBOR as the JSON that it stands for.
pub(crate) fn parse_cbor(body: &[u8]) -> Result<json::Parsed, Status> {
    let value = cbor::decode(body).map_err(|e| Status::bad_request(e.to_string()))?;
    Ok(json::Parsed { value, duplicates: Vec::new() })
}

/// Refuses an object of another kind or version than the request's resource has; fills in what is left out.
fn check_type(object: &mut Value, kind: &str, version: &str) -> Result<(), String> {
    let given = |key: &str, own: &str| match value::text(object, &[key]) {
        "" => own.to_owned(),
        text => text.to_owned(),
    };
    let (got_kind, got_version) = (given("kind", kind), given("apiVersion", version));
    if (got_kind.as_str(), got_version.as_str()) != (kind, version) {
        let (group, short) = got_version.rsplit_once('/').unwrap_or(("", &got_version));
        if resource::find_kind(group, short, &got_kind).is_some() {
            let wanted = version.rsplit_once('/').map_or("core", |(group, _)| group.split('.').next().unwrap_or(group));
            return Err(format!("converting ({short}.{got_kind}) to ({wanted}.{kind}): unknown conversion"));
        }
        return Err(format!("no kind {got_kind:?} is registered for version {got_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""));
    }
    object["kind"] = kind.into();
    object["apiVersion"] = version.into();
    Ok(())
}

/// Gives a new object what only the system gives: uid, time, generation; takes away what a client can't set.
pub(crate) fn stamp(object: &mut Value, namespace: &str, generation: bool) {
    let metadata = value::object_mut(object, &["metadata"]);
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace"] {
        metadata.remove(key);
    }
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), random::uid().into());
    metadata.insert("creationTimestamp".into(), now_text().into());
    if generation {
        metadata.insert("generation".into(), 1.into());
    }
}

/// The time as objects carry it: whole seconds.
pub(crate) fn now_text() -> String {
    clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
