//! Each component alone, against the API server of a kubeconfig.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use kube::Client;
use skiff_apiserver::auth::User;
use skiff_apiserver::dial::Unreachable;
use skiff_apiserver::http::serve;
use skiff_apiserver::{Config, Server};
use skiff_kubelet::Runtime;
use skiff_kubelet::runtime::docker::{self, Docker};
use skiff_kubelet::runtime::simulated::Simulated;
use tokio_util::sync::CancellationToken;

use crate::cli::{ApiServer, Controllers, Dns, Kubelet, Proxy, Remote, RuntimeChoice};
use crate::cluster::{BUILD, SIMULATED_NODE, VERSION};
use crate::data_dir::{self, DataDir};
use crate::up::{self, DOCKER_SOCKET, Opened};
use crate::{down, kubeconfig};

/// Cancelled when the process is asked to end.
fn until_terminated() -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            up::terminated().await;
            stop.cancel();
        }
    });
    stop
}

fn kubeconfig_path(remote: &Remote) -> anyhow::Result<PathBuf> {
    remote.kubeconfig.clone().or_else(kubeconfig::default_path).context("no kubeconfig: say --kubeconfig")
}

async fn client(remote: &Remote) -> anyhow::Result<Client> {
    let path = kubeconfig_path(remote)?;
    let client = down::client(&path).await?;
    client.apiserver_version().await.with_context(|| format!("reach the API server of {}", path.display()))?;
    Ok(client)
}

fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("ask for this machine's name")?;
    name.into_string().ok().map(|n| n.to_lowercase()).context("this machine's name is no text: say --node")
}

/// `skiff apiserver`
pub async fn apiserver(args: ApiServer) -> anyhow::Result<()> {
    let stop = until_terminated();
    let dir = DataDir::take(&args.named.data_dir.clone().unwrap_or_else(|| data_dir::default_path(&args.named.name)))?;
    let (authority, signing_key) = dir.keys()?;
    let listener = up::bind(args.listen).await?;
    let opened = Opened::open(&args.store, &dir).await?;
    let ip = if args.listen.ip().is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { args.listen.ip() };
    let config = Config {
        store: opened.store.clone(),
        authority: authority.clone(),
        signing_key,
        service_cidr: args.service_cidr.to_string(),
        advertise: (ip, args.listen.port()),
        dialer: Arc::new(Unreachable),
        build: BUILD.into(),
    };
    let server = Server::start(config, stop.clone()).await?;
    let mut addresses = vec![ip, args.service_cidr.nth(1).into()];
    addresses.push(std::net::Ipv4Addr::LOCALHOST.into());
    addresses.dedup();
    let tls = serve::tls(&up::server_certificate(&authority, &addresses)?, &authority.pair.certificate)?;
    let admin = authority.client(&User { name: "kubernetes-admin".into(), groups: vec!["system:masters".into()], ..User::default() })?;
    let url = format!("https://{ip}:{}", args.listen.port());
    let path = dir.join("kubeconfig");
    kubeconfig::write(&path, &kubeconfig::make(&args.named.name, &url, &authority.pair.certificate, &admin))?;
    println!("API server at {url}, kubeconfig {}", path.display());
    serve::serve(server, listener, tls, stop).await;
    opened.close().await;
    Ok(())
}

/// `skiff controllers`
pub async fn controllers(args: Controllers) -> anyhow::Result<()> {
    let client = client(&args.remote).await?;
    let config = skiff_controllers::Config {
        root_ca: down::authority(&kubeconfig_path(&args.remote)?)?,
        pod_cidrs: vec![args.pod_cidr.to_string()],
        ..skiff_controllers::Config::default()
    };
    println!("controllers run");
    Ok(skiff_controllers::run(config, client, until_terminated()).await?)
}

/// `skiff scheduler`
pub async fn scheduler(args: Remote) -> anyhow::Result<()> {
    let client = client(&args).await?;
    println!("the scheduler runs");
    Ok(skiff_scheduler::run(Default::default(), client, until_terminated()).await?)
}

/// `skiff kubelet`
pub async fn kubelet(args: Kubelet) -> anyhow::Result<()> {
    let client = client(&args.remote).await?;
    let node = match args.node {
        Some(node) => node,
        None => hostname()?,
    };
    let socket = PathBuf::from(DOCKER_SOCKET);
    let answers = args.runtime != RuntimeChoice::Simulated && docker::available(&socket).await;
    let gateway = args.pod_cidr.nth(1);
    let (runtime, ip): (Arc<dyn Runtime>, std::net::IpAddr) = match (args.runtime, answers) {
        (_, true) => {
            let cluster_cidr = args.pod_cidr.to_string();
            docker::prepare_network(&socket, &args.cluster, &cluster_cidr).await?;
            let options = docker::Options { socket, cluster: args.cluster.clone(), node: node.clone(), cluster_cidr };
            (Arc::new(Docker::connect(options).await?), gateway.into())
        }
        (RuntimeChoice::Docker, false) => bail!("Docker doesn't answer at {DOCKER_SOCKET}: start it, or use --runtime simulated"),
        _ => (Arc::new(Simulated::new(SIMULATED_NODE)), std::net::Ipv4Addr::LOCALHOST.into()),
    };
    let dir = args.data_dir.unwrap_or_else(|| data_dir::default_path(&args.cluster).join("nodes").join(&node));
    let mut config = skiff_kubelet::Config::new(&node, &args.cluster, dir, ip);
    config.cluster_cidr = args.pod_cidr.to_string();
    config.kube_version = VERSION.into();
    println!("node {node} runs");
    Ok(skiff_kubelet::run(config, client, runtime, until_terminated()).await?)
}

/// `skiff proxy`
pub async fn proxy(args: Proxy) -> anyhow::Result<()> {
    skiff_proxy::available().await?;
    let client = client(&args.remote).await?;
    let node_name = match args.node {
        Some(node) => node,
        None => hostname()?,
    };
    println!("the service proxy of node {node_name} runs");
    let config = skiff_proxy::Config { node_name, cluster: "default".into(), pod_cidr: args.pod_cidr.to_string() };
    Ok(skiff_proxy::run(config, client, until_terminated()).await?)
}

/// `skiff dns`
pub async fn dns(args: Dns) -> anyhow::Result<()> {
    let client = client(&args.remote).await?;
    println!("DNS at {}", args.listen);
    let config = skiff_dns::Config { listen: args.listen, domain: args.domain, upstream: Vec::new() };
    Ok(skiff_dns::run(config, client, until_terminated()).await?)
}
