//! `skiff up`: a whole cluster in this process, or in one that stays behind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::{Authority, SigningKey};
use skiff_apiserver::http::serve;
use skiff_store::{Embedded, Etcd, Memory, Store};
use tokio::net::TcpListener;

use crate::cli::{RuntimeChoice, StoreChoice, Up};
use crate::cluster::{Cluster, Network, Nodes, Options};
use crate::data_dir::{self, DataDir};
use crate::kubeconfig;
use crate::report::Report;

/// Where Docker listens.
pub const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// The line by which the process that stays says that the cluster is up.
const READY: &str = "ready";

/// Brings a cluster up, and with `--detach` leaves it running behind.
pub async fn run(args: Up) -> anyhow::Result<()> {
    if args.detach {
        return detach(&args);
    }
    let mut report = match args.report_to_stdin {
        true => Report::new(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?)),
        false => Report::stdout(),
    };
    let result = foreground(&args, &mut report).await;
    if let (Err(error), true) = (&result, args.report_to_stdin) {
        report.line(&format!("skiff: {error:#}"));
    }
    result
}

/// The store as it was chosen, and what closes it.
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    embedded: Option<Arc<Embedded>>,
}

impl Opened {
    /// Opens the store.
    pub async fn open(choice: &StoreChoice, dir: &DataDir) -> anyhow::Result<Self> {
        Ok(match choice {
            StoreChoice::Memory => Self { store: Arc::new(Memory::new()), embedded: None },
            StoreChoice::Etcd(members) => Self { store: Arc::new(Etcd::connect(members).await?), embedded: None },
            StoreChoice::Embedded => {
                let path = dir.join("store.redb");
                let store = Arc::new(tokio::task::spawn_blocking(move || Embedded::open(path)).await??);
                Self { store: store.clone(), embedded: Some(store) }
            }
        })
    }

    /// Closes it.
    pub async fn close(self) {
        if let Some(store) = self.embedded {
            store.close().await;
        }
    }
}

/// This machine's IPv4 addresses, without those that lead nowhere else.
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|i| i.address?.as_sockaddr_in().map(|a| a.ip()));
    let mut own: Vec<IpAddr> = addresses.filter(|a| !a.is_loopback() && !a.is_link_local()).map(IpAddr::V4).collect();
    own.dedup();
    own
}

/// Takes an address for the API server.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listen on {address} (is another cluster up? choose another --listen)"))
}

/// The names and addresses that the API server's certificate is for.
pub fn server_certificate(authority: &Authority, addresses: &[IpAddr]) -> anyhow::Result<skiff_apiserver::auth::pki::Pair> {
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"].map(String::from).into();
    names.extend(nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()));
    names.dedup();
    Ok(authority.server("kube-apiserver", &names, addresses)?)
}

async fn choose_runtime(choice: RuntimeChoice, report: &mut Report) -> anyhow::Result<Option<PathBuf>> {
    let socket = PathBuf::from(DOCKER_SOCKET);
    let docker = choice != RuntimeChoice::Simulated && skiff_kubelet::runtime::docker::available(&socket).await;
    match (choice, docker) {
        (_, true) => Ok(Some(socket)),
        (RuntimeChoice::Docker, false) => bail!("Docker doesn't answer at {DOCKER_SOCKET}: start it, or use --runtime simulated"),
        (RuntimeChoice::Auto, false) => {
            report.line(&format!("            Docker doesn't answer at {DOCKER_SOCKET}: pods will be simulated, nothing runs in them"));
            Ok(None)
        }
        (RuntimeChoice::Simulated, false) => Ok(None),
    }
}

fn check(args: &Up) -> anyhow::Result<()> {
    args.options()?;
    if args.pod_cidr.overlaps(args.service_cidr) {
        bail!("--pod-cidr {} and --service-cidr {} overlap: choose ranges apart", args.pod_cidr, args.service_cidr);
    }
    if args.nodes > 0 && args.pod_cidr.node(u32::from(args.nodes) - 1).is_none() {
        bail!("--pod-cidr {} is too small for {} nodes, each of which takes a /24", args.pod_cidr, args.nodes);
    }
    Ok(())
}

async fn foreground(args: &Up, report: &mut Report) -> anyhow::Result<()> {
    check(args)?;
    let name = &args.named.name;
    let dir = DataDir::take(&data_dir_of(args))?;
    let (authority, signing_key) = dir.keys()?;
    let listener = bind(args.listen).await?;
    let docker = choose_runtime(args.runtime, report).await?;
    let opened = Opened::open(&args.store, &dir).await?;
    report.done(&format!("store opened ({})", shown(&args.store, dir.path())));
    let result = serve_cluster(args, report, &dir, (authority, signing_key), listener, docker, opened.store.clone()).await;
    opened.close().await;
    report.line(&format!("cluster {name} stopped"));
    result
}

fn shown(choice: &StoreChoice, dir: &Path) -> String {
    match choice {
        StoreChoice::Embedded => dir.display().to_string(),
        StoreChoice::Memory => "in memory: gone when this ends".into(),
        StoreChoice::Etcd(members) => format!("etcd at {}", members.join(", ")),
    }
}

fn data_dir_of(args: &Up) -> PathBuf {
    args.named.data_dir.clone().unwrap_or_else(|| data_dir::default_path(&args.named.name))
}

async fn serve_cluster(
    args: &Up,
    report: &mut Report,
    dir: &DataDir,
    keys: (Authority, SigningKey),
    listener: TcpListener,
    docker: Option<PathBuf>,
    store: Arc<dyn Store>,
) -> anyhow::Result<()> {
    let (authority, port) = (keys.0.clone(), args.listen.port());
    let real = docker.is_some();
    let nodes = match docker {
        Some(socket) => Nodes::Docker { socket },
        None => Nodes::Simulated,
    };
    let network = Network::prepare(&args.named.name, &nodes, args.pod_cidr, args.service_cidr, args.listen).await?;
    // Pods reach the API server at their gateway; clients where it was said.
    let inner = match network.gateway {
        Some(gateway) if !args.listen.ip().is_unspecified() => Some(bind(SocketAddr::new(gateway, port)).await?),
        _ => None,
    };
    let options = Options {
        name: args.named.name.clone(),
        store,
        nodes: args.nodes.into(),
        kind: nodes,
        data_dir: Some(dir.join("nodes")),
        network,
        keys: Some(keys),
        apiserver: args.options()?,
        control: true,
    };
    let mut addresses = options.network.certificate_addresses(args.listen.ip());
    if args.listen.ip().is_unspecified() {
        addresses.extend(own_addresses());
    }
    let cluster = Cluster::with(options).await?;
    let tls = serve::tls(&server_certificate(&authority, &addresses)?, &cluster.server().client_authorities())?;
    for listener in std::iter::once(listener).chain(inner) {
        cluster.spawn(serve::serve(cluster.server().clone(), listener, tls.clone(), cluster.stopping().clone()));
    }
    let host = if args.listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { args.listen.ip().to_string() };
    report.done(&format!("API server at https://{host}:{port}"));
    write_kubeconfig(args, dir, &authority, &format!("https://{host}:{port}"), report)?;
    tokio::select! {
        ready = cluster.nodes_ready(args.wait) => ready?,
        () = terminated() => return stop(cluster).await,
    }
    let how = if real { "Docker" } else { "simulated" };
    report.done(&format!("{} node{} ready ({how})", args.nodes, if args.nodes == 1 { "" } else { "s" }));
    if args.report_to_stdin {
        report.line(READY);
    } else {
        report.line("The cluster is up. Try: kubectl get nodes          (Ctrl-C stops it)");
    }
    terminated().await;
    stop(cluster).await
}

async fn stop(cluster: Cluster) -> anyhow::Result<()> {
    cluster.stop().await;
    Ok(())
}

fn write_kubeconfig(args: &Up, dir: &DataDir, authority: &Authority, url: &str, report: &mut Report) -> anyhow::Result<()> {
    let admin = authority.client(&User { name: "kubernetes-admin".into(), groups: vec!["system:masters".into()], ..User::default() })?;
    let own = kubeconfig::make(&args.named.name, url, &authority.pair.certificate, &admin);
    kubeconfig::write(&dir.join("kubeconfig"), &own)?;
    let target = match (&args.kubeconfig, args.no_merge) {
        (Some(path), _) => Some(path.clone()),
        (None, true) => None,
        (None, false) => kubeconfig::default_path(),
    };
    if let Some(path) = target {
        kubeconfig::write(&path, &kubeconfig::merge(kubeconfig::read(&path)?, &own))?;
        report.done(&format!("kubeconfig {}, context {}", path.display(), kubeconfig::context(&args.named.name)));
    }
    Ok(())
}

/// Resolves when the process is asked to end.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
        tracing::error!("signals can't be heard: end this process by its id");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Starts the process that stays, and shows its progress until the cluster is up.
fn detach(args: &Up) -> anyhow::Result<()> {
    let path = data_dir_of(args);
    check(args)?;
    std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    let log_path = path.join("skiff.log");
    let log = File::options().create(true).append(true).open(&log_path).with_context(|| format!("open {}", log_path.display()))?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut rest: Vec<String> = std::env::args().skip(1).filter(|a| a != "--detach" && a != "-d").collect();
    rest.push("--report-to-stdin".into());
    let mut child = Command::new(std::env::current_exe()?)
        .args(rest)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("start the process that stays")?;
    for line in BufReader::new(ours).lines() {
        match line {
            Ok(line) if line == READY => {
                println!("The cluster is up, and stays (log: {}). Try: kubectl get nodes", log_path.display());
                return Ok(());
            }
            Ok(line) if line.starts_with("skiff: ") => eprintln!("{line}"),
            Ok(line) => println!("{line}"),
            Err(error) => bail!("lost the process that was to stay: {error}"),
        }
    }
    let status = child.wait()?;
    std::process::exit(status.code().unwrap_or(1));
}

