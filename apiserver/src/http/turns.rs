//! Connections take turns by their users. A busy server has hundreds of connections with something to read at once, and a runtime
//! polls them in the order in which they woke up: who asks once would wait for a whole round of somebody's flood, before priority
//! and fairness even sees the request. So the connections of one user stand in a line of their own, and what the runtime sees of
//! them is a few tasks, each of which polls the first of the line and goes behind everybody else. While two users have something
//! to do, a processor is left to the second: a turn can't be broken off, and even a short one is longer than a small request.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::runtime::Handle;

/// For how long after its last turn a line leaves no processor to the others alone.
const LATELY: Duration = Duration::from_millis(100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines that there are, by user; that of nobody is for connections that haven't shown yet whose they are.
pub struct Lines {
    /// How many connections of a user are polled at a time.
    width: usize,
    runtime: Handle,
    by_user: Mutex<HashMap<String, Weak<Line>>>,
    /// How many lines there have been.
    count: AtomicU64,
    joined: Arc<Mutex<Joined>>,
}

/// The two lines that were joined last, by their numbers.
#[derive(Default)]
struct Joined {
    last: Option<(u64, Instant)>,
    before: Option<(u64, Instant)>,
}

impl Joined {
    /// Notes that a line is joined, and tells whether another was lately.
    fn join(&mut self, line: u64, now: Instant) -> bool {
        if self.last.is_some_and(|(last, _)| last != line) {
            self.before = self.last;
        }
        self.last = Some((line, now));
        self.before.is_some_and(|(_, at)| now.saturating_duration_since(at) < LATELY)
    }
}

impl Lines {
    /// In the runtime that this is called in: of each user as many connections are polled at a time as there are processors.
    pub fn new() -> Arc<Self> {
        Self::of_width(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn of_width(width: usize) -> Arc<Self> {
        Arc::new(Self { width, runtime: Handle::current(), by_user: Mutex::default(), count: AtomicU64::new(0), joined: Arc::default() })
    }

    fn line(&self, user: &str) -> Arc<Line> {
        let mut lines = lock(&self.by_user);
        if let Some(line) = lines.get(user).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Line {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            width: self.width,
            runtime: self.runtime.clone(),
            joined: Arc::clone(&self.joined),
            queue: Mutex::default(),
        });
        lines.insert(user.to_owned(), Arc::downgrade(&line));
        line
    }
}

/// One user's line.
struct Line {
    number: u64,
    width: usize,
    runtime: Handle,
    joined: Arc<Mutex<Joined>>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Job>>,
    /// How many tasks of the runtime serve the line: some as long as somebody stands in it.
    servers: usize,
    /// Whether another line had been joined lately when this was joined last.
    shared: bool,
}

impl Line {
    fn join(self: Arc<Self>, job: Arc<Job>) {
        let shared = lock(&self.joined).join(self.number, Instant::now());
        let mut queue = lock(&self.queue);
        queue.ready.push_back(job);
        queue.shared = shared;
        if queue.servers < self.servers(&queue) {
            queue.servers += 1;
            drop(queue);
            self.runtime.clone().spawn(self.serve());
        }
    }

    /// How many tasks may serve it.
    fn servers(&self, queue: &Queue) -> usize {
        self.width.saturating_sub(usize::from(queue.shared)).max(1)
    }

    /// Whose turn it is, and whether the line is shared; nobody's if this task is one too many.
    fn next(&self) -> Option<(Arc<Job>, bool)> {
        let mut queue = lock(&self.queue);
        let job = if queue.servers > self.servers(&queue) { None } else { queue.ready.pop_front() };
        queue.servers -= usize::from(job.is_none());
        job.map(|job| (job, queue.shared))
    }

    async fn serve(self: Arc<Self>) {
        while let Some((job, shared)) = self.next() {
            job.run();
            if shared {
                // Another thread may wait for this processor, and the kernel would let it wait for a tick.
                std::thread::yield_now();
            }
            // What wakes itself goes behind all other tasks that could run; tokio's own yield would come before them.
            let mut yielded = false;
            poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }
}

/// Where a connection stands: in the line of the user who asked over it last.
#[derive(Clone)]
pub struct Place(Arc<Standing>);

struct Standing {
    lines: Arc<Lines>,
    now: Mutex<(String, Arc<Line>)>,
}

impl Place {
    /// The place of a new connection.
    pub fn new(lines: &Arc<Lines>) -> Self {
        Self(Arc::new(Standing { now: Mutex::new((String::new(), lines.line(""))), lines: Arc::clone(lines) }))
    }

    /// The connection is this user's from now on.
    pub fn is_of(&self, user: &str) {
        let mut now = lock(&self.0.now);
        if now.0 != user {
            *now = (user.to_owned(), self.0.lines.line(user));
        }
    }

    fn line(&self) -> Arc<Line> {
        Arc::clone(&lock(&self.0.now).1)
    }

    /// Runs what belongs to the connection, a turn at a time.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let job = Job { place: self.clone(), state: Mutex::new(State::Asleep), future: Mutex::new(Some(Box::pin(future))) };
        Arc::new(job).wake();
    }
}

/// The requests of one HTTP/2 connection run beside it, and stand in line as connections do.
impl<F> Executor<F> for Place
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        self.spawn(async move { drop(future.await) });
    }
}

/// What is polled when its turn comes.
struct Job {
    place: Place,
    state: Mutex<State>,
    /// Locked by the one who polls it; gone when it is done.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

#[derive(Clone, Copy)]
enum State {
    /// Until it is woken.
    Asleep,
    /// Until its turn comes.
    InLine,
    /// Until its poll returns.
    Polled,
    /// As `Polled`, and it stands in line again then.
    PolledAndWoken,
}

impl Job {
    fn run(self: Arc<Self>) {
        *lock(&self.state) = State::Polled;
        let mut future = lock(&self.future);
        let waker = Waker::from(Arc::clone(&self));
        let poll = |future: &mut Pin<Box<dyn Future<Output = ()> + Send>>| {
            // A panic ends this connection alone.
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker)))).unwrap_or(Poll::Ready(()))
        };
        if future.as_mut().is_none_or(|future| poll(future).is_ready()) {
            *future = None;
        }
        drop(future);
        let mut state = lock(&self.state);
        let woken = matches!(*state, State::PolledAndWoken);
        *state = if woken { State::InLine } else { State::Asleep };
        drop(state);
        if woken {
            self.place.line().join(self);
        }
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        let mut state = lock(&self.state);
        match *state {
            State::Asleep => {
                *state = State::InLine;
                drop(state);
                self.place.line().join(self);
            }
            State::Polled => *state = State::PolledAndWoken,
            State::InLine | State::PolledAndWoken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_connection_has_its_turn_as_often_as_a_hundred() {
        let lines = Lines::of_width(1);
        let spawn = |user: &str| {
            let polls = Arc::new(AtomicUsize::new(0));
            let place = Place::new(&lines);
            place.is_of(user);
            let counted = Arc::clone(&polls);
            place.spawn(poll_fn(move |context| {
                counted.fetch_add(1, Ordering::Relaxed);
                context.waker().wake_by_ref();
                Poll::Pending
            }));
            polls
        };
        let flood: Vec<_> = (0..100).map(|_| spawn("flooder")).collect();
        let other = spawn("other");
        while other.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        let flood: usize = flood.iter().map(|polls| polls.load(Ordering::Relaxed)).sum();
        assert!((50..200).contains(&flood), "{flood} polls of the flood beside 100 of the other");
    }

    #[tokio::test]
    async fn a_processor_is_left_to_who_else_asks() {
        let lines = Lines::of_width(2);
        let line = lines.line("flooder");
        let served = || lock(&line.queue).servers;
        let join = |line: &Arc<Line>| {
            let place = Place::new(&lines);
            let future = Mutex::new(Some(Box::pin(std::future::pending()) as _));
            Arc::clone(line).join(Arc::new(Job { place, state: Mutex::new(State::InLine), future }));
        };
        (0..4).for_each(|_| join(&line));
        assert_eq!(served(), 2, "alone");
        join(&lines.line("other"));
        join(&line);
        assert!(line.next().is_none(), "one task too many");
        assert_eq!(served(), 1);
        assert!(line.next().is_some_and(|(_, shared)| shared));

        let (mut joined, now) = (Joined::default(), Instant::now());
        let asked: Vec<_> = [(1, 0), (1, 1), (2, 2), (1, 3), (1, 101), (1, 102), (3, 103), (1, 104)]
            .map(|(line, after)| joined.join(line, now + Duration::from_millis(after)))
            .into();
        assert_eq!(asked, [false, false, true, true, true, false, true, true]);
    }

    #[tokio::test]
    async fn what_waits_or_panics_holds_nobody_up() {
        let place = Place::new(&Lines::of_width(1));
        place.spawn(std::future::pending());
        place.spawn(async { panic!("a connection's own") });
        let (done, is_done) = oneshot::channel();
        let (ask, asked) = oneshot::channel();
        place.spawn(async move {
            // Woken by somebody else after it has slept.
            let _ = done.send(asked.await);
        });
        tokio::task::yield_now().await;
        ask.send(7).expect("it listens");
        assert_eq!(is_done.await, Ok(Ok(7)));
    }

    #[tokio::test]
    async fn lines_go_with_their_last_connection() {
        let lines = Lines::new();
        let place = Place::new(&lines);
        (0..10).for_each(|user| place.is_of(&user.to_string()));
        assert!(lock(&lines.by_user).len() <= 3);
    }
}
