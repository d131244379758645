//! Default values, as upstream's defaulting pass sets them on every write.

use serde_json::Value;

use crate::resource::Resource;

/// Sets what is absent and has a default.
pub fn apply(_resource: &Resource, _object: &mut Value) {}
