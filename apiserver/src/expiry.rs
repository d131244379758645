//! What goes by itself some time after it was last written: events, after an hour. Upstream gives etcd leases for that, which
//! several writes share so that they end a minute late; here each server deletes what is due, as late at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future, stream};
use jiff::Timestamp;
use serde::Deserialize;
use skiff_api::clock;
use skiff_store::{Error, Guard};

use crate::cache::{Filter, Object, ResourceCache};
use crate::server::Server;

/// How late something goes at most.
const LATE: Duration = Duration::from_secs(60);
/// How many objects are deleted at a time.
const PARALLEL: usize = 64;
/// How many objects are looked at before others have their turn.
const A_TURN: usize = 1_000;

/// Deletes what is due, of all kinds that go by themselves. Ends with the server.
pub(crate) async fn run(server: Arc<Server>) {
    let served = server.registry.now();
    let lives = served.ordered.iter().filter_map(|r| Some((r.storage_prefix.as_ref(), server.strategies.of(r).lifetime()?)));
    let by_prefix: BTreeMap<&str, Duration> = lives.collect();
    let kinds = by_prefix.into_iter().filter_map(|(prefix, lifetime)| Some(expire(&server, server.cache.resource(prefix)?, lifetime)));
    future::join_all(kinds).await;
}

async fn expire(server: &Server, cache: Arc<ResourceCache>, lifetime: Duration) {
    let mut bell = cache.subscribe();
    loop {
        bell.mark_unchanged();
        let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
        for (index, object) in cache.list(&Filter::default(), 0).objects.into_iter().enumerate() {
            if index % A_TURN == A_TURN - 1 {
                tokio::task::yield_now().await;
            }
            // What doesn't say when it was written stays.
            let Some(end) = last_written(&object.bytes).map(|at| at + lifetime) else { continue };
            next = Some(next.map_or(end, |next| next.min(end)));
            if end <= clock::now() {
                due.push(object);
            }
        }
        stream::iter(due).for_each_concurrent(PARALLEL, |object| delete(server, object)).await;
        match next {
            // What couldn't be deleted is tried again then.
            Some(next) => tokio::time::sleep(clock::until(next).max(LATE)).await,
            None if bell.changed().await.is_err() => return,
            None => {}
        }
    }
}

async fn delete(server: &Server, object: Arc<Object>) {
    match server.store.commit(&object.key, Guard::Modified(object.revision), None).await {
        // It was written, or another server was quicker.
        Ok(_) | Err(Error::Conflict(_)) => {}
        Err(error) => tracing::warn!(key = %object.key, %error, "what is due can't be deleted"),
    }
}

#[derive(Deserialize)]
struct Written {
    metadata: Times,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    creation_timestamp: Option<Timestamp>,
    #[serde(default)]
    managed_fields: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    time: Option<Timestamp>,
}

/// When an object was last written, as it says itself.
fn last_written(object: &[u8]) -> Option<Timestamp> {
    let Times { creation_timestamp, managed_fields } = serde_json::from_slice::<Written>(object).ok()?.metadata;
    managed_fields.into_iter().filter_map(|entry| entry.time).chain(creation_timestamp).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_time_counts() {
        let check = |object: &str, expected: Option<&str>| {
            assert_eq!(last_written(object.as_bytes()).map(|at| at.to_string()).as_deref(), expected, "{object}");
        };
        check(r#"{"metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"}}"#, Some("2026-01-01T00:00:00Z"));
        let fields = r#"[{"time":"2026-01-01T00:00:05Z"},{"time":"2026-01-01T00:00:07Z"},{}]"#;
        check(&format!(r#"{{"metadata":{{"creationTimestamp":"2026-01-01T00:00:00Z","managedFields":{fields}}}}}"#), Some("2026-01-01T00:00:07Z"));
        check(r#"{"metadata":{"creationTimestamp":null}}"#, None);
        check(r#"{"metadata":{}}"#, None);
        check("[]", None);
    }
}
