//! Discovery: which groups, versions and resources there are, plain and aggregated.

use std::sync::Arc;

use http::{HeaderMap, header};
use serde_json::{Map, Value, json};
use skiff_api::resource::{Resource, Subresource};

use crate::aggregate::merge;
use crate::http::body::{Reply, full, reply};
use crate::http::encode;
use crate::http::negotiate::{Shape, pretty};
use crate::registry::Served;
use crate::server::Server;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The answer, if the path is one of discovery's.
pub(super) fn serve(server: &Arc<Server>, path: &str, headers: &HeaderMap, shape: Shape) -> Option<Reply> {
    let served = server.registry.now();
    let answer = |value: Value| Some(encode::answer(200, &value, shape.whole(), pretty(headers, None)));
    let aggregated = wants_aggregated(headers);
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api" | "apis"] if aggregated => {
            let core = parts[0] == "api";
            let mut items = aggregate(&served, core);
            if !core {
                merge::into_aggregated(&mut items, &server.aggregator.now());
            }
            let list = json!({
                "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
                "items": items,
            });
            Some(reply(200, AGGREGATED, full(list.to_string())))
        }
        ["api"] => {
            let address = format!("{}:{}", server.advertise.0, server.advertise.1);
            answer(json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            }))
        }
        ["apis"] => {
            let groups = served.groups();
            let mut groups: Vec<Value> = groups.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
            merge::into_groups(&mut groups, &server.aggregator.now());
            answer(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", version] if served.has_version("", version) => answer(resources(&served, "", version)),
        ["apis", name] => match one_group(server, &served, name) {
            Some(mut found) => {
                found["kind"] = "APIGroup".into();
                found["apiVersion"] = "v1".into();
                answer(found)
            }
            None => Some(super::no_such_path()),
        },
        ["apis", group, version] if served.has_version(group, version) => answer(resources(&served, group, version)),
        ["api" | "apis", ..] => Some(super::no_such_path()),
        _ => None,
    }
}

/// Whether the client's first choice is the aggregated form.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    accept.split(',').any(|clause| {
        let has = |parameter: &str| clause.split(';').any(|p| p.trim() == parameter);
        has("application/json") && has("g=apidiscovery.k8s.io") && has("v=v2") && has("as=APIGroupDiscoveryList")
    })
}

/// A group, with the versions that others serve of it.
fn one_group(server: &Server, served: &Served, name: &str) -> Option<Value> {
    let mut groups: Vec<Value> = served.groups().iter().filter(|(g, _)| *g == name).map(|(g, v)| group(g, v)).collect();
    merge::into_groups(&mut groups, &server.aggregator.now());
    groups.into_iter().find(|g| g["name"] == name)
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|v| version(v)),
    })
}

fn of_version<'a>(served: &'a Served, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
    served.ordered.iter().filter(move |r| r.group == group && r.version == version)
}

fn resources(served: &Served, group: &str, version: &str) -> Value {
    let mut list: Vec<Value> = of_version(served, group, version).flat_map(|r| plain(r)).collect();
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut found = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": list});
    if !group.is_empty() {
        found["apiVersion"] = "v1".into();
    }
    found
}

/// The group and version of a subresource's kind, when they aren't the resource's own.
fn foreign(resource: &Resource, sub: &Subresource) -> Option<(String, String)> {
    let own = sub.group == resource.group && sub.version == resource.version;
    (!own).then(|| (sub.group.to_string(), sub.version.to_string()))
}

fn plain(resource: &Resource) -> Vec<Value> {
    let mut entry = Map::new();
    entry.insert("name".into(), json!(resource.plural));
    entry.insert("singularName".into(), json!(resource.singular));
    entry.insert("namespaced".into(), json!(resource.namespaced));
    entry.insert("kind".into(), json!(resource.kind));
    entry.insert("verbs".into(), verbs(resource));
    add_names(&mut entry, resource);
    if !resource.storage_version_hash.is_empty() {
        entry.insert("storageVersionHash".into(), json!(resource.storage_version_hash));
    }
    let mut entries = vec![Value::Object(entry)];
    for sub in &resource.subresources {
        let mut entry = Map::new();
        entry.insert("name".into(), json!(format!("{}/{}", resource.plural, sub.name)));
        entry.insert("singularName".into(), json!(""));
        entry.insert("namespaced".into(), json!(resource.namespaced));
        if let Some((group, version)) = foreign(resource, sub) {
            entry.insert("group".into(), json!(group));
            entry.insert("version".into(), json!(version));
        }
        entry.insert("kind".into(), json!(sub.kind));
        entry.insert("verbs".into(), sub.verbs.iter().collect());
        entries.push(Value::Object(entry));
    }
    entries
}

/// What can be done with the resource; of one that is being given up, nothing that would make more of it.
fn verbs(resource: &Resource) -> Value {
    let ending = resource.custom().is_some_and(|custom| custom.terminating);
    resource.verbs.iter().filter(|verb| !ending || !matches!(*verb, "create" | "patch" | "update")).collect()
}

fn add_names(entry: &mut Map<String, Value>, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry.insert("shortNames".into(), json!(resource.short_names));
    }
    if !resource.categories.is_empty() {
        entry.insert("categories".into(), json!(resource.categories));
    }
}

fn aggregate(served: &Served, core: bool) -> Vec<Value> {
    let groups = served.groups();
    let chosen = groups.iter().filter(|(group, _)| group.is_empty() == core);
    chosen
        .map(|(group, versions)| {
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(served, group, v)).collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect()
}

fn aggregated_version(served: &Served, group: &str, version: &str) -> Value {
    let mut list: Vec<&Arc<Resource>> = of_version(served, group, version).collect();
    list.sort_by(|a, b| a.plural.cmp(&b.plural));
    let resources: Vec<Value> = list.into_iter().map(|r| aggregated_resource(r)).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".into(), json!(resource.plural));
    // Upstream leaves group and version of built-in kinds out: clients take the list's own.
    let custom = matches!(resource.schema, skiff_api::resource::ResourceSchema::Custom(_));
    let response = if custom { kind(&resource.group, &resource.version, &resource.kind) } else { kind("", "", &resource.kind) };
    entry.insert("responseKind".into(), response.clone());
    entry.insert("scope".into(), json!(if resource.namespaced { "Namespaced" } else { "Cluster" }));
    entry.insert("singularResource".into(), json!(resource.singular));
    entry.insert("verbs".into(), verbs(resource));
    add_names(&mut entry, resource);
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            let response = match foreign(resource, sub) {
                Some((group, version)) => kind(&group, &version, &sub.kind),
                None if sub.kind == resource.kind => response.clone(),
                None => kind("", "", &sub.kind),
            };
            json!({"subresource": sub.name, "responseKind": response, "verbs": sub.verbs.iter().collect::<Vec<_>>()})
        })
        .collect();
    if !subresources.is_empty() {
        entry.insert("subresources".into(), subresources.into());
    }
    Value::Object(entry)
}
