//! The one source of time.
//!
//! Everything that needs the wall clock calls [`now`]. It is the system's clock, unless this thread was put on
//! virtual time by [`set_virtual`]: then it is tokio's clock (which a paused runtime moves by itself from timer to
//! timer), so that a cluster lives through days in milliseconds and every run reads the same times.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

thread_local! {
    /// The wall-clock time that tokio's instant stands for, on a thread that lives in virtual time.
    static ANCHOR: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// The current time.
pub fn now() -> Timestamp {
    match ANCHOR.get() {
        Some((start, instant)) => start + Instant::now().saturating_duration_since(instant),
        // A system clock outside of jiff's years -9999 to 9999 is read as 1970.
        None => Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// Puts this thread on virtual time, which begins at `start` and goes on as tokio's clock does.
///
/// Meant for a current-thread runtime with paused time (`tokio::time::pause`), where all tasks share the thread.
pub fn set_virtual(start: Timestamp) {
    ANCHOR.set(Some((start, Instant::now())));
}

/// How long it is from now until `at`; zero when that is past.
pub fn until(at: Timestamp) -> Duration {
    at.duration_since(now()).try_into().unwrap_or(Duration::ZERO)
}

/// How long ago `at` was; negative when it is to come.
pub fn since(at: Timestamp) -> SignedDuration {
    now().duration_since(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_time_moves_with_the_paused_runtime() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a timestamp");
        set_virtual(start);
        tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
        assert_eq!(now(), "2026-01-08T00:00:00Z".parse().expect("a timestamp"));
        assert_eq!(until(now() + Duration::from_secs(5)), Duration::from_secs(5));
        assert_eq!(until(start), Duration::ZERO);
    }
}
