//! OpenAPI.

use std::sync::Arc;

use http::HeaderMap;
use skiff_api::Status;

use crate::http::body::{Reply, text};
use crate::server::Server;

pub(super) fn serve(_server: &Arc<Server>, _path: &str, _headers: &HeaderMap) -> Result<Reply, Status> {
    Ok(text(404, "404 page not found\n"))
}
