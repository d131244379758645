//! HTTP/1.1 over TLS, one connection a worker: so that what is measured is the server, and not a client's cleverness.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An API server and who asks it.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
    bearer: Option<String>,
}

impl Target {
    /// The server and user of a kubeconfig.
    pub fn new(config: &kube::Config) -> anyhow::Result<Self> {
        let host = config.cluster_url.host().context("the kubeconfig's server has no host")?.to_owned();
        let port = config.cluster_url.port_u16().unwrap_or(443);
        let tls = config.rustls_client_config().context("read the kubeconfig's certificates")?;
        let bearer = config.auth_info.token.as_ref().map(|token| token.expose_secret().to_owned());
        Ok(Self { host, port, tls: Arc::new(tls), bearer })
    }

    /// The same server asked by the bearer of a token, and by nobody else.
    pub fn bearer(config: &kube::Config, token: String) -> anyhow::Result<Self> {
        let mut anonymous = config.clone();
        anonymous.auth_info = Default::default();
        Ok(Self { bearer: Some(token), ..Self::new(&anonymous)? })
    }

    /// Opens a connection.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect((self.host.trim_matches(['[', ']']), self.port)).await.context("connect to the API server")?;
        stream.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(self.host.clone()).context("the server's name")?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.context("TLS with the API server")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, host: format!("{}:{}", self.host, self.port), bearer: self.bearer.clone() })
    }
}

/// One connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    bearer: Option<String>,
}

/// What kind of body a request has.
pub const JSON: &str = "application/json";

impl Connection {
    /// Sends a request; the answer's head, with its body still to come.
    pub async fn open(&mut self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> anyhow::Result<http::Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host).header("accept", JSON).header("user-agent", "apiload");
        let body = body.into();
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        if let Some(token) = &self.bearer {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// Sends a request and reads the answer to its end, without keeping it: its status and length in bytes.
    pub async fn send(&mut self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> anyhow::Result<(u16, usize)> {
        let mut answer = self.open(method, path, content_type, body).await?;
        let mut length = 0;
        while let Some(frame) = answer.body_mut().frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok((answer.status().as_u16(), length))
    }

    /// The same for a request that must be carried out.
    pub async fn must(&mut self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> anyhow::Result<usize> {
        let (status, length) = self.send(method.clone(), path, content_type, body).await?;
        if status >= 300 {
            bail!("{method} {path} is answered with {status}");
        }
        Ok(length)
    }

    /// GETs a document.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.bytes(path).await?)?)
    }

    /// GETs a document, unread.
    pub async fn bytes(&mut self, path: &str) -> anyhow::Result<Bytes> {
        let answer = self.open(Method::GET, path, JSON, Bytes::new()).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("GET {path} is answered with {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }
}
