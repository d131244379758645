//! Values as upstream's messages show its internal Go structs: `{"Type":"Bad","RollingUpdate":null}`.
//!
//! Internal types have no JSON tags, so that every field is shown, under its Go name, in Go's order. Those of the meta
//! group do have tags, and are shown as in the API.

use serde_json::{Map, Value};

use super::{Kind, Object, Presence, Property, Schema};

/// The fields of the internal pod spec, whose order isn't that of the API's.
const POD_SPEC: &str = "volumes initContainers containers ephemeralContainers restartPolicy terminationGracePeriodSeconds \
    activeDeadlineSeconds dnsPolicy nodeSelector serviceAccountName automountServiceAccountToken nodeName securityContext \
    imagePullSecrets hostname subdomain setHostnameAsFQDN affinity schedulerName tolerations hostAliases priorityClassName \
    priority preemptionPolicy dnsConfig readinessGates runtimeClassName overhead enableServiceLinks topologySpreadConstraints \
    os schedulingGates resourceClaims resources hostnameOverride schedulingGroup";

/// Fields that stand elsewhere in the internal struct than in the API's: behind which other one.
const MOVED: &[(&str, &str, &str)] = &[("io.k8s.api.core.v1.Volume", "quobyte", "rbd")];

/// The fields of the spec that stand first in the internal security context.
const POD_SECURITY: &str = "hostNetwork hostPID hostIPC shareProcessNamespace hostUsers";

/// Its fields after those of the spec.
const POD_SECURITY_REST: &str = "seLinuxOptions windowsOptions runAsUser runAsGroup runAsNonRoot supplementalGroups \
    supplementalGroupsPolicy fsGroup fsGroupChangePolicy sysctls seccompProfile appArmorProfile seLinuxChangePolicy";

impl Schema {
    /// The value as upstream's messages show it, in one line; `pointer` says whether Go has a pointer to it.
    pub fn shown_go(&self, value: &Value, pointer: bool) -> String {
        let mut out = String::new();
        Writer { out: &mut out, indent: None }.value(self, value, pointer);
        out
    }

    /// The same over several lines, indented by one space a level, as upstream's differences of specs show it.
    pub fn shown_go_lines(&self, value: &Value) -> String {
        let mut out = String::new();
        Writer { out: &mut out, indent: Some(0) }.value(self, value, true);
        out
    }

    /// Of an object's fields only these, as if they were a struct of their own.
    pub fn shown_go_fields(&self, value: &Value, names: &[&str], lines: bool) -> String {
        let mut out = String::new();
        let mut writer = Writer { out: &mut out, indent: lines.then_some(0) };
        let chosen = names.iter().filter_map(|name| self.property(name)).map(|p| (go_name(p), p, value)).collect();
        writer.fields(chosen);
        out
    }
}

impl Schema {
    /// The object in JSON as upstream's patches leave it: in Go's order, but for what the patch has gone through, which is
    /// in the alphabet's. `patch` is a merge patch, or has the members that another one names.
    pub fn patched(&self, object: &Value, patch: &Value) -> String {
        let mut out = String::new();
        self.write_patched(object, Some(patch).filter(|p| p.is_object()), &mut out);
        out.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
    }

    fn write_patched(&self, value: &Value, patch: Option<&Value>, out: &mut String) {
        let mut separator = "";
        match value {
            Value::Object(map) => {
                let mut members: Vec<(&String, &Value)> = map.iter().collect();
                if patch.is_none() {
                    members.sort_by_key(|(name, _)| self.property(name).map_or(0, |p| p.position));
                }
                out.push('{');
                for (name, member) in members {
                    out.push_str(separator);
                    out.push_str(&Value::from(name.as_str()).to_string());
                    out.push(':');
                    let named = patch.and_then(|patch| patch.get(name));
                    let below = self.member(name).filter(|_| named.is_none_or(Value::is_object)).unwrap_or(Self::any());
                    below.write_patched(member, named.filter(|named| named.is_object()), out);
                    separator = ",";
                }
                out.push('}');
            }
            Value::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(separator);
                    let named = patch.and_then(|patch| patch.get(i.to_string())).filter(|named| named.is_object());
                    self.items().unwrap_or(Self::any()).write_patched(item, named, out);
                    separator = ",";
                }
                out.push(']');
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }
}

struct Writer<'a> {
    out: &'a mut String,
    /// How deep the text at hand is indented; `None` for all in one line.
    indent: Option<usize>,
}

fn go_name(property: &Property) -> String {
    if !property.go_name.is_empty() {
        return property.go_name.to_owned();
    }
    let mut name = property.name.to_string();
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    name
}

impl Writer<'_> {
    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.indent = self.indent.map(|i| i + 1);
    }

    fn item(&mut self, first: bool) {
        if !first {
            self.out.push(',');
        }
        self.line();
    }

    fn line(&mut self) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent));
        }
    }

    fn key(&mut self, key: &str) {
        self.out.push_str(&Value::from(key).to_string());
        self.out.push_str(if self.indent.is_some() { ": " } else { ":" });
    }

    fn close(&mut self, bracket: char, empty: bool) {
        self.indent = self.indent.map(|i| i - 1);
        if !empty {
            self.line();
        }
        self.out.push(bracket);
    }

    /// A value, or what Go has where there is none; `pointer` says whether that is nil.
    fn value(&mut self, schema: &Schema, value: &Value, pointer: bool) {
        match (&schema.kind, value) {
            (Kind::Object(object), Value::Object(map)) => self.object(object, map),
            (Kind::Object(object), Value::Null) if !pointer => self.object(object, &Map::new()),
            (Kind::List(list), Value::Array(items)) => {
                self.open('[');
                for (i, item) in items.iter().enumerate() {
                    self.item(i == 0);
                    self.value(&list.items, item, false);
                }
                self.close(']', items.is_empty());
            }
            (Kind::Map(values), Value::Object(map)) => {
                self.open('{');
                for (i, (key, value)) in map.iter().enumerate() {
                    self.item(i == 0);
                    self.key(key);
                    self.value(values, value, false);
                }
                self.close('}', map.is_empty());
            }
            (_, Value::Null) if pointer => self.out.push_str("null"),
            (_, Value::Null) => self.out.push_str(&schema.zero().to_string()),
            // Go's encoder escapes what could end a script element.
            (_, scalar) => self.out.push_str(&scalar.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")),
        }
    }

    fn object(&mut self, object: &Object, map: &Map<String, Value>) {
        if object.definition.starts_with("io.k8s.apimachinery.") {
            return self.tagged(object, map);
        }
        let whole = Value::Object(map.clone());
        match object.definition {
            "io.k8s.api.core.v1.PodSpec" => {
                let chosen = POD_SPEC.split_whitespace().filter_map(|name| object.property(name)).map(|p| (go_name(p), p, &whole));
                self.fields(chosen.collect());
            }
            _ if object.property("metadata").is_some_and(|p| p.schema.go_type == "v1.ObjectMeta") => self.embedding(object, &whole),
            _ => {
                self.fields(ordered(object).into_iter().map(|p| (go_name(p), p, &whole)).collect());
            }
        }
    }

    fn fields(&mut self, fields: Vec<(String, &Property, &Value)>) {
        self.open('{');
        for (i, (name, property, holder)) in fields.iter().enumerate() {
            self.item(i == 0);
            self.key(name);
            if property.schema.go_type == "v1.PodSecurityContext" {
                self.pod_security(&property.schema, holder);
                continue;
            }
            self.field(property, holder);
        }
        self.close('}', fields.is_empty());
    }

    /// What the holder has in the field.
    fn field(&mut self, property: &Property, holder: &Value) {
        let pointer = matches!(property.presence, Presence::Given | Presence::AlwaysNull);
        self.value(&property.schema, holder.get(property.name.as_ref()).unwrap_or(&Value::Null), pointer);
    }

    /// The internal security context holds some fields of the spec too.
    fn pod_security(&mut self, schema: &Schema, spec: &Value) {
        let context = &spec["securityContext"];
        let of_spec = Schema::builtin("io.k8s.api.core.v1.PodSpec").unwrap_or(Schema::any());
        let mut chosen: Vec<(String, &Property, &Value)> = Vec::new();
        for (names, schema, holder) in [(POD_SECURITY, of_spec, spec), (POD_SECURITY_REST, schema, context)] {
            chosen.extend(names.split_whitespace().filter_map(|name| schema.property(name)).map(|p| (go_name(p), p, holder)));
        }
        self.fields(chosen);
    }

    /// The metadata of an object or a template is embedded, so its fields stand beside the others.
    fn embedding(&mut self, object: &Object, whole: &Value) {
        self.open('{');
        let metadata = object.property("metadata").and_then(|p| if let Kind::Object(meta) = &p.schema.kind { Some(meta) } else { None });
        let mut first = true;
        for property in metadata.into_iter().flat_map(ordered) {
            if let Some(value) = whole["metadata"].get(property.name.as_ref()) {
                self.item(first);
                first = false;
                self.key(&property.name);
                self.value(&property.schema, value, true);
            }
        }
        for property in ordered(object).into_iter().filter(|p| !matches!(p.name.as_ref(), "metadata" | "kind" | "apiVersion")) {
            self.item(first);
            first = false;
            self.key(&go_name(property));
            self.field(property, whole);
        }
        self.close('}', first);
    }

    fn tagged(&mut self, object: &Object, map: &Map<String, Value>) {
        let present = ordered(object).into_iter().filter_map(|p| Some((p, map.get(p.name.as_ref())?)));
        self.open('{');
        for (i, (property, value)) in present.enumerate() {
            self.item(i == 0);
            self.key(&property.name);
            self.value(&property.schema, value, true);
        }
        self.close('}', map.is_empty());
    }
}

fn ordered(object: &Object) -> Vec<&Property> {
    let mut properties: Vec<&Property> = object.properties.iter().collect();
    properties.sort_by_key(|p| p.position);
    for (_, name, after) in MOVED.iter().filter(|(definition, ..)| *definition == object.definition) {
        let place = |of: &str| properties.iter().position(|p| p.name == of);
        if let (Some(from), Some(to)) = (place(name), place(after)) {
            let moved = properties.remove(from);
            properties.insert(if from > to { to + 1 } else { to }, moved);
        }
    }
    properties
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(definition: &str, value: Value, expected: &str) {
        assert_eq!(Schema::builtin(definition).expect(definition).shown_go(&value, true), expected);
    }

    #[test]
    fn patched_objects() {
        let schema = Schema::builtin("io.k8s.api.core.v1.Service").expect("a service");
        let object = json!({"metadata": {"name": "a", "annotations": {"<": "&"}}, "spec": {"type": "x", "ports": [{"port": 1, "name": "p"}], "selector": {}}});
        let untouched = r#"{"metadata":{"name":"a","annotations":{"\u003c":"\u0026"}},"spec":{"ports":[{"name":"p","port":1}],"selector":{},"type":"x"}}"#;
        assert_eq!(schema.patched(&object, &json!({"spec": {"type": "x"}})), untouched);
        let touched = r#"{"metadata":{"annotations":{"\u003c":"\u0026"},"name":"a"},"spec":{"ports":[{"name":"p","port":1}],"selector":{},"type":"x"}}"#;
        assert_eq!(schema.patched(&object, &json!({"metadata": {"labels": null}})), touched);
    }

    #[test]
    fn internal_structs() {
        check("io.k8s.api.apps.v1.DeploymentStrategy", json!({"type": "Bad"}), r#"{"Type":"Bad","RollingUpdate":null}"#);
        check("io.k8s.api.core.v1.Taint", json!({"key": "a", "effect": "NoSchedule"}), r#"{"Key":"a","Value":"","Effect":"NoSchedule","TimeAdded":null}"#);
        check(
            "io.k8s.api.policy.v1.PodDisruptionBudgetSpec",
            json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}),
            r#"{"MinAvailable":1,"Selector":{"matchLabels":{"a":"b"}},"MaxUnavailable":null,"UnhealthyPodEvictionPolicy":null}"#,
        );
        let template = Schema::builtin("io.k8s.api.core.v1.PodTemplateSpec").expect("a template");
        let shown = template.shown_go(&json!({"metadata": {"labels": {"a": "b"}}, "spec": {"hostPID": true}}), true);
        assert!(shown.starts_with(r#"{"labels":{"a":"b"},"Spec":{"Volumes":null,"InitContainers":null,"Containers":null,"#), "{shown}");
        assert!(shown.contains(r#""SecurityContext":{"HostNetwork":false,"HostPID":true,"#), "{shown}");
    }
}
