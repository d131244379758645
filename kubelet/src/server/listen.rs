//! The kubelet's HTTPS server, for API servers of other processes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::auth::{Authorizer, User};
use super::{router, serve_connection};
use crate::config::Listen;
use crate::context::Context;

/// How long a client has for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The pause after a connection couldn't be taken, for want of files for instance.
const PAUSE: Duration = Duration::from_millis(100);

struct Guard {
    ctx: Arc<Context>,
    authorizer: Authorizer,
}

/// Lets a request through if its user may make it.
async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let user = request.extensions().get::<User>().cloned();
    let Some(user) = user else { return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response() };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if guard.authorizer.allows(&guard.ctx, &user, &method, &path).await {
        return next.run(request).await;
    }
    let message = format!("Forbidden (user={}, verb={}, resource=nodes)", user.name, method.as_str().to_lowercase());
    (StatusCode::FORBIDDEN, message).into_response()
}

/// Takes the address; where another kubelet of this machine has the port, any other.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if error.kind() == ErrorKind::AddrInUse => TcpListener::bind(SocketAddr::new(address.ip(), 0)).await,
        bound => bound,
    }
}

/// Serves until shutdown. The port is told to the node's status when it is known.
pub(crate) async fn listen(ctx: Arc<Context>, listen: &Listen, shutdown: CancellationToken) -> std::io::Result<()> {
    let listener = bind(listen.address).await?;
    ctx.port.send_replace(Some(listener.local_addr()?.port()));
    let acceptor = tokio_rustls::TlsAcceptor::from(listen.tls.clone());
    let guarded = Arc::new(Guard { ctx: ctx.clone(), authorizer: Authorizer::default() });
    let app: Router = router(ctx).layer(middleware::from_fn_with_state(guarded, guard));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "taking a connection failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, app, stop) = (acceptor.clone(), app.clone(), shutdown.clone());
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => return,
            };
            let user = stream.get_ref().1.peer_certificates().and_then(|chain| User::of(chain.first()?));
            let app = match user {
                Some(user) => app.layer(axum::Extension(user)),
                None => app,
            };
            tokio::select! {
                () = serve_connection(app, stream) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}
