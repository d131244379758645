//! What this machine is, read from where the system says it.

use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::runtime::{Capacity, Version};

fn read(path: &str) -> String {
    // A file that isn't there is a fact that isn't known; it is told as an empty one, as upstream does.
    std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// The system's identity and versions.
pub fn system_info(runtime: &Version, kube_version: &str) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("{}://{}", runtime.name, runtime.version),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: kube_version.into(),
        machine_id: read("/etc/machine-id"),
        operating_system: std::env::consts::OS.into(),
        os_image: os_image(&read("/etc/os-release")),
        swap: swap(&read("/proc/meminfo")).map(|capacity| k8s_openapi::api::core::v1::NodeSwapStatus { capacity: Some(capacity) }),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
    }
}

/// The architecture by Go's names.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Unknown".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.split(':').next() == Some(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn swap(text: &str) -> Option<i64> {
    meminfo(text, "SwapTotal").filter(|swap| *swap > 0).and_then(|swap| i64::try_from(swap).ok())
}

/// What this machine has.
pub fn capacity(data_dir: &Path) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let storage = nix::sys::statvfs::statvfs(data_dir).map_or(0, |fs| fs.blocks() * fs.fragment_size());
    Capacity { cpu_milli: cpus * 1000, memory: meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or(0), storage }
}

/// The sizes of huge pages and how many bytes of each there are, by the names of the resources.
pub fn huge_pages() -> Vec<(String, u64)> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kib) = name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<u64>().ok()) else { continue };
        let count: u64 = read(&format!("/sys/kernel/mm/hugepages/{name}/nr_hugepages")).parse().unwrap_or(0);
        let size = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
        pages.push((format!("hugepages-{size}"), count * kib * 1024));
    }
    pages.sort();
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_image(""), "Unknown");
        assert_eq!(meminfo("MemTotal:       16 kB\nMemFree: 8 kB", "MemTotal"), Some(16 * 1024));
        assert_eq!(meminfo("MemTotal:       16 kB\n", "SwapTotal"), None);
        assert_eq!(swap("SwapTotal: 0 kB"), None);
    }
}
