//! Kinds that are served in several versions: from the stored version to the one asked for, and back.

use serde_json::Value;
use skiff_api::convert;
use skiff_api::resource::Resource;

/// The object in the resource's version. What is in that version already stays as it is.
pub fn to_version(resource: &Resource, mut object: Value) -> Value {
    if object.get("apiVersion").is_some_and(Value::is_string) {
        convert::to_version(&mut object, &resource.api_version());
    }
    object
}

/// The object in the version that the resource is stored as.
pub fn to_stored(resource: &Resource, mut object: Value) -> Value {
    if !resource.stored_as.is_empty() && object.get("apiVersion").is_some_and(Value::is_string) {
        convert::to_version(&mut object, &resource.stored_as);
    }
    object
}
