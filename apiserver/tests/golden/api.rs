//! A server within this process, and requests to it.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use skiff_api::resource::Resource;
use skiff_api::value::text;
use skiff_apiserver::auth::User;
use skiff_apiserver::http::body::full;
use skiff_apiserver::Server;
use skiff_store::{Guard, Memory, Store};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One request.
pub struct Ask {
    pub method: String,
    pub path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
    user: Option<User>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        let user = Some(User::new("admin", ["system:masters"]));
        Self { method: method.into(), path: path.into(), headers: Vec::new(), body: String::new(), user }
    }

    pub fn json(self, body: &Value) -> Self {
        self.content("application/json", &body.to_string())
    }

    pub fn content(mut self, kind: &str, body: &str) -> Self {
        self.headers.push(("content-type", kind.into()));
        self.body = body.into();
        self
    }

    pub fn accept(mut self, accept: &str) -> Self {
        if !accept.is_empty() {
            self.headers.push(("accept", accept.into()));
        }
        self
    }

    pub fn anonymous(mut self) -> Self {
        self.user = None;
        self
    }

    pub fn token(mut self, token: &str) -> Self {
        self.headers.push(("authorization", format!("Bearer {token}")));
        self.anonymous()
    }
}

/// What was answered.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| self.body.clone().into())
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

pub struct Api {
    server: Arc<Server>,
    store: Arc<Memory>,
    _stop: DropGuard,
}

impl Api {
    pub async fn start() -> Self {
        let (stop, store) = (CancellationToken::new(), Arc::new(Memory::new()));
        let mut config = crate::common::config(store.clone());
        // As in the reference run.
        config.options.disable_admission_plugins = vec!["ServiceAccount".into()];
        let server = Server::start(config, stop.clone()).await.expect("a server");
        Self { server, store, _stop: stop.drop_guard() }
    }

    pub async fn ask(&self, ask: &Ask) -> Answer {
        let request = Request::builder().method(ask.method.as_str()).uri(&ask.path);
        let request = ask.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let request = request.body(full(ask.body.clone())).expect("a request");
        let (parts, body) = self.server.handle(request, ask.user.clone()).await.into_parts();
        let (mut body, mut bytes) = (body, Vec::new());
        // A watch never ends: what it says before it falls silent is its answer.
        while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_secs(5), body.frame()).await {
            bytes.extend(frame.expect("a frame").into_data().unwrap_or_default());
        }
        Answer { code: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8_lossy(&bytes).into() }
    }

    pub async fn made(&self, path: &str, object: &Value) {
        let answer = self.ask(&Ask::new("POST", path).json(object)).await;
        assert_eq!(answer.code, 201, "{path} {object}: {}", answer.body);
    }

    /// Lays an object into the store as it is.
    pub async fn put(&self, resource: &Resource, object: &Value) {
        let key = match text(object, &["metadata", "namespace"]) {
            "" => format!("{}{}", resource.storage_prefix, text(object, &["metadata", "name"])),
            namespace => format!("{}{namespace}/{}", resource.storage_prefix, text(object, &["metadata", "name"])),
        };
        let mut stored = object.clone();
        skiff_api::value::remove(&mut stored, &["metadata", "resourceVersion"]);
        self.store.commit(&key, Guard::Absent, Some(skiff_apiserver::cache::encode(&stored).into())).await.expect("stored");
    }
}
