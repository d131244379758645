//! Where the golden answers of a real API server are, and how they are read.

use std::path::PathBuf;

use serde_json::Value;

/// The folder with the golden answers, if it is there: `SKIFF_SPEC`, or `shared/spec` beside the repository.
pub fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/spec");
    let folder = std::env::var_os("SKIFF_SPEC").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// The lines of a file of JSON lines; none when there is no such folder.
pub fn lines(file: &str) -> Vec<Value> {
    let Some(folder) = folder() else {
        eprintln!("{file}: not compared, there is no reference data here (set SKIFF_SPEC)");
        return Vec::new();
    };
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{file}: {e}"))).collect()
}
