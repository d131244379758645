//! `/livez`, `/readyz` and `/healthz`: named checks, one by one and together, in upstream's form.

use std::time::Duration;

use crate::http::body::{Reply, text};
use crate::http::query::Query;
use crate::server::Server;

/// How long the store may take to answer a check.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is done, or begun, before the server answers at all, in upstream's names and order. What upstream has beyond that isn't
/// here: a certificate for connections to itself, and ways to servers of other versions.
const HOOKS: &[&str] = &[
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/storage-object-count-tracker-hook",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-apiserver-identity-lease-controller",
    "poststarthook/start-kube-apiserver-identity-lease-garbage-collector",
    "poststarthook/storage-readiness",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-wait-for-first-sync",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];

/// The checks behind `/livez`, `/readyz` or `/healthz`: name, and what is wrong.
pub(super) async fn checks(server: &Server, path: &str) -> Vec<(&'static str, Result<(), String>)> {
    let asked = tokio::time::timeout(TIMEOUT, server.store.revision()).await;
    let newest = asked.map_err(|_| format!("no answer within {TIMEOUT:?}")).and_then(|asked| asked.map_err(|error| error.to_string()));
    let mut checks = vec![("ping", Ok(())), ("log", Ok(())), ("etcd", newest.clone().map(drop))];
    if path == "/readyz" {
        let caught_up = match newest {
            Ok(newest) => server.cache.reached(newest, TIMEOUT).await.map(drop).map_err(|shown| format!("1 informers not started yet: at revision {shown} of {newest}")),
            // What was read before is still shown.
            Err(_) => Ok(()),
        };
        checks.extend([("etcd-readiness", checks[2].1.clone()), ("informer-sync", caught_up)]);
    }
    checks.extend(HOOKS.iter().map(|hook| (*hook, Ok(()))));
    if path == "/readyz" {
        checks.push(("shutdown", if server.is_stopping() { Err("process is shutting down".into()) } else { Ok(()) }));
    }
    checks
}

/// Answers `/readyz` and the like.
pub(super) async fn all(server: &Server, path: &str, query: &Query) -> Reply {
    report(path, checks(server, path).await, &query.all("exclude"), query.has("verbose"))
}

fn report(path: &str, checks: Vec<(&'static str, Result<(), String>)>, excluded: &[&str], verbose: bool) -> Reply {
    let name = path.trim_start_matches('/');
    let (mut report, mut failed) = (String::new(), Vec::new());
    let mut unmatched: Vec<&str> = excluded.to_vec();
    for (check, result) in checks {
        let is_excluded = excluded.contains(&check);
        unmatched.retain(|excluded| *excluded != check);
        match result {
            _ if is_excluded => report.push_str(&format!("[+]{check} excluded: ok\n")),
            Ok(()) => report.push_str(&format!("[+]{check} ok\n")),
            Err(why) => {
                // Anybody may ask here: why it failed stands in the log.
                report.push_str(&format!("[-]{check} failed: reason withheld\n"));
                failed.push(format!("{check}: {why}"));
            }
        }
    }
    if !unmatched.is_empty() {
        let quoted: Vec<String> = unmatched.iter().map(|name| format!("{name:?}")).collect();
        report.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", quoted.join(", ")));
    }
    if !failed.is_empty() {
        tracing::warn!(check = name, failed = failed.join("; "), "health check failed");
        return text(500, format!("{report}{name} check failed\n"));
    }
    if verbose { text(200, format!("{report}{name} check passed\n")) } else { text(200, "ok") }
}

/// Answers `/readyz/NAME` and the like.
pub(super) async fn one(server: &Server, path: &str, name: &str) -> Reply {
    match checks(server, path).await.into_iter().find(|(check, _)| *check == name) {
        Some((_, Ok(()))) => text(200, "ok"),
        Some((_, Err(why))) => text(500, format!("internal server error: {why}\n")),
        None => super::no_such_path(),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn reports_are_upstreams() {
        let run = async |checks: Vec<(&'static str, Result<(), String>)>, excluded: &[&str], verbose, expected: (u16, &str)| {
            let reply = report("/readyz", checks, excluded, verbose);
            let (code, body) = (reply.status().as_u16(), reply.into_body().collect().await.expect("a body").to_bytes());
            assert_eq!((code, std::str::from_utf8(&body).expect("text")), expected);
        };
        let (fine, broken) = (|| vec![("ping", Ok(()))], || vec![("ping", Ok(())), ("etcd", Err("gone".to_owned()))]);
        run(fine(), &[], false, (200, "ok")).await;
        run(fine(), &[], true, (200, "[+]ping ok\nreadyz check passed\n")).await;
        run(broken(), &[], false, (500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")).await;
        run(broken(), &["etcd"], true, (200, "[+]ping ok\n[+]etcd excluded: ok\nreadyz check passed\n")).await;
        let warned = "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nreadyz check passed\n";
        run(fine(), &["x"], true, (200, warned)).await;
    }
}
