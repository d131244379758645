//! The token by which the next page of a list is asked for: upstream's, base64 of JSON.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use serde::{Deserialize, Serialize};
use skiff_api::{Status, json};
use skiff_store::Revision;

#[derive(Debug, Deserialize, Serialize)]
struct Continue {
    v: String,
    /// Negative: the newest.
    rv: i64,
    start: String,
}

/// Upstream minds no bits that are too many.
const BASE64: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// A token for what follows the path (below the resource's prefix), at a revision (`None`: the newest).
pub fn write(revision: Option<Revision>, path: &str) -> String {
    let rv = revision.and_then(|revision| i64::try_from(revision).ok()).unwrap_or(-1);
    let token = Continue { v: "meta.k8s.io/v1".into(), rv, start: format!("{path}\0") };
    BASE64.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// The revision (`None`: the newest) and the key, below the resource's `prefix`, after which the next page begins.
///
/// # Errors
///
/// Upstream's refusals of tokens that it didn't make.
pub fn read(token: &str, prefix: &str) -> Result<(Option<Revision>, String), Status> {
    let invalid = |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = BASE64.decode(token.trim_end_matches('=')).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(at) => at.saturating_sub(1),
            base64::DecodeError::InvalidPadding => token.len(),
        };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    let read = json::parse(&bytes).map_err(invalid)?.value;
    let read: Continue = serde_json::from_value(read).map_err(|e| invalid(e.to_string()))?;
    if read.v != "meta.k8s.io/v1" {
        let message = format!("invalid continue token: continue key is not valid: server does not recognize this encoded version {}", read.v);
        return Err(Status::bad_request(message));
    }
    let path = read.start.trim_end_matches('\0');
    if read.rv == 0 {
        return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
    }
    if read.start.is_empty() {
        return Err(invalid("encoded start key empty (version meta.k8s.io/v1)".into()));
    }
    // A key that leads elsewhere.
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(read.start));
    }
    Ok((u64::try_from(read.rv).ok(), format!("{prefix}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read() {
        let check = |rv: i64, start: &str, expected: Result<(Option<Revision>, &str), &str>| {
            let token = Continue { v: "meta.k8s.io/v1".into(), rv, start: start.into() };
            let text = BASE64.encode(serde_json::to_vec(&token).expect("JSON"));
            let found = read(&text, "/registry/pods/").map_err(|status| status.message);
            let expected = expected.map(|(rv, key)| (rv, key.to_owned()));
            assert_eq!(found, expected.map_err(|why| format!("invalid continue token: continue key is not valid: {why}")), "{start}");
        };
        check(7, "ns/a\0", Ok((Some(7), "/registry/pods/ns/a")));
        check(-1, "a\0", Ok((None, "/registry/pods/a")));
        check(0, "a\0", Err("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        check(7, "", Err("encoded start key empty (version meta.k8s.io/v1)"));
        check(7, "../secrets/a", Err("../secrets/a"));
    }
}
