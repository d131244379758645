//! Exec, attach, logs, and connections into a pod's network.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::models::ExecConfig;
use bollard::query_parameters::{ResizeContainerTTYOptions, ResizeExecOptions};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http_body_util::BodyStream;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use super::super::{Duplex, Error, ExecRequest, LogOptions, Output, Result, Session, TerminalSize};
use super::raw::{self, Frames};
use super::{failed, flag};

/// How long a connection into a pod may take.
const CONNECT: Duration = Duration::from_secs(10);

/// What a resize is for.
#[derive(Clone, Debug)]
enum Terminal {
    Exec(String),
    Container(String),
}

fn session(docker: &Docker, connection: TokioIo<Upgraded>, request: &ExecRequest, terminal: Terminal) -> Session {
    let (read, write) = tokio::io::split(connection);
    let output = FramedRead::new(read, Frames { tty: request.tty }).map_err(|e| Error::Failed(e.to_string())).boxed();
    let resize = request.tty.then(|| {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(4);
        let (docker, terminal) = (docker.clone(), terminal.clone());
        tokio::spawn(async move {
            while let Some(TerminalSize { width, height }) = sizes.recv().await {
                let (w, h) = (width.into(), height.into());
                let resized = match &terminal {
                    Terminal::Exec(id) => docker.resize_exec(id, ResizeExecOptions { w, h }).await,
                    Terminal::Container(id) => docker.resize_container_tty(id, ResizeContainerTTYOptions { w, h }).await,
                };
                if let Err(error) = resized {
                    tracing::debug!(%error, "resizing a terminal failed");
                }
            }
        });
        sender
    });
    let exit = match terminal {
        Terminal::Exec(id) => exit_code(docker.clone(), id).boxed(),
        Terminal::Container(_) => async { Ok(None) }.boxed(),
    };
    Session { stdin: request.stdin.then(|| Box::pin(write) as _), output, resize, exit }
}

/// The exit code of an exec whose output ended.
async fn exit_code(docker: Docker, id: String) -> Result<Option<i32>> {
    // The output may end a moment before Docker has the code.
    for _ in 0..50 {
        let exec = docker.inspect_exec(&id).await.map_err(failed)?;
        if exec.running != Some(true) {
            return Ok(exec.exit_code.and_then(|code| i32::try_from(code).ok()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It closed its output and goes on.
    Ok(None)
}

/// Runs a program in a container.
pub async fn exec(docker: &Docker, socket: &Path, id: &str, request: &ExecRequest) -> Result<Session> {
    let config = ExecConfig {
        attach_stdin: Some(request.stdin),
        attach_stdout: Some(request.stdout),
        attach_stderr: Some(request.stderr),
        tty: Some(request.tty),
        cmd: Some(request.command.clone()),
        ..ExecConfig::default()
    };
    let exec = docker.create_exec(id, config).await.map_err(failed)?.id;
    let body = serde_json::json!({"Detach": false, "Tty": request.tty}).to_string();
    let connection = raw::hijack(socket, &format!("/exec/{exec}/start"), body).await?;
    Ok(session(docker, connection, request, Terminal::Exec(exec)))
}

/// Connects to a container's own process.
pub async fn attach(docker: &Docker, socket: &Path, id: &str, request: &ExecRequest) -> Result<Session> {
    let (stdin, stdout, stderr) = (flag(request.stdin), flag(request.stdout), flag(request.stderr));
    let path = format!("/containers/{id}/attach?stream=1&logs=0&stdin={stdin}&stdout={stdout}&stderr={stderr}");
    let connection = raw::hijack(socket, &path, String::new()).await?;
    Ok(session(docker, connection, request, Terminal::Container(id.to_owned())))
}

/// A container's log.
pub async fn logs(docker: &Docker, socket: &Path, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Bytes>>> {
    let container = docker.inspect_container(id, None).await.map_err(failed)?;
    let tty = container.config.and_then(|c| c.tty).unwrap_or(false);
    let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let since = options.since.map_or_else(|| "0".to_owned(), |t| format!("{}.{:09}", t.as_second(), t.subsec_nanosecond().max(0)));
    let (stdout, stderr) = (flag(options.stdout), flag(options.stderr));
    let (follow, timestamps) = (flag(options.follow), flag(options.timestamps));
    let path = format!(
        "/containers/{id}/logs?stdout={stdout}&stderr={stderr}&follow={follow}&timestamps={timestamps}&since={since}&tail={tail}"
    );
    let body = BodyStream::new(raw::get(socket, &path).await?);
    let bytes = body.try_filter_map(|frame| async { Ok(frame.into_data().ok()) }).map_err(std::io::Error::other);
    let output = FramedRead::new(StreamReader::new(bytes.boxed()), Frames { tty });
    let bytes = output.map_ok(|(Output::Stdout(bytes) | Output::Stderr(bytes))| bytes);
    Ok(bytes.map_err(|e| Error::Failed(e.to_string())).boxed())
}

/// Connects to a port of the network namespace of process `pid`, where it is seen as coming from localhost.
pub async fn connect_inside(pid: i64, port: u16) -> Result<Box<dyn Duplex>> {
    let (sender, connected) = tokio::sync::oneshot::channel();
    let connect = move || -> std::io::Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        let stream = std::net::TcpStream::connect_timeout(&four, CONNECT).or_else(|error| {
            std::net::TcpStream::connect_timeout(&six, CONNECT).map_err(|_| error)
        })?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    // The namespace is the thread's: it lives for this connection only. The socket stays where it was made.
    let spawned = std::thread::Builder::new().name("port-forward".into()).spawn(move || {
        // Whoever asked may have gone.
        let _ = sender.send(connect());
    });
    let refused = |e: std::io::Error| Error::Failed(format!("failed to connect to localhost:{port} inside the pod: {e}"));
    spawned.map_err(refused)?;
    let stream = connected.await.map_err(|e| Error::Failed(e.to_string()))?.map_err(refused)?;
    Ok(Box::new(TcpStream::from_std(stream).map_err(refused)?))
}

/// Connects to a port of the host's own network.
pub async fn connect_host(port: u16) -> Result<Box<dyn Duplex>> {
    let refused = |e: std::io::Error| Error::Failed(format!("failed to connect to localhost:{port}: {e}"));
    Ok(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(refused)?))
}
