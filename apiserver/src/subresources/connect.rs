//! Requests that are carried on to where the pod runs: logs, exec, attach, port-forward to its kubelet. Upgraded connections are passed through byte by byte.

use std::io;

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
use crate::dial::Connection;
use crate::http::body::{self, Reply, full, stream, text};
use crate::verbs::{Call, websocket};

use super::proxy;

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
    // Upstream has no verb for OPTIONS, and yet carries it on.
    let is_options = call.info.subresource == "proxy" && method == Method::OPTIONS;
    if !is_options && !sub.verbs.has(call.info.verb) {
        return Err(Status::method_not_allowed());
    }
    let body = body::collect(incoming).await?;
    let query = uri.query().map_or(String::new(), |q| format!("?{q}"));
    // Reading a log connects to nothing.
    if call.info.subresource != "log" {
        admission::validate_other(call, Operation::Connect, &mut options(call, sub), false).await?;
    }
    if call.info.subresource == "proxy" {
        return proxy::proxy(call, method, &uri, body).await;
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
    // Kubelets know nothing of logs on WebSockets.
    if call.info.subresource == "log" && websocket::is_asked_for(&call.headers) {
        let reply = forward(without_hops(&call.headers, false), connection, method, &path, body, None).await?;
        return if reply.status() == StatusCode::OK { websocket::log(call, reply) } else { Ok(reply) };
    }
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

pub(super) async fn dial_node(call: &Call, node: &str) -> Result<Box<dyn Connection>, Status> {
    let object = call.server.cache.resource("/registry/minions/").and_then(|c| c.get(&format!("/registry/minions/{node}")));
    let object = object.ok_or_else(|| Status::not_found(call.resource.group_resource(), node))?;
    let object = object.value().map_err(Status::internal)?;
    call.server.dialer.dial(&object).await.map_err(|error| Status::internal(format!("error dialing backend: {error}")))
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
