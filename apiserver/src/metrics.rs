//! What the server counts of itself, in upstream's names, and the text that shows it.
//!
//! A request costs one look-up by a hash of its labels; what it counts is atomics behind that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::audit;
use crate::http::info::RequestInfo;

/// Upstream's bounds of request durations, in seconds.
const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Upstream's bounds of response sizes, in bytes.
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Upstream's bounds of admission, and of webhooks, in seconds.
const ADMISSION: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOKS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

/// Counts observations below bounds.
#[derive(Default)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One a bound, and one above.
    counts: Vec<AtomicU64>,
    /// The bits of the sum.
    sum: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub fn observe(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // The closure always answers, so this never fails.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| Some((f64::from_bits(bits) + value).to_bits()));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Writes its lines.
    pub fn expose(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut sum = 0;
        for (at, count) in self.counts.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let _ = match self.bounds.get(at) {
                Some(bound) if *bound >= 1e6 => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"1e+{:02}\"}} {sum}", bound.log10().round()),
                Some(bound) => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}"),
                None => writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {sum}"),
            };
        }
        let total = f64::from_bits(self.sum.load(Ordering::Relaxed));
        let _ = write!(out, "{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {sum}\n");
    }
}

/// A label's value as it stands between quotes.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What a request is counted under.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct About {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

impl About {
    fn labels(&self, before: &str, dry_run: Option<&str>) -> String {
        let Self { verb, group, version, resource, subresource, scope } = self;
        let dry = dry_run.map_or(String::new(), |dry| format!("dry_run=\"{dry}\","));
        format!(
            "{before}component=\"apiserver\",{dry}group=\"{}\",resource=\"{}\",scope=\"{scope}\",subresource=\"{}\",verb=\"{verb}\",version=\"{}\"",
            escaped(group),
            escaped(resource),
            escaped(subresource),
            escaped(version)
        )
    }
}

/// What is counted of requests, whatever their outcome.
pub(crate) struct Sizes {
    about: About,
    sizes: Histogram,
    /// Watches and other long requests that are open.
    open: AtomicI64,
}

impl Sizes {
    /// A response of this many bytes was written.
    pub fn wrote(&self, bytes: u64) {
        self.sizes.observe(bytes as f64);
    }

    /// A long-running request begins, or ends.
    pub fn opened(&self, more: i64) {
        self.open.fetch_add(more, Ordering::Relaxed);
    }
}

/// What is counted of requests with one outcome.
struct Series {
    code: u16,
    dry_run: &'static str,
    total: AtomicU64,
    durations: Arc<Histogram>,
    sizes: Arc<Sizes>,
}

#[derive(Default)]
struct Requests {
    series: HashMap<u64, Arc<Series>>,
    durations: HashMap<(About, &'static str), Arc<Histogram>>,
    sizes: HashMap<About, Arc<Sizes>>,
}

/// A request on its way.
pub(crate) struct Timer {
    began: Instant,
    about: About,
    dry_run: &'static str,
    mutating: bool,
    /// Whether it stays open: its life is no latency.
    long: bool,
}

impl Timer {
    /// How long the request has taken.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// How many admission plugins there may be; the last place is all of them together.
const MOST_PLUGINS: usize = 32;
const STEP: &str = "apiserver_admission_step_admission_duration_seconds";
const PLUGIN: &str = "apiserver_admission_controller_admission_duration_seconds";
const WEBHOOK: &str = "apiserver_admission_webhook_admission_duration_seconds";

/// The counters.
pub struct Metrics {
    requests: RwLock<Requests>,
    /// Requests that read, and requests that write.
    inflight: [AtomicI64; 2],
    /// By plugin, operation, kind and outcome: metric, labels and figures.
    plugins: Vec<OnceLock<(&'static str, String, Histogram)>>,
    /// By labels.
    webhooks: Mutex<BTreeMap<String, Histogram>>,
    /// Health checks by name, kind and status, as they were asked for.
    checks: Mutex<BTreeMap<(String, &'static str, &'static str), u64>>,
    /// What the audit log counts.
    pub(crate) audit: Arc<audit::Counters>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: RwLock::default(),
            inflight: Default::default(),
            plugins: (0..MOST_PLUGINS * 16).map(|_| OnceLock::new()).collect(),
            webhooks: Mutex::default(),
            checks: Mutex::default(),
            audit: Arc::default(),
        }
    }
}

impl Metrics {
    /// A request begins. `apply` says whether it is a server-side apply.
    pub(crate) fn begin(&self, info: &RequestInfo, dry_run: bool, apply: bool, long: bool) -> Timer {
        let verb = match info.verb {
            "get" if long && info.subresource != "log" => "CONNECT",
            "get" | "head" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" if long => "CONNECT",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" if apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let scope = match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let about = About {
            verb,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            // A path may end in as many slashes as its client likes.
            subresource: if info.is_resource { info.subresource.clone() } else { info.path.trim_end_matches('/').to_owned() },
            scope,
        };
        let mutating = !matches!(info.verb, "get" | "list" | "watch" | "head");
        if !long {
            self.inflight[usize::from(mutating)].fetch_add(1, Ordering::Relaxed);
        }
        Timer { began: Instant::now(), about, dry_run: if dry_run { "All" } else { "" }, mutating, long }
    }

    /// A request has its answer. `known` says whether its labels are names that the server knows: what was asked for by
    /// another name is not kept, or anybody could fill the memory.
    pub(crate) fn end(&self, timer: Timer, code: u16, known: bool) -> Option<Arc<Sizes>> {
        if !timer.long {
            self.inflight[usize::from(timer.mutating)].fetch_sub(1, Ordering::Relaxed);
        }
        if !known {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (&timer.about, timer.dry_run, code).hash(&mut hasher);
        let key = hasher.finish();
        let found = self.requests.read().unwrap_or_else(PoisonError::into_inner).series.get(&key).cloned();
        let series = found.unwrap_or_else(|| self.add(key, &timer, code));
        series.total.fetch_add(1, Ordering::Relaxed);
        if !timer.long {
            series.durations.observe(timer.began.elapsed().as_secs_f64());
        }
        Some(Arc::clone(&series.sizes))
    }

    fn add(&self, key: u64, timer: &Timer, code: u16) -> Arc<Series> {
        let mut requests = self.requests.write().unwrap_or_else(PoisonError::into_inner);
        let about = &timer.about;
        let new = || Arc::new(Histogram::new(DURATIONS));
        let durations = Arc::clone(requests.durations.entry((about.clone(), timer.dry_run)).or_insert_with(new));
        let new = || Arc::new(Sizes { about: about.clone(), sizes: Histogram::new(SIZES), open: AtomicI64::new(0) });
        let sizes = Arc::clone(requests.sizes.entry(about.clone()).or_insert_with(new));
        let series = Series { code, dry_run: timer.dry_run, total: AtomicU64::new(0), durations, sizes };
        Arc::clone(requests.series.entry(key).or_insert_with(|| Arc::new(series)))
    }

    /// An admission step, plugin or webhook took this long. `kind` is `admit` or `validate`.
    pub(crate) fn admitted(&self, what: Admission<'_>, took: Duration, operation: &'static str, kind: &'static str, rejected: bool) {
        let labels = |name: &str| format!("{name}operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\"");
        // Every write passes all plugins: their histograms are found without making their labels.
        let slot = |at: usize| {
            let operation = ["CREATE", "UPDATE", "DELETE", "CONNECT"].iter().position(|o| *o == operation).unwrap_or(0);
            &self.plugins[(at % MOST_PLUGINS) * 16 + operation * 4 + usize::from(kind == "admit") * 2 + usize::from(rejected)]
        };
        match what {
            Admission::Step => slot(MOST_PLUGINS - 1).get_or_init(|| (STEP, labels(""), Histogram::new(ADMISSION))).2.observe(took.as_secs_f64()),
            Admission::Plugin(at, name) => {
                let new = || (PLUGIN, labels(&format!("name=\"{name}\",")), Histogram::new(ADMISSION));
                slot(at).get_or_init(new).2.observe(took.as_secs_f64());
            }
            Admission::Webhook(name) => {
                let mut webhooks = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
                let labels = labels(&format!("name=\"{}\",", escaped(name)));
                webhooks.entry(labels).or_insert_with(|| Histogram::new(WEBHOOKS)).observe(took.as_secs_f64());
            }
        }
    }

    /// Writes what is counted of requests.
    pub(crate) fn expose(&self, out: &mut String) {
        self.audit.expose(out);
        let requests = self.requests.read().unwrap_or_else(PoisonError::into_inner);
        head(out, "apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests");
        for series in requests.series.values() {
            let labels = series.sizes.about.labels(&format!("code=\"{}\",", series.code), Some(series.dry_run));
            let _ = writeln!(out, "apiserver_request_total{{{labels}}} {}", series.total.load(Ordering::Relaxed));
        }
        head(out, "apiserver_request_duration_seconds", "histogram", "[STABLE] Response latency in seconds");
        for ((about, dry_run), histogram) in requests.durations.iter().filter(|(_, histogram)| histogram.count() > 0) {
            histogram.expose(out, "apiserver_request_duration_seconds", &about.labels("", Some(dry_run)));
        }
        head(out, "apiserver_response_sizes", "histogram", "[STABLE] Response size in bytes");
        for sizes in requests.sizes.values().filter(|sizes| sizes.sizes.count() > 0) {
            sizes.sizes.expose(out, "apiserver_response_sizes", &sizes.about.labels("", None));
        }
        head(out, "apiserver_longrunning_requests", "gauge", "[STABLE] Long-running requests that are open");
        for sizes in requests.sizes.values() {
            let open = sizes.open.load(Ordering::Relaxed);
            if open > 0 {
                let _ = writeln!(out, "apiserver_longrunning_requests{{{}}} {open}", sizes.about.labels("", None));
            }
        }
        head(out, "apiserver_current_inflight_requests", "gauge", "[STABLE] Requests that are being served, by kind");
        for (kind, inflight) in ["readOnly", "mutating"].into_iter().zip(&self.inflight) {
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}", inflight.load(Ordering::Relaxed));
        }
        for metric in [STEP, PLUGIN] {
            head(out, metric, "histogram", "[STABLE] How long admission took, in seconds");
            for (_, labels, histogram) in self.plugins.iter().filter_map(OnceLock::get).filter(|(name, ..)| *name == metric) {
                histogram.expose(out, metric, labels);
            }
        }
        head(out, WEBHOOK, "histogram", "[STABLE] How long admission webhooks took, in seconds");
        for (labels, histogram) in self.webhooks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            histogram.expose(out, WEBHOOK, labels);
        }
        head(out, "apiserver_requested_deprecated_apis", "gauge", "[STABLE] Deprecated APIs that have been requested");
        // None of them is to be removed in a release that is known.
        let deprecated = requests.sizes.keys().filter(|a| skiff_api::resource::deprecation(&a.group, &a.resource).is_some());
        for (resource, subresource) in deprecated.map(|about| (&about.resource, &about.subresource)).collect::<BTreeSet<_>>() {
            let labels = format!("group=\"\",removed_release=\"\",resource=\"{resource}\",subresource=\"{subresource}\",version=\"v1\"");
            let _ = writeln!(out, "apiserver_requested_deprecated_apis{{{labels}}} 1");
        }
    }

    /// The text of `/metrics/slis`: how the health checks, asked for now, are and were.
    pub(crate) fn slis(&self, checks: &[(String, &'static str, bool)]) -> String {
        let mut counts = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        head(&mut out, "kubernetes_healthcheck", "gauge", "[STABLE] The result of a health check");
        for (name, kind, passed) in checks {
            let _ = writeln!(out, "kubernetes_healthcheck{{name=\"{}\",type=\"{kind}\"}} {}", escaped(name), u8::from(*passed));
            *counts.entry((name.clone(), kind, if *passed { "success" } else { "error" })).or_default() += 1;
        }
        head(&mut out, "kubernetes_healthchecks_total", "counter", "[STABLE] The results of all health checks");
        for ((name, kind, status), count) in counts.iter() {
            let _ = writeln!(out, "kubernetes_healthchecks_total{{name=\"{}\",status=\"{status}\",type=\"{kind}\"}} {count}", escaped(name));
        }
        out
    }
}

/// What of admission took its time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Admission<'a> {
    /// All of one kind, together.
    Step,
    /// One plugin, by its place and name.
    Plugin(usize, &'static str),
    /// One webhook.
    Webhook(&'a str),
}

/// The lines before a metric's.
pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// Writes what the kernel counts of this process; nothing where it doesn't tell.
pub(crate) fn process(out: &mut String) {
    /// The kernel counts processor time in these, a second.
    const TICKS: f64 = 100.0;
    const PAGE: f64 = 4096.0;
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The command's name may hold anything but ends at the last bracket.
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    let field = |at: usize| fields.get(at - 3).copied().unwrap_or(0.0);
    let line = |text: &str, start: &str| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(start)?.split_whitespace().next()?.parse().ok())
    };
    let boot = std::fs::read_to_string("/proc/stat").ok().and_then(|text| line(&text, "btime "));
    let files = std::fs::read_to_string("/proc/self/limits").ok().and_then(|text| line(&text, "Max open files"));
    let open = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
    for (name, kind, help, value) in [
        ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", Some((field(14) + field(15)) / TICKS)),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", boot.map(|boot| boot + field(22) / TICKS)),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", Some(field(23))),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", Some(field(24) * PAGE)),
        ("process_open_fds", "gauge", "Number of open file descriptors.", open),
        ("process_max_fds", "gauge", "Maximum number of open file descriptors.", files),
    ] {
        if let Some(value) = value {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_under_upstreams_labels() {
        let metrics = Metrics::default();
        let info = RequestInfo {
            is_resource: true,
            verb: "list",
            version: "v1".into(),
            resource: "pods".into(),
            namespace: "a".into(),
            ..RequestInfo::default()
        };
        for _ in 0..2 {
            let timer = metrics.begin(&info, false, false, false);
            metrics.end(timer, 200, true).expect("known").wrote(2_000_000);
        }
        let timer = metrics.begin(&RequestInfo { resource: "no-such".into(), ..info.clone() }, false, false, false);
        assert!(metrics.end(timer, 404, false).is_none());
        let mut text = String::new();
        metrics.expose(&mut text);
        let about = "group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",component=\"apiserver\",dry_run=\"\",{about}}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{component=\"apiserver\",dry_run=\"\",{about},le=\"0.6\"}} 2"),
            format!("apiserver_response_sizes_bucket{{component=\"apiserver\",{about},le=\"1e+06\"}} 0"),
            format!("apiserver_response_sizes_bucket{{component=\"apiserver\",{about},le=\"1e+07\"}} 2"),
            format!("apiserver_response_sizes_sum{{component=\"apiserver\",{about}}} 4000000"),
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("no-such"));
    }
}
