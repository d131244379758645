//! From a pod's spec to what the runtime is to make.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::{fs, io};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::Context;
use crate::env::{self, About, Contents};
use crate::node::capacity;
use crate::objects::references;
use crate::plan::Start;
use crate::resolv::{self, ClusterDns, Resolver};
use crate::runtime::{
    ContainerConfig, ContainerKind, Image, Mount, PortMapping, Propagation, Reality, Resources, Sandbox, SandboxConfig, Security,
    TerminationMessage,
};
use crate::security::{self, resources};
use crate::{pod, volumes};

/// What keeps a container from being made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Env(#[from] env::Error),
    #[error(transparent)]
    Security(#[from] security::Error),
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    #[error("write the container's files: {0}")]
    Files(#[from] io::Error),
    #[error("services have not yet been read at least once, cannot construct envvars")]
    Services,
}

/// What a pod's sandbox is made of.
pub(crate) fn sandbox_config(ctx: &Context, pod: &Pod, attempt: u32, ip: Option<IpAddr>) -> SandboxConfig {
    let spec = pod::spec(pod);
    let yes = |value: Option<bool>| value.unwrap_or(false);
    let host_network = pod::host_network(pod);
    let (hostname, domain) = resolv::hostname(pod, &ctx.config.cluster_domain);
    let full = spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false) && !domain.is_empty();
    let ports = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)).chain(pod::containers(pod)).flat_map(|c| c.ports.iter().flatten());
    let mapping = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(PortMapping {
            host_ip: port.host_ip.clone().filter(|ip| !ip.is_empty()),
            host_port: u16::try_from(port.host_port.filter(|p| *p > 0)?).ok()?,
            container_port: u16::try_from(port.container_port).ok()?,
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        })
    };
    let sysctls = spec.and_then(|s| s.security_context.as_ref()).and_then(|c| c.sysctls.as_deref()).unwrap_or_default();
    SandboxConfig {
        pod: pod::pod_ref(pod),
        attempt,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        hostname: if full { format!("{hostname}.{domain}") } else { hostname },
        ip,
        host_network,
        host_pid: yes(spec.and_then(|s| s.host_pid)),
        host_ipc: yes(spec.and_then(|s| s.host_ipc)),
        share_pid: yes(spec.and_then(|s| s.share_process_namespace)),
        // On the host's network, ports are the host's already.
        ports: if host_network { Vec::new() } else { ports.filter_map(mapping).collect() },
        // Slashes are another way to write the dots.
        sysctls: sysctls.iter().map(|s| (s.name.replace('/', "."), s.value.clone())).collect(),
    }
}

/// What the objects hold that a pod names.
pub(crate) async fn contents(ctx: &Context, pod: &Pod) -> Contents {
    let mut contents = Contents::new();
    for key in references(pod) {
        let content = ctx.objects.get(&key).await;
        contents.insert(key, content);
    }
    contents
}

/// What a pod can be told about itself.
pub(crate) fn about<'a>(ctx: &Context, pod: &'a Pod, pod_ip: &str, contents: &'a Contents) -> About<'a> {
    let host_ip = ctx.config.node_ip.to_string();
    let pod_ip = if pod::host_network(pod) { host_ip.clone() } else { pod_ip.to_owned() };
    let node = capacity(ctx);
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    About { pod, pod_ip, host_ip, node: (number(node.cpu_milli), number(node.memory)), contents }
}

/// What a container is made of.
pub(crate) async fn container_config(
    ctx: &Context,
    pod: &Pod,
    sandbox: &Sandbox,
    spec: &Container,
    step: &Start,
    image: &Image,
    target: Option<String>,
) -> Result<ContainerConfig, Error> {
    let mut config = ContainerConfig {
        pod: pod::pod_ref(pod),
        name: spec.name.clone(),
        kind: step.kind,
        attempt: step.attempt,
        spec_hash: pod::spec_hash(spec),
        image: spec.image.clone().unwrap_or_default(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        mounts: Vec::new(),
        resources: Resources::default(),
        security: Security::default(),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        target,
        share_pid: pod::spec(pod).and_then(|s| s.share_process_namespace).unwrap_or(false),
        host_pid: pod::spec(pod).and_then(|s| s.host_pid).unwrap_or(false),
        stop_signal: spec.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()).unwrap_or_default(),
        may_end: step.kind == ContainerKind::Init || pod::restart_policy(pod) != "Always",
        termination_message: None,
    };
    if ctx.runtime.reality() == Reality::Simulated {
        return Ok(config);
    }
    let ip = sandbox.ip.map(|ip| ip.to_string()).unwrap_or_default();
    let contents = contents(ctx, pod).await;
    let about = about(ctx, pod, &ip, &contents);
    let links = pod::spec(pod).and_then(|s| s.enable_service_links).unwrap_or(true);
    let services = ctx.services().await.ok_or(Error::Services)?;
    let services = env::service_variables(services.iter().map(AsRef::as_ref), pod::namespace(pod), links);
    let vars = env::variables(&about, spec, &services)?;
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| env::expand(text, |name| vars.get(name).map(String::as_str))).collect()
    };
    config.command = expanded(&spec.command);
    config.args = expanded(&spec.args);
    config.security = security::security(pod, spec, &image.user)?;
    config.resources = resources(pod, spec, capacity(ctx).memory);
    config.mounts = volumes::mounts(&ctx.config.data_dir, pod, spec, &vars)?;
    add_own_files(ctx, pod, spec, &ip, &mut config)?;
    config.env = environment(pod, ctx, vars);
    Ok(config)
}

/// The variables, and the host's name first, as upstream's runtimes have it.
fn environment(pod: &Pod, ctx: &Context, vars: BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut env: Vec<_> = Vec::with_capacity(vars.len() + 1);
    if !vars.contains_key("HOSTNAME") && !pod::host_network(pod) {
        env.push(("HOSTNAME".to_owned(), resolv::hostname(pod, &ctx.config.cluster_domain).0));
    }
    env.extend(vars);
    env
}

/// The files that every container has from the kubelet: its names, and the file for its last words.
fn add_own_files(ctx: &Context, pod: &Pod, spec: &Container, ip: &str, config: &mut ContainerConfig) -> io::Result<()> {
    let dir = volumes::pod_dir(&ctx.config.data_dir, pod::uid(pod));
    fs::create_dir_all(&dir)?;
    let taken: Vec<String> = config.mounts.iter().map(|m| m.target.trim_end_matches('/').to_owned()).collect();
    let mut add = |source: PathBuf, target: &str| {
        if !taken.iter().any(|t| t == target) {
            config.mounts.push(Mount { source, target: target.into(), read_only: false, propagation: Propagation::Private });
        }
    };

    let aliases = pod::spec(pod).and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    let hosts = if pod::host_network(pod) {
        resolv::host_network_hosts(&fs::read_to_string("/etc/hosts")?, aliases)
    } else {
        let (hostname, domain) = resolv::hostname(pod, &ctx.config.cluster_domain);
        resolv::hosts(ip, &hostname, &domain, aliases)
    };
    let file = dir.join("etc-hosts");
    write_if_changed(&file, &hosts)?;
    add(file, "/etc/hosts");

    // A node without a resolver of its own has an empty one.
    let of_node = Resolver::parse(&fs::read_to_string(&ctx.config.resolv_conf).unwrap_or_default());
    let cluster = ClusterDns { server: ctx.config.cluster_dns, domain: &ctx.config.cluster_domain };
    let file = dir.join("resolv.conf");
    write_if_changed(&file, &Resolver::of_pod(pod, &of_node, &cluster).text())?;
    add(file, "/etc/resolv.conf");

    let words = dir.join("containers").join(&spec.name);
    fs::create_dir_all(&words)?;
    let words = words.join(format!("{:08x}", config.attempt));
    fs::write(&words, "")?;
    // The container's user is its own affair, so anybody may write there.
    fs::set_permissions(&words, fs::Permissions::from_mode(0o666))?;
    add(words.clone(), spec.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log"));
    let fallback_to_logs = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    config.termination_message = Some(TerminationMessage { file: words, fallback_to_logs });
    Ok(())
}

/// Containers that run see the file itself, so it isn't replaced.
fn write_if_changed(file: &PathBuf, text: &str) -> io::Result<()> {
    if fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644))
}

/// Whether the pod has files on the node.
pub(crate) fn has_files(ctx: &Context, pod: &Pod) -> bool {
    ctx.runtime.reality() == Reality::Real && volumes::pod_dir(&ctx.config.data_dir, pod::uid(pod)).exists()
}

/// Removes the pod's files.
pub(crate) fn remove_files(ctx: &Context, pod: &Pod) -> io::Result<()> {
    volumes::tear_down(&ctx.config.data_dir, pod::uid(pod))
}
