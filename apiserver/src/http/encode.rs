//! Objects and lists to bytes: as they are, as a table, or as metadata alone; spliced from stored bytes where possible.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use serde_json::{Map, Value, json};
use skiff_api::resource::Resource;
use skiff_api::{Status, cbor, clock, print, protobuf, value};
use skiff_store::Revision;

use super::body::{Body, Reply, full, reply, stream as streamed};
use super::gzip::Compressible;
use super::negotiate::{Format, Shape, Transform};
use crate::cache::Object;

/// About how many bytes of a list are put together at a time.
const CHUNK: usize = 64 * 1024;

/// An object on its way out.
#[derive(Clone, Debug)]
pub enum Shown {
    /// As it is stored.
    Stored(Arc<Object>),
    /// Made for this answer.
    Value(Value),
}

impl Shown {
    /// The object, parsed.
    pub fn value(&self) -> Result<Value, Status> {
        match self {
            Self::Stored(object) => object.value().map_err(|e| unreadable(object, &e)),
            Self::Value(value) => Ok(value.clone()),
        }
    }

    /// Whether an object made for this answer has the name.
    pub fn is_named(&self, name: &str) -> bool {
        matches!(self, Self::Value(object) if value::text(object, &["metadata", "name"]) == name)
    }
}

fn unreadable(object: &Object, error: &serde_json::Error) -> Status {
    Status::internal(format!("read the stored object {}: {error}", object.key))
}

/// Some objects of a resource, on their way out.
#[derive(Debug)]
pub struct List {
    /// The objects.
    pub items: Vec<Shown>,
    /// The revision that the list shows.
    pub revision: Revision,
    /// Where the next page begins; empty for the last one.
    pub next: String,
    /// How many more there are; `None` when it isn't known.
    pub remaining: Option<usize>,
}

/// What of the object a table's row carries: the `includeObject` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// How one resource's objects are written in one answer.
pub struct Encoder<'a> {
    /// The resource asked for; its version is the one that is written.
    pub resource: &'a Resource,
    /// The form asked for.
    pub shape: Shape,
    /// What a table's rows carry.
    pub include: Include,
    /// Whether JSON is indented.
    pub pretty: bool,
}

impl Encoder<'_> {
    /// The object as it goes out, parsed: in the version asked for.
    fn value(&self, shown: &Shown) -> Result<Value, Status> {
        let object = shown.value()?;
        Ok(crate::convert::to_version(self.resource, object))
    }

    /// Whether objects go out as plain JSON.
    pub fn is_plain(&self) -> bool {
        self.shape.transform == Transform::None && self.shape.format == Format::Json && !self.pretty
    }

    /// Whether the stored bytes can go out as they are. Custom objects may be stored in any version, others are in one.
    fn splices(&self, object: &Object) -> bool {
        let version = self.resource.api_version();
        self.is_plain() && if self.resource.custom().is_some() { object.is_in_version(&version) } else { self.resource.stored_as == version }
    }

    /// The answer that shows one object.
    pub fn object(&self, code: u16, shown: &Shown) -> Result<Reply, Status> {
        let body: Bytes = match shown {
            Shown::Stored(object) if self.splices(object) => {
                let mut bytes = Vec::with_capacity(object.bytes.len() + 32);
                object.splice(false, &mut bytes);
                bytes.into()
            }
            _ if self.shape.format == Format::Protobuf => self.body(shown)?.into(),
            _ => return Ok(answer(code, &self.one(shown, true)?, self.shape, self.pretty)),
        };
        Ok(written(code, body, self.shape))
    }

    /// The object's message: of its kind, or of its metadata alone.
    fn message(&self, shown: &Shown) -> Result<Bytes, Status> {
        let (version, kind) = (self.resource.api_version(), &self.resource.kind);
        match shown {
            Shown::Stored(object) if self.resource.custom().is_none() && self.resource.stored_as == version => {
                let message = object.message(&version, kind).map_err(Status::internal)?;
                Ok(match self.shape.transform {
                    Transform::Metadata => message.slice_ref(protobuf::partial_of(&message).unwrap_or_default()),
                    _ => message,
                })
            }
            _ if self.shape.transform == Transform::Metadata => Ok(protobuf::partial(value::at(&self.value(shown)?, &["metadata"])).into()),
            _ => Ok(protobuf::message_of(&version, kind, &self.value(shown)?).map_err(Status::internal)?.into()),
        }
    }

    /// The object as a whole body in protobuf.
    fn body(&self, shown: &Shown) -> Result<Vec<u8>, Status> {
        let message = self.message(shown)?;
        if self.shape.transform == Transform::Metadata {
            return Ok(protobuf::envelope(self.meta_version(), "PartialObjectMetadata", &message));
        }
        Ok(protobuf::envelope(&self.resource.api_version(), &self.resource.kind, &message))
    }

    /// A list in protobuf: its metadata, then the items' messages.
    fn message_list(&self, meta: &Value, items: &[Shown]) -> Result<Vec<u8>, Status> {
        let mut list = protobuf::list_meta(meta);
        for item in items {
            protobuf::field(2, &self.message(item)?, &mut list);
        }
        Ok(match self.shape.transform {
            Transform::Metadata => protobuf::envelope(self.meta_version(), "PartialObjectMetadataList", &list),
            _ => protobuf::envelope(&self.resource.api_version(), &self.list_kind(), &list),
        })
    }

    /// One object in the form asked for. `columns` says whether a table names its columns.
    pub fn one(&self, shown: &Shown, columns: bool) -> Result<Value, Status> {
        let object = self.value(shown)?;
        Ok(match self.shape.transform {
            Transform::None => object,
            Transform::Metadata => self.partial(object, true),
            Transform::Table => {
                let meta = json!({"resourceVersion": value::text(&object, &["metadata", "resourceVersion"])});
                self.table(meta, columns, vec![self.row(object)])
            }
        })
    }

    /// Appends a watch's frame. Where the object can't be written, nothing is appended.
    pub fn frame(&self, kind: &str, shown: &Shown, columns: bool, out: &mut Vec<u8>) -> Result<(), Status> {
        if self.shape.format == Format::Protobuf {
            protobuf::event(kind, &self.body(shown)?, out);
            return Ok(());
        }
        if self.shape.format == Format::Cbor {
            return cbor::event(kind, &self.one(shown, columns)?, out).map_err(Status::internal);
        }
        let made = match shown {
            Shown::Stored(object) if self.splices(object) => None,
            _ => Some(self.one(shown, columns)?),
        };
        out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        match (made, shown) {
            (Some(made), _) => out.extend_from_slice(made.to_string().as_bytes()),
            (None, Shown::Stored(object)) => object.splice(false, out),
            (None, Shown::Value(object)) => out.extend_from_slice(object.to_string().as_bytes()),
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    /// The answer that shows a list.
    pub fn list(&self, list: List) -> Result<Reply, Status> {
        let mut meta = Map::new();
        meta.insert("resourceVersion".into(), list.revision.to_string().into());
        if !list.next.is_empty() {
            meta.insert("continue".into(), list.next.into());
            if let Some(remaining) = list.remaining {
                meta.insert("remainingItemCount".into(), remaining.into());
            }
        }
        if self.shape.format == Format::Protobuf {
            return Ok(written(200, self.message_list(&meta.into(), &list.items)?.into(), self.shape));
        }
        if self.is_plain() && list.items.iter().all(|item| matches!(item, Shown::Stored(object) if self.splices(object))) {
            let items: Vec<Arc<Object>> = list.items.into_iter().filter_map(|i| if let Shown::Stored(o) = i { Some(o) } else { None }).collect();
            let size = size_of(&items);
            let mut reply = reply(200, self.shape.content_type(), self.spliced(meta, items));
            reply.extensions_mut().insert(Compressible(size));
            return Ok(reply);
        }
        let items = list.items.iter().map(|shown| self.value(shown)).collect::<Result<Vec<_>, _>>()?;
        let whole = match self.shape.transform {
            Transform::Table => self.table(meta.into(), true, items.into_iter().map(|o| self.row(o)).collect()),
            Transform::Metadata => {
                let items: Vec<Value> = items.into_iter().map(|o| self.partial(o, true)).collect();
                let kind = "PartialObjectMetadataList".into();
                members([("kind", kind), ("apiVersion", self.meta_version().into()), ("metadata", meta.into()), ("items", items.into())])
            }
            Transform::None => {
                let items: Vec<Value> = items.into_iter().map(|o| self.item(o)).collect();
                let (kind, version) = (self.list_kind().into(), self.resource.api_version().into());
                members([("kind", kind), ("apiVersion", version), ("metadata", meta.into()), ("items", items.into())])
            }
        };
        Ok(answer(200, &whole, self.shape, self.pretty))
    }

    fn list_kind(&self) -> String {
        self.resource.list_kind()
    }

    /// Whether items carry their type: those of custom resources do.
    fn typed_items(&self) -> bool {
        matches!(self.resource.schema, skiff_api::resource::ResourceSchema::Custom(_))
    }

    fn item(&self, mut object: Value) -> Value {
        if !self.typed_items()
            && let Some(map) = object.as_object_mut()
        {
            map.remove("apiVersion");
            map.remove("kind");
        }
        object
    }

    /// The list, put together bit by bit as the connection takes it.
    fn spliced(&self, meta: Map<String, Value>, items: Vec<Arc<Object>>) -> Body {
        let bare = !self.typed_items();
        let kind = Value::from(self.list_kind());
        let head = format!(r#"{{"kind":{kind},"apiVersion":"{}","metadata":{},"items":["#, self.resource.api_version(), Value::Object(meta));
        let small = size_of(&items) < CHUNK;
        let mut items = items.into_iter().enumerate();
        let mut head = Some(head.into_bytes());
        let mut chunks = std::iter::from_fn(move || {
            let mut chunk = head.take()?;
            while chunk.len() < CHUNK {
                let Some((index, object)) = items.next() else {
                    chunk.extend_from_slice(b"]}");
                    return Some(Bytes::from(chunk));
                };
                if index > 0 {
                    chunk.push(b',');
                }
                object.splice(bare, &mut chunk);
            }
            head = Some(Vec::with_capacity(CHUNK + 4096));
            Some(chunk.into())
        });
        if small { full(chunks.next().unwrap_or_default()) } else { streamed(stream::iter(chunks.map(Ok))) }
    }

    fn meta_version(&self) -> &'static str {
        if self.shape.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }

    fn partial(&self, mut object: Value, typed: bool) -> Value {
        let metadata = value::remove(&mut object, &["metadata"]).unwrap_or_default();
        if typed {
            members([("kind", "PartialObjectMetadata".into()), ("apiVersion", self.meta_version().into()), ("metadata", metadata)])
        } else {
            members([("metadata", metadata)])
        }
    }

    fn row(&self, object: Value) -> Value {
        let mut row = members([("cells", print::cells(self.resource, &object, clock::now()).into())]);
        let conditions = print::row_conditions(self.resource, &object);
        if !conditions.is_empty() {
            row["conditions"] = conditions.into();
        }
        match self.include {
            Include::None => {}
            Include::Metadata => row["object"] = self.partial(object, true),
            Include::Object => row["object"] = object,
        }
        row
    }

    fn table(&self, metadata: Value, columns: bool, rows: Vec<Value>) -> Value {
        let definitions: Vec<Value> = print::columns(self.resource)
            .iter()
            .filter(|_| columns)
            .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority}))
            .collect();
        members([
            ("kind", "Table".into()),
            ("apiVersion", self.meta_version().into()),
            ("metadata", metadata),
            ("columnDefinitions", definitions.into()),
            ("rows", rows.into()),
        ])
    }

}

/// An object of these members, which are moved in (`json!` would copy them).
fn members<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A value as an answer. What the form has no way to say (few kinds that are only made have a message in protobuf) goes out as
/// JSON, and says so.
pub fn answer(code: u16, value: &impl Serialize, shape: Shape, pretty: bool) -> Reply {
    let json = || match pretty {
        true => serde_json::to_string_pretty(value).map(|text| text + "\n"),
        false => serde_json::to_string(value),
    };
    let json = || json().unwrap_or_else(|e| Value::from(e.to_string()).to_string());
    let value_of = || serde_json::to_value(value).ok();
    let body: Option<Bytes> = match shape.format {
        Format::Json => None,
        Format::Yaml => serde_saphyr::to_string(value).ok().map(Bytes::from),
        Format::Protobuf => value_of().and_then(|value| protobuf::encode(&value).ok()).map(Bytes::from),
        Format::Cbor => value_of().and_then(|value| cbor::encode(&value).ok()).map(Bytes::from),
    };
    match body {
        Some(body) => written(code, body, shape),
        None => written(code, json().into(), Shape::JSON),
    }
}

/// Bytes as an answer, which may be compressed.
fn written(code: u16, bytes: Bytes, shape: Shape) -> Reply {
    let size = bytes.len();
    let mut reply = reply(code, shape.content_type(), full(bytes));
    reply.extensions_mut().insert(Compressible(size));
    reply
}

/// About how many bytes a list of the objects takes.
fn size_of(items: &[Arc<Object>]) -> usize {
    items.iter().map(|o| o.bytes.len() + 32).sum()
}

/// A refusal as the last frame of a watch.
pub fn error_frame(status: &Status, format: Format) -> Bytes {
    let status = status.to_value();
    let mut out = Vec::new();
    if format == Format::Protobuf
        && let Ok(body) = protobuf::encode(&status)
    {
        protobuf::event("ERROR", &body, &mut out);
        return out.into();
    }
    if format == Format::Cbor && cbor::event("ERROR", &status, &mut out).is_ok() {
        return out.into();
    }
    format!("{}\n", json!({"type": "ERROR", "object": status})).into()
}

/// A refusal as an answer, in the form asked for where that can carry it.
pub fn refusal(status: &Status, shape: Shape) -> Reply {
    let mut reply = answer(status.code, &status.to_value(), shape.whole(), false);
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        reply.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    reply
}
