//! From a pod's spec to what the runtime is to make.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::Context;
use crate::plan::Start;
use crate::pod;
use crate::runtime::{ContainerConfig, ContainerKind, Image, Resources, Sandbox, SandboxConfig, Security};

/// What keeps a container from being made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {}

/// What a pod's sandbox is made of.
pub(crate) fn sandbox_config(pod: &Pod, attempt: u32, ip: Option<IpAddr>) -> SandboxConfig {
    let host_network = pod::host_network(pod);
    SandboxConfig {
        pod: pod::pod_ref(pod),
        attempt,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        ip,
        host_network,
        ..SandboxConfig::default()
    }
}

/// What a container is made of.
pub(crate) async fn container_config(
    _ctx: &Context,
    pod: &Pod,
    _sandbox: &Sandbox,
    spec: &Container,
    step: &Start,
    _image: &Image,
    target: Option<String>,
) -> Result<ContainerConfig, Error> {
    Ok(ContainerConfig {
        pod: pod::pod_ref(pod),
        name: spec.name.clone(),
        kind: step.kind,
        attempt: step.attempt,
        spec_hash: pod::spec_hash(spec),
        image: spec.image.clone().unwrap_or_default(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: String::new(),
        mounts: Vec::new(),
        resources: Resources::default(),
        security: Security::default(),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        target,
        share_pid: false,
        host_pid: false,
        stop_signal: String::new(),
        may_end: step.kind == ContainerKind::Init || pod::restart_policy(pod) != "Always",
        termination_message: None,
    })
}

/// Whether the pod has files on the node.
pub(crate) fn has_files(_ctx: &Context, _pod: &Pod) -> bool {
    false
}

/// Removes the pod's files.
pub(crate) async fn remove_files(_ctx: &Context, _pod: &Pod) -> std::io::Result<()> {
    Ok(())
}
