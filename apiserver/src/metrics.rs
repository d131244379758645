//! What the server counts of itself, in upstream's names.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::audit;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Counted {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u32,
}

/// Upstream's bounds of request durations, in seconds.
const BUCKETS: [f64; 25] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0,
];

/// The counters.
pub struct Metrics {
    registry: Registry,
    requests: Family<Counted, Counter>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    inflight: Gauge<i64, AtomicI64>,
    pub(crate) audit: audit::Counters,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations: Family<Labels, Histogram, fn() -> Histogram> = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (requests, inflight) = (Family::default(), Gauge::default());
        let mut registry = Registry::default();
        registry.register("apiserver_request", "Requests, by what they asked for and how they ended", requests.clone());
        registry.register("apiserver_request_duration_seconds", "How long requests took, in seconds", durations.clone());
        registry.register("apiserver_current_inflight_requests", "Requests that are being served", inflight.clone());
        let audit = audit::Counters::default();
        audit.register(&mut registry);
        Self { audit, registry, requests, durations, inflight }
    }
}

impl Metrics {
    /// A request begins.
    pub(crate) fn begin(&self) -> Instant {
        self.inflight.inc();
        Instant::now()
    }

    /// A request has its answer. `about` is the verb, group, version, resource and subresource.
    pub(crate) fn end(&self, began: Instant, about: (&'static str, String, String, String, String), code: u16) {
        self.inflight.dec();
        let (verb, group, version, resource, subresource) = about;
        // What was asked for by a name that doesn't exist is not kept, or anybody could fill the memory.
        if code == 404 {
            return;
        }
        let labels = Labels { verb, group: group.clone(), version: version.clone(), resource: resource.clone(), subresource: subresource.clone() };
        self.requests.get_or_create(&Counted { verb, group, version, resource, subresource, code: code.into() }).inc();
        // The life of a watch is no latency.
        if verb != "watch" {
            self.durations.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        }
    }

    /// The exposition text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string doesn't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
