//! Events about pods and the node, told as upstream's kubelet tells them.
//!
//! The same event again raises a count instead of making an object; an object that has too many is told of rarely. Telling is
//! never waited for: a queue and one task stand between, and what doesn't fit in is dropped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_api::clock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod;

/// How many events wait to be written; upstream's broadcaster keeps 1000.
const QUEUE: usize = 1000;
/// How many different events are remembered for their count; upstream's cache has 4096.
const REMEMBERED: usize = 4096;
/// An object may have so many events at once...
const BURST: f64 = 25.0;
/// ...and one more in so many seconds.
const REFILL_SECONDS: f64 = 300.0;
/// All events of a node: so many at once, upstream's `eventBurst`...
const NODE_BURST: f64 = 100.0;
/// ...and so many a second, upstream's `eventRecordQPS`.
const NODE_RATE: f64 = 50.0;

/// Whether an event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Look here.
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Message {
    object: ObjectReference,
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// Takes events, and writes them in the background.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Box<Message>>,
}

impl Recorder {
    /// A recorder whose events are written by `client` until `shutdown`.
    pub fn start(client: kube::Client, node_name: &str, shutdown: CancellationToken) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let writer = Writer { client, node_name: node_name.to_owned(), correlator: Correlator::default() };
        tokio::spawn(writer.run(inbox, shutdown));
        Self { queue }
    }

    /// Tells something about an object.
    pub fn about(&self, object: ObjectReference, kind: Kind, reason: impl Into<Cow<'static, str>>, message: String) {
        let message = Message { object, kind, reason: reason.into(), message, at: clock::now() };
        if let Err(mpsc::error::TrySendError::Full(message)) = self.queue.try_send(Box::new(message)) {
            tracing::debug!(reason = %message.reason, "too many events wait, one was dropped");
        }
    }

    /// Tells something about a pod.
    pub fn pod(&self, pod: &Pod, kind: Kind, reason: impl Into<Cow<'static, str>>, message: String) {
        self.about(reference(pod, None), kind, reason, message);
    }

    /// Tells something about a container of a pod.
    pub fn container(&self, pod: &Pod, container: &str, kind: Kind, reason: impl Into<Cow<'static, str>>, message: String) {
        self.about(reference(pod, field_path(pod, container)), kind, reason, message);
    }
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

fn field_path(pod: &Pod, container: &str) -> Option<String> {
    let list = match pod::container(pod, container)?.0 {
        crate::runtime::ContainerKind::Init | crate::runtime::ContainerKind::Sidecar => "initContainers",
        crate::runtime::ContainerKind::Regular => "containers",
        crate::runtime::ContainerKind::Ephemeral => "ephemeralContainers",
    };
    Some(format!("spec.{list}{{{container}}}"))
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field_path: String,
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
}

/// An event that was written.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

/// A bucket of tokens: one event takes one.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp, burst: f64, per_second: f64) -> bool {
        let elapsed = now.duration_since(self.at).as_secs_f64().max(0.0);
        self.tokens = (self.tokens + elapsed * per_second).min(burst);
        self.at = now;
        let enough = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(enough));
        enough
    }
}

/// Remembers what was told, to count and to hold back.
#[derive(Debug, Default)]
struct Correlator {
    known: HashMap<Key, Known>,
    buckets: HashMap<String, Bucket>,
}

impl Correlator {
    /// Whether the object has room for another event.
    fn admit(&mut self, uid: &str, now: Timestamp) -> bool {
        if self.buckets.len() >= REMEMBERED {
            // Full buckets need not be remembered.
            self.buckets.retain(|_, b| now.duration_since(b.at).as_secs_f64() < BURST * REFILL_SECONDS);
        }
        let bucket = self.buckets.entry(uid.to_owned()).or_insert(Bucket { tokens: BURST, at: now });
        bucket.take(now, BURST, 1.0 / REFILL_SECONDS)
    }

    fn remember(&mut self, key: Key, known: Known) {
        if self.known.len() >= REMEMBERED {
            let mut times: Vec<_> = self.known.values().map(|k| k.last).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.known.retain(|_, k| k.last > middle);
        }
        self.known.insert(key, known);
    }
}

struct Writer {
    client: kube::Client,
    node_name: String,
    correlator: Correlator,
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::Receiver<Box<Message>>, shutdown: CancellationToken) {
        let mut node = Bucket { tokens: NODE_BURST, at: clock::now() };
        loop {
            let message = tokio::select! {
                message = inbox.recv() => message,
                () = shutdown.cancelled() => None,
            };
            let Some(message) = message else { return };
            while !node.take(clock::now(), NODE_BURST, NODE_RATE) {
                tokio::time::sleep(Duration::from_secs_f64(1.0 / NODE_RATE)).await;
            }
            if let Err(error) = self.write(*message).await {
                tracing::debug!(%error, "writing an event failed");
            }
        }
    }

    async fn write(&mut self, message: Message) -> Result<(), kube::Error> {
        let Message { object, kind, reason, message, at } = message;
        let uid = object.uid.clone().unwrap_or_default();
        if !self.correlator.admit(&uid, at) {
            return Ok(());
        }
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".into());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let key = Key { uid, field_path: object.field_path.clone().unwrap_or_default(), kind, reason: reason.clone(), message: message.clone() };
        if let Some(known) = self.correlator.known.get_mut(&key) {
            known.count += 1;
            known.last = at;
            let patch = json!({"count": known.count, "lastTimestamp": Time(at), "message": message});
            match events.patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => return Ok(()),
                // It expired: make another.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{:x}", object.name.as_deref().unwrap_or_default(), at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: object,
            reason: Some(reason.into()),
            message: Some(message),
            type_: Some(kind.as_str().into()),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(self.node_name.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node_name.clone()),
            first_timestamp: Some(Time(at)),
            last_timestamp: Some(Time(at)),
            count: Some(1),
            ..Event::default()
        };
        events.create(&PostParams::default(), &event).await?;
        self.correlator.remember(key, Known { name, count: 1, last: at });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_burst_of_events_and_then_few() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a timestamp");
        let mut correlator = Correlator::default();
        let admitted = (0..100).filter(|_| correlator.admit("a", start)).count();
        assert_eq!(admitted, 25);
        assert!(correlator.admit("b", start), "another object has its own");
        assert!(!correlator.admit("a", start + Duration::from_secs(299)));
        assert!(correlator.admit("a", start + Duration::from_secs(301)));
    }
}
