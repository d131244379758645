//! The kubelet's own API: logs, exec, attach, port-forward, figures. Asked by the API server on behalf of its clients, whose
//! upgraded connections it passes through untouched.

mod auth;
mod listen;
mod logs;
mod stats;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use skiff_api::Status;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::context::Context;
use crate::pod;
use crate::runtime::{Container, ContainerState, PodState};

pub(crate) use listen::listen;

/// The kubelet's API as a service.
pub(crate) fn router(ctx: Arc<Context>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(stats::pods))
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(stats::metrics))
        .route("/metrics/resource", get(stats::resource_metrics))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
        .route("/exec/{namespace}/{pod}/{container}", any(stream::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(stream::attach))
        .route("/portForward/{namespace}/{pod}", any(stream::port_forward))
        .with_state(ctx)
}

/// Serves the API on one connection, of any sort.
pub async fn serve_connection<T>(router: Router, connection: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper_util::service::TowerToHyperService::new(router);
    let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    let connection = server.serve_connection_with_upgrades(hyper_util::rt::TokioIo::new(connection), service);
    if let Err(error) = connection.await {
        tracing::debug!(error = %error, "a connection to the kubelet ended");
    }
}

/// A refusal, as an object of the API.
pub(super) struct Refusal(Status);

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self(Status::bad_request(message))
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self(Status::new(404, "NotFound", message))
    }

    fn internal(error: impl std::fmt::Display) -> Self {
        Self(Status::internal(error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, axum::Json(self.0.to_value())).into_response()
    }
}

/// The query of a request, each name with its values in order.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request) -> Self {
        Self(form_pairs(request.uri().query().unwrap_or_default()))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A switch: Go's spellings of true, and any of upstream's two names.
    fn on(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.all(name).any(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| Refusal::bad_request(format!("invalid value for {name}: {text:?}"))),
        }
    }
}

/// Reads `a=1&b=2`, with `%` escapes and `+` for a blank.
fn form_pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let escaped = after.first_chunk::<2>().and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            rest = match (first, escaped) {
                (b'%', Some(byte)) => {
                    bytes.push(byte);
                    &after[2..]
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    after
                }
                (other, _) => {
                    bytes.push(*other);
                    after
                }
            };
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

/// A pod of this node, and what the runtime has of it.
async fn find(ctx: &Context, namespace: &str, name: &str) -> Result<(Arc<k8s_openapi::api::core::v1::Pod>, PodState), Refusal> {
    let pod = ctx.find_pod(namespace, name).ok_or_else(|| Refusal::not_found(format!("pod {:?} not found", format!("{name}_{namespace}"))))?;
    let state = ctx.runtime.pod_state(pod::uid(&pod)).await.map_err(Refusal::internal)?;
    Ok((pod, state))
}

/// The container of that name, which runs.
fn running<'a>(state: &'a PodState, pod: &str, name: &str) -> Result<&'a Container, Refusal> {
    let container = state.container(name).filter(|c| c.state == ContainerState::Running);
    container.ok_or_else(|| Refusal::not_found(format!("container not found (\"{name}\") in pod {pod:?}")))
}

type Shared = State<Arc<Context>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query(form_pairs("command=sh&command=-c&command=echo+a%20b%2Bc&stdin=true&tty=0&tailLines=x&empty="));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b+c"]);
        assert!(query.on(&["input", "stdin"]) && !query.on(&["tty"]) && !query.on(&["stdout"]));
        assert_eq!(query.get("empty"), None);
        assert!(query.number::<u64>("tailLines").is_err());
    }
}
