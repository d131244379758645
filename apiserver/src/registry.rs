//! Which resources are served: the built-in ones, and those that definitions add at run time.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use skiff_api::custom::compare_versions;
use skiff_api::resource::{Resource, catalogue, is_built_in};

/// The resources served, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// In the order of discovery.
    pub ordered: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), Arc<Resource>>,
}

impl Served {
    fn new(ordered: Vec<Arc<Resource>>) -> Self {
        let key = |r: &Arc<Resource>| (r.group.to_string(), r.version.to_string(), r.plural.to_string());
        let by_path = ordered.iter().map(|r| (key(r), Arc::clone(r))).collect();
        Self { ordered, by_path }
    }

    /// The resource at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// Whether there is anything in the group and version.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.ordered.iter().any(|r| r.group == group && r.version == version)
    }

    /// Whether there is anything in the group.
    pub fn has_group(&self, group: &str) -> bool {
        self.ordered.iter().any(|r| r.group == group)
    }

    /// The groups in the order of discovery, each with its versions, the preferred one first. The core group is `""`.
    pub fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for resource in &self.ordered {
            let index = match groups.iter().position(|(group, _)| *group == resource.group) {
                Some(index) => index,
                None => {
                    groups.push((&resource.group, Vec::new()));
                    groups.len() - 1
                }
            };
            if !groups[index].1.contains(&resource.version.as_ref()) {
                groups[index].1.push(&resource.version);
            }
        }
        groups
    }
}

/// The resources served.
#[derive(Debug)]
pub struct Registry {
    served: RwLock<Arc<Served>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { served: RwLock::new(Arc::new(Served::new(catalogue().to_vec()))) }
    }
}

impl Registry {
    /// What is served now.
    pub fn now(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves these resources beside the built-in ones, and no others. Built-in ones stay what they are.
    pub fn serve_custom(&self, mut custom: Vec<Arc<Resource>>) {
        custom.retain(|r| !is_built_in(&r.group, &r.plural));
        custom.sort_by(|a, b| a.group.cmp(&b.group).then_with(|| compare_versions(&a.version, &b.version)).then_with(|| a.plural.cmp(&b.plural)));
        let served = Served::new(catalogue().iter().cloned().chain(custom).collect());
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
    }
}
