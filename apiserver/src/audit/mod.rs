//! The audit log: who asked for what, when, and how it ended, as far as a policy wants it told.

mod policy;
mod sink;

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_api::value::{self, text};
use skiff_api::{Status, cbor, clock, protobuf, random};

use crate::auth::{self, User};
use crate::http::body::{Body, Reply, full, stream};
use crate::http::info::RequestInfo;
use crate::http::limits::long_running;
use crate::metrics;
use crate::options::{Error, Options};
use crate::subresources::user_info;
use crate::verbs::Notes;
use crate::webhook::Webhooks;
use policy::{Judgement, Level, Policy, Stage};
use sink::Sink;

/// The header that names a request in the log.
const HEADER: &str = "audit-id";
/// Upstream's limits of what clients say of themselves, in bytes.
const MAX_ID: usize = 64;
const MAX_AGENT: usize = 1_024;

/// Where a request came from; in the extensions of requests that came over the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source(pub IpAddr);

/// What is counted of the audit, in upstream's names.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    events: AtomicU64,
    /// What was lost on the way to the log, and to the webhook.
    log_errors: AtomicU64,
    webhook_errors: AtomicU64,
}

impl Counters {
    /// Writes the counts.
    pub fn expose(&self, out: &mut String) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        metrics::head(out, "apiserver_audit_event_total", "counter", "[ALPHA] Counter of audit events generated and sent to the audit backend.");
        let _ = writeln!(out, "apiserver_audit_event_total {}", count(&self.events));
        metrics::head(out, "apiserver_audit_error_total", "counter", "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.");
        for (plugin, counter) in [("log", &self.log_errors), ("webhook", &self.webhook_errors)] {
            let _ = writeln!(out, "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {}", count(counter));
        }
    }

    /// Counts what was lost, and says so: at first each time, then now and then.
    fn lost(&self, plugin: &'static str, events: u64, why: &str) {
        let counter = if plugin == "log" { &self.log_errors } else { &self.webhook_errors };
        let lost = counter.fetch_add(events, Ordering::Relaxed) + events;
        if lost.is_power_of_two() || lost % 1_000 < events {
            tracing::warn!(plugin, lost, why, "audit events are lost");
        }
    }
}

/// Tells what the policy wants told.
pub(crate) struct Auditor {
    /// `None` where there is no audit.
    policy: Option<Policy>,
    sinks: Arc<Vec<Sink>>,
    counters: Arc<Counters>,
}

/// The name of a request: its own, or a new one.
pub(crate) fn id(headers: &HeaderMap) -> HeaderValue {
    let own = headers.get(HEADER).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    let own = own.map(|v| v.get(..MAX_ID).unwrap_or(v)).and_then(|v| HeaderValue::from_str(v).ok());
    own.unwrap_or_else(|| HeaderValue::from_str(&random::uid()).unwrap_or_else(|_| HeaderValue::from_static("-")))
}

/// Names the request in its answer.
pub(crate) fn sign(reply: &mut Reply, id: HeaderValue) {
    reply.headers_mut().insert(HEADER, id);
}

impl Auditor {
    /// Reads the policy and opens the sinks.
    pub fn open(options: &Options, webhooks: &Arc<Webhooks>, counters: Arc<Counters>) -> Result<Self, Error> {
        let flag = "audit-policy-file";
        let policy = match &options.audit_policy_file {
            Some(path) => Some(Policy::read(auth::yaml(flag, path, "Policy")?).map_err(|e| Error::new(flag, e))?),
            None => None,
        };
        let sinks = if policy.is_some() { Sink::open(options, webhooks, &counters)? } else { Vec::new() };
        Ok(Self { policy: policy.filter(|_| !sinks.is_empty()), sinks: Arc::new(sinks), counters })
    }

    /// A request has come, of a known user or of one who couldn't show who they are. `None` when nothing is to be told.
    pub fn begin(&self, parts: &Parts, info: &RequestInfo, user: Option<&User>, id: &HeaderValue) -> Option<Record> {
        let judgement = self.policy.as_ref()?.judge(user, info);
        if judgement.level == Level::None {
            return None;
        }
        let received = clock::now();
        let event = event(parts, info, user, id, judgement.level, received);
        let record = Record { judgement, lasts: long_running(info), event: Mutex::new(event), sinks: Arc::clone(&self.sinks), counters: Arc::clone(&self.counters) };
        if user.is_some() {
            record.tell(Stage::RequestReceived, received, &Notes::default());
        }
        Some(record)
    }

    /// A request came of one who couldn't show who they are.
    pub fn refused(&self, parts: &Parts, info: &RequestInfo, id: &HeaderValue) {
        let Some(record) = self.begin(parts, info, None, id) else { return };
        let message = match auth::attempted(&parts.headers) {
            "" => "Authentication failed, no credentials provided".to_owned(),
            method => format!("Authentication failed, attempted: {method}"),
        };
        let status = json!({"metadata": {}, "status": "Failure", "message": message, "code": 401});
        record.set("responseStatus", status);
        record.tell(Stage::ResponseStarted, clock::now(), &Notes::default());
    }
}

fn micro(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string().into()
}

fn event(parts: &Parts, info: &RequestInfo, user: Option<&User>, id: &HeaderValue, level: Level, received: Timestamp) -> Map<String, Value> {
    let mut event = Map::new();
    let uri = parts.uri.path_and_query().map_or(info.path.as_str(), |p| p.as_str());
    let user = user.map_or_else(|| json!({}), user_info);
    for (key, value) in [("kind", "Event".into()), ("apiVersion", "audit.k8s.io/v1".into()), ("level", level.as_str().into()), ("auditID", id.to_str().unwrap_or("").into())] {
        event.insert(key.into(), value);
    }
    event.insert("stage".into(), Value::Null);
    event.insert("requestURI".into(), uri.into());
    event.insert("verb".into(), info.verb.into());
    event.insert("user".into(), user);
    let sources = sources(&parts.headers, parts.extensions.get::<Source>());
    if !sources.is_empty() {
        event.insert("sourceIPs".into(), sources.into());
    }
    if let Some(agent) = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()) {
        let shown = agent.get(..MAX_AGENT).map_or_else(|| agent.to_owned(), |start| if start.len() < agent.len() { format!("{start}...TRUNCATED") } else { start.to_owned() });
        event.insert("userAgent".into(), shown.into());
    }
    if info.is_resource {
        let about = [
            ("resource", &info.resource),
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.group),
            ("apiVersion", &info.version),
            ("subresource", &info.subresource),
        ];
        let about: Map<String, Value> = about.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v.as_str().into())).collect();
        event.insert("objectRef".into(), about.into());
    }
    event.insert("requestReceivedTimestamp".into(), micro(received));
    event
}

/// Where a request says that it came from, and where it did.
fn sources(headers: &HeaderMap, source: Option<&Source>) -> Vec<String> {
    let named = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").split(',').map(str::trim).filter_map(|ip| ip.parse::<IpAddr>().ok()).collect::<Vec<_>>();
    let mut sources = named("x-forwarded-for");
    for next in named("x-real-ip").into_iter().take(1).chain(source.map(|s| s.0.to_canonical())) {
        if sources.last() != Some(&next) {
            sources.push(next);
        }
    }
    sources.iter().map(ToString::to_string).collect()
}

/// What is told of one request.
#[derive(Debug)]
pub(crate) struct Record {
    judgement: Judgement,
    /// Whether the answer lasts, so that its beginning is told too.
    lasts: bool,
    event: Mutex<Map<String, Value>>,
    sinks: Arc<Vec<Sink>>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a sink")
    }
}

impl Record {
    fn set(&self, key: &str, value: Value) {
        self.event.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into(), value);
    }

    fn tell(&self, stage: Stage, now: Timestamp, notes: &Notes) {
        if self.judgement.omit_stages.contains(&stage) {
            return;
        }
        let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner).clone();
        event.insert("stage".into(), stage.as_str().into());
        event.insert("stageTimestamp".into(), micro(now));
        let annotations = notes.annotations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !annotations.is_empty() {
            event.insert("annotations".into(), json!(annotations));
        }
        self.counters.events.fetch_add(1, Ordering::Relaxed);
        let event = Arc::new(Value::Object(event));
        self.sinks.iter().for_each(|sink| sink.tell(&event, &self.counters));
    }

    /// The user acts as another, by this verb where it is one that constrains.
    pub fn impersonates(&self, user: &User, constraint: Option<String>) {
        self.set("impersonatedUser", user_info(user));
        if let Some(verb) = constraint {
            self.set("authenticationMetadata", json!({"impersonationConstraint": verb}));
        }
    }

    /// What was sent: an object, options or a patch.
    pub fn sent(&self, object: &Value) {
        let mut event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(about) = event.get_mut("objectRef").and_then(Value::as_object_mut) {
            for key in ["namespace", "name", "uid", "resourceVersion"] {
                let found = text(object, &["metadata", key]);
                if !found.is_empty() && !about.contains_key(key) {
                    about.insert(key.into(), found.into());
                }
            }
        }
        if self.judgement.level >= Level::Request {
            event.insert("requestObject".into(), self.shown(object.clone()));
        }
    }

    /// The object without what the policy leaves out.
    fn shown(&self, mut object: Value) -> Value {
        if self.judgement.omit_managed_fields {
            without_managed_fields(&mut object);
        }
        object
    }

    /// The answer is ready: `refused` where it is no success. Tells of it, now and, where it lasts, at its end.
    pub async fn answered(self: &Arc<Self>, reply: Reply, refused: Option<&Status>, panicked: bool, notes: &Arc<Notes>) -> Reply {
        let code = reply.status().as_u16();
        self.set("responseStatus", response_status(code, refused));
        if panicked {
            let message = format!("APIServer panic'd: {}", refused.map_or("", |status| &status.message));
            self.set("responseStatus", json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500}));
            self.tell(Stage::Panic, clock::now(), notes);
            return reply;
        }
        if !self.lasts {
            let reply = if self.judgement.level == Level::RequestResponse { self.read(reply).await } else { reply };
            self.tell(Stage::ResponseComplete, clock::now(), notes);
            return reply;
        }
        self.tell(Stage::ResponseStarted, clock::now(), notes);
        let end = End { record: Arc::clone(self), notes: Arc::clone(notes) };
        reply.map(|body| -> Body {
            body.map_frame(move |frame| {
                let _lives = &end;
                frame
            })
            .boxed_unsync()
        })
    }

    /// Takes the answer's object into the event.
    async fn read(&self, reply: Reply) -> Reply {
        let (parts, body) = reply.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            // It breaks off for the client too.
            Err(error) => return Reply::from_parts(parts, stream(futures::stream::iter([Err(error)]))),
        };
        let object = match &body {
            body if body.starts_with(protobuf::MAGIC) => protobuf::decode(body).ok(),
            body if body.starts_with(cbor::MAGIC) => cbor::decode(body).ok(),
            body => serde_json::from_slice(body).ok(),
        };
        if let Some(object @ Value::Object(_)) = object {
            self.set("responseObject", self.shown(object));
        }
        Reply::from_parts(parts, full(body))
    }
}

/// Tells of an answer's end when it is let go of.
struct End {
    record: Arc<Record>,
    notes: Arc<Notes>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.record.tell(Stage::ResponseComplete, clock::now(), &self.notes);
    }
}

fn response_status(code: u16, refused: Option<&Status>) -> Value {
    let mut status = json!({"metadata": {}, "code": code});
    if let Some(refused) = refused {
        status["status"] = "Failure".into();
        status["message"] = refused.message.as_str().into();
        status["reason"] = refused.reason.as_ref().into();
        if let Some(details) = refused.to_value().get("details") {
            status["details"] = details.clone();
        }
    }
    status
}

/// Drops `managedFields` from an object, or from the items of a list.
fn without_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for list in ["items", "rows"] {
        for item in object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let item = if list == "rows" { item.get_mut("object") } else { Some(item) };
            if let Some(item) = item {
                without_managed_fields(item);
            }
        }
    }
    debug_assert!(value::at(object, &["metadata", "managedFields"]).is_null());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_own_name() {
        let headers = HeaderMap::from_iter([(header::HeaderName::from_static(HEADER), HeaderValue::from_static("mine"))]);
        assert_eq!(id(&headers), "mine");
        assert_eq!(id(&HeaderMap::new()).len(), 36);
    }

    #[test]
    fn where_requests_come_from() {
        let check = |forwarded: &'static str, real: &'static str, expected: &[&str]| {
            let headers = HeaderMap::from_iter([
                (header::HeaderName::from_static("x-forwarded-for"), HeaderValue::from_static(forwarded)),
                (header::HeaderName::from_static("x-real-ip"), HeaderValue::from_static(real)),
            ]);
            let source = Source("10.0.0.9".parse().expect("an address"));
            assert_eq!(sources(&headers, Some(&source)), expected, "{forwarded} {real}");
        };
        check("", "", &["10.0.0.9"]);
        check("1.1.1.1, 2.2.2.2", "2.2.2.2", &["1.1.1.1", "2.2.2.2", "10.0.0.9"]);
        check("10.0.0.9", "nonsense", &["10.0.0.9"]);
    }

    #[test]
    fn managed_fields_go() {
        let mut list = json!({"metadata": {"managedFields": []}, "items": [{"metadata": {"managedFields": [1], "name": "a"}}]});
        without_managed_fields(&mut list);
        assert_eq!(list, json!({"metadata": {}, "items": [{"metadata": {"name": "a"}}]}));
    }
}
