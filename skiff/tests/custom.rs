//! Custom resources in a whole cluster within this process.

use std::time::Duration;

use futures::StreamExt;
use http::{Request, StatusCode};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::wait::await_condition;
use kube::{Client, Error};
use serde_json::{Value, json};
use skiff::{Cluster, Options};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn cluster() -> (Cluster, Client) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let cluster = Cluster::with(Options { nodes: 0, ..Options::default() }).await.expect("a cluster");
    let client = cluster.admin();
    (cluster, client)
}

/// The resource of a kind in `x.io`.
fn kind(kind: &str, version: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("x.io", version, kind))
}

fn definitions(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition")))
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).expect("an object")
}

/// A version of a definition.
fn version(name: &str, storage: bool, spec: Value, rest: Value) -> Value {
    let mut version = json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": spec},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
    });
    json_patch::merge(&mut version, &rest);
    version
}

fn definition(plural: &str, kind: &str, versions: Vec<Value>) -> DynamicObject {
    object(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.x.io")},
        "spec": {"group": "x.io", "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": versions},
    }))
}

async fn define(client: &Client, definition: &DynamicObject) {
    definitions(client).create(&PostParams::default(), definition).await.expect("defined");
}

fn foo(name: &str, spec: Value) -> DynamicObject {
    object(json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec}))
}

fn foos(client: &Client) -> Api<DynamicObject> {
    Api::default_namespaced_with(client.clone(), &kind("Foo", "v1"))
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result {
        Err(Error::Api(status)) => (status.code, status.message),
        other => panic!("not refused: {other:?}"),
    }
}

async fn raw(client: &Client, method: &str, path: &str, content_type: &str, body: Value) -> (StatusCode, Value, Vec<String>) {
    let text = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", content_type).header("accept", "application/json").body(text.into());
    let response = client.send(request.expect("a request")).await.expect("an answer");
    let warnings = response.headers().get_all("warning").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let code = response.status();
    use http_body_util::BodyExt;
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null), warnings)
}

async fn get(client: &Client, path: &str) -> Value {
    raw(client, "GET", path, "", Value::Null).await.1
}

fn condition<'a>(definition: &'a DynamicObject, kind: &str) -> (&'a str, &'a str, &'a str) {
    let all = definition.data["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    let text = |name: &str| found.and_then(|c| c[name].as_str()).unwrap_or("");
    (text("status"), text("reason"), text("message"))
}

async fn until(api: &Api<DynamicObject>, name: &str, what: &str, holds: impl Fn(Option<&DynamicObject>) -> bool) -> Option<DynamicObject> {
    match tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, holds)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => panic!("{name} could not be watched: {error}"),
        Err(_) => panic!("{name}: not {what}: {:#?}", api.get_opt(name).await.ok()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_may_follow_their_definition_at_once() {
    let (_cluster, client) = cluster().await;
    let size = json!({"size": {"type": "integer", "default": 1, "maximum": 5}, "name": {"type": "string"}});
    define(&client, &definition("foos", "Foo", vec![version("v1", true, size, json!({"subresources": {"status": {}}}))])).await;
    let foos = foos(&client);
    let mut sent = foo("a", json!({"name": "n", "unknown": 1}));
    sent.data["status"] = json!({"gone": true});
    let made = foos.create(&PostParams::default(), &sent).await.expect("made");
    assert_eq!((&made.data["spec"], &made.data["status"]), (&json!({"name": "n", "size": 1}), &Value::Null));
    assert_eq!(made.metadata.generation, Some(1));
    let strict = PostParams::default();
    let (code, message) = refusal(foos.create(&strict, &foo("b", json!({"size": 9}))).await);
    assert_eq!(code, 422);
    assert_eq!(message, "Foo.x.io \"b\" is invalid: spec.size: Invalid value: 9: spec.size in body should be less than or equal to 5");
    let path = "/apis/x.io/v1/namespaces/default/foos";
    let odd = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "c", "odd": 1}, "spec": {"unknown": 1}});
    let (code, answer, _) = raw(&client, "POST", &format!("{path}?fieldValidation=Strict"), "application/json", odd.clone()).await;
    assert_eq!(code, 400);
    let words = "strict decoding error: unknown field \"metadata.odd\", unknown field \"spec.unknown\"";
    assert!(answer["message"].as_str().is_some_and(|m| m.ends_with(words)), "{answer}");
    let (code, _, warnings) = raw(&client, "POST", path, "application/json", odd).await;
    assert_eq!((code.as_u16(), warnings.len()), (201, 2), "{warnings:?}");
    let (code, answer, _) = raw(&client, "PATCH", &format!("{path}/a"), "application/strategic-merge-patch+json", json!({})).await;
    assert_eq!((code.as_u16(), answer["reason"].as_str()), (415, Some("UnsupportedMediaType")));
    let up = definitions(&client).get("foos.x.io").await.expect("the definition");
    assert_eq!(condition(&up, "Established"), ("True", "InitialNamesAccepted", "the initial names have been accepted"));
    assert_eq!(condition(&up, "NamesAccepted"), ("True", "NoConflicts", "no conflicts found"));
    assert_eq!(up.data["status"]["acceptedNames"], json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"}));
    assert_eq!(up.data["status"]["storedVersions"], json!(["v1"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_definition_takes_its_objects_along() {
    let (_cluster, client) = cluster().await;
    define(&client, &definition("foos", "Foo", vec![version("v1", true, json!({}), json!({}))])).await;
    let (foos, definitions) = (foos(&client), definitions(&client));
    let mut held = foo("held", json!({}));
    held.metadata.finalizers = Some(vec!["x.io/hold".into()]);
    foos.create(&PostParams::default(), &held).await.expect("held");
    foos.create(&PostParams::default(), &foo("free", json!({}))).await.expect("free");
    definitions.delete("foos.x.io", &DeleteParams::default()).await.expect("deleted");
    let going = until(&definitions, "foos.x.io", "emptying", |d| d.is_some_and(|d| condition(d, "Terminating").1 == "InstanceDeletionInProgress")).await;
    assert_eq!(condition(&going.expect("there"), "Terminating").2, "CustomResource deletion is in progress");
    until(&foos, "free", "gone", |o| o.is_none()).await;
    let (code, message) = refusal(foos.create(&PostParams::default(), &foo("late", json!({}))).await);
    assert_eq!((code, message.as_str()), (403, "foos.x.io \"late\" is forbidden: create not allowed while custom resource definition is terminating"));
    foos.patch("held", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}}))).await.expect("let go");
    until(&definitions, "foos.x.io", "gone", |d| d.is_none()).await;
    let gone = async { while raw(&client, "GET", "/apis/x.io/v1/foos", "", Value::Null).await.0 != 404 {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("no longer served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_given_once_and_again_when_free() {
    let (_cluster, client) = cluster().await;
    let one = vec![version("v1", true, json!({}), json!({}))];
    define(&client, &definition("foos", "Foo", one.clone())).await;
    define(&client, &definition("others", "Foo", one)).await;
    let definitions = definitions(&client);
    let refused = until(&definitions, "others.x.io", "refused", |d| d.is_some_and(|d| condition(d, "NamesAccepted").0 == "False")).await.expect("there");
    assert_eq!(condition(&refused, "NamesAccepted"), ("False", "ListKindConflict", "\"FooList\" is already in use"));
    assert_eq!(condition(&refused, "Established"), ("False", "NotAccepted", "not all names are accepted"));
    assert_eq!(raw(&client, "GET", "/apis/x.io/v1/others", "", Value::Null).await.0, 404);
    definitions.delete("foos.x.io", &DeleteParams::default()).await.expect("deleted");
    until(&definitions, "others.x.io", "up", |d| d.is_some_and(|d| condition(d, "Established").0 == "True")).await;
    assert_eq!(raw(&client, "GET", "/apis/x.io/v1/others", "", Value::Null).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_share_their_objects() {
    let (_cluster, client) = cluster().await;
    let old = json!({"size": {"type": "integer"}, "old": {"type": "string"}});
    let new = json!({"size": {"type": "integer"}, "fresh": {"type": "string", "default": "f"}});
    let versions = |stored_old: bool| {
        vec![
            version("v1beta1", stored_old, old.clone(), json!({"deprecated": true})),
            version("v1", !stored_old, new.clone(), json!({})),
        ]
    };
    define(&client, &definition("foos", "Foo", versions(true))).await;
    let (v1, beta) = (foos(&client), Api::<DynamicObject>::default_namespaced_with(client.clone(), &kind("Foo", "v1beta1")));
    let mut first = foo("a", json!({"size": 1, "old": "o"}));
    first.types.as_mut().expect("types").api_version = "x.io/v1beta1".into();
    beta.create(&PostParams::default(), &first).await.expect("made");
    assert_eq!(v1.get("a").await.expect("a").data["spec"], json!({"size": 1}));
    assert_eq!(beta.get("a").await.expect("a").data["spec"], json!({"size": 1, "old": "o"}));
    // The storage version moves; what is there stays readable, and moves when it is written.
    let definitions = definitions(&client);
    definitions.patch("foos.x.io", &PatchParams::default(), &Patch::Merge(json!({"spec": {"versions": versions(false)}}))).await.expect("changed");
    assert_eq!(beta.get("a").await.expect("a").data["spec"], json!({"size": 1, "old": "o"}));
    let patched = v1.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"size": 2}}))).await.expect("patched");
    assert_eq!(patched.data["spec"], json!({"size": 2, "fresh": "f"}));
    assert_eq!(beta.get("a").await.expect("a").data["spec"], json!({"size": 2}));
    assert_eq!(definitions.get("foos.x.io").await.expect("there").data["status"]["storedVersions"], json!(["v1beta1", "v1"]));
    let (_, list, warnings) = raw(&client, "GET", "/apis/x.io/v1beta1/foos", "", Value::Null).await;
    assert_eq!(warnings, ["299 - \"x.io/v1beta1 Foo is deprecated; use x.io/v1 Foo\""]);
    assert_eq!((list["kind"].as_str(), list["items"][0]["apiVersion"].as_str()), (Some("FooList"), Some("x.io/v1beta1")));
    let group = get(&client, "/apis/x.io").await;
    assert_eq!((&group["preferredVersion"]["version"], &group["versions"][1]["version"]), (&json!("v1"), &json!("v1beta1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_schema_shows_and_hides_what_is_stored() {
    let (_cluster, client) = cluster().await;
    let versions = |spec: Value| vec![version("v1", true, spec, json!({}))];
    define(&client, &definition("foos", "Foo", versions(json!({"a": {"type": "string"}})))).await;
    let foos = foos(&client);
    foos.create(&PostParams::default(), &foo("x", json!({"a": "1"}))).await.expect("made");
    let mut events = foos.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    // A watch from anywhere may begin before what was just made, and says so with a bookmark.
    let first = events.by_ref().skip_while(|event| std::future::ready(matches!(event, Ok(WatchEvent::Bookmark(_))))).next().await;
    assert!(matches!(first, Some(Ok(WatchEvent::Added(_)))), "{first:?}");
    let change = |spec: Value| Patch::Merge(json!({"spec": {"versions": versions(spec)}}));
    let definitions = definitions(&client);
    definitions.patch("foos.x.io", &PatchParams::default(), &change(json!({"b": {"type": "string", "default": "d"}}))).await.expect("changed");
    // Watches end when what they show changes its form.
    let ended = tokio::time::timeout(PATIENCE, async { while events.next().await.is_some() {} }).await;
    assert!(ended.is_ok());
    assert_eq!(foos.get("x").await.expect("x").data["spec"], json!({"b": "d"}));
    assert_eq!(foos.list(&ListParams::default()).await.expect("a list").items[0].data["spec"], json!({"b": "d"}));
    definitions.patch("foos.x.io", &PatchParams::default(), &change(json!({"a": {"type": "string"}}))).await.expect("changed");
    assert_eq!(foos.list(&ListParams::default().match_any()).await.expect("a list").items[0].data["spec"], json!({"a": "1"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_scale_selectors_and_columns() {
    let (_cluster, client) = cluster().await;
    let scale = json!({"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n", "labelSelectorPath": ".status.selector"});
    let rest = json!({
        "subresources": {"status": {}, "scale": scale}, "selectableFields": [{"jsonPath": ".spec.color"}],
        "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}],
    });
    let mut made = definition("foos", "Foo", vec![version("v1", true, json!({"n": {"type": "integer"}, "color": {"type": "string"}}), rest)]);
    made.data["spec"]["names"]["shortNames"] = json!(["f"]);
    made.data["spec"]["names"]["categories"] = json!(["all"]);
    define(&client, &made).await;
    let foos = foos(&client);
    for (name, color) in [("a", "red"), ("b", "blue")] {
        foos.create(&PostParams::default(), &foo(name, json!({"n": 1, "color": color}))).await.expect("made");
    }
    let status = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"n": 7}, "status": {"n": 3, "selector": "app=a"}});
    let patched = foos.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await.expect("patched");
    assert_eq!((&patched.data["spec"]["n"], &patched.data["status"]["n"], patched.metadata.generation), (&json!(1), &json!(3), Some(1)));
    assert_eq!(patched.metadata.labels, None);
    let path = "/apis/x.io/v1/namespaces/default/foos/a/scale";
    let found = get(&client, path).await;
    assert_eq!((&found["kind"], &found["spec"], &found["status"]), (&json!("Scale"), &json!({"replicas": 1}), &json!({"replicas": 3, "selector": "app=a"})));
    let (code, _, _) = raw(&client, "PATCH", path, "application/merge-patch+json", json!({"spec": {"replicas": 4}})).await;
    assert_eq!(code, 200);
    let scaled = foos.get("a").await.expect("a");
    assert_eq!((&scaled.data["spec"]["n"], scaled.metadata.generation), (&json!(4), Some(2)));
    let red = foos.list(&ListParams::default().fields("spec.color=red")).await.expect("a list");
    assert_eq!(red.items.iter().filter_map(|o| o.metadata.name.as_deref()).collect::<Vec<_>>(), ["a"]);
    let (code, message) = refusal(foos.list(&ListParams::default().fields("spec.n=1")).await);
    assert_eq!((code, message.as_str()), (400, "field label not supported: spec.n"));
    // A change of color turns into the appearance and the disappearance of an object.
    let mut events = foos.watch(&WatchParams::default().fields("spec.color=red"), &red.metadata.resource_version.unwrap_or_default()).await.expect("a watch").boxed();
    foos.patch("b", &PatchParams::default(), &Patch::Merge(json!({"spec": {"color": "red"}}))).await.expect("patched");
    foos.patch("b", &PatchParams::default(), &Patch::Merge(json!({"spec": {"color": "blue"}}))).await.expect("patched");
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Added(_)))));
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Deleted(_)))));
    let request = Request::get("/apis/x.io/v1/foos").header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io").body(Vec::new()).expect("a request");
    let table: Value = client.request(request).await.expect("a table");
    assert_eq!(table["columnDefinitions"].as_array().map(|c| c.iter().map(|c| c["name"].clone()).collect()), Some(json!(["Name", "Color"]).as_array().cloned().unwrap_or_default()));
    assert_eq!(table["rows"][0]["cells"], json!(["a", "red"]));
    let list = get(&client, "/apis/x.io/v1").await;
    let names: Vec<&str> = list["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["foos", "foos/scale", "foos/status"]);
    let first = &list["resources"][0];
    assert_eq!((&first["shortNames"], &first["categories"], &first["singularName"]), (&json!(["f"]), &json!(["all"]), &json!("foo")));
    let openapi = get(&client, "/openapi/v3/apis/x.io/v1").await;
    let schema = &openapi["components"]["schemas"]["io.x.v1.Foo"];
    assert_eq!(schema["properties"]["spec"]["properties"]["n"], json!({"type": "integer"}));
    assert_eq!(schema["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.color"}]));
    assert_eq!(schema["x-kubernetes-group-version-kind"], json!([{"group": "x.io", "version": "v1", "kind": "Foo"}]));
    assert!(openapi["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_merges_by_the_schema() {
    let (_cluster, client) = cluster().await;
    let spec = json!({
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"], "items": {"type": "object", "required": ["port"],
            "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "plain": {"type": "array", "items": {"type": "string"}},
    });
    define(&client, &definition("foos", "Foo", vec![version("v1", true, spec, json!({}))])).await;
    let foos = foos(&client);
    let apply = async |manager: &str, spec: Value| {
        foos.patch("a", &PatchParams::apply(manager), &Patch::Apply(foo("a", spec))).await
    };
    apply("one", json!({"ports": [{"port": 1, "name": "a"}], "tags": ["x"], "plain": ["p"]})).await.expect("applied");
    let both = apply("two", json!({"ports": [{"port": 2}], "tags": ["y"]})).await.expect("applied");
    assert_eq!(both.data["spec"], json!({"ports": [{"port": 1, "name": "a"}, {"port": 2}], "tags": ["x", "y"], "plain": ["p"]}));
    let (code, message) = refusal(apply("two", json!({"ports": [{"port": 1, "name": "b"}]})).await);
    assert_eq!((code, message.as_str()), (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.ports[port=1].name"));
    let gone = apply("one", json!({"plain": ["q"]})).await.expect("applied");
    assert_eq!(gone.data["spec"], json!({"ports": [{"port": 2}], "tags": ["y"], "plain": ["q"]}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_know_custom_objects() {
    let (_cluster, client) = cluster().await;
    define(&client, &definition("foos", "Foo", vec![version("v1", true, json!({}), json!({}))])).await;
    let config_maps: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap")));
    let foos = foos(&client);
    let owner = foos.create(&PostParams::default(), &foo("owner", json!({}))).await.expect("made");
    let owned = |kind: &str, version: &str, owner: &DynamicObject, of: &str| {
        let reference = json!([{"apiVersion": version, "kind": of, "name": owner.metadata.name, "uid": owner.metadata.uid}]);
        object(json!({"apiVersion": if kind == "Foo" { "x.io/v1" } else { "v1" }, "kind": kind, "metadata": {"name": "owned", "ownerReferences": reference}}))
    };
    let map = config_maps.create(&PostParams::default(), &owned("ConfigMap", "x.io/v1", &owner, "Foo")).await.expect("made");
    foos.create(&PostParams::default(), &owned("Foo", "v1", &map, "ConfigMap")).await.expect("made");
    foos.delete("owner", &DeleteParams::background()).await.expect("deleted");
    until(&config_maps, "owned", "gone", |o| o.is_none()).await;
    until(&foos, "owned", "gone", |o| o.is_none()).await;
    // A namespace takes its custom objects along.
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Namespace")));
    namespaces.create(&PostParams::default(), &object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))).await.expect("made");
    let there: Api<DynamicObject> = Api::namespaced_with(client.clone(), "n", &kind("Foo", "v1"));
    there.create(&PostParams::default(), &foo("x", json!({}))).await.expect("made");
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"count/foos.x.io": "1"}}});
    raw(&client, "POST", "/api/v1/namespaces/n/resourcequotas", "application/json", quota).await;
    let (code, message) = refusal(there.create(&PostParams::default(), &foo("y", json!({}))).await);
    assert!(code == 403 && message.contains("exceeded quota: q, requested: count/foos.x.io=1, used: count/foos.x.io=1, limited: count/foos.x.io=1"), "{message}");
    namespaces.delete("n", &DeleteParams::default()).await.expect("deleted");
    until(&namespaces, "n", "gone", |o| o.is_none()).await;
    let list = foos.list(&ListParams::default()).await.expect("a list");
    assert_eq!(list.items.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_or_repeated_is_told() {
    let (_cluster, client) = cluster().await;
    let free = json!({"schema": {"openAPIV3Schema": {"properties": {"spec": {"x-kubernetes-preserve-unknown-fields": true}}}}});
    let inner = json!({"template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}});
    define(&client, &definition("foos", "Foo", vec![version("v1", true, inner, json!({}))])).await;
    define(&client, &definition("bars", "Bar", vec![version("v1", true, json!({}), free)])).await;
    let send = async |method: &str, path: &str, content_type: &str, body: &str| {
        let uri = format!("/apis/x.io/v1/namespaces/default/{path}");
        let request = Request::builder().method(method).uri(uri).header("content-type", content_type).body(body.as_bytes().to_vec().into());
        let response = client.send(request.expect("a request")).await.expect("an answer");
        let code = response.status().as_u16();
        use http_body_util::BodyExt;
        let answer: Value = serde_json::from_slice(&response.into_body().collect().await.expect("a body").to_bytes()).unwrap_or_default();
        (code, answer["message"].as_str().unwrap_or("").to_owned())
    };
    let template = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "inner": 1}, "spec": {}});
    let odd = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "a", "outer": 1}, "spec": {"template": template}});
    let (code, message) = send("POST", "foos?fieldValidation=Strict", "application/json", &odd.to_string()).await;
    let words = "strict decoding error: unknown field \"metadata.outer\", unknown field \"spec.template.metadata.inner\"";
    assert!(code == 400 && message.ends_with(words), "{code} {message}");
    let apply = "application/apply-patch+yaml";
    let twice = "apiVersion: x.io/v1\nkind: Bar\nmetadata: {name: a}\nspec:\n  unknown: 1\n  foo: a\n  foo: b\n";
    let (code, message) = send("PATCH", "bars/a?fieldManager=m&fieldValidation=Strict", apply, twice).await;
    assert_eq!((code, message.as_str()), (400, "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"foo\" already set in map"));
    let (code, message) = send("PATCH", "bars/a?fieldManager=m&fieldValidation=Ignore", apply, twice).await;
    assert_eq!(code, 201, "{message}");
    let unknown = "{apiVersion: x.io/v1, kind: Foo, metadata: {name: a}, spec: {bogus: 1}}";
    let (code, message) = send("PATCH", "foos/a?fieldManager=m", apply, unknown).await;
    assert_eq!((code, message.as_str()), (500, "failed to create typed patch object (/a; x.io/v1, Kind=Foo): .spec.bogus: field not declared in schema"));
    let yaml = "apiVersion: x.io/v1\nkind: Bar\nmetadata: {name: b}\nspec:\n  foo: a\n  foo: b\n";
    let (code, message) = send("POST", "bars?fieldValidation=Strict", "application/yaml", yaml).await;
    assert!(code == 400 && message.ends_with("strict decoding error: yaml: unmarshal errors:\n  line 6: key \"foo\" already set in map"), "{message}");
    // A definition's own faults and warnings.
    let mut odd = definition("bazs", "Baz", vec![version("v1", true, json!({"x": {"type": "string", "format": "odd"}}), json!({}))]);
    let body = serde_json::to_value(&odd).expect("JSON");
    let (code, _, warnings) = raw(&client, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All", "application/json", body).await;
    assert_eq!((code.as_u16(), warnings.as_slice()), (201, &["299 - \"unrecognized format \\\"odd\\\"\"".to_owned()][..]));
    odd.data["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["x"]["type"] = Value::Null;
    let (code, message) = refusal(definitions(&client).create(&PostParams::default(), &odd).await);
    assert!(code == 422 && message.contains("properties[x].type: Required value: must not be empty for specified object fields"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_before_is_served_from_the_start() {
    let store = std::sync::Arc::new(skiff_store::Memory::new());
    let options = || Options { nodes: 0, control: false, store: store.clone(), ..Options::default() };
    let first = Cluster::with(options()).await.expect("a server");
    define(&first.admin(), &definition("foos", "Foo", vec![version("v1", true, json!({"a": {"type": "string"}}), json!({}))])).await;
    foos(&first.admin()).create(&PostParams::default(), &foo("x", json!({"a": "1"}))).await.expect("made");
    drop(first);
    let second = Cluster::with(options()).await.expect("a server");
    assert_eq!(foos(&second.admin()).get("x").await.expect("x").data["spec"], json!({"a": "1"}));
    let groups = get(&second.admin(), "/apis").await;
    let last = groups["groups"].as_array().and_then(|g| g.last()).map(|g| g["name"].clone());
    assert_eq!(last, Some("x.io".into()));
}

/// A webhook that knows two ways to write an address: `hostPort` in `v1beta1`, `host` and `port` in `v1`. Gives its port
/// and its certificate.
async fn converter() -> (u16, String) {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                    use http_body_util::BodyExt;
                    let bytes = request.into_body().collect().await?.to_bytes();
                    let answer = convert(&serde_json::from_slice(&bytes).unwrap_or_default()).to_string();
                    Ok::<_, hyper::Error>(http::Response::new(answer))
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    (port, certified.cert.pem())
}

fn convert(review: &Value) -> Value {
    let wanted = review["request"]["desiredAPIVersion"].as_str().unwrap_or("");
    let mut objects = review["request"]["objects"].as_array().cloned().unwrap_or_default();
    let mut result = json!({"status": "Success"});
    for object in &mut objects {
        object["apiVersion"] = wanted.into();
        let spec = object["spec"].take();
        object["spec"] = if wanted.ends_with("beta1") {
            json!({"hostPort": format!("{}:{}", spec["host"].as_str().unwrap_or(""), spec["port"].as_str().unwrap_or(""))})
        } else {
            let (host, port) = spec["hostPort"].as_str().unwrap_or("").split_once(':').unwrap_or(("", ""));
            if host == "bad" {
                result = json!({"status": "Failed", "message": "a bad host"});
            }
            json!({"host": host, "port": port})
        };
    }
    let response = json!({"uid": review["request"]["uid"], "result": result, "convertedObjects": objects});
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_converts_between_versions() {
    let (_cluster, client) = cluster().await;
    let (port, certificate) = converter().await;
    let text = json!({"type": "string"});
    let mut made = definition("foos", "Foo", vec![
        version("v1beta1", false, json!({"hostPort": text}), json!({})),
        version("v1", true, json!({"host": text, "port": text}), json!({})),
    ]);
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(certificate);
    made.data["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://127.0.0.1:{port}/convert"), "caBundle": bundle}}});
    define(&client, &made).await;
    let (v1, beta) = (foos(&client), Api::<DynamicObject>::default_namespaced_with(client.clone(), &kind("Foo", "v1beta1")));
    let mut sent = foo("a", json!({"hostPort": "h:80"}));
    sent.types.as_mut().expect("types").api_version = "x.io/v1beta1".into();
    assert_eq!(beta.create(&PostParams::default(), &sent).await.expect("made").data["spec"], json!({"hostPort": "h:80"}));
    assert_eq!(v1.get("a").await.expect("a").data["spec"], json!({"host": "h", "port": "80"}));
    assert_eq!(beta.get("a").await.expect("a").data["spec"], json!({"hostPort": "h:80"}));
    let list = beta.list(&ListParams::default()).await.expect("a list");
    assert_eq!(list.items[0].data["spec"], json!({"hostPort": "h:80"}));
    let mut events = beta.watch(&WatchParams::default(), &list.metadata.resource_version.unwrap_or_default()).await.expect("a watch").boxed();
    let patched = beta.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"hostPort": "i:81"}}))).await.expect("patched");
    assert_eq!((&patched.data["spec"], patched.metadata.generation), (&json!({"hostPort": "i:81"}), Some(2)));
    assert_eq!(v1.get("a").await.expect("a").data["spec"], json!({"host": "i", "port": "81"}));
    match events.next().await {
        Some(Ok(WatchEvent::Modified(object))) => assert_eq!(object.data["spec"], json!({"hostPort": "i:81"})),
        other => panic!("no change: {other:?}"),
    }
    sent.metadata.name = Some("b".into());
    sent.data["spec"] = json!({"hostPort": "bad:1"});
    let (code, message) = refusal(beta.create(&PostParams::default(), &sent).await);
    assert_eq!((code, message.as_str()), (500, "conversion webhook for x.io/v1beta1, Kind=Foo failed: a bad host"));
    beta.delete("a", &DeleteParams::default()).await.expect("deleted");
    definitions(&client).delete("foos.x.io", &DeleteParams::default()).await.expect("deleted");
    until(&definitions(&client), "foos.x.io", "gone", |d| d.is_none()).await;
}
