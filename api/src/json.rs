//! JSON as the API reads it: Go's error texts, duplicate keys noticed, depth limited.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The value; of repeated keys the last one counts.
    pub value: Value,
    /// `duplicate field "data.a"` for each repeated key, in the order of the text.
    pub duplicates: Vec<String>,
}

/// How many lists and objects may stand within one another. What nests deeper is refused, so that nothing that walks a value
/// later (its end included) can overflow the stack. It is serde_json's limit, by which stored objects are read again.
pub const MAX_DEPTH: usize = 127;

/// What is said of a value that nests deeper.
pub const TOO_DEEP: &str = "exceeded max depth";

/// How deep the value nests: 0 for a scalar.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Reads one JSON value. The error is worded as Go's: `unexpected end of JSON input`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    parse_noting(bytes, BTreeSet::new())
}

/// What is wrong with a text that [`parse`] reads, given the paths that its schema doesn't know: repeated keys and unknown
/// fields in the order of the text, as Go's decoder meets them.
pub fn faults(bytes: &[u8], unknown: &[String]) -> Vec<String> {
    parse_noting(bytes, unknown.iter().map(String::as_str).collect()).map(|parsed| parsed.duplicates).unwrap_or_default()
}

fn parse_noting(bytes: &[u8], unknown: BTreeSet<&str>) -> Result<Parsed, String> {
    let notes = RefCell::new(Notes { unknown, ..Notes::default() });
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&notes).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    match value {
        Ok(value) => Ok(Parsed { value, duplicates: notes.into_inner().duplicates }),
        Err(e) => Err(go_error(bytes, &e)),
    }
}

/// The error in Go's words. Which character is at fault is where serde_json stopped; what it was taken for is told
/// from what came before it.
fn go_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    if error.to_string().starts_with("recursion limit") {
        return TOO_DEEP.to_owned();
    }
    let line_start = bytes.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
    let at = (line_start + error.column().saturating_sub(1)).min(bytes.len().saturating_sub(1));
    let Some(&found) = bytes.get(at) else { return "unexpected end of JSON input".to_owned() };
    let shown = match char::from(found) {
        '\'' => r"'\''".to_owned(),
        c @ ('\n' | '\r' | '\t' | '\\') => format!("{c:?}"),
        c if c.is_ascii_control() => format!(r"'\x{:02x}'", u32::from(c)),
        c if c.is_control() => format!(r"'\u{:04x}'", u32::from(c)),
        c => format!("'{c}'"),
    };
    let message = error.to_string();
    let context = match &message {
        m if m.starts_with("trailing characters") => "after top-level value",
        m if m.starts_with("key must be a string") => "looking for beginning of object key string",
        m if m.starts_with("expected `:`") => "after object key",
        m if m.starts_with("expected `,` or `}`") => "after object key:value pair",
        m if m.starts_with("expected `,` or `]`") => "after array element",
        m if m.starts_with("control character") => "in string literal",
        m if m.starts_with("invalid escape") => "in string escape code",
        m if m.starts_with("invalid number") => "in numeric literal",
        m if m.starts_with("trailing comma") && found == b'}' => "looking for beginning of object key string",
        _ => "looking for beginning of value",
    };
    format!("invalid character {shown} {context}")
}

#[derive(Default)]
struct Notes<'a> {
    path: String,
    /// Paths to be noted when they are met.
    unknown: BTreeSet<&'a str>,
    duplicates: Vec<String>,
}

impl Notes<'_> {
    /// A key is met, at the path as it stands.
    fn note(&mut self, again: bool) {
        let fault = if again {
            "duplicate"
        } else if self.unknown.remove(self.path.as_str()) {
            "unknown"
        } else {
            return;
        };
        self.duplicates.push(format!("{fault} field \"{}\"", self.path));
    }
}

#[derive(Clone, Copy)]
struct Seed<'a, 'n>(&'a RefCell<Notes<'n>>);

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seed<'_, '_> {
    /// Reads what is below the path's next step.
    fn below<T>(self, step: fmt::Arguments<'_>, read: impl FnOnce() -> T) -> T {
        let len = self.0.borrow().path.len();
        fmt::write(&mut self.0.borrow_mut().path, step).unwrap_or_default();
        let value = read();
        self.0.borrow_mut().path.truncate(len);
        value
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("invalid number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::with_capacity(items.size_hint().unwrap_or(0));
        while let Some(item) = self.below(format_args!("[{}]", list.len()), || items.next_element_seed(self))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let dot = if self.0.borrow().path.is_empty() { "" } else { "." };
            let value = self.below(format_args!("{dot}{key}"), || {
                self.0.borrow_mut().note(map.contains_key(&key));
                entries.next_value_seed(self)
            })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[&str], &str>) {
        let parsed = parse(text.as_bytes()).map(|p| p.duplicates);
        assert_eq!(parsed.as_deref().map_err(String::as_str), expected.map(|d| d.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).as_deref().map_err(|e| *e), "{text}");
    }

    #[test]
    fn go_wording() {
        check("{}", Ok(&[]));
        check("", Err("unexpected end of JSON input"));
        check("{\"a\":", Err("unexpected end of JSON input"));
        check("{\"a\":1,}", Err("invalid character '}' looking for beginning of object key string"));
        check("{\"a\" 1}", Err("invalid character '1' after object key"));
        check("{\"a\":x}", Err("invalid character 'x' looking for beginning of value"));
        check("{\"a\":1 \"b\":2}", Err("invalid character '\"' after object key:value pair"));
        check("{a:1}", Err("invalid character 'a' looking for beginning of object key string"));
        check("[1 2]", Err("invalid character '2' after array element"));
        check("{} x", Err("invalid character 'x' after top-level value"));
        check("\n\n  x", Err("invalid character 'x' looking for beginning of value"));
    }

    #[test]
    fn duplicates_and_depth() {
        check(r#"{"data":{"a":"1","a":"2"},"l":[{"b":1},{"b":1,"b":2}]}"#, Ok(&["duplicate field \"data.a\"", "duplicate field \"l[1].b\""]));
        let unknown = ["spec.b".to_owned(), "a".to_owned()];
        let expected = ["unknown field \"spec.b\"", "duplicate field \"spec.c\"", "duplicate field \"spec.b\"", "unknown field \"a\""];
        assert_eq!(faults(br#"{"spec":{"b":1,"c":2,"c":3,"b":4},"a":5}"#, &unknown), expected);
        assert_eq!(parse(b"{\"a\":1,\"a\":2}").map(|p| p.value), Ok(serde_json::json!({"a": 2})));
        check(&"[".repeat(100_000), Err("exceeded max depth"));
        let nested = |levels| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        check(&nested(MAX_DEPTH), Ok(&[]));
        check(&nested(MAX_DEPTH + 1), Err(TOO_DEEP));
        assert_eq!(parse(nested(MAX_DEPTH).as_bytes()).map(|p| depth(&p.value)), Ok(MAX_DEPTH));
    }
}
