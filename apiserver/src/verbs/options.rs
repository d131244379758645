//! The options that requests carry in their query, checked as upstream checks them.

use serde_json::Value;
use skiff_api::{Status, field};

use super::Call;

/// How unknown and repeated fields of a body are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped in silence.
    Ignore,
    /// Dropped, and said in a `Warning` header.
    Warn,
    /// Refused.
    Strict,
}

/// The options of a write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Whether nothing is to be kept.
    pub dry_run: bool,
    /// How unknown and repeated fields are taken.
    pub validation: FieldValidation,
}

/// Refuses options of `kind` (`CreateOptions`) that have these errors.
pub fn check(kind: &str, errors: &[field::Error]) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", errors)) }
}

impl WriteOptions {
    /// Reads the options of a create, update or patch; `kind` is the kind of options that errors name, `errors` those that
    /// were found before.
    pub fn read(call: &Call, kind: &str, mut errors: Vec<field::Error>) -> Result<Self, Status> {
        let query = &call.query;
        let manager = query.get("fieldManager").unwrap_or("");
        if manager.len() > 128 {
            errors.push(field::Error::too_long("fieldManager", 128));
        } else if let Some((i, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
            let detail = format!("invalid character {c:?} (at position {i})");
            errors.push(field::Error::invalid("fieldManager", manager, detail));
        }
        let dry_run = dry_run(&query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.push(field::Error::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Warn
            }
        };
        check(kind, &errors)?;
        Ok(Self { dry_run, validation })
    }
}

/// Whether a run is dry, from the values of `dryRun`.
pub fn dry_run(values: &[&str], errors: &mut Vec<field::Error>) -> bool {
    if values.iter().any(|v| *v != "All") {
        errors.push(field::Error::not_supported("dryRun", Value::from(values.to_vec()), &["All"]));
        return true;
    }
    !values.is_empty()
}
