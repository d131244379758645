//! The multi-version index that the stores of this process share: what is current, and the history since the last
//! compaction. It holds no lock over IO and knows nothing of disks.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Entry, Error, Event, Guard, Page, Revision};

/// How many bytes of history are kept at most, whatever the time between compactions: large values that change often would fill
/// memory and disk.
const HISTORY: usize = 256 << 20;
/// How many bytes of current values there may be: etcd's quota.
const QUOTA: usize = 2 << 30;
/// About what a version takes beside its value.
const OVERHEAD: usize = 128;

/// One value of one key.
#[derive(Clone, Debug)]
struct Version {
    modified: Revision,
    created: Revision,
    /// `None` is a deletion.
    value: Option<Bytes>,
}

impl Version {
    fn size(&self) -> usize {
        OVERHEAD + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// The index. Writes come in the order of their revisions.
#[derive(Debug)]
pub(crate) struct Mvcc {
    /// Every key that has a value or a history, with its versions, oldest first; never an empty list.
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    /// Which key each revision after `compacted` changed, in order: what watches read and compaction walks.
    log: VecDeque<(Revision, Arc<str>)>,
    revision: Revision,
    compacted: Revision,
    /// How many bytes the current values take.
    live: usize,
    /// How many bytes all other versions take: what compaction would give back.
    history: usize,
    /// [`HISTORY`] and [`QUOTA`].
    limits: (usize, usize),
}

impl Default for Mvcc {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), log: VecDeque::new(), revision: 1, compacted: 0, live: 0, history: 0, limits: (HISTORY, QUOTA) }
    }
}

impl Mvcc {
    #[cfg(test)]
    pub(crate) fn limited(history: usize, quota: usize) -> Self {
        Self { limits: (history, quota), ..Self::default() }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Sets the counters of a store that is being opened.
    pub(crate) fn restore_counters(&mut self, revision: Revision, compacted: Revision) {
        self.revision = self.revision.max(revision);
        self.compacted = compacted;
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        let (key, versions) = self.keys.get_key_value(key)?;
        entry(key, versions.last()?)
    }

    /// Whether `guard` holds for the key now; if it does, when the key was made (`None` when it isn't there).
    pub(crate) fn check(&self, key: &str, guard: Guard) -> Result<Option<Revision>, Error> {
        let current = self.get(key);
        match (guard, &current) {
            (Guard::Absent, None) => Ok(None),
            (Guard::Modified(revision), Some(entry)) if entry.modified == revision => Ok(Some(entry.created)),
            _ => Err(Error::Conflict(current)),
        }
    }

    /// Takes in a change, which must be newer than all before.
    pub(crate) fn apply(&mut self, event: Event) {
        debug_assert!(event.revision > self.revision, "revisions only grow");
        self.revision = event.revision;
        self.log.push_back((event.revision, Arc::clone(&event.key)));
        let version = Version { modified: event.revision, created: event.created, value: event.value };
        let size = version.size();
        *(if version.value.is_some() { &mut self.live } else { &mut self.history }) += size;
        let versions = self.keys.entry(event.key).or_default();
        if let Some(last) = versions.last().filter(|last| last.value.is_some()) {
            self.live -= last.size();
            self.history += last.size();
        }
        versions.push(version);
    }

    /// Whether there is room for a value behind `waiting` bytes that are about to come; a deletion always finds some.
    pub(crate) fn room(&self, waiting: usize, value: Option<&Bytes>) -> Result<(), Error> {
        let needed = value.map_or(0, |value| self.live + waiting + value.len());
        if needed > self.limits.1 { Err(Error::Full) } else { Ok(()) }
    }

    /// Up to where history is to be given up, if there is too much of it: some of the oldest, so that nobody waits long.
    pub(crate) fn surplus(&self) -> Option<Revision> {
        let oldest = self.log.get(self.log.len() / 8).filter(|_| self.history > self.limits.0)?;
        Some(oldest.0)
    }

    pub(crate) fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error> {
        let revision = at.unwrap_or(self.revision);
        self.readable(revision)?;
        let range = (Bound::Included(start), Bound::Excluded(end));
        let mut shown = (start < end)
            .then(|| self.keys.range::<str, _>(range))
            .into_iter()
            .flatten()
            .filter_map(|(key, versions)| entry(key, versions.iter().rev().find(|v| v.modified <= revision)?));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let entries: Vec<_> = shown.by_ref().take(limit).collect();
        Ok(Page { entries, revision, remaining: shown.count() as u64 })
    }

    fn readable(&self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::Future { asked: revision, current: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { asked: revision, oldest: self.compacted });
        }
        Ok(())
    }

    /// At most `max` changes from revision `from` on.
    pub(crate) fn changes(&self, from: Revision, max: usize) -> Result<Vec<Event>, Error> {
        if from <= self.compacted && self.compacted > 0 {
            return Err(Error::Compacted { asked: from, oldest: self.compacted + 1 });
        }
        let first = self.log.partition_point(|(revision, _)| *revision < from);
        Ok(self.log.iter().skip(first).take(max).filter_map(|(revision, key)| self.change(*revision, key)).collect())
    }

    fn change(&self, revision: Revision, key: &Arc<str>) -> Option<Event> {
        let versions = self.keys.get(key)?;
        let index = versions.binary_search_by_key(&revision, |v| v.modified).ok()?;
        let Version { modified, created, value } = versions[index].clone();
        Some(Event { key: Arc::clone(key), revision: modified, created, value })
    }

    /// Gives up what only readers of revisions before `revision` can see. Answers the revisions of the versions that
    /// were given up, so that a durable store drops the same.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<Vec<Revision>, Error> {
        self.readable(revision)?;
        let mut dropped = Vec::new();
        while let Some((logged, _)) = self.log.front()
            && *logged <= revision
            && let Some((_, key)) = self.log.pop_front()
        {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            // The newest version at `revision` stays, unless it is a deletion.
            let newest = versions.partition_point(|v| v.modified <= revision);
            let keep_from = match newest.checked_sub(1) {
                Some(index) if versions[index].value.is_none() => newest,
                Some(index) => index,
                None => 0,
            };
            for version in versions.drain(..keep_from) {
                self.history -= version.size();
                dropped.push(version.modified);
            }
            if versions.is_empty() {
                self.keys.remove(&key);
            }
        }
        self.compacted = revision;
        Ok(dropped)
    }
}

fn entry(key: &Arc<str>, version: &Version) -> Option<Entry> {
    let value = version.value.clone()?;
    Some(Entry { key: Arc::clone(key), value, created: version.created, modified: version.modified })
}
