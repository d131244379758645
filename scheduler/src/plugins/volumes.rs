//! VolumeBinding: claims that are there and bound, and volumes that a node can reach.

use super::{Cycle, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;
use crate::volumes::VolumeFacts;

const NAME: &str = "VolumeBinding";

/// The plugin. Binding claims to volumes is others' work; a pod waits until it is done.
pub struct VolumeBinding;

struct Volumes<'a> {
    /// The volumes that the claims are bound to; none for one that isn't there.
    bound: Vec<Option<&'a VolumeFacts>>,
    /// Whether a claim waits for its first pod, and there is no volume to be had.
    unbound: bool,
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        if pod.claims.is_empty() {
            return Ok(None);
        }
        let mut volumes = Volumes { bound: Vec::new(), unbound: false };
        let mut immediate = false;
        for claim in &pod.claims {
            let Some(facts) = cluster.volumes.claim(&pod.namespace, &claim.name) else {
                let why = if claim.ephemeral {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}", claim.name)
                } else {
                    format!("persistentvolumeclaim {:?} not found", claim.name)
                };
                return Err(Reject::always(NAME, why));
            };
            if facts.terminating {
                return Err(Reject::always(NAME, format!("persistentvolumeclaim {:?} is being deleted", claim.name)));
            }
            if facts.bound {
                volumes.bound.push(cluster.volumes.volume(&facts.volume));
            } else if cluster.volumes.waits_for_pod(&facts.class) {
                volumes.unbound = true;
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err(Reject::always(NAME, "pod has unbound immediate PersistentVolumeClaims"));
        }
        Ok(Some(Box::new(volumes)))
    }
}

impl Cycle for Volumes<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(facts) = node.facts.as_deref() else { return Ok(()) };
        for volume in &self.bound {
            match volume {
                None => {
                    let why = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                    return Err(Reject::always(NAME, why));
                }
                Some(volume) if !volume.reachable_from(facts) => {
                    return Err(Reject::always(NAME, "node(s) didn't match PersistentVolume's node affinity"));
                }
                Some(_) => {}
            }
        }
        if self.unbound {
            return Err(Reject::always(NAME, "node(s) didn't find available persistent volumes to bind"));
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Volumes { bound: self.bound.clone(), unbound: self.unbound })
    }
}
