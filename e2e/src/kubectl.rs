//! `kubectl` on some cluster, as a person types it.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::up::eventually;

/// `kubectl` with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
    /// A directory for manifests, and for what kubectl itself keeps.
    pub dir: PathBuf,
}

impl Kubectl {
    /// A kubectl command on this cluster, to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(args).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.dir).stdin(Stdio::null());
        command
    }

    /// Runs kubectl.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run kubectl")
    }

    /// Runs kubectl, which must succeed; what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {}\n{out}{err}", args.join(" "));
        out.into_owned()
    }

    /// Runs kubectl, whose output must have all these in it.
    #[track_caller]
    pub fn shows(&self, args: &[&str], expected: &[&str]) {
        let out = self.ok(args);
        for text in expected {
            assert!(out.contains(text), "kubectl {}: no {text:?} in\n{out}", args.join(" "));
        }
    }

    /// Runs kubectl, which must fail and say this.
    #[track_caller]
    pub fn fails(&self, args: &[&str], expected: &str) {
        let output = self.run(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && err.contains(expected), "kubectl {}: no {expected:?} in {err}", args.join(" "));
    }

    /// Runs kubectl with a manifest on its standard input, which must succeed.
    #[track_caller]
    pub fn feed(&self, args: &[&str], manifest: &str) -> String {
        let path = self.dir.join(format!("manifest-{:x}.yaml", manifest.len() * 31 + args.len()));
        std::fs::write(&path, manifest).expect("write a manifest");
        let file = path.display().to_string();
        let args: Vec<&str> = args.iter().map(|a| if *a == "-" { file.as_str() } else { a }).collect();
        self.ok(&args)
    }

    /// Waits until kubectl shows this.
    #[track_caller]
    pub fn until(&self, args: &[&str], what: &str, pass: impl Fn(&str) -> bool) -> String {
        eventually(what, || {
            let out = String::from_utf8_lossy(&self.run(args).stdout).into_owned();
            if pass(&out) { Ok(out) } else { Err(out) }
        })
    }
}

/// A program that goes on until this value goes, however the test ends.
pub struct Running(Child);

impl Running {
    /// Starts it.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("start a program"))
    }
}

impl std::ops::Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
