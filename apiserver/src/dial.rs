//! How the API server reaches kubelets: by TLS over the network, or within the process.

use std::io;

use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection that HTTP/1.1 can be spoken on.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// Opens connections to kubelets.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// A connection to the kubelet of `node` (its Node object).
    async fn dial(&self, node: &Value) -> io::Result<Box<dyn Connection>>;
}

/// Reaches no kubelet at all, for an API server that runs alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unreachable;

#[async_trait]
impl Dialer for Unreachable {
    async fn dial(&self, node: &Value) -> io::Result<Box<dyn Connection>> {
        let name = node["metadata"]["name"].as_str().unwrap_or("");
        Err(io::Error::new(io::ErrorKind::NotConnected, format!("this API server has no way to reach the kubelet of node {name:?}")))
    }
}
