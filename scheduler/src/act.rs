//! What the scheduler does to the cluster: bindings, pod conditions, evictions, events.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_api::clock;
use tokio::sync::{Mutex, Semaphore};

use crate::Error;
use crate::pod::PodFacts;

/// Upstream's limit on the note of an event, in bytes.
const NOTE_LIMIT: usize = 1024;
/// How many kinds of repeated events are remembered.
const SERIES_KEPT: usize = 4096;
/// How often a running series of events is written anew, in seconds.
const SERIES_REFRESH: i64 = 30 * 60;

/// The hands of the scheduler. Cheap to clone.
#[derive(Clone)]
pub struct Hands {
    client: Client,
    reporter: Arc<str>,
    /// How many requests may be under way at once.
    slots: Arc<Semaphore>,
    /// Events that may repeat: the object they were written as, and how often they happened since.
    series: Arc<Mutex<HashMap<SeriesKey, Series>>>,
}

/// Pod uid, reason, note.
type SeriesKey = (String, &'static str, String);

struct Series {
    event: String,
    count: i32,
    written: jiff::Timestamp,
}

/// What the PodScheduled condition says of a pod that waits.
#[derive(Clone, Debug)]
pub struct Waits {
    /// `Unschedulable`, `SchedulingGated` or `SchedulerError`.
    pub reason: &'static str,
    /// Why, in upstream's words.
    pub message: String,
}

impl Hands {
    /// Hands that act through `client` under the name `reporter`, with up to `parallel` requests at once.
    pub fn new(client: Client, reporter: &str, parallel: usize) -> Self {
        Self {
            client,
            reporter: reporter.into(),
            slots: Arc::new(Semaphore::new(parallel)),
            series: Arc::default(),
        }
    }

    fn pods(&self, pod: &PodFacts) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace)
    }

    /// Assigns the pod to the node.
    pub async fn bind(&self, pod: &PodFacts, node: &str) -> Result<(), Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() },
        };
        let _slot = self.slots.acquire().await;
        let bound: Result<Value, _> =
            self.pods(pod).create_subresource("binding", &pod.name, &PostParams::default(), &binding).await;
        bound.map(drop).map_err(Error::Bind)
    }

    /// Says in the pod's status why it waits, and on which node room is made for it (`None` leaves that as it is).
    /// Writes only what isn't there yet.
    pub async fn report(&self, pod: &PodFacts, waits: &Waits, nominate: Option<&str>) -> Result<(), Error> {
        let same = pod.scheduled.as_ref().is_some_and(|(status, reason, message)| {
            status == "False" && reason == waits.reason && *message == waits.message
        });
        let mut status = json!({});
        if !same {
            let now = Time(clock::now());
            let mut condition = json!({
                "type": "PodScheduled", "status": "False", "reason": waits.reason, "message": waits.message,
                "lastProbeTime": null,
            });
            if pod.scheduled.as_ref().is_none_or(|(status, _, _)| status != "False") {
                condition["lastTransitionTime"] = json!(now);
            }
            if let Some(generation) = pod.generation {
                condition["observedGeneration"] = generation.into();
            }
            status["conditions"] = json!([condition]);
        }
        if let Some(node) = nominate.filter(|node| *node != pod.nominated) {
            status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
        }
        if status.as_object().is_none_or(|s| s.is_empty()) {
            return Ok(());
        }
        self.patch_status(pod, status).await
    }

    /// Takes the nomination off a pod.
    pub async fn clear_nomination(&self, pod: &PodFacts) -> Result<(), Error> {
        self.patch_status(pod, json!({ "nominatedNodeName": null })).await
    }

    async fn patch_status(&self, pod: &PodFacts, status: Value) -> Result<(), Error> {
        let patch = json!({ "metadata": { "uid": pod.uid }, "status": status });
        let _slot = self.slots.acquire().await;
        match self.pods(pod).patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(Error::Report(error)),
        }
    }

    /// Evicts `victim` so that `preemptor` gets its place on `node`.
    pub async fn evict(&self, victim: &PodFacts, preemptor: &PodFacts, node: &str) -> Result<(), Error> {
        let now = Time(clock::now());
        let message = format!("{}: preempting to accommodate a higher priority pod", preemptor.scheduler);
        let mut condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
            "lastTransitionTime": now, "lastProbeTime": null,
        });
        if let Some(generation) = victim.generation {
            condition["observedGeneration"] = generation.into();
        }
        self.patch_status(victim, json!({ "conditions": [condition] })).await?;
        let same = Preconditions { uid: Some(victim.uid.clone()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        let deleted = {
            let _slot = self.slots.acquire().await;
            self.pods(victim).delete(&victim.name, &params).await
        };
        match deleted {
            Err(error) if !is_gone(&error) => return Err(Error::Evict(error)),
            _ => {}
        }
        let note = format!("Preempted by pod {} on node {node}", preemptor.uid);
        self.event(victim, Some(preemptor), "Normal", "Preempted", "Preempting", note).await;
        Ok(())
    }

    /// Notes that the pod was assigned.
    pub async fn scheduled(&self, pod: &PodFacts, node: &str) {
        let note = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
        self.event(pod, None, "Normal", "Scheduled", "Binding", note).await;
    }

    /// Notes why the pod could not be assigned.
    pub async fn failed(&self, pod: &PodFacts, why: &str) {
        self.event(pod, None, "Warning", "FailedScheduling", "Scheduling", truncated(why)).await;
    }

    /// Writes an event; one that repeats becomes a series, which is written the second time and then once in a while.
    async fn event(
        &self,
        pod: &PodFacts,
        related: Option<&PodFacts>,
        type_: &'static str,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) {
        let now = clock::now();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace);
        let key = (pod.uid.clone(), reason, note.clone());
        if type_ == "Warning" {
            let mut known = self.series.lock().await;
            if let Some(series) = known.get_mut(&key) {
                series.count += 1;
                let due = now.duration_since(series.written).as_secs() >= SERIES_REFRESH;
                if series.count != 2 && !due {
                    return;
                }
                series.written = now;
                let patch = json!({ "series": EventSeries { count: series.count, last_observed_time: MicroTime(now) } });
                let name = series.event.clone();
                drop(known);
                let _slot = self.slots.acquire().await;
                if let Err(error) = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    tracing::debug!(%error, "event not updated");
                }
                return;
            }
            if known.len() >= SERIES_KEPT {
                known.retain(|_, series| now.duration_since(series.written).as_secs() < SERIES_REFRESH);
            }
        }
        let name = format!("{}.{:x}", pod.name, now.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(pod.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(self.reporter.to_string()),
            reporting_instance: Some(format!("{0}-{0}", self.reporter)),
            action: Some(action.into()),
            reason: Some(reason.into()),
            regarding: Some(reference(pod)),
            related: related.map(reference),
            note: Some(note),
            type_: Some(type_.into()),
            ..Event::default()
        };
        let _slot = self.slots.acquire().await;
        match api.create(&PostParams::default(), &event).await {
            Ok(_) if type_ == "Warning" => {
                self.series.lock().await.insert(key, Series { event: name, count: 1, written: now });
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, reason, "event not written"),
        }
    }
}

/// Whether the object that a request was about is no longer there, or is another by now.
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || (status.code == 409 && status.message.contains("uid")))
}

fn reference(pod: &PodFacts) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// Cut to what an event's note may hold.
fn truncated(text: &str) -> String {
    const SUFFIX: &str = " ...";
    if text.len() <= NOTE_LIMIT {
        return text.to_owned();
    }
    let mut end = NOTE_LIMIT - SUFFIX.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", &text[..end])
}
