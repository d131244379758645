//! One look at a container: by HTTP, TCP, gRPC, or by a command in it.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

use crate::runtime::{self, Duplex, ExecRequest, Output, Runtime};

/// How much of an answer or output is read.
const MOST: usize = 10 * 1024;
/// How many redirects are followed.
const REDIRECTS: usize = 10;

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well.
    Success,
    /// All is well, but.
    Warning(String),
    /// It isn't; why.
    Failure(String),
    /// Nobody can tell; why.
    Unknown(String),
}

/// Who asks, in the User-Agent: `kube-probe/1.36`.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A probe.
    Probe,
    /// A lifecycle hook.
    Lifecycle,
}

impl Asker {
    fn agent(self) -> &'static str {
        match self {
            Self::Probe => "kube-probe/1.36",
            Self::Lifecycle => "kube-lifecycle/1.36",
        }
    }
}

/// The number of a port that may be named.
pub fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => match name.parse::<i64>() {
            Ok(number) => number,
            Err(_) => {
                let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
                i64::from(named.ok_or_else(|| format!("couldn't find port: {name:?}"))?.container_port)
            }
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Looks once.
pub async fn check(runtime: &dyn Runtime, probe: &Probe, container: &Container, id: &str, ip: Option<IpAddr>) -> Finding {
    let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
    let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
    if let Some(exec) = &probe.exec {
        return command(runtime, id, exec.command.as_deref().unwrap_or_default(), timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return match http_get(get, container, &ip, Asker::Probe, timeout).await {
            Ok(finding) => finding,
            Err(why) => Finding::Unknown(why),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        return tcp_socket(tcp, container, &ip, timeout).await;
    }
    if let Some(grpc) = &probe.grpc {
        return grpc_health(grpc, &ip, timeout).await;
    }
    Finding::Unknown(format!("missing probe handler for {}", container.name))
}

/// Runs a command in a container and gathers what it says, both streams together, and its exit code.
pub async fn run(runtime: &dyn Runtime, id: &str, command: &[String], timeout: Option<Duration>) -> runtime::Result<(Vec<u8>, i32)> {
    let request = ExecRequest { command: command.to_vec(), stdout: true, stderr: true, ..ExecRequest::default() };
    let all = async {
        let mut session = runtime.exec(id, &request).await?;
        let mut said = Vec::new();
        while let Some(Output::Stdout(bytes) | Output::Stderr(bytes)) = session.output.next().await.transpose()? {
            let room = MOST.saturating_sub(said.len());
            said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        Ok((said, session.exit.await?.unwrap_or(-1)))
    };
    match timeout {
        None => all.await,
        Some(timeout) => match tokio::time::timeout(timeout, all).await {
            Ok(result) => result,
            Err(_) => Err(runtime::Error::TimedOut(command.join(" "))),
        },
    }
}

async fn command(runtime: &dyn Runtime, id: &str, command: &[String], timeout: Duration) -> Finding {
    match run(runtime, id, command, Some(timeout)).await {
        Ok((_, 0)) => Finding::Success,
        Ok((said, _)) => Finding::Failure(String::from_utf8_lossy(&said).into_owned()),
        Err(runtime::Error::TimedOut(command)) => {
            Finding::Failure(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()))
        }
        Err(error) => Finding::Unknown(error.to_string()),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An error of a connection, in Go's words.
fn dial_error(address: &str, error: &std::io::Error) -> String {
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {why}")
}

async fn tcp_socket(tcp: &TCPSocketAction, container: &Container, ip: &str, timeout: Duration) -> Finding {
    let port = match port(&tcp.port, container) {
        Ok(port) => port,
        Err(why) => return Finding::Unknown(why),
    };
    let address = join(tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip), port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Finding::Success,
        Ok(Err(error)) => Finding::Failure(dial_error(&address, &error)),
        Err(_) => Finding::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Asks for a page; the error says why it couldn't even be asked for.
pub async fn http_get(get: &HTTPGetAction, container: &Container, ip: &str, asker: Asker, timeout: Duration) -> Result<Finding, String> {
    let port = port(&get.port, container)?;
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip);
    let tls = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = get.path.as_deref().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(asker.agent()));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    for header in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(&header.value).map_err(|e| e.to_string())?;
        // Upstream: an empty one leaves the default out.
        headers.remove(&name);
        if !header.value.is_empty() {
            headers.append(name, value);
        }
    }
    let mut url = format!("{}://{}{slash}{path}", if tls { "https" } else { "http" }, join(host, port));
    let ask = async {
        for _ in 0..REDIRECTS {
            let (status, location, body) = request(&url, &headers).await?;
            let Some(next) = location.filter(|_| status.is_redirection()).and_then(|to| redirect(&url, &to)) else {
                return Ok(judge(status, &body));
            };
            match next {
                Ok(next) => url = next,
                // Elsewhere isn't where the pod is.
                Err(()) => return Ok(Finding::Warning(format!("Probe terminated redirects, Response body: {body}"))),
            }
        }
        Err(format!("Get {url:?}: stopped after {REDIRECTS} redirects"))
    };
    Ok(match tokio::time::timeout(timeout, ask).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(why)) => Finding::Failure(why),
        Err(_) => Finding::Failure(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    })
}

fn judge(status: StatusCode, body: &str) -> Finding {
    match status.as_u16() {
        200..=299 => Finding::Success,
        300..=399 => Finding::Warning(format!("Probe terminated redirects, Response body: {body}")),
        // Not the body: it may hold what isn't for everybody.
        code => Finding::Failure(format!("HTTP probe failed with statuscode: {code}")),
    }
}

/// Where a redirect leads: an error for another host.
fn redirect(from: &str, to: &str) -> Option<Result<String, ()>> {
    let from: Uri = from.parse().ok()?;
    let target: Uri = to.parse().ok()?;
    match target.host() {
        None => Some(Ok(format!("{}://{}{}", from.scheme_str()?, from.authority()?, target))),
        Some(host) if Some(host) == from.host() => Some(Ok(to.to_owned())),
        Some(_) => Some(Err(())),
    }
}

type Answer = (StatusCode, Option<String>, String);

async fn request(url: &str, headers: &HeaderMap) -> Result<Answer, String> {
    let failed = |why: String| format!("Get {url:?}: {why}");
    let uri: Uri = url.parse().map_err(|e: http::uri::InvalidUri| failed(e.to_string()))?;
    let tls = uri.scheme_str() == Some("https");
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let address = if uri.port().is_some() { authority.clone() } else { format!("{authority}:{}", if tls { 443 } else { 80 }) };
    let stream = TcpStream::connect(&address).await.map_err(|e| failed(dial_error(&address, &e)))?;
    let stream: Box<dyn Duplex> = if tls {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|e| failed(e.to_string()))?;
        Box::new(connector().connect(name, stream).await.map_err(|e| failed(e.to_string()))?)
    } else {
        Box::new(stream)
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut request = Request::get(path).body(Empty::<Bytes>::new()).map_err(|e| failed(e.to_string()))?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::try_from(authority).map_err(|e| failed(e.to_string()))?);
    }
    let answer = async {
        let mut response = sender.send_request(request).await.map_err(|_| failed("EOF".into()))?;
        let mut body = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let Ok(data) = frame.map_err(|e| failed(e.to_string()))?.into_data() else { continue };
            let room = MOST.saturating_sub(body.len());
            body.extend_from_slice(&data[..data.len().min(room)]);
            if room <= data.len() {
                break;
            }
        }
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        Ok((response.status(), location, String::from_utf8_lossy(&body).into_owned()))
    };
    let answer = answer.await;
    driver.abort();
    answer
}

/// Trusts any certificate: a probe asks whether somebody answers, not who.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn connector() -> tokio_rustls::TlsConnector {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
        #[allow(clippy::unwrap_used, reason = "ring's provider has the default versions")]
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth())
    });
    config.clone().into()
}

/// The health service of gRPC, `grpc.health.v1.Health/Check`.
async fn grpc_health(grpc: &GRPCAction, ip: &str, timeout: Duration) -> Finding {
    let service = grpc.service.as_deref().unwrap_or_default();
    let Ok(port) = u16::try_from(grpc.port) else { return Finding::Unknown(format!("invalid port number: {}", grpc.port)) };
    let address = join(ip, port);
    match tokio::time::timeout(timeout, grpc_check(&address, service)).await {
        Ok(finding) => finding,
        Err(_) => {
            let after = format!("{}s", timeout.as_secs());
            Finding::Failure(format!("timeout: failed to connect service {address:?} within {after}: context deadline exceeded"))
        }
    }
}

async fn grpc_check(address: &str, service: &str) -> Finding {
    let failed = |why: String| Finding::Failure(format!("error: health rpc probe failed: {why}"));
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return Finding::Failure(format!("error: failed to connect service at {address:?}: {}", dial_error(address, &error))),
    };
    let (mut sender, connection) = match http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await {
        Ok(both) => both,
        Err(error) => return failed(error.to_string()),
    };
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(USER_AGENT, Asker::Probe.agent())
        .body(Full::new(health_request(service)));
    let answer = async {
        let request = request.map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?;
        let status = |headers: &HeaderMap, key: &str| headers.get(key).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let trailers = body.trailers().cloned().unwrap_or_default();
        let code = status(&trailers, "grpc-status").or_else(|| status(&parts.headers, "grpc-status")).unwrap_or_default();
        let message = status(&trailers, "grpc-message").or_else(|| status(&parts.headers, "grpc-message")).unwrap_or_default();
        Ok::<_, String>((code, message, body.to_bytes()))
    };
    let answer = answer.await;
    driver.abort();
    match answer {
        Err(why) => failed(why),
        Ok((code, _, body)) if code == "0" => match health_status(&body) {
            1 => Finding::Success,
            status => {
                let word = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"].get(usize::from(status)).copied().unwrap_or("UNKNOWN");
                Finding::Failure(format!("service unhealthy (responded with {word:?})"))
            }
        },
        Ok((code, message, _)) if code == "12" => {
            Finding::Failure(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"))
        }
        Ok((code, message, _)) => failed(format!("rpc error: code = {code} desc = {message}")),
    }
}

/// A gRPC message with one protobuf field: 1, the service's name.
fn health_request(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        field.put_u8(length as u8);
        field.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    message.unsplit(field);
    message.freeze()
}

/// The protobuf field 1 of a gRPC message: the status, 0 when absent.
fn health_status(message: &[u8]) -> u8 {
    match message.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn container() -> Container {
        serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]})).expect("a container")
    }

    #[test]
    fn ports() {
        let check = |wanted: IntOrString, expected: Result<u16, &str>| assert_eq!(port(&wanted, &container()), expected.map_err(str::to_owned));
        check(IntOrString::Int(80), Ok(80));
        check(IntOrString::String("web".into()), Ok(8080));
        check(IntOrString::String("81".into()), Ok(81));
        check(IntOrString::String("none".into()), Err("couldn't find port: \"none\""));
        check(IntOrString::Int(0), Err("invalid port number: 0"));
    }

    #[test]
    fn redirects_stay_with_the_host() {
        assert_eq!(redirect("http://10.0.0.1:80/a", "/b?c"), Some(Ok("http://10.0.0.1:80/b?c".into())));
        assert_eq!(redirect("http://10.0.0.1:80/a", "http://10.0.0.1:81/"), Some(Ok("http://10.0.0.1:81/".into())));
        assert_eq!(redirect("http://10.0.0.1:80/a", "http://example.com/"), Some(Err(())));
    }

    /// Serves each answer once, on a port of its own.
    async fn serve(answers: Vec<&'static str>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn get(port: u16) -> Finding {
        let action: HTTPGetAction = serde_json::from_value(json!({"port": port, "path": "/"})).expect("an action");
        http_get(&action, &container(), "127.0.0.1", Asker::Probe, Duration::from_secs(5)).await.expect("asked")
    }

    #[tokio::test]
    async fn answers_are_judged_by_their_code() {
        let ok = serve(vec!["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        assert_eq!(get(ok).await, Finding::Success);
        let bad = serve(vec!["HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"]).await;
        assert_eq!(get(bad).await, Finding::Failure("HTTP probe failed with statuscode: 503".into()));
        let moved = serve(vec!["HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
        assert_eq!(get(moved).await, Finding::Success);
        let none = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
        assert_eq!(get(none).await, Finding::Failure(format!("Get \"http://127.0.0.1:{none}/\": dial tcp 127.0.0.1:{none}: connect: connection refused")));
    }

    /// Answers every call with that message and code, as a gRPC server does; its port.
    async fn serve_grpc(message: &'static [u8], code: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))]);
                let body = Full::new(Bytes::from_static(message)).with_trailers(async move { Some(Ok(trailers)) });
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
        port
    }

    #[tokio::test]
    async fn grpc_health_is_asked_for() {
        let check = async |message: &'static [u8], code: &'static str, expected: Finding| {
            let port = serve_grpc(message, code).await;
            assert_eq!(grpc_check(&format!("127.0.0.1:{port}"), "svc").await, expected);
        };
        let failure = |why: &str| Finding::Failure(why.to_owned());
        check(&[0, 0, 0, 0, 2, 8, 1], "0", Finding::Success).await;
        check(&[0, 0, 0, 0, 2, 8, 2], "0", failure("service unhealthy (responded with \"NOT_SERVING\")")).await;
        check(&[], "12", failure("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ")).await;
    }

    #[tokio::test]
    async fn tcp_ports_are_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let action: TCPSocketAction = serde_json::from_value(json!({"port": port})).expect("an action");
        assert_eq!(tcp_socket(&action, &container(), "127.0.0.1", Duration::from_secs(5)).await, Finding::Success);
        drop(listener);
        let refused = tcp_socket(&action, &container(), "127.0.0.1", Duration::from_secs(5)).await;
        assert_eq!(refused, Finding::Failure(format!("dial tcp 127.0.0.1:{port}: connect: connection refused")));
    }

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!((health_status(&[0, 0, 0, 0, 2, 8, 1]), health_status(&[0, 0, 0, 0, 0])), (1, 0));
    }
}
