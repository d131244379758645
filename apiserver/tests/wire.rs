//! What goes over the wire: protobuf, WebSockets, and servers behind this one.

mod common;

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use skiff_api::{cbor, protobuf};
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::Authority;
use skiff_apiserver::dial::{Connection, Dialer, Unreachable};
use skiff_apiserver::http::body::{Body, full};
use skiff_apiserver::{Config, Server};
use skiff_store::{Guard, Memory, Store};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::{CancellationToken, DropGuard};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Api {
    server: Arc<Server>,
    store: Arc<Memory>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Api {
    async fn start() -> Self {
        Self::with(Arc::new(Unreachable)).await
    }

    async fn with(dialer: Arc<dyn Dialer>) -> Self {
        let stop = CancellationToken::new();
        let store = Arc::new(Memory::new());
        let config = Config { dialer, ..common::config(Arc::clone(&store) as Arc<dyn Store>) };
        let server = Server::start(config, stop.clone()).await.expect("a server");
        Self { server, store, stop: stop.clone(), _guard: stop.drop_guard() }
    }

    async fn ask(&self, method: Method, path: &str, accept: &str, body: Value) -> Response<Body> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, accept, "application/json", body).await
    }

    async fn send(&self, method: Method, path: &str, accept: &str, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type).header("accept", accept);
        self.server.handle(request.body(full(body)).expect("a request"), Some(User::new("alice", ["system:masters"]))).await
    }

    /// The code, the content type and the body.
    async fn get(&self, path: &str, accept: &str) -> (u16, String, Bytes) {
        whole(self.ask(Method::GET, path, accept, Value::Null).await).await
    }

    async fn json(&self, path: &str) -> Value {
        let (_, _, body) = self.get(path, "application/json").await;
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    }

    async fn create(&self, path: &str, object: Value) {
        let (code, _, body) = whole(self.ask(Method::POST, path, "application/json", object).await).await;
        assert_eq!(code, 201, "{}", String::from_utf8_lossy(&body));
    }

    /// A service of one pod, at that port of this machine.
    async fn serve(&self, name: &str, port: u16) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "status": {"podIPs": [{"ip": "127.0.0.1"}]}});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": ["127.0.0.1"], "targetRef": {"kind": "Pod", "name": name, "namespace": "default"}}],
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        });
        for (key, object) in [(format!("/registry/pods/default/{name}"), pod), (format!("/registry/endpointslices/default/{name}"), slice)] {
            self.store.commit(&key, Guard::Absent, Some(object.to_string().into())).await.expect("stored");
        }
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        self.create("/api/v1/namespaces/default/services", service).await;
        self.settled().await;
    }

    /// Waits until the server has seen the pods and endpoints that were written.
    async fn settled(&self) {
        for resource in ["/api/v1/pods", "/api/v1/nodes", "/apis/discovery.k8s.io/v1/endpointslices"] {
            self.json(resource).await;
        }
    }

    /// Reads until it holds.
    async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..2_000 {
            let found = self.json(path).await;
            if holds(&found) {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("{path} never came to be as wanted: {}", self.json(path).await);
    }
}

async fn whole(reply: Response<Body>) -> (u16, String, Bytes) {
    let (parts, body) = reply.into_parts();
    let kind = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    (parts.status.as_u16(), kind, body.collect().await.expect("a body").to_bytes())
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

/// The fields of bytes in a message, by number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = varint(&mut bytes);
        if key & 7 == 2 {
            let (head, rest) = bytes.split_at(usize::try_from(length).expect("a length"));
            found.push((key >> 3, head.to_vec()));
            bytes = rest;
        }
    }
    found
}

#[tokio::test]
async fn objects_lists_watches_and_refusals_in_cbor() {
    let api = Api::start().await;
    let ask = async |method, path: &str, content_type, body: Value| {
        let body = cbor::encode(&body).expect("memory");
        let (code, kind, body) = whole(api.send(method, path, cbor::MEDIA_TYPE, content_type, body).await).await;
        assert_eq!(kind, cbor::MEDIA_TYPE);
        assert!(body.starts_with(cbor::MAGIC), "{body:?}");
        (code, cbor::decode(&body).expect("an item"))
    };
    let (code, made) = ask(Method::POST, CONFIG_MAPS, cbor::MEDIA_TYPE, config_map("a")).await;
    assert_eq!((code, &made["data"]["k"]), (201, &json!("v")));
    let a = format!("{CONFIG_MAPS}/a");
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"l": "w"}});
    let (code, applied) = ask(Method::PATCH, &format!("{a}?fieldManager=m"), cbor::APPLY, apply).await;
    assert_eq!((code, &applied["data"]), (200, &json!({"k": "v", "l": "w"})));
    let (code, table) = ask(Method::GET, &format!("{CONFIG_MAPS}/none"), cbor::MEDIA_TYPE, Value::Null).await;
    assert_eq!((code, &table["kind"]), (404, &json!("Status")));
    let (code, list) = ask(Method::GET, &format!("{CONFIG_MAPS}?fieldSelector=metadata.name=a"), cbor::MEDIA_TYPE, Value::Null).await;
    assert_eq!((code, &list["items"][0]["data"]), (200, &applied["data"]));
    let (code, _) = ask(Method::DELETE, &a, cbor::MEDIA_TYPE, json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]})).await;
    assert_eq!((code, api.get(&a, cbor::MEDIA_TYPE).await.0), (200, 200));

    let mut refused = Bytes::from_static(b"\xd9\xd9\xf7\xa1");
    let (code, _, body) = whole(api.send(Method::POST, CONFIG_MAPS, "application/json", cbor::MEDIA_TYPE, refused.split_off(0)).await).await;
    assert_eq!(code, 400, "{}", String::from_utf8_lossy(&body));

    let watch = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name=a");
    let (code, kind, mut frames) = api.get(&watch, cbor::MEDIA_TYPE).await;
    assert_eq!((code, kind.as_str()), (200, cbor::SEQUENCE));
    let first = frames.split_to(cbor::length(&frames).expect("an item"));
    let event = cbor::decode(&first).expect("an event");
    assert_eq!((&event["type"], &event["object"]["data"]), (&json!("ADDED"), &applied["data"]));
}

#[tokio::test]
async fn objects_lists_watches_and_refusals_in_protobuf() {
    let api = Api::start().await;
    api.create(CONFIG_MAPS, config_map("a")).await;
    let both = "application/vnd.kubernetes.protobuf,application/json";
    let (code, kind, body) = api.get(&format!("{CONFIG_MAPS}/a"), both).await;
    assert_eq!((code, kind.as_str()), (200, PROTOBUF));
    assert_eq!(protobuf::decode(&body), Ok(api.json(&format!("{CONFIG_MAPS}/a")).await));

    let (_, kind, body) = api.get(CONFIG_MAPS, both).await;
    assert_eq!(kind, PROTOBUF);
    let envelope = fields(body.strip_prefix(b"k8s\0").expect("magic"));
    assert_eq!(fields(&envelope[0].1)[1].1, b"ConfigMapList");
    let list = fields(&envelope[1].1);
    assert!(list[0].0 == 1 && list.len() > 1 && list[1..].iter().all(|(number, _)| *number == 2));

    let (code, kind, body) = api.get(&format!("{CONFIG_MAPS}/none"), both).await;
    assert_eq!((code, kind.as_str()), (404, PROTOBUF));
    assert_eq!(protobuf::decode(&body).expect("a status")["message"], "configmaps \"none\" not found");

    let partial = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    let (_, kind, body) = api.get(&format!("{CONFIG_MAPS}/a"), &partial).await;
    let envelope = fields(body.strip_prefix(b"k8s\0").expect("magic"));
    assert_eq!((kind.as_str(), fields(&envelope[0].1)[1].1.as_slice()), (PROTOBUF, &b"PartialObjectMetadata"[..]));

    let path = format!("{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Da&timeoutSeconds=1");
    let (code, kind, body) = api.get(&path, both).await;
    assert_eq!((code, kind.as_str()), (200, "application/vnd.kubernetes.protobuf;stream=watch"));
    let length = u32::from_be_bytes(body[..4].try_into().expect("four bytes"));
    let event = fields(&body[4..4 + length as usize]);
    assert_eq!(event[0].1, b"ADDED");
    assert_eq!(protobuf::decode(&fields(&event[1].1)[0].1).expect("an object")["data"]["k"], "v");

    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (code, kind, body) = whole(api.ask(Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", both, review).await).await;
    assert_eq!((code, kind.as_str()), (201, PROTOBUF));
    assert_eq!(protobuf::decode(&body).expect("a review")["status"]["userInfo"]["username"], "alice");
    let (code, _, body) = whole(api.ask(Method::DELETE, &format!("{CONFIG_MAPS}/a"), both, Value::Null).await).await;
    assert_eq!((code, &protobuf::decode(&body).expect("a status")["status"]), (200, &json!("Success")));
}

#[tokio::test]
async fn custom_resources_have_no_protobuf() {
    let api = Api::start().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.x.io"},
        "spec": {"group": "x.io", "scope": "Cluster", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]},
    });
    api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    api.create("/apis/x.io/v1/foos", json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "a"}})).await;
    assert_eq!(api.get("/apis/x.io/v1/foos", PROTOBUF).await.0, 406);
    let (code, kind, _) = api.get("/apis/x.io/v1/foos", "application/vnd.kubernetes.protobuf,application/json").await;
    assert_eq!((code, kind.as_str()), (200, "application/json"));
    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let (code, kind, _) = api.get("/apis/x.io/v1/foos", &partial).await;
    assert_eq!((code, kind.as_str()), (200, PROTOBUF));
    // What is served has its API service, and loses it.
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    let found = api.until(&format!("{services}/v1.x.io"), |s| s["kind"] == "APIService").await;
    assert_eq!(found["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(found["status"]["conditions"][0]["reason"], "Local");
    whole(api.ask(Method::DELETE, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/foos.x.io", "application/json", Value::Null).await).await;
    api.until(&format!("{services}/v1.x.io"), |s| s["code"] == 404).await;
    let built_in = api.until(&format!("{services}/v1.apps"), |s| s["kind"] == "APIService").await;
    assert_eq!(built_in["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
}

/// A connection to a service, without a network.
fn connect<F, R>(answer: F) -> tokio::io::DuplexStream
where
    F: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades());
    near
}

#[tokio::test]
async fn a_watch_on_a_websocket() {
    let api = Api::start().await;
    api.create(CONFIG_MAPS, config_map("a")).await;
    let server = Arc::clone(&api.server);
    let stream = connect(move |request| {
        let server = Arc::clone(&server);
        async move { server.handle(request, Some(User::new("alice", ["system:masters"]))).await }
    });
    let url = format!("ws://localhost{CONFIG_MAPS}?watch=1&fieldSelector=metadata.name%3Da");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a socket");
    let event = |message: Message| serde_json::from_str::<Value>(message.to_text().expect("text")).expect("JSON");
    let first = event(socket.next().await.expect("a message").expect("a message"));
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    whole(api.ask(Method::DELETE, &format!("{CONFIG_MAPS}/a"), "application/json", Value::Null).await).await;
    let second = event(socket.next().await.expect("a message").expect("a message"));
    assert_eq!(second["type"], "DELETED");
}

/// A kubelet that knows one log.
struct Logs;

#[async_trait::async_trait]
impl Dialer for Logs {
    async fn dial(&self, _node: &Value) -> std::io::Result<Box<dyn Connection>> {
        Ok(Box::new(connect(|request| async move { Response::new(full(format!("{} {:?}\n", request.uri(), request.headers().get("upgrade")))) })))
    }
}

#[tokio::test]
async fn a_log_on_a_websocket() {
    let api = Api::with(Arc::new(Logs)).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeName": "n", "containers": [{"name": "c"}]}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    for (key, object) in [("/registry/pods/default/p", pod), ("/registry/minions/n", node)] {
        api.store.commit(key, Guard::Absent, Some(object.to_string().into())).await.expect("stored");
    }
    api.settled().await;
    let log = "/containerLogs/default/p/c?tailLines=1 None\n";
    let check = async |offered: Option<&str>, expected: Result<Message, u16>| {
        let server = Arc::clone(&api.server);
        let stream = connect(move |request| {
            let server = Arc::clone(&server);
            async move { server.handle(request, Some(User::new("alice", ["system:masters"]))).await }
        });
        let mut request = "ws://localhost/api/v1/namespaces/default/pods/p/log?tailLines=1".into_client_request().expect("a request");
        request.headers_mut().extend(offered.map(|offered| (http::header::SEC_WEBSOCKET_PROTOCOL, offered.parse().expect("a value"))));
        let answer = match tokio_tungstenite::client_async(request, stream).await {
            Err(tokio_tungstenite::tungstenite::Error::Http(refusal)) => Err(refusal.status().as_u16()),
            answer => {
                let mut socket = answer.expect("a socket").0;
                let first = socket.next().await.expect("a message").expect("a message");
                assert!(first.is_empty(), "{offered:?}: {first:?}");
                Ok(socket.next().await.expect("a message").expect("a message"))
            }
        };
        assert_eq!(answer, expected, "{offered:?}");
    };
    check(None, Ok(Message::Binary(log.into()))).await;
    check(Some("binary.k8s.io"), Ok(Message::Binary(log.into()))).await;
    check(Some("x, base64.binary.k8s.io"), Ok(Message::text(STANDARD.encode(log)))).await;
    check(Some("x"), Err(400)).await;
}

#[tokio::test]
async fn proxies_speak_tls_and_lead_nowhere_but_to_pods() {
    let api = Api::start().await;
    let (port, _) = extension(&Authority::generate().expect("an authority").pair.certificate).await;
    api.serve("ext", port).await;
    let ask = async |target: &str| {
        let (code, _, body) = api.get(&format!("/api/v1/namespaces/default/services/{target}/proxy/apis/ext.io/v1"), "application/json").await;
        (code, String::from_utf8_lossy(&body).contains("APIResourceList"))
    };
    assert_eq!(ask("https:ext:80").await, (200, true), "a certificate that nobody vouches for");
    assert_eq!(ask("ext").await, (502, false), "no TLS where there is");
    assert_eq!(ask("ftp:ext:80").await, (400, false));
    let (code, ..) = whole(api.ask(Method::GET, "/api/v1/namespaces/default/services/https:ext:/proxy?a=b", "*/*", Value::Null).await).await;
    assert_eq!(code, 301, "to the path with a slash");
    for (method, expected) in [(Method::PUT, 200), (Method::OPTIONS, 200), (Method::TRACE, 405)] {
        let path = "/api/v1/namespaces/default/services/https:ext:/proxy/apis/ext.io/v1";
        let (code, ..) = whole(api.ask(method.clone(), path, "*/*", Value::Null).await).await;
        assert_eq!(code, expected, "{method}");
    }
    let (code, _, body) = whole(api.ask(Method::DELETE, "/api/v1/namespaces/default/pods/ext?gracePeriodSeconds=0", "*/*", Value::Null).await).await;
    assert_eq!(code, 200, "{}", String::from_utf8_lossy(&body));
    api.settled().await;
    assert_eq!(ask("https:ext:80").await, (503, false), "the endpoint is no pod any more");
}

/// An extension API server for `ext.io/v1`: tells who asks.
async fn extension(front: &str) -> (u16, String) {
    let authority = Authority::generate().expect("an authority");
    let pair = authority.server("ext", &["ext.default.svc".into()], &[]).expect("a certificate");
    let mut tls = skiff_apiserver::http::serve::tls(&pair, front).expect("tls");
    Arc::make_mut(&mut tls).alpn_protocols.clear();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&tls));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let shown = stream.get_ref().1.peer_certificates().is_some();
                let service = service_fn(move |request: Request<Incoming>| async move { Ok::<_, Infallible>(told(&request, shown)) });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, STANDARD.encode(&authority.pair.certificate))
}

fn told(request: &Request<Incoming>, shown: bool) -> Response<Full<Bytes>> {
    let text = |headers: &HeaderMap, name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let resource = json!({"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]});
    let said = match request.uri().path() {
        "/apis/ext.io/v1" => json!({"kind": "APIResourceList", "groupVersion": "ext.io/v1", "resources": [resource]}),
        "/openapi/v2" => json!({"paths": {"/apis/ext.io/v1/things": {}, "/other": {}}, "definitions": {"io.ext.v1.Thing": {"type": "object"}}}),
        "/openapi/v3" => json!({"paths": {"apis/ext.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ext.io/v1?hash=1"}}}),
        "/openapi/v3/apis/ext.io/v1" => json!({"openapi": "3.0.0"}),
        "/apis/ext.io/v1/things" => json!({
            "user": text(request.headers(), "x-remote-user"), "group": text(request.headers(), "x-remote-group"),
            "token": text(request.headers(), "authorization"), "query": request.uri().query(), "shown": shown,
        }),
        _ => {
            let mut missing = Response::new(Full::new(Bytes::new()));
            *missing.status_mut() = http::StatusCode::NOT_FOUND;
            return missing;
        }
    };
    Response::new(Full::new(said.to_string().into()))
}

#[tokio::test]
async fn another_server_behind_this_one() {
    let api = Api::start().await;
    let map = api.until("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication", |m| m["data"].is_object()).await;
    let front = map["data"]["requestheader-client-ca-file"].as_str().expect("the front proxy's authority");
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let (port, ca) = extension(front).await;
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    api.create(services, json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.ext.io"},
        "spec": {"group": "ext.io", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10, "caBundle": ca,
            "service": {"namespace": "default", "name": "ext", "port": 443}},
    })).await;
    let reason = |wanted: &'static str| move |s: &Value| s["status"]["conditions"][0]["reason"] == wanted;
    let found = api.until(&format!("{services}/v1.ext.io"), reason("ServiceNotFound")).await;
    assert_eq!(found["status"]["conditions"][0]["message"], "service/ext in \"default\" is not present");
    let (code, _, body) = api.get("/apis/ext.io/v1/things", "application/json").await;
    assert_eq!((code, &body[..]), (503, &b"service unavailable\n"[..]));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext"}, "spec": {"ports": [{"port": 443}]}});
    api.create("/api/v1/namespaces/default/services", service).await;
    api.until(&format!("{services}/v1.ext.io"), reason("EndpointsNotFound")).await;
    // Straight into the store, for loopback addresses are no endpoints by the rules.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "ext", "namespace": "default", "labels": {"kubernetes.io/service-name": "ext"}},
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "", "port": port, "protocol": "TCP"}],
    });
    api.store.commit("/registry/endpointslices/default/ext", Guard::Absent, Some(slice.to_string().into())).await.expect("a slice");
    api.until(&format!("{services}/v1.ext.io"), reason("Passed")).await;

    let told = api.until("/apis/ext.io/v1/things?limit=5", |told| told["user"] == "alice").await;
    assert_eq!(told, json!({"user": "alice", "group": "system:masters", "token": "", "query": "limit=5", "shown": true}));
    let groups = api.json("/apis").await;
    let names: Vec<&str> = groups["groups"].as_array().expect("groups").iter().filter_map(|g| g["name"].as_str()).collect();
    assert!(names.contains(&"ext.io") && names.contains(&"apps"), "{names:?}");
    let (_, _, body) = api.get("/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").await;
    let list: Value = serde_json::from_slice(&body).expect("JSON");
    let entry = list["items"].as_array().expect("items").iter().find(|g| g["metadata"]["name"] == "ext.io").expect("the group");
    assert_eq!((&entry["versions"][0]["resources"][0]["resource"], &entry["versions"][0]["freshness"]), (&json!("things"), &json!("Current")));
    let document = api.json("/openapi/v2").await;
    assert!(document["paths"]["/apis/ext.io/v1/things"].is_object() && document["paths"]["/other"].is_null());
    assert!(document["definitions"]["io.ext.v1.Thing"].is_object());
    assert_eq!(api.json("/openapi/v3").await["paths"]["apis/ext.io/v1"]["serverRelativeURL"], "/openapi/v3/apis/ext.io/v1?hash=1");
    assert_eq!(api.json("/openapi/v3/apis/ext.io/v1").await["openapi"], "3.0.0");
}

#[tokio::test]
async fn what_anybody_makes_up_is_not_counted() {
    let api = Api::start().await;
    for path in ["/made-up", "/apis/made-up/v1/things", "/apis/made-up/v1", "/api/v1/made-ups", "/api/v1/namespaces/default/pods/a/made-up", "/openapi/v3/made-up", "/livez/made-up"] {
        for (user, method) in [(None, Method::GET), (None, Method::POST), (Some(User::new("alice", ["system:masters"])), Method::GET), (Some(User::new("alice", ["system:masters"])), Method::POST)] {
            let request = Request::builder().method(method).uri(path).body(full("")).expect("a request");
            assert!(api.server.handle(request, user).await.status().is_client_error(), "{path}");
        }
    }
    for slashes in ["", "/", "///"] {
        assert_eq!(api.get(&format!("/version{slashes}"), "application/json").await.0, 200);
    }
    let (_, _, text) = api.get("/metrics", "text/plain").await;
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("made-up"), "{}", text.lines().filter(|line| line.contains("made-up")).collect::<String>());
    assert_eq!(text.lines().filter(|line| line.starts_with("apiserver_request_total") && line.contains("/version")).count(), 1);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let api = Api::start().await;
    let map = |size: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v".repeat(size)}});
    let (code, _, body) = whole(api.ask(Method::POST, CONFIG_MAPS, "application/json", map(3 * 1024 * 1024)).await).await;
    let status: Value = serde_json::from_slice(&body).expect("a status");
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
}

/// The server on loopback, over TLS, and a client's connection to it.
async fn over_tls(api: &Api) -> (std::net::SocketAddr, Arc<rustls::ClientConfig>) {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Authority::generate().expect("an authority");
    let pair = authority.server("apiserver", &[], &[std::net::Ipv4Addr::LOCALHOST.into()]).expect("a certificate");
    let tls = skiff_apiserver::http::serve::tls(&pair, &authority.pair.certificate).expect("TLS");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(skiff_apiserver::http::serve::serve(Arc::clone(&api.server), listener, tls, api.stop.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pair.certificate.as_bytes()).expect("PEM")).expect("a root");
    (address, Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::test]
async fn heads_are_bounded() {
    let api = Api::start().await;
    let (address, config) = over_tls(&api).await;
    let ask = async |length: usize| {
        let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&config)).connect(name, stream).await.expect("TLS");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let head = format!("GET /livez HTTP/1.1\r\nhost: skiff\r\nx-long: {}\r\nconnection: close\r\n\r\n", "x".repeat(length));
        // The server need not take all of it.
        let writes = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut writer, head.as_bytes()).await.map(|()| writer) });
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut answer).await;
        writes.abort();
        String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned()
    };
    assert_eq!(ask(100_000).await, "HTTP/1.1 200 OK");
    assert_eq!(ask(2 << 20).await, "HTTP/1.1 431 Request Header Fields Too Large");
}

/// A server that begins an answer and goes away.
async fn falters() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a request");
            let answer = if line.contains("/chunked") { "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" } else { "Content-Length: 10\r\n\r\nhello" };
            while !matches!(line.as_str(), "\r\n" | "") {
                line.clear();
                stream.read_line(&mut line).await.expect("a request");
            }
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{answer}").as_bytes()).await.expect("half an answer");
        }
    });
    port
}

#[tokio::test]
async fn a_proxied_answer_that_breaks_off_does_not_look_whole() {
    let api = Api::start().await;
    api.serve("falters", falters().await).await;
    for how in ["chunked", "length"] {
        for two in [false, true] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let server = Arc::clone(&api.server);
            let service = service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.handle(request, Some(User::new("alice", ["system:masters"]))).await) }
            });
            tokio::spawn(async move { auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(far), service).await });
            let request = Request::get(format!("http://localhost/api/v1/namespaces/default/services/falters/proxy/{how}")).body(Full::<Bytes>::default());
            let (request, near) = (request.expect("a request"), TokioIo::new(near));
            let answer = if two {
                let (mut sender, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), near).await.expect("a connection");
                tokio::spawn(driver);
                sender.send_request(request).await
            } else {
                let (mut sender, driver) = hyper::client::conn::http1::handshake(near).await.expect("a connection");
                tokio::spawn(driver);
                sender.send_request(request).await
            };
            let answer = answer.expect("the head of an answer");
            assert_eq!(answer.status(), 200);
            assert!(answer.into_body().collect().await.is_err(), "{how} {two}: it isn't whole");
        }
    }
}
