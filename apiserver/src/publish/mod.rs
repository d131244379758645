//! What the server tells about itself: health, version, discovery, OpenAPI, metrics.

mod discovery;
mod openapi;

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};
use skiff_api::Status;

use crate::auth::tokens::ISSUER;
use crate::http::body::{Reply, full, reply, text};
use crate::http::encode::bytes_of;
use crate::http::info::RequestInfo;
use crate::http::negotiate::{Format, Shape};
use crate::http::query::Query;
use crate::server::Server;

/// The version of Kubernetes that this is.
pub const MAJOR_MINOR_PATCH: &str = "v1.36.2";

/// A refusal of a path that leads nowhere: plain text, as upstream has it.
pub(crate) fn no_such_path() -> Reply {
    text(404, "404 page not found\n")
}

/// Answers what is no resource.
pub(crate) async fn serve(server: &Arc<Server>, info: &RequestInfo, query: &Query, headers: &HeaderMap, shape: Shape) -> Result<Reply, Status> {
    if !matches!(info.verb, "get" | "head") {
        return Ok(text(405, "405 method not allowed\n"));
    }
    let json = |value: Value| Ok(reply(200, "application/json", full(bytes_of(&value, Format::Json, query.flag("pretty")))));
    let path = info.path.trim_end_matches('/');
    if let Some(found) = discovery::serve(server, path, headers, shape) {
        return Ok(found);
    }
    match path {
        "/healthz" | "/livez" | "/readyz" => health(server, path, query).await,
        "/version" => json(version(server)),
        "/metrics" => Ok(text(200, server.metrics.text())),
        "/openapi/v2" | "/openapi/v3" => openapi::serve(server, path, headers),
        "/.well-known/openid-configuration" => json(json!({
            "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
        })),
        "/openid/v1/jwks" => Ok(reply(200, "application/jwk-set+json", full(server.tokens.key_set().to_string()))),
        "" => json(json!({"paths": paths(server)})),
        path if path.starts_with("/openapi/v3/") => openapi::serve(server, path, headers),
        path => match path.split_once("z/").filter(|(kind, _)| matches!(*kind, "/health" | "/live" | "/ready")) {
            Some((_, check)) => one_check(server, check).await,
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
    let mut paths: Vec<String> = ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"]
        .map(str::to_owned)
        .into();
    for (group, versions) in served.groups().iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.sort();
    paths
}

/// The checks behind `/readyz`: name, and whether it is passed.
async fn checks(server: &Server) -> Vec<(&'static str, Result<(), String>)> {
    let store = server.store.revision().await.map(drop).map_err(|e| e.to_string());
    let cache = if store.is_ok() { server.cache.fresh().await.map(drop).map_err(|e| e.to_string()) } else { Err("the store is down".into()) };
    vec![("ping", Ok(())), ("log", Ok(())), ("etcd", store), ("informer-sync", cache)]
}

async fn health(server: &Server, path: &str, query: &Query) -> Result<Reply, Status> {
    let excluded = query.all("exclude");
    let name = path.trim_start_matches('/');
    let mut report = String::new();
    let mut passed = true;
    for (check, result) in checks(server).await {
        // Being alive doesn't hang on the store.
        let counts = !excluded.contains(&check) && (name != "livez" || check != "informer-sync");
        match result {
            Ok(()) => report.push_str(&format!("[+]{check} ok\n")),
            Err(_) if !counts => report.push_str(&format!("[+]{check} excluded: ok\n")),
            Err(why) => {
                passed = false;
                report.push_str(&format!("[-]{check} failed: {why}\n"));
            }
        }
    }
    Ok(match (passed, query.flag("verbose")) {
        (true, false) => text(200, "ok"),
        (true, true) => text(200, format!("{report}{name} check passed\n")),
        (false, _) => text(500, format!("{report}{name} check failed\n")),
    })
}

async fn one_check(server: &Server, name: &str) -> Result<Reply, Status> {
    Ok(match checks(server).await.into_iter().find(|(check, _)| *check == name) {
        Some((_, Ok(()))) => text(200, "ok"),
        Some((_, Err(why))) => text(500, format!("internal server error: {why}\n")),
        None => no_such_path(),
    })
}
