//! A group version that another server serves: requests are carried on to it by TLS, with who asks in headers, which it
//! believes because of the client certificate shown with them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use skiff_api::Status;
use skiff_api::value::{at, text};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::plan;
use crate::auth::pki::Pair;
use crate::auth::{MASTERS, User};
use crate::cache::Cache;
use crate::http::body::{Reply, text as plain};
use crate::subresources::{self, Upgrade};
use crate::{services, tls};

/// How long a server may take over a question of this one's own.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest document that is read: an OpenAPI of some thousand definitions.
const MAX_DOCUMENT: usize = 32 * 1024 * 1024;

/// Somebody else's group version.
pub(crate) struct Remote {
    /// `v1.metrics.k8s.io`
    pub name: String,
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// Where the group stands among the groups.
    pub group_priority: i64,
    /// Where the version stands within the group.
    pub version_priority: i64,
    /// Whether the server behind it can be reached, as the object says.
    pub available: bool,
    /// What the server said of itself when it was last asked.
    pub documents: Arc<Documents>,
    namespace: String,
    service: String,
    port: String,
    tls: Result<TlsConnector, String>,
}

/// What a server says of a group version.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// Its entry in aggregated discovery.
    pub discovery: Option<Value>,
    /// Its OpenAPI version 2.
    pub v2: Option<Value>,
    /// Where its OpenAPI version 3 is: the relative URL with its hash.
    pub v3: Option<String>,
}

impl Remote {
    /// Reads an API service that names a Service; `None` for one that is served here.
    pub fn read(object: &Value, front: &Pair, documents: Arc<Documents>) -> Option<Self> {
        let spec = &object["spec"];
        let target = spec.get("service").filter(|s| s.is_object())?;
        let (namespace, service, port) = plan::target_of(target);
        let verified = spec["insecureSkipTLSVerify"] != true;
        let ca = STANDARD.decode(text(spec, &["caBundle"])).map_err(|e| format!("caBundle is no base64: {e}"));
        let config = ca.and_then(|ca| tls::client(&ca, Some(front), verified));
        Some(Self {
            name: text(object, &["metadata", "name"]).to_owned(),
            group: text(spec, &["group"]).to_owned(),
            version: text(spec, &["version"]).to_owned(),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            available: plan::available(object),
            documents,
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port: port.to_string(),
            tls: config.map(|config| TlsConnector::from(Arc::new(config))),
        })
    }

    /// Whether the path is below this group version.
    pub fn serves(&self, path: &str) -> bool {
        let mut parts = path.trim_start_matches('/').split('/');
        match self.group.as_str() {
            "" => (parts.next(), parts.next()) == (Some("api"), Some(&self.version)),
            group => (parts.next(), parts.next(), parts.next()) == (Some("apis"), Some(group), Some(&self.version)),
        }
    }

    /// The path of the group version.
    pub fn path(&self) -> String {
        if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) }
    }

    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    async fn connect(&self, cache: &Cache) -> Result<(TlsStream<TcpStream>, String), String> {
        let address = services::endpoint(cache, &self.namespace, &self.service, &self.port, services::To::Any).map_err(|status| status.message)?;
        let tls = self.tls.as_ref().map_err(Clone::clone)?;
        let name = ServerName::try_from(self.host()).map_err(|e| e.to_string())?;
        let stream = TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let stream = tls.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
        Ok((stream, address.to_string()))
    }

    /// Carries a client's request on.
    pub async fn proxy(&self, cache: &Cache, user: &User, parts: Parts, body: Bytes) -> Result<Reply, Status> {
        if !self.available {
            return Ok(plain(503, "service unavailable\n"));
        }
        let (stream, _) = match self.connect(cache).await {
            Ok(connected) => connected,
            Err(why) => {
                tracing::warn!(api_service = self.name, why, "server behind an API service not reached");
                return Ok(plain(503, "service unavailable\n"));
            }
        };
        let upgrade = parts.extensions.get::<Upgrade>().cloned();
        let mut headers = parts.headers;
        vouch(&mut headers, user)?;
        headers.insert(HOST, HeaderValue::from_str(&self.host()).map_err(Status::internal)?);
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        subresources::forward(headers, Box::new(stream), parts.method, path, body, upgrade).await
    }

    /// Asks the server something in this one's own name. Gives the status and the body.
    pub async fn ask(&self, cache: &Cache, path: &str, accept: &str) -> Result<(u16, HeaderMap, Bytes), String> {
        let exchange = async {
            let (stream, address) = self.connect(cache).await?;
            let url = format!("https://{address}{path}");
            let failed = |e: &dyn std::error::Error| format!("Get {url:?}: {e}");
            let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
            tokio::spawn(driver);
            let mut request = Request::builder().uri(path).header(ACCEPT, accept).header(HOST, self.host()).body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
            let own = User { name: "system:kube-aggregator".into(), groups: vec![MASTERS.into()], ..User::default() };
            vouch(request.headers_mut(), &own).map_err(|status| status.message)?;
            let (parts, body) = sender.send_request(request).await.map_err(|e| failed(&e))?.into_parts();
            let body = Limited::new(body, MAX_DOCUMENT).collect().await.map_err(|e| failed(e.as_ref()))?;
            Ok((parts.status.as_u16(), parts.headers, body.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())?
    }

    /// Whether the server answers where it must.
    pub async fn check(&self, cache: &Cache) -> Result<(), String> {
        let path = self.path();
        let address = services::endpoint(cache, &self.namespace, &self.service, &self.port, services::To::Any).map_err(|status| status.message)?;
        let url = format!("https://{address}{path}");
        let why = match self.ask(cache, &path, "application/json").await {
            Ok((200..300, ..)) => return Ok(()),
            Ok((code, ..)) => format!("bad status from {url}: {code}"),
            Err(why) => why,
        };
        Err(format!("failing or missing response from {url}: {why}"))
    }

    /// What the server says of itself. What it can't say is missing.
    pub async fn describe(&self, cache: &Cache) -> Documents {
        let json = |answer: Result<(u16, HeaderMap, Bytes), String>| match answer {
            Ok((200, _, body)) => serde_json::from_slice::<Value>(&body).ok(),
            _ => None,
        };
        let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let list = json(self.ask(cache, "/apis", aggregated).await);
        let entry = list.as_ref().filter(|l| l["kind"] == "APIGroupDiscoveryList").and_then(|l| self.entry_of(l));
        let discovery = match entry {
            Some(entry) => Some(entry),
            None => json(self.ask(cache, &self.path(), "application/json").await).map(|list| super::merge::aggregated(&self.version, &list)),
        };
        let (v2, v3) = tokio::join!(self.ask(cache, "/openapi/v2", "application/json"), self.ask(cache, "/openapi/v3", "application/json"));
        let (v2, v3) = (json(v2), json(v3));
        let key = self.path();
        let v3 = v3.and_then(|index| at(&index, &["paths", key.trim_start_matches('/'), "serverRelativeURL"]).as_str().map(str::to_owned));
        Documents { discovery, v2, v3 }
    }

    fn entry_of(&self, list: &Value) -> Option<Value> {
        let group = list["items"].as_array()?.iter().find(|g| text(g, &["metadata", "name"]) == self.group)?;
        group["versions"].as_array()?.iter().find(|v| v["version"] == *self.version).cloned()
    }
}

/// Says in headers who asks. What the client said there itself, or showed to this server, goes no further.
fn vouch(headers: &mut HeaderMap, user: &User) -> Result<(), Status> {
    let own: Vec<HeaderName> = headers.keys().filter(|n| n.as_str().starts_with("x-remote-") || n.as_str().starts_with("impersonate-")).cloned().collect();
    own.iter().for_each(|name| drop(headers.remove(name)));
    headers.remove(http::header::AUTHORIZATION);
    // Names may be in any language; what ends a line may not.
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(Status::internal);
    headers.insert(HeaderName::from_static("x-remote-user"), value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert(HeaderName::from_static("x-remote-uid"), value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append(HeaderName::from_static("x-remote-group"), value(group)?);
    }
    for (key, values) in &user.extra {
        let name = HeaderName::try_from(format!("x-remote-extra-{}", escaped(key))).map_err(Status::internal)?;
        for text in values {
            headers.append(&name, value(text)?);
        }
    }
    Ok(())
}

/// A key as a part of a header's name: what can't stand there is escaped as in URLs.
fn escaped(key: &str) -> String {
    let mut name = String::new();
    for byte in key.to_ascii_lowercase().bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => name.push(byte.into()),
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_and_not_believed() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        let mut user = User::new("alice", ["dev"]);
        user.extra.insert("example.org/Scopes".into(), vec!["r".into(), "w".into()]);
        vouch(&mut headers, &user).expect("headers");
        let mut told: Vec<String> = headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap_or(""))).collect();
        told.sort();
        let scopes = "x-remote-extra-example.org%2fscopes";
        assert_eq!(told, [&format!("{scopes}: r"), &format!("{scopes}: w"), "x-remote-group: dev", "x-remote-group: system:authenticated", "x-remote-user: alice"]);
    }
}
