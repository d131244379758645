//! From what the kubelet wants to what Docker is asked for. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum as Spread, MountType, NetworkingConfig, PortBinding,
};

use super::super::{ContainerConfig, Propagation, Resources, SandboxConfig};
use super::names::Owner;

/// The grace of the kernel for a sandbox when memory is short: upstream's.
const SANDBOX_OOM_SCORE: i64 = -998;
/// How large a log file gets, and how many there are: upstream's `containerLogMaxSize` and `containerLogMaxFiles`.
const LOG_LIMITS: [(&str, &str); 2] = [("max-size", "10m"), ("max-file", "5")];

fn log_config() -> HostConfigLogConfig {
    let limits = LOG_LIMITS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    HostConfigLogConfig { typ: Some("json-file".into()), config: Some(limits) }
}

/// The lowest score that may be set, for it takes a privilege to go below zero.
pub fn oom_score(wanted: i64, may_lower: bool) -> i64 {
    if may_lower { wanted } else { wanted.max(0) }
}

/// The container that is a pod's sandbox.
pub fn sandbox(owner: &Owner, network: &str, image: &str, config: &SandboxConfig, may_lower: bool) -> ContainerCreateBody {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in &config.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let binding = PortBinding { host_ip: port.host_ip.clone(), host_port: Some(port.host_port.to_string()) };
        bindings.entry(key).or_default().get_or_insert_default().push(binding);
    }
    let exposed: Vec<String> = bindings.keys().cloned().collect();
    let endpoint = EndpointSettings {
        ipam_config: config.ip.map(|ip| EndpointIpamConfig { ipv4_address: Some(ip.to_string()), ..Default::default() }),
        ..EndpointSettings::default()
    };
    ContainerCreateBody {
        image: Some(image.into()),
        hostname: (!config.host_network && !config.hostname.is_empty()).then(|| config.hostname.clone()),
        labels: Some(owner.sandbox_labels(config)),
        exposed_ports: (!exposed.is_empty()).then_some(exposed),
        host_config: Some(HostConfig {
            network_mode: Some(if config.host_network { "host" } else { network }.into()),
            ipc_mode: Some(if config.host_ipc { "host" } else { "shareable" }.into()),
            pid_mode: config.host_pid.then(|| "host".into()),
            port_bindings: (!bindings.is_empty()).then_some(bindings),
            sysctls: (!config.sysctls.is_empty()).then(|| config.sysctls.clone().into_iter().collect()),
            // As little as there is: it only waits.
            cpu_shares: Some(2),
            oom_score_adj: Some(oom_score(SANDBOX_OOM_SCORE, may_lower)),
            security_opt: Some(vec!["no-new-privileges".into()]),
            log_config: Some(log_config()),
            ..HostConfig::default()
        }),
        networking_config: (!config.host_network)
            .then(|| NetworkingConfig { endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])) }),
        ..ContainerCreateBody::default()
    }
}

/// One of a pod's containers.
pub fn container(owner: &Owner, sandbox_id: &str, config: &ContainerConfig, may_lower: bool) -> ContainerCreateBody {
    let shared = || format!("container:{sandbox_id}");
    let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let security = &config.security;
    let mut options = Vec::new();
    if security.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    options.extend(security.seccomp.as_ref().map(|profile| format!("seccomp={profile}")));
    if security.unmasked_proc {
        options.push("systempaths=unconfined".to_owned());
    }
    let mounts = config.mounts.iter().map(|mount| Mount {
        target: Some(mount.target.clone()),
        source: Some(mount.source.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(match mount.propagation {
                Propagation::Private => Spread::RPRIVATE,
                Propagation::FromHost => Spread::RSLAVE,
                Propagation::Both => Spread::RSHARED,
            }),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    });
    let pid_mode = match (&config.target, config.host_pid, config.share_pid) {
        (Some(target), ..) => Some(format!("container:{target}")),
        (None, true, _) => Some("host".to_owned()),
        (None, false, true) => Some(shared()),
        (None, false, false) => None,
    };
    let resources = &config.resources;
    let positive = |n: i64| (n > 0).then_some(n);
    ContainerCreateBody {
        image: Some(config.image.clone()),
        user: text(&security.user),
        env: Some(config.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        // Given a command without arguments, the image's arguments don't count either.
        entrypoint: list(&config.command),
        cmd: list(&config.args).or_else(|| (!config.command.is_empty()).then(Vec::new)),
        working_dir: text(&config.working_dir),
        labels: Some(owner.container_labels(sandbox_id, config)),
        open_stdin: Some(config.stdin),
        stdin_once: Some(config.stdin_once),
        tty: Some(config.tty),
        stop_signal: text(&config.stop_signal),
        // The image's own checks aren't asked for: the pod's probes are.
        healthcheck: Some(bollard::models::HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        host_config: Some(HostConfig {
            network_mode: Some(shared()),
            ipc_mode: Some(shared()),
            pid_mode,
            mounts: Some(mounts.collect()),
            cpu_shares: positive(resources.cpu_shares),
            cpu_quota: positive(resources.cpu_quota),
            cpu_period: positive(resources.cpu_period),
            memory: positive(resources.memory),
            // No swap beyond the memory limit.
            memory_swap: positive(resources.memory),
            oom_score_adj: Some(oom_score(resources.oom_score_adj, may_lower)),
            privileged: Some(security.privileged),
            readonly_rootfs: Some(security.read_only_root),
            cap_add: list(&security.add_capabilities),
            cap_drop: list(&security.drop_capabilities),
            group_add: (!security.groups.is_empty()).then(|| security.groups.iter().map(ToString::to_string).collect()),
            security_opt: list(&options),
            log_config: Some(log_config()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The body of the request that gives a container other limits.
pub fn update(resources: &Resources) -> ContainerUpdateBody {
    let positive = |n: i64| (n > 0).then_some(n);
    ContainerUpdateBody {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota: positive(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period),
        memory: positive(resources.memory),
        memory_swap: positive(resources.memory),
        ..ContainerUpdateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{PodRef, PortMapping};
    use super::*;

    fn owner() -> Owner {
        Owner { cluster: "c".into(), node: "n".into() }
    }

    #[test]
    fn a_sandbox_has_its_address_and_ports() {
        let config = SandboxConfig {
            pod: PodRef { uid: "u".into(), namespace: "ns".into(), name: "p".into() },
            ip: Some([10, 244, 0, 2].into()),
            hostname: "p".into(),
            ports: vec![PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: "tcp".into() }],
            ..SandboxConfig::default()
        };
        let body = serde_json::to_value(sandbox(&owner(), "skiff-c", "pause:1", &config, false)).expect("JSON");
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"]["skiff-c"]["IPAMConfig"]["IPv4Address"], "10.244.0.2");
        assert_eq!(body["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"], "8080");
        assert_eq!(body["HostConfig"]["OomScoreAdj"], 0);
        assert_eq!(body["Labels"]["dev.skiff.cluster"], "c");
        let host = SandboxConfig { host_network: true, ..config };
        let body = serde_json::to_value(sandbox(&owner(), "skiff-c", "pause:1", &host, true)).expect("JSON");
        assert_eq!(body["HostConfig"]["NetworkMode"], "host");
        assert_eq!(body["HostConfig"]["OomScoreAdj"], -998);
        assert!(body["NetworkingConfig"].is_null() && body["Hostname"].is_null());
    }
}
