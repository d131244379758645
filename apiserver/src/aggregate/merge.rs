//! What other servers say of themselves, put into what this one says of itself.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_api::custom::compare_versions;

use super::{Remote, plan};

/// The groups of others with their versions, each in order.
fn groups(remotes: &[Arc<Remote>]) -> Vec<(&str, i64, Vec<&Arc<Remote>>)> {
    let mut groups: Vec<(&str, i64, Vec<&Arc<Remote>>)> = Vec::new();
    for remote in remotes.iter().filter(|r| !r.group.is_empty()) {
        match groups.iter_mut().find(|(group, ..)| *group == remote.group) {
            Some((_, priority, all)) => {
                *priority = remote.group_priority.max(*priority);
                all.push(remote);
            }
            None => groups.push((&remote.group, remote.group_priority, vec![remote])),
        }
    }
    for (_, _, all) in &mut groups {
        all.sort_by(|a, b| b.version_priority.cmp(&a.version_priority).then_with(|| compare_versions(&a.version, &b.version)));
    }
    groups.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    groups
}

/// Puts others' groups among the groups of a discovery document, in the order of their priorities. `name` reads a
/// group's name, `write` makes a group of versions, `versions` are where a group keeps them.
fn insert(list: &mut Vec<Value>, remotes: &[Arc<Remote>], name: fn(&Value) -> &str, write: impl Fn(&str, &[&Arc<Remote>]) -> Value) {
    for (group, priority, all) in groups(remotes) {
        let made = write(group, &all);
        if let Some(known) = list.iter_mut().find(|g| name(g) == group) {
            // Versions of one group can be served in two places.
            for version in made["versions"].as_array().into_iter().flatten() {
                if let Some(versions) = known["versions"].as_array_mut() {
                    versions.retain(|v| v["version"] != version["version"]);
                    versions.push(version.clone());
                }
            }
            continue;
        }
        let place = |g: &Value| remotes.iter().find(|r| r.group == name(g)).map_or_else(|| plan::priority(name(g)), |r| r.group_priority);
        let at = list.iter().position(|g| place(g) < priority || (place(g) == priority && name(g) > group)).unwrap_or(list.len());
        list.insert(at, made);
    }
}

/// Adds others' groups to those of plain discovery.
pub(crate) fn into_groups(list: &mut Vec<Value>, remotes: &[Arc<Remote>]) {
    insert(list, remotes, |g| g["name"].as_str().unwrap_or(""), |group, all| {
        let versions: Vec<Value> = all.iter().map(|r| json!({"groupVersion": format!("{group}/{}", r.version), "version": r.version})).collect();
        json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
    });
}

/// Adds others' groups to those of aggregated discovery.
pub(crate) fn into_aggregated(list: &mut Vec<Value>, remotes: &[Arc<Remote>]) {
    insert(list, remotes, |g| g["metadata"]["name"].as_str().unwrap_or(""), |group, all| {
        let versions = all.iter().map(|r| {
            let known = r.documents.discovery.clone();
            let mut entry = known.unwrap_or_else(|| json!({"version": r.version}));
            let current = r.available && r.documents.discovery.is_some();
            entry["freshness"] = if current { "Current" } else { "Stale" }.into();
            entry
        });
        json!({"metadata": {"name": group}, "versions": versions.collect::<Vec<_>>()})
    });
}

/// A version's entry in aggregated discovery, made of its plain list of resources.
pub(super) fn aggregated(version: &str, list: &Value) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    let all = list["resources"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |r: &Value| r["name"].as_str().unwrap_or("").to_owned();
    let kind = |r: &Value| json!({"group": r["group"].as_str().unwrap_or(""), "version": r["version"].as_str().unwrap_or(""), "kind": r["kind"]});
    for resource in all.iter().filter(|r| !name(r).contains('/')) {
        let mut entry = json!({
            "resource": resource["name"], "responseKind": kind(resource), "singularResource": resource["singularName"], "verbs": resource["verbs"],
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
        });
        for key in ["shortNames", "categories"] {
            if resource[key].is_array() {
                entry[key] = resource[key].clone();
            }
        }
        let prefix = format!("{}/", name(resource));
        let subresources: Vec<Value> = all
            .iter()
            .filter_map(|sub| Some(json!({"subresource": name(sub).strip_prefix(&prefix)?, "responseKind": kind(sub), "verbs": sub["verbs"]})))
            .collect();
        if !subresources.is_empty() {
            entry["subresources"] = subresources.into();
        }
        resources.push(entry);
    }
    json!({"version": version, "resources": resources})
}

/// Adds the paths of others' group versions, and the definitions that aren't there, to OpenAPI version 2.
pub(crate) fn into_openapi(document: &mut Value, remotes: &[Arc<Remote>]) {
    for remote in remotes {
        let Some(theirs) = &remote.documents.v2 else { continue };
        let prefix = remote.path();
        let below = |path: &str| path.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        add(document, theirs, "paths", |path| below(path));
        add(document, theirs, "definitions", |_| true);
    }
}

fn add(document: &mut Value, theirs: &Value, key: &str, wanted: impl Fn(&str) -> bool) {
    let Some(ours) = document[key].as_object_mut() else { return };
    for (name, member) in theirs[key].as_object().unwrap_or(&Map::new()) {
        if wanted(name) && !ours.contains_key(name) {
            ours.insert(name.clone(), member.clone());
        }
    }
}
