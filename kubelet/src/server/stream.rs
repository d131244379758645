//! Exec, attach and port-forward: from a request to an upgraded connection.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{Query, Refusal, Shared, find, running};
use crate::context::Context;
use crate::runtime::{ExecRequest, Session};
use crate::streams::port_forward::{self, Connect};
use crate::streams::remote_command::{self, Client, Wanted};
use crate::streams::{spdy, websocket};

/// Where SPDY's clients and servers agree on what the streams mean.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What is to be connected with a client.
enum Job {
    Exec,
    Attach,
}

pub(super) async fn exec(state: Shared, path: Path<(String, String, String)>, request: Request) -> Result<Response, Refusal> {
    remote_command(state, path, request, Job::Exec).await
}

pub(super) async fn attach(state: Shared, path: Path<(String, String, String)>, request: Request) -> Result<Response, Refusal> {
    remote_command(state, path, request, Job::Attach).await
}

/// How a client wants to speak.
enum Upgrade {
    WebSocket(WebSocketUpgrade),
    Spdy(OnUpgrade),
}

async fn upgrade(request: Request) -> Result<(Upgrade, axum::http::request::Parts), Refusal> {
    let (mut parts, _) = request.into_parts();
    let named = parts.headers.get_all(UPGRADE).iter().filter_map(|v| v.to_str().ok());
    let named: Vec<String> = named.flat_map(|v| v.split(',')).map(|v| v.trim().to_lowercase()).collect();
    let wants = |protocol: &str| named.iter().any(|name| name == protocol);
    if wants("websocket") {
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
        let upgrade = upgrade.map_err(|rejected| Refusal::bad_request(rejected.body_text()))?;
        return Ok((Upgrade::WebSocket(upgrade), parts));
    }
    match parts.extensions.remove::<OnUpgrade>().filter(|_| wants("spdy/3.1")) {
        Some(upgrade) => Ok((Upgrade::Spdy(upgrade), parts)),
        None => Err(Refusal::bad_request("Upgrade request required")),
    }
}

/// The protocol of the client's that we like best; its oldest ones name none.
fn agree(parts: &axum::http::request::Parts, ours: &[&'static str]) -> Result<&'static str, Refusal> {
    let named: Vec<&str> = parts.headers.get_all(&STREAM_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    if named.is_empty() {
        return ours.last().copied().ok_or_else(|| Refusal::bad_request("no protocol"));
    }
    let best = ours.iter().find(|protocol| named.contains(*protocol));
    best.copied().ok_or_else(|| {
        Refusal::bad_request(format!("unable to upgrade: unable to negotiate protocol: client supports {named:?}, server accepts {ours:?}"))
    })
}

/// The answer that turns a connection into SPDY.
fn switching(protocol: &'static str) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

async fn remote_command(State(ctx): Shared, Path((namespace, name, container)): Path<(String, String, String)>, request: Request, job: Job) -> Result<Response, Refusal> {
    let query = Query::of(&request);
    let tty = query.on(&["tty"]);
    let wanted = Wanted {
        stdin: query.on(&["stdin", "input"]),
        stdout: query.on(&["stdout", "output"]),
        stderr: query.on(&["stderr", "error"]) && !tty,
        tty,
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    let (pod, state) = find(&ctx, &namespace, &name).await?;
    let id = running(&state, &name, &container)?.id.clone();
    let tty = match job {
        Job::Exec if command.is_empty() => return Err(Refusal::bad_request("you must specify at least 1 command for the container")),
        Job::Exec => wanted.tty,
        // The container has a terminal or not, whatever the client thinks.
        Job::Attach => crate::pod::container(&pod, &container).and_then(|(_, c)| c.tty).unwrap_or(false),
    };
    let ask = ExecRequest { command: command.clone(), stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr, tty };
    let (upgrade, parts) = upgrade(request).await?;
    match upgrade {
        Upgrade::WebSocket(upgrade) => {
            let upgrade = upgrade.protocols(remote_command::WEBSOCKET_PROTOCOLS);
            let structured = upgrade.selected_protocol().is_some_and(|p| p.as_bytes().starts_with(b"v"));
            Ok(upgrade.on_upgrade(async move |socket| {
                let (sender, receiver) = websocket::split(socket);
                let said = remote_command::listen_websocket(receiver);
                let session = open(&ctx, &id, &job, &ask).await;
                remote_command::serve(session, Client::WebSocket { sender, structured }, said, &command).await;
            }))
        }
        Upgrade::Spdy(upgrade) => {
            let protocol = agree(&parts, &remote_command::SPDY_PROTOCOLS)?;
            let structured = protocol == remote_command::SPDY_PROTOCOLS[0];
            // Version 3 knows sizes of terminals too.
            let sizes = structured || protocol == remote_command::SPDY_PROTOCOLS[1];
            tokio::spawn(async move {
                let connection = match upgrade.await {
                    Ok(connection) => connection,
                    Err(error) => return tracing::debug!(%error, "upgrading to SPDY failed"),
                };
                let mut streams = spdy::serve(TokioIo::new(connection));
                match remote_command::open_spdy(&mut streams, wanted, sizes, structured).await {
                    Ok((client, said)) => {
                        let session = open(&ctx, &id, &job, &ask).await;
                        remote_command::serve(session, client, said, &command).await;
                        remote_command::linger(streams).await;
                    }
                    Err(error) => tracing::debug!(%error, "a client opened no streams"),
                }
            });
            Ok(switching(protocol))
        }
    }
}

async fn open(ctx: &Context, id: &str, job: &Job, request: &ExecRequest) -> Result<Session, String> {
    let session = match job {
        Job::Exec => ctx.runtime.exec(id, request).await,
        Job::Attach => ctx.runtime.attach(id, request).await,
    };
    session.map_err(|e| e.to_string())
}

pub(super) async fn port_forward(State(ctx): Shared, Path((namespace, name)): Path<(String, String)>, request: Request) -> Result<Response, Refusal> {
    let query = Query::of(&request);
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|list| list.split(',')).filter(|text| !text.is_empty()) {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        ports.push(port.ok_or_else(|| Refusal::bad_request(format!("unable to parse {text:?} as a port")))?);
    }
    let (_, state) = find(&ctx, &namespace, &name).await?;
    let sandbox = state.ready_sandbox().cloned().ok_or_else(|| Refusal::not_found(format!("pod {name:?} is not running")))?;
    let runtime = ctx.runtime.clone();
    let connect: Connect = Arc::new(move |port| {
        let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
        async move { runtime.port_forward(&sandbox, port).await.map_err(|e| e.to_string()) }.boxed()
    });
    let (upgrade, parts) = upgrade(request).await?;
    match upgrade {
        Upgrade::WebSocket(upgrade) => {
            let upgrade = upgrade.protocols(port_forward::WEBSOCKET_PROTOCOLS);
            let tunnelled = upgrade.selected_protocol().is_some_and(|p| p == port_forward::TUNNELLED);
            if !tunnelled && ports.is_empty() {
                return Err(Refusal::bad_request("query parameter \"ports\" is required"));
            }
            Ok(upgrade.on_upgrade(async move |socket| {
                if tunnelled {
                    port_forward::serve_spdy(spdy::serve(websocket::tunnel(socket)), connect).await;
                } else {
                    port_forward::serve_websocket(socket, ports, connect).await;
                }
            }))
        }
        Upgrade::Spdy(upgrade) => {
            let protocol = agree(&parts, &port_forward::SPDY_PROTOCOLS)?;
            tokio::spawn(async move {
                match upgrade.await {
                    Ok(connection) => port_forward::serve_spdy(spdy::serve(TokioIo::new(connection)), connect).await,
                    Err(error) => tracing::debug!(%error, "upgrading to SPDY failed"),
                }
            });
            Ok(switching(protocol))
        }
    }
}
