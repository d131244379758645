//! `/metrics` and `/metrics/slis`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::http::body::{Reply, full, reply};
use crate::metrics::{head, process};
use crate::server::Server;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// All metrics, in Prometheus' text format.
pub(super) async fn text(server: &Server) -> Reply {
    let mut out = String::new();
    server.metrics.expose(&mut out);
    server.flow.expose(&mut out);
    objects(server, &mut out);
    if let Ok(Some(bytes)) = server.store.size().await {
        head(&mut out, "apiserver_storage_size_bytes", "gauge", "[STABLE] Size of the storage database file physically allocated in bytes");
        let _ = writeln!(out, "apiserver_storage_size_bytes{{storage_cluster_id=\"etcd-0\"}} {bytes}");
    }
    let version = super::version(server);
    let text = |key: &str| version[key].as_str().unwrap_or("").to_owned();
    head(&mut out, "kubernetes_build_info", "gauge", "[BETA] What this was built from, with the constant value 1");
    let _ = writeln!(
        out,
        "kubernetes_build_info{{build_date=\"{}\",compiler=\"{}\",git_commit=\"\",git_tree_state=\"clean\",git_version=\"{}\",go_version=\"\",major=\"1\",minor=\"36\",platform=\"{}\"}} 1",
        text("buildDate"),
        text("compiler"),
        text("gitVersion"),
        text("platform")
    );
    process(&mut out);
    reply(200, CONTENT_TYPE, full(out))
}

/// How many objects there are of each resource.
fn objects(server: &Server, out: &mut String) {
    let mut counts = BTreeMap::new();
    for resource in &server.registry.now().ordered {
        if let Some(cache) = server.cache.resource(&resource.storage_prefix).filter(|_| !resource.storage_prefix.is_empty()) {
            counts.entry((resource.group.to_string(), resource.plural.to_string())).or_insert_with(|| cache.len());
        }
    }
    head(out, "apiserver_storage_objects", "gauge", "[STABLE] (Deprecated since 1.34.0) Number of stored objects");
    for ((group, resource), count) in &counts {
        let dot = if group.is_empty() { "" } else { "." };
        let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{resource}{dot}{group}\"}} {count}");
    }
    head(out, "apiserver_resource_objects", "gauge", "[ALPHA] Number of stored objects");
    for ((group, resource), count) in &counts {
        let _ = writeln!(out, "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}");
    }
}

/// The health checks as metrics.
pub(super) async fn slis(server: &Server) -> Reply {
    let mut all = Vec::new();
    for (path, kind) in [("/healthz", "healthz"), ("/livez", "livez"), ("/readyz", "readyz")] {
        let checks = super::health::checks(server, path).await;
        all.extend(checks.into_iter().map(|(name, result)| (name.to_owned(), kind, result.is_ok())));
    }
    reply(200, CONTENT_TYPE, full(server.metrics.slis(&all)))
}
