//! What every store must do, run against all three; etcd only where its binary is.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use skiff_api::random;
use skiff_store::{Embedded, Error, Etcd, Event, Guard, Memory, Revision, Store, TOO_LARGE, prefix_end};

/// An etcd of this test's own, ended with it.
struct OwnEtcd {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for OwnEtcd {
    fn drop(&mut self) {
        self.child.kill().expect("end etcd");
        self.child.wait().expect("wait for etcd");
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Starts etcd; `None`, said aloud, where there is none.
async fn own_etcd() -> Option<(OwnEtcd, Etcd)> {
    let dir = tempfile::tempdir().expect("a directory");
    let (client, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
    let started = Command::new("etcd")
        .args(["--data-dir", &dir.path().display().to_string(), "--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = match started {
        Ok(child) => child,
        Err(error) => {
            println!("SKIPPED: store conformance on etcd: {error}");
            return None;
        }
    };
    let guard = OwnEtcd { child, _dir: dir };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match Etcd::connect(std::slice::from_ref(&client)).await {
            Ok(store) => return Some((guard, store)),
            Err(error) if tokio::time::Instant::now() > deadline => panic!("etcd didn't come up: {error}"),
            // There is nothing to watch for until it answers.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn text(value: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(value.as_bytes()))
}

async fn all(store: &dyn Store, at: Option<Revision>) -> Vec<(String, String)> {
    let page = store.list("/", &prefix_end("/"), 0, at).await.expect("list");
    page.entries.iter().map(|e| (e.key.to_string(), String::from_utf8_lossy(&e.value).into_owned())).collect()
}

async fn guards(store: &dyn Store) {
    let first = store.commit("/g/a", Guard::Absent, text("1")).await.expect("create");
    let conflict = store.commit("/g/a", Guard::Absent, text("2")).await;
    assert!(matches!(&conflict, Err(Error::Conflict(Some(e))) if e.modified == first && e.value == "1"), "{conflict:?}");
    let second = store.commit("/g/a", Guard::Modified(first), text("2")).await.expect("update");
    assert!(second > first);
    assert!(matches!(store.commit("/g/a", Guard::Modified(first), None).await, Err(Error::Conflict(Some(_)))));
    let entry = store.get("/g/a").await.expect("get").expect("there");
    assert_eq!((entry.created, entry.modified, &entry.value[..]), (first, second, &b"2"[..]));
    store.commit("/g/a", Guard::Modified(second), None).await.expect("delete");
    assert!(store.get("/g/a").await.expect("get").is_none());
    assert!(matches!(store.commit("/g/a", Guard::Modified(second), text("3")).await, Err(Error::Conflict(None))));
    let again = store.commit("/g/a", Guard::Absent, text("3")).await.expect("create again");
    assert_eq!(store.get("/g/a").await.expect("get").expect("there").created, again);
}

async fn pages(store: &dyn Store) {
    for index in 0..5 {
        store.commit(&format!("/p/{index}"), Guard::Absent, text("x")).await.expect("create");
    }
    let end = prefix_end("/p/");
    let first = store.list("/p/", &end, 2, None).await.expect("list");
    assert_eq!((first.entries.len(), first.remaining), (2, 3));
    store.commit("/p/9", Guard::Absent, text("late")).await.expect("create");
    let start = format!("{}\0", first.entries[1].key);
    let rest = store.list(&start, &end, 0, Some(first.revision)).await.expect("list");
    assert_eq!(rest.entries.iter().map(|e| e.key.as_ref()).collect::<Vec<_>>(), ["/p/2", "/p/3", "/p/4"]);
    assert_eq!((rest.revision, rest.remaining), (first.revision, 0));
    assert!(matches!(store.list("/p/", &end, 0, Some(u64::from(u32::MAX))).await, Err(Error::Future { .. })));
    assert!(store.list("/p/", "/p/", 0, None).await.expect("an empty range").entries.is_empty());
}

async fn watches(store: &dyn Store) {
    let from = store.revision().await.expect("revision") + 1;
    let one = store.commit("/w/a", Guard::Absent, text("1")).await.expect("create");
    let mut watch = store.watch(from).await.expect("watch");
    let two = store.commit("/w/a", Guard::Modified(one), text("2")).await.expect("update");
    let three = store.commit("/w/a", Guard::Modified(two), None).await.expect("delete");
    let mut seen: Vec<Event> = Vec::new();
    while seen.last().is_none_or(|e| e.revision < three) {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("events in time");
        seen.extend(batch.expect("an open watch").expect("events"));
    }
    let seen: Vec<_> = seen.iter().map(|e| (e.revision, e.value.as_deref().map(<[u8]>::to_vec))).collect();
    assert_eq!(seen, [(one, Some(b"1".to_vec())), (two, Some(b"2".to_vec())), (three, None)]);
}

/// Live keys stay, history goes, and it is said that it went.
async fn compaction(store: &dyn Store) {
    let old = store.commit("/c/a", Guard::Absent, text("1")).await.expect("create");
    let gone = store.commit("/c/b", Guard::Absent, text("1")).await.expect("create");
    store.commit("/c/b", Guard::Modified(gone), None).await.expect("delete");
    let new = store.commit("/c/a", Guard::Modified(old), text("2")).await.expect("update");
    let live = store.commit("/c/c", Guard::Absent, text("3")).await.expect("create");
    let before = all(store, None).await;
    store.compact(new).await.expect("compact");
    assert_eq!(all(store, None).await, before);
    assert_eq!(all(store, Some(live)).await, before);
    assert!(matches!(store.list("/c/", &prefix_end("/c/"), 0, Some(old)).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch(old).await.expect("watch");
    let first = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("an answer in time");
    assert!(matches!(first, Some(Err(Error::Compacted { .. }))), "{first:?}");
    assert_eq!(store.get("/c/a").await.expect("get").expect("there").created, old);
    store.compact(store.revision().await.expect("revision")).await.expect("compact everything");
    assert_eq!(all(store, None).await, before);
}

/// Every write that is acknowledged happened once, in an order that the watch shows too.
async fn concurrent_counters(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const EACH: u64 = 20;
    let from = store.revision().await.expect("revision") + 1;
    store.commit("/n/counter", Guard::Absent, text("0")).await.expect("create");
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..EACH {
                    loop {
                        let entry = store.get("/n/counter").await.expect("get").expect("there");
                        let count: u64 = String::from_utf8_lossy(&entry.value).parse().expect("a number");
                        match store.commit("/n/counter", Guard::Modified(entry.modified), text(&(count + 1).to_string())).await {
                            Ok(_) => break,
                            Err(Error::Conflict(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
    let total = WRITERS as u64 * EACH;
    let mut watch = store.watch(from).await.expect("watch");
    let mut next = 0;
    while next <= total {
        for event in watch.next().await.expect("an open watch").expect("events") {
            assert_eq!(event.value.as_deref(), Some(next.to_string().as_bytes()), "in order, each once");
            next += 1;
        }
    }
}

/// A long random history against a map that keeps every state.
async fn random_history(store: &dyn Store, steps: usize) {
    random::seed(7);
    let mut states: BTreeMap<Revision, BTreeMap<String, String>> = BTreeMap::new();
    let mut current: BTreeMap<String, String> = all(store, None).await.into_iter().collect();
    let mut oldest = store.revision().await.expect("revision");
    states.insert(oldest, current.clone());
    for step in 0..steps {
        let key = format!("/r/{}", random::below(12));
        let entry = store.get(&key).await.expect("get");
        assert_eq!(entry.as_ref().map(|e| String::from_utf8_lossy(&e.value).into_owned()), current.get(&key).cloned());
        let guard = entry.map_or(Guard::Absent, |e| Guard::Modified(e.modified));
        let value = (guard == Guard::Absent || random::below(4) > 0).then(|| step.to_string());
        let revision = store.commit(&key, guard, value.as_deref().and_then(text)).await.expect("commit");
        match value {
            Some(value) => drop(current.insert(key, value)),
            None => drop(current.remove(&key)),
        }
        states.insert(revision, current.clone());
        if random::below(50) == 0 {
            oldest = *states.keys().nth(random::below(states.len())).expect("a revision").max(&oldest);
            store.compact(oldest).await.expect("compact");
        }
        let (at, state) = states.range(oldest..).nth(random::below(states.range(oldest..).count())).expect("a state");
        assert_eq!(all(store, Some(*at)).await.into_iter().collect::<BTreeMap<_, _>>(), *state, "at {at}, step {step}");
    }
}

async fn conforms(store: Arc<dyn Store>, steps: usize) {
    guards(&*store).await;
    pages(&*store).await;
    watches(&*store).await;
    concurrent_counters(Arc::clone(&store)).await;
    random_history(&*store, steps).await;
    compaction(&*store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    conforms(Arc::new(Memory::new()), 2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded() {
    let dir = tempfile::tempdir().expect("a directory");
    conforms(Arc::new(Embedded::open(dir.path().join("store")).expect("open")), 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd() {
    if let Some((_guard, store)) = own_etcd().await {
        conforms(Arc::new(store), 150).await;
    }
}

/// More than fits into one answer is read and watched all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_in_bits() {
    let Some((_guard, store)) = own_etcd().await else { return };
    let store = store.with_max_message(4 << 20);
    let from = store.revision().await.expect("revision") + 1;
    let value = Bytes::from(vec![b'x'; 200 << 10]);
    for size in [1_600, 3_000] {
        let huge = store.commit("/huge", Guard::Absent, Some(Bytes::from(vec![b'x'; size << 10]))).await;
        assert!(matches!(huge, Err(Error::Refused(TOO_LARGE))), "{huge:?}");
    }
    let keys: Vec<String> = (10..50).map(|index| format!("/big/{index}")).collect();
    for key in &keys {
        store.commit(key, Guard::Absent, Some(value.clone())).await.expect("create");
    }
    let page = store.list("/big/", &prefix_end("/big/"), 0, None).await.expect("list");
    assert!(page.entries.iter().map(|e| e.key.as_ref()).eq(keys.iter()), "{page:?}");
    let page = store.list("/big/", &prefix_end("/big/"), 30, None).await.expect("list");
    assert_eq!((page.entries.len(), page.remaining), (30, 10));
    let (mut watch, mut seen) = (store.watch(from).await.expect("watch"), Vec::new());
    while seen.len() < keys.len() {
        let batch = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("events in time");
        seen.extend(batch.expect("an open watch").expect("events").into_iter().map(|event| event.key.to_string()));
    }
    assert_eq!(seen, keys);
}

/// Opening again, after compactions too, shows what was there, and goes on counting.
#[tokio::test]
async fn embedded_reopens_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let (mut states, mut newest) = (Vec::new(), 0);
    for round in 0..4 {
        let store = Embedded::open(&path).expect("open");
        assert_eq!(all(&store, None).await, states);
        if round > 0 {
            assert_eq!(store.revision().await.expect("revision"), newest);
        }
        random_history(&store, 60).await;
        // The newest change is a deletion that compaction takes with it: the count must not go back.
        let made = store.commit("/z", Guard::Absent, text("x")).await.expect("create");
        newest = store.commit("/z", Guard::Modified(made), None).await.expect("delete");
        store.compact(newest).await.expect("compact");
        states = all(&store, None).await;
        store.close().await;
    }
}

#[tokio::test]
async fn embedded_is_of_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let _first = Embedded::open(&path).expect("open");
    let error = Embedded::open(&path).err().expect("refused").to_string();
    assert!(error.contains("another process has it open"), "{error}");
}
