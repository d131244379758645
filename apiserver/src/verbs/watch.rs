//! WATCH: each change once and in order, from the cache's window.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use serde_json::json;
use skiff_api::{Status, fields, random};
use skiff_store::Revision;
use tokio::sync::watch;
use tokio::time::Instant;

use super::list::{self, Wanted};
use super::{Call, websocket};
use crate::cache::{Change, Filter, Object, ResourceCache};
use crate::convert;
use crate::http::body::{Reply, reply, stream as streamed};
use crate::http::encode::{Encoder, Include, Shown, error_frame};
use crate::http::negotiate::Shape;

/// How many changes are taken out of the window at once.
const BATCH: usize = 256;
/// How often a watch that wants bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// How long a watch lives at least when the client doesn't say, in seconds; upstream's figure. At most twice that.
const MIN_LIFE: usize = 1_800;
/// About how many bytes of frames go out together.
const CHUNK: usize = 64 * 1024;

/// Carries out a WATCH.
pub(super) async fn watch(call: &Call) -> Result<Reply, Status> {
    let mut filter = list::filter(call)?;
    let late = convert::late_fields(&call.resource, &mut filter);
    let wanted = list::wanted(call, true)?;
    let cache = call.cache()?;
    let initial = call.query.flag("sendInitialEvents");
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let timeout = call.query.int("timeoutSeconds")?.filter(|s| *s > 0);
    let life = timeout.map_or_else(|| MIN_LIFE + random::below(MIN_LIFE), |s| usize::try_from(s).unwrap_or(MIN_LIFE));

    // Where the stream of changes begins, and whether what is there comes first.
    let (from, state) = match wanted {
        Wanted::Newest => (call.server.cache.fresh().await?, true),
        Wanted::Any => (call.server.cache.applied(), true),
        Wanted::AtLeast(revision) | Wanted::Exact(revision) if initial => {
            let reached = call.server.cache.reached(revision, list::FUTURE_TIMEOUT).await;
            (reached.map_err(|current| list::too_large(revision, current))?, true)
        }
        Wanted::AtLeast(revision) | Wanted::Exact(revision) => (revision, false),
    };
    // `sendInitialEvents=false` asks for changes from now on alone.
    let state = state && (initial || call.query.get("sendInitialEvents").is_none());
    let (objects, from) = if state {
        let listed = cache.list(&filter, 0).whole()?;
        (listed.objects, from.max(listed.newest))
    } else {
        cache.readable(&filter)?;
        (Vec::new(), from)
    };
    let watcher = Watcher {
        bell: cache.subscribe(),
        applied: Arc::clone(&call.server),
        encoder: Frames {
            resource: Arc::clone(&call.resource),
            shape: call.shape,
            include: call.encoder().include,
            columns: true,
        },
        cache,
        filter,
        late,
        at: from,
        ends: Instant::now() + Duration::from_secs(life as u64),
        bookmark: bookmarks.then(|| Instant::now() + BOOKMARK_PERIOD),
        objects: objects.into_iter(),
        // Upstream reads a watch from nowhere as one that asks for the initial events.
        initial_end: bookmarks && state,
        over: false,
    };
    // A begin that is too far back is told in the stream, with status 200, as upstream does.
    if !state
        && from < watcher.applied.cache.applied()
        && let Err(too_old) = watcher.cache.changes(from, 1)
    {
        let frame = error_frame(&expired(from, too_old.oldest), call.shape.format);
        return answer(call, stream::iter([frame]));
    }
    answer(call, watcher.stream())
}

/// The frames as the answer's body, or on the WebSocket that the client asks for.
fn answer(call: &Call, frames: impl Stream<Item = Bytes> + Send + 'static) -> Result<Reply, Status> {
    if websocket::is_asked_for(&call.headers) {
        return websocket::watch(call, frames);
    }
    Ok(reply(200, call.shape.stream_type(), streamed(frames.map(Ok))))
}

fn expired(asked: Revision, oldest: Revision) -> Status {
    Status::expired(format!("too old resource version: {asked} ({oldest})"))
}

/// What a watch needs to write its frames.
struct Frames {
    resource: Arc<skiff_api::resource::Resource>,
    shape: Shape,
    include: Include,
    /// Whether the next table names its columns: only the first does.
    columns: bool,
}

/// An object before and after a change, as far as the filter lets it be seen.
struct Seen {
    before: Option<Arc<Object>>,
    after: Option<Arc<Object>>,
}

struct Watcher {
    cache: Arc<ResourceCache>,
    /// For the revision up to which the cache is complete.
    applied: Arc<crate::server::Server>,
    filter: Filter,
    /// What is asked of objects in the resource's version.
    late: fields::Selector,
    /// Every change up to this revision was sent.
    at: Revision,
    bell: watch::Receiver<Revision>,
    ends: Instant,
    /// When the next bookmark is due, for clients that want them.
    bookmark: Option<Instant>,
    /// What is there at the begin and wasn't sent yet.
    objects: std::vec::IntoIter<Arc<Object>>,
    /// Whether the end of the initial objects is still to be marked.
    initial_end: bool,
    over: bool,
    encoder: Frames,
}

impl Watcher {
    fn stream(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((chunk, watcher))
        })
    }

    /// The next frames; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = Vec::new();
        while out.len() < CHUNK && self.objects.len() > 0 && !self.over {
            let batch = self.objects.by_ref().take(BATCH).map(|object| Seen { before: None, after: Some(object) }).collect();
            self.frames(batch, &mut out).await;
        }
        if !out.is_empty() {
            return Some(out.into());
        }
        if std::mem::take(&mut self.initial_end) {
            self.bookmark_frame(true, &mut out);
            return Some(out.into());
        }
        loop {
            // The order matters: changes newer than this look at the cache aren't skipped below.
            let complete = self.applied.cache.applied();
            self.bell.borrow_and_update();
            match self.cache.changes(self.at, BATCH) {
                Err(too_old) => {
                    self.over = true;
                    return Some(error_frame(&expired(self.at, too_old.oldest), self.encoder.shape.format));
                }
                Ok(changes) if changes.is_empty() && self.cache.is_closed() => return None,
                Ok(changes) if changes.is_empty() => self.at = self.at.max(complete),
                Ok(changes) => {
                    self.at = changes.last().map_or(self.at, |change| change.revision);
                    let seen = changes.into_iter().filter_map(|change| self.seen(change)).collect();
                    self.frames(seen, &mut out).await;
                    if out.is_empty() {
                        continue;
                    }
                    return Some(out.into());
                }
            }
            let wake = self.bookmark.unwrap_or(self.ends).min(self.ends);
            tokio::select! {
                changed = self.bell.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= self.ends {
                        return None;
                    }
                    self.at = self.at.max(self.quiet_until());
                    self.bookmark = Some(now + BOOKMARK_PERIOD);
                    self.bookmark_frame(false, &mut out);
                    return Some(out.into());
                }
                () = self.applied.stopping() => return None,
            }
        }
    }

    /// The revision up to which the resource surely has no change that wasn't sent.
    fn quiet_until(&self) -> Revision {
        let complete = self.applied.cache.applied();
        match self.cache.changes(self.at, 1) {
            Ok(changes) if changes.is_empty() => complete,
            _ => self.at,
        }
    }

    /// What this watch makes of a change: selectors turn some updates into comings and goings.
    fn seen(&self, change: Change) -> Option<Seen> {
        let before = change.old.filter(|o| self.cache.passes(&self.filter, o));
        let after = change.new.filter(|o| self.cache.passes(&self.filter, o));
        // The last state of what goes is shown as of the change.
        let before = if after.is_none() || !self.late.is_empty() { before.map(|old| Arc::new(old.at(change.revision))) } else { before };
        (before.is_some() || after.is_some()).then_some(Seen { before, after })
    }

    /// Writes events. Where their objects can't be converted, that is told, and the watch ends.
    async fn frames(&mut self, events: Vec<Seen>, out: &mut Vec<u8>) {
        if let Err(status) = self.try_frames(events, out).await {
            out.extend_from_slice(&error_frame(&status, self.encoder.shape.format));
            self.over = true;
        }
    }

    async fn try_frames(&mut self, events: Vec<Seen>, out: &mut Vec<u8>) -> Result<(), Status> {
        // What was before an update matters only where a selector has still to look at it.
        let looks = !self.late.is_empty();
        let objects = events.iter().flat_map(|seen| [seen.before.as_ref().filter(|_| looks || seen.after.is_none()), seen.after.as_ref()]);
        let objects = objects.flatten().map(|object| Shown::Stored(Arc::clone(object))).collect();
        let mut shown = convert::shown(&self.applied, &self.encoder.resource, objects).await?.into_iter();
        for Seen { before, after } in events {
            let Some(key) = after.as_ref().or(before.as_ref()).map(|object| Arc::clone(&object.key)) else { continue };
            let old = if looks || after.is_none() { before.as_ref().and_then(|_| shown.next()) } else { None };
            let new = after.and_then(|_| shown.next());
            let passes = |shown: &Option<Shown>| shown.as_ref().map_or(Ok(false), |shown| convert::passes(&self.encoder.resource, &self.late, shown));
            let was = if looks { passes(&old)? } else { before.is_some() };
            match (was, passes(&new)?, old, new) {
                (false, true, _, Some(new)) => self.frame("ADDED", &key, &new, out),
                (true, true, _, Some(new)) => self.frame("MODIFIED", &key, &new, out),
                (true, false, Some(old), _) => self.frame("DELETED", &key, &old, out),
                _ => {}
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: &str, key: &str, shown: &Shown, out: &mut Vec<u8>) {
        let columns = std::mem::take(&mut self.encoder.columns);
        if let Err(error) = self.encoder.get().frame(kind, shown, columns, out) {
            tracing::error!(%key, %error, "object can't be shown to a watch");
        }
    }

    fn bookmark_frame(&self, initial_end: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({"resourceVersion": self.at.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let resource = &self.encoder.resource;
        let object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
        if let Err(error) = self.encoder.get().frame("BOOKMARK", &Shown::Value(object), false, out) {
            tracing::error!(kind = %resource.kind, %error, "bookmark can't be written");
        }
    }
}

impl Frames {
    fn get(&self) -> Encoder<'_> {
        Encoder { resource: &self.resource, shape: self.shape, include: self.include, pretty: false }
    }
}

