//! A pod's names: its own, `/etc/hosts`, and `/etc/resolv.conf` by its DNS policy. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod;

/// The longest host name, by the kernel.
const LONGEST_HOSTNAME: usize = 63;
/// What a resolver takes at most; upstream's limits.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCH_LINE: usize = 2048;

/// What is in a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains that names are looked up in.
    pub searches: Vec<String>,
    /// Options, `ndots:5`.
    pub options: Vec<String>,
}

/// The cluster's own names.
#[derive(Clone, Debug)]
pub struct ClusterDns<'a> {
    /// The address of the DNS service.
    pub server: Option<IpAddr>,
    /// The domain, `cluster.local`.
    pub domain: &'a str,
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn set_option(options: &mut Vec<String>, option: String) {
    let name = |o: &str| o.split(':').next().unwrap_or_default().to_owned();
    options.retain(|o| name(o) != name(&option));
    options.push(option);
}

impl Resolver {
    /// Reads a `resolv.conf`.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => {
                    resolver.searches = words.filter(|s| *s != ".").map(|s| s.trim_end_matches('.').to_owned()).collect();
                }
                Some("options") => words.for_each(|o| set_option(&mut resolver.options, o.to_owned())),
                _ => {}
            }
        }
        resolver
    }

    /// A pod's, given the node's.
    pub fn of_pod(pod: &Pod, node: &Self, cluster: &ClusterDns<'_>) -> Self {
        let spec = pod::spec(pod);
        let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
        let by_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !pod::host_network(pod));
        let mut resolver = match (policy, cluster.server.filter(|_| by_cluster)) {
            ("None", _) => Self::default(),
            (_, None) => node.clone(),
            (_, Some(server)) => {
                let domain = cluster.domain;
                let namespace = pod::namespace(pod);
                let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
                node.searches.iter().for_each(|s| push_new(&mut searches, s.clone()));
                Self { servers: vec![server.to_string()], searches, options: vec!["ndots:5".into()] }
            }
        };
        if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
            config.nameservers.iter().flatten().for_each(|s| push_new(&mut resolver.servers, s.clone()));
            config.searches.iter().flatten().for_each(|s| push_new(&mut resolver.searches, s.clone()));
            for option in config.options.iter().flatten() {
                let Some(name) = &option.name else { continue };
                let value = option.value.as_deref().filter(|v| !v.is_empty()).map_or(String::new(), |v| format!(":{v}"));
                set_option(&mut resolver.options, format!("{name}{value}"));
            }
        }
        resolver.servers.truncate(MOST_SERVERS);
        resolver.searches.truncate(MOST_SEARCHES);
        while resolver.searches.join(" ").len() > LONGEST_SEARCH_LINE {
            resolver.searches.pop();
        }
        resolver
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

/// The host name of a pod, and the domain it is in (empty for none).
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod::spec(pod);
    let cut = |name: &str| name.chars().take(LONGEST_HOSTNAME).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    if let Some(name) = spec.and_then(|s| s.hostname_override.as_deref()) {
        return (cut(name), String::new());
    }
    let name = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty()).unwrap_or(pod::name(pod));
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let domain = subdomain.map_or(String::new(), |sub| format!("{sub}.{}.svc.{cluster_domain}", pod::namespace(pod)));
    (cut(name), domain)
}

/// The `/etc/hosts` of a pod with a network of its own.
pub fn hosts(ip: &str, hostname: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let own = if domain.is_empty() { format!("{ip}\t{hostname}\n") } else { format!("{ip}\t{hostname}.{domain}\t{hostname}\n") };
    let local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                 fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
    format!("# Kubernetes-managed hosts file.\n{local}{own}{}", alias_lines(aliases))
}

/// The `/etc/hosts` of a pod on the host's network.
pub fn host_network_hosts(of_node: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{of_node}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines = aliases.iter().map(|a| format!("{}\t{}\n", a.ip, a.hostnames.as_deref().unwrap_or_default().join("\t")));
    format!("\n# Entries added by HostAliases.\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, dns: bool, expected: &str) {
        let node = Resolver::parse("# a comment\nnameserver 8.8.8.8\nsearch example.com. corp.\noptions edns0 ndots:1\noptions ndots:2\n");
        let cluster = ClusterDns { server: dns.then(|| [10, 96, 0, 10].into()), domain: "cluster.local" };
        assert_eq!(Resolver::of_pod(&crate::testing::pod(spec), &node, &cluster).text(), expected);
    }

    #[test]
    fn policies() {
        let by_cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.com corp\nnameserver 10.96.0.10\noptions ndots:5\n";
        let by_node = "search example.com corp\nnameserver 8.8.8.8\noptions edns0 ndots:2\n";
        check(json!({"containers": []}), true, by_cluster);
        check(json!({"containers": []}), false, by_node);
        check(json!({"containers": [], "dnsPolicy": "Default"}), true, by_node);
        check(json!({"containers": [], "hostNetwork": true}), true, by_node);
        check(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), true, by_cluster);
        let config = json!({"nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "3"}, {"name": "rotate"}]});
        check(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config}), true, "search a.b\nnameserver 1.1.1.1\noptions ndots:3 rotate\n");
    }

    #[test]
    fn names() {
        let check = |spec: Value, expected: (&str, &str)| {
            let (name, domain) = hostname(&crate::testing::pod(spec), "cluster.local");
            assert_eq!((name.as_str(), domain.as_str()), expected);
        };
        check(json!({"containers": []}), ("p", ""));
        check(json!({"containers": [], "hostname": "web-0", "subdomain": "web"}), ("web-0", "web.ns.svc.cluster.local"));
        check(json!({"containers": [], "hostnameOverride": "other.name"}), ("other.name", ""));
        let long = format!("{}-tail", "x".repeat(62));
        check(json!({"containers": [], "hostnameOverride": long}), (&"x".repeat(62), ""));
    }

    #[test]
    fn hosts_files() {
        let aliases: Vec<HostAlias> = serde_json::from_value(json!([{"ip": "1.2.3.4", "hostnames": ["a", "b"]}])).expect("aliases");
        let text = hosts("10.244.0.2", "web-0", "web.ns.svc.cluster.local", &aliases);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("10.244.0.2\tweb-0.web.ns.svc.cluster.local\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
