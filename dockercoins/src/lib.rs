//! What the four programs share: a small HTTP server, an HTTP client, a Redis client.
//!
//! Names are resolved by our own resolver, for a static binary has no system one.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Anything that can go wrong.
pub type Failure = Box<dyn Error + Send + Sync>;
/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// The port that every service listens on.
pub const PORT: u16 = 80;
/// The work that each service pretends to do.
pub const WORK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An answer of plain text.
pub fn text(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

/// Serves until the process is told to end; requests that are under way then are answered.
pub async fn serve<F, W>(handle: F) -> Result<(), Failure>
where
    F: Fn(Request<Incoming>) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).await?;
    let tasks = hyper_util::server::graceful::GracefulShutdown::new();
    let mut end = std::pin::pin!(terminated());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            () = &mut end => break,
        };
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let answer = handle(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        let watched = tasks.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is no failure of ours.
            let _ = watched.await;
        });
    }
    let _ = tokio::time::timeout(TIMEOUT, tasks.shutdown()).await;
    Ok(())
}

/// Resolves when the process is told to end.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Connects to a service by its name.
pub async fn connect(resolver: &TokioResolver, host: &str, port: u16) -> Result<TcpStream, Failure> {
    let connecting = async {
        let found = resolver.lookup_ip(host).await?;
        let ip = found.iter().next().ok_or("the name has no address")?;
        Ok::<_, Failure>(TcpStream::connect((ip, port)).await?)
    };
    tokio::time::timeout(TIMEOUT, connecting).await?
}

/// The system's resolver, as `/etc/resolv.conf` describes it.
pub fn resolver() -> Result<TokioResolver, Failure> {
    let mut builder = TokioResolver::builder_tokio()?;
    // Each request finds the pods that there are now.
    builder.options_mut().cache_size = 0;
    Ok(builder.build()?)
}

/// Asks a service. With a body it is a POST.
pub async fn ask(resolver: &TokioResolver, host: &str, path: &str, body: Option<Bytes>) -> Result<Bytes, Failure> {
    let stream = connect(resolver, host, PORT).await?;
    let asking = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let method = if body.is_some() { "POST" } else { "GET" };
        let request = Request::builder().method(method).uri(path).header("host", host).body(Full::new(body.unwrap_or_default()))?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(format!("{host} answered {}", response.status()).into());
        }
        Ok::<_, Failure>(response.into_body().collect().await?.to_bytes())
    };
    tokio::time::timeout(TIMEOUT, asking).await?
}

/// A connection to Redis.
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Connects.
    pub async fn connect(resolver: &TokioResolver, host: &str) -> Result<Self, Failure> {
        Ok(Self { stream: BufReader::new(connect(resolver, host, 6379).await?) })
    }

    /// Runs a command whose reply is a number or a text with one; no reply is 0.
    pub async fn number(&mut self, command: &[&str]) -> Result<i64, Failure> {
        let mut request = format!("*{}\r\n", command.len());
        for part in command {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        tokio::time::timeout(TIMEOUT, self.reply()).await?
    }

    async fn reply(&mut self) -> Result<i64, Failure> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let line = line.trim_end();
        match (line.get(..1), line.get(1..)) {
            (Some(":"), Some(number)) => Ok(number.parse()?),
            (Some("$"), Some("-1")) => Ok(0),
            (Some("$"), Some(length)) => {
                let mut text = vec![0; length.parse::<usize>()? + 2];
                self.stream.read_exact(&mut text).await?;
                Ok(String::from_utf8(text)?.trim_end().parse()?)
            }
            (Some("+"), _) => Ok(0),
            _ => Err(format!("redis answered {line:?}").into()),
        }
    }
}
