//! Numbers: percentiles of latencies, and what processes have used, from `/proc`.

use std::time::Duration;

/// Latencies of one kind of operation.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Of many workers' own.
    pub fn of(parts: impl IntoIterator<Item = Vec<Duration>>) -> Self {
        let mut all: Vec<_> = parts.into_iter().flatten().collect();
        all.sort_unstable();
        Self(all)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The latency that the share `q` (0 to 1) stays below, in milliseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        let index = ((self.0.len() as f64 * q) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(index).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
    }
}

/// Clock ticks a second of `/proc/PID/stat`: 100 on every Linux that there is.
const TICKS: f64 = 100.0;

/// CPU seconds that the processes have used so far.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything, in brackets.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS
}

/// Resident memory of the processes now, in MiB.
pub fn resident_mib(pids: &[u32]) -> f64 {
    let kib = |pid: &u32| -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok())
    };
    pids.iter().filter_map(kib).sum::<f64>() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let latencies = Latencies::of([vec![Duration::from_millis(3)], (1..=2).map(Duration::from_millis).collect()]);
        assert_eq!((latencies.len(), latencies.quantile(0.5), latencies.quantile(1.0)), (3, 2.0, 3.0));
        assert!(Latencies::default().quantile(0.5).is_nan());
    }

    #[test]
    fn this_process_has_used_something() {
        let own = [std::process::id()];
        assert!(resident_mib(&own) > 0.5 && cpu_seconds(&own) >= 0.0);
        assert_eq!(resident_mib(&[]), 0.0);
    }
}
