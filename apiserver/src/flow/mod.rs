//! Priority and fairness: every request belongs to a level by the first FlowSchema that it matches, and has its turn there.
//!
//! What decides is pure (`rules`, `share`, `dispatch`, `objects`); here it meets requests, locks and the cache.

mod dispatch;
mod follow;
mod objects;
mod rules;
mod share;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::dispatch::{Arrival, Dispatcher, Id, Reason};
use self::rules::{LevelSpec, SchemaSpec, in_order};
use self::share::Bounds;
use crate::auth::User;
use crate::http::body::{Reply, text};
use crate::http::info::RequestInfo;
use crate::metrics::{Histogram, escaped};

pub(crate) use follow::follow;

/// All requests at a time: upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight`, together.
const TOTAL: u32 = 400 + 200;
/// How many reads keep one processor busy, about: so many have a seat at a time, whatever the number of seats.
const PER_CORE: u32 = 6;
/// How many objects of a list make up a seat; upstream's figure.
const OBJECTS_PER_SEAT: usize = 100;
/// How long a request waits at most: upstream's quarter of the request timeout.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How often seats are lent anew at most. It is done when somebody has to wait.
const LEND_PERIOD: Duration = Duration::from_millis(100);

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Upstream's bounds of waiting times, in seconds.
const WAITS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

struct Turns {
    dispatcher: Dispatcher,
    /// Of those who wait.
    bells: HashMap<Id, oneshot::Sender<()>>,
}

impl Turns {
    fn ring(&mut self, started: Vec<Id>) {
        for id in started {
            // Who gave up in this moment leaves by dropping its ticket.
            let _ = self.bells.remove(&id).map(|bell| bell.send(()));
        }
    }
}

/// A priority level at work.
struct Level {
    name: String,
    turns: Mutex<Turns>,
}

impl Level {
    fn turns<T>(&self, f: impl FnOnce(&mut Turns) -> T) -> T {
        f(&mut self.turns.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is counted of a schema's requests at its level.
#[derive(Default)]
struct Counts {
    executing: AtomicU64,
    seats: AtomicU64,
    queued: AtomicU64,
    dispatched: AtomicU64,
    rejected: [AtomicU64; 3],
    waited: Histogram,
    refused_after: Histogram,
}

struct Schema {
    spec: SchemaSpec,
    /// The place of its level in [`Config::levels`].
    level: usize,
    counts: Arc<Counts>,
    uid: HeaderValue,
}

struct Graded {
    level: Arc<Level>,
    exempt: bool,
    bounds: Bounds,
    uid: HeaderValue,
}

/// The objects, made ready.
#[derive(Default)]
struct Config {
    schemas: Vec<Schema>,
    levels: Vec<Graded>,
}

/// Priority and fairness of a server.
pub(crate) struct Flow {
    config: RwLock<Arc<Config>>,
    start: Instant,
    /// When seats were lent last, in milliseconds since the start.
    lent: AtomicU64,
    cores: u32,
}

/// A request's leave to run; its seats are free again when this is dropped.
pub(crate) struct Ticket {
    flow: Arc<Flow>,
    /// `None`: exempt.
    at: Option<(Arc<Level>, Id)>,
    counts: Arc<Counts>,
    width: u32,
    running: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some((level, id)) = &self.at {
            let now = self.flow.start.elapsed();
            level.turns(|turns| {
                turns.bells.remove(id);
                let started = turns.dispatcher.leave(now, *id);
                turns.ring(started);
            });
        }
        if self.running {
            self.counts.executing.fetch_sub(1, Ordering::Relaxed);
            self.counts.seats.fetch_sub(self.width.into(), Ordering::Relaxed);
        } else {
            self.counts.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The names of a request's schema and level, as headers of its answer.
pub(crate) struct Marks(HeaderValue, HeaderValue);

impl Marks {
    /// Puts them into an answer.
    pub fn add_to(self, headers: &mut HeaderMap) {
        headers.insert(SCHEMA_UID, self.0);
        headers.insert(LEVEL_UID, self.1);
    }
}

/// What a request is told whose turn doesn't come: upstream's answer.
pub(crate) fn refusal() -> Reply {
    let mut reply = text(429, "Too many requests, please try again later.\n");
    reply.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    reply.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Default for Flow {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let flow = Self { config: RwLock::default(), start: Instant::now(), lent: AtomicU64::new(0), cores: u32::try_from(cores).unwrap_or(1) };
        flow.configure(&objects::levels(), &objects::schemas());
        flow
    }
}

impl Flow {
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in the objects. Levels that stay keep their requests. The first objects, which are made again when they lack, count as
    /// there: while they are being written nobody must fall through to the last schema.
    fn configure(&self, levels: &[Value], schemas: &[Value]) {
        let old = self.config();
        let named = |objects: &[Value], first: Vec<Value>| -> Vec<Value> {
            let lacking = first.into_iter().filter(|f| !objects.iter().any(|o| o["metadata"]["name"] == f["metadata"]["name"])).collect::<Vec<_>>();
            objects.iter().cloned().chain(lacking).collect()
        };
        let specs: Vec<LevelSpec> = named(levels, objects::levels()).iter().map(LevelSpec::read).collect();
        let bounds = share::bounds(TOTAL, &specs.iter().map(|spec| spec.claim).collect::<Vec<_>>());
        let now = self.start.elapsed();
        let levels: Vec<Graded> = specs
            .iter()
            .zip(bounds)
            .map(|(spec, bounds)| {
                let known = old.levels.iter().find(|graded| graded.level.name == spec.name).map(|graded| Arc::clone(&graded.level));
                let level = known.unwrap_or_else(|| {
                    let turns = Turns { dispatcher: Dispatcher::new(bounds.nominal, spec.queuing), bells: HashMap::new() };
                    Arc::new(Level { name: spec.name.clone(), turns: Mutex::new(turns) })
                });
                level.turns(|turns| {
                    turns.dispatcher.configure(spec.queuing);
                    let started = turns.dispatcher.set_limit(now, bounds.nominal);
                    turns.ring(started);
                });
                Graded { level, exempt: spec.exempt, bounds, uid: header(&spec.uid) }
            })
            .collect();
        let counts = |name: &str, level: &str| {
            let known = old.schemas.iter().find(|schema| schema.spec.name == name && schema.spec.level == level);
            known.map_or_else(|| Arc::new(Counts::new()), |schema| Arc::clone(&schema.counts))
        };
        let schemas = in_order(named(schemas, objects::schemas()).iter().map(SchemaSpec::read).collect());
        // One that names a level that isn't there takes no requests.
        let schemas = schemas.into_iter().filter_map(|spec| {
            let level = specs.iter().position(|level| level.name == spec.level)?;
            Some(Schema { level, counts: counts(&spec.name, &spec.level), uid: header(&spec.uid), spec })
        });
        let config = Config { schemas: schemas.collect(), levels };
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// How wide a request is that reads `objects` of them, at a level that may come to `most` seats. What reading costs is the
    /// processor: more at a time than keep it busy would only wait there, where nobody knows whose turn it is. Of large lists no
    /// more run than there are processors, with room for narrower ones beside them.
    fn width(&self, objects: usize, most: u32) -> u32 {
        let seats = u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).max(1);
        let scale = TOTAL.div_ceil(PER_CORE * self.cores);
        seats.saturating_mul(scale).min(most * 4 / (5 * self.cores)).max(1)
    }

    /// Waits for the request's turn. `objects` tells how many objects it looks at, should anybody want to know.
    pub async fn admit(self: &Arc<Self>, user: &User, info: &RequestInfo, objects: impl FnOnce() -> usize) -> (Marks, Option<Ticket>) {
        let config = self.config();
        // The last schema takes everybody who is authenticated or not: all are one of these.
        let schema = config.schemas.iter().find(|schema| schema.spec.matches(user, info)).or_else(|| config.schemas.last());
        let Some(schema) = schema else { return (Marks(header(""), header("")), None) };
        let graded = &config.levels[schema.level];
        let marks = Marks(schema.uid.clone(), graded.uid.clone());
        let counts = Arc::clone(&schema.counts);
        let mut ticket = Ticket { flow: Arc::clone(self), at: None, counts, width: 1, running: false };
        ticket.counts.queued.fetch_add(1, Ordering::Relaxed);
        if graded.exempt {
            ticket.run(None);
            return (marks, Some(ticket));
        }
        // What streams, asks others or waits for the disk holds a seat without using the processor.
        ticket.width = match info.verb {
            "list" => self.width(objects(), graded.bounds.most),
            "get" if info.is_resource && info.subresource.is_empty() => self.width(1, graded.bounds.most),
            "watch" => Some(objects()).filter(|count| *count > OBJECTS_PER_SEAT).map_or(1, |count| self.width(count, graded.bounds.most)),
            _ => 1,
        };
        let flow = schema.spec.flow(user, info);
        let began = self.start.elapsed();
        let mut bell = None;
        let arrive = |turns: &mut Turns, bell: &mut Option<oneshot::Receiver<()>>| {
            let arrival = turns.dispatcher.arrive(began, flow, ticket.width);
            if let Arrival::Wait(id) = arrival {
                let (ring, wait) = oneshot::channel();
                turns.bells.insert(id, ring);
                *bell = Some(wait);
            }
            arrival
        };
        let mut arrival = graded.level.turns(|turns| arrive(turns, &mut bell));
        if !matches!(arrival, Arrival::Run(_)) && self.lend(&config, began) && matches!(arrival, Arrival::Refuse(_)) {
            arrival = graded.level.turns(|turns| arrive(turns, &mut bell));
        }
        match arrival {
            Arrival::Run(id) => {
                ticket.at = Some((Arc::clone(&graded.level), id));
                ticket.run(None);
            }
            Arrival::Refuse(reason) => {
                ticket.refuse(reason, Duration::ZERO);
                return (marks, None);
            }
            Arrival::Wait(id) => {
                ticket.at = Some((Arc::clone(&graded.level), id));
                let Some(bell) = bell else { return (marks, None) };
                let rung = tokio::time::timeout(LONGEST_WAIT, bell).await;
                let waited = self.start.elapsed().saturating_sub(began);
                if !matches!(rung, Ok(Ok(()))) {
                    ticket.refuse(Reason::TimeOut, waited);
                    return (marks, None);
                }
                ticket.run(Some(waited));
            }
        }
        (marks, Some(ticket))
    }

    /// Lends seats among levels, unless that was done just now. Answers whether it was.
    fn lend(&self, config: &Config, now: Duration) -> bool {
        let (at, last) = (now.as_millis() as u64, self.lent.load(Ordering::Relaxed));
        let due = last == 0 || at.saturating_sub(last) >= LEND_PERIOD.as_millis() as u64;
        if !due || self.lent.compare_exchange(last, at.max(1), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        let wants: Vec<(Bounds, u32)> = config.levels.iter().map(|g| (g.bounds, g.level.turns(|turns| turns.dispatcher.peak()))).collect();
        for (graded, limit) in config.levels.iter().zip(share::limits(&wants)) {
            graded.level.turns(|turns| {
                let started = turns.dispatcher.set_limit(now, limit);
                turns.ring(started);
            });
        }
        true
    }

    /// Writes the metrics.
    pub fn expose(&self, out: &mut String) {
        let config = self.config();
        let labels = |schema: &Schema| format!("flow_schema=\"{}\",priority_level=\"{}\"", escaped(&schema.spec.name), escaped(&schema.spec.level));
        let mut family = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Schema) -> Vec<(String, u64)>| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for schema in &config.schemas {
                for (more, value) in of(schema) {
                    let _ = writeln!(out, "{name}{{{}{more}}} {value}", labels(schema));
                }
            }
        };
        let plain = |value: &AtomicU64| vec![(String::new(), value.load(Ordering::Relaxed))];
        family("apiserver_flowcontrol_current_executing_requests", "gauge", "[BETA] Requests that are being served", &|s| plain(&s.counts.executing));
        family("apiserver_flowcontrol_current_executing_seats", "gauge", "[BETA] Seats taken", &|s| plain(&s.counts.seats));
        family("apiserver_flowcontrol_current_inqueue_requests", "gauge", "[BETA] Requests that wait", &|s| plain(&s.counts.queued));
        family("apiserver_flowcontrol_dispatched_requests_total", "counter", "[BETA] Requests whose turn came", &|s| plain(&s.counts.dispatched));
        family("apiserver_flowcontrol_rejected_requests_total", "counter", "[BETA] Requests refused", &|s| {
            let reasons = ["concurrency-limit", "queue-full", "time-out"].into_iter().zip(&s.counts.rejected);
            let seen = reasons.map(|(reason, count)| (format!(",reason=\"{reason}\""), count.load(Ordering::Relaxed)));
            seen.filter(|(_, count)| *count > 0).collect()
        });
        let name = "apiserver_flowcontrol_nominal_limit_seats";
        let _ = write!(out, "# HELP {name} [BETA] The level's part of the seats\n# TYPE {name} gauge\n");
        for graded in &config.levels {
            let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", escaped(&graded.level.name), graded.bounds.nominal);
        }
        let name = "apiserver_flowcontrol_request_wait_duration_seconds";
        let _ = write!(out, "# HELP {name} [BETA] How long requests waited\n# TYPE {name} histogram\n");
        for schema in &config.schemas {
            for (execute, histogram) in [(true, &schema.counts.waited), (false, &schema.counts.refused_after)] {
                if histogram.count() > 0 {
                    histogram.expose(out, name, &format!("execute=\"{execute}\",{}", labels(schema)));
                }
            }
        }
    }
}

impl Counts {
    fn new() -> Self {
        Self { waited: Histogram::new(WAITS), refused_after: Histogram::new(WAITS), ..Self::default() }
    }
}

impl Ticket {
    fn run(&mut self, waited: Option<Duration>) {
        self.running = true;
        self.counts.queued.fetch_sub(1, Ordering::Relaxed);
        self.counts.executing.fetch_add(1, Ordering::Relaxed);
        self.counts.seats.fetch_add(self.width.into(), Ordering::Relaxed);
        self.counts.dispatched.fetch_add(1, Ordering::Relaxed);
        if self.at.is_some() {
            self.counts.waited.observe(waited.unwrap_or_default().as_secs_f64());
        }
    }

    fn refuse(&self, reason: Reason, waited: Duration) {
        let at = match reason {
            Reason::ConcurrencyLimit => 0,
            Reason::QueueFull => 1,
            Reason::TimeOut => 2,
        };
        self.counts.rejected[at].fetch_add(1, Ordering::Relaxed);
        self.counts.refused_after.observe(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asks(verb: &'static str) -> RequestInfo {
        RequestInfo { is_resource: true, verb, resource: "pods".into(), namespace: "a".into(), ..RequestInfo::default() }
    }

    fn flow_of(shares: u32, queuing: Value) -> Arc<Flow> {
        let flow = Arc::new(Flow::default());
        let limited = json!({"nominalConcurrencyShares": shares, "limitResponse": queuing, "borrowingLimitPercent": 0});
        let level = json!({"metadata": {"name": "small", "uid": "l"}, "spec": {"type": "Limited", "limited": limited}});
        let rest = json!({"metadata": {"name": "rest"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 594, "limitResponse": {"type": "Reject"}}}});
        let rules = json!([{
            "subjects": [{"kind": "User", "user": {"name": "*"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
        }]);
        let schema = json!({
            "metadata": {"name": "mine", "uid": "s"},
            "spec": {"priorityLevelConfiguration": {"name": "small"}, "matchingPrecedence": 10, "distinguisherMethod": {"type": "ByUser"}, "rules": rules},
        });
        flow.configure(&[level, rest], &[schema]);
        flow
    }

    async fn admit(flow: &Arc<Flow>, user: &str) -> Option<Ticket> {
        flow.admit(&User::new(user, ["x"]), &asks("get"), || 1).await.1
    }

    #[tokio::test(start_paused = true)]
    async fn requests_have_their_turn_or_are_refused() {
        let flow = flow_of(1, json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 1, "queueLengthLimit": 1}}));
        let first = admit(&flow, "a").await.expect("a seat");
        let waits = tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { admit(&flow, "a").await }
        });
        tokio::task::yield_now().await;
        assert!(admit(&flow, "a").await.is_none(), "the queue is full");
        drop(first);
        let second = waits.await.expect("a task").expect("its turn");
        // Nobody ends: whoever waits is refused at last, and leaves nothing behind.
        assert!(admit(&flow, "b").await.is_none());
        let mut text = String::new();
        flow.expose(&mut text);
        for line in [
            "apiserver_flowcontrol_current_executing_requests{flow_schema=\"mine\",priority_level=\"small\"} 1",
            "apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"mine\",priority_level=\"small\"} 0",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"mine\",priority_level=\"small\",reason=\"queue-full\"} 1",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"mine\",priority_level=\"small\",reason=\"time-out\"} 1",
            "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"small\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        drop(second);
        assert!(admit(&flow, "b").await.is_some());
        let (marks, ticket) = flow.admit(&User::new("admin", ["system:masters"]), &asks("list"), || 1_000_000).await;
        assert!(ticket.is_some_and(|ticket| ticket.at.is_none()), "exempt");
        let mut headers = HeaderMap::new();
        marks.add_to(&mut headers);
        assert!(headers.contains_key("X-Kubernetes-PF-FlowSchema-UID"));
    }

    #[test]
    fn reads_are_as_wide_as_their_objects() {
        let flow = Flow { cores: 2, ..Flow::default() };
        let check = |objects, most, expected| assert_eq!(flow.width(objects, most), expected, "{objects} of {most}");
        check(0, 600, 50);
        check(100, 600, 50);
        check(101, 600, 100);
        check(500, 600, 240);
        check(1_000_000, 600, 240);
        check(1_000_000, 1, 1);
    }
}
