//! OpenAPI 2 as a protobuf message: gnostic's `openapi.v2.Document`, which older clients ask for. Field numbers are those
//! of gnostic's OpenAPIv2.proto; what no client reads (answers, bodies, tags) is left out of the paths.

use serde_json::{Map, Value};

/// The media types that clients ask for it by: the newer and the older name.
pub(super) const MEDIA_TYPES: [&str; 2] =
    ["application/com.github.proto-openapi.spec.v2.v1.0+protobuf", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"];

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number as u8 & 0x7f) | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// Appends a field of bytes.
    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Appends a text; nothing for what is no text.
    fn text(&mut self, field: u64, text: &Value) {
        if let Some(text) = text.as_str().filter(|t| !t.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    /// Appends each text of a list.
    fn texts(&mut self, field: u64, list: &Value) {
        for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, value: &Value) {
        if value == true {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn number(&mut self, field: u64, value: &Value) {
        if let Some(number) = value.as_i64() {
            self.varint(field << 3);
            // Negative numbers are their two's complement.
            self.varint(number as u64);
        }
    }

    fn double(&mut self, field: u64, value: &Value) {
        if let Some(number) = value.as_f64() {
            self.varint(field << 3 | 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Appends a message.
    fn message(&mut self, field: u64, message: Self) {
        self.bytes(field, &message.0);
    }

    /// Appends a name with a message, gnostic's way of a map's entry.
    fn named(&mut self, field: u64, name: &str, value: Self) {
        let mut entry = Self::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, entry);
    }

    /// Appends a map of schemas, unless there is none.
    fn schemas(&mut self, field: u64, schemas: &Value) {
        let Some(schemas) = schemas.as_object() else { return };
        let mut map = Self::default();
        for (name, of) in schemas {
            map.named(1, name, schema(of));
        }
        self.message(field, map);
    }

    /// Appends the members that are vendors' own.
    fn extensions(&mut self, field: u64, object: &Map<String, Value>) {
        for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, any(value));
        }
    }
}

/// A message of one field that is a message.
fn wrapped(field: u64, message: Message) -> Message {
    let mut outer = Message::default();
    outer.message(field, message);
    outer
}

/// Any value: gnostic keeps it as YAML, of which JSON is a part.
fn any(value: &Value) -> Message {
    let mut any = Message::default();
    any.bytes(2, value.to_string().as_bytes());
    any
}

fn schema(of: &Value) -> Message {
    let mut m = Message::default();
    m.text(1, &of["$ref"]);
    m.text(2, &of["format"]);
    m.text(3, &of["title"]);
    m.text(4, &of["description"]);
    if !of["default"].is_null() {
        m.message(5, any(&of["default"]));
    }
    m.double(7, &of["maximum"]);
    m.double(9, &of["minimum"]);
    m.number(11, &of["maxLength"]);
    m.number(12, &of["minLength"]);
    m.text(13, &of["pattern"]);
    m.number(14, &of["maxItems"]);
    m.number(15, &of["minItems"]);
    m.flag(16, &of["uniqueItems"]);
    m.texts(19, &of["required"]);
    for value in of["enum"].as_array().into_iter().flatten() {
        m.message(20, any(value));
    }
    match &of["additionalProperties"] {
        Value::Object(_) => m.message(21, wrapped(1, schema(&of["additionalProperties"]))),
        Value::Bool(allowed) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(u64::from(*allowed));
            m.message(21, item);
        }
        _ => {}
    }
    if let Some(kind) = of["type"].as_str() {
        let mut item = Message::default();
        item.bytes(1, kind.as_bytes());
        m.message(22, item);
    }
    if of["items"].is_object() {
        m.message(23, wrapped(1, schema(&of["items"])));
    }
    for part in of["allOf"].as_array().into_iter().flatten() {
        m.message(24, schema(part));
    }
    m.schemas(25, &of["properties"]);
    if let Some(of) = of.as_object() {
        m.extensions(31, of);
    }
    m
}

/// A parameter of the query; others aren't written.
fn parameter(of: &Value) -> Option<Message> {
    if of["in"] != "query" {
        return None;
    }
    let mut m = Message::default();
    m.flag(1, &of["required"]);
    m.text(2, &of["in"]);
    m.text(3, &of["description"]);
    m.text(4, &of["name"]);
    m.text(6, &of["type"]);
    m.flag(20, &of["uniqueItems"]);
    // A query parameter is a kind of non-body parameter, which is a parameter, which stands in the list by itself.
    Some(wrapped(1, wrapped(2, wrapped(3, m))))
}

fn operation(of: &Map<String, Value>) -> Message {
    let at = |key: &str| of.get(key).unwrap_or(&Value::Null);
    let mut m = Message::default();
    m.text(3, at("description"));
    m.text(5, at("operationId"));
    m.texts(6, at("produces"));
    m.texts(7, at("consumes"));
    for parameter in at("parameters").as_array().into_iter().flatten().filter_map(parameter) {
        m.message(8, parameter);
    }
    m.extensions(13, of);
    m
}

fn path(of: &Value) -> Message {
    let mut m = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(of) = of[method].as_object() {
            m.message(field, operation(of));
        }
    }
    m
}

/// The document as bytes.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    let mut paths = Message::default();
    for (name, of) in document["paths"].as_object().into_iter().flatten() {
        paths.named(2, name, path(of));
    }
    let mut m = Message::default();
    m.text(1, &document["swagger"]);
    m.message(2, info);
    m.message(8, paths);
    m.schemas(9, &document["definitions"]);
    m.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value, expected: &str) {
        let hex: String = schema(&value).0.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected, "{value}");
    }

    #[test]
    fn schemas() {
        check(json!({"$ref": "#/d"}), "0a03232f64");
        check(json!({"description": "é", "required": ["a", "b"]}), "2202c3a99a010161 9a010162".replace(' ', "").as_str());
        check(json!({"type": "array", "items": {"type": "string"}}), concat!("b20107", "0a056172726179", "ba010d", "0a0b", "b201080a06737472696e67"));
        check(json!({"properties": {"a": {}}}), "ca01070a050a01611200");
        check(json!({"additionalProperties": true}), "aa01021001");
        check(json!({"x-k": [1]}), concat!("fa010c", "0a03782d6b", "1205", "12035b315d"));
    }
}
