//! Structural schemas: what shape a kind's JSON has, and the facts that merging, applying and defaulting need.
//!
//! The schemas of built-in kinds are read, definition by definition when first asked for, from a data file; a custom
//! resource's comes from its definition. Nothing here checks an object's *rules*: that is `validation`.

mod builtin;
mod crd;
mod golang;
mod prune;

pub use prune::shown_value;

use std::borrow::Cow;
use std::ops::Deref;

use serde_json::Value;

pub use builtin::{Definition, definition_names, enum_values};

/// A node of a structural schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// What JSON it takes.
    pub kind: Kind,
    /// Go's name of the type where it is a named one (`v1.PullPolicy`): decoding errors show it. Empty otherwise.
    pub go_type: Cow<'static, str>,
    /// Whether null is a value of its own (custom resources only).
    pub nullable: bool,
    /// An object or map that is owned and replaced as a whole.
    pub atomic: bool,
}

/// What JSON a schema takes.
#[derive(Clone, Debug, Default)]
pub enum Kind {
    /// Anything at all, kept as it is.
    #[default]
    Any,
    /// An object with known properties.
    Object(Object),
    /// An object with any keys.
    Map(Node),
    /// A list.
    List(List),
    /// Text.
    String,
    /// Bytes, as base64 text.
    Bytes,
    /// A quantity, as text or as a number.
    Quantity,
    /// An RFC 3339 time in whole seconds.
    Time,
    /// An RFC 3339 time in microseconds.
    MicroTime,
    /// A 32-bit integer or text.
    IntOrString,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A `JSONSchemaProps` or something else: what definitions of custom resources have in a few places.
    SchemaOr(Other),
}

/// What may stand in place of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// `JSONSchemaPropsOrArray`: several schemas.
    List,
    /// `JSONSchemaPropsOrBool`
    Bool,
    /// `JSONSchemaPropsOrStringArray`
    Strings,
}

/// An object with known properties.
#[derive(Clone, Debug, Default)]
pub struct Object {
    /// The name of the Go struct, `DeploymentSpec`; empty in custom resources.
    pub name: &'static str,
    /// The name of the built-in definition, `io.k8s.api.apps.v1.DeploymentSpec`; empty in custom resources.
    pub definition: &'static str,
    /// The properties, sorted by name.
    pub properties: Vec<Property>,
    /// Whether what the schema doesn't know is kept.
    pub preserve_unknown: bool,
    /// Whether it is a whole Kubernetes object within another.
    pub embedded: bool,
}

/// A property of an object.
#[derive(Clone, Debug)]
pub struct Property {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its name in Go where that isn't `name` capitalised; empty otherwise.
    pub go_name: &'static str,
    /// The struct that is embedded in Go's and that it is a field of, `RuleWithOperations.Rule`; mostly empty.
    pub inlined: &'static str,
    /// Its place in the Go struct.
    pub position: usize,
    /// Its schema.
    pub schema: Node,
    /// When it is written.
    pub presence: Presence,
    /// Whether it belongs to a feature that is off: known, and dropped.
    pub off: bool,
    /// Whether it must be there.
    pub required: bool,
    /// The value it has when it is absent.
    pub default: Option<Value>,
    /// How a strategic merge patch merges it.
    pub patch: PatchStrategy,
}

/// When Go writes a field, which decides whether an empty value is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Whatever was given is kept, empty or not.
    #[default]
    Given,
    /// An empty value is as good as none, and not written.
    OmitEmpty,
    /// Written always: with its zero value when none was given.
    Always,
    /// Written always: as null when none was given.
    AlwaysNull,
}

/// How a strategic merge patch treats a property.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchStrategy {
    /// Lists are merged (by `key`, or as sets when there is none); otherwise they are replaced.
    pub merge: bool,
    /// Keys that the patch doesn't list under `$retainKeys` are cleared.
    pub retain_keys: bool,
    /// The object is replaced as a whole.
    pub replace: bool,
    /// The field that identifies the items of a merged list.
    pub key: Cow<'static, str>,
}

/// A list.
#[derive(Clone, Debug)]
pub struct List {
    /// The schema of its items.
    pub items: Node,
    /// How server-side apply treats it.
    pub list_type: ListType,
}

/// How server-side apply treats a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListType {
    /// Owned and replaced as a whole.
    #[default]
    Atomic,
    /// A set of scalars.
    Set,
    /// A map of objects, by these keys.
    Map(Vec<Cow<'static, str>>),
}

/// A child of a schema node: its own, or a built-in definition, which is read when it is first looked into.
#[derive(Clone, Debug)]
pub enum Node {
    /// A node of this schema alone.
    Own(Box<Schema>),
    /// A built-in definition.
    Named(&'static Definition),
}

impl Deref for Node {
    type Target = Schema;

    fn deref(&self) -> &Schema {
        match self {
            Self::Own(schema) => schema,
            Self::Named(definition) => definition.schema(),
        }
    }
}

impl From<Kind> for Schema {
    fn from(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }
}

impl From<Schema> for Node {
    fn from(schema: Schema) -> Self {
        Self::Own(Box::new(schema))
    }
}

impl Schema {
    /// The schema of a built-in definition, `io.k8s.api.core.v1.Pod`.
    pub fn builtin(name: &str) -> Option<&'static Self> {
        builtin::find(name).map(Definition::schema)
    }

    /// The schema of a schema, as definitions of custom resources have them.
    pub fn json_schema() -> Option<&'static Self> {
        Self::builtin("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
    }

    /// The schema that takes anything.
    pub fn any() -> &'static Self {
        static ANY: Schema = Schema { kind: Kind::Any, go_type: Cow::Borrowed(""), nullable: true, atomic: false };
        &ANY
    }

    /// The property of that name, where this is an object that has it.
    pub fn property(&self, name: &str) -> Option<&Property> {
        match &self.kind {
            Kind::Object(object) => object.property(name),
            _ => None,
        }
    }

    /// The schema of the member of that name: a property's, or that of a map's values.
    pub fn member(&self, name: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Object(object) => object.property(name).map(|p| &*p.schema),
            Kind::Map(values) => Some(values),
            _ => None,
        }
    }

    /// The schema of a list's items.
    pub fn items(&self) -> Option<&Self> {
        match &self.kind {
            Kind::List(list) => Some(&list.items),
            _ => None,
        }
    }

    /// The schema at a path of member names; `[]` stands for a list's items.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |here, name| if *name == "[]" { here.items() } else { here.member(name) })
    }
}

impl Object {
    /// The property of that name.
    pub fn property(&self, name: &str) -> Option<&Property> {
        self.properties.binary_search_by(|p| p.name.as_ref().cmp(name)).ok().map(|i| &self.properties[i])
    }
}
