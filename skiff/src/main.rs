//! The `skiff` binary.

use std::process::ExitCode;

use clap::Parser;
use skiff::cli::{Cli, Command, LogFormat};
use skiff::log::Json;
use skiff::{cluster, components, down, up};
use tracing_subscriber::EnvFilter;

/// Half of what the server does is making and dropping JSON: the system's allocator takes twice as long over it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is logged unless `RUST_LOG` says otherwise. The client logs what it also returns, which its callers tell better.
const QUIET: &str = "warn,kube_client::client::builder=off";

/// After how many turns of tasks a busy thread looks at its sockets. Turns take up to milliseconds here (a page of a list is
/// encrypted in one), and tokio's 61 of them would keep a small request from being seen for that long.
const EVENT_INTERVAL: u32 = 2;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(QUIET));
    let cli = Cli::parse();
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.event_format(Json).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(EVENT_INTERVAL).build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(cli.command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skiff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Down(args) => down::down(args).await,
        Command::Status(args) => down::status(args).await,
        Command::Kubeconfig(args) => down::print_kubeconfig(&args),
        Command::Version => {
            println!("{}", cluster::VERSION);
            Ok(())
        }
        Command::Apiserver(args) => components::apiserver(args).await,
        Command::Controllers(args) => components::controllers(args).await,
        Command::Scheduler(args) => components::scheduler(args).await,
        Command::Kubelet(args) => components::kubelet(args).await,
        Command::Proxy(args) => components::proxy(args).await,
        Command::Dns(args) => components::dns(args).await,
    }
}
