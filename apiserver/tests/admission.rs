//! Webhooks and policies, asked by a server within this process. The webhook is a little TLS server on loopback.

mod common;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::Authority;
use skiff_apiserver::http::body::full;
use skiff_apiserver::Server;
use skiff_store::Memory;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

struct Api {
    server: Arc<Server>,
    _stop: DropGuard,
}

/// What the server answered: code, object, warnings.
type Answer = (u16, Value, Vec<String>);

impl Api {
    async fn start() -> Self {
        let stop = CancellationToken::new();
        let config = common::config(Arc::new(Memory::new()));
        let server = Server::start(config, stop.clone()).await.expect("a server");
        let api = Self { server, _stop: stop.drop_guard() };
        let account = json!({"metadata": {"name": "default"}});
        api.made("/api/v1/namespaces/default/serviceaccounts", account).await;
        api
    }

    async fn ask(&self, method: Method, path: &str, content_type: &str, body: &Value) -> Answer {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(full(body)).expect("a request");
        let reply = self.server.handle(request, Some(User::new("alice", ["system:masters"]))).await;
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let warnings = parts.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
        (parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null), warnings)
    }

    async fn create(&self, path: &str, object: Value) -> Answer {
        self.ask(Method::POST, path, "application/json", &object).await
    }

    async fn made(&self, path: &str, object: Value) -> Value {
        let (code, object, _) = self.create(path, object).await;
        assert_eq!(code, 201, "{object}");
        object
    }

    /// Tries until the answer is this: configurations come into effect with the cache.
    async fn until(&self, path: &str, object: Value, holds: impl Fn(&Answer) -> bool) -> Answer {
        for _ in 0..1_000 {
            let answer = self.create(path, object.clone()).await;
            if holds(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
        panic!("{path} never came to be answered as wanted: {:?}", self.create(path, object).await);
    }
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps?dryRun=All";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "x"}}, "data": {"k": "v"}})
}

/// A webhook: answers each review's request by a function, and remembers the reviews.
struct Hook {
    config: Value,
    seen: Arc<Mutex<Vec<Value>>>,
    connections: Arc<Mutex<usize>>,
}

impl Hook {
    async fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let authority = Authority::generate().expect("an authority");
        let pair = authority.server("hook", &[], &[IpAddr::V4(Ipv4Addr::LOCALHOST)]).expect("a certificate");
        let mut tls = skiff_apiserver::http::serve::tls(&pair, &authority.pair.certificate).expect("tls");
        Arc::make_mut(&mut tls).alpn_protocols.clear();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (seen, connections, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)), Arc::new(answer));
        let hook = Self {
            config: json!({"url": format!("https://127.0.0.1:{port}/hook"), "caBundle": STANDARD.encode(&authority.pair.certificate)}),
            seen: Arc::clone(&seen),
            connections: Arc::clone(&connections),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().expect("unpoisoned") += 1;
                let (acceptor, seen, answer) = (TlsAcceptor::from(Arc::clone(&tls)), Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                        async move {
                            let body = request.into_body().collect().await.expect("a body").to_bytes();
                            let review: Value = serde_json::from_slice(&body).expect("a review");
                            let mut response = answer(&review["request"]);
                            response["uid"] = review["request"]["uid"].clone();
                            let said = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
                            seen.lock().expect("unpoisoned").push(review);
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string()))))
                        }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        hook
    }

    fn webhook(&self, name: &str, operations: &[&str], resources: &[&str]) -> Value {
        json!({
            "name": name, "clientConfig": self.config, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": resources, "operations": operations}],
        })
    }

    fn last(&self) -> Value {
        self.seen.lock().expect("unpoisoned").last().cloned().unwrap_or_default()
    }
}

fn patched(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

async fn configure(api: &Api, kind: &str, webhooks: Vec<Value>) {
    api.made(&format!("{REGISTRATION}/{kind}webhookconfigurations"), json!({"metadata": {"name": "test"}, "webhooks": webhooks})).await;
}

#[tokio::test]
async fn a_validating_webhook_sees_everything_and_may_refuse() {
    let api = Api::start().await;
    let hook = Hook::start(|request| match request["name"].as_str() {
        Some("bad") => json!({"allowed": false, "status": {"message": "no such thing", "code": 403, "reason": "Forbidden"}}),
        _ => json!({"allowed": true, "warnings": ["be careful"], "auditAnnotations": {"a": "b"}}),
    })
    .await;
    configure(&api, "validating", vec![hook.webhook("a.test.io", &["*"], &["configmaps"])]).await;
    let (code, status, _) = api.until(CONFIG_MAPS, config_map("bad"), |a| a.0 != 201).await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(status["message"], "admission webhook \"a.test.io\" denied the request: no such thing");
    let (code, _, warnings) = api.create(CONFIG_MAPS, config_map("good")).await;
    assert_eq!((code, warnings), (201, vec!["299 - \"be careful\"".to_owned()]));
    let review = hook.last();
    assert_eq!((&review["kind"], &review["apiVersion"]), (&json!("AdmissionReview"), &json!("admission.k8s.io/v1")));
    let request = &review["request"];
    let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
    assert_eq!((&request["kind"], &request["requestKind"]), (&kind, &kind));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&request["operation"], &request["dryRun"], &request["namespace"]), (&json!("CREATE"), &json!(true), &json!("default")));
    assert_eq!(request["userInfo"], json!({"username": "alice", "groups": ["system:masters", "system:authenticated"]}));
    assert_eq!((&request["object"]["data"]["k"], &request["oldObject"]), (&json!("v"), &Value::Null));
    assert_eq!(request["options"], json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"]}));
    // One connection carried them all.
    assert_eq!(*hook.connections.lock().expect("unpoisoned"), 1);

    // An update and a deletion show what was there.
    api.made("/api/v1/namespaces/default/configmaps", config_map("kept")).await;
    let path = "/api/v1/namespaces/default/configmaps/kept";
    let (code, _, _) = api.ask(Method::PATCH, path, "application/merge-patch+json", &json!({"data": {"k": "w"}})).await;
    let request = hook.last()["request"].clone();
    assert_eq!((code, &request["operation"]), (200, &json!("UPDATE")));
    assert_eq!((&request["object"]["data"]["k"], &request["oldObject"]["data"]["k"]), (&json!("w"), &json!("v")));
    let (code, _, _) = api.ask(Method::DELETE, path, "application/json", &Value::Null).await;
    let request = hook.last()["request"].clone();
    assert_eq!((code, &request["operation"], &request["object"]), (200, &json!("DELETE"), &Value::Null));
    assert_eq!((&request["oldObject"]["metadata"]["name"], &request["name"]), (&json!("kept"), &json!("kept")));
}

#[tokio::test]
async fn mutating_webhooks_change_the_object_and_are_asked_again() {
    let api = Api::start().await;
    let first = Hook::start(|request| match request["object"]["data"].get("second") {
        None => patched(json!([{"op": "add", "path": "/data/first", "value": "1"}])),
        Some(_) => patched(json!([{"op": "add", "path": "/data/first", "value": "after second"}])),
    })
    .await;
    let second = Hook::start(|_| patched(json!([{"op": "add", "path": "/data/second", "value": "2"}]))).await;
    let mut hook = first.webhook("a.test.io", &["CREATE"], &["configmaps"]);
    hook["reinvocationPolicy"] = "IfNeeded".into();
    configure(&api, "mutating", vec![hook, second.webhook("b.test.io", &["CREATE"], &["configmaps"])]).await;
    let (_, object, _) = api.until(CONFIG_MAPS, config_map("x"), |a| a.1["data"].get("second").is_some()).await;
    assert_eq!(object["data"], json!({"k": "v", "first": "after second", "second": "2"}));
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let api = Api::start().await;
    let hook = Hook::start(|_| json!({"allowed": true})).await;
    let mut fails = hook.webhook("a.test.io", &["CREATE"], &["configmaps"]);
    fails["clientConfig"] = json!({"service": {"namespace": "none", "name": "nothing", "path": "/x"}});
    fails["objectSelector"] = json!({"matchLabels": {"app": "x"}});
    let mut ignored = fails.clone();
    ignored["name"] = "b.test.io".into();
    ignored["failurePolicy"] = "Ignore".into();
    let mut effects = hook.webhook("c.test.io", &["CREATE"], &["secrets"]);
    effects["sideEffects"] = "NoneOnDryRun".into();
    configure(&api, "validating", vec![ignored, fails, effects]).await;
    let (code, status, _) = api.until(CONFIG_MAPS, config_map("x"), |a| a.0 != 201).await;
    let why = "Internal error occurred: failed calling webhook \"a.test.io\": failed to call webhook: Post \"https://nothing.none.svc:443/x?timeout=5s\": services \"nothing\" not found";
    assert_eq!((code, status["message"].as_str()), (500, Some(why)));
    let mut other = config_map("y");
    other["metadata"]["labels"] = json!({});
    assert_eq!(api.create(CONFIG_MAPS, other).await.0, 201, "the object selector leaves it out");
}

#[tokio::test]
async fn a_webhook_is_skipped_by_its_conditions() {
    let api = Api::start().await;
    let hook = Hook::start(|_| json!({"allowed": false})).await;
    let mut webhook = hook.webhook("a.test.io", &["CREATE"], &["configmaps"]);
    webhook["matchConditions"] = json!([{"name": "other", "expression": "object.metadata.name != 'free' && request.userInfo.username == 'alice'"}]);
    configure(&api, "validating", vec![webhook]).await;
    let (code, status, _) = api.until(CONFIG_MAPS, config_map("x"), |a| a.0 != 201).await;
    assert_eq!((code, status["message"].as_str()), (400, Some("admission webhook \"a.test.io\" denied the request without explanation")));
    assert_eq!(api.create(CONFIG_MAPS, config_map("free")).await.0, 201);
}

#[tokio::test]
async fn a_validating_policy_refuses_by_its_parameters() {
    let api = Api::start().await;
    api.made("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "limits"}, "data": {"max": "1"}})).await;
    let policy = json!({"metadata": {"name": "few-keys"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]},
        "variables": [{"name": "count", "expression": "size(object.data)"}],
        "validations": [{"expression": "variables.count <= int(params.data.max)", "messageExpression": "'at most %s keys'.format([params.data.max])"}],
    }});
    api.made(&format!("{REGISTRATION}/validatingadmissionpolicies"), policy).await;
    let path = format!("{REGISTRATION}/validatingadmissionpolicies/few-keys");
    let mut seen = Value::Null;
    for _ in 0..1_000 {
        seen = api.ask(Method::GET, &path, "application/json", &Value::Null).await.1["status"].clone();
        if seen.is_object() && seen["observedGeneration"] == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(seen, json!({"observedGeneration": 1, "typeChecking": {}}));
    let binding = |name: &str, actions: Value| json!({"metadata": {"name": name}, "spec": {"policyName": "few-keys", "validationActions": actions,
        "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}}});
    let bindings = format!("{REGISTRATION}/validatingadmissionpolicybindings");
    api.made(&bindings, binding("deny", json!(["Deny"]))).await;
    let many = json!({"metadata": {"name": "x"}, "data": {"a": "1", "b": "2"}});
    let (code, status, _) = api.until(CONFIG_MAPS, many.clone(), |a| a.0 != 201).await;
    let why = "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'few-keys' with binding 'deny' denied request: at most 1 keys";
    assert_eq!((code, status["reason"].as_str(), status["message"].as_str()), (422, Some("Invalid"), Some(why)));
    assert_eq!(api.create(CONFIG_MAPS, config_map("y")).await.0, 201);
    api.ask(Method::DELETE, &format!("{bindings}/deny"), "application/json", &Value::Null).await;
    api.made(&bindings, binding("warn", json!(["Warn"]))).await;
    let (_, _, warnings) = api.until(CONFIG_MAPS, many, |a| a.0 == 201 && !a.2.is_empty()).await;
    assert_eq!(warnings, ["299 - \"Validation failed for ValidatingAdmissionPolicy 'few-keys' with binding 'warn': at most 1 keys\""]);
}

#[tokio::test]
async fn a_mutating_policy_changes_the_object() {
    let api = Api::start().await;
    let policy = json!({"metadata": {"name": "label"}, "spec": {
        "reinvocationPolicy": "Never", "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]},
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'by': request.userInfo.username}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: object.metadata.labels.by}]"}},
        ],
    }});
    api.made(&format!("{REGISTRATION}/mutatingadmissionpolicies"), policy).await;
    api.made(&format!("{REGISTRATION}/mutatingadmissionpolicybindings"), json!({"metadata": {"name": "all"}, "spec": {"policyName": "label"}})).await;
    let (_, made, _) = api.until(CONFIG_MAPS, config_map("x"), |a| a.1["metadata"]["labels"].get("by").is_some()).await;
    assert_eq!(made["metadata"]["labels"], json!({"app": "x", "by": "alice", "a/b": "alice"}));
}

#[tokio::test]
async fn custom_resources_keep_their_rules() {
    let api = Api::start().await;
    let spec = json!({"type": "object", "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.min <= self.max"}, {"rule": "self.max >= oldSelf.max", "message": "max only grows"}]});
    let definition = json!({"metadata": {"name": "things.test.io"}, "spec": {"group": "test.io", "scope": "Cluster",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}});
    api.made("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let thing = |min: i64, max: i64| json!({"apiVersion": "test.io/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {"min": min, "max": max}});
    let (code, status, _) = api.until("/apis/test.io/v1/things", thing(2, 1), |a| a.0 == 422).await;
    assert_eq!((code, status["message"].as_str()), (422, Some("Thing.test.io \"t\" is invalid: spec: Invalid value: failed rule: self.min <= self.max")));
    api.made("/apis/test.io/v1/things", thing(1, 2)).await;
    let (code, status, _) = api.ask(Method::PATCH, "/apis/test.io/v1/things/t", "application/merge-patch+json", &json!({"spec": {"max": 1}})).await;
    assert_eq!((code, status["message"].as_str()), (422, Some("Thing.test.io \"t\" is invalid: spec: Invalid value: max only grows")));
}

#[tokio::test]
async fn namespaces_say_what_their_pods_may_do() {
    let api = Api::start().await;
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"});
    api.made("/api/v1/namespaces", json!({"metadata": {"name": "safe", "labels": labels}})).await;
    api.made("/api/v1/namespaces/safe/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let spec = |host: bool| json!({"hostNetwork": host, "containers": [{"name": "c", "image": "i", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    let pods = "/api/v1/namespaces/safe/pods?dryRun=All";
    let pod = |host: bool| json!({"metadata": {"name": "p"}, "spec": spec(host)});
    let (code, status, _) = api.until(pods, pod(true), |a| !a.1["message"].as_str().is_some_and(|m| m.contains("serviceaccount"))).await;
    let why = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!((code, status["message"].as_str()), (403, Some(why)));
    let warning = "would violate PodSecurity \\\"restricted:latest\\\": runAsNonRoot != true (pod or container \\\"c\\\" must set securityContext.runAsNonRoot=true), \
        seccompProfile (pod or container \\\"c\\\" must set securityContext.seccompProfile.type to \\\"RuntimeDefault\\\" or \\\"Localhost\\\")";
    let (code, _, warnings) = api.create(pods, pod(false)).await;
    assert_eq!((code, warnings), (201, vec![format!("299 - \"{warning}\"")]));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec(true)});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let (code, _, warnings) = api.create("/apis/apps/v1/namespaces/safe/deployments", deployment).await;
    assert_eq!((code, warnings.len()), (201, 1));
    let (code, status, _) = api.create("/api/v1/namespaces", json!({"metadata": {"name": "odd", "labels": {"pod-security.kubernetes.io/enforce": "x"}}})).await;
    assert_eq!((code, status["details"]["causes"][0]["field"].as_str()), (422, Some("metadata.labels[pod-security.kubernetes.io/enforce]")));
}
