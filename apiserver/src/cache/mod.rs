//! The watch cache: every object that the store holds, ready to be read, kept up by one watch of the store.
//!
//! Reads keep upstream's guarantees: [`Cache::fresh`] waits until the cache shows every write that was acknowledged
//! before it was called, and a watch sees each change once, in order, or is told that it is too far behind.

mod object;
mod resource;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use skiff_store::{Entry, Error, Event, Page, Revision, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use object::{Form, Object, Tidy, encode, labels_of, sealed};
pub use resource::{Change, Filter, Listed, ResourceCache, TooOld, Unreadable};

/// How long a reader waits for the cache to catch up with the store.
pub(crate) const FRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// What every key begins with.
const ROOT: &str = "/registry/";
/// How many of the newest changes are read again at the start, for watches to go on from: they take about a second.
const HISTORY: u64 = 20_000;
/// How many bytes of changes all windows have together at most: a flood need not be of one resource.
const WINDOWS_BYTES: usize = 256 << 20;
/// After how many bytes of changes that is looked at.
const LOOK_AFTER: usize = 16 << 20;
/// How soon a broken watch of the store is opened again at first, and at most: each time it is twice as long.
const REOPEN_DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The cache of all resources.
pub struct Cache {
    store: Arc<dyn Store>,
    /// By key prefix. The prefix of one resource never is the beginning of another's, for all end in a slash and
    /// groups have dots where resources have none.
    resources: RwLock<Resources>,
    /// The revision up to which every resource's cache is complete.
    applied: watch::Sender<Revision>,
    /// How many bytes of changes came since the windows were last looked at.
    unlooked: AtomicUsize,
}

#[derive(Default)]
struct Resources {
    by_prefix: HashMap<Arc<str>, Arc<ResourceCache>>,
    /// What is stored under no resource's prefix: objects of custom resources whose definition hasn't come up yet.
    unclaimed: Mutex<BTreeMap<Arc<str>, Entry>>,
}

/// The prefixes that a key may belong to, longest first: `/registry/a/b/` and `/registry/a/`.
fn prefixes(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').skip(2).map(|(i, _)| &key[..=i]).take(2).collect::<Vec<_>>().into_iter().rev()
}

impl Resources {
    fn of(&self, key: &str) -> Option<&Arc<ResourceCache>> {
        prefixes(key).find_map(|prefix| self.by_prefix.get(prefix))
    }

    fn unclaimed(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Entry>> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Reads everything that the store holds, as of some time ago: [`Cache::follow`] then sees the changes since, so that
    /// watches may go on over a restart of the server. `resources` are those to begin with, by prefix.
    pub async fn load(store: Arc<dyn Store>, resources: impl IntoIterator<Item = (String, Form)>) -> Result<Self, Error> {
        let page = remembered(store.as_ref()).await?;
        let cache = Self { store, resources: RwLock::default(), applied: watch::Sender::new(page.revision), unlooked: AtomicUsize::new(0) };
        for (prefix, form) in resources {
            cache.put(&prefix, form);
        }
        cache.fill(page.entries);
        Ok(cache)
    }

    fn fill(&self, entries: Vec<Entry>) {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            match resources.of(&entry.key) {
                Some(cache) => cache.load(entry),
                None => drop(resources.unclaimed().insert(Arc::clone(&entry.key), entry)),
            }
        }
    }

    /// Begins to keep a resource, or to read one that is kept in another form; what is stored of it already is there at
    /// once. Watches of the old form end.
    pub fn put(&self, prefix: &str, form: Form) -> Arc<ResourceCache> {
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let cache = match resources.by_prefix.get(prefix) {
            Some(old) => {
                let again = Arc::new(old.reread(form));
                old.close();
                again
            }
            None => {
                let cache = Arc::new(ResourceCache::new(prefix, form, *self.applied.borrow()));
                let mut unclaimed = resources.unclaimed();
                let claimed: Vec<_> = unclaimed.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
                for entry in claimed.iter().filter_map(|key| unclaimed.remove(key)) {
                    cache.load(entry);
                }
                drop(unclaimed);
                cache
            }
        };
        resources.by_prefix.insert(prefix.into(), Arc::clone(&cache));
        cache
    }

    /// Ends keeping a resource: its watches end. What there still is of it waits to be claimed again.
    pub fn remove(&self, prefix: &str) {
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = resources.by_prefix.remove(prefix) {
            cache.close();
            resources.unclaimed().extend(cache.entries().into_iter().map(|entry| (Arc::clone(&entry.key), entry)));
        }
    }

    /// The cache of the resource with this key prefix.
    pub fn resource(&self, prefix: &str) -> Option<Arc<ResourceCache>> {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).by_prefix.get(prefix).cloned()
    }

    /// Follows the store until `shutdown`. Only one task may run this.
    pub async fn follow(&self, shutdown: CancellationToken) {
        let mut delay = REOPEN_DELAY.0;
        while !shutdown.is_cancelled() {
            let before = self.applied();
            let result = shutdown.run_until_cancelled(self.follow_once()).await;
            if self.applied() != before {
                delay = REOPEN_DELAY.0;
            }
            match result {
                Some(Err(Error::Compacted { .. })) => {
                    tracing::warn!("the store compacted changes that this server had not seen: reading everything again, watches end");
                    if let Err(error) = self.reload().await {
                        tracing::warn!(%error, "the store can't be read");
                    }
                }
                Some(Err(error)) => tracing::warn!(%error, ?delay, "watch of the store broke, opening it again"),
                Some(Ok(())) | None => {}
            }
            shutdown.run_until_cancelled(tokio::time::sleep(delay)).await;
            delay = (delay * 2).min(REOPEN_DELAY.1);
        }
    }

    /// Reads everything again. Watches of what was in between are told that they are too far behind.
    async fn reload(&self) -> Result<(), Error> {
        let page = self.store.list(ROOT, &skiff_store::prefix_end(ROOT), 0, None).await?;
        {
            let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
            let (claimed, unclaimed): (Vec<Entry>, Vec<Entry>) = page.entries.into_iter().partition(|entry| resources.of(&entry.key).is_some());
            *resources.unclaimed() = unclaimed.into_iter().map(|entry| (Arc::clone(&entry.key), entry)).collect();
            let mut entries: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
            for entry in claimed {
                let prefix = resources.of(&entry.key).map(|cache| cache.prefix().into());
                entries.entry(prefix.unwrap_or_default()).or_default().push(entry);
            }
            for (prefix, cache) in &resources.by_prefix {
                cache.reset(entries.remove(prefix).unwrap_or_default(), page.revision);
            }
            self.applied.send_replace(page.revision);
        }
        Ok(())
    }

    async fn follow_once(&self) -> Result<(), Error> {
        let next = *self.applied.borrow() + 1;
        let mut changes = self.store.watch(next).await?;
        while let Some(batch) = changes.next().await {
            self.apply(batch?);
        }
        Ok(())
    }

    fn apply(&self, batch: Vec<Event>) {
        let Some(newest) = batch.last().map(|event| event.revision) else { return };
        let bytes = batch.iter().filter_map(|event| event.value.as_ref()).map(bytes::Bytes::len).sum();
        // Shared, for readers must not wait while a large batch is read.
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        for event in batch {
            match (resources.of(&event.key), event.value) {
                (Some(cache), value) => cache.apply(Event { value, ..event }),
                (None, Some(value)) => {
                    let Event { key, revision, created, .. } = event;
                    let entry = Entry { key: Arc::clone(&key), value, created, modified: revision };
                    resources.unclaimed().insert(key, entry);
                }
                (None, None) => drop(resources.unclaimed().remove(&event.key)),
            }
        }
        // Inside the lock, so that a resource added now begins at a revision that it is complete for.
        self.applied.send_replace(newest);
        drop(resources);
        if self.unlooked.fetch_add(bytes, Ordering::Relaxed) + bytes > LOOK_AFTER {
            self.trim(WINDOWS_BYTES);
        }
    }

    /// Lets the windows forget what is old, and of the largest more until all have no more than `most` bytes together.
    fn trim(&self, most: usize) {
        self.unlooked.store(0, Ordering::Relaxed);
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        let mut sizes: Vec<_> = resources.by_prefix.values().map(|cache| (cache.trim(usize::MAX), cache)).collect();
        let mut all: usize = sizes.iter().map(|(size, _)| size).sum();
        while all > most
            && let Some((size, cache)) = sizes.iter_mut().max_by_key(|(size, _)| *size)
        {
            let left = cache.trim(*size / 2);
            if left == *size {
                return;
            }
            all -= *size - left;
            *size = left;
        }
    }

    /// Lets the windows forget what is old: they do so by themselves only while changes come.
    pub(crate) fn forget(&self) {
        self.trim(WINDOWS_BYTES);
    }

    /// The revision up to which the cache is complete.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits for the cache to show every write acknowledged before this call. Answers the revision it shows.
    pub async fn fresh(&self) -> Result<Revision, Error> {
        let newest = self.store.revision().await?;
        self.reached(newest, FRESH_TIMEOUT).await.map_err(|applied| {
            Error::Unavailable(format!("the cache is at revision {applied}, the store at {newest}"))
        })
    }

    /// Waits for the cache to show revision `revision`; after `timeout`, what it shows instead is the error.
    pub async fn reached(&self, revision: Revision, timeout: Duration) -> Result<Revision, Revision> {
        let mut applied = self.applied.subscribe();
        let reached = tokio::time::timeout(timeout, applied.wait_for(|applied| *applied >= revision)).await;
        match reached {
            Ok(Ok(applied)) => Ok(*applied),
            _ => Err(self.applied()),
        }
    }
}

/// Everything, as of the oldest revision that the store still has, but no more than [`HISTORY`] changes ago. Not every
/// store says which one that is, so it is found by asking.
async fn remembered(store: &dyn Store) -> Result<Page, Error> {
    let (end, newest) = (skiff_store::prefix_end(ROOT), store.revision().await?);
    let mut at = newest.saturating_sub(HISTORY).max(1);
    while let Err(error) = store.list(ROOT, &end, 1, Some(at)).await {
        match error {
            Error::Compacted { oldest, .. } if at < newest => at = oldest.max(at + (newest - at).div_ceil(2)).min(newest),
            other => return Err(other),
        }
    }
    store.list(ROOT, &end, 0, Some(at)).await
}

#[cfg(test)]
mod tests {
    use skiff_store::{Guard, Memory};

    use super::*;

    #[test]
    fn a_key_belongs_to_the_longer_prefix_first() {
        let found: Vec<_> = prefixes("/registry/services/specs/ns/a").collect();
        assert_eq!(found, ["/registry/services/specs/", "/registry/services/"]);
        assert_eq!(prefixes("/registry/nodes/a").collect::<Vec<_>>(), ["/registry/nodes/"]);
    }

    #[tokio::test]
    async fn reads_see_every_acknowledged_write_and_late_resources_their_objects() {
        let store = Arc::new(Memory::new());
        let cache = Arc::new(Cache::load(store.clone(), [("/registry/pods/".into(), Form::default())]).await.expect("load"));
        let shutdown = CancellationToken::new();
        let _stop = shutdown.clone().drop_guard();
        tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { cache.follow(shutdown).await }
        });
        let before = cache.applied();
        for key in ["/registry/pods/ns/a", "/registry/x.io/things/ns/b"] {
            store.commit(key, Guard::Absent, Some(r#"{"metadata":{"name":"x"}}"#.into())).await.expect("commit");
        }
        let revision = cache.fresh().await.expect("fresh");
        let pods = cache.resource("/registry/pods/").expect("pods");
        assert_eq!(pods.list(&Filter::default(), 0).objects.len(), 1);
        let things = cache.put("/registry/x.io/things/", Form::default());
        assert_eq!(things.get("/registry/x.io/things/ns/b").expect("claimed").revision, revision);
        assert_eq!(things.changes(revision - 1, 9).expect_err("unknown history"), TooOld { oldest: revision });
        assert!(things.changes(revision, 9).is_ok_and(|c| c.is_empty()));
        // Read in another form, then given up, then claimed again.
        let tidy: Tidy = Arc::new(|object| object["x"] = 1.into());
        let tidied = cache.put("/registry/x.io/things/", Form { tidy: Some(tidy), ..Form::default() });
        assert!(things.is_closed() && !tidied.is_closed());
        let shown = |cache: &ResourceCache| cache.get("/registry/x.io/things/ns/b").expect("kept").bytes.clone();
        assert_eq!(shown(&tidied), r#"{"metadata":{"name":"x"},"x":1}"#);
        cache.remove("/registry/x.io/things/");
        assert!(tidied.is_closed() && cache.resource("/registry/x.io/things/").is_none());
        assert_eq!(shown(&cache.put("/registry/x.io/things/", Form::default())), r#"{"metadata":{"name":"x"}}"#);

        // A second cache of the same store knows what the first one saw.
        let again = Cache::load(store, [("/registry/pods/".into(), Form::default())]).await.expect("load");
        assert_eq!(again.applied(), before);
        again.reload().await.expect("reload");
        assert_eq!(again.applied(), revision);
        let pods = again.resource("/registry/pods/").expect("pods");
        assert!(pods.get("/registry/pods/ns/a").is_some());
        assert_eq!(pods.changes(before, 9).expect_err("what was in between is unknown"), TooOld { oldest: revision });
        assert_eq!(*pods.subscribe().borrow(), revision, "whoever looks for news finds some");
    }

    #[tokio::test(start_paused = true)]
    async fn windows_are_bounded_together_and_give_back_what_is_old() {
        let prefixes = ["/registry/a/", "/registry/b/", "/registry/c/"];
        let cache = Cache::load(Arc::new(Memory::new()), prefixes.map(|p| (p.to_owned(), Form::default()))).await.expect("a cache");
        let value: bytes::Bytes = format!(r#"{{"metadata":{{"name":"x"}},"data":"{}"}}"#, "x".repeat(1 << 20)).into();
        for revision in 2..62 {
            let key = format!("{}n/{revision}", prefixes[if revision < 50 { 0 } else { 1 + revision as usize % 2 }]);
            cache.apply(vec![Event { key: key.into(), revision, created: revision, value: Some(value.clone()) }]);
        }
        let kept = || prefixes.map(|p| cache.resource(p).map_or(0, |c| c.trim(usize::MAX) >> 20));
        assert_eq!(kept(), [48, 6, 6]);
        cache.trim(40 << 20);
        assert_eq!(kept(), [24, 6, 6], "the largest gives");
        assert_eq!(cache.resource(prefixes[0]).expect("a resource").changes(2, 1).expect_err("it is gone"), TooOld { oldest: 25 });
        tokio::time::advance(Duration::from_secs(80)).await;
        cache.forget();
        assert!(kept().iter().all(|kept| *kept <= 4), "{:?}", kept());
    }

    #[tokio::test]
    async fn a_cache_begins_at_the_oldest_revision_that_the_store_has() {
        let store = Memory::new();
        for key in ["/registry/pods/ns/a", "/registry/pods/ns/b", "/registry/pods/ns/c"] {
            store.commit(key, Guard::Absent, Some(r#"{"metadata":{"name":"x"}}"#.into())).await.expect("commit");
        }
        assert_eq!(remembered(&store).await.expect("a page").entries.len(), 0);
        store.compact(store.revision().await.expect("a revision") - 1).await.expect("compact");
        assert_eq!(remembered(&store).await.expect("a page").entries.len(), 2);
    }
}
