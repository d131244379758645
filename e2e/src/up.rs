//! A cluster of the `skiff` binary, used through `kubectl`, as a person would.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::kubectl::Kubectl;
use crate::skip;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running `skiff up`, ended with this value.
pub struct Up {
    name: String,
    dir: tempfile::TempDir,
    kubectl: Kubectl,
    child: Child,
    /// The ranges of a cluster that isn't the default one.
    docker: bool,
}

/// The binary, which is built beside the tests.
pub fn binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("this test's path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("skiff")
}

/// Whether a program can be run.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// What a kubectl test needs; `None`, said aloud, where it isn't there.
pub fn needs_kubectl(test: &str) -> Option<()> {
    if !binary().exists() {
        skip(test, "the skiff binary isn't built (cargo build)");
        return None;
    }
    if !has("kubectl") {
        skip(test, "there is no kubectl");
        return None;
    }
    Some(())
}

/// What a Docker test needs; `None`, said aloud, where it isn't there.
pub fn needs_docker(test: &str) -> Option<()> {
    needs_kubectl(test)?;
    let answers = Command::new("docker").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !answers {
        skip(test, "Docker doesn't answer");
        return None;
    }
    let nft = Command::new("nft").args(["list", "tables"]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !nft {
        skip(test, "nft can't be used (not root, or not installed)");
        return None;
    }
    Some(())
}

/// A port of this machine that nobody has.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

impl Up {
    /// A simulated cluster.
    pub fn simulated(name: &str, nodes: u16) -> Self {
        Self::start(name, &["--runtime", "simulated", "--nodes", &nodes.to_string()], false)
    }

    /// A cluster on Docker, in ranges `10.N.0.0/16` of its own for pods and `10.(N+1).0.0/16` for Services.
    pub fn docker(name: &str, range: u8) -> Self {
        let (pods, services) = (format!("10.{range}.0.0/16"), format!("10.{}.0.0/16", range + 1));
        Self::start(name, &["--runtime", "docker", "--pod-cidr", &pods, "--service-cidr", &services], true)
    }

    fn start(name: &str, args: &[&str], docker: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let child = Self::spawn(name, dir.path(), args);
        let kubectl = Kubectl { kubeconfig: dir.path().join("data/kubeconfig"), dir: dir.path().into() };
        Self { name: name.into(), dir, kubectl, child, docker }
    }

    fn spawn(name: &str, dir: &Path, args: &[&str]) -> Child {
        let mut child = Command::new(binary())
            .args(["up", "--name", name, "--no-merge", "--listen", &format!("127.0.0.1:{}", free_port())])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(args)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("start skiff");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let up = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("The cluster is up"));
        // Goes on reading, so that the cluster is never held up by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        assert!(up, "the cluster {name} didn't come up");
        child
    }

    /// Ends the process and starts another on the same data.
    pub fn restart(&mut self, args: &[&str]) {
        self.end();
        self.child = Self::spawn(&self.name, self.dir.path(), args);
    }

    fn end(&mut self) {
        let ended = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill");
        assert!(ended.success());
        self.child.wait().expect("wait for skiff");
    }

    /// A directory of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// An image with busybox and nothing else, made here.
pub const BUSYBOX: &str = "skiff-test/busybox:2";

/// Makes that image, unless it is there; `None`, said aloud, where it can't be made.
pub fn needs_busybox(test: &str) -> Option<()> {
    needs_docker(test)?;
    if docker(&["image", "inspect", BUSYBOX]).is_ok() {
        return Some(());
    }
    let program = Path::new("/bin/busybox");
    if !program.exists() {
        skip(test, "there is no static busybox (package busybox-static)");
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let bin = dir.path().join("root/bin");
    std::fs::create_dir_all(&bin).expect("a directory");
    std::fs::create_dir_all(dir.path().join("root/tmp")).expect("a directory");
    std::fs::copy(program, bin.join("busybox")).expect("a copy of busybox");
    for name in ["sh", "cat", "echo", "sleep", "tar", "nc", "wget", "httpd", "true", "ls", "env", "date", "test", "rm", "id", "nslookup", "ps", "mkdir", "chmod", "stty", "hostname", "tr"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).expect("a link");
    }
    let tar = dir.path().join("image.tar").display().to_string();
    let made = Command::new("tar").arg("-C").arg(dir.path().join("root")).args(["--owner=0", "--group=0", "-cf", &tar, "."]).status();
    assert!(made.is_ok_and(|status| status.success()), "tar");
    docker(&["import", &tar, BUSYBOX]).expect("import the image");
    Some(())
}

/// Runs the docker client.
pub fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Asks again and again, for what can't be watched from outside, until the answer is good.
#[track_caller]
pub fn eventually<T, E: std::fmt::Debug>(what: &str, ask: impl Fn() -> Result<T, E>) -> T {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if begin.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; last: {last:?}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(200)),
        }
    }
}

impl std::ops::Deref for Up {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for args in [&["get", "pods", "-A", "-o", "wide"][..], &["get", "events", "-A"]] {
                let output = self.run(args);
                eprintln!("kubectl {}\n{}", args.join(" "), String::from_utf8_lossy(&output.stdout));
            }
        }
        self.end();
        if self.docker {
            let down = Command::new(binary()).args(["down", "--name", &self.name, "--data-dir"]).arg(self.dir.path().join("data")).output();
            let down = down.expect("skiff down");
            assert!(down.status.success() || std::thread::panicking(), "{}", String::from_utf8_lossy(&down.stderr));
        }
    }
}
