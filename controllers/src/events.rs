//! Events, kept in check the way upstream's recorder does it: repeats are counted in one object, many similar ones are
//! combined, and no object gets more than a few a minute.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_api::clock;
use tokio::sync::mpsc;

use crate::kind::Object;

/// With more than so many different messages about the same thing they are combined.
const SIMILAR: usize = 10;
/// Within so many seconds.
const SIMILAR_WITHIN: i64 = 600;
/// So many events an object may have at once.
const BURST: f64 = 25.0;
/// And one more after so many seconds.
const REFILL: f64 = 300.0;
/// How many keys are remembered before the old ones are dropped.
const KEPT: usize = 4096;
/// How many events may wait to be written; more are dropped, as upstream drops them.
const WAITING: usize = 1000;

/// An event that is to be told.
#[derive(Clone, Debug)]
pub struct Note {
    source: &'static str,
    about: ObjectReference,
    warning: bool,
    reason: String,
    message: String,
}

/// Writes events of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
}

impl Recorder {
    /// A recorder, and the work that writes what it records.
    pub fn new(client: Client) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender }, write_all(client, receiver))
    }

    /// Tells that something went as it should. `source` is the controller that says so.
    pub fn normal<K: Object>(&self, source: &'static str, about: &K, reason: &str, message: impl Into<String>) {
        self.record(source, reference(about), false, reason, message.into());
    }

    /// Tells that something went wrong.
    pub fn warning<K: Object>(&self, source: &'static str, about: &K, reason: &str, message: impl Into<String>) {
        self.record(source, reference(about), true, reason, message.into());
    }

    /// Tells something about an object that isn't at hand.
    pub fn record(&self, source: &'static str, about: ObjectReference, warning: bool, reason: &str, message: String) {
        let note = Note { source, about, warning, reason: reason.to_owned(), message };
        if self.sender.try_send(note).is_err() {
            tracing::debug!(source, reason, "event dropped: too many are waiting to be written");
        }
    }
}

/// A reference to an object, as events carry it.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// What is to be written for a note.
#[derive(Debug, PartialEq)]
enum Write {
    /// A new event with this name and message.
    Create { name: String, message: String },
    /// The event of this name happened again.
    Update { name: String, message: String, count: i32 },
}

/// Decides what is written for each note. Pure but for what it remembers.
#[derive(Default)]
struct Correlator {
    /// By what is similar: the messages since when.
    similar: HashMap<String, (HashSet<String>, Timestamp)>,
    /// By what is the same: the event's name and count.
    same: HashMap<String, (String, i32)>,
    /// By source and object: how many events are left, as of when.
    budget: HashMap<String, (f64, Timestamp)>,
}

impl Correlator {
    fn observe(&mut self, note: &Note, now: Timestamp) -> Option<Write> {
        for (len, clear) in [(self.similar.len(), 0), (self.same.len(), 1), (self.budget.len(), 2)] {
            if len >= KEPT {
                match clear {
                    0 => self.similar.clear(),
                    1 => self.same.clear(),
                    _ => self.budget.clear(),
                }
            }
        }
        let about = &note.about;
        let object = format!("{} {:?} {:?} {:?} {:?}", note.source, about.kind, about.namespace, about.name, about.uid);
        let alike = format!("{object} {} {}", note.warning, note.reason);

        let (messages, since) = self.similar.entry(alike.clone()).or_insert_with(|| (HashSet::new(), now));
        if now.duration_since(*since).as_secs() > SIMILAR_WITHIN {
            messages.clear();
        }
        *since = now;
        messages.insert(note.message.clone());
        let (key, message) = if messages.len() > SIMILAR {
            // The set needn't grow further to stay too large.
            messages.remove(&note.message);
            (alike, format!("(combined from similar events): {}", note.message))
        } else {
            (format!("{alike} {}", note.message), note.message.clone())
        };

        let fresh = || (format!("{}.{:x}", about.name.as_deref().unwrap_or(""), now.as_nanosecond()), 0);
        let (name, count) = self.same.entry(key).or_insert_with(fresh);
        *count += 1;
        let write = match *count {
            1 => Write::Create { name: name.clone(), message },
            count => Write::Update { name: name.clone(), message, count },
        };

        let (left, as_of) = self.budget.entry(object).or_insert((BURST, now));
        *left = (*left + now.duration_since(*as_of).as_secs_f64() / REFILL).min(BURST);
        *as_of = now;
        if *left < 1.0 {
            return None;
        }
        *left -= 1.0;
        Some(write)
    }
}

async fn write_all(client: Client, mut notes: mpsc::Receiver<Note>) {
    let mut correlator = Correlator::default();
    while let Some(note) = notes.recv().await {
        let now = clock::now();
        let Some(write) = correlator.observe(&note, now) else { continue };
        if let Err(error) = carry_out(&client, &note, write, now).await {
            tracing::debug!(%error, source = note.source, reason = note.reason, "event not written");
        }
    }
}

async fn carry_out(client: &Client, note: &Note, write: Write, now: Timestamp) -> Result<(), kube::Error> {
    let namespace = note.about.namespace.as_deref().unwrap_or("default");
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let (name, message) = match write {
        Write::Create { name, message } => (name, message),
        Write::Update { name, message, count } => {
            let patch = json!({ "count": count, "lastTimestamp": Time(now), "message": message });
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // Events are kept for an hour: one that is gone is written anew.
                Err(kube::Error::Api(status)) if status.code == 404 => (name, message),
                other => return other.map(drop),
            }
        }
    };
    let event = Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        involved_object: note.about.clone(),
        reason: Some(note.reason.clone()),
        message: Some(message),
        source: Some(EventSource { component: Some(note.source.to_owned()), host: None }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reporting_component: Some(note.source.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, message: &str) -> Note {
        let about = ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
        Note { source: "test", about, warning: false, reason: "R".into(), message: message.into() }
    }

    #[test]
    fn repeats_are_counted_and_similar_ones_combined() {
        let start = Timestamp::UNIX_EPOCH;
        let mut correlator = Correlator::default();
        let mut seen = |message: &str, second: i64| {
            correlator.observe(&note("web", message), start + jiff::SignedDuration::from_secs(second))
        };
        assert!(matches!(seen("one", 0), Some(Write::Create { message, .. }) if message == "one"));
        assert!(matches!(seen("one", 1), Some(Write::Update { count: 2, .. })));
        for i in 0..9 {
            assert!(matches!(seen(&format!("m{i}"), 2), Some(Write::Create { .. })));
        }
        let combined = "(combined from similar events): x";
        assert!(matches!(seen("x", 3), Some(Write::Create { message, .. }) if message == combined));
        assert!(matches!(seen("y", 3), Some(Write::Update { count: 2, .. })));
        let left = (0..100).filter(|i| seen(&format!("z{i}"), 4).is_some()).count();
        assert_eq!(left, 12, "25 in all");
        assert!(seen("z", 305).is_some(), "one more after five minutes");
        assert!(seen("z", 305).is_none());
    }
}
