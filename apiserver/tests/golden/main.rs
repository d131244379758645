//! What a real API server answered, against the whole server here: every line of the reference files is asked again, and
//! code, headers, `Status`, stored object and table cells are compared. What differs on purpose stands in [`KNOWN`].

mod api;
#[path = "../common/mod.rs"]
mod common;
mod compare;

use std::collections::{BTreeMap, HashMap};

use api::{Answer, Api, Ask};
use compare::{difference, neutral, place, set, whole};
use serde_json::{Value, json};
use skiff_api::resource::{Resource, find_kind};
use skiff_api::value::{items, remove, text, time};

/// Lines that are answered otherwise here, and why. A line that comes to agree must go from this list.
const KNOWN: &[(&str, usize, &str)] = &[
    (VALIDATION, 4, "a generated name is shown, which is random"),
    (VALIDATION, 575, "a controller of the reference run changed the object between its reading and its writing"),
];
const VALIDATION: &str = "validation-cases.jsonl";

/// The lines of a file, numbered from 1; none when there is no reference data here.
fn lines(file: &str) -> Vec<(usize, Value)> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/spec");
    let folder = std::env::var_os("SKIFF_SPEC").map_or_else(|| beside.into(), std::path::PathBuf::from);
    if !folder.is_dir() {
        eprintln!("{file}: not compared, there is no reference data here (set SKIFF_SPEC)");
        return Vec::new();
    }
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    text.lines().enumerate().map(|(i, line)| (i + 1, serde_json::from_str(line).unwrap_or_else(|e| panic!("{file}: {e}")))).collect()
}

/// Holds what differs, by line, against what is known to.
fn conclude(file: &str, total: usize, differing: &BTreeMap<usize, String>) {
    let known = |line: &usize| KNOWN.iter().any(|(f, l, _)| f == &file && l == line);
    let mut wrong: Vec<String> = differing.iter().filter(|(line, _)| !known(line)).map(|(line, what)| format!("{file}:{line}: {what}")).collect();
    if total > 0 {
        let agreeing = KNOWN.iter().filter(|(f, line, _)| f == &file && !differing.contains_key(line));
        wrong.extend(agreeing.map(|(_, line, why)| format!("{file}:{line}: agrees, though it was said that {why}")));
    }
    assert!(wrong.is_empty(), "{} of {total} differ:\n{}", differing.len(), wrong.join("\n"));
}

fn resource_of(object: &Value) -> &'static Resource {
    let version = text(object, &["apiVersion"]);
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    find_kind(group, version, text(object, &["kind"])).unwrap_or_else(|| panic!("{object}"))
}

fn collection(resource: &Resource, namespace: &str) -> String {
    let root = if resource.group.is_empty() { "/api" } else { "/apis" };
    let space = if resource.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
    format!("{root}/{}{space}/{}", resource.api_version(), resource.plural)
}

fn object_path(object: &Value) -> String {
    format!("{}/{}", collection(resource_of(object), "default"), text(object, &["metadata", "name"]))
}

#[tokio::test]
async fn small_objects_are_stored_as_upstream_stores_them() {
    let file = "create-examples.jsonl";
    let (api, mut differing, examples) = (Api::start().await, BTreeMap::new(), lines(file));
    for (line, example) in &examples {
        let answer = api.ask(&Ask::new("POST", &collection(resource_of(&example["input"]), "default")).json(&example["input"])).await;
        let (mut ours, mut theirs) = (answer.json(), example["stored"].clone());
        for object in [&mut ours, &mut theirs] {
            for key in ["resourceVersion", "managedFields", "creationTimestamp"] {
                remove(object, &["metadata", key]);
            }
        }
        for allocated in [&["spec", "clusterIP"][..], &["spec", "clusterIPs"], &["status", "lastPhaseTransitionTime"]] {
            remove(&mut ours, allocated).and(remove(&mut theirs, allocated));
        }
        let (ours, theirs) = (neutral(&ours.to_string()), neutral(&theirs.to_string()));
        if ours != theirs {
            differing.insert(*line, format!("{}\n  ours   {ours}\n  theirs {theirs}", example["name"]));
        }
    }
    conclude(file, examples.len(), &differing);
}

#[tokio::test]
async fn objects_are_judged_as_upstream_judges_them() {
    let examples: HashMap<String, Value> =
        lines("create-examples.jsonl").into_iter().map(|(_, line)| (text(&line, &["name"]).to_owned(), line["input"].clone())).collect();
    let cases = lines(VALIDATION);
    let mut differing = BTreeMap::new();
    let signing = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "csr-x"},
        "spec": {"request": "eA==", "signerName": "example.com/s", "usages": ["client auth"]}});
    let change = |case: &Value, object: &mut Value| {
        for (path, value) in case["set"].as_object().into_iter().flatten() {
            set(object, path, Some(whole(value)));
        }
        for path in items(case, &["deleted"]).iter().filter_map(Value::as_str) {
            set(object, path, None);
        }
    };
    let note = |line: usize, case: &Value, answer: &Answer| {
        difference(case, &json!({"message": case["message"], "reason": case["reason"], "details": {"causes": case["causes"]}}), answer)
            .map(|what| (line, format!("{} {} {} -{}\n{what}", case["op"], case["kind"], case["set"], case["deleted"])))
    };
    // Creates were dry runs in an empty cluster.
    let api = Api::start().await;
    for (line, case) in cases.iter().filter(|(_, case)| case["op"] == "create") {
        let mut object = examples.get(text(case, &["base"])).unwrap_or(&signing).clone();
        let path = collection(resource_of(&object), "default") + "?dryRun=All&fieldValidation=Strict";
        change(case, &mut object);
        let answer = api.ask(&Ask::new("POST", &path).json(&object)).await;
        differing.extend(note(*line, case, &answer));
    }
    // Updates found all the examples there; those of the few below were kept.
    let api = Api::start().await;
    for (_, example) in lines("create-examples.jsonl") {
        api.made(&collection(resource_of(&example["input"]), "default"), &example["input"]).await;
    }
    for (line, case) in cases.iter().filter(|(_, case)| case["op"] == "update") {
        let base = text(case, &["base"]);
        let path = object_path(&examples[base]);
        let mut object = api.ask(&Ask::new("GET", &path)).await.json();
        change(case, &mut object);
        let dry = if matches!(base, "ConfigMap" | "Secret" | "Node" | "Lease") { "" } else { "&dryRun=All" };
        let answer = api.ask(&Ask::new("PUT", &format!("{path}?fieldValidation=Strict{dry}")).json(&object)).await;
        differing.extend(note(*line, case, &answer));
    }
    conclude(VALIDATION, cases.len(), &differing);
}

/// Makes what the status cases expect to be there.
async fn furnish(api: &Api) {
    let pod = |name: &str| json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let service = json!({"metadata": {"name": "np"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]}});
    let budget = json!({"metadata": {"name": "pdb"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "ev"}}}});
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/secrets": "0"}}});
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}});
    for name in ["qns", "dns"] {
        api.made("/api/v1/namespaces", &json!({"metadata": {"name": name}})).await;
    }
    for (path, object) in [
        ("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "st"}, "data": {"k": "v"}})),
        ("/api/v1/namespaces/default/pods", pod("sp")),
        ("/api/v1/namespaces/default/pods", pod("ev")),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget),
        ("/api/v1/namespaces/default/services", service),
        ("/api/v1/namespaces/qns/resourcequotas", quota.clone()),
        ("/api/v1/namespaces/qns/limitranges", limits),
    ] {
        api.made(path, &object).await;
    }
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let path = "/api/v1/namespaces/default/pods/ev/status";
    assert_eq!(api.ask(&Ask::new("PATCH", path).content("application/merge-patch+json", &running.to_string())).await.code, 200);
    let mut counted = quota;
    counted["status"] = json!({"hard": {"count/secrets": "0"}, "used": {"count/secrets": "0"}});
    let answer = api.ask(&Ask::new("PUT", "/api/v1/namespaces/qns/resourcequotas/q/status").json(&counted)).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn odd_requests_are_answered_as_upstream_answers_them() {
    let file = "status-cases.jsonl";
    let (cases, mut differing) = (lines(file), BTreeMap::new());
    let api = Api::start().await;
    furnish(&api).await;
    for (line, case) in &cases {
        let name = text(case, &["case"]);
        let mut ask = Ask::new(text(case, &["method"]), text(case, &["path"])).accept(text(case, &["accept"]));
        ask = match &case["body"] {
            Value::Null => ask,
            Value::String(body) => ask.content(text(case, &["content_type"]), body),
            body => ask.content(text(case, &["content_type"]), &body.to_string()),
        };
        if name.starts_with("anonymous") {
            ask = ask.anonymous();
        } else if matches!(name, "unauthenticated" | "bad token on nodes") {
            ask = ask.token("nobody");
        }
        let answer = api.ask(&ask).await;
        if let Some(what) = difference(case, &case["response"], &answer) {
            differing.insert(*line, format!("{name}: {} {}\n{what}", ask.method, ask.path));
        }
    }
    conclude(file, cases.len(), &differing);
}

#[tokio::test(start_paused = true)]
async fn tables_are_printed_as_upstream_prints_them() {
    let file = "table-examples.jsonl";
    let (cases, mut differing) = (lines(file), BTreeMap::new());
    let api = Api::start().await;
    for (line, case) in &cases {
        let object = &case["object"];
        // Objects were printed within the second of their creation.
        skiff_api::clock::set_virtual(time(object, &["metadata", "creationTimestamp"]).unwrap_or_else(|| panic!("{object}")));
        let resource = resource_of(object);
        let namespace = text(object, &["metadata", "namespace"]);
        api.put(resource, object).await;
        let path = format!("{}?fieldSelector=metadata.name={}", collection(resource, namespace), text(object, &["metadata", "name"]));
        let table = api.ask(&Ask::new("GET", &path).accept("application/json;as=Table;v=v1;g=meta.k8s.io")).await.json();
        let columns: Vec<&Value> = items(&table, &["columnDefinitions"]).iter().map(|column| &column["name"]).collect();
        let row = &table["rows"][0];
        let ours = json!({"columns": columns, "cells": row["cells"], "row_conditions": row.get("conditions")});
        let differ: Vec<_> = ["columns", "cells", "row_conditions"].into_iter().filter(|part| ours[part] != case[part]).collect();
        if let Some(part) = differ.first() {
            differing.insert(*line, format!("{}\n  ours   {}\n  theirs {}", place(case), ours[part], case[part]));
        }
    }
    conclude(file, cases.len(), &differing);
}
