//! A queue of work that belongs to no single kind: deduplicated, delayed where wanted, tried again when it fails.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::controller::Again;
use crate::error::Error;

/// The wait after the first failure; it doubles from failure to failure.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(120);

/// Where work is put.
#[derive(Debug)]
pub struct Queue<T>(UnboundedSender<ScheduleRequest<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Where work is taken from.
pub struct Work<T>(Queue<T>, UnboundedReceiver<ScheduleRequest<T>>);

impl<T: Clone + Debug + Hash + Eq + Send + 'static> Queue<T> {
    /// A queue and its other end.
    pub fn new() -> (Self, Work<T>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Self(sender);
        (queue.clone(), Work(queue, receiver))
    }

    /// Has an item worked on.
    pub fn add(&self, item: T) {
        self.add_after(item, Duration::ZERO);
    }

    /// Has an item worked on after a while; sooner if that is asked for, too.
    pub fn add_after(&self, item: T, delay: Duration) {
        // When the worker has stopped, nobody waits for the work.
        let _ = self.0.send(ScheduleRequest { message: item, run_at: Instant::now() + delay });
    }
}

impl<T: Clone + Debug + Hash + Eq + Send + 'static> Work<T> {
    /// Works for ever, on up to `parallel` items at once.
    pub async fn run<F, R>(self, name: &'static str, parallel: usize, work: F)
    where
        F: Fn(T) -> R,
        R: Future<Output = Result<Again, Error>> + Send,
    {
        let Self(queue, receiver) = self;
        let mut failures: HashMap<T, u32> = HashMap::new();
        let mut done = scheduler(UnboundedReceiverStream::new(receiver))
            .map(|item| {
                let result = work(item.clone());
                async move { (item, result.await) }
            })
            .buffer_unordered(parallel);
        while let Some((item, result)) = done.next().await {
            match result {
                Ok(again) => {
                    failures.remove(&item);
                    if let Some(delay) = again {
                        queue.add_after(item, delay);
                    }
                }
                Err(error) => {
                    let count = failures.entry(item.clone()).or_default();
                    *count += 1;
                    let delay = FIRST_RETRY.saturating_mul(1u32 << (*count - 1).min(20)).min(LAST_RETRY);
                    tracing::warn!(controller = name, ?item, %error, "work failed, trying again");
                    queue.add_after(item, delay);
                }
            }
        }
    }
}
