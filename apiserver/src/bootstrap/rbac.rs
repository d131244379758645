//! The roles and bindings that upstream's clusters begin with, read from a table.

use serde_json::{Map, Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
/// Upstream 1.36's policy; the table's head says how it is written.
const TABLE: &str = include_str!("../../data/rbac.tsv");

/// What Skiff's own set-up adds, as kubeadm's adds it to upstream's clusters.
const OWN: &str = include_str!("../../data/rbac-own.tsv");

/// All of them: roles before the bindings that name them.
pub(super) fn objects() -> Vec<Value> {
    let mut objects = read(TABLE);
    objects.append(&mut read(OWN));
    objects
}

fn read(table: &str) -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut cells = line.split('\t');
        match (cells.next(), cells.next(), cells.next()) {
            (Some("role"), Some(namespace), Some(name)) => objects.push(role(namespace, name, cells.next())),
            (Some("bind"), Some(namespace), Some(name)) => objects.push(binding(namespace, name, cells)),
            (_, Some("of"), Some(whole)) => {
                if let Some(role) = objects.last_mut() {
                    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label(whole): "true"}}]});
                }
            }
            (_, Some(verbs), Some(groups)) => {
                if let Some(rules) = objects.last_mut().and_then(|role| role["rules"].as_array_mut()) {
                    rules.push(rule(verbs, groups, cells.next().unwrap_or(""), cells.next()));
                }
            }
            _ => {}
        }
    }
    aggregate(&mut objects);
    objects
}

fn label(whole: &str) -> String {
    format!("{GROUP}/aggregate-to-{whole}")
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn role(namespace: &str, name: &str, part: Option<&str>) -> Value {
    let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
    let mut role = json!({"kind": kind, "metadata": metadata(namespace, name), "rules": []});
    if let Some(whole) = part.and_then(|part| part.strip_prefix("to ")) {
        role["metadata"]["labels"][label(whole)] = "true".into();
    }
    role
}

fn list(cell: &str) -> Vec<&str> {
    cell.split(',').map(|item| if item == "core" { "" } else { item }).collect()
}

fn rule(verbs: &str, groups: &str, resources: &str, names: Option<&str>) -> Value {
    if groups == "url" {
        return json!({"nonResourceURLs": list(resources), "verbs": list(verbs)});
    }
    let mut rule = json!({"apiGroups": list(groups), "resources": list(resources), "verbs": list(verbs)});
    if let Some(names) = names {
        rule["resourceNames"] = json!(list(names));
    }
    rule
}

fn binding<'a>(namespace: &str, name: &str, mut cells: impl Iterator<Item = &'a str>) -> Value {
    let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
    let role = cells.next().filter(|role| *role != "=").unwrap_or(name);
    let subjects: Vec<Value> = cells.filter_map(|cell| cell.split_once(' ')).map(|(kind, name)| subject(kind, name)).collect();
    let mut binding = json!({
        "kind": format!("{kind}Binding"), "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
    });
    if !subjects.is_empty() {
        binding["subjects"] = subjects.into();
    }
    binding
}

fn subject(kind: &str, name: &str) -> Value {
    match name.split_once('/') {
        Some((namespace, name)) => json!({"kind": kind, "namespace": namespace, "name": name}),
        None => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
    }
}

/// Fills in the rules of the roles that are made of others, as the aggregation controller would: in the order of the
/// parts' names, each rule once. A part may be such a role itself (`view` is in `edit` is in `admin`).
fn aggregate(objects: &mut [Value]) {
    for whole in ["view", "edit", "admin"] {
        let label = label(whole);
        let mut parts: Vec<&Value> = objects.iter().filter(|role| !role["metadata"]["labels"][&label].is_null()).collect();
        parts.sort_by_key(|role| role["metadata"]["name"].as_str().map(str::to_owned));
        let mut rules: Vec<Value> = Vec::new();
        for rule in parts.iter().filter_map(|role| role["rules"].as_array()).flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        if let Some(role) = objects.iter_mut().find(|role| role["metadata"]["name"] == whole).and_then(Value::as_object_mut) {
            let role: &mut Map<String, Value> = role;
            role.insert("rules".into(), rules.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap_or_else(|| panic!("{kind} {name}"))
    }

    #[test]
    fn the_table_is_whole() {
        let objects = read(TABLE);
        let count = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).count();
        assert_eq!(["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"].map(count), [69, 50, 7, 7]);
        for object in &objects {
            let role = object["kind"].as_str().is_some_and(|k| k.ends_with("Role"));
            assert!(!role || !object["rules"].as_array().is_none_or(Vec::is_empty), "{object}");
        }
        let everything = json!([
            {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]},
        ]);
        assert_eq!(named(&objects, "ClusterRole", "cluster-admin")["rules"], everything);
    }

    #[test]
    fn wholes_have_the_rules_of_their_parts() {
        let objects = objects();
        let rules = |name: &str| named(&objects, "ClusterRole", name)["rules"].as_array().cloned().unwrap_or_default();
        let (view, edit, admin) = (rules("view"), rules("edit"), rules("admin"));
        assert!(!view.is_empty() && view == rules("system:aggregate-to-view"));
        assert!(view.iter().all(|rule| edit.contains(rule)) && edit.iter().all(|rule| admin.contains(rule)));
        assert!(view.iter().all(|rule| !rule.to_string().contains("secrets")) && admin.len() > edit.len() && edit.len() > view.len());
    }
}
