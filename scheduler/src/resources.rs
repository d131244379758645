//! Amounts of resources: what pods ask for and nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource. CPU is in thousandths of a core, everything else in units (bytes, devices, pods).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of ephemeral storage.
    pub storage: i64,
    /// Number of pods; only a node's allocatable has it.
    pub pods: i64,
    /// Extended resources and huge pages.
    pub scalars: BTreeMap<Box<str>, i64>,
}

/// What a container that asks for no CPU counts for in scoring, in thousandths of a core; upstream's figure.
const DEFAULT_CPU: i64 = 100;
/// What a container that asks for no memory counts for in scoring, in bytes; upstream's figure.
const DEFAULT_MEMORY: i64 = 200 << 20;

impl Resources {
    /// Reads a resource list, of a node's allocatable or a container's requests.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            // What can't be read counts as nothing: the API server refuses such objects.
            let amount = skiff_api::Quantity::parse(&quantity.0).unwrap_or_default();
            *resources.slot(name) = if name == "cpu" { amount.milli_value() } else { amount.value() };
        }
        resources
    }

    /// The amount of the resource `name`.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.storage,
            "pods" => self.pods,
            _ => self.scalars.get(name).copied().unwrap_or(0),
        }
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.storage,
            "pods" => &mut self.pods,
            _ => self.scalars.entry(name.into()).or_default(),
        }
    }

    fn join(&mut self, other: &Self, merge: impl Fn(i64, i64) -> i64) {
        self.cpu = merge(self.cpu, other.cpu);
        self.memory = merge(self.memory, other.memory);
        self.storage = merge(self.storage, other.storage);
        for (name, &amount) in &other.scalars {
            let slot = self.slot(name);
            *slot = merge(*slot, amount);
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.join(other, i64::saturating_add);
    }

    /// Takes `other` away.
    pub fn subtract(&mut self, other: &Self) {
        self.join(other, i64::saturating_sub);
    }

    fn at_least(&mut self, other: &Self) {
        self.join(other, i64::max);
    }
}

/// What a pod asks for in all: the larger of what its containers need together and what its init containers need one
/// after the other (beside the sidecars started before them), or what the pod itself says, plus the overhead.
///
/// With `floor`, containers count for at least upstream's default amounts of CPU and memory, as scoring has it.
pub fn requests(pod: &Pod, floor: bool) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let of = |container: &Container| {
        let mut wanted = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref())
            .map(Resources::from_list)
            .unwrap_or_default();
        // While a resize is under way the node holds the larger of the two.
        if let Some(held) = statuses.iter().find(|s| s.name == container.name).and_then(|s| s.allocated_resources.as_ref()) {
            wanted.at_least(&Resources::from_list(held));
        }
        if floor {
            if wanted.cpu == 0 {
                wanted.cpu = DEFAULT_CPU;
            }
            if wanted.memory == 0 {
                wanted.memory = DEFAULT_MEMORY;
            }
        }
        wanted
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let mut here = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&here);
            sidecars.add(&here);
            here = sidecars.clone();
        } else {
            here.add(&sidecars);
        }
        peak.at_least(&here);
    }
    total.at_least(&peak);
    if let Some(own) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let amounts = Resources::from_list(own);
        for name in own.keys() {
            *total.slot(name) = amounts.get(name);
        }
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(overhead));
    }
    total
}
