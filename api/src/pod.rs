//! What is true of a pod: readiness, requests, quality of service; and what binds pods to nodes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::quantity::Quantity;

/// Whether the pod's `Ready` condition is true.
pub fn is_ready(_pod: &Value) -> bool {
    false
}

/// Whether the pod has been ready for at least so many seconds.
pub fn is_available(_pod: &Value, _min_ready_seconds: i32, _now: Timestamp) -> bool {
    false
}

/// What the scheduler reckons the pod needs.
pub fn requests(_pod: &Value) -> BTreeMap<String, Quantity> {
    BTreeMap::new()
}
