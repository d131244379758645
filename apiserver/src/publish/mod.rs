//! What the server tells about itself: health, version, discovery, OpenAPI, metrics.

mod discovery;
mod health;
mod metrics;
mod openapi;

pub(crate) use openapi::OpenApi;

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};
use skiff_api::Status;

use crate::auth::tokens::ISSUER;
use crate::http::body::{Reply, full, reply, text};
use crate::http::encode::answer;
use crate::http::info::RequestInfo;
use crate::http::negotiate::{self, Shape};
use crate::http::query::Query;
use crate::server::Server;

/// The version of Kubernetes that this is.
pub const MAJOR_MINOR_PATCH: &str = "v1.36.2";

/// A refusal of a path that leads nowhere: plain text, as upstream has it.
pub(crate) fn no_such_path() -> Reply {
    text(404, "404 page not found\n")
}

/// Answers what is no resource.
pub(crate) async fn serve(server: &Arc<Server>, info: &RequestInfo, query: &Query, headers: &HeaderMap) -> Result<Reply, Status> {
    let json = |value: Value| Ok(answer(200, &value, Shape::JSON, negotiate::pretty(headers, query.get("pretty"))));
    let path = info.path.trim_end_matches('/');
    // What isn't a route of an API answers every method alike.
    let routed = matches!(path.split('/').collect::<Vec<_>>()[..], ["", "version"] | ["", "api", ..] | ["", "apis", _, _, ..]);
    if routed && !matches!(info.verb, "get" | "head") {
        return Err(Status::method_not_allowed());
    }
    if let Some(found) = discovery::serve(server, path, headers) {
        return found;
    }
    let path = if path == "/version" { path } else { info.path.as_str() };
    match path {
        "/healthz" | "/livez" | "/readyz" => Ok(health::all(server, path, query).await),
        "/version" => json(version(server)),
        "/metrics" => Ok(metrics::text(server).await),
        "/metrics/slis" => Ok(metrics::slis(server).await),
        "/openapi/v2" | "/openapi/v3" => openapi::serve(server, path, headers).await,
        "/.well-known/openid-configuration" => json(json!({
            "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        })),
        "/openid/v1/jwks" => Ok(reply(200, "application/jwk-set+json", full(server.tokens.key_set().to_string()))),
        "/" => json(json!({"paths": paths(server)})),
        path if path.starts_with("/openapi/v3/") => openapi::serve(server, path, headers).await,
        path => match path.split_once("z/").filter(|(kind, _)| matches!(*kind, "/health" | "/live" | "/ready")) {
            Some((kind, check)) => Ok(health::one(server, &format!("{kind}z"), check).await),
            None => Ok(no_such_path()),
        },
    }
}

fn version(server: &Server) -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": format!("{MAJOR_MINOR_PATCH}+{}", server.build), "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", arch()),
    })
}

/// This machine's architecture in Go's words, which Kubernetes uses.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(server: &Server) -> Vec<String> {
    let served = server.registry.now();
    let mut paths: Vec<String> = ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
        .map(str::to_owned)
        .into();
    for (group, versions) in served.groups().iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.sort();
    paths
}
