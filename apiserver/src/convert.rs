//! Kinds that are served in several versions: from the stored version to the one asked for, and back.

use serde_json::Value;
use skiff_api::convert;
use skiff_api::resource::Resource;

/// The object in the resource's version. What is in that version already stays as it is.
pub fn to_version(resource: &Resource, object: Value) -> Value {
    to(resource, object, &resource.api_version())
}

/// The object in the version that the resource is stored as.
pub fn to_stored(resource: &Resource, object: Value) -> Value {
    if resource.stored_as.is_empty() { object } else { to(resource, object, &resource.stored_as) }
}

fn to(resource: &Resource, mut object: Value, version: &str) -> Value {
    let Some(from) = object.get("apiVersion").and_then(Value::as_str) else { return object };
    match resource.custom() {
        // What another version doesn't know is lost on the way to it.
        Some(custom) if from != version => {
            object["apiVersion"] = version.into();
            custom.prune(&mut object);
        }
        Some(_) => {}
        None => convert::to_version(&mut object, version),
    }
    object
}
