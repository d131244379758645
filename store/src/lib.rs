//! The revisioned key-value store that the API server keeps its objects in.
//!
//! [`Store`] is six verbs with etcd's meaning: every write gets the next [`Revision`], a read may be pinned to one,
//! a watch tells every change after one, and [`Store::compact`] gives up the history before one. Homes:
//! [`Memory`] (tests, simulation), [`Embedded`] (one file, durable before it answers) and [`Etcd`].

mod embedded;
mod etcd;
mod memory;
mod mvcc;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use skiff_api::Status;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use memory::Memory;

/// The store-wide count of writes. The first write makes revision 2, as in etcd, so that 0 and 1 stay free.
pub type Revision = u64;

/// A key's value and when it came to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value; a cheap clone.
    pub value: Bytes,
    /// The revision of the write that made the key.
    pub created: Revision,
    /// The revision of the write that made this value.
    pub modified: Revision,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ({} bytes, since {})", self.key, self.modified, self.value.len(), self.created)
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// The revision of the change.
    pub revision: Revision,
    /// The revision of the write that made the key.
    pub created: Revision,
    /// The new value; `None` when the key was deleted.
    pub value: Option<Bytes>,
}

/// What must be true of the key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key must not exist.
    Absent,
    /// The key must exist and its value be of this revision.
    Modified(Revision),
}

/// Some entries of a range, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// How many more entries the range holds past the last one.
    pub remaining: u64,
}

/// What a store couldn't do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard didn't hold; what is there instead.
    #[error("the key is not what the write expected")]
    Conflict(Option<Entry>),
    /// The revision asked for is past the history that is kept.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision asked for is yet to come.
    #[error("revision {asked} is in the future, the current one is {current}")]
    Future {
        /// The revision asked for.
        asked: Revision,
        /// The store's newest revision.
        current: Revision,
    },
    /// The store can't be reached or can't write. The outcome of a write that ends so is unknown.
    #[error("use the store: {0}")]
    Unavailable(String),
    /// The store took too long over a write, which may have happened or may happen yet.
    #[error("write to the store: {0}")]
    Unknown(String),
    /// The value is there, and can't be decrypted.
    #[error("unable to transform key {key:?}: {why}")]
    Unreadable {
        /// The key.
        key: String,
        /// Why not.
        why: String,
    },
    /// There is no room for another value; deleting some makes room.
    #[error("etcdserver: mvcc: database space exceeded")]
    Full,
    /// The data dir can't be opened; the sentence says why and what to do.
    #[error("{0}")]
    Open(String),
}

impl Error {
    /// Whether a write that ends so may have happened, or may happen yet.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

/// What the store couldn't do, as a client of the API is told it.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(why) => Self::new(503, "ServiceUnavailable", format!("the store is not available: {why}")),
            // Upstream's words for a write that etcd didn't answer.
            Error::Unknown(_) => Self::new(504, "Timeout", "Timeout: request did not complete within requested timeout - context deadline exceeded"),
            // As upstream passes on what etcd says.
            Error::Full => Self::new(500, "", error.to_string()),
            other => Self::internal(other),
        }
    }
}

/// A revisioned key-value store; see the crate's own page.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The key's entry (or `None`), as of the newest acknowledged write.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The entries with `start <= key < end`, at most `limit` (0: all), as of `at` (or the newest acknowledged write).
    async fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, Error>;

    /// Writes (or with `None` deletes) one key if `guard` holds. When this answers, the write is durable; what it
    /// answers is the write's revision.
    async fn commit(&self, key: &str, guard: Guard, value: Option<Bytes>) -> Result<Revision, Error>;

    /// Every change of revision `from` and later, in order, in batches as they come; never ends by itself, except
    /// with an error. Each batch is whole: no revision is split over two.
    async fn watch(&self, from: Revision) -> Result<BoxStream<'static, Result<Vec<Event>, Error>>, Error>;

    /// Gives up the history before `revision`; the newest value of each key always stays.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The revision of the newest acknowledged write.
    async fn revision(&self) -> Result<Revision, Error>;

    /// How many bytes the store takes on disk; `None` for one that takes none.
    async fn size(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// Whether the key's value was read in a form in which it would not be written today, so that even a write that
    /// changes nothing is due.
    fn is_stale(&self, _key: &str) -> bool {
        false
    }
}

/// The end of the range of keys that begin with `prefix`.
pub fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if last < char::MAX
            && let Some(next) = char::from_u32(last as u32 + 1)
        {
            end.push(next);
            return end;
        }
    }
    end
}
