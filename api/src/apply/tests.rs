use serde_json::json;

use super::*;

fn manager(name: &str, operation: Operation, api_version: &str, second: i64) -> Manager {
    let time = Timestamp::from_second(1_700_000_000 + second).expect("a time");
    Manager { name: name.into(), operation, api_version: api_version.into(), subresource: String::new(), time }
}

fn applier(name: &str) -> Manager {
    manager(name, Operation::Apply, "v1", 0)
}

fn config_map() -> &'static Schema {
    Schema::builtin("io.k8s.api.core.v1.ConfigMap").expect("the schema")
}

fn cm(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ap"}, "data": data})
}

/// `name=data keys` of each entry.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries.map(|e| format!("{} {}={}", e["manager"].as_str().unwrap_or(""), e["operation"].as_str().unwrap_or(""), e["fieldsV1"])).collect()
}

#[test]
fn applying_creating_conflicting_and_forcing() {
    let created = apply(config_map(), None, &cm(json!({"k": "1"})), &applier("a"), false, &[]).expect("created");
    assert_eq!(owners(&created), [r#"a Apply={"f:data":{"f:k":{}}}"#]);
    let refused = apply(config_map(), Some(&created), &cm(json!({"k": "2"})), &applier("b"), false, &[]).expect_err("a conflict");
    assert_eq!(refused.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .data.k");
    let forced = apply(config_map(), Some(&created), &cm(json!({"k": "2"})), &applier("b"), true, &[]).expect("forced");
    assert_eq!(forced["data"], json!({"k": "2"}));
    assert_eq!(owners(&forced), [r#"b Apply={"f:data":{"f:k":{}}}"#]);
}

#[test]
fn several_conflicts_are_listed_by_owner() {
    let mut live = cm(json!({"k": "1", "l": "1"}));
    update_managed_fields(config_map(), None, &mut live, &manager("kubectl-client-side-apply", Operation::Update, "v1", 0), &[]);
    let config = cm(json!({"k": "2", "l": "2"}));
    let refused = apply(config_map(), Some(&live), &config, &applier("b"), false, &[]).expect_err("conflicts");
    let expected = "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using v1:\n- .data.k\n- .data.l";
    assert_eq!(refused.to_string(), expected);
}

#[test]
fn sharing_and_dropping() {
    let first = apply(config_map(), None, &cm(json!({"k": "1", "own": "x"})), &applier("a"), false, &[]).expect("a");
    let both = apply(config_map(), Some(&first), &cm(json!({"k": "1"})), &applier("b"), false, &[]).expect("b");
    assert_eq!(owners(&both).len(), 2);
    let dropped = apply(config_map(), Some(&both), &cm(json!({})), &applier("a"), false, &[]).expect("a drops all");
    assert_eq!(dropped["data"], json!({"k": "1"}), "what b owns stays, what only a owned goes");
    let same = apply(config_map(), Some(&both), &cm(json!({"k": "1"})), &manager("b", Operation::Apply, "v1", 99), false, &[]);
    assert_eq!(same.expect("again"), both, "applying the same again changes nothing, not even times");
}

#[test]
fn updates_take_ownership_and_an_unowned_object_migrates() {
    let live = cm(json!({"k": "1"}));
    let mut updated = cm(json!({"k": "2"}));
    update_managed_fields(config_map(), Some(&live), &mut updated, &manager("u", Operation::Update, "v1", 0), &[]);
    assert_eq!(owners(&updated), [""; 0], "no books, none begun");
    let refused = apply(config_map(), Some(&live), &cm(json!({"k": "2"})), &applier("a"), false, &[]).expect_err("a conflict");
    assert_eq!(refused.to_string(), "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k");
    let applied = apply(config_map(), None, &cm(json!({"k": "1"})), &applier("a"), false, &[]).expect("applied");
    let mut updated = applied.clone();
    updated["data"] = json!({"k": "2", "l": "1"});
    update_managed_fields(config_map(), Some(&applied), &mut updated, &manager("u", Operation::Update, "v1", 5), &[]);
    assert_eq!(owners(&updated), [r#"u Update={"f:data":{"f:k":{},"f:l":{}}}"#]);
    let mut reset = updated.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update_managed_fields(config_map(), Some(&updated), &mut reset, &manager("u", Operation::Update, "v1", 6), &[]);
    assert_eq!(owners(&reset), [""; 0]);
}

#[test]
fn a_created_deployment_is_owned_as_upstream_books_it() {
    let schema = Schema::builtin("io.k8s.api.apps.v1.Deployment").expect("the schema");
    let mut new = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"app": "d"}}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "d"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"securityContext": {}, "containers": [
            {"name": "c", "image": "i", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}});
    schema.prune(&mut new).expect("pruned");
    update_managed_fields(schema, None, &mut new, &manager("kubectl", Operation::Update, "apps/v1", 0), &[&["status"]]);
    let expected = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {"f:replicas": {}, "f:selector": {}, "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:securityContext": {}, "f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}, "f:ports": {".": {},
                    "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}},
    });
    assert_eq!(new["metadata"]["managedFields"][0]["fieldsV1"], expected);
}

#[test]
fn list_items_merge_by_key_and_leave_with_their_owner() {
    let schema = Schema::builtin("io.k8s.api.core.v1.Pod").expect("the schema");
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let first = apply(schema, None, &pod(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])), &applier("x"), false, &[]).expect("x");
    let second = apply(schema, Some(&first), &pod(json!([{"name": "c", "image": "1"}])), &applier("y"), false, &[]).expect("y");
    let names = |o: &Value| o["spec"]["containers"].as_array().expect("a list").iter().map(|c| c["name"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&second), ["a", "b", "c"]);
    let third = apply(schema, Some(&second), &pod(json!([{"name": "b", "image": "1"}])), &applier("x"), false, &[]).expect("x again");
    assert_eq!(names(&third), ["b", "c"]);
    let refused = apply(schema, Some(&third), &pod(json!([{"name": "c", "image": "2"}])), &applier("x"), false, &[]).expect_err("a conflict");
    assert_eq!(refused.to_string(), "Apply failed with 1 conflict: conflict with \"y\": .spec.containers[name=\"c\"].image");
    let invalid = apply(schema, None, &pod(json!([{"name": "a", "bogus": 1}])), &applier("x"), false, &[]).expect_err("unknown");
    assert_eq!(invalid.to_string(), ".spec.containers[name=\"a\"].bogus: field not declared in schema");
}

#[test]
fn ignored_fields_are_neither_owned_nor_changed() {
    let schema = Schema::builtin("io.k8s.api.core.v1.Pod").expect("the schema");
    let live = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Running"}});
    let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "status": {"phase": "Failed"}});
    let applied = apply(schema, Some(&live), &config, &applier("x"), false, &[&["status"]]).expect("applied");
    assert_eq!(applied["status"]["phase"], "Running");
    assert!(owners(&applied).iter().all(|o| !o.starts_with("x ") || !o.contains("f:status")), "{:?}", owners(&applied));
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client_side() {
    let applied = cm(json!({"k": "1"}));
    let mut live = applied.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: applied.to_string()});
    update_managed_fields(config_map(), None, &mut live, &manager("kubectl-client-side-apply", Operation::Update, "v1", 0), &[]);
    let config = cm(json!({"k": "2"}));
    let taken = apply(config_map(), Some(&live), &config, &applier("kubectl"), false, &[]).expect("taken over");
    assert_eq!(taken["data"]["k"], "2");
    assert!(text(&taken, &["metadata", "annotations", LAST_APPLIED]).contains("\"k\":\"2\""));
    assert!(apply(config_map(), Some(&live), &config, &applier("other"), false, &[]).is_err());
    let large = cm(json!({"k": "v".repeat(300 << 10)}));
    let taken = apply(config_map(), Some(&live), &large, &applier("kubectl"), false, &[]).expect("taken over");
    assert!(text(&taken, &["metadata", "annotations", LAST_APPLIED]).is_empty(), "what doesn't fit goes");
}

#[test]
fn too_many_updaters_become_one() {
    let mut live = cm(json!({}));
    for i in 0..15 {
        let mut new = live.clone();
        new["data"][format!("k{i}")] = "v".into();
        let old = (i > 0).then_some(&live);
        update_managed_fields(config_map(), old, &mut new, &manager(&format!("m{i:02}"), Operation::Update, "v1", i), &[]);
        live = new;
    }
    let names: Vec<String> = owners(&live).iter().map(|o| o.split(' ').next().unwrap_or("").to_owned()).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[0], "ancient-changes");
}
