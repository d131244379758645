//! Builds the pause program, which the kubelet carries with it and makes an image of.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=pause/pause.rs");
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(var("OUT_DIR")).join("pause");
    let mut rustc = Command::new(var("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", "-Cpanic=abort", "-Copt-level=z", "-Cstrip=symbols"]);
    rustc.args(["-Crelocation-model=static", "-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"]);
    rustc.args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-z,noseparate-code"]);
    rustc.arg("--target").arg(var("TARGET")).arg("-o").arg(&out).arg("pause/pause.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.status().unwrap_or_else(|error| panic!("run rustc for the pause program: {error}"));
    assert!(status.success(), "rustc failed to build the pause program: {status}");
}
