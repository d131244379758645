//! The kernel's side: one nftables table a cluster, changed by `nft` in whole transactions.

use std::fmt::Write as _;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::conntrack;
use crate::plan::Rules;

/// Why rules couldn't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no `nft`, or it can't be started.
    #[error("run nft (is nftables installed?): {0}")]
    Run(#[from] std::io::Error),
    /// There is no `iptables`, or it can't be started.
    #[error("run iptables (is it installed?): {0}")]
    Iptables(#[source] std::io::Error),
    /// The kernel or `nft` refused.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// What the base chains look into, with its type.
const MAPS: [(&str, &str); 4] = [
    ("service_ips", "ipv4_addr . inet_proto . inet_service : verdict"),
    ("node_ports", "inet_proto . inet_service : verdict"),
    ("no_endpoints", "ipv4_addr . inet_proto . inet_service : verdict"),
    ("no_endpoint_ports", "inet_proto . inet_service : verdict"),
];

/// The chains that never change. Their priorities are just beside those of Docker's own.
const BASE: &str = "
chain refuse { meta l4proto tcp reject with tcp reset; reject; }
chain services {
  ip daddr . meta l4proto . th dport vmap @service_ips
  fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @node_ports
}
chain refused {
  ip daddr . meta l4proto . th dport vmap @no_endpoints
  fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @no_endpoint_ports
}
chain prerouting { type nat hook prerouting priority -105; jump services; }
chain output { type nat hook output priority -105; jump services; }
chain postrouting { type nat hook postrouting priority 95; meta mark & 0x4000 == 0x4000 meta mark set meta mark & 0xffffbfff masquerade; }
chain filter_input { type filter hook input priority -5; ct state new jump refused; }
chain filter_forward { type filter hook forward priority -5; ct state new jump refused; }
chain filter_output { type filter hook output priority -5; ct state new jump refused; }
";

/// The table of a cluster, and what it holds.
#[derive(Debug)]
pub struct Table {
    name: String,
    /// What was written last; `None` before anything was.
    written: Option<Rules>,
}

impl Table {
    /// The cluster's table.
    pub fn new(cluster: &str) -> Self {
        let clean: String = cluster.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        Self { name: format!("skiff_{clean}"), written: None }
    }

    /// Makes the kernel's rules these.
    pub async fn apply(&mut self, rules: Rules) -> Result<(), Error> {
        let script = match &self.written {
            Some(written) if *written == rules => return Ok(()),
            Some(written) => difference(&self.name, written, &rules),
            None => whole(&self.name, &rules),
        };
        // After a failure nothing is known of what there is: the next time all is written.
        let before = self.written.take();
        run(&script).await?;
        let moved = conntrack::changed(before.as_ref().map(|rules| &rules.udp), &rules.udp);
        self.written = Some(rules);
        if !moved.is_empty() {
            forget(moved).await;
        }
        Ok(())
    }

    /// Takes the table out of the kernel.
    pub async fn remove(self) -> Result<(), Error> {
        run(&format!("add table ip {0}\ndelete table ip {0}\n", self.name)).await
    }
}

/// Has clients of UDP ports whose endpoints changed choose anew. New ones do so anyhow, so a failure is no more than told.
async fn forget(moved: conntrack::Ports) {
    match tokio::task::spawn_blocking(move || conntrack::flush(&moved)).await {
        Ok(Ok(0)) | Err(_) => {}
        Ok(Ok(count)) => tracing::debug!(count, "stale UDP conversations forgotten"),
        Ok(Err(error)) => tracing::warn!(%error, "UDP clients may go on sending to endpoints that are gone"),
    }
}

/// The script that makes the table from nothing.
fn whole(table: &str, rules: &Rules) -> String {
    let mut script = format!("add table ip {table}\ndelete table ip {table}\nadd table ip {table}\ntable ip {table} {{\n");
    for (name, kind) in MAPS {
        // Writing to a string doesn't fail, here and below.
        let _ = writeln!(script, "map {name} {{ type {kind}; }}");
    }
    script.push_str(BASE);
    script.push_str("}\n");
    script.push_str(&difference(table, &Rules::default(), rules));
    script
}

/// The script that makes one set of rules into another: first what is new, then what looks at it, last what is gone.
fn difference(table: &str, from: &Rules, to: &Rules) -> String {
    let mut script = String::new();
    for (set, seconds) in to.affinity.iter().filter(|(set, _)| !from.affinity.contains_key(*set)) {
        let _ = writeln!(script, "add set ip {table} {set} {{ type ipv4_addr; flags dynamic, timeout; timeout {seconds}s; }}");
    }
    let changed: Vec<_> = to.chains.iter().filter(|(name, body)| from.chains.get(*name) != Some(body)).collect();
    for (name, _) in &changed {
        let _ = writeln!(script, "add chain ip {table} {name}\nflush chain ip {table} {name}");
    }
    for (name, body) in &changed {
        for rule in *body {
            let _ = writeln!(script, "add rule ip {table} {name} {rule}");
        }
    }
    for (map, _) in MAPS {
        let (before, after) = (from.elements.get(map), to.elements.get(map));
        let gone = before.into_iter().flatten().filter(|(key, value)| after.and_then(|a| a.get(*key)) != Some(value));
        for (key, value) in gone {
            let _ = writeln!(script, "delete element ip {table} {map} {{ {key} : {value} }}");
        }
        let new = after.into_iter().flatten().filter(|(key, value)| before.and_then(|b| b.get(*key)) != Some(value));
        for (key, value) in new {
            let _ = writeln!(script, "add element ip {table} {map} {{ {key} : {value} }}");
        }
    }
    let gone: Vec<_> = from.chains.keys().filter(|name| !to.chains.contains_key(*name)).collect();
    // A chain can't go while another leads to it.
    for name in &gone {
        let _ = writeln!(script, "flush chain ip {table} {name}");
    }
    for name in &gone {
        let _ = writeln!(script, "delete chain ip {table} {name}");
    }
    for set in from.affinity.keys().filter(|set| !to.affinity.contains_key(*set)) {
        let _ = writeln!(script, "delete set ip {table} {set}");
    }
    script
}

/// Whether `nft` is there and may look into the kernel.
pub async fn probe() -> Result<(), Error> {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output().await?;
    if output.status.success() { Ok(()) } else { Err(refusal(&output.stderr)) }
}

fn refusal(stderr: &[u8]) -> Error {
    Error::Refused(String::from_utf8_lossy(stderr).lines().next().unwrap_or("no reason given").to_owned())
}

async fn run(script: &str) -> Result<(), Error> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    tracing::debug!(script, "nft refused");
    Err(refusal(&output.stderr))
}

/// Lets the kernel's connection tracking see packets between the ports of a bridge: without it, the answer of a pod to
/// another on the same bridge would not be translated back.
pub(crate) fn let_bridges_be_seen() {
    for (file, value) in [("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"), ("/proc/sys/net/ipv4/ip_forward", "1")] {
        let set = std::fs::read_to_string(file).is_ok_and(|now| now.trim() == value);
        if !set && let Err(error) = std::fs::write(file, value) {
            tracing::warn!(file, %error, "pods on one node may not reach each other through services");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rules(chains: &[(&str, &str)], elements: &[(&str, &str)]) -> Rules {
        let chains = chains.iter().map(|(name, rule)| ((*name).into(), vec![(*rule).into()])).collect();
        let elements = elements.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Rules { chains, elements: BTreeMap::from([("service_ips", elements)]), affinity: BTreeMap::new(), udp: BTreeMap::new() }
    }

    #[test]
    fn only_the_difference_is_written_in_a_safe_order() {
        let before = rules(&[("a", "accept"), ("b", "drop")], &[("1", "goto a"), ("2", "goto b")]);
        let after = rules(&[("a", "accept"), ("c", "drop")], &[("1", "goto a"), ("2", "goto c")]);
        let script = difference("t", &before, &after);
        let expected = [
            "add chain ip t c",
            "flush chain ip t c",
            "add rule ip t c drop",
            "delete element ip t service_ips { 2 : goto b }",
            "add element ip t service_ips { 2 : goto c }",
            "flush chain ip t b",
            "delete chain ip t b",
        ];
        assert_eq!(script.lines().collect::<Vec<_>>(), expected);
        assert_eq!(difference("t", &after, &after), "");
    }
}
