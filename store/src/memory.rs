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
            let revision = index.revision() + 1;
            index.apply(Event { key: key.into(), revision, created: created.unwrap_or(revision), value });
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
