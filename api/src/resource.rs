//! The catalogue: every resource type the API has, as data. A custom resource makes a [`Resource`] at run time from
//! its definition and goes down the same paths.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use crate::print::Column;
use crate::schema::Schema;

/// Text that is compiled in for built-in resources and owned for custom ones.
pub type Text = Cow<'static, str>;

/// One resource type in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    /// The API group, empty for the core one.
    pub group: Text,
    /// The version.
    pub version: Text,
    /// The kind, `Deployment`.
    pub kind: Text,
    /// The plural, as it stands in paths.
    pub plural: Text,
    /// The singular.
    pub singular: Text,
    /// The names kubectl takes too.
    pub short_names: Vec<Text>,
    /// The categories (`all`) it is listed under.
    pub categories: Vec<Text>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Verbs,
    /// What hangs below its objects.
    pub subresources: Vec<Subresource>,
    /// The group version its objects are stored as (`apps/v1`); empty for what is not stored.
    pub stored_as: Text,
    /// Where its objects are stored, with a slash at the end: `/registry/pods/`; empty for what is not stored.
    pub storage_prefix: Text,
    /// The hash that discovery shows for the stored version.
    pub storage_version_hash: Text,
    /// The field labels that a field selector may name.
    pub selectable_fields: Vec<SelectableField>,
    /// What upstream says when a field selector names another label; `<label>` stands for it.
    pub selector_error: Text,
    /// The columns of its table.
    pub columns: Arc<[Column]>,
    /// Its structural schema.
    pub schema: ResourceSchema,
}

/// What can be done with a resource, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs(u8);

/// The verbs, in the order in which discovery lists them.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Verbs {
    /// All eight.
    pub const ALL: Self = Self(0xff);

    /// Reads `get,list`; an unknown verb is left out.
    pub fn parse(list: &str) -> Self {
        list.split(',').filter_map(|verb| VERBS.iter().position(|v| *v == verb)).fold(Self(0), |set, i| Self(set.0 | 1 << i))
    }

    /// Whether the verb is among them.
    pub fn has(self, verb: &str) -> bool {
        VERBS.iter().position(|v| *v == verb).is_some_and(|i| self.0 & 1 << i != 0)
    }

    /// The verbs, sorted.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        VERBS.into_iter().enumerate().filter(move |(i, _)| self.0 & 1 << i != 0).map(|(_, verb)| verb)
    }
}

/// What hangs below an object: `status`, `scale`, `log`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subresource {
    /// Its name.
    pub name: Text,
    /// The group of the kind it takes and gives.
    pub group: Text,
    /// The version of that kind.
    pub version: Text,
    /// The kind it takes and gives.
    pub kind: Text,
    /// What can be done with it.
    pub verbs: Verbs,
}

/// A label that field selectors may name, and where its value stands in the object.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectableField {
    /// `spec.nodeName`
    pub label: Text,
    /// `["spec", "nodeName"]`; most labels are their own paths.
    pub path: Vec<Text>,
}

/// Where a resource's schema comes from.
#[derive(Clone, Debug)]
pub enum ResourceSchema {
    /// The name of a built-in definition, read when it is first asked for.
    Builtin(&'static str),
    /// The schema of a custom resource.
    Custom(Arc<Schema>),
}

impl Resource {
    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, for messages.
    pub fn group_resource(&self) -> crate::status::GroupResource<'_> {
        crate::status::GroupResource { group: &self.group, resource: &self.plural }
    }

    /// Its structural schema.
    pub fn schema(&self) -> &Schema {
        match &self.schema {
            ResourceSchema::Builtin(name) => Schema::builtin(name).unwrap_or_else(|| Schema::any()),
            ResourceSchema::Custom(schema) => schema,
        }
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// All built-in resources that are served by default, in the order of discovery.
pub fn catalogue() -> &'static [Arc<Resource>] {
    static CATALOGUE: OnceLock<Vec<Arc<Resource>>> = OnceLock::new();
    CATALOGUE.get_or_init(Vec::new)
}

/// The built-in resource with that plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Resource>> {
    catalogue().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The built-in resource of that kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Resource>> {
    catalogue().iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}
