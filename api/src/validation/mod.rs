//! The rules of each kind, with upstream's messages.

use serde_json::Value;

use crate::field;
use crate::resource::Resource;

/// What is wrong with an object that is to be created.
pub fn validate_create(_resource: &Resource, _object: &Value) -> Vec<field::Error> {
    Vec::new()
}

/// What is wrong with an object that is to replace another.
pub fn validate_update(_resource: &Resource, _new: &Value, _old: &Value) -> Vec<field::Error> {
    Vec::new()
}

/// What is wrong with an object whose status is to replace another's.
pub fn validate_status_update(_resource: &Resource, _new: &Value, _old: &Value) -> Vec<field::Error> {
    Vec::new()
}
