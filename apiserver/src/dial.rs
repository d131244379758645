//! How the API server reaches others: kubelets by TLS over the network, or within the process; the rest by TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long a server may take to accept a connection: upstream's figure.
const PATIENCE: Duration = Duration::from_secs(30);
/// After how long without a word, and then how often, the other side is asked whether it is there: Go's figures.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A connection to a server.
pub(crate) async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let connecting = tokio::time::timeout(PATIENCE, TcpStream::connect(address));
    let stream = connecting.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"))??;
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    Ok(stream)
}

/// Has the system notice when the other side is gone without a word: a stream on which nothing is said would stay for ever.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_gone_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream = tcp(listener.local_addr().expect("an address")).await.expect("a connection");
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().expect("an answer"));
        assert_eq!(socket.tcp_keepalive_time().expect("an answer"), KEEP_ALIVE);
    }
}
