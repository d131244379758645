//! The `skiff` binary.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::{Authority, SigningKey};
use skiff_apiserver::{Config, Server, dial, http};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let stop = CancellationToken::new();
    let authority = Authority::generate()?;
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let server = Server::start(
        Config {
            store: Arc::new(skiff_store::Memory::new()),
            authority: authority.clone(),
            signing_key: SigningKey::generate()?,
            service_cidr: "10.96.0.0/16".into(),
            advertise: (ip, 6443),
            dialer: Arc::new(dial::Unreachable),
            build: "skiff.0.1.0".into(),
        },
        stop.clone(),
    )
    .await?;
    let pair = authority.server("kube-apiserver", &["localhost".into()], &[ip])?;
    let admin = authority.client(&User::new("kubernetes-admin", ["system:masters"]))?;
    std::fs::write("/tmp/ca.pem", &authority.pair.certificate)?;
    std::fs::write("/tmp/admin.pem", &admin.certificate)?;
    std::fs::write("/tmp/admin.key", &admin.key)?;
    let tls = http::serve::tls(&pair, &authority.pair.certificate)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:6443").await?;
    eprintln!("serving");
    http::serve::serve(server, listener, tls, stop).await;
    Ok(())
}
