//! Where audit events go: a file of lines, or a webhook. Neither ever makes a request wait: what doesn't fit into a queue
//! is counted, and lost.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::clock;
use tokio::sync::mpsc;

use super::Counters;
use crate::auth::kubeconfig;
use crate::options::{Error, Options};
use crate::webhook::{ClientConfig, Webhooks};

/// How many events wait for their sink; upstream's buffer.
const QUEUE: usize = 10_000;
/// How many events a webhook is sent at once, and how long they wait to be that many; upstream's.
const BATCH: usize = 400;
const BATCH_WAIT: Duration = Duration::from_secs(30);
/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a webhook that doesn't answer is left alone at first; upstream's figure. Events wait in the queue meanwhile.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// How large a log grows, in megabytes, where nothing is said.
const MEGABYTES: u64 = 100;

/// Takes events.
pub(super) enum Sink {
    Log(SyncSender<(Timestamp, Arc<Value>)>),
    Webhook(mpsc::Sender<Arc<Value>>),
}

impl Sink {
    /// The sinks of the options.
    pub fn open(options: &Options, webhooks: &Arc<Webhooks>, counters: &Arc<Counters>) -> Result<Vec<Self>, Error> {
        let mut sinks = Vec::new();
        if let Some(path) = &options.audit_log_path {
            let fail = |e: io::Error| Error::new("audit-log-path", format!("{}: {e}", path.display()));
            let limit = if options.audit_log_maxsize == 0 { MEGABYTES } else { options.audit_log_maxsize };
            let keep = Keep { days: options.audit_log_maxage, count: options.audit_log_maxbackup };
            let mut log = Log::open(path, limit.saturating_mul(1_000_000), keep).map_err(fail)?;
            let (sender, events) = sync_channel(QUEUE);
            let counters = Arc::clone(counters);
            let written = std::thread::Builder::new().name("audit-log".into()).spawn(move || write_all(&mut log, &events, &counters));
            written.map_err(fail)?;
            sinks.push(Self::Log(sender));
        }
        if let Some(path) = &options.audit_webhook_config_file {
            let config = kubeconfig("audit-webhook-config-file", path)?;
            let (sender, events) = mpsc::channel(QUEUE);
            let wait = options.audit_webhook_batch_max_wait.unwrap_or(BATCH_WAIT);
            tokio::spawn(send_all(config, Arc::clone(webhooks), events, wait, Arc::clone(counters)));
            sinks.push(Self::Webhook(sender));
        }
        Ok(sinks)
    }

    /// Hands an event over.
    pub fn tell(&self, event: &Arc<Value>, counters: &Counters) {
        let (plugin, taken) = match self {
            Self::Log(sender) => ("log", sender.try_send((clock::now(), Arc::clone(event))).is_ok()),
            Self::Webhook(sender) => ("webhook", sender.try_send(Arc::clone(event)).is_ok()),
        };
        if !taken {
            counters.lost(plugin, 1, "its queue is full");
        }
    }
}

fn write_all(log: &mut Log, events: &Receiver<(Timestamp, Arc<Value>)>, counters: &Counters) {
    while let Ok(first) = events.recv() {
        let mut next = Some(first);
        while let Some((now, event)) = next {
            if let Err(error) = log.write(now, &event) {
                counters.lost("log", 1, &error.to_string());
            }
            next = events.try_recv().ok();
        }
        if let Err(error) = log.flush() {
            counters.lost("log", 1, &error.to_string());
        }
    }
}

/// Which older logs stay; 0 for all.
#[derive(Clone, Copy, Default)]
struct Keep {
    days: u32,
    count: usize,
}

/// A file that is put aside when it grows too large.
struct Log {
    /// `None` is standard output.
    path: Option<PathBuf>,
    out: BufWriter<Box<dyn Write + Send>>,
    written: u64,
    limit: u64,
    keep: Keep,
}

/// Opens for appending; only its owner reads what was sent to the server.
fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Log {
    fn open(path: &Path, limit: u64, keep: Keep) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { path: None, out: BufWriter::new(Box::new(io::stdout())), written: 0, limit: u64::MAX, keep });
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = append(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: Some(path.into()), out: BufWriter::new(Box::new(file)), written, limit, keep })
    }

    fn write(&mut self, now: Timestamp, event: &Value) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let length = line.len() as u64;
        if self.written > 0 && self.written.saturating_add(length) > self.limit {
            self.rotate(now)?;
        }
        self.written += length;
        self.out.write_all(&line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Puts the file aside under its time, and begins anew.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        self.out.flush()?;
        let (stem, extension) = parts(path);
        std::fs::rename(path, path.with_file_name(format!("{stem}-{}{extension}", now.strftime("%Y-%m-%dT%H-%M-%S%.3f"))))?;
        self.out = BufWriter::new(Box::new(append(path)?));
        self.written = 0;
        let names: Vec<String> = std::fs::read_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        for name in outdated(&names, &stem, &extension, self.keep, now) {
            std::fs::remove_file(path.with_file_name(name))?;
        }
        Ok(())
    }
}

/// A file's name without its extension, and the extension with its dot.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

/// Which older logs are to go.
fn outdated(names: &[String], stem: &str, extension: &str, keep: Keep, now: Timestamp) -> Vec<String> {
    let time = |name: &String| {
        let text = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(extension)?;
        let (date, clock) = text.split_once('T')?;
        format!("{date}T{}Z", clock.replace('-', ":")).parse::<Timestamp>().ok()
    };
    let mut older: Vec<(Timestamp, &String)> = names.iter().filter_map(|name| Some((time(name)?, name))).collect();
    older.sort_by(|a, b| b.cmp(a));
    let age = i64::from(keep.days) * 86_400;
    let goes = |(i, (at, _)): &(usize, (Timestamp, &String))| (keep.count > 0 && *i >= keep.count) || (age > 0 && now.as_second() - at.as_second() > age);
    older.into_iter().enumerate().filter(goes).map(|(_, (_, name))| name.clone()).collect()
}

async fn send_all(config: ClientConfig, webhooks: Arc<Webhooks>, mut events: mpsc::Receiver<Arc<Value>>, wait: Duration, counters: Arc<Counters>) {
    while let Some(first) = events.recv().await {
        let mut batch = vec![first];
        let full = async {
            while batch.len() < BATCH
                && let Some(event) = events.recv().await
            {
                batch.push(event);
            }
        };
        let _ = tokio::time::timeout(wait, full).await;
        let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch.iter().map(AsRef::as_ref).collect::<Vec<&Value>>()});
        if let Err(error) = webhooks.ask(&config, &list, TIMEOUT, FIRST_WAIT).await {
            counters.lost("webhook", batch.len() as u64, &error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_older_logs_go() {
        let names: Vec<String> = ["audit.log", "audit-2026-01-01T00-00-00.000.log", "audit-2026-01-03T00-00-00.000.log", "audit-2026-01-02T00-00-00.000.log", "audit-x.log", "other.log"]
            .map(str::to_owned)
            .into();
        let check = |days, count, expected: &[&str]| {
            let now = "2026-01-03T12:00:00Z".parse().expect("a moment");
            assert_eq!(outdated(&names, "audit", ".log", Keep { days, count }, now), expected, "{days} {count}");
        };
        check(0, 0, &[]);
        check(0, 2, &["audit-2026-01-01T00-00-00.000.log"]);
        check(1, 0, &["audit-2026-01-02T00-00-00.000.log", "audit-2026-01-01T00-00-00.000.log"]);
        check(2, 3, &["audit-2026-01-01T00-00-00.000.log"]);
    }

    #[test]
    fn a_log_is_put_aside_when_it_is_full() {
        let dir = std::env::temp_dir().join(format!("skiff-audit-{}", std::process::id()));
        let path = dir.join("audit.log");
        let mut log = Log::open(&path, 30, Keep { days: 0, count: 1 }).expect("a log");
        for second in 0..6 {
            let now = Timestamp::from_second(1_800_000_000 + second).expect("a moment");
            log.write(now, &json!({"n": second, "x": 1})).expect("written");
        }
        log.flush().expect("flushed");
        let lines = |path: &Path| std::fs::read_to_string(path).expect("readable").lines().count();
        assert_eq!(lines(&path), 2);
        let files = std::fs::read_dir(&dir).expect("a directory").count();
        std::fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(files, 2, "one older log stays");
    }
}
