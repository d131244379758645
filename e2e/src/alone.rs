//! The components of a cluster as processes of their own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::up::{binary, eventually};

/// A process of a test, killed with this value.
pub struct Process {
    name: String,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

fn listen(pipe: impl Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).for_each(|line| said.lock().unwrap_or_else(PoisonError::into_inner).push(line));
    });
}

impl Process {
    /// Starts a program.
    pub fn start(name: &str, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start a process");
        let said = Arc::new(Mutex::default());
        listen(child.stdout.take().expect("its output"), Arc::clone(&said));
        listen(child.stderr.take().expect("its errors"), Arc::clone(&said));
        Self { name: name.into(), child, said }
    }

    /// Starts a component of Skiff in `dir`.
    pub fn skiff(dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(args).current_dir(dir).env("HOME", dir).env_remove("KUBECONFIG").env("RUST_LOG", "warn");
        Self::start(args.first().unwrap_or(&""), command)
    }

    /// All that it has said.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), || if self.said().contains(text) { Ok(()) } else { Err(self.said()) });
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.said());
        }
        self.kill();
    }
}
