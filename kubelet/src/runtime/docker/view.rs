//! From Docker's words about a container to ours. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{ContainerInspectResponse, ContainerState as Reported, ContainerStateStatusEnum as Word, EndpointSettings, HostConfig};
use jiff::Timestamp;

use super::super::{Container, ContainerState, Resources, Sandbox, SandboxState};
use super::names;

/// What a container's exit is called when it never came to run, and the code that goes with it: containerd's, which upstream shows.
const START_ERROR: (&str, i32) = ("StartError", 128);

/// Docker's times; the year 1 stands for never.
fn time(text: Option<&str>) -> Option<Timestamp> {
    let time: Timestamp = text?.parse().ok()?;
    (time > Timestamp::UNIX_EPOCH).then_some(time)
}

fn labels(inspected: &ContainerInspectResponse) -> HashMap<String, String> {
    inspected.config.as_ref().and_then(|c| c.labels.clone()).unwrap_or_default()
}

fn created(inspected: &ContainerInspectResponse) -> Timestamp {
    time(inspected.created.as_deref()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn attempt(labels: &HashMap<String, String>) -> u32 {
    labels.get(names::ATTEMPT).and_then(|a| a.parse().ok()).unwrap_or(0)
}

/// Whether the labels are those of a sandbox.
pub fn is_sandbox(labels: &HashMap<String, String>) -> bool {
    labels.get(names::CONTAINER).is_some_and(|name| name == names::SANDBOX)
}

/// The address of a container in its networks: a sandbox is in one.
pub fn address(networks: &HashMap<String, EndpointSettings>) -> Option<IpAddr> {
    let of = |e: &EndpointSettings| {
        let configured = e.ipam_config.as_ref().and_then(|c| c.ipv4_address.as_deref());
        e.ip_address.as_deref().filter(|ip| !ip.is_empty()).or(configured)?.parse().ok()
    };
    networks.values().find_map(of)
}

/// A sandbox as inspected.
pub fn sandbox(inspected: &ContainerInspectResponse) -> Sandbox {
    let labels = labels(inspected);
    let running = inspected.state.as_ref().and_then(|s| s.running).unwrap_or(false);
    let networks = inspected.network_settings.as_ref().and_then(|n| n.networks.as_ref());
    Sandbox {
        id: inspected.id.clone().unwrap_or_default(),
        pod: names::pod_ref(&labels),
        attempt: attempt(&labels),
        state: if running { SandboxState::Ready } else { SandboxState::NotReady },
        created_at: created(inspected),
        ip: networks.and_then(address),
    }
}

fn limits(config: &HostConfig) -> Resources {
    Resources {
        cpu_shares: config.cpu_shares.unwrap_or(0),
        cpu_quota: config.cpu_quota.unwrap_or(0),
        cpu_period: config.cpu_period.unwrap_or(0),
        memory: config.memory.unwrap_or(0),
        oom_score_adj: 0,
    }
}

/// A container as inspected, without its last words.
pub fn container(inspected: &ContainerInspectResponse) -> Container {
    let labels = labels(inspected);
    let none = Reported::default();
    let reported = inspected.state.as_ref().unwrap_or(&none);
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let created_at = created(inspected);
    let mut container = Container {
        id: inspected.id.clone().unwrap_or_default(),
        pod: names::pod_ref(&labels),
        name: label(names::CONTAINER),
        attempt: attempt(&labels),
        sandbox_id: label(names::SANDBOX_ID),
        state: ContainerState::Unknown,
        created_at,
        started_at: time(reported.started_at.as_deref()),
        finished_at: time(reported.finished_at.as_deref()),
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image: label(names::IMAGE),
        image_id: inspected.image.clone().unwrap_or_default(),
        spec_hash: label(names::SPEC_HASH),
        ready: None,
        resources: inspected.host_config.as_ref().map(limits),
    };
    let code = reported.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
    let error = reported.error.as_deref().unwrap_or_default();
    match reported.status {
        Some(Word::RUNNING | Word::PAUSED | Word::RESTARTING) => {
            container.state = ContainerState::Running;
            container.finished_at = None;
        }
        // It never ran: of a failed start, Docker keeps the container as if it had only been made.
        Some(Word::CREATED) if error.is_empty() => container.state = ContainerState::Created,
        Some(Word::CREATED) => {
            let (reason, exit_code) = START_ERROR;
            container.state = ContainerState::Exited;
            container.reason = reason.into();
            container.exit_code = exit_code;
            container.message = error.into();
            container.started_at = Some(Timestamp::UNIX_EPOCH);
            container.finished_at = Some(created_at);
        }
        Some(Word::EXITED | Word::DEAD | Word::REMOVING) => {
            container.state = ContainerState::Exited;
            container.exit_code = code;
            container.message = error.into();
            container.reason = match (reported.oom_killed, code) {
                (Some(true), _) => "OOMKilled",
                (_, 0) => "Completed",
                _ => "Error",
            }
            .into();
        }
        Some(Word::EMPTY | Word::STOPPING) | None => {}
    }
    container
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn inspected(state: Value) -> ContainerInspectResponse {
        let labels = json!({"io.kubernetes.pod.uid": "u", "io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "ns",
            "io.kubernetes.container.name": "c", "io.kubernetes.container.restartCount": "3", "dev.skiff.container.image": "busybox"});
        let object = json!({"Id": "id", "Created": "2026-01-01T00:00:00Z", "Image": "sha256:1", "State": state, "Config": {"Labels": labels}});
        serde_json::from_value(object).expect("an answer to inspect")
    }

    #[test]
    fn states() {
        let check = |state: Value, expected: (ContainerState, i32, &str, &str)| {
            let c = container(&inspected(state));
            assert_eq!((c.state, c.exit_code, c.reason.as_str(), c.message.as_str()), expected);
            assert_eq!((c.attempt, c.pod.uid.as_str(), c.image.as_str()), (3, "u", "busybox"));
        };
        check(json!({"Status": "running", "FinishedAt": "0001-01-01T00:00:00Z"}), (ContainerState::Running, 0, "", ""));
        check(json!({"Status": "created"}), (ContainerState::Created, 0, "", ""));
        check(json!({"Status": "created", "ExitCode": 127, "Error": "no such file"}), (ContainerState::Exited, 128, "StartError", "no such file"));
        check(json!({"Status": "exited", "ExitCode": 0}), (ContainerState::Exited, 0, "Completed", ""));
        check(json!({"Status": "exited", "ExitCode": 3}), (ContainerState::Exited, 3, "Error", ""));
        check(json!({"Status": "exited", "ExitCode": 137, "OOMKilled": true}), (ContainerState::Exited, 137, "OOMKilled", ""));
    }

    #[test]
    fn times_of_the_year_one_are_none() {
        let c = container(&inspected(json!({"Status": "running", "StartedAt": "2026-01-01T00:00:01.5Z", "FinishedAt": "0001-01-01T00:00:00Z"})));
        assert_eq!((c.started_at.map(|t| t.as_millisecond()), c.finished_at), (Some(1_767_225_601_500), None));
    }
}
