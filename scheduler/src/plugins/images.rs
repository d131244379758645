//! ImageLocality: nodes that hold the pod's images already.

use super::{Cycle, MAX_SCORE, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;

/// Below this sum of sizes images don't matter, in bytes.
const LEAST: i64 = 23 << 20;
/// Above this size, for each container, more doesn't matter, in bytes.
const MOST: i64 = 1000 << 20;

/// The plugin.
pub struct ImageLocality;

struct Images<'a> {
    pod: &'a PodFacts,
    cluster: &'a Cluster,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        let known = pod.images.iter().any(|image| cluster.image_spread(image) > 0);
        Ok(if known { Some(Box::new(Images { pod, cluster })) } else { None })
    }
}

impl Cycle for Images<'_> {
    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let total = self.cluster.present().len().max(1) as f64;
        let score = |node: &&NodeInfo| {
            let held = self.pod.images.iter().filter_map(|image| {
                let size = *node.facts.as_deref()?.images.get(image)?;
                // An image that few nodes hold counts for less, or all pods with it would crowd there.
                Some((size as f64 * (self.cluster.image_spread(image) as f64 / total)) as i64)
            });
            let most = MOST * self.pod.images.len() as i64;
            let sum = held.sum::<i64>().clamp(LEAST, most);
            MAX_SCORE * (sum - LEAST) / (most - LEAST)
        };
        Some(nodes.iter().map(score).collect())
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Images { pod: self.pod, cluster: self.cluster })
    }
}
