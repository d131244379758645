//! An API in memory that knows as much as a kubelet asks for: objects, watches, patches, graceful deletion of pods.

#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "shared by several tests, each of which uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The objects by `plural/namespace/name`, and all that happened to them.
#[derive(Default)]
pub struct Objects {
    pub all: BTreeMap<String, Value>,
    history: Vec<(&'static str, String, Value)>,
    /// How many requests of each kind there were: `PATCH pods`.
    pub requests: HashMap<String, usize>,
}

impl Objects {
    /// The reasons and messages of all events about an object, in order.
    pub fn said(&self, name: &str) -> Vec<String> {
        let made = self.history.iter().filter(|(change, key, _)| *change == "ADDED" && key.starts_with("events/")).map(|(.., e)| e);
        let text = |e: &Value| format!("{}: {}", e["reason"].as_str().unwrap_or_default(), e["message"].as_str().unwrap_or_default());
        made.filter(|e| e["involvedObject"]["name"] == name).map(text).collect()
    }
}

#[derive(Clone)]
pub struct FakeApi {
    objects: Arc<Mutex<Objects>>,
    changed: watch::Sender<usize>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Target {
    plural: String,
    namespace: String,
    name: String,
    subresource: String,
}

/// Reads `/api/v1/namespaces/ns/pods/name/status` and its like.
fn target(path: &str) -> Target {
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    parts.drain(..if parts[0] == "api" { 2 } else { 3 });
    let mut namespace = String::new();
    if parts[0] == "namespaces" && parts.len() > 2 {
        namespace = parts[1].to_owned();
        parts.drain(..2);
    }
    let part = |i: usize| parts.get(i).copied().unwrap_or_default().to_owned();
    Target { plural: part(0), namespace, name: part(1), subresource: part(2) }
}

fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
        *into = patch.clone();
        return;
    };
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => {
                into.remove(key);
            }
            ("conditions", Value::Array(list)) => {
                let conditions = into.entry(key).or_insert_with(|| json!([]));
                for condition in list {
                    let all = conditions.as_array_mut().unwrap();
                    let at = all.iter().position(|c| c["type"] == condition["type"]).unwrap_or_else(|| {
                        all.push(json!({}));
                        all.len() - 1
                    });
                    merge(&mut all[at], condition);
                }
            }
            (_, Value::Array(list)) => {
                let plain: Vec<_> = list.iter().filter(|v| v.get("$patch").is_none()).cloned().collect();
                into.insert(key.clone(), plain.into());
            }
            _ => merge(into.entry(key).or_insert(Value::Null), value),
        }
    }
}

fn reply(code: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn refusal(code: StatusCode, reason: &str) -> Response<Body> {
    reply(code, &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()}))
}

impl FakeApi {
    pub fn new() -> Self {
        Self { objects: Arc::default(), changed: watch::channel(0).0 }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        kube::Client::new(tower::service_fn(move |request| { let api = api.clone(); async move { Ok::<_, Infallible>(api.handle(request).await) } }), "default")
    }

    fn record(&self, objects: &mut Objects, change: &'static str, key: &str, mut object: Value) -> Value {
        let version = objects.history.len() + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        match change {
            "DELETED" => objects.all.remove(key),
            _ => objects.all.insert(key.to_owned(), object.clone()),
        };
        objects.history.push((change, key.to_owned(), object.clone()));
        self.changed.send_replace(version);
        object
    }

    /// Stores an object.
    pub fn put(&self, plural: &str, mut object: Value) -> Value {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let key = format!("{plural}/{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let mut objects = self.objects.lock().unwrap();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = skiff_api::random::uid().into();
        }
        let change = if objects.all.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.record(&mut objects, change, &key, object)
    }

    /// A pod in namespace `default`, bound to `node`.
    pub fn put_pod(&self, node: &str, name: &str, mut spec: Value, annotations: Value) {
        spec["nodeName"] = node.into();
        let metadata = json!({"name": name, "namespace": "default", "annotations": annotations, "generation": 1});
        self.put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}));
    }

    pub fn get(&self, key: &str) -> Option<Value> {
        self.objects.lock().unwrap().all.get(key).cloned()
    }

    pub fn with<T>(&self, look: impl FnOnce(&Objects) -> T) -> T {
        look(&self.objects.lock().unwrap())
    }

    /// Deletes a pod as a client does: gracefully.
    pub fn delete_pod(&self, name: &str, grace: i64) {
        let key = format!("pods/default/{name}");
        let mut objects = self.objects.lock().unwrap();
        let Some(mut pod) = objects.all.get(&key).cloned() else { return };
        let change = if grace == 0 { "DELETED" } else { "MODIFIED" };
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.record(&mut objects, change, &key, pod);
    }

    /// Waits until something is found; says what there was when it takes too long.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&Objects) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let found = tokio::time::timeout(Duration::from_secs(600), async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = look(&self.objects.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}: {:#?}", self.with(|o| o.all.clone())),
        }
    }

    /// Waits until a pod's status is such.
    pub async fn until_pod(&self, name: &str, what: &str, mut look: impl FnMut(&Value) -> bool) -> Value {
        let key = format!("pods/default/{name}");
        self.until(&format!("{name}: {what}"), |o| o.all.get(&key).filter(|pod| look(pod)).cloned()).await
    }

    pub async fn until_gone(&self, name: &str) {
        let key = format!("pods/default/{name}");
        self.until(&format!("{name} to go"), |o| (!o.all.contains_key(&key)).then_some(())).await;
    }

    /// The reasons and messages of all events about an object, in order.
    pub fn events(&self, name: &str) -> Vec<String> {
        self.with(|o| o.said(name))
    }

    async fn handle(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let to = target(parts.uri.path());
        let query: HashMap<String, String> = url_pairs(parts.uri.query().unwrap_or_default());
        let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
        let key = format!("{}/{}/{}", to.plural, to.namespace, to.name);
        if std::env::var_os("FAKE_API_LOG").is_some() {
            eprintln!("{} {} {}", parts.method, parts.uri, body);
        }
        *self.objects.lock().unwrap().requests.entry(format!("{} {}", parts.method, to.plural)).or_default() += 1;
        if parts.method == Method::GET && to.name.is_empty() {
            return self.list_or_watch(&to, &query);
        }
        if to.subresource == "token" {
            let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": body["spec"],
                "status": {"token": "a-token", "expirationTimestamp": "2099-01-01T00:00:00Z"}});
            return reply(StatusCode::CREATED, &token);
        }
        if to.plural == "subjectaccessreviews" {
            let mut review = body;
            review["status"] = json!({"allowed": review["spec"]["user"] == "kube-apiserver-kubelet-client"});
            return reply(StatusCode::CREATED, &review);
        }
        let mut objects = self.objects.lock().unwrap();
        let existing = objects.all.get(&key).cloned();
        match (parts.method, existing) {
            (Method::POST, _) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let key = format!("{}/{}/{name}", to.plural, to.namespace);
                if objects.all.contains_key(&key) {
                    return refusal(StatusCode::CONFLICT, "AlreadyExists");
                }
                let mut object = body;
                object["metadata"]["uid"] = format!("uid-{}", objects.history.len()).into();
                reply(StatusCode::CREATED, &self.record(&mut objects, "ADDED", &key, object))
            }
            (_, None) => refusal(StatusCode::NOT_FOUND, "NotFound"),
            (Method::PATCH, Some(mut object)) => {
                if !body["metadata"]["uid"].is_null() && body["metadata"]["uid"] != object["metadata"]["uid"] {
                    return refusal(StatusCode::CONFLICT, "Conflict");
                }
                merge(&mut object, &body);
                reply(StatusCode::OK, &self.record(&mut objects, "MODIFIED", &key, object))
            }
            (Method::DELETE, Some(object)) => reply(StatusCode::OK, &self.record(&mut objects, "DELETED", &key, object)),
            (_, Some(object)) => reply(StatusCode::OK, &object),
        }
    }

    fn list_or_watch(&self, to: &Target, query: &HashMap<String, String>) -> Response<Body> {
        let prefix = if to.namespace.is_empty() { format!("{}/", to.plural) } else { format!("{}/{}/", to.plural, to.namespace) };
        let selector = query.get("fieldSelector").cloned().unwrap_or_default();
        let matches = move |object: &Value| match selector.split_once('=') {
            Some(("spec.nodeName", node)) => object["spec"]["nodeName"] == node,
            Some(("metadata.name", name)) => object["metadata"]["name"] == name,
            _ => true,
        };
        if query.get("watch").is_none_or(|w| w != "true") {
            let objects = self.objects.lock().unwrap();
            let items: Vec<_> = objects.all.iter().filter(|(key, o)| key.starts_with(&prefix) && matches(o)).map(|(_, o)| o.clone()).collect();
            let version = objects.history.len().to_string();
            return reply(StatusCode::OK, &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}));
        }
        let from: usize = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let state = (self.clone(), self.changed.subscribe(), from);
        let lines = stream::unfold(state, move |(api, mut changed, from)| {
            let (prefix, matches) = (prefix.clone(), matches.clone());
            async move {
                changed.wait_for(|version| *version > from).await.ok()?;
                let (lines, version) = api.with(|o| {
                    let news = o.history[from..].iter().filter(|(_, key, object)| key.starts_with(&prefix) && matches(object));
                    let lines: String = news.map(|(change, _, object)| json!({"type": change, "object": object}).to_string() + "\n").collect();
                    (lines, o.history.len())
                });
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(lines))), (api, changed, version)))
            }
        });
        Response::builder().header("content-type", "application/json").body(StreamBody::new(lines).boxed_unsync()).unwrap()
    }
}

fn url_pairs(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.replace("%3D", "=").replace("%2C", ","))).collect()
}
