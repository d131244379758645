//! Who of several servers this is: a Lease that it renews while it lives. By them tools count the servers of a cluster; those of
//! servers that are long gone are cleared away.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skiff_api::value::{at, text};
use skiff_api::{Status, clock, random};

use crate::bootstrap;
use crate::cache::Filter;
use crate::server::Server;

/// How often the Lease is renewed, for how long it counts (seconds), and how often others are looked at: upstream's figures.
const RENEWAL: Duration = Duration::from_secs(10);
const LIFETIME: i64 = 3_600;
const CLEARING: i64 = 3_600;

const COMPONENT: &str = "apiserver.kubernetes.io/identity";
const NAME: &str = "kube-apiserver";
const CACHE: &str = "/registry/leases/";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// Renews the Lease until the server ends.
pub(crate) async fn run(server: Arc<Server>) {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name = name(&host);
    let holder = format!("{name}_{}", random::uid());
    let mut cleared = clock::now().as_second();
    loop {
        if let Err(error) = renew(&server, &name, &host, &holder).await {
            tracing::warn!(%error, name, "the server's lease can't be renewed");
        }
        tokio::time::sleep(RENEWAL).await;
        let now = clock::now();
        if now.as_second() - cleared >= CLEARING {
            cleared = now.as_second();
            clear(&server, now).await;
        }
    }
}

/// The name of the server on this machine: a digest of both names, each behind its length.
fn name(host: &str) -> String {
    let mut digest = Sha256::new();
    for part in [host, NAME] {
        digest.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        digest.update(part);
    }
    format!("apiserver-{}", base32(digest.finalize().get(..16).unwrap_or_default()))
}

/// Small letters and digits, five bits each.
fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let letter = |from: usize| LETTERS[(from..from + 5).fold(0, |sum, at| sum << 1 | usize::from(bit(at)))];
    (0..bytes.len() * 8).step_by(5).map(|from| char::from(letter(from))).collect()
}

/// The Lease as it is to be; `known` as it is.
fn renewed(known: Option<Value>, name: &str, host: &str, holder: &str, now: jiff::Timestamp) -> Value {
    let mut lease = known.unwrap_or_else(|| json!({"metadata": {"name": name, "namespace": "kube-system"}}));
    (lease["apiVersion"], lease["kind"]) = ("coordination.k8s.io/v1".into(), "Lease".into());
    lease["metadata"]["labels"][COMPONENT] = NAME.into();
    lease["metadata"]["labels"]["kubernetes.io/hostname"] = host.into();
    lease["spec"]["holderIdentity"] = holder.into();
    lease["spec"]["leaseDurationSeconds"] = LIFETIME.into();
    lease["spec"]["renewTime"] = format!("{now:.6}").into();
    lease
}

async fn renew(server: &Arc<Server>, name: &str, host: &str, holder: &str) -> Result<(), Status> {
    let known = server.cache.resource(CACHE).and_then(|cache| cache.get(&format!("{CACHE}kube-system/{name}")));
    let known = known.map(|object| object.value().map_err(Status::internal)).transpose()?;
    let (method, path) = match known {
        None => (Method::POST, LEASES.to_owned()),
        Some(_) => (Method::PUT, format!("{LEASES}/{name}")),
    };
    // Another server of this name may be at it, too; the next time will do.
    bootstrap::request(server, method, &path, "application/json", &renewed(known, name, host, holder, clock::now())).await
}

/// Whether nobody has renewed the Lease for as long as it counts.
fn expired(lease: &Value, now: jiff::Timestamp) -> bool {
    let (renewed, seconds) = (text(lease, &["spec", "renewTime"]).parse::<jiff::Timestamp>(), at(lease, &["spec", "leaseDurationSeconds"]).as_i64());
    match (renewed, seconds) {
        (Ok(renewed), Some(seconds)) => renewed.as_second().saturating_add(seconds) < now.as_second(),
        _ => true,
    }
}

async fn clear(server: &Arc<Server>, now: jiff::Timestamp) {
    let Some(cache) = server.cache.resource(CACHE) else { return };
    let leases = cache.list(&Filter::default(), 0).objects;
    let servers = leases.iter().filter_map(|o| o.value().ok()).filter(|l| text(l, &["metadata", "namespace"]) == "kube-system" && text(l, &["metadata", "labels", COMPONENT]) == NAME);
    for lease in servers.filter(|lease| expired(lease, now)) {
        let metadata = &lease["metadata"];
        let only = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}});
        let path = format!("{LEASES}/{}", text(metadata, &["name"]));
        // That it was renewed meanwhile, or cleared by another server, is as well.
        if let Err(error) = bootstrap::send(server, Method::DELETE, &path, &only).await
            && !matches!(error.code, 404 | 409)
        {
            tracing::warn!(%error, path, "the lease of a server that is gone can't be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        assert_eq!(name("vm"), "apiserver-wlv32tlttr4jl3gtroqexyxapa");
        assert_eq!((base32(b""), base32(b"f"), base32(b"fooba")), (String::new(), "my".into(), "mzxw6ytb".into()));
    }

    #[test]
    fn leases() {
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let first = renewed(None, "n", "h", "me", at(0));
        assert_eq!(first["metadata"]["labels"], json!({COMPONENT: NAME, "kubernetes.io/hostname": "h"}));
        assert_eq!(first["spec"], json!({"holderIdentity": "me", "leaseDurationSeconds": 3600, "renewTime": "1970-01-01T00:00:00.000000Z"}));
        let mut known = first.clone();
        known["metadata"]["resourceVersion"] = "5".into();
        let second = renewed(Some(known), "n", "h", "you", at(10));
        assert_eq!((text(&second, &["metadata", "resourceVersion"]), text(&second, &["spec", "holderIdentity"])), ("5", "you"));
        assert!(!expired(&first, at(3_600)) && expired(&first, at(3_601)) && expired(&json!({"spec": {}}), at(0)));
    }
}
