//! The schemas of built-in kinds, from `data/schema.txt`.
//!
//! The file has a block a definition: a line with its name (and `atomic`), then a line a property in Go's order,
//! indented by one space: name, type, then flags. A type is `string`, `bytes`, `bool`, `int32`, `int64`, `number`, `quantity`, `time`,
//! `microtime`, `intstr`, `any`, `@definition`, with `[]` before it for a list and `{}` for a map; a scalar's named
//! Go type follows a colon. Flags: `*` a pointer (kept when empty), `!` written always (`* !`: as null when absent), `r` required, `list=TYPE:keys`,
//! `map=TYPE`, `patch=STRATEGIES:key`, `default=JSON`, `go=NAME` (Go's name, where it isn't the JSON name capitalised),
//! `in=STRUCT` (the struct embedded in Go's that it is a field of), `type=NAME` (the named Go type of a map), `off` (of a feature
//! that is off: dropped).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use super::{Kind, List, ListType, Node, Object, Other, PatchStrategy, Presence, Property, Schema};

const TEXT: &str = include_str!("../../data/schema.txt");

/// A built-in definition, read when it is first asked for.
#[derive(Debug)]
pub struct Definition {
    /// `io.k8s.api.core.v1.Pod`
    pub name: &'static str,
    text: &'static str,
    schema: OnceLock<Schema>,
}

impl Definition {
    /// Its schema.
    pub fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| read_definition(self.text))
    }
}

fn definitions() -> &'static HashMap<&'static str, Definition> {
    static DEFINITIONS: OnceLock<HashMap<&'static str, Definition>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        let mut all = HashMap::with_capacity(512);
        let mut rest = TEXT;
        while !rest.is_empty() {
            // A definition ends where the next line that isn't indented begins.
            let end = rest.find("\nio.").map_or(rest.len(), |i| i + 1);
            let (text, tail) = rest.split_at(end);
            let head = text.lines().next().unwrap_or("");
            let name = head.split(' ').next().unwrap_or("");
            all.insert(name, Definition { name, text, schema: OnceLock::new() });
            rest = tail;
        }
        all
    })
}

/// The definition of that name.
pub(super) fn find(name: &str) -> Option<&'static Definition> {
    definitions().get(name)
}

/// The names of all built-in definitions, in no order.
pub fn definition_names() -> impl Iterator<Item = &'static str> {
    definitions().keys().copied()
}

/// The values of a named Go type of text, of those that have a closed set: from `data/enums.tsv`. `definition` is one that
/// has a field of the type.
pub fn enum_values(definition: &str, go_type: &str) -> Option<&'static serde_json::Value> {
    static ENUMS: OnceLock<HashMap<&'static str, serde_json::Value>> = OnceLock::new();
    let read = |line: &'static str| line.split_once('\t').and_then(|(name, values)| Some((name, serde_json::from_str(values).ok()?)));
    let enums = ENUMS.get_or_init(|| include_str!("../../data/enums.tsv").lines().skip(1).filter_map(read).collect());
    enums.get(format!("{}.{}", definition.rsplit_once('.')?.0, go_type.rsplit('.').next()?).as_str())
}

/// `Container` of `io.k8s.api.core.v1.Container`, and `v1.Container`.
fn go_names(definition: &'static str) -> (&'static str, &'static str) {
    let short = definition.rfind('.').map_or(definition, |i| &definition[i + 1..]);
    let package = definition.len() - short.len();
    let qualified = definition[..package.saturating_sub(1)].rfind('.').map_or(definition, |i| &definition[i + 1..]);
    (short, qualified)
}

fn read_definition(text: &'static str) -> Schema {
    let mut lines = text.lines();
    let mut head = lines.next().unwrap_or("").split(' ');
    let definition = head.next().unwrap_or("");
    let (name, qualified) = go_names(definition);
    let mut properties: Vec<Property> = lines.map(read_property).collect();
    for (position, property) in properties.iter_mut().enumerate() {
        property.position = position;
    }
    properties.sort_by(|a, b| a.name.cmp(&b.name));
    let object = Object { name, definition, properties, ..Object::default() };
    Schema { kind: Kind::Object(object), go_type: qualified.into(), atomic: head.next() == Some("atomic"), ..Schema::default() }
}

fn read_property(line: &'static str) -> Property {
    let mut words = line.trim_start().split(' ');
    let name = words.next().unwrap_or("");
    let kind = words.next().unwrap_or("any");
    let mut presence = Presence::OmitEmpty;
    let (mut off, mut required, mut default, mut go_name, mut inlined, mut go_type) = (false, false, None, "", "", "");
    let (mut list_type, mut map_type) = (ListType::Atomic, None);
    let mut patch = PatchStrategy::default();
    for word in words {
        let (flag, value) = word.split_once('=').unwrap_or((word, ""));
        match flag {
            "*" if presence == Presence::OmitEmpty => presence = Presence::Given,
            "!" if presence == Presence::Given => presence = Presence::AlwaysNull,
            "!" => presence = Presence::Always,
            "off" => off = true,
            "r" => required = true,
            "go" => go_name = value,
            "in" => inlined = value,
            "type" => go_type = value,
            "default" => default = serde_json::from_str(value).ok(),
            "list" => list_type = read_list_type(value),
            "map" => map_type = Some(value == "atomic"),
            "patch" => patch = read_patch(value),
            _ => {}
        }
    }
    if kind == "any" && presence != Presence::Given {
        presence = Presence::Given;
    }
    let mut schema = read_type(kind, list_type, map_type);
    if let (Node::Own(schema), false) = (&mut schema, go_type.is_empty()) {
        schema.go_type = go_type.into();
    }
    Property { name: name.into(), go_name, inlined, position: 0, schema, presence, off, required, default, patch }
}

fn read_list_type(text: &'static str) -> ListType {
    let (kind, keys) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "map" => ListType::Map(keys.split(',').map(Cow::Borrowed).collect()),
        "set" => ListType::Set,
        _ => ListType::Atomic,
    }
}

fn read_patch(text: &'static str) -> PatchStrategy {
    let (strategies, key) = text.split_once(':').unwrap_or((text, ""));
    let has = |name| strategies.split(',').any(|s| s == name);
    PatchStrategy { merge: has("merge"), retain_keys: has("retainKeys"), replace: has("replace"), key: key.into() }
}

fn read_type(text: &'static str, list_type: ListType, map_atomic: Option<bool>) -> Node {
    if let Some(items) = text.strip_prefix("[]") {
        let list = List { items: read_type(items, ListType::Atomic, None), list_type };
        return Schema::from(Kind::List(list)).into();
    }
    if let Some(values) = text.strip_prefix("{}") {
        let kind = Kind::Map(read_type(values, ListType::Atomic, None));
        return Schema { kind, atomic: map_atomic == Some(true), ..Schema::default() }.into();
    }
    if let Some(definition) = text.strip_prefix('@').and_then(find) {
        return match map_atomic {
            None => Node::Named(definition),
            Some(atomic) => Schema { atomic, ..definition.schema().clone() }.into(),
        };
    }
    let (scalar, go_type) = text.split_once(':').unwrap_or((text, ""));
    let kind = match scalar {
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "bool" => Kind::Boolean,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "number" => Kind::Number,
        "quantity" => Kind::Quantity,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "intstr" => Kind::IntOrString,
        "schema|list" => Kind::SchemaOr(Other::List),
        "schema|bool" => Kind::SchemaOr(Other::Bool),
        "schema|strings" => Kind::SchemaOr(Other::Strings),
        _ => Kind::Any,
    };
    // What Go holds as raw JSON is owned as a whole.
    let atomic = matches!(kind, Kind::Any | Kind::SchemaOr(_));
    Schema { kind, go_type: go_type.into(), atomic, ..Schema::default() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_container() {
        let pod = Schema::builtin("io.k8s.api.core.v1.Pod").expect("the pod's schema");
        let ports = pod.at(&["spec", "containers", "[]", "ports"]).expect("ports");
        let Kind::List(list) = &ports.kind else { panic!("ports are a list") };
        assert_eq!(list.list_type, ListType::Map(vec!["containerPort".into(), "protocol".into()]));
        assert_eq!(list.items.property("protocol").and_then(|p| p.default.clone()), Some("TCP".into()));
        let spec = pod.at(&["spec"]).expect("spec");
        let volumes = &spec.property("volumes").expect("volumes").patch;
        assert!(volumes.merge && volumes.retain_keys && volumes.key == "name");
        assert_eq!(spec.property("nodeSelector").map(|p| p.schema.atomic), Some(true));
        assert_eq!(pod.at(&["spec", "containers", "[]"]).map(|s| s.go_type.as_ref()), Some("v1.Container"));
    }

    #[test]
    fn every_definition_is_readable_and_every_reference_known() {
        for name in definition_names() {
            let schema = Schema::builtin(name).expect(name);
            let Kind::Object(object) = &schema.kind else { panic!("{name} is no object") };
            assert!(object.properties.windows(2).all(|w| w[0].name < w[1].name), "{name} is sorted");
        }
        for line in TEXT.lines().filter_map(|l| l.split_once('@')) {
            let name = line.1.split(' ').next().unwrap_or("");
            assert!(find(name).is_some(), "{name}");
        }
    }
}
