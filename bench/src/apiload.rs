//! Load on an API server: every verb in turn by many workers, watches, and a flood of one user beside another.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::future::try_join_all;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::{Connection, JSON, Target};
use crate::figures::{Latencies, cpu_seconds, resident_mib};

const NAMESPACE: &str = "apiload";
const BASE: &str = "/api/v1/namespaces/apiload/configmaps";

/// The other user's requests beside a flood: how many at most, and for how long. A p99 of fewer is a handful of the kernel's slices.
const ALONE: (usize, Duration) = (10_000, Duration::from_secs(30));

/// How hard, and on whom.
#[derive(Args)]
pub struct Options {
    /// The kubeconfig of the API server; $KUBECONFIG or ~/.kube/config when not given.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Its context; the current one when not given.
    #[arg(long)]
    context: Option<String>,
    /// Connections that ask at the same time.
    #[arg(long, default_value_t = 32)]
    workers: usize,
    /// How many objects.
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// How many bytes of data an object holds.
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// How many watches in the fan-out.
    #[arg(long, default_value_t = 100)]
    watches: usize,
    /// Processes of the server, for its CPU seconds and memory.
    #[arg(long)]
    pid: Vec<u32>,
    /// Only these steps, by the first word of their line: create, get, list, update, patch, apply, delete, watch, flood.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Asks without pause by the bearer of this token until standard input ends: the flood's side of that step.
    #[arg(long, hide = true)]
    flood_by: Option<String>,
    /// What the flood asks for.
    #[arg(long, hide = true, default_value = "lists")]
    flood_of: Flood,
}

#[derive(Clone, Copy, ValueEnum)]
enum Flood {
    Lists,
    Patches,
}

struct Load {
    target: Target,
    options: Options,
    config: kube::Config,
}

/// One request of a step: method, path, content type, body.
type Ask = (Method, String, &'static str, Bytes);

pub async fn run(options: Options) -> anyhow::Result<()> {
    let read = kube::config::KubeConfigOptions { context: options.context.clone(), ..Default::default() };
    let config = match &options.kubeconfig {
        Some(path) => kube::Config::from_custom_kubeconfig(kube::config::Kubeconfig::read_from(path)?, &read).await?,
        None => kube::Config::from_kubeconfig(&read).await?,
    };
    if let Some(token) = &options.flood_by {
        return flood_by(Target::bearer(&config, token.clone())?, options.workers, options.flood_of).await;
    }
    let load = Load { target: Target::new(&config)?, options, config };
    let mut connection = load.target.connect().await?;
    let version = connection.get("/version").await?;
    println!("{} · {} workers · {} objects of {} bytes", version["gitVersion"].as_str().unwrap_or("?"), load.options.workers, load.options.objects, load.options.size);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string();
    let (status, _) = connection.send(Method::POST, "/api/v1/namespaces", JSON, namespace).await?;
    anyhow::ensure!(status == 201 || status == 409, "the namespace can't be made: {status}");
    println!("{:<34} {:>10} {:>9} {:>9} {:>7} {:>8}", "what", "per s", "p50 ms", "p99 ms", "CPU s", "RSS MiB");
    load.verbs().await?;
    load.fan_out(&mut connection).await?;
    load.flood(&mut connection).await?;
    // The first connection has been idle for long.
    let mut connection = load.target.connect().await?;
    connection.must(Method::DELETE, "/api/v1/namespaces/apiload", JSON, Bytes::new()).await?;
    Ok(())
}

impl Load {
    fn wants(&self, what: &str) -> bool {
        let first = what.split_whitespace().next().unwrap_or("");
        self.options.only.is_empty() || self.options.only.iter().any(|only| only == first)
    }

    fn object(&self, index: usize, mark: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("load-{index}"), "labels": {"mark": mark}},
            "data": {"payload": "x".repeat(self.options.size)},
        })
    }

    async fn verbs(&self) -> anyhow::Result<()> {
        let n = self.options.objects;
        let named = |index: usize| format!("{BASE}/load-{index}");
        self.step("create", n, |i| (Method::POST, BASE.into(), JSON, self.object(i, "a").to_string().into())).await?;
        self.step("get", 5 * n, |i| (Method::GET, named(i % n), JSON, Bytes::new())).await?;
        self.step("get resourceVersion=0", 5 * n, |i| (Method::GET, format!("{}?resourceVersion=0", named(i % n)), JSON, Bytes::new())).await?;
        self.step("list whole", 20, |_| (Method::GET, BASE.into(), JSON, Bytes::new())).await?;
        self.step("list resourceVersion=0", 20, |_| (Method::GET, format!("{BASE}?resourceVersion=0"), JSON, Bytes::new())).await?;
        self.paged(20).await?;
        self.step("update", n / 2, |i| (Method::PUT, named(i), JSON, self.object(i, "b").to_string().into())).await?;
        let patch = json!({"metadata": {"labels": {"mark": "c"}}}).to_string();
        self.step("patch", n / 2, |i| (Method::PATCH, named(i), "application/merge-patch+json", patch.clone().into())).await?;
        self.step("apply", n / 2, |i| {
            let path = format!("{}?fieldManager=apiload&force=true", named(i));
            (Method::PATCH, path, "application/apply-patch+yaml", self.object(i, "d").to_string().into())
        })
        .await?;
        self.step("delete", n, |i| (Method::DELETE, named(i), JSON, Bytes::new())).await
    }

    /// Carries out `count` requests by all workers, and prints the line.
    async fn step(&self, what: &str, count: usize, ask: impl Fn(usize) -> Ask + Sync) -> anyhow::Result<()> {
        if !self.wants(what) {
            return Ok(());
        }
        let workers = if what.starts_with("list") { 1 } else { self.options.workers };
        let next = AtomicUsize::new(0);
        let connections = try_join_all((0..workers).map(|_| self.target.connect())).await?;
        let begun = Meter::new(&self.options.pid);
        let work = connections.into_iter().map(|mut connection| {
            let (next, ask) = (&next, &ask);
            async move {
                let mut latencies = Vec::with_capacity(count / workers + 1);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return anyhow::Ok(latencies);
                    }
                    let (method, path, content_type, body) = ask(index);
                    let start = Instant::now();
                    connection.must(method, &path, content_type, body).await?;
                    latencies.push(start.elapsed());
                }
            }
        });
        let latencies = Latencies::of(try_join_all(work).await?);
        begun.print(what, latencies.len(), &latencies);
        Ok(())
    }

    async fn paged(&self, times: usize) -> anyhow::Result<()> {
        let what = "list in pages of 500";
        if !self.wants(what) {
            return Ok(());
        }
        let mut connection = self.target.connect().await?;
        let begun = Meter::new(&self.options.pid);
        let mut latencies = Vec::new();
        for _ in 0..times {
            let start = Instant::now();
            let mut path = format!("{BASE}?limit=500");
            loop {
                // The page is read, but not parsed: what is measured is the server.
                let page = connection.bytes(&path).await?;
                match token(&page) {
                    Some(token) => path = format!("{BASE}?limit=500&continue={token}"),
                    None => break,
                }
            }
            latencies.push(start.elapsed());
        }
        begun.print(what, times, &Latencies::of([latencies]));
        Ok(())
    }

    /// Watches of one collection while objects are made in it: at full speed, and 50 a second.
    async fn fan_out(&self, connection: &mut Connection) -> anyhow::Result<()> {
        if !self.wants("watch") {
            return Ok(());
        }
        for (what, count, pause) in [("watch, creates at full speed", 1_000, None), ("watch, 50 creates/s", 250, Some(Duration::from_millis(20)))] {
            let before = resident_mib(&self.options.pid);
            let (seen, mut arrivals) = mpsc::unbounded_channel::<Vec<(usize, Instant)>>();
            let watches = try_join_all((0..self.options.watches).map(|_| self.watch(count, seen.clone()))).await?;
            drop(seen);
            let each = (resident_mib(&self.options.pid) - before) * 1024.0 / self.options.watches.max(1) as f64;
            let begun = Meter::new(&self.options.pid);
            let mut sent = HashMap::new();
            let makers = if pause.is_some() { 1 } else { 8 };
            let made = (0..makers).map(|maker| async move {
                let mut connection = self.target.connect().await?;
                let mut sent = Vec::new();
                for index in (maker..count).step_by(makers) {
                    if let Some(pause) = pause {
                        tokio::time::sleep(pause).await;
                    }
                    let body = self.object(index, "w").to_string();
                    sent.push((index, Instant::now()));
                    connection.must(Method::POST, BASE, JSON, body).await?;
                }
                anyhow::Ok(sent)
            });
            sent.extend(try_join_all(made).await?.into_iter().flatten());
            let mut latencies = Vec::new();
            while let Some(batch) = arrivals.recv().await {
                latencies.push(batch.into_iter().map(|(index, at)| at.saturating_duration_since(sent[&index])).collect());
            }
            let latencies = Latencies::of(latencies);
            begun.print(&format!("{} x {what}", self.options.watches), latencies.len(), &latencies);
            if !self.options.pid.is_empty() {
                println!("{:<34} {each:>10.1} KiB a watch, its connection included", "");
            }
            watches.iter().for_each(tokio::task::JoinHandle::abort);
            connection.must(Method::DELETE, BASE, JSON, Bytes::new()).await?;
        }
        Ok(())
    }

    /// One watch, open when this returns; it tells of `count` additions when it has seen them.
    async fn watch(&self, count: usize, seen: mpsc::UnboundedSender<Vec<(usize, Instant)>>) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        let mut connection = self.target.connect().await?;
        let list = connection.get(&format!("{BASE}?limit=1")).await?;
        let version = list["metadata"]["resourceVersion"].as_str().context("a list without a resource version")?;
        let answer = connection.open(Method::GET, &format!("{BASE}?watch=1&resourceVersion={version}"), JSON, Bytes::new()).await?;
        anyhow::ensure!(answer.status() == 200, "the watch is answered with {}", answer.status());
        Ok(tokio::spawn(async move {
            let (mut body, mut rest, mut found) = (answer.into_body(), Vec::new(), Vec::new());
            let _connection = connection;
            while found.len() < count
                && let Some(Ok(frame)) = body.frame().await
            {
                let now = Instant::now();
                rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    if let Some(index) = added(&rest[..end]) {
                        found.push((index, now));
                    }
                    rest.drain(..=end);
                }
            }
            // Nobody listens any more when the load has failed elsewhere.
            let _ = seen.send(found);
            drop(seen);
            std::future::pending::<()>().await;
        }))
    }

    /// How one user's requests fare while another floods the server.
    async fn flood(&self, connection: &mut Connection) -> anyhow::Result<()> {
        if !self.wants("flood") {
            return Ok(());
        }
        let flooder = self.user(connection, "flooder").await?;
        let other = Target::bearer(&self.config, self.user(connection, "other").await?)?;
        let quiet = self.alone(&other, "flood: the other user, idle").await?;
        for (what, flood) in [("lists", Flood::Lists), ("patches", Flood::Patches)] {
            let workers = 8 * self.options.workers;
            let mut flood = self.start_flood(&flooder, workers, flood)?;
            let (input, output) = (flood.stdin.take(), flood.stdout.take().context("the flood's output")?);
            let mut told = BufReader::new(output).lines();
            told.next_line().await?.context("the flood didn't begin")?;
            let begun = Instant::now();
            let busy = self.alone(&other, &format!("flood: beside {workers} x {what}")).await?;
            drop(input);
            let answers: f64 = told.next_line().await?.context("the flood broke off")?.parse()?;
            let rate = answers / begun.elapsed().as_secs_f64();
            flood.wait().await?;
            println!("{:<34} {:>10.1} times the idle p99; the flood had {rate:.0} answers per s", "", busy / quiet);
        }
        Ok(())
    }

    /// The flood is a process of its own that gives way to all others: it stands for clients elsewhere, which take the server's
    /// attention and not its processors.
    fn start_flood(&self, token: &str, workers: usize, flood: Flood) -> anyhow::Result<Child> {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe()?).arg("apiload").args(["--workers", &workers.to_string(), "--flood-by", token]);
        command.args(flood.to_possible_value().iter().flat_map(|name| ["--flood-of", name.get_name()]));
        command.args(self.options.kubeconfig.iter().flat_map(|path| ["--kubeconfig".as_ref(), path.as_os_str()]));
        command.args(self.options.context.iter().flat_map(|context| ["--context", context]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().context("start the flood")
    }

    /// Requests one by one, from a thread of their own: what is waited for is the server, and not this program's other requests.
    /// Answers their p99 in milliseconds.
    async fn alone(&self, user: &Target, what: &str) -> anyhow::Result<f64> {
        let begun = Meter::new(&self.options.pid);
        let user = user.clone();
        let asks = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = user.connect().await?;
                let (begun, mut latencies) = (Instant::now(), Vec::new());
                while latencies.len() < ALONE.0 && begun.elapsed() < ALONE.1 {
                    let start = Instant::now();
                    connection.must(Method::GET, &format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/other"), JSON, Bytes::new()).await?;
                    latencies.push(start.elapsed());
                }
                anyhow::Ok(latencies)
            })
        };
        let latencies = Latencies::of([tokio::task::spawn_blocking(asks).await??]);
        begun.print(what, latencies.len(), &latencies);
        Ok(latencies.quantile(0.99))
    }

    /// The token of a service account that may do anything in the namespace.
    async fn user(&self, connection: &mut Connection, name: &str) -> anyhow::Result<String> {
        let base = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        connection.send(Method::POST, &base, JSON, account.to_string()).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
        });
        let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings");
        connection.send(Method::POST, &bindings, JSON, binding.to_string()).await?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}).to_string();
        let answer = connection.open(Method::POST, &format!("{base}/{name}/token"), JSON, request).await?;
        let answer: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        answer["status"]["token"].as_str().map(str::to_owned).context("no token")
    }
}

/// Tells when every worker has had an answer, and in the end how many answers there were after that.
async fn flood_by(flooder: Target, workers: usize, flood: Flood) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut flood: JoinSet<anyhow::Result<()>> = (0..workers)
        .map(|worker| {
            let (flooder, asked) = (flooder.clone(), Arc::clone(&asked));
            async move {
                let mut connection = flooder.connect().await?;
                let (name, path) = (format!("flood-{worker}"), format!("{BASE}/flood-{worker}"));
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}).to_string();
                if matches!(flood, Flood::Patches) {
                    connection.send(Method::POST, BASE, JSON, object).await?;
                }
                for time in 0_u64.. {
                    match flood {
                        Flood::Lists => connection.send(Method::GET, &format!("{BASE}?limit=500"), JSON, Bytes::new()).await?,
                        Flood::Patches => {
                            let patch = json!({"data": {"time": time.to_string()}}).to_string();
                            connection.send(Method::PATCH, &path, "application/merge-patch+json", patch).await?
                        }
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        })
        .collect();
    while asked.load(Ordering::Relaxed) < workers {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = asked.load(Ordering::Relaxed);
    println!("flooding");
    let mut input = tokio::io::stdin();
    tokio::select! {
        _ = input.read_u8() => {}
        Some(ended) = flood.join_next() => ended??,
    }
    println!("{}", asked.load(Ordering::Relaxed) - before);
    // Whoever waits for the input's end in another thread is not waited for.
    std::process::exit(0);
}

/// The continue token of a list, wherever its metadata stands: no object here has a member of that name.
fn token(page: &[u8]) -> Option<&str> {
    const MEMBER: &[u8] = b"\"continue\":\"";
    let at = page.windows(MEMBER.len()).position(|window| window == MEMBER)? + MEMBER.len();
    let length = page[at..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&page[at..at + length]).ok().filter(|token| !token.is_empty())
}

/// The number of the object that a watch's frame says was added.
fn added(frame: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(frame).ok()?;
    if !text.starts_with("{\"type\":\"ADDED\"") {
        return None;
    }
    let (_, rest) = text.split_once("\"name\":\"load-")?;
    rest.split('"').next()?.parse().ok()
}

/// What had been used when a step began.
struct Meter<'a> {
    at: Instant,
    cpu: f64,
    pids: &'a [u32],
}

impl<'a> Meter<'a> {
    fn new(pids: &'a [u32]) -> Self {
        Self { at: Instant::now(), cpu: cpu_seconds(pids), pids }
    }

    fn print(&self, what: &str, count: usize, latencies: &Latencies) {
        let rate = count as f64 / self.at.elapsed().as_secs_f64();
        let rate = if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
        print!("{what:<34} {rate:>10} {:>9.2} {:>9.2}", latencies.quantile(0.5), latencies.quantile(0.99));
        if self.pids.is_empty() {
            println!();
        } else {
            println!(" {:>7.1} {:>8.0}", cpu_seconds(self.pids) - self.cpu, resident_mib(self.pids));
        }
    }
}
