//! Discovery: which groups, versions and resources there are, plain and aggregated.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, header};
use serde::Serialize;
use serde_json::{Map, Value, json};
use skiff_api::Status;
use skiff_api::resource::{Resource, Subresource};

use crate::aggregate::merge;
use crate::http::body::{Reply, full, reply};
use crate::http::encode;
use crate::http::negotiate::{Offer, Shape, pretty};
use crate::registry::Served;
use crate::server::Server;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The answer, if the path is one of discovery's.
pub(super) fn serve(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Option<Result<Reply, Status>> {
    let served = server.registry.now();
    let shape = || Shape::negotiate(headers, Offer { answers: true, ..Offer::default() }).map(Shape::whole);
    let answer = |value: Value| Some(shape().map(|shape| encode::answer(200, &value, shape, pretty(headers, None))));
    let listed = |group, version| Some(shape().map(|shape| encode::answer(200, &resources(&served, group, version), shape, pretty(headers, None))));
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
            Some(Ok(reply(200, AGGREGATED, full(list.to_string()))))
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
        ["api", version] if served.has_version("", version) => listed("", version),
        ["apis", name] => match one_group(server, &served, name) {
            Some(mut found) => {
                found["kind"] = "APIGroup".into();
                found["apiVersion"] = "v1".into();
                answer(found)
            }
            None => Some(Ok(super::no_such_path())),
        },
        ["apis", group, version] if served.has_version(group, version) => listed(group, version),
        ["api" | "apis", ..] => Some(Ok(super::no_such_path())),
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

/// What a version of a group has. Its members go out in upstream's order, by which scripts find them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceList<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    group_version: String,
    resources: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    name: String,
    singular_name: &'a str,
    namespaced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    kind: &'a str,
    verbs: Vec<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'a [Cow<'static, str>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'a [Cow<'static, str>],
    #[serde(skip_serializing_if = "str::is_empty")]
    storage_version_hash: &'a str,
}

fn resources<'a>(served: &'a Served, group: &'a str, version: &'a str) -> ResourceList<'a> {
    let mut resources: Vec<Entry> = of_version(served, group, version).flat_map(|r| plain(r)).collect();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let (api_version, group_version) = match group {
        "" => (None, version.to_owned()),
        _ => (Some("v1"), format!("{group}/{version}")),
    };
    ResourceList { kind: "APIResourceList", api_version, group_version, resources }
}

/// The group and version of a subresource's kind, when they aren't the resource's own.
fn foreign<'a>(resource: &Resource, sub: &'a Subresource) -> Option<(&'a str, &'a str)> {
    let own = sub.group == resource.group && sub.version == resource.version;
    (!own).then(|| (&*sub.group, &*sub.version))
}

fn plain(resource: &Resource) -> impl Iterator<Item = Entry<'_>> {
    let whole = Entry {
        name: resource.plural.to_string(),
        singular_name: &resource.singular,
        namespaced: resource.namespaced,
        group: None,
        version: None,
        kind: &resource.kind,
        verbs: verbs(resource),
        short_names: &resource.short_names,
        categories: &resource.categories,
        storage_version_hash: &resource.storage_version_hash,
    };
    let parts = resource.subresources.iter().map(|sub| {
        let foreign = foreign(resource, sub);
        Entry {
            name: format!("{}/{}", resource.plural, sub.name),
            singular_name: "",
            namespaced: resource.namespaced,
            group: foreign.map(|(group, _)| group),
            version: foreign.map(|(_, version)| version),
            kind: &sub.kind,
            verbs: sub.verbs.iter().collect(),
            short_names: &[],
            categories: &[],
            storage_version_hash: "",
        }
    });
    std::iter::once(whole).chain(parts)
}

/// The verbs of custom resources, in the order in which upstream lists them.
const CUSTOM_VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// What can be done with the resource; of one that is being given up, nothing that would make more of it.
fn verbs(resource: &Resource) -> Vec<&'static str> {
    match resource.custom() {
        Some(custom) => CUSTOM_VERBS.into_iter().filter(|verb| !custom.terminating || !matches!(*verb, "create" | "patch" | "update")).collect(),
        None => resource.verbs.iter().collect(),
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
    entry.insert("verbs".into(), json!(verbs(resource)));
    if !resource.short_names.is_empty() {
        entry.insert("shortNames".into(), json!(resource.short_names));
    }
    if !resource.categories.is_empty() {
        entry.insert("categories".into(), json!(resource.categories));
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            let response = match foreign(resource, sub) {
                Some((group, version)) => kind(group, version, &sub.kind),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_go_out_in_upstreams_order() {
        let resource = skiff_api::resource::find("", "v1", "configmaps").expect("config maps");
        let entry = plain(resource).next().expect("an entry");
        let expected = r#"{"name":"configmaps","singularName":"configmap","namespaced":true,"kind":"ConfigMap","verbs":["create","delete","deletecollection","get","list","patch","update","watch"],"shortNames":["cm"],"storageVersionHash":"#;
        let written = serde_json::to_string(&entry).expect("JSON");
        assert!(written.starts_with(expected), "{written}");
    }
}
