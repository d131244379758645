//! Subresources that are more than a view of the object, and the kinds that are never stored but answered at once.

mod binding;
mod connect;
mod eviction;
mod links;
mod proxy;
mod review;
pub(crate) mod scale;
mod token;

use bytes::Bytes;
use skiff_api::Status;

use crate::http::body::Reply;
use crate::http::info::RequestInfo;
use crate::verbs::Call;

pub(crate) use connect::{Upgrade, connect, forward};
pub(crate) use review::shown as user_info;

/// The subresources whose requests are carried on to where the pod runs.
const STREAMS: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// Whether the request is carried on to a kubelet, a pod or a service.
pub(crate) fn streams(info: &RequestInfo) -> bool {
    info.group.is_empty() && STREAMS.contains(&info.subresource.as_str())
}

/// Carries out a request of a subresource that is no view.
pub(crate) async fn serve(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    match (call.resource.plural.as_ref(), call.info.subresource.as_str()) {
        ("pods", "binding") => binding::bind(call, body, &call.info.name).await,
        ("pods", "eviction") => eviction::evict(call, body).await,
        ("serviceaccounts", "token") => token::create(call, body).await,
        _ => Err(Status::no_such_resource()),
    }
}

/// Answers the creation of something that is never stored.
pub(crate) async fn review(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    match call.resource.plural.as_ref() {
        "bindings" => binding::bind(call, body, "").await,
        _ => review::create(call, body).await,
    }
}
