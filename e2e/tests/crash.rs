//! The API server is killed in the midst of its work, again and again: what it has acknowledged stays, and a watch goes on
//! where it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use skiff_e2e::history::{Change, Outcome, Write, faults};
use skiff_e2e::skip;
use skiff_e2e::up::{PATIENCE, binary, free_port};
use tokio::sync::watch;

/// How many tasks write, each its own keys.
const WRITERS: usize = 8;
/// How many keys a writer has.
const KEYS: u64 = 4;
/// How many writes are acknowledged between one kill and the next.
const BETWEEN: u64 = 40;
/// The last write, after which the watch has seen everything.
const LAST: &str = "last";

/// An API server alone, as a process.
struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
    store: &'static str,
}

impl Server {
    fn start(dir: &Path, store: &'static str) -> Self {
        let port = free_port();
        Self { child: Self::spawn(dir, port, store), port, dir: dir.into(), store }
    }

    fn spawn(dir: &Path, port: u16, store: &str) -> Child {
        let args = ["apiserver", "--name", "crash", "--store", store, "--listen", &format!("127.0.0.1:{port}"), "--data-dir"];
        Command::new(binary()).args(args).arg(dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start skiff apiserver")
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("wait for skiff");
        self.child = Self::spawn(&self.dir, self.port, self.store);
    }

    /// Waits until it answers.
    async fn client(&self) -> Client {
        let path = self.dir.join("kubeconfig");
        let ask = async {
            loop {
                if let Ok(read) = kube::config::Kubeconfig::read_from(&path)
                    && let Ok(config) = kube::Config::from_custom_kubeconfig(read, &Default::default()).await
                    && let Ok(client) = Client::try_from(config)
                    && client.request_text(http::Request::get("/readyz").body(Vec::new()).expect("a request")).await.is_ok()
                {
                    return client;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ask).await.expect("the API server comes up")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn object(key: &str, value: &str) -> ConfigMap {
    let metadata = kube::api::ObjectMeta { name: Some(key.into()), ..Default::default() };
    ConfigMap { metadata, data: Some([("value".into(), value.into())].into()), ..Default::default() }
}

fn value_of(object: &ConfigMap) -> String {
    object.data.as_ref().and_then(|data| data.get("value")).cloned().unwrap_or_default()
}

fn revision_of(object: &ConfigMap) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

/// What the writers and the watch are told of the server.
#[derive(Clone)]
struct Told {
    up: watch::Receiver<Option<Client>>,
    done: Arc<AtomicU64>,
    enough: watch::Receiver<bool>,
}

impl Told {
    async fn api(&mut self) -> Api<ConfigMap> {
        let up = self.up.wait_for(Option::is_some).await.expect("the test goes on");
        Api::default_namespaced(up.clone().expect("it is up"))
    }
}

/// Writes until it is told that it is enough. Answers what it was told of each write.
async fn writer(number: usize, mut told: Told) -> Vec<Write> {
    let mut writes = Vec::new();
    // What is there of each key, as far as this writer knows.
    let mut there: BTreeMap<String, bool> = BTreeMap::new();
    let mut count = 0;
    while !*told.enough.borrow() {
        let key = format!("w{number}-{}", count % KEYS);
        let api = told.api().await;
        let exists = match there.get(&key) {
            Some(exists) => *exists,
            None => match api.get_opt(&key).await {
                Ok(found) => found.is_some(),
                Err(_) => continue,
            },
        };
        count += 1;
        let value = (!exists || count % 5 != 0).then(|| format!("{number}.{count}"));
        let result = match &value {
            None => api.delete(&key, &DeleteParams::default()).await.map(|_| None),
            Some(value) if exists => api.replace(&key, &PostParams::default(), &object(&key, value)).await.map(|o| revision_of(&o)),
            Some(value) => api.create(&PostParams::default(), &object(&key, value)).await.map(|o| revision_of(&o)),
        };
        let outcome = match result {
            Ok(revision) => {
                told.done.fetch_add(1, Ordering::Relaxed);
                there.insert(key.clone(), value.is_some());
                Outcome::Done(revision)
            }
            Err(kube::Error::Api(status)) if status.code < 500 => Outcome::Refused,
            Err(_) => {
                there.remove(&key);
                Outcome::Unknown
            }
        };
        writes.push(Write { key, value, outcome });
    }
    writes
}

/// Watches, over every end of the server, until it has seen the last write. Answers what it saw.
async fn watcher(mut told: Told, mut from: String) -> Result<Vec<Change>, String> {
    let mut seen = Vec::new();
    loop {
        let api = told.api().await;
        let mut stream = match api.watch(&WatchParams::default(), &from).await {
            Ok(stream) => stream.boxed(),
            Err(kube::Error::Api(status)) => return Err(format!("a watch from {from} was refused with {status:?}")),
            Err(_) => continue,
        };
        while let Ok(Some(event)) = stream.try_next().await {
            let (object, deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    from = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => return Err(format!("a watch from {from} was ended with {status:?}")),
            };
            from = object.resource_version().unwrap_or_default();
            if object.name_any() == LAST {
                return Ok(seen);
            }
            let value = (!deleted).then(|| value_of(&object));
            seen.push(Change { revision: revision_of(&object).unwrap_or(0), key: object.name_any(), value });
        }
    }
}

/// Kills a server with this store `kills` times under load. Answers what is wrong with what its clients were told.
async fn run(store: &'static str, kills: u64) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(dir.path(), store);
    let client = server.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let from = api.list(&ListParams::default()).await.expect("a list").metadata.resource_version.expect("a revision");
    let (up, up_told) = watch::channel(Some(client));
    let (enough, enough_told) = watch::channel(false);
    let told = Told { up: up_told, done: Arc::default(), enough: enough_told };
    let watching = tokio::spawn(watcher(told.clone(), from));
    let writing: Vec<_> = (0..WRITERS).map(|number| tokio::spawn(writer(number, told.clone()))).collect();
    for kill in 1..=kills {
        let wait = async {
            while told.done.load(Ordering::Relaxed) < kill * BETWEEN {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("writes are acknowledged");
        up.send_replace(None);
        server.kill();
        up.send_replace(Some(server.client().await));
    }
    enough.send_replace(true);
    let mut writes = Vec::new();
    for writer in writing {
        writes.extend(writer.await.expect("a writer"));
    }
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
    let end = api.list(&ListParams::default()).await.expect("a list").items.iter().map(|o| (o.name_any(), value_of(o))).collect();
    let last = revision_of(&api.create(&PostParams::default(), &object(LAST, "")).await.expect("the last write")).unwrap_or(0);
    let acknowledged = writes.iter().filter_map(|write| if let Outcome::Done(at) = write.outcome { at } else { None }).max().unwrap_or(0);
    if last <= acknowledged {
        return vec![format!("the last write is at revision {last}, after one at {acknowledged} was acknowledged")];
    }
    match tokio::time::timeout(PATIENCE, watching).await.map(|seen| seen.expect("the watch")) {
        Ok(Ok(seen)) => faults(&writes, &seen, &end),
        Ok(Err(fault)) => vec![fault],
        Err(_) => vec!["the watch didn't see the last write".into()],
    }
}

fn needs_binary(test: &str) -> Option<()> {
    if !binary().exists() {
        skip(test, "the skiff binary isn't built (cargo build)");
        return None;
    }
    Some(())
}

/// `SKIFF_KILLS` says how often the server is killed.
#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    if needs_binary("nothing_acknowledged_is_lost").is_none() {
        return;
    }
    let kills = std::env::var("SKIFF_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    assert_eq!(run("embedded", kills).await, Vec::<String>::new());
}

/// The same on a store that forgets, so that it is known that the loss would be seen.
#[tokio::test]
async fn a_loss_would_be_noticed() {
    if needs_binary("a_loss_would_be_noticed").is_none() {
        return;
    }
    assert!(!run("memory", 2).await.is_empty());
}
