//! Requests of every sort, most of them nonsense, to a server within this process: each is answered by a `Status` (or by
//! upstream's plain text where there is no resource), none makes it panic.

mod common;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use skiff_api::random::{self, below};
use skiff_api::resource::{Resource, catalogue};
use skiff_apiserver::auth::User;
use skiff_apiserver::http::body::full;
use skiff_apiserver::Server;
use skiff_store::Memory;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 12_000;

const METHODS: &[&str] = &["GET", "GET", "GET", "POST", "POST", "PUT", "PATCH", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"];
const SEGMENTS: &[&str] = &[
    "api", "apis", "v1", "namespaces", "default", "pods", "status", "scale", "log", "exec", "proxy", "binding", "eviction", "token", "finalize", "watch", "a", "..", ".", "%2F", "%00",
    "%ff", "*", "openapi", "v3", "metrics", "readyz", "healthz", "etcd", "version", "a%20b", "é", "",
];
const NAMES: &[&str] = &["a", "default", "kube-system", "b.c", "A_B", "-", "x%2Fy", "%00", "cluster-admin", "exempt", "kubernetes"];
const KEYS: &[&str] = &[
    "watch", "limit", "continue", "resourceVersion", "resourceVersionMatch", "labelSelector", "fieldSelector", "timeoutSeconds", "timeout", "dryRun", "fieldManager", "force",
    "fieldValidation", "pretty", "sendInitialEvents", "allowWatchBookmarks", "propagationPolicy", "gracePeriodSeconds", "includeObject", "container", "command", "verbose", "exclude",
];
const VALUES: &[&str] = &[
    "", "0", "1", "-1", "true", "false", "All", "Exact", "NotOlderThan", "99999999999999999999", "9223372036854775807", "18446744073709551615", "a=b", "a in (b", "metadata.name=a",
    "spec.x=1", "!", "%", "%zz", "%00", "\u{e9}", "Strict", "Ignore", "Orphan", "Metadata", "1s", "1ms", "1x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0",
    "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiLi4vYSJ9", "eyJ2Ijoi", "====",
];
const TYPES: &[&str] = &[
    "application/json", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor", "application/json-patch+json",
    "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml", "text/plain", "", "*/*", "application/json;charset", ";;;", "a/b;q=\u{1}",
];
const ACCEPTS: &[&str] = &[
    "application/json", "*/*", "application/yaml", "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "application/vnd.kubernetes.protobuf", "text/html", "", "application/json;as=Table;v=v9;g=x", "q=1;;,,", "application/json;q=0",
];
const HEADERS: &[(&str, &str)] = &[
    ("authorization", "Bearer x"), ("authorization", "Bearer abcdef.0123456789abcdef"), ("authorization", "Basic eA=="), ("impersonate-user", "bob"), ("impersonate-group", "system:masters"),
    ("impersonate-uid", "1"), ("impersonate-extra-a", "b"), ("user-agent", ""), ("user-agent", "kubectl/v1"), ("if-none-match", "*"), ("accept-encoding", "gzip"), ("upgrade", "websocket"),
    ("connection", "upgrade"), ("sec-websocket-protocol", "v5.channel.k8s.io"), ("content-encoding", "gzip"), ("x-request-id", "\u{7f}"),
];
/// What refusals with 500 say that are upstream's.
const OWN: &[&str] = &["resourceVersion should not be set on objects to be created", "target.name: Required value", "resourceVersion: Invalid value"];
/// What bodies are changed by.
const PIECES: &[&str] = &[
    "null", "{}", "[]", "\"\"", "-1", "1e999", "true", "{\"a\":null}", "[null]", "[{}]", "\"\\u0000\"", "\"name\":", "99999999999999999999", ",", "}", "]", "{", "[", "\n", "- ", "&a", "*a",
];

fn pick<T>(of: &[T]) -> &T {
    &of[below(of.len())]
}

fn path(resource: &Resource) -> String {
    if below(8) == 0 {
        return (0..below(7)).map(|_| format!("/{}", pick(SEGMENTS))).collect::<String>() + if below(2) == 0 { "/" } else { "" };
    }
    let base = if resource.group.is_empty() { format!("/api/{}", resource.version) } else { format!("/apis/{}/{}", resource.group, resource.version) };
    let namespace = if resource.namespaced != (below(10) == 0) { format!("/namespaces/{}", if below(2) == 0 { "default" } else { *pick(NAMES) }) } else { String::new() };
    let name = if below(2) == 0 { format!("/{}", pick(NAMES)) } else { String::new() };
    let sub = match below(4) {
        0 if !name.is_empty() => format!("/{}", pick(SEGMENTS)),
        1 if !name.is_empty() && !resource.subresources.is_empty() => format!("/{}", pick(&resource.subresources).name),
        _ => String::new(),
    };
    format!("{base}{namespace}/{}{name}{sub}", resource.plural)
}

fn query() -> String {
    let pairs: Vec<String> = (0..below(2) * below(4)).map(|_| format!("{}={}", pick(KEYS), pick(VALUES))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// An object of the resource, or something like it.
fn body(resource: &Resource) -> Vec<u8> {
    let spec = pick(&["{}", "null", "{\"replicas\":1}", "{\"containers\":[{\"name\":\"c\",\"image\":\"i\"}]}", "{\"ports\":[{\"port\":80}]}", "{\"rules\":[{}]}", "[]", "\"x\"", "{\"template\":{}}"]);
    let metadata = pick(&[
        "{\"name\":\"a\"}", "{\"generateName\":\"a-\"}", "{\"name\":\"a\",\"uid\":\"1\",\"resourceVersion\":\"1\"}", "{\"name\":1}", "null", "[]", "{}", "{\"name\":\"a\",\"labels\":{\"\":\"\"}}",
        "{\"name\":\"a\",\"managedFields\":[{}]}", "{\"name\":\"a\",\"ownerReferences\":[{}],\"finalizers\":[\"x\"]}", "{\"name\":\"a\",\"deletionTimestamp\":\"x\",\"annotations\":{\"a\":1}}",
    ]);
    let version = resource.api_version();
    let text = match below(6) {
        0 => format!("apiVersion: {version}\nkind: {}\nmetadata: {metadata}\nspec: {spec}\n", resource.kind),
        1 => format!("[{{\"op\":\"{}\",\"path\":\"/{}\",\"value\":{spec}}}]", pick(&["add", "remove", "replace", "test", "move", "copy", "x"]), pick(&["spec", "metadata/name", "metadata/labels/a", "-", ""])),
        2 => return [&b"k8s\0"[..], &(0..below(60)).map(|_| below(256) as u8).collect::<Vec<u8>>()].concat(),
        3 => (*pick(PIECES)).to_owned(),
        _ => format!("{{\"apiVersion\":\"{version}\",\"kind\":\"{}\",\"metadata\":{metadata},\"spec\":{spec},\"data\":{{\"a\":\"b\"}}}}", resource.kind),
    };
    let mut bytes = text.into_bytes();
    for _ in 0..below(4) * (below(3) / 2) {
        let at = below(bytes.len() + 1);
        match below(3) {
            0 if at < bytes.len() => bytes[at] = below(256) as u8,
            1 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, pick(PIECES).bytes())),
        }
    }
    bytes
}

fn request(resource: &Resource) -> Option<Request<skiff_apiserver::http::body::Body>> {
    let (method, mut path): (Method, String) = (pick(METHODS).parse().ok()?, path(resource));
    if method == Method::POST && below(2) == 0 && path.matches('/').count() > 2 {
        // To the collection.
        path.truncate(path.rfind(&format!("/{}", resource.plural)).map_or(path.len(), |at| at + 1 + resource.plural.len()));
    }
    let mut request = Request::builder().method(method).uri(format!("{path}{}", query()));
    // Mostly it is well formed, so that more than the door is tried.
    for (key, usual, value) in [("content-type", TYPES[0], pick(TYPES)), ("accept", ACCEPTS[0], pick(ACCEPTS))] {
        request = request.header(key, if below(3) > 0 { usual } else { *value });
    }
    for _ in 0..(below(5) / 4) * below(3) {
        let (key, value) = pick(HEADERS);
        request = request.header(*key, *value);
    }
    // What isn't HTTP at all doesn't come this far.
    request.body(full(body(resource))).ok()
}

#[tokio::test]
async fn any_request_has_an_answer() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let config = common::config(Arc::new(Memory::new()));
    let server = Server::start(config, stop).await.expect("a server");
    random::seed(0x5eed);
    let mut faults = Vec::new();
    let mut codes = std::collections::BTreeMap::<u16, usize>::new();
    for round in 0..ROUNDS {
        let resource = pick(catalogue());
        let Some(request) = request(resource) else { continue };
        let shown = format!("round {round}: {} {} {:?}", request.method(), request.uri(), request.headers());
        let user = match below(20) {
            0 => None,
            1 => Some(User::new("nobody", ["x"])),
            2 => Some(User::new("system:node:a", ["system:nodes"])),
            _ => Some(User::new("alice", ["system:masters"])),
        };
        let reply = tokio::time::timeout(Duration::from_secs(20), server.handle(request, user)).await;
        let reply = reply.unwrap_or_else(|_| panic!("no answer: {shown}"));
        let code = reply.status().as_u16();
        *codes.entry(code).or_default() += 1;
        if code < 400 {
            continue;
        }
        let kind = reply.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let said = reply.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&said);
        assert!(!text.contains("caused the server to panic"), "{shown}: {text}");
        if kind.starts_with("application/json") {
            let status: Value = serde_json::from_slice(&said).unwrap_or_else(|e| panic!("{shown}: {e}: {text}"));
            assert_eq!((&status["kind"], status["code"].as_u64()), (&"Status".into(), Some(code.into())), "{shown}: {text}");
            assert!(!status["message"].as_str().unwrap_or("").is_empty(), "{shown}: {text}");
        }
        // The server's own faults can't be had by asking; one of these is upstream's answer to a client's.
        if code >= 500 && !matches!(code, 502..=504) && !OWN.iter().any(|own| text.contains(own)) {
            faults.push(format!("{shown}: {code} {text}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // It was no use if everything was refused at the door.
    assert!(codes.get(&201).is_some_and(|n| *n > 0) && codes.get(&200).is_some_and(|n| *n > 100), "{codes:?}");
    println!("{codes:?}");
}
