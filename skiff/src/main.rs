//! The `skiff` binary.

use std::net::{IpAddr, Ipv4Addr};

use skiff::{Cluster, Options};
use skiff_apiserver::auth::User;
use skiff_apiserver::http;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let cluster = Cluster::with(Options::default()).await?;
    let authority = cluster.authority();
    let pair = authority.server("kube-apiserver", &["localhost".into()], &[ip])?;
    let admin = authority.client(&User::new("kubernetes-admin", ["system:masters"]))?;
    std::fs::write("/tmp/ca.pem", &authority.pair.certificate)?;
    std::fs::write("/tmp/admin.pem", &admin.certificate)?;
    std::fs::write("/tmp/admin.key", &admin.key)?;
    let tls = http::serve::tls(&pair, &authority.pair.certificate)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:6443").await?;
    eprintln!("serving");
    http::serve::serve(cluster.server().clone(), listener, tls, cluster.stopping().clone()).await;
    Ok(())
}
