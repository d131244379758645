//! Clients that speak to an API server of this process: no socket, no TLS.

use std::convert::Infallible;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::http::body::Body;
use tower::service_fn;

/// A client that is `user`, with `agent` for a name in `managedFields` and logs.
pub fn client(server: &Arc<Server>, user: User, agent: &'static str) -> kube::Client {
    let server = Arc::clone(server);
    let service = service_fn(move |mut request: Request<kube::client::Body>| -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let (server, user) = (Arc::clone(&server), user.clone());
        request.headers_mut().entry(http::header::USER_AGENT).or_insert(http::HeaderValue::from_static(agent));
        async move { Ok(server.handle(request, Some(user)).await) }.boxed()
    });
    kube::Client::new(service, "default")
}
