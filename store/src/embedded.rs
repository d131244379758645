//! The durable store of one process: a log of revisions in one file, with the index in memory.
//!
//! On disk (a redb file) there are two tables. `log` maps a revision to a record: created (u64, little endian), the
//! key's length (u32), the key, then one byte (1: a value follows, 0: a deletion) and the value. `state` has the
//! compacted revision and the store's newest one, which compaction could otherwise take with it. A write is answered
//! when the transaction that holds it is on disk: one thread takes all writes that wait, checks their guards, and commits
//! them together. Opening reads the log in order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};

use crate::memory::Shared;
use crate::mvcc::Mvcc;
use crate::{Entry, Error, Event, Guard, Page, Revision, Store};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");
const COMPACTED: &str = "compacted";
const NEWEST: &str = "newest";

/// How many writes go to disk together at most.
const MAX_BATCH: usize = 512;
/// How many writes may wait.
const QUEUE: usize = 4_096;
/// What redb may cache, in bytes: little, for the index holds everything that is read.
const CACHE: usize = 4 << 20;

/// What the writing thread is asked.
enum Ask {
    Write { key: Arc<str>, guard: Guard, value: Option<Bytes>, reply: oneshot::Sender<Result<Revision, Error>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<(), Error>> },
    Close { reply: oneshot::Sender<Result<(), Error>> },
}

/// A store in one file.
pub struct Embedded {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    /// Told when the file is closed.
    closed: watch::Receiver<bool>,
    path: PathBuf,
}

impl Embedded {
    /// Opens the store in the file, or makes it. Blocks on the disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path: PathBuf = path.as_ref().into();
        let fail = |what: &str, error: &dyn std::fmt::Display| Error::Open(format!("{what} the store {}: {error}", path.display()));
        let database = Database::builder().set_cache_size(CACHE).create(&path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => fail("open", &"another process has it open"),
            other => fail("open", &other),
        })?;
        let index = read(&database).map_err(|e| fail("read", &e))?;
        let shared = Shared::new(index);
        let (asks, queue) = mpsc::channel(QUEUE);
        let writer = Writer { database, shared: Arc::clone(&shared) };
        let (done, closed) = watch::channel(false);
        let run = move || {
            writer.run(queue);
            done.send_replace(true);
        };
        std::thread::Builder::new().name("store".into()).spawn(run).map_err(|e| fail("start", &e))?;
        Ok(Self { shared, asks, closed, path })
    }

    /// Closes the file, once everything that waits is written. A file that isn't closed takes longer to open.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        let mut closed = self.closed.clone();
        if self.ask(Ask::Close { reply }, answer).await.is_ok() {
            // An error means that the thread is gone, and the file with it.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    async fn ask<T>(&self, ask: Ask, reply: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        let gone = || Error::Unavailable("the store has been closed".into());
        self.asks.send(ask).await.map_err(|_| gone())?;
        reply.await.map_err(|_| gone())?
    }
}

fn record(event: &Event) -> Vec<u8> {
    let value = event.value.as_deref().unwrap_or(b"");
    let mut bytes = Vec::with_capacity(13 + event.key.len() + value.len());
    bytes.extend_from_slice(&event.created.to_le_bytes());
    bytes.extend_from_slice(&(event.key.len() as u32).to_le_bytes());
    bytes.extend_from_slice(event.key.as_bytes());
    bytes.push(event.value.is_some().into());
    bytes.extend_from_slice(value);
    bytes
}

fn event(revision: Revision, record: &[u8]) -> Option<Event> {
    let (created, rest) = record.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let (present, value) = rest.split_first()?;
    Some(Event {
        key: std::str::from_utf8(key).ok()?.into(),
        revision,
        created: u64::from_le_bytes(*created),
        value: (*present == 1).then(|| Bytes::copy_from_slice(value)),
    })
}

/// Makes the index of what is on disk.
fn read(database: &Database) -> Result<Mvcc, redb::Error> {
    // A first write, so that the tables are there to be read.
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(STATE)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut index = Mvcc::default();
    for row in transaction.open_table(LOG)?.iter()? {
        let (revision, bytes) = row?;
        let read = event(revision.value(), bytes.value());
        index.apply(read.ok_or_else(|| redb::Error::Corrupted(format!("the record of revision {} is damaged", revision.value())))?);
    }
    let state = transaction.open_table(STATE)?;
    let number = |key| state.get(key).map(|found| found.map_or(0, |n| n.value()));
    index.restore_counters(number(NEWEST)?, number(COMPACTED)?);
    Ok(index)
}

/// The thread that writes.
struct Writer {
    database: Database,
    shared: Arc<Shared>,
}

type Reply = (oneshot::Sender<Result<Revision, Error>>, Revision);

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Ask>) {
        let mut closing = false;
        let mut asks = Vec::with_capacity(MAX_BATCH);
        while queue.blocking_recv_many(&mut asks, MAX_BATCH) > 0 {
            let mut batch = Batch::default();
            for ask in asks.drain(..) {
                match ask {
                    Ask::Write { key, guard, value, reply } => batch.add(&self.shared, key, guard, value, reply),
                    Ask::Compact { revision, reply } => {
                        self.commit(std::mem::take(&mut batch));
                        // Who asked may have gone.
                        let _ = reply.send(self.compact(revision));
                    }
                    Ask::Close { reply } => {
                        let _ = reply.send(Ok(()));
                        closing = true;
                    }
                }
            }
            self.commit(batch);
            if closing {
                return;
            }
        }
    }

    fn commit(&self, batch: Batch) {
        let Batch { events, replies, .. } = batch;
        let Some(newest) = events.last().map(|e| e.revision) else { return };
        match self.write(&events) {
            Ok(()) => {
                {
                    let mut index = self.shared.write();
                    events.into_iter().for_each(|event| index.apply(event));
                }
                for (reply, revision) in replies {
                    let _ = reply.send(Ok(revision));
                }
                self.shared.ring(newest);
            }
            Err(error) => {
                tracing::error!(%error, "the store can't write");
                for (reply, _) in replies {
                    let _ = reply.send(Err(Error::Unavailable(format!("write to disk: {error}"))));
                }
            }
        }
    }

    fn write(&self, events: &[Event]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for event in events {
                log.insert(event.revision, record(event).as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Drops from the disk what the index gives up. Should the disk fail in between, the index forgets more than the
    /// disk: the next opening brings it back, which is harmless.
    fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (dropped, newest) = {
            let mut index = self.shared.write();
            (index.compact(revision)?, index.revision())
        };
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut log = transaction.open_table(LOG)?;
                for revision in dropped {
                    log.remove(revision)?;
                }
                let mut state = transaction.open_table(STATE)?;
                state.insert(COMPACTED, revision)?;
                state.insert(NEWEST, newest)?;
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|error| Error::Unavailable(format!("write to disk: {error}")))
    }
}

/// Writes that go to disk together. Their guards see each other's effects.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    replies: Vec<Reply>,
    /// Where in `events` a key was last written.
    written: HashMap<Arc<str>, usize>,
}

impl Batch {
    fn add(&mut self, shared: &Shared, key: Arc<str>, guard: Guard, value: Option<Bytes>, reply: oneshot::Sender<Result<Revision, Error>>) {
        let index = shared.read();
        let checked = match self.written.get(&key) {
            Some(at) => check(&self.events[*at], guard),
            None => index.check(&key, guard),
        };
        match checked {
            Ok(created) => {
                let revision = self.events.last().map_or(index.revision(), |e| e.revision) + 1;
                self.written.insert(Arc::clone(&key), self.events.len());
                self.events.push(Event { key, revision, created: created.unwrap_or(revision), value });
                self.replies.push((reply, revision));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }
}

/// [`Mvcc::check`] against a write of the same batch.
fn check(last: &Event, guard: Guard) -> Result<Option<Revision>, Error> {
    let current = last.value.clone().map(|value| Entry { key: Arc::clone(&last.key), value, created: last.created, modified: last.revision });
    match (guard, &current) {
        (Guard::Absent, None) => Ok(None),
        (Guard::Modified(revision), Some(entry)) if entry.modified == revision => Ok(Some(entry.created)),
        _ => Err(Error::Conflict(current)),
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.shared.read().get(key))
    }

    async fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        self.shared.read().list(start, end, limit, at)
    }

    async fn commit(&self, key: &str, guard: Guard, value: Option<Bytes>) -> Result<Revision, Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Write { key: key.into(), guard, value, reply }, answer).await
    }

    async fn watch(&self, from: Revision) -> Result<BoxStream<'static, Result<Vec<Event>, Error>>, Error> {
        Ok(self.shared.watch(from))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Compact { revision, reply }, answer).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.read().revision())
    }

    async fn size(&self) -> Result<Option<u64>, Error> {
        let file = tokio::fs::metadata(&self.path).await.map_err(|e| Error::Unavailable(format!("look at {}: {e}", self.path.display())))?;
        Ok(Some(file.len()))
    }
}
