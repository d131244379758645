//! The command line, as it is typed. What it means is worked out in [`crate::up`] and its neighbours.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use skiff_apiserver::options::Options;

/// Kubernetes in one small binary.
#[derive(Debug, Parser)]
#[command(name = "skiff", version = crate::cluster::VERSION, about, long_about = None, propagate_version = true)]
pub struct Cli {
    /// How log lines are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line, as Kubernetes' components write them.
    Json,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster: API server, controllers, scheduler, nodes, service proxy and DNS, in one process.
    Up(Up),
    /// Stop a cluster and its pods. What it stored stays, unless --purge.
    Down(Down),
    /// Tell whether a cluster runs, and how its nodes are.
    Status(Named),
    /// Print a cluster's kubeconfig: the administrator's, or one for a component that runs alone.
    Kubeconfig(KubeconfigOf),
    /// Print the version.
    Version,
    /// Run an API server alone.
    Apiserver(ApiServer),
    /// Run the controllers alone, against the API server of a kubeconfig.
    Controllers(Controllers),
    /// Run the scheduler alone.
    Scheduler(Remote),
    /// Run a node alone, on this machine or another: it asks for its certificates itself.
    Kubelet(Kubelet),
    /// Run the service proxy of a node alone.
    Proxy(Proxy),
    /// Run the cluster DNS alone.
    Dns(Dns),
}

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// The cluster's name.
    #[arg(long, default_value = "default", value_parser = name)]
    pub name: String,
    /// Where the cluster keeps its files [default: /var/lib/skiff/NAME as root, ~/.local/share/skiff/NAME otherwise].
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub data_dir: Option<PathBuf>,
}

/// `skiff up`
#[derive(Args, Clone, Debug)]
pub struct Up {
    /// Which cluster.
    #[command(flatten)]
    pub named: Named,
    /// Go to the background when the cluster is up.
    #[arg(short, long)]
    pub detach: bool,
    /// Where objects are kept: embedded, memory, or etcd://HOST:PORT[,HOST:PORT].
    #[arg(long, default_value = "embedded", value_name = "STORE")]
    pub store: StoreChoice,
    /// Where the API server listens.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// How many nodes there are. On Docker they share one engine and one bridge.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=5000))]
    pub nodes: u16,
    /// What runs the pods.
    #[arg(long, value_enum, default_value_t = RuntimeChoice::Auto)]
    pub runtime: RuntimeChoice,
    /// Where the addresses of Services come from.
    #[arg(long, default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: Cidr,
    /// Where the addresses of pods come from: a /24 a node.
    #[arg(long, default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub pod_cidr: Cidr,
    /// A flag for the API server, as `skiff apiserver --help` lists them under "Who may do what"; may be said several times:
    /// --apiserver-arg=--audit-log-path=/var/log/audit.log
    #[arg(long = "apiserver-arg", value_name = "FLAG", allow_hyphen_values = true)]
    pub apiserver_args: Vec<String>,
    /// The kubeconfig to write [default: merged into $KUBECONFIG or ~/.kube/config].
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Leave $KUBECONFIG and ~/.kube/config alone.
    #[arg(long)]
    pub no_merge: bool,
    /// How long to wait for the nodes to be ready.
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "DURATION")]
    pub wait: Duration,
    /// Set by `--detach` for the process that stays: progress goes to the socket that is its standard input.
    #[arg(long, hide = true)]
    pub report_to_stdin: bool,
}

impl Up {
    /// What the flags for the API server say.
    pub fn options(&self) -> Result<Options, clap::Error> {
        /// Only the flags that both ways of starting an API server share.
        #[derive(Parser)]
        #[command(name = "--apiserver-arg", no_binary_name = true, disable_help_flag = true)]
        struct Flags {
            #[command(flatten)]
            options: Options,
        }
        Flags::try_parse_from(&self.apiserver_args).map(|flags| flags.options)
    }
}

/// `skiff down`
#[derive(Args, Clone, Debug)]
pub struct Down {
    /// Which cluster.
    #[command(flatten)]
    pub named: Named,
    /// Remove everything that the cluster stored.
    #[arg(long)]
    pub purge: bool,
}

/// `skiff kubeconfig`
#[derive(Args, Clone, Debug)]
pub struct KubeconfigOf {
    /// Which cluster.
    #[command(flatten)]
    pub named: Named,
    /// Who is to use it.
    #[arg(long, value_enum, default_value_t = Component::Admin)]
    pub user: Component,
    /// The API server's address as the user sees it [default: as the API server listens].
    #[arg(long, value_name = "URL", value_parser = server_url)]
    pub server: Option<String>,
}

/// Who speaks to an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Component {
    /// A person who may do everything.
    Admin,
    /// `skiff controllers`
    Controllers,
    /// `skiff scheduler`
    Scheduler,
    /// `skiff kubelet`, any node: good for a day, in which nodes may join. A node keeps what it got.
    Kubelet,
    /// `skiff proxy`
    Proxy,
    /// `skiff dns`
    Dns,
}

/// `skiff apiserver`
#[derive(Args, Clone, Debug)]
pub struct ApiServer {
    /// Which cluster.
    #[command(flatten)]
    pub named: Named,
    /// Where objects are kept: embedded, memory, or etcd://HOST:PORT[,HOST:PORT].
    #[arg(long, default_value = "embedded", value_name = "STORE")]
    pub store: StoreChoice,
    /// Where the API server listens.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where the addresses of Services come from.
    #[arg(long, default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: Cidr,
    /// Who may do what, what is told of it, and what is encrypted.
    #[command(flatten)]
    pub options: Options,
}

/// A component that speaks to an API server.
#[derive(Args, Clone, Debug)]
pub struct Remote {
    /// The kubeconfig of the API server [default: $KUBECONFIG or ~/.kube/config].
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
}

/// `skiff controllers`
#[derive(Args, Clone, Debug)]
pub struct Controllers {
    /// Which API server.
    #[command(flatten)]
    pub remote: Remote,
    /// Where the addresses of pods come from: a /24 a node.
    #[arg(long, default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub pod_cidr: Cidr,
}

/// `skiff kubelet`
#[derive(Args, Clone, Debug)]
pub struct Kubelet {
    /// Which API server.
    #[command(flatten)]
    pub remote: Remote,
    /// The node's name [default: this machine's].
    #[arg(long, alias = "node", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,
    /// The node's address, where its kubelet listens [default: the one by which this machine reaches the API server].
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<std::net::IpAddr>,
    /// The address that pods ask for names [default: none, they have this machine's resolver].
    #[arg(long, value_name = "ADDRESS")]
    pub cluster_dns: Option<std::net::IpAddr>,
    /// The cluster's name: whose containers are this node's own.
    #[arg(long, default_value = "default", value_parser = name)]
    pub cluster: String,
    /// What runs the pods.
    #[arg(long, value_enum, default_value_t = RuntimeChoice::Auto)]
    pub runtime: RuntimeChoice,
    /// Where the addresses of pods come from.
    #[arg(long, default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub pod_cidr: Cidr,
    /// Where the node keeps the files of pods.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub data_dir: Option<PathBuf>,
}

/// `skiff proxy`
#[derive(Args, Clone, Debug)]
pub struct Proxy {
    /// Which API server.
    #[command(flatten)]
    pub remote: Remote,
    /// The node's name [default: this machine's].
    #[arg(long, alias = "node", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,
    /// The cluster's name: which rules are this cluster's.
    #[arg(long, default_value = "default", value_parser = name)]
    pub cluster: String,
    /// Where the addresses of pods come from.
    #[arg(long, default_value = "10.244.0.0/16", value_name = "CIDR")]
    pub pod_cidr: Cidr,
}

/// `skiff dns`
#[derive(Args, Clone, Debug)]
pub struct Dns {
    /// Which API server.
    #[command(flatten)]
    pub remote: Remote,
    /// Where DNS listens, UDP and TCP.
    #[arg(long, default_value = "127.0.0.1:5353", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// The domain of the cluster's names.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
}

/// What runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuntimeChoice {
    /// Docker when its socket answers, otherwise simulated.
    Auto,
    /// Docker.
    Docker,
    /// No containers at all: pods only live through their phases.
    Simulated,
}

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// In the data directory.
    Embedded,
    /// Nowhere.
    Memory,
    /// In etcd, at these addresses.
    Etcd(Vec<String>),
}

impl FromStr for StoreChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            _ => {
                let members = text.strip_prefix("etcd://").ok_or("it must be embedded, memory or etcd://HOST:PORT[,HOST:PORT]")?;
                let members: Vec<String> = members.split(',').map(|m| format!("http://{}", m.trim())).collect();
                let whole = members.iter().all(|m| m["http://".len()..].rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()));
                if whole { Ok(Self::Etcd(members)) } else { Err("etcd's members must be HOST:PORT".into()) }
            }
        }
    }
}

/// An IPv4 range, `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub first: u32,
    /// How many bits the network has.
    pub bits: u32,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(ip, bits)| Some((ip.parse::<std::net::Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?)));
        match parts {
            Some((ip, bits)) if (12..=24).contains(&bits) => {
                let first = u32::from(ip) & (u32::MAX << (32 - bits));
                Ok(Self { first, bits })
            }
            _ => Err("it must be an IPv4 range like 10.96.0.0/16, of between /12 and /24".into()),
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.nth(0), self.bits)
    }
}

impl Cidr {
    /// The address at that place, from 0.
    pub fn nth(self, n: u32) -> std::net::Ipv4Addr {
        (self.first + n).into()
    }

    /// The `index`-th /24 within; `None` past the end.
    pub fn node(self, index: u32) -> Option<Self> {
        (index < 1 << (24 - self.bits)).then(|| Self { first: self.first + (index << 8), bits: 24 })
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let bits = self.bits.min(other.bits);
        self.first >> (32 - bits) == other.first >> (32 - bits)
    }
}

fn name(text: &str) -> Result<String, String> {
    let errors = skiff_api::names::dns_label(text);
    if errors.is_empty() && text.len() <= 40 { Ok(text.to_owned()) } else { Err("it must be up to 40 lower-case letters, digits and dashes".into()) }
}

/// Containers' files are mounted by paths that don't depend on where this was typed.
fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|e| e.to_string())
}

fn node_name(text: &str) -> Result<String, String> {
    let errors = skiff_api::names::dns_subdomain(text);
    if errors.is_empty() { Ok(text.to_owned()) } else { Err(format!("it can't be a node's name: {}", errors.join("; "))) }
}

fn server_url(text: &str) -> Result<String, String> {
    let whole = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    if whole { Ok(text.trim_end_matches('/').to_owned()) } else { Err("it must be like https://192.168.1.5:6443".into()) }
}

/// `60s`, `2m`, `500ms`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "it must be a number and a unit, like 60s or 2m".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let number: u64 = text[..at].parse().map_err(|_| bad())?;
    match &text[at..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3_600))),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_the_api_server() {
        let up = |args: &[&str]| match Cli::parse_from([&["skiff", "up"], args].concat()).command {
            Command::Up(up) => up.options().map(|options| (options.anonymous_auth, options.authorization_mode)).map_err(|e| e.kind()),
            _ => Ok((None, Vec::new())),
        };
        assert_eq!(up(&[]), Ok((None, Vec::new())));
        let given = ["--apiserver-arg=--anonymous-auth=false", "--apiserver-arg", "--authorization-mode=RBAC"];
        assert_eq!(up(&given), Ok((Some(false), vec!["RBAC".to_owned()])));
        assert_eq!(up(&["--apiserver-arg=--nonsense"]), Err(clap::error::ErrorKind::UnknownArgument));
    }

    #[test]
    fn values() {
        assert_eq!("etcd://a:1,b:2".parse(), Ok(StoreChoice::Etcd(vec!["http://a:1".into(), "http://b:2".into()])));
        for bad in ["", "etcd://", "etcd://a", "redis"] {
            assert!(bad.parse::<StoreChoice>().is_err(), "{bad}");
        }
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "60", "s", "1.5s", "5y"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        let pods: Cidr = "10.244.0.0/16".parse().expect("a range");
        assert_eq!(pods.node(3).map(|c| c.to_string()).as_deref(), Some("10.244.3.0/24"));
        assert_eq!(pods.node(256), None);
        assert!(pods.overlaps("10.244.9.0/24".parse().expect("a range")) && !pods.overlaps("10.96.0.0/16".parse().expect("a range")));
        assert!("10.0.0.0/30".parse::<Cidr>().is_err());
    }
}
