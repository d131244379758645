//! NodePorts: host ports that are free on the node.

use super::{Cycle, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::{HostPort, PodFacts};

/// The plugin.
pub struct NodePorts;

struct Ports<'a>(&'a [HostPort]);

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let everywhere = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || everywhere(&a.ip) || everywhere(&b.ip))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        Ok(if pod.host_ports.is_empty() { None } else { Some(Box::new(Ports(&pod.host_ports))) })
    }
}

impl Cycle for Ports<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match self.0.iter().any(|wanted| node.ports.iter().any(|taken| clash(wanted, taken))) {
            true => Err(Reject::while_others_run(
                "NodePorts",
                "node(s) didn't have free ports for the requested pod ports",
            )),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Ports(self.0))
    }
}
