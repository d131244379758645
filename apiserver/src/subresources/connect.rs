//! Requests that are carried on to where the pod runs: logs, exec, attach, port-forward to its kubelet; proxies to the
//! pod, the service or the node itself. Upgraded connections are passed through byte by byte.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyStream, Full};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use skiff_api::resource::Subresource;
use skiff_api::{Status, field, value};

use crate::admission::{self, Operation};
use crate::dial::{self, Connection};
use crate::http::body::{self, Reply, full, stream, text};
use crate::services;
use crate::verbs::Call;

/// The client's side of an upgraded connection.
pub(crate) type Upgrade = OnUpgrade;

/// What belongs to one connection only.
const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    http::header::TRANSFER_ENCODING,
    http::header::TE,
];

/// Carries a request on.
pub(crate) async fn connect<B>(call: &Call, method: Method, uri: Uri, incoming: B) -> Result<Reply, Status>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let sub = call.subresource().ok_or_else(Status::no_such_resource)?;
    if !sub.verbs.has(call.info.verb) {
        return Err(Status::method_not_allowed());
    }
    let body = body::collect(incoming).await?;
    let query = uri.query().map_or(String::new(), |q| format!("?{q}"));
    // Reading a log connects to nothing.
    if call.info.subresource != "log" {
        admission::validate_other(call, Operation::Connect, &mut options(call, sub), false).await?;
    }
    if call.info.subresource == "proxy" {
        return proxy(call, method, &query, body).await;
    }
    let pod = call.read().await?.value()?;
    let container = container(call, &pod)?;
    let node = value::text(&pod, &["spec", "nodeName"]);
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let path = match call.info.subresource.as_str() {
        "log" => {
            check_log_options(call)?;
            // A pod that isn't anywhere yet has said nothing.
            if node.is_empty() {
                return Ok(text(200, ""));
            }
            format!("/containerLogs/{namespace}/{name}/{container}{query}")
        }
        "portforward" => format!("/portForward/{namespace}/{name}{query}"),
        kind => format!("/{kind}/{namespace}/{name}/{container}{query}"),
    };
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let connection = dial_node(call, node).await?;
    forward(call.headers.clone(), connection, method, &path, body, call.upgrade.clone()).await
}

/// What admission sees of a connection: the query as an object, `PodExecOptions` and the like.
fn options(call: &Call, sub: &Subresource) -> Value {
    let mut options = json!({"kind": sub.kind, "apiVersion": "v1"});
    for stream in ["stdin", "stdout", "stderr", "tty"] {
        if call.query.get(stream).is_some() && call.query.flag(stream) {
            options[stream] = true.into();
        }
    }
    if let Some(container) = call.query.get("container") {
        options["container"] = container.into();
    }
    let command = call.query.all("command");
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    let ports: Vec<u16> = call.query.all("ports").iter().flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    if call.info.subresource == "proxy" {
        options["path"] = call.info.rest.as_str().into();
    }
    options
}

/// The container that a request is about: the one named, or the only one.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let asked = call.query.get("container").unwrap_or("");
    let name = &call.info.name;
    let names = |list: &str| -> Vec<String> {
        value::items(pod, &["spec", list]).iter().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let main = names("containers");
    let others: Vec<String> = names("initContainers").into_iter().chain(names("ephemeralContainers")).collect();
    if call.info.subresource == "portforward" {
        return Ok(String::new());
    }
    if !asked.is_empty() {
        let known = main.iter().chain(&others).any(|c| c == asked);
        return if known { Ok(asked.to_owned()) } else { Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))) };
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    let init = names("initContainers");
    let init = if init.is_empty() { String::new() } else { format!(" or one of the init containers: [{}]", init.join(" ")) };
    Err(Status::bad_request(format!("a container name must be specified for pod {name}, choose one of: [{}]{init}", main.join(" "))))
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    let mut errors = Vec::new();
    for (key, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(number) = call.query.int(key)?
            && number < least
        {
            let detail = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(field::Error::invalid(key, number, detail));
        }
    }
    if call.query.get("sinceTime").is_some() && call.query.get("sinceSeconds").is_some() {
        errors.push(field::Error::forbidden("sinceSeconds", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", &call.info.name, &errors)) }
}

async fn dial_node(call: &Call, node: &str) -> Result<Box<dyn Connection>, Status> {
    let object = call.server.cache.resource("/registry/minions/").and_then(|c| c.get(&format!("/registry/minions/{node}")));
    let object = object.ok_or_else(|| Status::not_found(call.resource.group_resource(), node))?;
    let object = object.value().map_err(Status::internal)?;
    call.server.dialer.dial(&object).await.map_err(|error| Status::internal(format!("error dialing backend: {error}")))
}

async fn proxy(call: &Call, method: Method, query: &str, body: Bytes) -> Result<Reply, Status> {
    let path = if call.info.rest.is_empty() { "/" } else { &call.info.rest };
    let path = format!("{path}{query}");
    let (scheme, name, port) = split_target(&call.info.name);
    let connection: Box<dyn Connection> = match call.resource.plural.as_ref() {
        "nodes" => dial_node(call, name).await?,
        plural => {
            if scheme == "https" {
                return Err(Status::new(501, "NotImplemented", "proxying to https targets is not served"));
            }
            let address = if plural == "pods" { pod_address(call, name, port)? } else { services::endpoint(&call.server.cache, &call.info.namespace, name, port)? };
            let connection = dial::tcp(address).await;
            let failed = |error| Status::new(503, "ServiceUnavailable", format!("error trying to reach service: dial tcp {address}: {error}"));
            Box::new(connection.map_err(failed)?)
        }
    };
    forward(call.headers.clone(), connection, method, &path, body, call.upgrade.clone()).await
}

/// `http:name:port`, `name:port` or `name`.
fn split_target(target: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = target.split(':').collect();
    match parts.as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", target, ""),
    }
}

fn pod_address(call: &Call, name: &str, port: &str) -> Result<SocketAddr, Status> {
    let key = format!("/registry/pods/{}/{name}", call.info.namespace);
    let pod = call.server.cache.resource("/registry/pods/").and_then(|c| c.get(&key));
    let pod = pod.ok_or_else(|| Status::not_found(call.resource.group_resource(), name))?.value().map_err(Status::internal)?;
    let ip = value::text(&pod, &["status", "podIP"]).parse().ok().filter(is_proxyable);
    let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let first = value::items(&pod, &["spec", "containers"]).iter().flat_map(|c| value::items(c, &["ports"])).find_map(|p| p["containerPort"].as_u64());
    let port = if port.is_empty() { first.unwrap_or(80).to_string() } else { port.to_owned() };
    let port = port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?;
    Ok(SocketAddr::new(ip, port))
}

/// Whether the server may be led to the address. Who may write a pod's status could name its own machine there, or one that only
/// this machine reaches: upstream proxies to global unicast addresses alone.
fn is_proxyable(ip: &IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

fn without_hops(headers: &HeaderMap, upgrading: bool) -> HeaderMap {
    let mut kept = headers.clone();
    for name in HOP_BY_HOP {
        if !upgrading || (name != CONNECTION && name != UPGRADE) {
            kept.remove(name);
        }
    }
    kept
}

/// Speaks HTTP on the connection: passes the request, then the answer (or, upgraded, everything) back.
pub(crate) async fn forward(
    headers: HeaderMap,
    connection: Box<dyn Connection>,
    method: Method,
    path: &str,
    body: Bytes,
    upgrade: Option<Upgrade>,
) -> Result<Reply, Status> {
    let failed = |error: hyper::Error| Status::new(502, "", format!("error proxying the request: {error}"));
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(failed)?;
    tokio::spawn(driver.with_upgrades());
    let upgrading = headers.contains_key(UPGRADE);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|e| Status::bad_request(format!("path {path:?}: {e}")))?;
    *request.headers_mut() = without_hops(&headers, upgrading);
    // Who asked is the API server's to know.
    request.headers_mut().remove(http::header::AUTHORIZATION);
    request.headers_mut().remove(http::header::CONTENT_LENGTH);
    request.headers_mut().entry(HOST).or_insert_with(|| http::HeaderValue::from_static("localhost"));
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let theirs = hyper::upgrade::on(&mut response);
        let ours = upgrade.ok_or_else(|| Status::bad_request("this connection can't be upgraded"))?;
        tokio::spawn(async move {
            let (ours, theirs) = match tokio::try_join!(ours, theirs) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "upgrade came to nothing"),
            };
            // An end on either side is how these connections end.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
        });
        let mut reply = http::Response::new(full(Bytes::new()));
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *reply.headers_mut() = response.headers().clone();
        return Ok(reply);
    }
    let (parts, incoming) = response.into_parts();
    let chunks = BodyStream::new(incoming).filter_map(|frame| async move {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(io::Error::other(error))),
        }
    });
    let mut reply = http::Response::new(stream(chunks));
    *reply.status_mut() = parts.status;
    *reply.headers_mut() = without_hops(&parts.headers, false);
    reply.headers_mut().remove(http::header::CONTENT_LENGTH);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(split_target("a"), ("", "a", ""));
        assert_eq!(split_target("a:80"), ("", "a", "80"));
        assert_eq!(split_target("http:a:web"), ("http", "a", "web"));
    }

    #[test]
    fn where_the_server_may_be_led() {
        let check = |ip: &str, expected| assert_eq!(is_proxyable(&ip.parse().expect(ip)), expected, "{ip}");
        for ip in ["10.0.0.1", "172.17.0.2", "8.8.8.8", "fd00::1"] {
            check(ip, true);
        }
        for ip in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"] {
            check(ip, false);
        }
    }
}
