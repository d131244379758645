//! One version of one object: its bytes as they are stored, ready to be spliced into an answer.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;
use skiff_api::resource::{Resource, SelectableField};
use skiff_api::{protobuf, value};
use skiff_store::Revision;

/// What stands before the reason in place of a value that the store can't show.
const SEALED: &str = "unreadable: ";

/// What a store shows in place of a value that it can't decrypt: no JSON, so that whoever reads it fails, and for this reason.
pub fn sealed(why: &str) -> Bytes {
    format!("{SEALED}{why}").into()
}

/// What opens every stored object's metadata. The resource version is spliced in right behind it.
const METADATA: &[u8] = b"\"metadata\":{";

/// One version of one object.
#[derive(Debug)]
pub struct Object {
    /// The store's key.
    pub key: Arc<str>,
    /// The revision of the write that made this version: the object's `resourceVersion`.
    pub revision: Revision,
    /// The stored JSON: `kind` and `apiVersion` first, then `metadata` (without a resource version), then the rest.
    pub bytes: Bytes,
    /// Where in `bytes` the member `"metadata":{` begins.
    metadata: usize,
    /// Where in `key` the namespace begins (after the resource's prefix).
    prefix: usize,
    /// The labels, for selectors.
    pub labels: BTreeMap<String, String>,
    /// The values of the resource's selectable fields, in the order of [`Fields`].
    pub fields: Box<[String]>,
    /// What the store holds, where `bytes` had to be tidied.
    raw: Option<Bytes>,
    /// The object as a protobuf message, from when it was first asked for: one for all lists and watches.
    message: OnceLock<Bytes>,
}

/// The selectable fields of a resource beyond `metadata.name` and `metadata.namespace`.
pub type Fields = Arc<[SelectableField]>;

/// Makes of a stored object what readers see.
pub type Tidy = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// How the stored bytes of a resource are read.
#[derive(Clone, Default)]
pub struct Form {
    /// The selectable fields.
    pub fields: Fields,
    /// For resources whose objects may be stored otherwise than they are shown: custom ones, whose schema changes.
    pub tidy: Option<Tidy>,
}

impl Form {
    /// Of a resource with these versions: an object is selected by what any of them offers.
    pub fn of<'a>(versions: impl IntoIterator<Item = &'a Resource>, tidy: Option<Tidy>) -> Self {
        let mut fields: Vec<SelectableField> = Vec::new();
        for field in versions.into_iter().flat_map(|r| &r.selectable_fields) {
            let known = matches!(field.label.as_ref(), "metadata.name" | "metadata.namespace") || fields.iter().any(|f| f.label == field.label);
            if !known {
                fields.push(field.clone());
            }
        }
        Self { fields: fields.into(), tidy }
    }
}

#[derive(Deserialize)]
struct Labelled {
    metadata: LabelledMeta,
}

#[derive(Deserialize)]
struct LabelledMeta {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Object {
    /// Reads what selectors need out of stored bytes. `prefix` is the length of the resource's key prefix.
    pub fn new(key: Arc<str>, revision: Revision, bytes: Bytes, prefix: usize, form: &Form) -> Result<Self, serde_json::Error> {
        // What nobody reads here is shown all the same.
        let text = std::str::from_utf8(&bytes).map_err(serde_json::Error::custom)?;
        if let Some(why) = text.strip_prefix(SEALED) {
            return Err(serde_json::Error::custom(why));
        }
        let fields = &form.fields;
        let mut raw = None;
        let (labels, values, bytes) = match (fields.is_empty() && form.tidy.is_none(), metadata_offset(&bytes)) {
            (true, Some(_)) => {
                let read: Labelled = serde_json::from_str(text)?;
                (read.metadata.labels.unwrap_or_default(), Box::default(), bytes)
            }
            (_, offset) => {
                let mut object: Value = serde_json::from_str(text)?;
                let mut bytes = bytes;
                if let Some(tidy) = &form.tidy {
                    tidy(&mut object);
                    let tidied = encode(&object);
                    if tidied != bytes {
                        raw = Some(std::mem::replace(&mut bytes, tidied.into()));
                    }
                }
                // Written by somebody else, with its members in another order.
                let bytes = if offset.is_none() { encode(&object).into() } else { bytes };
                (labels_of(&object), fields.iter().map(|field| field.value(&object).into_owned()).collect(), bytes)
            }
        };
        let metadata = metadata_offset(&bytes).unwrap_or(bytes.len());
        Ok(Self { key, revision, bytes, metadata, prefix, labels, fields: values, raw, message: OnceLock::new() })
    }

    /// The bytes as the store holds them.
    pub fn stored(&self) -> &Bytes {
        self.raw.as_ref().unwrap_or(&self.bytes)
    }

    /// Whether the object is in this version, as far as can be told without reading it.
    pub fn is_in_version(&self, api_version: &str) -> bool {
        let head = self.bytes.get(..self.metadata).unwrap_or_default();
        let member = format!("\"apiVersion\":\"{api_version}\"");
        head.windows(member.len()).any(|part| part == member.as_bytes())
    }

    /// The same object as of a later revision: what a watch shows of a deleted one.
    pub fn at(&self, revision: Revision) -> Self {
        Self {
            key: Arc::clone(&self.key),
            revision,
            bytes: self.bytes.clone(),
            metadata: self.metadata,
            prefix: self.prefix,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            raw: self.raw.clone(),
            message: OnceLock::new(),
        }
    }

    /// The key without the resource's prefix: `namespace/name`, or `name`.
    pub fn path(&self) -> &str {
        self.key.get(self.prefix..).unwrap_or("")
    }

    /// The object's namespace; empty for one without.
    pub fn namespace(&self) -> &str {
        self.path().rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        self.path().rsplit_once('/').map_or(self.path(), |(_, name)| name)
    }

    /// Appends the object's JSON with its resource version; without `apiVersion` and `kind` when `bare` (as the items
    /// of a typed list are).
    pub fn splice(&self, bare: bool, out: &mut Vec<u8>) {
        let head = if bare { &b"{"[..] } else { &self.bytes[..self.metadata] };
        out.extend_from_slice(head);
        out.extend_from_slice(METADATA);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(self.revision.to_string().as_bytes());
        out.extend_from_slice(b"\"");
        let rest = self.bytes.get(self.metadata + METADATA.len()..).unwrap_or(b"}}");
        if rest.first() != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(rest);
    }

    /// The object as the message of its kind, in the version that it is stored in.
    pub fn message(&self, api_version: &str, kind: &str) -> Result<Bytes, String> {
        if let Some(message) = self.message.get() {
            return Ok(message.clone());
        }
        let object = self.value().map_err(|e| e.to_string())?;
        let message = protobuf::message_of(api_version, kind, &object).map_err(|e| e.to_string())?;
        Ok(self.message.get_or_init(|| message.into()).clone())
    }

    /// The object, parsed, with its resource version.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        let mut object: Value = serde_json::from_slice(&self.bytes)?;
        value::object_mut(&mut object, &["metadata"]).insert("resourceVersion".into(), self.revision.to_string().into());
        Ok(object)
    }
}

/// The object's labels.
pub fn labels_of(object: &Value) -> BTreeMap<String, String> {
    let labels = value::at(object, &["metadata", "labels"]).as_object();
    labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// The JSON that the store keeps: type first, then metadata, and never a resource version, which is the store's to say.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    // Upstream's order: clients have been seen to count on it.
    for key in ["kind", "apiVersion"] {
        if let Some(text) = object.get(key).and_then(Value::as_str) {
            out.extend_from_slice(format!("\"{key}\":{},", Value::from(text)).as_bytes());
        }
    }
    out.extend_from_slice(METADATA);
    let mut first = true;
    for (key, member) in object.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if key != "resourceVersion" {
            push_member(&mut out, key, member, &mut first);
        }
    }
    out.push(b'}');
    let mut first = false;
    for (key, member) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            push_member(&mut out, key, member, &mut first);
        }
    }
    out.push(b'}');
    out
}

fn push_member(out: &mut Vec<u8>, key: &str, member: &Value, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    out.extend_from_slice(Value::from(key).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(member.to_string().as_bytes());
}

/// Where `"metadata":{` begins, if only the object's type stands before it.
fn metadata_offset(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes.strip_prefix(b"{")?;
    for _ in 0..3 {
        if rest.starts_with(METADATA) {
            return Some(bytes.len() - rest.len());
        }
        let key = ["\"apiVersion\":\"", "\"kind\":\""].into_iter().find(|k| rest.starts_with(k.as_bytes()))?;
        rest = &rest[key.len()..];
        let end = rest.iter().position(|b| *b == b'"')?;
        rest = rest[end + 1..].strip_prefix(b",")?;
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(object: Value, bare: bool, expected: &str) {
        let key: Arc<str> = "/registry/pods/ns/a".into();
        let stored = encode(&object).into();
        let object = Object::new(key, 7, stored, "/registry/pods/".len(), &Form::default()).expect("an object");
        assert_eq!((object.namespace(), object.name()), ("ns", "a"));
        let mut out = Vec::new();
        object.splice(bare, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn the_resource_version_is_spliced_in() {
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "data": 1, "metadata": {"name": "a", "resourceVersion": "3"}});
        check(pod.clone(), false, r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"7","name":"a"},"data":1}"#);
        check(pod, true, r#"{"metadata":{"resourceVersion":"7","name":"a"},"data":1}"#);
        check(json!({"kind": "Pod"}), false, r#"{"kind":"Pod","metadata":{"resourceVersion":"7"}}"#);
    }

    #[test]
    fn foreign_member_order_is_mended() {
        let bytes: &[u8] = br#"{"spec":{"metadata":{}},"metadata":{"name":"a","labels":{"x":"y"}},"kind":"Pod"}"#;
        let object = Object::new("/p/a".into(), 2, bytes.into(), 3, &Form::default()).expect("an object");
        assert_eq!(object.labels["x"], "y");
        assert!(object.bytes.starts_with(br#"{"kind":"Pod","metadata":{"#));
    }
}
