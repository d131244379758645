//! The durable store of one process: a log of revisions in one file, with the index in memory.
//!
//! On disk (a redb file) there are two tables. `log` maps a revision to a record: created (u64, little endian), the
//! key's length (u32), the key, then one byte (1: a value follows, 0: a deletion) and the value. `state` has the
//! compacted revision and the store's newest one, which compaction could otherwise take with it. A write is answered
//! when the transaction that holds it is on disk: one thread takes all writes that wait, checks their guards, and commits
//! them together. Opening reads the log in order.
//!
//! A file that couldn't be written (a full disk) is closed and opened again by the next write: reads go on meanwhile, and
//! what of the failed write has come to the disk after all is taken into the index then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
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
        let file = path.clone();
        Self::open_by(path, Mvcc::default(), move || Database::builder().set_cache_size(CACHE).create(&file))
    }

    /// Opens the store by `open`, each time it is to be opened, and fills the index. `path` is where it is.
    fn open_by(path: PathBuf, index: Mvcc, open: impl Fn() -> Result<Database, DatabaseError> + Send + 'static) -> Result<Self, Error> {
        let fail = |what: &str, error: &dyn std::fmt::Display| Error::Open(format!("{what} the store {}: {error}", path.display()));
        let database = open().map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => fail("open", &"another process has it open"),
            other => fail("open", &other),
        })?;
        let index = read(&database, index).map_err(|e| fail("read", &e))?;
        let shared = Shared::new(index);
        let (asks, queue) = mpsc::channel(QUEUE);
        let writer = Writer { database: Some(database), open: Box::new(open), trouble: String::new(), dropped: Vec::new(), shared: Arc::clone(&shared) };
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

fn damaged(revision: Revision) -> redb::Error {
    redb::Error::Corrupted(format!("the record of revision {revision} is damaged"))
}

/// Fills the index with what is on disk.
fn read(database: &Database, mut index: Mvcc) -> Result<Mvcc, redb::Error> {
    // A first write, so that the tables are there to be read.
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(STATE)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    for row in transaction.open_table(LOG)?.iter()? {
        let (revision, bytes) = row?;
        let read = event(revision.value(), bytes.value());
        index.apply(read.ok_or_else(|| damaged(revision.value()))?);
    }
    let state = transaction.open_table(STATE)?;
    let number = |key| state.get(key).map(|found| found.map_or(0, |n| n.value()));
    index.restore_counters(number(NEWEST)?, number(COMPACTED)?);
    Ok(index)
}

/// The thread that writes.
struct Writer {
    /// `None` after it couldn't be written: it refuses everything until it is opened again.
    database: Option<Database>,
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send>,
    /// Why it couldn't be written or opened last.
    trouble: String,
    /// What the index has given up and the disk still holds.
    dropped: Vec<Revision>,
    shared: Arc<Shared>,
}

type Reply = (oneshot::Sender<Result<Revision, Error>>, Revision);

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Ask>) {
        let mut closing = false;
        let mut asks = Vec::with_capacity(MAX_BATCH);
        while queue.blocking_recv_many(&mut asks, MAX_BATCH) > 0 {
            let mut batch = Batch::default();
            // Before guards are checked against what is on disk.
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "the store still can't be opened for writing");
                self.trouble = error.to_string();
            }
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
            self.shrink();
            if closing {
                return;
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        let Batch { events, replies, .. } = batch;
        let Some(newest) = events.last().map(|e| e.revision) else { return };
        let write = |transaction: &WriteTransaction| {
            let mut log = transaction.open_table(LOG)?;
            for event in &events {
                log.insert(event.revision, record(event).as_slice())?;
            }
            Ok(())
        };
        match self.write(write) {
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

    /// Carries out a transaction.
    fn write(&mut self, change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<(), redb::Error> {
        let trouble = || redb::Error::Io(std::io::Error::other(self.trouble.clone()));
        let database = self.database.as_ref().ok_or_else(trouble)?;
        let written = database.begin_write().map_err(redb::Error::from).and_then(|transaction| {
            change(&transaction)?;
            Ok(transaction.commit()?)
        });
        if let Err(error) = &written {
            self.trouble = error.to_string();
            self.database = None;
        }
        written
    }

    /// Opens the file again where that is needed. What is on disk and not in the index was written by a transaction that
    /// seemed to fail: whoever asked for it was told that its outcome is unknown.
    fn reopen(&mut self) -> Result<(), redb::Error> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = (self.open)()?;
        let log = database.begin_read()?.open_table(LOG)?;
        let known = self.shared.read().revision();
        let mut late = Vec::new();
        for row in log.range(known + 1..)? {
            let (revision, bytes) = row?;
            late.push(event(revision.value(), bytes.value()).ok_or_else(|| damaged(revision.value()))?);
        }
        self.database = Some(database);
        tracing::info!(found = late.len(), "the store can be written again");
        if let Some(newest) = late.last().map(|event| event.revision) {
            {
                let mut index = self.shared.write();
                late.into_iter().for_each(|event| index.apply(event));
            }
            self.shared.ring(newest);
        }
        Ok(())
    }

    /// Gives up the oldest history where there is too much.
    fn shrink(&mut self) {
        while let Some(old) = { self.shared.read().surplus() } {
            if let Err(error) = self.compact(old) {
                return tracing::error!(%error, revision = old, "too much history, and it can't be given up");
            }
        }
    }

    /// Drops from the disk what the index gives up. Should the disk fail in between, the index forgets more than the
    /// disk: the next compaction makes up for it, or the next opening brings it back, which is harmless.
    fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        let failed = |error: redb::Error| Error::Unavailable(format!("write to disk: {error}"));
        self.reopen().map_err(failed)?;
        let newest = {
            let mut index = self.shared.write();
            self.dropped.extend(index.compact(revision)?);
            index.revision()
        };
        let dropped = std::mem::take(&mut self.dropped);
        let write = |transaction: &WriteTransaction| {
            let mut log = transaction.open_table(LOG)?;
            for revision in &dropped {
                log.remove(revision)?;
            }
            let mut state = transaction.open_table(STATE)?;
            state.insert(COMPACTED, revision)?;
            state.insert(NEWEST, newest)?;
            Ok(())
        };
        let written = self.write(write);
        if written.is_err() {
            self.dropped = dropped;
        }
        written.map_err(failed)
    }
}

/// Writes that go to disk together. Their guards see each other's effects.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    replies: Vec<Reply>,
    /// How many bytes of values it writes.
    bytes: usize,
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
        match checked.and_then(|created| index.room(self.bytes, value.as_ref()).map(|()| created)) {
            Ok(created) => {
                let revision = self.events.last().map_or(index.revision(), |e| e.revision) + 1;
                self.written.insert(Arc::clone(&key), self.events.len());
                self.bytes += value.as_ref().map_or(0, Bytes::len);
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// A disk that may be full: then nothing is written, and the file doesn't grow.
    #[derive(Clone, Debug, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        full: Arc<AtomicBool>,
        /// Whether what is written while it is full comes to the disk after all, and only the answer doesn't.
        late: Arc<AtomicBool>,
    }

    impl Disk {
        fn bytes<T>(&self, f: impl FnOnce(&mut Vec<u8>) -> T) -> T {
            f(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn space(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn store(&self) -> Embedded {
            self.store_with(Mvcc::default())
        }

        fn store_with(&self, index: Mvcc) -> Embedded {
            let disk = self.clone();
            Embedded::open_by(PathBuf::from("disk"), index, move || Database::builder().create_with_backend(disk.clone())).expect("a store")
        }
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes(|bytes| bytes.len() as u64))
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.bytes(|bytes| match bytes.get(offset as usize..offset as usize + out.len()) {
                Some(found) => {
                    out.copy_from_slice(found);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            })
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.space()?;
            self.bytes(|bytes| bytes.resize(len as usize, 0));
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.space()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if !self.late.load(Ordering::SeqCst) {
                self.space()?;
            }
            self.bytes(|bytes| bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data));
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_heals() {
        let disk = Disk::default();
        let store = disk.store();
        let first = store.commit("/a", Guard::Absent, Some("1".into())).await.expect("a write");
        for late in [false, true] {
            disk.late.store(late, Ordering::SeqCst);
            disk.full.store(true, Ordering::SeqCst);
            for _ in 0..3 {
                let refused = store.commit("/b", Guard::Absent, Some("2".into())).await;
                assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.starts_with("write to disk: ")), "{refused:?}");
                assert!(store.compact(first).await.is_err());
                // What was acknowledged is still read.
                assert_eq!(store.get("/a").await.expect("a read").expect("there").value, "1");
            }
            disk.full.store(false, Ordering::SeqCst);
            let current = store.get("/a").await.expect("a read").expect("there").modified;
            let written = store.commit("/a", Guard::Modified(current), Some("1".into())).await.expect("it heals");
            assert!(written > current);
            // The write that failed has happened or not, but the same for all who look.
            let there = store.get("/b").await.expect("a read").is_some();
            let page = store.list("/", "0", 0, None).await.expect("a list");
            assert_eq!(page.entries.len(), if there { 2 } else { 1 });
            if there {
                return;
            }
        }
        // What is on disk is what was told.
        let written = store.list("/", "0", 0, None).await.expect("a list");
        store.close().await;
        let again = disk.store().list("/", "0", 0, None).await.expect("a list");
        assert_eq!((again.entries, again.revision), (written.entries, written.revision));
    }

    #[tokio::test]
    async fn a_flood_of_updates_is_bounded() {
        let disk = Disk::default();
        let store = disk.store_with(Mvcc::limited(1 << 20, 4 << 20));
        crate::memory::tests::flood(&store).await;
        assert!(disk.bytes(|bytes| bytes.len()) < 32 << 20, "{}", disk.bytes(|bytes| bytes.len()));
        let shown = store.list("/", "0", 0, None).await.expect("a list");
        store.close().await;
        let again = disk.store().list("/", "0", 0, None).await.expect("a list");
        assert_eq!((again.entries, again.revision), (shown.entries, shown.revision));
    }
}
