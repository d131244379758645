//! What a kubelet is told when it starts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

/// The configuration of one node's agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the node's object, and of this kubelet.
    pub node_name: String,
    /// Which cluster's containers are ours: the value of the label that all of them carry.
    pub cluster_name: String,
    /// Where volumes and logs of the pods live. A directory of its own for each node.
    pub data_dir: PathBuf,
    /// The range of the node's pods, `10.244.1.0/24`. Without it, the node's `spec.podCIDR` is waited for.
    pub pod_cidr: Option<String>,
    /// The range of all the cluster's pods, `10.244.0.0/16`.
    pub cluster_cidr: String,
    /// The address of the cluster's DNS service; without one, pods get the node's resolver.
    pub cluster_dns: Option<IpAddr>,
    /// The domain of the cluster's names.
    pub cluster_domain: String,
    /// The address of the node.
    pub node_ip: IpAddr,
    /// Where the kubelet's HTTPS server listens; `None` when it is only served in process.
    pub listen: Option<Listen>,
    /// What the node reports as its version: `v1.36.2+skiff.0.1.0`.
    pub kube_version: String,
    /// Labels that the node registers with, beside the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    /// How many pods the node takes.
    pub max_pods: u32,
    /// The file that pods' `resolv.conf` is derived from.
    pub resolv_conf: PathBuf,
    /// Registers the node's object; otherwise somebody else does.
    pub register_node: bool,
}

impl Config {
    /// The configuration of a node that differs from the defaults in nothing but the essentials.
    pub fn new(node_name: impl Into<String>, cluster_name: impl Into<String>, data_dir: impl Into<PathBuf>, node_ip: IpAddr) -> Self {
        Self {
            node_name: node_name.into(),
            cluster_name: cluster_name.into(),
            data_dir: data_dir.into(),
            pod_cidr: None,
            cluster_cidr: "10.244.0.0/16".into(),
            cluster_dns: None,
            cluster_domain: "cluster.local".into(),
            node_ip,
            listen: None,
            kube_version: concat!("v1.36.2+skiff.", env!("CARGO_PKG_VERSION")).into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            max_pods: 110,
            resolv_conf: "/etc/resolv.conf".into(),
            register_node: true,
        }
    }
}

/// Where and how the kubelet's own server listens.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The address and port; upstream's port is 10250. Port 0, or one that is taken, gives a free one. The node reports which.
    pub address: SocketAddr,
    /// The certificate to show and the client certificates to ask for. Requests are authorized by what the
    /// client certificate says, so the verifier has to demand one that the cluster's authority signed.
    pub tls: Arc<rustls::ServerConfig>,
}
