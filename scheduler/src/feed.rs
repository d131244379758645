//! Watches, each in a task of its own, that turn objects into facts and hand these on.

use std::fmt::Debug;
use std::hash::Hash;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// What a watch tells: facts `T` under keys of their own.
#[derive(Debug)]
pub enum Change<T> {
    /// All there is. Whatever else was known is gone.
    All(Vec<T>),
    /// One came or changed.
    Set(T),
    /// One went.
    Gone(T),
}

/// Watches `api` for as long as somebody listens. `read` makes facts of an object, none for one that doesn't count.
pub async fn feed<K, T, I>(
    api: Api<K>,
    config: watcher::Config,
    read: impl Fn(&K) -> Option<T> + Send,
    wrap: impl Fn(Change<T>) -> I + Send,
    to: mpsc::Sender<I>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Hash + Eq,
    T: Send,
    I: Send,
{
    let mut events = watcher(api, config.streaming_lists()).default_backoff().boxed();
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(watcher::Event::Init) => {
                all.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                all.extend(read(&object));
                continue;
            }
            Ok(watcher::Event::InitDone) => Change::All(std::mem::take(&mut all)),
            Ok(watcher::Event::Apply(object)) => match read(&object) {
                Some(facts) => Change::Set(facts),
                None => continue,
            },
            Ok(watcher::Event::Delete(object)) => match read(&object) {
                Some(facts) => Change::Gone(facts),
                None => continue,
            },
            Err(error) => {
                tracing::warn!(%error, kind = std::any::type_name::<K>(), "watch failed, trying again");
                continue;
            }
        };
        if to.send(wrap(change)).await.is_err() {
            return;
        }
    }
}
