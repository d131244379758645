//! The catalogue: every resource type the API has, as data. A custom resource makes a [`Resource`] at run time from
//! its definition and goes down the same paths.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::custom::Custom;
use crate::print::{Cell, Column};
use crate::schema::Schema;
use crate::value::text;

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
    /// `["spec", "nodeName"]` in the stored version; most labels are their own paths.
    pub path: Vec<Text>,
    /// The value of an object without the field; a path to look at instead when it begins with a dot.
    pub absent: Text,
}

impl SelectableField {
    /// The value that a selector compares; `object` is in the version that is stored.
    pub fn value<'a>(&'a self, object: &'a Value) -> Cow<'a, str> {
        match self.path.iter().try_fold(object, |here, key| here.get(key.as_ref())) {
            Some(Value::String(text)) => text.as_str().into(),
            Some(Value::Null) | None => match self.absent.strip_prefix('.') {
                Some(path) => text(object, &path.split('.').collect::<Vec<_>>()).into(),
                None => self.absent.as_ref().into(),
            },
            Some(Value::Array(_) | Value::Object(_)) => "".into(),
            Some(other) => other.to_string().into(),
        }
    }
}

/// Where a resource's schema comes from.
#[derive(Clone, Debug)]
pub enum ResourceSchema {
    /// The name of a built-in definition, read when it is first asked for.
    Builtin(&'static str),
    /// The schema of a custom resource, and what else its definition says.
    Custom(Arc<Custom>),
}

/// What clients are told of a built-in resource that is deprecated.
pub fn deprecation(group: &str, plural: &str) -> Option<&'static str> {
    match (group, plural) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        _ => None,
    }
}

impl Resource {
    /// What clients are told, if it is deprecated.
    pub fn deprecation(&self) -> Option<&str> {
        match self.custom() {
            Some(custom) => custom.warning.as_deref(),
            None => deprecation(&self.group, &self.plural),
        }
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The group of the kind as messages about invalid objects name it: that of the stored form, which for events of
    /// either group is the core one.
    pub fn kind_group(&self) -> &str {
        match (self.stored_as.is_empty(), self.stored_as.split_once('/')) {
            (true, _) => &self.group,
            (false, stored) => stored.map_or("", |(group, _)| group),
        }
    }

    /// `deployments.apps`, for messages.
    pub fn group_resource(&self) -> crate::status::GroupResource<'_> {
        crate::status::GroupResource { group: &self.group, resource: &self.plural }
    }

    /// Its structural schema.
    pub fn schema(&self) -> &Schema {
        match &self.schema {
            ResourceSchema::Builtin(name) => Schema::builtin(name).unwrap_or_else(|| Schema::any()),
            ResourceSchema::Custom(custom) => &custom.schema,
        }
    }

    /// What a custom resource has beyond others; none for a built-in one.
    pub fn custom(&self) -> Option<&Arc<Custom>> {
        match &self.schema {
            ResourceSchema::Builtin(_) => None,
            ResourceSchema::Custom(custom) => Some(custom),
        }
    }

    /// The kind of a list of its objects.
    pub fn list_kind(&self) -> String {
        self.custom().map_or_else(|| format!("{}List", self.kind), |custom| custom.list_kind.clone())
    }

    /// What to say of a field selector that names a label this resource doesn't take.
    pub fn unknown_label(&self, label: &str) -> String {
        self.selector_error.replace("<label>", label)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// `data/resources.tsv`: a line a resource, its columns named in the first line. A subresource is
/// `name=[[group/]version/]Kind(verbs)`, a selectable field `label[=path[:value when absent, or .path to look at then]]`.
const RESOURCES: &str = include_str!("../data/resources.tsv");

/// `data/columns.tsv`: a line a column, in the order of their resource's table.
const COLUMNS: &str = include_str!("../data/columns.tsv");

/// All built-in resources that are served by default, in the order of discovery. Reading the tables takes a
/// millisecond or two; schemas are not read here.
pub fn catalogue() -> &'static [Arc<Resource>] {
    static CATALOGUE: OnceLock<Vec<Arc<Resource>>> = OnceLock::new();
    CATALOGUE.get_or_init(|| {
        let mut columns = read_columns();
        RESOURCES.lines().filter(|line| !line.starts_with('#')).map(|line| Arc::new(read(line, &mut columns))).collect()
    })
}

/// Whether a built-in resource goes by this name.
pub fn is_built_in(group: &str, plural: &str) -> bool {
    catalogue().iter().any(|r| r.group == group && r.plural == plural)
}

type Columns = HashMap<[&'static str; 3], Vec<Column>>;

fn read_columns() -> Columns {
    let mut all = Columns::new();
    for line in COLUMNS.lines().filter(|line| !line.starts_with('#')) {
        let mut cells = line.split('\t');
        let mut next = || cells.next().unwrap_or("");
        let key = [next(), next(), next()];
        let column = Column {
            name: next().into(),
            kind: next().into(),
            format: next().into(),
            priority: next().parse().unwrap_or(0),
            cell: Cell::Rule(next()),
            description: next().into(),
        };
        all.entry(key).or_default().push(column);
    }
    all
}

fn read(line: &'static str, columns: &mut Columns) -> Resource {
    let mut cells = line.split('\t');
    let mut next = || cells.next().unwrap_or("");
    let list = |text: &'static str| text.split(',').filter(|t| !t.is_empty()).map(Cow::Borrowed).collect();
    let (group, version, kind, plural, singular) = (next(), next(), next(), next(), next());
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: singular.into(),
        namespaced: next() == "n",
        short_names: list(next()),
        categories: list(next()),
        verbs: Verbs::parse(next()),
        subresources: next().split(';').filter_map(|text| read_subresource(text, group, version)).collect(),
        stored_as: next().into(),
        storage_prefix: next().into(),
        storage_version_hash: next().into(),
        selectable_fields: next().split(',').filter(|t| !t.is_empty()).map(read_selectable_field).collect(),
        selector_error: match next() {
            "" => "\"<label>\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"".into(),
            other => other.into(),
        },
        schema: ResourceSchema::Builtin(next()),
        columns: columns.remove(&[group, version, plural]).unwrap_or_default().into(),
    }
}

fn read_subresource(text: &'static str, group: &'static str, version: &'static str) -> Option<Subresource> {
    let (name, rest) = text.split_once('=')?;
    let (kind, verbs) = rest.strip_suffix(')')?.split_once('(')?;
    let mut parts = kind.rsplitn(3, '/');
    let kind = parts.next()?;
    let (version, group) = match (parts.next(), parts.next()) {
        (Some(version), group) => (version, group.unwrap_or("")),
        (None, _) => (version, group),
    };
    Some(Subresource { name: name.into(), group: group.into(), version: version.into(), kind: kind.into(), verbs: Verbs::parse(verbs) })
}

fn read_selectable_field(text: &'static str) -> SelectableField {
    let (label, rest) = text.split_once('=').unwrap_or((text, text));
    let (path, absent) = rest.split_once(':').unwrap_or((rest, ""));
    SelectableField { label: label.into(), path: path.split('.').map(Cow::Borrowed).collect(), absent: absent.into() }
}

/// The built-in resource with that plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Resource>> {
    catalogue().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The built-in resource of that kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Resource>> {
    catalogue().iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_catalogue_reads_as_discovery_shows_it() {
        assert_eq!(catalogue().len(), 68);
        let pods = find("", "v1", "pods").expect("pods");
        assert_eq!(pods.storage_prefix, "/registry/pods/");
        assert_eq!(pods.verbs, Verbs::ALL);
        let eviction = pods.subresource("eviction").expect("eviction");
        assert_eq!((eviction.group.as_ref(), eviction.version.as_ref(), eviction.kind.as_ref()), ("policy", "v1", "Eviction"));
        assert!(eviction.verbs.has("create") && !eviction.verbs.has("get"));
        let scale = find("apps", "v1", "deployments").and_then(|r| r.subresource("scale")).expect("scale");
        assert_eq!(scale.group, "autoscaling");
        assert_eq!(find("", "v1", "nodes").map(|r| r.storage_prefix.as_ref()), Some("/registry/minions/"));
        assert_eq!(find_kind("autoscaling", "v1", "HorizontalPodAutoscaler").map(|r| r.stored_as.as_ref()), Some("autoscaling/v2"));
    }

    #[test]
    fn every_resource_has_a_schema_and_columns() {
        for resource in catalogue() {
            assert!(resource.schema().property("kind").is_some(), "{}", resource.kind);
            assert!(!resource.verbs.has("list") || !resource.columns.is_empty(), "{}", resource.kind);
        }
    }

    #[test]
    fn fields_for_selectors() {
        let check = |plural, label: &str, object: Value, expected: Option<&str>| {
            let resource = catalogue().iter().find(|r| r.plural == plural).expect(plural);
            let field = resource.selectable_fields.iter().find(|f| f.label == label);
            assert_eq!(field.map(|f| f.value(&object)).as_deref(), expected, "{plural} {label}");
        };
        check("nodes", "spec.unschedulable", json!({"spec": {}}), Some("false"));
        check("pods", "spec.host", json!({"spec": {"nodeName": "n"}}), Some("n"));
        check("pods", "spec.hostNetwork", json!({}), Some("false"));
        check("pods", "spec.x", json!({}), None);
        check("pods", "status.podIP", json!({"status": {"podIP": "1.2.3.4"}}), Some("1.2.3.4"));
        check("events", "source", json!({"reportingComponent": "c", "source": {}}), Some("c"));
        check("jobs", "status.successful", json!({"status": {"succeeded": 2}}), Some("2"));
        check("replicationcontrollers", "status.replicas", json!({}), Some("0"));
    }
}
