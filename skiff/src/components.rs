//! Each component alone, against the API server of a kubeconfig.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use skiff_apiserver::auth::User;
use skiff_apiserver::http::serve;
use skiff_apiserver::{Config, Server};
use skiff_controllers::Accounts;
use skiff_kubelet::runtime::docker::{self, Docker};
use skiff_kubelet::runtime::simulated::Simulated;
use skiff_kubelet::{Listen, Runtime};
use tokio_util::sync::CancellationToken;

use crate::cli::{ApiServer, Controllers, Dns, Kubelet, Proxy, Remote, RuntimeChoice};
use crate::cluster::{BUILD, SIMULATED_NODE, VERSION};
use crate::data_dir::{self, DataDir};
use crate::dialer::TlsDialer;
use crate::up::{self, DOCKER_SOCKET, Opened};
use crate::{down, join, kubeconfig, leader};

/// Where kubelets listen, unless somebody else does; upstream's port.
const KUBELET_PORT: u16 = 10_250;

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
    join::reach(&kubeconfig_path(remote)?).await
}

/// This machine's name, as nodes have them.
pub fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("ask for this machine's name")?;
    name.into_string().ok().map(|n| n.to_lowercase()).context("this machine's name is no text: say --node-name")
}

/// `skiff apiserver`
pub async fn apiserver(args: ApiServer) -> anyhow::Result<()> {
    let stop = until_terminated();
    let dir = DataDir::take(&args.named.data_dir.clone().unwrap_or_else(|| data_dir::default_path(&args.named.name)))?;
    let (authority, signing_key) = dir.keys()?;
    let listener = up::bind(args.listen).await?;
    let opened = Opened::open(&args.store, &dir).await?;
    let own = up::own_addresses();
    let everywhere = args.listen.ip().is_unspecified();
    let ip = if everywhere { own.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into()) } else { args.listen.ip() };
    let config = Config {
        store: opened.store.clone(),
        authority: authority.clone(),
        signing_key,
        service_cidr: args.service_cidr.to_string(),
        advertise: (ip, args.listen.port()),
        dialer: Arc::new(TlsDialer::new(&authority)?),
        options: args.options,
        build: BUILD.into(),
    };
    let server = Server::start(config, stop.clone()).await?;
    let mut addresses = vec![ip, args.service_cidr.nth(1).into(), Ipv4Addr::LOCALHOST.into()];
    if everywhere {
        addresses.extend(own);
    }
    addresses.sort_unstable();
    addresses.dedup();
    let tls = serve::tls(&up::server_certificate(&authority, &addresses)?, &server.client_authorities())?;
    let admin = authority.client(&User { name: "kubernetes-admin".into(), groups: vec!["system:masters".into()], ..User::default() })?;
    let url = format!("https://{ip}:{}", args.listen.port());
    let path = dir.join("kubeconfig");
    kubeconfig::write(&path, &kubeconfig::make(&args.named.name, &url, &authority.pair.certificate, &admin))?;
    println!("API server at {url}, kubeconfig {}", path.display());
    serve::serve(server, listener, tls, stop).await;
    opened.close().await;
    Ok(())
}

/// Clients for the controllers' service accounts. The kubeconfig's user must be one who may act as them: in clusters of ours
/// the role of `system:kube-controller-manager` says so, and an administrator may anywhere.
async fn accounts(client: &Client, path: &Path) -> anyhow::Result<Accounts> {
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(ResourceAttributes {
            verb: Some("impersonate".into()),
            resource: Some("serviceaccounts".into()),
            namespace: Some("kube-system".into()),
            ..ResourceAttributes::default()
        }),
        ..SelfSubjectAccessReviewSpec::default()
    };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.context("ask what the controllers may do")?;
    if !answer.status.is_some_and(|status| status.allowed) {
        bail!("the user of {} may not act for controllers: use a kubeconfig of `skiff kubeconfig --user controllers`", path.display());
    }
    let config = ClientConfig::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?;
    let client = client.clone();
    Ok(Arc::new(move |name| {
        let mut config = config.clone();
        config.auth_info.impersonate = Some(format!("system:serviceaccount:kube-system:{name}"));
        Client::try_from(config).unwrap_or_else(|error| {
            tracing::error!(%error, account = name, "a client could not be made, the controller acts as the kubeconfig's user");
            client.clone()
        })
    }))
}

/// `skiff controllers`
pub async fn controllers(args: Controllers) -> anyhow::Result<()> {
    let stop = until_terminated();
    let client = client(&args.remote).await?;
    let path = kubeconfig_path(&args.remote)?;
    let config = skiff_controllers::Config {
        root_ca: down::authority(&path)?,
        pod_cidrs: vec![args.pod_cidr.to_string()],
        ..skiff_controllers::Config::default()
    };
    let accounts = accounts(&client, &path).await?;
    leader::lead(&client, "kube-controller-manager", &stop, |stop| {
        println!("controllers run");
        let client = client.clone();
        async move { Ok(skiff_controllers::run(config, client, accounts, stop).await?) }
    })
    .await
}

/// `skiff scheduler`
pub async fn scheduler(args: Remote) -> anyhow::Result<()> {
    let stop = until_terminated();
    let client = client(&args).await?;
    leader::lead(&client, "kube-scheduler", &stop, |stop| {
        println!("the scheduler runs");
        let client = client.clone();
        async move { Ok(skiff_scheduler::run(Default::default(), client, stop).await?) }
    })
    .await
}

/// The address by which this machine reaches the server.
async fn address_towards(server: &str) -> anyhow::Result<IpAddr> {
    let uri: http::Uri = server.parse().with_context(|| format!("read the API server's address {server:?}"))?;
    let host = uri.host().unwrap_or("").trim_matches(['[', ']']);
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // Sends nothing: the kernel only chooses the way.
    socket.connect((host, uri.port_u16().unwrap_or(443))).await.with_context(|| format!("find the way to {server}: say --node-ip"))?;
    Ok(socket.local_addr()?.ip())
}

/// `skiff kubelet`
pub async fn kubelet(args: Kubelet) -> anyhow::Result<()> {
    let stop = until_terminated();
    let given = kubeconfig_path(&args.remote)?;
    let node = match args.node_name {
        Some(node) => node,
        None => hostname()?,
    };
    let dir = args.data_dir.unwrap_or_else(|| data_dir::default_path(&args.cluster).join("nodes").join(&node));
    let pki = dir.join("pki");
    let socket = PathBuf::from(DOCKER_SOCKET);
    let answers = args.runtime != RuntimeChoice::Simulated && docker::available(&socket).await;
    if args.runtime == RuntimeChoice::Docker && !answers {
        bail!("Docker doesn't answer at {DOCKER_SOCKET}: start it, or use --runtime simulated");
    }
    let mut identity = join::identity(&given, &node, &pki).await?;
    let towards = match args.node_ip {
        Some(ip) => ip,
        None => address_towards(&identity.server).await?,
    };
    let (runtime, ip): (Arc<dyn Runtime>, IpAddr) = if answers {
        let cluster_cidr = args.pod_cidr.to_string();
        docker::prepare_network(&socket, &args.cluster, &cluster_cidr).await?;
        let options = docker::Options { socket, cluster: args.cluster.clone(), node: node.clone(), cluster_cidr };
        // Pods of this machine don't reach its loopback address, but their gateway.
        let ip = if towards.is_loopback() { args.pod_cidr.nth(1).into() } else { towards };
        (Arc::new(Docker::connect(options).await?), ip)
    } else {
        (Arc::new(Simulated::new(SIMULATED_NODE)), towards)
    };
    let mut config = skiff_kubelet::Config::new(&node, &args.cluster, dir, ip);
    config.cluster_cidr = args.pod_cidr.to_string();
    config.cluster_dns = args.cluster_dns;
    config.kube_version = VERSION.into();
    println!("node {node} runs ({})", if answers { "Docker" } else { "simulated" });
    // A kubelet takes up again what another left: one whose certificate runs out is followed by one with a new one.
    loop {
        let served = Arc::new(join::Served::default());
        config.listen = Some(Listen { address: SocketAddr::new(ip, KUBELET_PORT), tls: served.tls(&identity.authority)? });
        let round = stop.child_token();
        let due = identity.renew_in.unwrap_or(Duration::MAX);
        let renewal = async {
            tokio::time::sleep(due).await;
            round.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = skiff_kubelet::run(config.clone(), identity.client.clone(), runtime.clone(), round.clone()) => ended?,
            () = served.follow(&identity.client, &node, &pki) => {}
            () = renewal => {}
        }
        if stop.is_cancelled() {
            return Ok(());
        }
        identity = join::identity(&given, &node, &pki).await?;
    }
}

/// `skiff proxy`
pub async fn proxy(args: Proxy) -> anyhow::Result<()> {
    let stop = until_terminated();
    skiff_proxy::available().await?;
    let client = client(&args.remote).await?;
    let node_name = match args.node_name {
        Some(node) => node,
        None => hostname()?,
    };
    println!("the service proxy of node {node_name} runs");
    let config = skiff_proxy::Config { node_name, cluster: args.cluster, pod_cidr: args.pod_cidr.to_string() };
    Ok(skiff_proxy::run(config, client, stop).await?)
}

/// `skiff dns`
pub async fn dns(args: Dns) -> anyhow::Result<()> {
    let stop = until_terminated();
    let client = client(&args.remote).await?;
    println!("DNS at {}", args.listen);
    let config = skiff_dns::Config { listen: args.listen, domain: args.domain, upstream: Vec::new() };
    Ok(skiff_dns::run(config, client, stop).await?)
}
