//! etcd as the store: a cluster of any size, shared by any number of API servers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use futures::stream::{self, BoxStream, StreamExt};

use crate::{Entry, Error, Event, Guard, Page, Revision, Store};

/// How long a request may take before the store counts as away.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A hung etcd is noticed by its silence only.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(2));
/// etcd's own limit of a request is 1.5 MiB; lists have many values.
const MAX_MESSAGE: usize = 256 << 20;
/// How many keys are read in one request.
const CHUNK: i64 = 10_000;

/// A client of an etcd cluster.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    if text.contains("database space exceeded") {
        return Error::Full;
    }
    // The client's errors carry their sources' debug forms; the first part is the sentence.
    Error::Unavailable(format!("etcd: {}", text.split(", source:").next().unwrap_or(&text)))
}

/// Reads a refusal: etcd tells of compaction and of the future by text.
fn refused(error: etcd_client::Error, asked: Revision) -> Error {
    let text = error.to_string();
    if text.contains("required revision has been compacted") {
        return Error::Compacted { asked, oldest: asked + 1 };
    }
    if text.contains("required revision is a future revision") {
        return Error::Future { asked, current: 0 };
    }
    unavailable(error)
}

async fn timed<T>(request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<Result<T, etcd_client::Error>, Error> {
    tokio::time::timeout(TIMEOUT, request).await.map_err(|_| unavailable("no answer in time"))
}

fn entry(kv: &KeyValue) -> Result<Entry, Error> {
    let key = kv.key_str().map_err(|_| unavailable("a key is no text"))?;
    let number = |n: i64| Revision::try_from(n).unwrap_or(0);
    Ok(Entry { key: key.into(), value: Bytes::copy_from_slice(kv.value()), created: number(kv.create_revision()), modified: number(kv.mod_revision()) })
}

impl Etcd {
    /// Connects to the members at these addresses (`host:port` or URLs) and asks for the revision, to see that they answer.
    pub async fn connect(endpoints: &[String]) -> Result<Self, Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true);
        let fail = |why: String| Error::Open(format!("reach etcd at {}: {why}", endpoints.join(",")));
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, Client::connect(endpoints, Some(options)));
        let client = connecting.await.map_err(|_| fail("no answer".into()))?.map_err(|e| fail(e.to_string()))?;
        let store = Self { client };
        let asked = tokio::time::timeout(CONNECT_TIMEOUT, store.revision()).await;
        asked.map_err(|_| fail("no answer".into()))?.map_err(|e| fail(e.to_string()))?;
        Ok(store)
    }

    fn kv(&self) -> etcd_client::KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE)
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let found = timed(self.kv().get(key, None)).await?.map_err(unavailable)?;
        found.kvs().first().map(entry).transpose()
    }

    async fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let (mut entries, mut revision, mut from) = (Vec::new(), at, start.to_owned());
        loop {
            let wanted = if limit == 0 { CHUNK } else { CHUNK.min((limit - entries.len()) as i64) };
            let mut options = GetOptions::new().with_range(end).with_limit(wanted);
            if let Some(revision) = revision {
                options = options.with_revision(revision as i64);
            }
            let asked = revision.unwrap_or(0);
            let found = timed(self.kv().get(from.as_str(), Some(options))).await?.map_err(|e| refused(e, asked))?;
            // All requests of one list show the revision of the first.
            let shown = *revision.get_or_insert(found.header().map_or(0, |h| h.revision() as Revision));
            for kv in found.kvs() {
                entries.push(entry(kv)?);
            }
            if let Some(last) = entries.last() {
                from = format!("{}\0", last.key);
            }
            if !found.more() || entries.len() == limit {
                let remaining = (found.count() as u64).saturating_sub(found.kvs().len() as u64);
                return Ok(Page { entries, revision: shown, remaining });
            }
        }
    }

    async fn commit(&self, key: &str, guard: Guard, value: Option<Bytes>) -> Result<Revision, Error> {
        let expected = match guard {
            Guard::Absent => 0,
            Guard::Modified(revision) => revision as i64,
        };
        let then = match value {
            Some(value) => TxnOp::put(key, value.to_vec(), None),
            None => TxnOp::delete(key, None),
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected)])
            .and_then([then])
            .or_else([TxnOp::get(key, None)]);
        let done = timed(self.kv().txn(txn)).await.map_err(|_| Error::Unknown(format!("etcd: no answer within {TIMEOUT:?}")))?.map_err(unavailable)?;
        if done.succeeded() {
            return Ok(done.header().map_or(0, |h| h.revision() as Revision));
        }
        let current = done.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().map(entry),
            _ => None,
        });
        Err(Error::Conflict(current.transpose()?))
    }

    async fn watch(&self, from: Revision) -> Result<BoxStream<'static, Result<Vec<Event>, Error>>, Error> {
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let options = WatchOptions::new().with_all_keys().with_start_revision(from as i64);
        let watch = timed(client.watch("\0", Some(options))).await?.map_err(unavailable)?;
        Ok(stream::unfold(Some(watch), move |watch| async move {
            let mut watch = watch?;
            match next_batch(&mut watch, from).await {
                Ok(Some(batch)) => Some((Ok(batch), Some(watch))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        match timed(self.kv().compact(revision as i64, None)).await? {
            Ok(_) => Ok(()),
            // Another API server was quicker.
            Err(error) => match refused(error, revision) {
                Error::Compacted { .. } => Ok(()),
                other => Err(other),
            },
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let found = timed(self.kv().get("\0", Some(GetOptions::new().with_count_only()))).await?.map_err(unavailable)?;
        Ok(found.header().map_or(0, |h| h.revision() as Revision))
    }

    async fn size(&self) -> Result<Option<u64>, Error> {
        let status = timed(self.client.maintenance_client().status()).await?.map_err(unavailable)?;
        Ok(u64::try_from(status.db_size()).ok())
    }
}

/// The next events; `None` when the watch ended. Every revision comes whole, for this store writes one key a revision.
async fn next_batch(watch: &mut WatchStream, from: Revision) -> Result<Option<Vec<Event>>, Error> {
    let mut batch = Vec::new();
    while batch.is_empty() {
        let Some(message) = watch.message().await.map_err(unavailable)? else { return Ok(None) };
        if message.compact_revision() > 0 {
            return Err(Error::Compacted { asked: from, oldest: message.compact_revision() as Revision });
        }
        if message.canceled() {
            return Err(unavailable(format!("the watch was cancelled: {}", message.cancel_reason())));
        }
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let key: Arc<str> = kv.key_str().map_err(|_| unavailable("a key is no text"))?.into();
            let value = (event.event_type() == EventType::Put).then(|| Bytes::copy_from_slice(kv.value()));
            batch.push(Event { key, revision: kv.mod_revision() as Revision, created: kv.create_revision() as Revision, value });
        }
    }
    Ok(Some(batch))
}
