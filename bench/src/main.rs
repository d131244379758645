//! Measures: `apiload` any API server under load, `budget` the release binary against what is promised.
//! `cargo run --release -p skiff-bench -- apiload --help`

mod apiload;
mod budget;
mod connection;
mod figures;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Load on the API server of a kubeconfig, over TLS: operations a second, latencies, the server's CPU and memory.
    Apiload(apiload::Options),
    /// The release binary against the budget.
    Budget(budget::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Apiload(options) => apiload::run(options).await,
        What::Budget(options) => budget::run(options).await,
    }
}
