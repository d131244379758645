//! The row of a pod: its readiness, its status in a word, its restarts.

use jiff::Timestamp;
use serde_json::Value;

use super::duration::age;
use crate::pod::is_sidecar;
use crate::value::{at, condition, items, text, time};

/// What a pod's row says of its containers.
#[derive(Default)]
pub(super) struct Summary {
    ready: usize,
    total: usize,
    /// The status in a word: `Running`, `Init:1/2`, `CrashLoopBackOff`.
    pub reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    pub fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    pub fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(last) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, age(Some(last), now)),
            _ => self.restarts.to_string(),
        }
    }

    fn count(&mut self, status: &Value) {
        self.restarts += at(status, &["restartCount"]).as_i64().unwrap_or(0);
        self.last_restart = self.last_restart.max(time(status, &["lastState", "terminated", "finishedAt"]));
    }
}

/// `Error`, or what to say of a container that ended without a reason.
fn ended(terminated: &Value) -> String {
    let number = |name: &str| at(terminated, &[name]).as_i64().unwrap_or(0);
    match (text(terminated, &["reason"]), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

pub(super) fn summarize(pod: &Value) -> Summary {
    let init = items(pod, &["spec", "initContainers"]);
    let sidecar = |name: &Value| init.iter().any(|c| c["name"] == *name && is_sidecar(c));
    let mut sum = Summary {
        ready: 0,
        total: items(pod, &["spec", "containers"]).len() + init.iter().filter(|c| is_sidecar(c)).count(),
        reason: text(pod, &["status", "phase"]).to_owned(),
        ..Summary::default()
    };
    let own_reason = text(pod, &["status", "reason"]);
    if !own_reason.is_empty() {
        sum.reason = own_reason.to_owned();
    }
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if items(pod, &["status", "conditions"]).iter().any(gated) {
        sum.reason = "SchedulingGated".to_owned();
    }
    let mut sidecars = Summary::default();
    let mut initializing = false;
    for (i, status) in items(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        sum.count(status);
        let is_sidecar = sidecar(&status["name"]);
        if is_sidecar {
            sidecars.count(status);
        }
        let (terminated, waiting) = (at(status, &["state", "terminated"]), text(status, &["state", "waiting", "reason"]));
        if terminated["exitCode"] == 0 {
            continue;
        }
        if is_sidecar && status["started"] == true {
            sum.ready += usize::from(status["ready"] == true);
            continue;
        }
        sum.reason = if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == "True") {
        (sum.restarts, sum.last_restart) = (sidecars.restarts, sidecars.last_restart);
        main_containers(pod, &mut sum);
    }
    if !at(pod, &["metadata", "deletionTimestamp"]).is_null() {
        if own_reason == "NodeLost" {
            sum.reason = "Unknown".to_owned();
        } else if !crate::pod::is_terminal(pod) {
            sum.reason = "Terminating".to_owned();
        }
    }
    sum
}

fn main_containers(pod: &Value, sum: &mut Summary) {
    let (mut running, mut error) = (false, None);
    for status in items(pod, &["status", "containerStatuses"]).iter().rev() {
        sum.count(status);
        let (terminated, waiting) = (at(status, &["state", "terminated"]), text(status, &["state", "waiting", "reason"]));
        if !waiting.is_empty() {
            sum.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            sum.reason = ended(terminated);
            if terminated["exitCode"] != 0 {
                error = Some(sum.reason.clone());
            }
        } else if status["ready"] == true && !at(status, &["state", "running"]).is_null() {
            running = true;
            sum.ready += 1;
        }
    }
    if sum.reason == "Completed" {
        if running && crate::pod::is_ready(pod) {
            sum.reason = "Running".to_owned();
        } else if let Some(error) = error {
            sum.reason = error;
        } else if running {
            sum.reason = "NotReady".to_owned();
        }
    }
}

/// `1/2`: how many of the readiness gates' conditions are true.
pub(super) fn readiness_gates(pod: &Value) -> String {
    let gates = items(pod, &["spec", "readinessGates"]);
    let open = |gate: &&Value| condition(pod, text(gate, &["conditionType"])).is_some_and(|c| c["status"] == "True");
    if gates.is_empty() { "<none>".to_owned() } else { format!("{}/{}", gates.iter().filter(open).count(), gates.len()) }
}
