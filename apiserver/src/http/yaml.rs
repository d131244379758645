//! YAML as the API reads it: as the JSON that it stands for, repeated keys noticed with their lines.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// The value; of repeated keys the last one counts.
    pub value: Value,
    /// `line 9: key "foo" already set in map` for each repeated key, in the order of the text.
    pub repeated: Vec<String>,
}

/// Reads a document.
///
/// # Errors
///
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Read, String> {
    let repeated = RefCell::new(Vec::new());
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| Tree(&repeated).deserialize(de));
    let value = read.map_err(|e| e.to_string())?;
    Ok(Read { value, repeated: repeated.into_inner() })
}

/// Reads a value and notes the repeated keys of its maps.
#[derive(Clone, Copy)]
struct Tree<'a>(&'a RefCell<Vec<String>>);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
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

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = map.next_value_seed(self)?;
            let line = key.referenced.line();
            if members.insert(key.value.clone(), value).is_some() {
                self.0.borrow_mut().push(format!("line {line}: key {:?} already set in map", key.value));
            }
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repeated_keys_are_told_with_their_lines() {
        let read = parse("\na: 1\nb:\n- c: x\n  c: \"5\"\na: ~\nt: true\nf: 1.5\n'no': no\n").expect("a document");
        assert_eq!(read.value, json!({"a": null, "b": [{"c": "5"}], "t": true, "f": 1.5, "no": false}));
        assert_eq!(read.repeated, ["line 5: key \"c\" already set in map", "line 6: key \"a\" already set in map"]);
        assert!(parse("a: [").is_err());
    }
}
