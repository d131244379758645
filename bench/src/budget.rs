//! The release binary against what is promised, as a table with the date and the machine. Exit code 1 says that
//! something is over its budget.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use serde_json::json;

use crate::figures::{cpu_seconds, resident_mib};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// The binary.
    #[arg(long, default_value = "target/release/skiff")]
    skiff: PathBuf,
    /// The address that the measured clusters listen on.
    #[arg(long, default_value = "127.0.0.1:16443")]
    listen: String,
    /// How many seconds the idle cluster is watched.
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

/// How long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(120);

struct Line {
    what: &'static str,
    found: f64,
    budget: f64,
    unit: &'static str,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    let mut line = |what, found, budget, unit| lines.push(Line { what, found, budget, unit });
    let size = std::fs::metadata(&options.skiff).with_context(|| format!("{} (cargo build --release)", options.skiff.display()))?.len();
    line("release binary", size as f64 / 1048576.0, 40.0, "MiB");

    let begun = Instant::now();
    let cluster = skiff::Cluster::start().await?;
    line("in-process cluster, ready to use", ms(begun), 20.0, "ms");
    cluster.stop().await;

    let (up, readyz) = Up::start(&options, 1).await?;
    line("exec to /readyz", readyz, 100.0, "ms");
    let running = up.first_pod().await?;
    line("exec to a simulated pod Running", running, 500.0, "ms");
    up.delete_pod().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_seconds(&[up.child.id()]);
    tokio::time::sleep(Duration::from_secs(options.idle)).await;
    line("idle CPU, whole cluster", (cpu_seconds(&[up.child.id()]) - before) / options.idle as f64 * 100.0, 0.5, "% of a core");
    line("resident, idle, one node", resident_mib(&[up.child.id()]), 40.0, "MiB");
    drop(up);

    let (up, _) = Up::start(&options, 10).await?;
    up.first_pod().await?;
    line("Deployment of 200 to all Ready", up.deployment("small", 200).await?, f64::NAN, "ms");
    drop(up);
    let (up, _) = Up::start(&options, 10).await?;
    up.first_pod().await?;
    line("Deployment of 1,000 to all Ready", up.deployment("large", 1000).await?, 2000.0, "ms");
    line("resident with 1,000 pods", resident_mib(&[up.child.id()]), f64::NAN, "MiB");
    drop(up);

    println!("{} · {}", skiff_api::clock::now().strftime("%F"), machine());
    println!("{:<36} {:>10} {:>10}", "what", "found", "budget");
    for Line { what, found, budget, unit } in &lines {
        let verdict = if budget.is_nan() { "" } else if found <= budget { "kept" } else { "OVER" };
        let budget = if budget.is_nan() { String::new() } else { budget.to_string() };
        println!("{what:<36} {found:>10.2} {budget:>10} {unit:<12} {verdict}");
    }
    if lines.iter().any(|line| line.found > line.budget) {
        bail!("over budget");
    }
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m.to_owned())).unwrap_or_default();
    format!("{cpus} x {model} · Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// A `skiff up` of its own, ended with this value.
struct Up {
    child: Child,
    begun: Instant,
    client: kube::Client,
    _dir: tempfile::TempDir,
}

impl Up {
    /// Starts one; answers when it is ready, and after how many milliseconds.
    async fn start(options: &Options, nodes: usize) -> anyhow::Result<(Self, f64)> {
        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        let begun = Instant::now();
        let child = Command::new(&options.skiff)
            .args(["up", "--name", "budget", "--no-merge", "--runtime", "simulated", "--listen", &options.listen, "--nodes", &nodes.to_string()])
            .args([Path::new("--data-dir"), &dir.path().join("data"), Path::new("--kubeconfig"), &kubeconfig])
            .stdout(Stdio::null())
            .spawn()
            .context("start skiff")?;
        let mut up = Guard(Some(child));
        let mut ready = None;
        let client = loop {
            if let Some(client) = client(&kubeconfig).await
                && client.request_text(http::Request::get("/readyz").body(Vec::new())?).await.is_ok()
            {
                ready.get_or_insert(ms(begun));
                break client;
            }
            if begun.elapsed() > PATIENCE {
                bail!("skiff up isn't ready");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let child = up.0.take().context("just started")?;
        Ok((Self { child, begun, client, _dir: dir }, ready.unwrap_or(f64::NAN)))
    }

    /// Milliseconds from the start until a pod runs.
    async fn first_pod(&self) -> anyhow::Result<f64> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "first"}, "spec": {"containers": [{"name": "c", "image": "any"}]}});
        loop {
            match pods.create(&PostParams::default(), &serde_json::from_value(pod.clone())?).await {
                // The namespace's service account is made in the first moments.
                Err(kube::Error::Api(status)) if status.code == 403 && self.begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(1)).await,
                result => break drop(result?),
            }
        }
        tokio::time::timeout(PATIENCE, await_condition(pods, "first", conditions::is_pod_running())).await??;
        Ok(ms(self.begun))
    }

    async fn delete_pod(&self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        pods.delete("first", &kube::api::DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Milliseconds from the creation of a Deployment until all its replicas are ready.
    async fn deployment(&self, name: &str, replicas: i32) -> anyhow::Result<f64> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), "default");
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "any"}]}},
            },
        });
        let begun = Instant::now();
        api.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
        let ready = move |d: Option<&Deployment>| d.and_then(|d| d.status.as_ref()?.ready_replicas) == Some(replicas);
        tokio::time::timeout(PATIENCE, await_condition(api, name, ready)).await??;
        Ok(ms(begun))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends a child that isn't an [`Up`] yet.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

async fn client(kubeconfig: &Path) -> Option<kube::Client> {
    let read = kube::config::Kubeconfig::read_from(kubeconfig).ok()?;
    let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.ok()?;
    kube::Client::try_from(config).ok()
}
