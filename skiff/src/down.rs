//! `skiff down`, `skiff status` and `skiff kubeconfig`: what can be done about a cluster from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff_apiserver::auth::User;

use crate::cli::{Component, Down, KubeconfigOf, Named};
use crate::up::DOCKER_SOCKET;
use crate::{cluster, data_dir, kubeconfig};

/// How long a cluster is given to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the lock is looked at: there is nothing to wait on in a process that isn't our child.
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn path_of(named: &Named) -> PathBuf {
    named.data_dir.clone().unwrap_or_else(|| data_dir::default_path(&named.name))
}

/// Stops a cluster, its pods, and with `--purge` removes its files. A cluster that isn't there is stopped already.
pub async fn down(args: Down) -> anyhow::Result<()> {
    let path = path_of(&args.named);
    let name = &args.named.name;
    match data_dir::holder(&path) {
        None => println!("cluster {name} isn't up"),
        Some(pid) => {
            kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("stop process {pid}"))?;
            let gone = async {
                while data_dir::holder(&path).is_some() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            if tokio::time::timeout(STOP_TIMEOUT, gone).await.is_err() {
                bail!("process {pid} doesn't end: look into {}", path.join("skiff.log").display());
            }
            println!("cluster {name} stopped");
        }
    }
    // A cluster that was killed left its rules behind; without the privilege there were none.
    if skiff_proxy::available().await.is_ok() {
        skiff_proxy::remove(name).await.context("remove the rules of the cluster's services")?;
    }
    let socket = Path::new(DOCKER_SOCKET);
    if skiff_kubelet::runtime::docker::available(socket).await {
        let removed = skiff_kubelet::runtime::docker::remove_cluster(socket, name).await.context("remove the containers of the cluster")?;
        if removed > 0 {
            println!("{removed} containers removed");
        }
    }
    if args.purge {
        forget(name)?;
        match std::fs::remove_dir_all(&path) {
            Ok(()) => println!("{} removed", path.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }
    Ok(())
}

/// Takes the cluster out of the kubeconfig that kubectl reads.
fn forget(name: &str) -> anyhow::Result<()> {
    if let Some(path) = kubeconfig::default_path()
        && let Some(left) = kubeconfig::remove(kubeconfig::read(&path)?, name)
    {
        kubeconfig::write(&path, &left)?;
    }
    Ok(())
}

/// Tells how a cluster is. An error when it isn't up.
pub async fn status(args: Named) -> anyhow::Result<()> {
    let path = path_of(&args);
    let Some(pid) = data_dir::holder(&path) else { bail!("cluster {} isn't up: start it with `skiff up`", args.name) };
    let client = client(&path.join("kubeconfig")).await?;
    let version = client.apiserver_version().await.context("ask the API server for its version")?;
    println!("cluster {} is up: process {pid}, {}, files in {}", args.name, version.git_version, path.display());
    let nodes = Api::<Node>::all(client.clone()).list(&Default::default()).await.context("list the nodes")?;
    let ready = nodes.iter().filter(|n| cluster::is_ready(n)).count();
    let pods = Api::<Pod>::all(client).list(&Default::default()).await.context("list the pods")?;
    let phase = |phase: &str| pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).count();
    println!("{ready} of {} nodes ready, {} pods: {} running, {} pending", nodes.items.len(), pods.items.len(), phase("Running"), phase("Pending"));
    Ok(())
}

/// How long a kubeconfig lets machines become nodes: upstream's bootstrap tokens last a day.
const BOOTSTRAP_SECONDS: i64 = 86_400;
/// How long a component's certificate lasts: ten years, as the authority's own.
const COMPONENT_SECONDS: i64 = 3_650 * 86_400;

/// Prints a cluster's kubeconfig: the administrator's, or a component's.
pub fn print_kubeconfig(args: &KubeconfigOf) -> anyhow::Result<()> {
    let path = path_of(&args.named);
    let own = path.join("kubeconfig");
    let text = std::fs::read_to_string(&own).with_context(|| format!("cluster {} has never been up (no {})", args.named.name, own.display()))?;
    if args.user == Component::Admin && args.server.is_none() {
        print!("{text}");
        return Ok(());
    }
    let known = kubeconfig::read(&own)?;
    let server = match &args.server {
        Some(server) => server.clone(),
        None => kubeconfig::current(&known).0["server"].as_str().context("the cluster's kubeconfig names no server: say --server")?.to_owned(),
    };
    let (user, seconds) = match args.user {
        Component::Admin => (User::new("kubernetes-admin", ["system:masters"]), COMPONENT_SECONDS),
        Component::Controllers => (User::new("system:kube-controller-manager", NO_GROUPS), COMPONENT_SECONDS),
        Component::Scheduler => (User::new("system:kube-scheduler", NO_GROUPS), COMPONENT_SECONDS),
        Component::Proxy => (User::new("system:kube-proxy", NO_GROUPS), COMPONENT_SECONDS),
        Component::Dns => (User::new("system:serviceaccount:kube-system:coredns", ["system:serviceaccounts"]), COMPONENT_SECONDS),
        Component::Kubelet => (User::new("system:bootstrap:skiff", ["system:bootstrappers"]), BOOTSTRAP_SECONDS),
    };
    // A certificate holds one group, and who shows one is authenticated anyhow.
    let user = User { groups: user.groups.into_iter().filter(|g| g != "system:authenticated").collect(), ..user };
    let authority = data_dir::authority(&path)?;
    let pair = authority.client_lasting(&user, seconds)?;
    print!("{}", kubeconfig::yaml(&kubeconfig::make(&args.named.name, &server, &authority.pair.certificate, &pair))?);
    Ok(())
}

const NO_GROUPS: [&str; 0] = [];

/// A client by a kubeconfig.
pub async fn client(path: &Path) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.context("use the kubeconfig")?;
    Ok(Client::try_from(config)?)
}

/// The certificate (PEM) of the authority that a kubeconfig's current cluster is known by, where it has one.
pub fn authority(path: &Path) -> anyhow::Result<Option<String>> {
    let (cluster, _) = kubeconfig::current(&kubeconfig::read(path)?);
    Ok(kubeconfig::pem(path, &cluster, "certificate-authority")?)
}
