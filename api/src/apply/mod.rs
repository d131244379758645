//! Server-side apply: who owns which field, and what an applied configuration makes of an object.
//!
//! The rules are upstream's structured-merge-diff and field manager. The owners stand in `metadata.managedFields`,
//! one entry a manager, operation, version (for updates) and subresource.

mod managed;
mod set;
mod walk;

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;

pub use set::FieldSet;
pub use walk::{Comparison, atomics, compare, fields_of, merge};

use crate::schema::Schema;
use crate::validation::meta::ANNOTATIONS_MAX;
use crate::value::{at, object_mut, remove as take, text};
use managed::Managed;

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
    /// The owner as messages show it: `"kubectl" using apps/v1`.
    pub owner: String,
    /// `.spec.replicas`
    pub field: String,
}

impl Conflict {
    /// `conflict with "kubectl" using apps/v1`: the message of the `Status` cause, whose reason is `FieldManagerConflict`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.owner)
    }
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Others own fields that it would change: 409.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration doesn't fit the schema: upstream's `failed to create typed patch object (NAME): ` goes before it.
    #[error("{0}")]
    Invalid(String),
}

/// The sentence of the `Status` that lists the conflicts.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message(), one.field);
    }
    let mut owners: Vec<&str> = conflicts.iter().map(|c| c.owner.as_str()).collect();
    owners.sort_unstable();
    owners.dedup();
    let mut lines = Vec::new();
    for owner in owners {
        lines.push(format!("conflicts with {owner}:"));
        lines.extend(conflicts.iter().filter(|c| c.owner == owner).map(|c| format!("- {}", c.field)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Where kubectl's client-side apply keeps what it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Applies a configuration to an object (none yet: the configuration creates it), and keeps the books in
/// `metadata.managedFields`. `reset` names the fields that this endpoint ignores (`["status"]` of the main
/// resource): they are neither owned nor changed. `force` takes over what others own.
///
/// The result is merged but neither pruned nor defaulted. Where nothing changes it equals the live object.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager,
    force: bool,
    reset: &[&[&str]],
) -> Result<Value, Error> {
    let mut config = config.clone();
    for path in reset {
        take(&mut config, path);
    }
    let applied = fields_of(schema, &config).map_err(Error::Invalid)?;
    let result = apply_once(schema, live, &config, &applied, manager, force);
    let Err(Error::Conflicts(conflicts)) = &result else { return Ok(finish(live, result?, &config, manager)) };
    // What kubectl once applied on the client's side it may take over, as long as nobody changed it since.
    let old = live.filter(|_| manager.name == "kubectl").and_then(|live| last_applied(schema, live, manager));
    let Some(old) = old else { return result };
    let own: HashSet<String> = old.paths().iter().map(|path| set::shown(path)).collect();
    let foreign: Vec<Conflict> = conflicts.iter().filter(|c| !own.contains(&c.field)).cloned().collect();
    if !foreign.is_empty() {
        return Err(Error::Conflicts(foreign));
    }
    let forced = apply_once(schema, live, &config, &applied, manager, true)?;
    Ok(finish(live, forced, &config, manager))
}

/// The fields of the last client-side apply that still have the values it gave them.
fn last_applied(schema: &Schema, live: &Value, manager: &Manager) -> Option<FieldSet> {
    let config: Value = serde_json::from_str(text(live, &["metadata", "annotations", LAST_APPLIED])).ok()?;
    if config["apiVersion"] != manager.api_version.as_str() {
        return None;
    }
    let changes = compare(schema, &config, live);
    let changed = changes.added.union(&changes.modified).union(&changes.removed);
    Some(fields_of(schema, &config).ok()?.difference(&changed))
}

fn apply_once(
    schema: &Schema,
    live: Option<&Value>,
    config: &Value,
    applied: &FieldSet,
    manager: &Manager,
    force: bool,
) -> Result<Value, Error> {
    let mut old = live.cloned().unwrap_or_else(|| schema.zero());
    let mut managed = Managed::read(at(&old, &["metadata", "managedFields"]));
    take(&mut old, &["metadata", "managedFields"]);
    if managed.is_empty() && live.is_some() {
        let before = Manager { name: "before-first-apply".into(), operation: Operation::Update, ..manager.clone() };
        managed.update(&before, &compare(schema, &schema.zero(), &old));
    }
    let merged = walk::merge(schema, Some(&old), Some(config));
    let last = managed.replace(manager, applied.clone());
    let new = match &last {
        Some(last) if !last.is_empty() => drop_unapplied(schema, &merged, &managed.all_fields(), last),
        _ => merged,
    };
    let changes = compare(schema, &old, &new);
    managed.give_way(manager, &changes, force)?;
    let unchanged = new == old && last.as_ref() == Some(applied);
    managed.settle(manager, unchanged);
    let mut new = new;
    managed.write(&mut new);
    Ok(new)
}

/// Takes out what the manager applied before and does no more, unless somebody else owns it.
fn drop_unapplied(schema: &Schema, merged: &Value, owned: &FieldSet, last: &FieldSet) -> Value {
    let fields = |value: &Value| fields_of(schema, value).unwrap_or_default().with_named_fields(schema);
    let last = last.with_named_fields(schema);
    let pruned = walk::remove(schema, merged, &last);
    let of_merged = fields(merged);
    let back = of_merged.difference(&fields(&pruned).union(&owned.with_named_fields(schema)));
    let pruned = walk::remove(schema, merged, &back);
    // What was never this manager's stays, even where its parents go.
    walk::remove(schema, merged, &of_merged.difference(&fields(&pruned)).intersection(&last))
}

/// Keeps kubectl's annotation in step, and the old times where nothing else changed.
fn finish(live: Option<&Value>, mut new: Value, config: &Value, manager: &Manager) -> Value {
    if manager.name == "kubectl" && !text(&new, &["metadata", "annotations", LAST_APPLIED]).is_empty() {
        let mut plain = config.clone();
        take(&mut plain, &["metadata", "annotations", LAST_APPLIED]);
        let annotations = object_mut(&mut new, &["metadata", "annotations"]);
        annotations.insert(LAST_APPLIED.to_owned(), format!("{plain}\n").into());
        // One that has grown too large goes: the object itself may be applied all the same.
        let size: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
        if size > ANNOTATIONS_MAX {
            annotations.remove(LAST_APPLIED);
        }
    }
    if let Some(live) = live {
        managed::keep_times(live, &mut new);
    }
    new
}

/// Keeps the books of a create, update or patch: the manager owns what it changed between `old` and `new`, and loses
/// others' entries what it changed. `new` may bring its own `managedFields`; a single empty entry gives all ownership
/// up. `reset` names the fields that this endpoint ignores.
pub fn update_managed_fields(schema: &Schema, old: Option<&Value>, new: &mut Value, manager: &Manager, reset: &[&[&str]]) {
    let given = take(new, &["metadata", "managedFields"]).unwrap_or(Value::Null);
    let of_old = old.map_or(&Value::Null, |old| at(old, &["metadata", "managedFields"]));
    let mut managed = Managed::read(&given);
    let given_up = given.as_array().is_some_and(|entries| entries.len() == 1 && entries[0] == serde_json::json!({}));
    if manager.subresource.is_empty() && given_up {
        managed = Managed::default();
    } else if managed.is_empty() || !manager.subresource.is_empty() {
        managed = Managed::read(of_old);
    }
    // An object that nobody keeps books of gets none by an update.
    if managed.is_empty() && old.is_some() {
        return;
    }
    let mut changes = match old {
        Some(old) => compare(schema, old, new),
        None => compare(schema, &schema.zero(), new),
    };
    changes.ignore(&[&["metadata", "managedFields"]]);
    changes.ignore(reset);
    managed.update(manager, &changes);
    managed.write(new);
    if let Some(old) = old {
        managed::keep_times(old, new);
    }
}

#[cfg(test)]
mod tests;
