//! CBOR, as upstream writes and reads it behind its feature gate `CBORServingAndStorage`: strings as byte strings, maps in the
//! order of their encoded keys, each item behind the tag that says it is CBOR. What is read may be any CBOR that stands for JSON.

use std::convert::Infallible;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use jiff::Timestamp;
use minicbor::data::{Tag, Type};
use minicbor::decode::Error as Misread;
use minicbor::encode::Error as Miswritten;
use minicbor::{Decoder, Encoder};
use serde_json::{Map, Number, Value};

/// One item.
pub const MEDIA_TYPE: &str = "application/cbor";
/// Items one after the other, as the events of a watch are.
pub const SEQUENCE: &str = "application/cbor-seq";
/// Server-side apply.
pub const APPLY: &str = "application/apply-patch+cbor";
/// What every item begins with: the tag "this is CBOR", of RFC 8949, 3.4.6.
pub const MAGIC: &[u8] = &[0xd9, 0xd9, 0xf7];

const SELF_DESCRIBED: u64 = 55_799;
/// How deep arrays, maps and tags may be nested: as deep as JSON is read.
const MAX_DEPTH: usize = 128;

/// CBOR that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It isn't CBOR.
    #[error("cbor: {0}")]
    Malformed(#[from] Misread),
    /// It is more than one item.
    #[error("cbor: {0} bytes of extraneous data")]
    Extraneous(usize),
    /// It stands for nothing that JSON can say.
    #[error("cbor: {0}")]
    Unsupported(&'static str),
    /// A map has a key twice: RFC 8949 calls it invalid.
    #[error("cbor: found duplicate map key {0:?}")]
    Duplicate(String),
}

type Written = Result<(), Miswritten<Infallible>>;

/// The item.
///
/// # Errors
///
/// None that can be named: writing to memory doesn't fail.
pub fn encode(value: &Value) -> Result<Vec<u8>, Miswritten<Infallible>> {
    let mut out = Vec::new();
    item(value, &mut Encoder::new(&mut out))?;
    Ok(out)
}

/// Appends a watch's event.
///
/// # Errors
///
/// As [`encode`].
pub fn event(kind: &str, object: &Value, out: &mut Vec<u8>) -> Written {
    let mut encoder = Encoder::new(out);
    encoder.tag(Tag::new(SELF_DESCRIBED))?.map(2)?;
    encoder.bytes(b"type")?.bytes(kind.as_bytes())?.bytes(b"object")?;
    item(object, &mut encoder)
}

fn item(value: &Value, out: &mut Encoder<&mut Vec<u8>>) -> Written {
    out.tag(Tag::new(SELF_DESCRIBED))?;
    write(value, out)
}

fn write(value: &Value, out: &mut Encoder<&mut Vec<u8>>) -> Written {
    match value {
        Value::Null => out.null()?.ok(),
        Value::Bool(value) => out.bool(*value)?.ok(),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => out.i64(number)?.ok(),
            (_, Some(number), _) => out.u64(number)?.ok(),
            (.., float) => float_of(float.unwrap_or_default(), out),
        },
        Value::String(text) => out.bytes(text.as_bytes())?.ok(),
        Value::Array(items) => {
            out.array(items.len() as u64)?;
            items.iter().try_for_each(|item| write(item, out))
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| (key.len(), *key));
            out.map(members.len() as u64)?;
            members.into_iter().try_for_each(|(key, value)| {
                out.bytes(key.as_bytes())?;
                write(value, out)
            })
        }
    }
}

/// The shortest form that keeps the value.
fn float_of(float: f64, out: &mut Encoder<&mut Vec<u8>>) -> Written {
    let single = float as f32;
    if f64::from(single) != float {
        return out.f64(float)?.ok();
    }
    let mut half = Vec::new();
    Encoder::new(&mut half).f16(single)?;
    match Decoder::new(&half).f16() {
        Ok(back) if back == single => out.f16(single)?.ok(),
        _ => out.f32(single)?.ok(),
    }
}

/// Reads one item, and nothing behind it.
///
/// # Errors
///
/// What is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let bytes = bytes.strip_prefix(MAGIC).unwrap_or(bytes);
    let mut decoder = Decoder::new(bytes);
    let value = read(&mut decoder, 0)?;
    match bytes.len() - decoder.position() {
        0 => Ok(value),
        rest => Err(Error::Extraneous(rest)),
    }
}

/// How many bytes the first item takes.
///
/// # Errors
///
/// What is wrong with it.
pub fn length(bytes: &[u8]) -> Result<usize, Error> {
    let mut decoder = Decoder::new(bytes);
    decoder.skip()?;
    Ok(decoder.position())
}

fn read(from: &mut Decoder<'_>, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Unsupported("exceeded max nested level"));
    }
    Ok(match from.datatype()? {
        Type::Null => from.null().map(|()| Value::Null)?,
        Type::Bool => from.bool()?.into(),
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 => from.i64()?.into(),
        Type::F16 => number(f64::from(from.f16()?))?,
        Type::F32 => number(f64::from(from.f32()?))?,
        Type::F64 => number(from.f64()?)?,
        Type::Bytes | Type::BytesIndef | Type::String | Type::StringIndef => text(from)?.into(),
        Type::Array | Type::ArrayIndef => {
            let mut items = Vec::new();
            let count = from.array()?;
            while more(from, count, items.len())? {
                items.push(read(from, depth + 1)?);
            }
            items.into()
        }
        Type::Map | Type::MapIndef => {
            let mut members = Map::new();
            let count = from.map()?;
            while more(from, count, members.len())? {
                let key = text(from)?;
                let value = read(from, depth + 1)?;
                if members.contains_key(&key) {
                    return Err(Error::Duplicate(key));
                }
                members.insert(key, value);
            }
            members.into()
        }
        Type::Tag => tagged(from, depth)?,
        _ => return Err(Error::Unsupported("value has no JSON form")),
    })
}

/// Whether another element comes; takes in the end of what has no count.
fn more(from: &mut Decoder<'_>, count: Option<u64>, seen: usize) -> Result<bool, Error> {
    match count {
        Some(count) => Ok((seen as u64) < count),
        None if from.datatype()? == Type::Break => {
            from.set_position(from.position() + 1);
            Ok(false)
        }
        None => Ok(true),
    }
}

fn number(float: f64) -> Result<Value, Error> {
    Number::from_f64(float).map(Value::Number).ok_or(Error::Unsupported("NaN and infinities have no JSON form"))
}

/// A text or byte string: both are strings here.
fn text(from: &mut Decoder<'_>) -> Result<String, Error> {
    if matches!(from.datatype()?, Type::String | Type::StringIndef) {
        return Ok(from.str_iter()?.collect::<Result<String, _>>()?);
    }
    String::from_utf8(bytes(from)?).map_err(|_| Error::Unsupported("string is no UTF-8"))
}

fn bytes(from: &mut Decoder<'_>) -> Result<Vec<u8>, Error> {
    let mut whole = Vec::new();
    for part in from.bytes_iter()? {
        whole.extend_from_slice(part?);
    }
    Ok(whole)
}

/// What a tag makes of its content: times become RFC 3339, bytes the text that is expected of them later; others say nothing.
fn tagged(from: &mut Decoder<'_>, depth: usize) -> Result<Value, Error> {
    let tag = from.tag()?.as_u64();
    let is_bytes = matches!(from.datatype()?, Type::Bytes | Type::BytesIndef);
    Ok(match tag {
        1 => {
            let seconds = read(from, depth + 1)?;
            let time = seconds.as_i64().map(Timestamp::from_second).or_else(|| {
                let seconds = seconds.as_f64()?;
                Some(jiff::SignedDuration::try_from_secs_f64(seconds).and_then(Timestamp::from_duration))
            });
            let time = time.and_then(Result::ok).ok_or(Error::Unsupported("time is out of range"))?;
            time.to_string().into()
        }
        2 | 3 => return Err(Error::Unsupported("bignums are not supported")),
        21 if is_bytes => URL_SAFE.encode(bytes(from)?).trim_end_matches('=').into(),
        22 if is_bytes => STANDARD.encode(bytes(from)?).into(),
        23 if is_bytes => bytes(from)?.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into(),
        _ => read(from, depth + 1)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes_of(hex: &str) -> Vec<u8> {
        hex.split_whitespace().flat_map(|word| (0..word.len() / 2).map(|i| u8::from_str_radix(&word[2 * i..2 * i + 2], 16).expect("hex")).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn written_as_upstream_does() {
        let check = |value: Value, hex: &str| {
            let written = encode(&value).expect("memory");
            assert_eq!(written, bytes_of(&format!("d9d9f7 {hex}")), "{value}");
            assert_eq!(decode(&written).expect("what was written"), value);
        };
        check(json!(null), "f6");
        check(json!([true, false]), "82 f5 f4");
        check(json!(-1), "20");
        check(json!(i64::MAX), "1b7fffffffffffffff");
        check(json!(1.5), "f93e00");
        check(json!(100_000.5), "fa47c35040");
        check(json!(1.1), "fb3ff199999999999a");
        check(json!("a"), "41 61");
        check(json!({"bb": 1, "a": {"c": []}, "aa": 2}), "a3 4161 a1 4163 80 426161 02 426262 01");
        let mut frame = Vec::new();
        event("ADDED", &json!({}), &mut frame).expect("memory");
        assert_eq!(frame, bytes_of("d9d9f7 a2 4474797065 454144444544 466f626a656374 d9d9f7 a0"));
        assert_eq!(length(&[frame.as_slice(), b"more"].concat()).expect("an item"), frame.len());
    }

    #[test]
    fn read_as_upstream_does() {
        let check = |hex: &str, expected: Result<Value, &str>| {
            assert_eq!(decode(&bytes_of(hex)).map_err(|e| e.to_string()), expected.map_err(str::to_owned), "{hex}");
        };
        check("6161", Ok(json!("a")));
        check("7f 6161 6162 ff", Ok(json!("ab")));
        check("5f 4161 4162 ff", Ok(json!("ab")));
        check("9f 01 02 ff", Ok(json!([1, 2])));
        check("bf 6161 01 ff", Ok(json!({"a": 1})));
        check("d6 43 010203", Ok(json!("AQID")));
        check("d5 42 fbff", Ok(json!("-_8")));
        check("d7 42 0aff", Ok(json!("0AFF")));
        check("c0 74 323032362d30312d30315430303a30303a30305a", Ok(json!("2026-01-01T00:00:00Z")));
        check("c1 00", Ok(json!("1970-01-01T00:00:00Z")));
        check("d8 64 01", Ok(json!(1)));
        check("c2 41 01", Err("cbor: bignums are not supported"));
        check("f97e00", Err("cbor: NaN and infinities have no JSON form"));
        check("f7", Err("cbor: value has no JSON form"));
        check("41ff", Err("cbor: string is no UTF-8"));
        check("a2 6161 01 4161 02", Err("cbor: found duplicate map key \"a\""));
        check("01 02", Err("cbor: 1 bytes of extraneous data"));
        assert!(decode(&bytes_of("1bffffffffffffffff")).is_err(), "no int64");
        assert!(decode(&bytes_of("9a ffffffff 01")).is_err(), "fewer elements than are said");
        assert!(decode(&[0x81].repeat(100_000)).is_err(), "too deep");
        assert!(decode(&[0xc6].repeat(100_000)).is_err(), "tags too deep");
        assert!(decode(&[]).is_err(), "nothing");
    }
}
