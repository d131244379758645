//! `skiff down`, `skiff status` and `skiff kubeconfig`: what can be done about a cluster from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{Down, Named};
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

/// Prints a cluster's kubeconfig.
pub fn print_kubeconfig(args: &Named) -> anyhow::Result<()> {
    let path = path_of(args).join("kubeconfig");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cluster {} has never been up (no {})", args.name, path.display()))?;
    print!("{text}");
    Ok(())
}

/// A client by a kubeconfig.
pub async fn client(path: &Path) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.context("use the kubeconfig")?;
    Ok(Client::try_from(config)?)
}

/// The certificate (PEM) of the authority that a kubeconfig's current cluster is known by, where it has one.
pub fn authority(path: &Path) -> anyhow::Result<Option<String>> {
    let config = kubeconfig::read(path)?;
    let named = |list: &str, name: &str| config[list].as_array().into_iter().flatten().find(|e| e["name"] == name).cloned();
    let context = config["current-context"].as_str().and_then(|name| named("contexts", name)).unwrap_or_default();
    let cluster = context["context"]["cluster"].as_str().and_then(|name| named("clusters", name)).unwrap_or_default();
    if let Some(data) = cluster["cluster"]["certificate-authority-data"].as_str() {
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).context("read the kubeconfig's authority")?;
        return Ok(Some(String::from_utf8(bytes).context("read the kubeconfig's authority")?));
    }
    let file = cluster["cluster"]["certificate-authority"].as_str();
    file.map(|file| std::fs::read_to_string(file).with_context(|| format!("read {file}"))).transpose()
}
