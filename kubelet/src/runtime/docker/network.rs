//! The network of a cluster's pods: one bridge, flat, no translation between pods.

use std::path::PathBuf;

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};

use super::super::{Error, Result};
use super::{failed, names};
use crate::network::Range;

/// Makes the network unless it is there.
pub async fn ensure(docker: &Docker, cluster: &str, cidr: &str) -> Result<()> {
    let name = names::network_name(cluster);
    let range = Range::parse(cidr).map_err(|e| Error::Failed(e.to_string()))?;
    match docker.inspect_network(&name, None).await.map_err(failed) {
        Ok(found) => {
            let subnets: Vec<_> = found.ipam.and_then(|i| i.config).unwrap_or_default().into_iter().filter_map(|c| c.subnet).collect();
            if subnets.contains(&range.to_string()) {
                return Ok(());
            }
            let subnets = subnets.join(", ");
            return Err(Error::Failed(format!("Docker's network {name} has the range {subnets}, not {range}: remove it, or use its range")));
        }
        Err(Error::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    let option = |key: &str, value: &str| (format!("com.docker.network.bridge.{key}"), value.to_owned());
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".into()),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(range.to_string()),
                gateway: Some(range.nth(1).to_string()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        }),
        // Masquerading concerns what leaves the bridge; between pods addresses stay.
        options: Some([option("name", &name), option("enable_icc", "true"), option("enable_ip_masquerade", "true")].into()),
        labels: Some([(names::CLUSTER.to_owned(), cluster.to_owned())].into()),
        ..NetworkCreateRequest::default()
    };
    match docker.create_network(request).await.map_err(failed) {
        Ok(_) => Ok(()),
        // Another node of this machine was quicker.
        Err(Error::Failed(why)) if why.contains("already exists") => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets the bridge send a packet back where it came from, so that a pod can reach itself through its Service.
pub fn allow_hairpins(cluster: &str) {
    let ports = PathBuf::from(format!("/sys/class/net/{}/brif", names::network_name(cluster)));
    for port in std::fs::read_dir(&ports).into_iter().flatten().flatten() {
        let file = port.path().join("hairpin_mode");
        let off = std::fs::read_to_string(&file).is_ok_and(|mode| mode.trim() == "0");
        if off && let Err(error) = std::fs::write(&file, "1") {
            tracing::debug!(file = %file.display(), %error, "a pod may not reach itself through a service");
        }
    }
}
