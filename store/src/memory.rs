//! The store that forgets: for tests and simulations.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use crate::mvcc::Mvcc;
use crate::{Entry, Error, Event, Guard, Page, Revision, Store};

/// How many changes a watch takes over at once.
const WATCH_BATCH: usize = 1_000;

/// An [`Mvcc`] that readers share, with a bell that rings at each new revision.
#[derive(Debug)]
pub(crate) struct Shared {
    index: RwLock<Mvcc>,
    /// The newest revision; watches wait on it.
    bell: watch::Sender<Revision>,
}

impl Shared {
    pub(crate) fn new(index: Mvcc) -> Arc<Self> {
        let bell = watch::Sender::new(index.revision());
        Arc::new(Self { index: RwLock::new(index), bell })
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Mvcc> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Mvcc> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the watches that there is something new. Called after the lock is given back.
    pub(crate) fn ring(&self, revision: Revision) {
        self.bell.send_if_modified(|newest| {
            let news = revision > *newest;
            *newest = revision.max(*newest);
            news
        });
    }

    /// [`Store::watch`] over the index.
    pub(crate) fn watch(self: &Arc<Self>, from: Revision) -> BoxStream<'static, Result<Vec<Event>, Error>> {
        let bell = self.bell.subscribe();
        stream::unfold((Arc::clone(self), bell, Some(from)), |(shared, mut bell, from)| async move {
            let from = from?;
            if bell.wait_for(|newest| *newest >= from).await.is_err() {
                return None;
            }
            let changes = shared.read().changes(from, WATCH_BATCH);
            let next = match &changes {
                Ok(events) => events.last().map_or(Some(from), |e| Some(e.revision + 1)),
                Err(_) => None,
            };
            Some((changes, (shared, bell, next)))
        })
        .boxed()
    }
}

/// A store in memory.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self { shared: Shared::new(Mvcc::default()) }
    }
}

#[async_trait]
impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.shared.read().get(key))
    }

    async fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        self.shared.read().list(start, end, limit, at)
    }

    async fn commit(&self, key: &str, guard: Guard, value: Option<Bytes>) -> Result<Revision, Error> {
        let revision = {
            let mut index = self.shared.write();
            let created = index.check(key, guard)?;
            index.room(0, value.as_ref())?;
            let revision = index.revision() + 1;
            index.apply(Event { key: key.into(), revision, created: created.unwrap_or(revision), value });
            while let Some(old) = index.surplus() {
                index.compact(old)?;
            }
            revision
        };
        self.shared.ring(revision);
        Ok(revision)
    }

    async fn watch(&self, from: Revision) -> Result<BoxStream<'static, Result<Vec<Event>, Error>>, Error> {
        Ok(self.shared.watch(from))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.write().compact(revision).map(drop)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.read().revision())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Floods a store that keeps a megabyte of history and four of current values.
    pub(crate) async fn flood(store: &dyn Store) {
        const SIZE: usize = 64 << 10;
        let value = |byte: u8| Some(Bytes::from(vec![byte; SIZE]));
        let first = store.commit("/kept", Guard::Absent, value(0)).await.expect("a write");
        let mut at = store.commit("/a", Guard::Absent, value(0)).await.expect("a write");
        let mut watch = store.watch(first).await.expect("a watch");
        for byte in 1..=200 {
            at = store.commit("/a", Guard::Modified(at), value(byte)).await.expect("a write");
        }
        // Who is too far behind is told, and who isn't sees everything.
        let seen = watch.next().await.expect("an answer");
        assert!(matches!(seen, Err(Error::Compacted { asked, oldest }) if asked == first && oldest > first), "{seen:?}");
        assert!(matches!(store.list("/", "0", 0, Some(first)).await, Err(Error::Compacted { .. })));
        let late = store.watch(at - 8).await.expect("a watch").next().await.expect("an answer").expect("changes");
        assert!(late.iter().map(|event| event.revision).eq(at - 8..=at));
        let page = store.list("/", "0", 0, None).await.expect("a list");
        let shown: Vec<_> = page.entries.iter().map(|entry| (&*entry.key, entry.modified, entry.value[0])).collect();
        assert_eq!(shown, [("/a", at, 200), ("/kept", first, 0)]);

        // What is current is never given up: there is no room at last, but for deletions.
        let mut made = 0;
        let full = loop {
            match store.commit(&format!("/many/{made}"), Guard::Absent, value(1)).await {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, Error::Full), "{full}");
        assert!((55..64).contains(&made), "{made}");
        assert!(matches!(store.commit("/a", Guard::Modified(at), value(0)).await, Err(Error::Full)));
        for key in ["/many/0", "/many/1"] {
            let entry = store.get(key).await.expect("a read").expect("there");
            store.commit(key, Guard::Modified(entry.modified), None).await.expect("a deletion");
        }
        store.commit("/a", Guard::Modified(at), value(0)).await.expect("room");
    }

    #[tokio::test]
    async fn a_flood_of_updates_is_bounded() {
        flood(&Memory { shared: Shared::new(Mvcc::limited(1 << 20, 4 << 20)) }).await;
    }
}
