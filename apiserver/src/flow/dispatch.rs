//! The state machine of one priority level: seats, queues, and whose turn it is. Pure: it is told the time, and says who may
//! go on.
//!
//! Fair queuing by start times (SFQ): each queue has an account of the service it had, in seconds of seats; the virtual clock is
//! where the account of whoever was let go on last stood before; a queue that was quiet begins there. Upstream's clock runs by
//! the wall instead, at the rate of a level whose seats are all in use. Wide requests leave seats empty that the next is too
//! wide for: then that clock runs ahead of what busy queues are served, and a newcomer waits until they have caught up.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How long the first request is taken to last before it has, in seconds; upstream's figure. Later ones are taken to last as long
/// as those before them did: with too much charged in advance the clock would run ahead, and whoever is new would pay for it.
const ESTIMATE: f64 = 0.003;
/// How much of that the newest one tells.
const WEIGHT: f64 = 0.1;
/// A request that runs longer than this has been cut off or is stuck in a client that doesn't read: its seats are taken back
/// when somebody waits for them. More than any request may take.
const STALLED: Duration = Duration::from_secs(75);

/// A request, within its level.
pub(super) type Id = u64;

/// How requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queuing {
    /// How many queues there are.
    pub queues: usize,
    /// How many of them one flow may use.
    pub hand: usize,
    /// How many requests may wait in one.
    pub length: usize,
}

/// Why a request is refused. Upstream's words for its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The level doesn't queue, and all seats are taken.
    ConcurrencyLimit,
    /// Its queue is full.
    QueueFull,
    /// It waited too long.
    TimeOut,
}

/// What becomes of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It goes on at once.
    Run(Id),
    /// It waits until [`Dispatcher`] names it.
    Wait(Id),
    /// It is refused.
    Refuse(Reason),
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Id, u32)>,
    /// The service that was charged to it: the virtual time at which its next request begins.
    next: f64,
    /// Seats taken by requests out of this queue.
    seats: u32,
}

impl Queue {
    fn busy(&self) -> bool {
        self.seats > 0 || !self.waiting.is_empty()
    }

    /// How much is waiting or running, in seats.
    fn load(&self) -> u32 {
        self.seats + self.waiting.iter().map(|(_, width)| width).sum::<u32>()
    }
}

struct Running {
    queue: usize,
    width: u32,
    began: Duration,
    /// How long it was taken to last, in seconds.
    charged: f64,
}

/// One level's seats and queues.
pub(super) struct Dispatcher {
    /// How many seats there are now.
    limit: u32,
    /// `None`: who finds no seat is refused.
    queuing: Option<Queuing>,
    queues: Vec<Queue>,
    running: HashMap<Id, Running>,
    seats: u32,
    /// Seats that waiting requests ask for.
    wanted: u32,
    /// The virtual clock, in seconds of seats.
    clock: f64,
    /// How long requests last, in seconds.
    usual: f64,
    next: Id,
    /// The most seats that were taken or asked for since somebody looked.
    peak: u32,
}

impl Dispatcher {
    pub fn new(limit: u32, queuing: Option<Queuing>) -> Self {
        let mut new = Self {
            limit,
            queuing,
            queues: Vec::new(),
            running: HashMap::new(),
            seats: 0,
            wanted: 0,
            clock: 0.0,
            usual: ESTIMATE,
            next: 0,
            peak: 0,
        };
        new.configure(queuing);
        new
    }

    /// Queues in another way from now on. What waits goes on waiting where it is.
    pub fn configure(&mut self, queuing: Option<Queuing>) {
        self.queuing = queuing;
        let queues = queuing.map_or(1, |q| q.queues.max(1));
        if queues > self.queues.len() {
            self.queues.resize_with(queues, Queue::default);
        }
    }

    /// Gives the level this many seats; answers who may go on.
    pub fn set_limit(&mut self, now: Duration, limit: u32) -> Vec<Id> {
        self.limit = limit;
        self.dispatch(now)
    }

    /// Seats taken, and seats asked for by those who wait.
    #[cfg(test)]
    fn load(&self) -> (u32, u32) {
        (self.seats, self.wanted)
    }

    /// The most seats wanted at a time since the last look.
    pub fn peak(&mut self) -> u32 {
        std::mem::replace(&mut self.peak, self.seats + self.wanted)
    }

    /// A request of the flow `flow` comes, and asks for `width` seats.
    pub fn arrive(&mut self, now: Duration, flow: u64, width: u32) -> Arrival {
        self.peak = self.peak.max(self.seats + self.wanted + width);
        if self.wanted > 0 || !self.fits(width) {
            self.take_back(now);
        }
        let id = self.next;
        let Some(Queuing { queues, hand, length }) = self.queuing else {
            if !self.fits(width) {
                return Arrival::Refuse(Reason::ConcurrencyLimit);
            }
            self.next += 1;
            self.run(now, 0, id, width);
            return Arrival::Run(id);
        };
        // The queue of the hand in which the least is going on.
        let queue = deal(flow, queues.max(1), hand).min_by_key(|queue| self.queues[*queue].load()).unwrap_or(0);
        self.wake(queue);
        if self.wanted == 0 && self.fits(width) {
            self.next += 1;
            self.run(now, queue, id, width);
            return Arrival::Run(id);
        }
        if self.queues[queue].waiting.len() >= length {
            return Arrival::Refuse(Reason::QueueFull);
        }
        self.next += 1;
        self.queues[queue].waiting.push_back((id, width));
        self.wanted += width;
        // Another queue's head may need more seats than are free, while this one fits and is due before it.
        if self.dispatch(now).contains(&id) { Arrival::Run(id) } else { Arrival::Wait(id) }
    }

    /// A request has ended, or won't wait any longer. Answers who may go on.
    pub fn leave(&mut self, now: Duration, id: Id) -> Vec<Id> {
        match self.running.remove(&id) {
            Some(running) => self.end(now, &running),
            None => {
                for queue in &mut self.queues {
                    if let Some(at) = queue.waiting.iter().position(|(waiting, _)| *waiting == id) {
                        self.wanted -= queue.waiting.remove(at).map_or(0, |(_, width)| width);
                        break;
                    }
                }
            }
        }
        if self.wanted == 0 { Vec::new() } else { self.dispatch(now) }
    }

    fn end(&mut self, now: Duration, running: &Running) {
        self.seats -= running.width;
        let queue = &mut self.queues[running.queue];
        queue.seats -= running.width;
        // What it really took, in place of the estimate.
        let took = now.saturating_sub(running.began).as_secs_f64();
        queue.next += f64::from(running.width) * (took - running.charged);
        self.usual += WEIGHT * (took - self.usual);
    }

    fn take_back(&mut self, now: Duration) {
        let stalled: Vec<Id> = self.running.iter().filter(|(_, r)| now.saturating_sub(r.began) > STALLED).map(|(id, _)| *id).collect();
        for running in stalled.iter().filter_map(|id| self.running.remove(id)).collect::<Vec<_>>() {
            self.end(now, &running);
        }
    }

    /// A request that asks for more than there is runs when it is alone. A level without seats runs nothing.
    fn fits(&self, width: u32) -> bool {
        self.seats + width <= self.limit || (self.seats == 0 && self.limit > 0)
    }

    /// A queue in which nothing was going on has no credit from before.
    fn wake(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if !queue.busy() {
            queue.next = queue.next.max(self.clock);
        }
    }

    fn run(&mut self, now: Duration, at: usize, id: Id, width: u32) {
        let queue = &mut self.queues[at];
        self.clock = self.clock.max(queue.next);
        queue.seats += width;
        queue.next += f64::from(width) * self.usual;
        self.seats += width;
        self.running.insert(id, Running { queue: at, width, began: now, charged: self.usual });
    }

    /// Lets those go on whose turn it is, as long as they find seats.
    fn dispatch(&mut self, now: Duration) -> Vec<Id> {
        let mut started = Vec::new();
        while self.wanted > 0 {
            let heads = self.queues.iter().enumerate().filter_map(|(at, queue)| {
                let (id, width) = *queue.waiting.front()?;
                Some((queue.next + f64::from(width) * self.usual, at, id, width))
            });
            let Some((_, at, id, width)) = heads.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            if !self.fits(width) {
                break;
            }
            self.queues[at].waiting.pop_front();
            self.wanted -= width;
            self.run(now, at, id, width);
            started.push(id);
        }
        started
    }
}

/// The hand of queues that a flow is dealt: different ones, drawn from its hash. Two flows rarely share all of theirs.
fn deal(flow: u64, deck: usize, hand: usize) -> impl Iterator<Item = usize> {
    const MOST: usize = 16;
    let hand = hand.clamp(1, MOST).min(deck);
    let mut dealt = [0; MOST];
    let mut left = flow;
    for n in 0..hand {
        // The next card is one of those that are left, counted past the ones that were dealt.
        let cards = (deck - n) as u64;
        let mut card = (left % cards) as usize;
        left /= cards;
        let mut before = dealt;
        before[..n].sort_unstable();
        for earlier in &before[..n] {
            card += usize::from(card >= *earlier);
        }
        dealt[n] = card;
    }
    dealt.into_iter().take(hand)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUING: Queuing = Queuing { queues: 8, hand: 2, length: 2 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn hands_hold_different_cards() {
        for flow in [0, 1, 7, 12_345, u64::MAX] {
            for (deck, hand) in [(1, 1), (4, 4), (128, 6), (64, 8), (2, 9)] {
                let mut dealt: Vec<usize> = deal(flow, deck, hand).collect();
                dealt.sort_unstable();
                dealt.dedup();
                assert_eq!(dealt.len(), hand.min(deck), "{flow} {deck} {hand}");
                assert!(dealt.iter().all(|card| *card < deck));
            }
        }
    }

    #[test]
    fn a_level_that_refuses() {
        let mut level = Dispatcher::new(2, None);
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Run(0));
        assert_eq!(level.arrive(ms(0), 1, 2), Arrival::Refuse(Reason::ConcurrencyLimit));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Run(1));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Refuse(Reason::ConcurrencyLimit));
        assert!(level.leave(ms(1), 0).is_empty());
        assert_eq!((level.arrive(ms(2), 1, 1), level.load(), level.peak()), (Arrival::Run(2), (2, 0), 3));
        // No seat at all.
        assert_eq!(Dispatcher::new(0, None).arrive(ms(0), 1, 1), Arrival::Refuse(Reason::ConcurrencyLimit));
    }

    #[test]
    fn requests_wait_run_and_give_up() {
        let mut level = Dispatcher::new(1, Some(Queuing { queues: 1, hand: 1, length: 2 }));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Run(0));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Wait(1));
        assert_eq!(level.arrive(ms(0), 1, 5), Arrival::Wait(2));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Refuse(Reason::QueueFull));
        assert!(level.leave(ms(1), 1).is_empty(), "it gave up");
        // Wider than the level: alone.
        assert_eq!(level.leave(ms(1), 0), [2]);
        assert_eq!(level.arrive(ms(1), 1, 1), Arrival::Wait(3));
        assert_eq!(level.set_limit(ms(1), 6), [3]);
        level.leave(ms(2), 2);
        level.leave(ms(2), 3);
        level.leave(ms(2), 3);
        assert_eq!(level.load(), (0, 0));
        assert!(level.queues.iter().all(|queue| !queue.busy()));
    }

    #[test]
    fn seats_of_stalled_requests_are_taken_back() {
        let mut level = Dispatcher::new(1, Some(QUEUING));
        assert_eq!(level.arrive(ms(0), 1, 1), Arrival::Run(0));
        assert_eq!(level.arrive(ms(76_000), 2, 1), Arrival::Run(1));
        assert!(level.leave(ms(76_001), 0).is_empty(), "it was counted out before");
        assert_eq!(level.load(), (1, 0));
    }

    /// Carries out requests of some flows, `workers` each asking again as soon as it is answered, for a second: each request
    /// takes 10 ms. Answers how many each flow got.
    fn share(limit: u32, flows: &[(u64, usize, u32)]) -> Vec<usize> {
        let mut level = Dispatcher::new(limit, Some(Queuing { queues: 64, hand: 4, length: 50 }));
        let mut of: HashMap<Id, usize> = HashMap::new();
        let mut done = vec![0; flows.len()];
        let mut ends: VecDeque<(Duration, Id)> = VecDeque::new();
        let mut asks: VecDeque<usize> = flows.iter().enumerate().flat_map(|(at, (_, workers, _))| std::iter::repeat_n(at, *workers)).collect();
        let mut now = ms(0);
        while now < ms(1_000) {
            while let Some(flow) = asks.pop_front() {
                match level.arrive(now, flows[flow].0, flows[flow].2) {
                    Arrival::Run(id) => {
                        of.insert(id, flow);
                        ends.push_back((now + ms(10), id));
                    }
                    Arrival::Wait(id) => drop(of.insert(id, flow)),
                    Arrival::Refuse(_) => {}
                }
            }
            let Some((end, id)) = ends.pop_front() else { break };
            now = end;
            done[of[&id]] += 1;
            asks.push_back(of[&id]);
            ends.extend(level.leave(now, id).into_iter().map(|id| (now + ms(10), id)));
        }
        done
    }

    #[test]
    fn flows_share_alike_however_hard_they_ask() {
        let check = |limit, flows: &[(u64, usize, u32)], expected: &[std::ops::RangeInclusive<usize>]| {
            let got = share(limit, flows);
            assert!(got.iter().zip(expected).all(|(got, expected)| expected.contains(got)), "{flows:?}: {got:?}");
        };
        // Alone, a flow gets everything.
        check(4, &[(77, 20, 1)], &[395..=405]);
        // A flood of 100 beside one that asks one by one: that one nearly never waits for more than one of the others.
        check(4, &[(77, 100, 1), (1_234_567, 1, 1)], &[300..=360, 45..=100]);
        // Wide requests are charged by their width: narrow ones pass them by, and go into the gap that wide ones leave.
        check(8, &[(77, 50, 4), (1_234_567, 1, 1)], &[90..=200, 35..=101]);
        check(9, &[(77, 50, 4), (1_234_567, 1, 1)], &[195..=202, 95..=101]);
    }
}
