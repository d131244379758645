//! Calls of webhooks: HTTPS POSTs of JSON to a URL or a Service, for whoever has a `clientConfig`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use serde_json::Value;
use skiff_api::value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::auth::pki::Pair;
use crate::cache::Cache;
use crate::{services, tls};

/// How long an idle connection is kept for the next call.
const IDLE: Duration = Duration::from_secs(90);
/// The largest answer that is read: an object as large as any, as a patch, encoded.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// How many clients (each a server name with its authority) are kept before they are all forgotten.
const MAX_CLIENTS: usize = 256;
const SERVICE_PORT: u64 = 443;
/// How often a webhook is asked that doesn't answer; upstream's figure.
const TRIES: u32 = 5;

/// Where a webhook is, and whose certificate it shows. Upstream's `WebhookClientConfig` and its likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientConfig {
    /// `https://host[:port]/path`; empty for a service.
    pub url: String,
    /// Namespace, name, port and path.
    pub service: Option<(String, String, u64, String)>,
    /// The PEM texts of the authorities that are believed; empty for the system's.
    pub ca: Vec<u8>,
    /// The PEM texts of the certificate and key that the client shows.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The bearer token that the client shows; empty for none.
    pub token: String,
}

/// A call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration can't be used.
    #[error("{0}")]
    Config(String),
    /// The webhook couldn't be reached, or its answer didn't come.
    #[error("{method} {url:?}: {why}")]
    Unreachable {
        /// How it was asked.
        method: &'static str,
        /// What was asked.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The webhook refused, with this code and in these words.
    #[error("{1}")]
    Refused(u16, String),
    /// The answer is no JSON.
    #[error("{0}")]
    Answer(String),
}

impl ClientConfig {
    /// Reads the `clientConfig` of a webhook, or the `service` and `caBundle` of an API service.
    pub fn read(config: &Value) -> Result<Self, Error> {
        let bundle = value::text(config, &["caBundle"]);
        let ca = STANDARD.decode(bundle).map_err(|e| Error::Config(format!("caBundle is no base64: {e}")))?;
        let text = |path: &[&str]| value::text(config, path).to_owned();
        let service = value::at(config, &["service"]).is_object().then(|| {
            let port = value::at(config, &["service", "port"]).as_u64().unwrap_or(SERVICE_PORT);
            (text(&["service", "namespace"]), text(&["service", "name"]), port, text(&["service", "path"]))
        });
        Ok(Self { url: text(&["url"]), service, ca, ..Self::default() })
    }

    /// The URL that is asked, as errors show it.
    fn shown_url(&self, timeout: Duration) -> String {
        let base = match &self.service {
            Some((namespace, name, port, path)) => format!("https://{name}.{namespace}.svc:{port}{path}"),
            None => self.url.clone(),
        };
        let slash = if base.matches('/').count() < 3 { "/" } else { "" };
        format!("{base}{slash}?timeout={}s", timeout.as_secs())
    }
}

/// The name that a server must show in its certificate, the authorities that are believed about it, and what the client
/// shows.
type Trust = (String, Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);
type Https = Client<Connector, Full<Bytes>>;

/// The client of all webhooks. Connections are kept and used again.
pub(crate) struct Webhooks {
    /// Services are looked up here.
    cache: Arc<Cache>,
    clients: Mutex<HashMap<Trust, Https>>,
}

impl Webhooks {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, clients: Mutex::default() }
    }

    /// Posts `body` and gives the JSON that comes back, within `timeout`.
    pub async fn call(&self, config: &ClientConfig, body: &Value, timeout: Duration) -> Result<Value, Error> {
        self.exchange(config, Method::POST, config.shown_url(timeout), body.to_string(), timeout).await
    }

    /// The same; and again where nobody answers, or one who is overtaxed or just starting. Before the second time it waits so long,
    /// then half as long again each time: upstream's way with webhooks that a decision or a record hangs on.
    pub async fn ask(&self, config: &ClientConfig, body: &Value, timeout: Duration, first_wait: Duration) -> Result<Value, Error> {
        let mut wait = first_wait;
        for _ in 1..TRIES {
            match self.call(config, body, timeout).await {
                Err(error @ (Error::Unreachable { .. } | Error::Refused(429 | 500 | 504, _))) => tracing::debug!(%error, "asking again"),
                answered => return answered,
            }
            tokio::time::sleep(wait).await;
            wait = wait * 3 / 2;
        }
        self.call(config, body, timeout).await
    }

    /// Gets the JSON that is at a URL.
    pub async fn get(&self, url: &str, ca: &[u8], timeout: Duration) -> Result<Value, Error> {
        let config = ClientConfig { ca: ca.to_vec(), ..ClientConfig::default() };
        self.exchange(&config, Method::GET, url.to_owned(), String::new(), timeout).await
    }

    async fn exchange(&self, config: &ClientConfig, method: Method, url: String, body: String, timeout: Duration) -> Result<Value, Error> {
        let failed = |why: String| Error::Unreachable { method: if method == Method::GET { "Get" } else { "Post" }, url: url.clone(), why };
        let uri: Uri = url.parse().map_err(|e| Error::Config(format!("parse {url:?}: {e}")))?;
        if uri.scheme_str() != Some("https") {
            return Err(Error::Config(format!("{url:?}: 'https' is the only allowed URL scheme")));
        }
        let (host, port) = (uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443));
        // A service goes by its name in certificate and headers, and is reached at an endpoint's address.
        let (name, target) = match &config.service {
            Some((namespace, name, port, _)) => {
                let address = services::endpoint(&self.cache, namespace, name, &port.to_string(), services::To::Any).map_err(|status| failed(status.message))?;
                (format!("{name}.{namespace}.svc"), Target::Address(address))
            }
            None => (host.clone(), Target::Name(host, port)),
        };
        let client = self.client((name, config.ca.clone(), config.identity.clone())).map_err(&failed)?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(&method)
            .uri(format!("https://{target}{path}"))
            .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission");
        if !config.token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", config.token));
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|e| Error::Config(e.to_string()))?;
        let exchange = async {
            let response = client.request(request).await.map_err(|e| failed(root_cause(&e)))?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| failed(root_cause(e.as_ref())))?;
            Ok((status, answer.to_bytes()))
        };
        let (status, answer) = tokio::time::timeout(timeout, exchange).await.map_err(|_| failed("context deadline exceeded".into()))??;
        if !(StatusCode::OK..=StatusCode::PARTIAL_CONTENT).contains(&status) {
            return Err(Error::Refused(status.as_u16(), refusal(status, &String::from_utf8_lossy(&answer))));
        }
        serde_json::from_slice(&answer).map_err(|e| Error::Answer(format!("couldn't get version/kind; json parse error: {e}")))
    }

    fn client(&self, trust: Trust) -> Result<Https, String> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&trust) {
            return Ok(client.clone());
        }
        let server_name = ServerName::try_from(trust.0.clone()).map_err(|e| format!("{:?}: {e}", trust.0))?;
        let connector = Connector { tls: TlsConnector::from(Arc::new(trusting(&trust)?)), name: server_name };
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).set_host(false).build(connector);
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(trust, client.clone());
        Ok(client)
    }
}

/// A client's side of TLS for the trust.
fn trusting((_, ca, identity): &Trust) -> Result<rustls::ClientConfig, String> {
    let text = |pem: &[u8]| String::from_utf8(pem.to_vec()).map_err(|e| format!("read the client's certificate or key: {e}"));
    let pair = identity.as_ref().map(|(certificate, key)| Ok::<_, String>(Pair { certificate: text(certificate)?, key: text(key)? })).transpose()?;
    tls::client(ca, pair.as_ref(), true)
}

/// Where a connection goes.
#[derive(Clone, Debug)]
enum Target {
    Address(SocketAddr),
    Name(String, u16),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Opens the connections of one [`Trust`].
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Stream, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tls, name } = self.clone();
        async move {
            let address = (uri.host().unwrap_or("").trim_matches(['[', ']']), uri.port_u16().unwrap_or(443));
            let dial = |e: std::io::Error| std::io::Error::new(e.kind(), format!("dial tcp {}:{}: connect: {e}", address.0, address.1));
            let stream = TcpStream::connect(address).await.map_err(dial)?;
            stream.set_nodelay(true)?;
            Ok(Stream(TokioIo::new(tls.connect(name, stream).await?)))
        }
        .boxed()
    }
}

/// A TLS connection as hyper wants it.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: hyper::rt::ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What lies at the bottom of an error, which says most.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut here = error;
    while let Some(source) = here.source() {
        here = source;
    }
    match here.to_string() {
        text if text.contains("invalid peer certificate: UnknownIssuer") => "tls: failed to verify certificate: x509: certificate signed by unknown authority".into(),
        text if text.starts_with("invalid peer certificate") => format!("tls: failed to verify certificate: x509: {text}"),
        text => text.replace("Connection refused (os error 111)", "connection refused"),
    }
}

/// What upstream's client makes of an answer that is no success.
fn refusal(status: StatusCode, body: &str) -> String {
    match status.as_u16() {
        401 => "the server has asked for the client to provide credentials".into(),
        403 => format!("forbidden: {body}"),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        406 => "the server was unable to respond with a content type that the client supports".into(),
        415 => "the server was unable to process the media type".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        code if code >= 500 => format!("an error on the server ({body:?}) has prevented the request from succeeding"),
        _ => "the server rejected our request for an unknown reason".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(config: Value, expected: &str) {
        assert_eq!(ClientConfig::read(&config).map(|c| c.shown_url(Duration::from_secs(10))).unwrap_or_else(|e| e.to_string()), expected);
    }

    #[test]
    fn urls() {
        check(json!({"url": "https://127.0.0.1:8443/x"}), "https://127.0.0.1:8443/x?timeout=10s");
        check(json!({"url": "https://a.example"}), "https://a.example/?timeout=10s");
        check(json!({"service": {"namespace": "n", "name": "s", "path": "/v"}}), "https://s.n.svc:443/v?timeout=10s");
        check(json!({"service": {"namespace": "n", "name": "s", "port": 8443}}), "https://s.n.svc:8443/?timeout=10s");
        check(json!({"url": "https://a", "caBundle": "%"}), "caBundle is no base64: Invalid symbol 37, offset 0.");
    }
}
