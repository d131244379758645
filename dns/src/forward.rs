//! Questions about other names go to the servers that this machine asks itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_server::proto::serialize::binary::DecodeError;
use hickory_server::proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long a server may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer over UDP.
const MAX_UDP: usize = 4_096;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no server to forward to")]
    NoServer,
    #[error("ask {server}: {source}")]
    Io { server: SocketAddr, source: std::io::Error },
    #[error("ask {0}: no answer in time")]
    Timeout(SocketAddr),
    #[error("read the answer of {server}: {source}")]
    Answer { server: SocketAddr, source: DecodeError },
}

/// The servers of `/etc/resolv.conf`.
pub(crate) fn system() -> Vec<SocketAddr> {
    servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim);
    words.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// Asks the servers in turn. `question` is the client's own packet.
pub(crate) async fn ask(upstream: &[SocketAddr], question: &[u8]) -> Result<Message, Error> {
    let mut last = Error::NoServer;
    for server in upstream {
        match tokio::time::timeout(TIMEOUT, ask_one(*server, question)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = Error::Timeout(*server),
        }
    }
    Err(last)
}

async fn ask_one(server: SocketAddr, question: &[u8]) -> Result<Message, Error> {
    let io = |source| Error::Io { server, source };
    let read = |bytes: &[u8]| Message::from_vec(bytes).map_err(|source| Error::Answer { server, source });
    let any = if server.is_ipv4() { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { SocketAddr::from(([0u16; 8], 0)) };
    let socket = UdpSocket::bind(any).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(question).await.map_err(io)?;
    let mut buffer = vec![0; MAX_UDP];
    let length = socket.recv(&mut buffer).await.map_err(io)?;
    let answer = read(&buffer[..length])?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    // Too long for a packet: over a connection, each message has its length before it.
    let mut stream = TcpStream::connect(server).await.map_err(io)?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    stream.write_all(&length.to_be_bytes()).await.map_err(io)?;
    stream.write_all(question).await.map_err(io)?;
    let length = stream.read_u16().await.map_err(io)?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await.map_err(io)?;
    read(&buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# a comment\nsearch x\nnameserver 192.0.2.1\n nameserver ::1 \nnameserver bogus\n";
        let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[::1]:53"]);
    }
}
