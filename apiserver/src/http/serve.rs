//! Connections: TLS, HTTP/1.1 and HTTP/2, and who the client's certificate shows it to be.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::turns::{Lines, Place};
use crate::audit;
use crate::auth::pki::Pair;
use crate::auth::{FromProxy, Peer};
use crate::dial::keep_alive;
use crate::server::{GRACE, Server};

/// How long a client may take over its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take over a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may leave what is written to it unread: then its connection is cut off.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How often a client of HTTP/2 is asked whether it is there, and how long its answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// How many requests a connection may have at a time: Go's figure, and upstream's.
const MAX_STREAMS: u32 = 250;
/// How large a request's head may be, in bytes: upstream's figure. More is answered with 431.
const MAX_HEAD: usize = 1 << 20;
/// How many connections there may be; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;

/// TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text can't be read.
    #[error("read a certificate or key: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The certificate and key don't serve.
    #[error("use the certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority's certificate doesn't serve.
    #[error("verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A server's side of TLS: its certificate, and the authority whose clients it knows.
pub fn tls(pair: &Pair, authority_pem: &str) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).allow_unauthenticated().build()?;
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves connections until `stop`, then gives those that are open a moment to end.
pub async fn serve(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let serve = |stream, address, line, stop| connection(Arc::clone(&server), stream, address, acceptor.clone(), line, stop);
    accept(listener, MAX_CONNECTIONS, stop, serve).await;
}

/// Accepts connections and has them served, so many at a time.
async fn accept<F>(listener: TcpListener, most: usize, stop: CancellationToken, serve: impl Fn(TcpStream, SocketAddr, Place, CancellationToken) -> F)
where
    F: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(most));
    let lines = Lines::new();
    let next = async || {
        // Never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        (place, listener.accept().await)
    };
    while let Some((place, accepted)) = stop.run_until_cancelled(next()).await {
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: what is open may end soon.
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (line, open) = (Place::new(&lines), connections.token());
        let connection = serve(stream, address, line.clone(), stop.clone());
        line.spawn(async move {
            let _open = (place, open);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    connections.close();
    let _ = tokio::time::timeout(GRACE, connections.wait()).await;
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    line: Place,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    let stream = Stalling { stream, deadline: None };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let peer = Arc::new(stream.get_ref().1.peer_certificates().and_then(|chain| server.access.peer(chain)));
    let executor = line.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (server, peer) = (Arc::clone(&server), Arc::clone(&peer));
        request.extensions_mut().insert(audit::Source(address.ip()));
        request.extensions_mut().insert(line.clone());
        let user = match peer.as_ref() {
            Some(Peer::User(user)) => Some(user.clone()),
            Some(Peer::Proxy) => request.extensions_mut().insert(FromProxy).and(None),
            None => None,
        };
        async move { Ok::<_, Infallible>(server.handle(request, user).await) }
    });
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A stream whose writes fail when the other side takes nothing for [`WRITE_STALL`].
struct Stalling {
    stream: TcpStream,
    /// When a write that waits fails.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Stalling {
    fn bounded<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.deadline = None;
            return polled;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        deadline.as_mut().poll(context).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client doesn't read")))
    }
}

impl AsyncRead for Stalling {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.bounded(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_off() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let mut stream = Stalling { stream: accepted.expect("a connection").0, deadline: None };
        let began = Instant::now();
        let error = loop {
            if let Err(error) = stream.write_all(&[0; 1 << 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= WRITE_STALL, "{:?}", began.elapsed());
        drop(client);
    }

    #[tokio::test]
    async fn so_many_are_served_at_a_time() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let _guard = stop.clone().drop_guard();
        // Greets, and stays as long as its client does.
        let greet = |mut stream: TcpStream, _, _, _| async move {
            stream.write_all(b"x").await?;
            stream.read_u8().await.map(drop).or(Ok(()))
        };
        tokio::spawn(accept(listener, 2, stop, greet));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.expect("a connection"));
        }
        for client in &mut clients[..2] {
            assert_eq!(client.read_u8().await.expect("a greeting"), b'x');
        }
        let mut third = clients.pop().expect("the third");
        assert!(tokio::time::timeout(Duration::from_millis(50), third.read_u8()).await.is_err(), "there is no place for it");
        clients.pop();
        assert_eq!(third.read_u8().await.expect("a greeting"), b'x');
    }
}
