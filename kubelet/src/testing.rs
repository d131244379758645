//! Short ways to make pods and their containers, for tests.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::pod;
use crate::runtime::{Container, ContainerState, PodState, Sandbox, SandboxState};

/// The time of all tests: so many seconds after their beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).expect("a time")
}

/// A pod `p` in namespace `ns` with that spec.
pub(crate) fn pod(spec: Value) -> Pod {
    let metadata = json!({"name": "p", "namespace": "ns", "uid": "u", "generation": 1});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
}

/// The sandbox of that attempt, which runs and has an address.
pub(crate) fn sandbox(attempt: u32) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        pod: crate::runtime::PodRef { uid: "u".into(), namespace: "ns".into(), name: "p".into() },
        attempt,
        state: SandboxState::Ready,
        created_at: at(0),
        ip: Some([10, 244, 0, 2].into()),
    }
}

/// A container of the pod in the sandbox `s0`: `name/attempt`, with its state: `created`, `running`, `exited N at SECONDS`.
pub(crate) fn container(of: &Pod, text: &str) -> Container {
    let (name, state) = text.split_once(' ').expect("a name and a state");
    let (name, attempt) = name.split_once('/').unwrap_or((name, "0"));
    let attempt: u32 = attempt.parse().expect("an attempt");
    let words: Vec<_> = state.split(' ').collect();
    let spec = pod::container(of, name).map(|(_, c)| c).unwrap_or_default();
    let exited = words[0] == "exited";
    let number = |index: usize| words.get(index).and_then(|w| w.parse::<i64>().ok());
    let exit_code = if exited { number(1).expect("an exit code") } else { 0 };
    Container {
        id: format!("{name}{attempt}"),
        pod: sandbox(0).pod,
        name: name.into(),
        attempt,
        sandbox_id: "s0".into(),
        state: match words[0] {
            "created" => ContainerState::Created,
            "running" => ContainerState::Running,
            "exited" => ContainerState::Exited,
            "unknown" => ContainerState::Unknown,
            other => panic!("no such state: {other}"),
        },
        created_at: at(attempt.into()),
        started_at: (words[0] != "created").then(|| at(attempt.into())),
        finished_at: exited.then(|| at(number(3).unwrap_or(i64::from(attempt) + 1))),
        exit_code: i32::try_from(exit_code).expect("an exit code"),
        reason: match (exited, exit_code) {
            (false, _) => String::new(),
            (true, 0) => "Completed".into(),
            (true, _) => "Error".into(),
        },
        message: String::new(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: String::new(),
        spec_hash: pod::spec_hash(&spec),
        ready: None,
        resources: Some(crate::security::resources(of, &spec, 0)),
    }
}

/// The state of a pod with the sandbox `s0` and these containers.
pub(crate) fn state(of: &Pod, containers: &[&str]) -> PodState {
    let mut state = PodState { sandboxes: vec![sandbox(0)], containers: containers.iter().map(|c| container(of, c)).collect() };
    state.sort();
    state
}
