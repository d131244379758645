//! What a real API server stored of small objects, against decoding and defaulting here. What its create strategies
//! and admission add is the API server's, and left out on both sides.

mod golden;

use serde_json::Value;
use skiff_api::value::{remove, text};
use skiff_api::{defaults, protobuf, resource};

/// What is not a matter of decoding and defaulting, by kind.
fn without_create_path(kind: &str, object: &mut Value) {
    let mut paths: Vec<&[&str]> = vec![
        &["metadata", "uid"],
        &["metadata", "creationTimestamp"],
        &["metadata", "generation"],
        &["metadata", "namespace"],
        &["metadata", "finalizers"],
    ];
    match kind {
        "Pod" => paths.extend([["spec", "tolerations"], ["spec", "priority"], ["spec", "preemptionPolicy"], ["status", "phase"], ["status", "qosClass"]].iter().map(|p| &p[..])),
        "Service" => paths.extend([["spec", "clusterIP"], ["spec", "clusterIPs"], ["spec", "ipFamilies"], ["spec", "ipFamilyPolicy"]].iter().map(|p| &p[..])),
        "Job" => paths.extend([&["metadata", "labels"][..], &["spec", "selector"], &["spec", "template", "metadata", "labels"]]),
        "Namespace" => paths.push(&["spec", "finalizers"]),
        "Node" => paths.push(&["spec", "taints"]),
        "DaemonSet" => paths.push(&["metadata", "annotations"]),
        "PersistentVolume" => paths.push(&["status", "lastPhaseTransitionTime"]),
        _ => {}
    }
    for path in paths {
        remove(object, path);
    }
}

#[test]
fn small_objects_are_stored_as_upstream_stores_them() {
    let mut wrong = Vec::new();
    let lines = golden::lines("create-examples.jsonl");
    for line in &lines {
        let (mut object, mut stored) = (line["input"].clone(), line["stored"].clone());
        let (group, version) = text(&object, &["apiVersion"]).rsplit_once('/').unwrap_or(("", text(&object, &["apiVersion"])));
        let kind = text(&object, &["kind"]).to_owned();
        let resource = resource::find_kind(group, version, &kind).unwrap_or_else(|| panic!("{kind}"));
        let unknown = resource.schema().prune(&mut object).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(unknown.is_empty(), "{kind}: {unknown:?}");
        defaults::apply(resource, &mut object);
        without_create_path(&kind, &mut object);
        without_create_path(&kind, &mut stored);
        // What was left out may have left an empty parent behind.
        resource.schema().prune(&mut object).unwrap_or_else(|e| panic!("{kind}: {e}"));
        resource.schema().prune(&mut stored).unwrap_or_else(|e| panic!("{kind}: {e}"));
        if object != stored {
            wrong.push(format!("{}\n  ours   {object}\n  theirs {stored}", line["name"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
}

/// Without what reads the same in protobuf whether it is there or not: nulls and empty lists.
fn without_nothings(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_nothings);
            map.retain(|_, v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()));
        }
        Value::Array(items) => items.iter_mut().for_each(without_nothings),
        _ => {}
    }
}

#[test]
fn stored_objects_come_back_from_protobuf() {
    for line in golden::lines("create-examples.jsonl") {
        let mut object = line["stored"].clone();
        let bytes = protobuf::encode(&object).unwrap_or_else(|e| panic!("{}: {e}", line["name"]));
        let mut back = protobuf::decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", line["name"]));
        without_nothings(&mut object);
        without_nothings(&mut back);
        assert_eq!(back, object);
    }
}
