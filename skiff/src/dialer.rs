//! The way from the API server to kubelets of other processes: TLS, with certificates on both sides.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use skiff_api::value::{at, items, text};
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::{self, Authority};
use skiff_apiserver::dial::{Connection, Dialer, keep_alive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Who the API server is to kubelets; upstream's name.
const USER: &str = "kube-apiserver-kubelet-client";
/// How long a connection may take to come about.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The addresses of a node by which its kubelet is reached, the best first.
const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];

/// The API server's side of TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its certificate can't be made.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// A certificate or key can't be read.
    #[error("read a certificate or key: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// They don't serve.
    #[error("use the certificate for kubelets: {0}")]
    Tls(#[from] rustls::Error),
}

/// The certificates that a PEM text holds, as authorities to trust.
pub fn roots(pem: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// Reaches kubelets at their nodes' addresses.
pub struct TlsDialer {
    connector: TlsConnector,
}

impl TlsDialer {
    /// A dialer that trusts whom the authority signed, and shows a certificate signed by it.
    pub fn new(authority: &Authority) -> Result<Self, Error> {
        let pair = authority.client(&User { name: USER.into(), ..User::default() })?;
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(&authority.pair.certificate)?)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }
}

/// Where the kubelet of a node listens, as the node says.
fn address(node: &Value) -> Result<(String, u16), String> {
    let name = text(node, &["metadata", "name"]);
    let port = at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).as_u64().and_then(|port| u16::try_from(port).ok());
    let Some(port) = port.filter(|port| *port != 0) else {
        return Err(format!("the kubelet of node {name:?} has not said where it listens"));
    };
    let addresses = items(node, &["status", "addresses"]);
    let of = |wanted: &&str| addresses.iter().find(|a| a["type"] == **wanted).map(|a| text(a, &["address"]).to_owned());
    let host = ADDRESS_TYPES.iter().find_map(of).ok_or_else(|| format!("node {name:?} has no address"))?;
    Ok((host, port))
}

#[async_trait]
impl Dialer for TlsDialer {
    async fn dial(&self, node: &Value) -> io::Result<Box<dyn Connection>> {
        let (host, port) = address(node).map_err(|why| io::Error::new(io::ErrorKind::NotConnected, why))?;
        let name = ServerName::try_from(host.clone()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connect = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            self.connector.connect(name, stream).await
        };
        let connected = tokio::time::timeout(TIMEOUT, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|error| io::Error::new(error.kind(), format!("dial tcp {host}:{port}: {error}")))?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses() {
        let check = |status: Value, expected: Result<(&str, u16), &str>| {
            let node = json!({"metadata": {"name": "n"}, "status": status});
            assert_eq!(address(&node), expected.map(|(h, p)| (h.to_owned(), p)).map_err(str::to_owned), "{node}");
        };
        let listens = json!({"kubeletEndpoint": {"Port": 10250}});
        let addresses = json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.2"}]);
        check(json!({"addresses": addresses, "daemonEndpoints": listens}), Ok(("10.0.0.2", 10250)));
        check(json!({"addresses": [{"type": "Hostname", "address": "n"}], "daemonEndpoints": listens}), Ok(("n", 10250)));
        check(json!({"daemonEndpoints": listens}), Err("node \"n\" has no address"));
        check(json!({"addresses": addresses}), Err("the kubelet of node \"n\" has not said where it listens"));
    }
}
