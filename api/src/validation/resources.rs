//! Amounts of resources: which names there are, which amounts they take.

use super::check::{At, Errors};
use crate::names;
use crate::quantity::Quantity;

/// The resources of a container.
const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// The resources that are counted, not measured.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Without a domain, or with upstream's.
pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more may be promised than there is.
pub(super) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn is_standard_of_container(name: &str) -> bool {
    CONTAINER.contains(&name) || is_huge_page(name)
}

/// Whether it is a resource that a quota can limit.
pub(super) fn is_standard_of_quota(name: &str) -> bool {
    let plain = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    COUNTED.contains(&name) || CONTAINER.contains(&plain) || name == "requests.storage" || is_huge_page(name.strip_prefix("requests.").unwrap_or(name))
}

/// A resource's name, of any kind. `at` is its entry.
pub(super) fn any_name(e: &mut Errors, at: &At, name: &str) {
    let before = e.0.len();
    e.text_form(at, name, names::qualified_name);
    if !e.has_since(before) && !name.contains('/') && !is_standard_of_quota(name) && name != "storage" {
        e.invalid_value(at, name, "must be a standard resource type or fully qualified");
    }
}

pub(super) fn container_name(e: &mut Errors, at: &At, name: &str) {
    any_name(e, at, name);
    if !name.contains('/') {
        if !is_standard_of_container(name) {
            e.invalid_value(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        e.invalid_value(at, name, "doesn't follow extended resource name standard");
    }
}

pub(super) fn pod_name(e: &mut Errors, at: &At, name: &str) {
    let before = e.0.len();
    any_name(e, at, name);
    if !e.has_since(before) && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        e.push(crate::field::Error::not_supported(&at.path, name, &["cpu", "memory"]));
    }
}

pub(super) fn quota_name(e: &mut Errors, at: &At, name: &str) {
    any_name(e, at, name);
    if !name.contains('/') && !is_standard_of_quota(name) {
        e.invalid_value(at, name, "must be a standard resource for quota");
    }
}

/// An amount: not negative, and whole where the resource is counted.
pub(super) fn amount(e: &mut Errors, at: &At, name: &str) {
    e.non_negative_quantity(at);
    if (COUNTED.contains(&name) || is_extended(name)) && at.quantity().is_some_and(|q| q.milli_value() % 1000 != 0) {
        e.invalid(at, "must be an integer");
    }
}

/// Whether the amount is a whole number of the pages that the name tells the size of.
fn is_whole_pages(name: &str, amount: Quantity) -> bool {
    let size = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok()).map_or(0, Quantity::value);
    size > 0 && amount.value() % size == 0
}

/// Requests and limits of a container, or of a pod as a whole.
pub(super) fn requirements(e: &mut Errors, at: &At, name_rule: fn(&mut Errors, &At, &str), claims: &[&str]) {
    let (limits, requests) = (at.at("limits"), at.at("requests"));
    let mut named = Vec::new();
    for (list, is_request) in [(&limits, false), (&requests, true)] {
        for (name, entry) in list.entries() {
            named.push(name);
            name_rule(e, &entry, name);
            amount(e, &entry, name);
            let Some(quantity) = entry.quantity() else { continue };
            let limit = limits.key(name);
            if is_request {
                let limit_text = limit.str();
                match limit.quantity() {
                    Some(limit) if quantity != limit && !may_overcommit(name) => {
                        e.invalid_value(list, entry.str(), format!("must be equal to {name} limit of {limit_text}"));
                    }
                    Some(limit) if quantity > limit => {
                        e.invalid_value(list, entry.str(), format!("must be less than or equal to {name} limit of {limit_text}"));
                    }
                    None if !may_overcommit(name) => e.required(&limits, "Limit must be set for non overcommitable resources"),
                    _ => {}
                }
            }
            if is_huge_page(name) && !is_whole_pages(name, quantity) {
                e.invalid(&entry, format!("{} is not positive integer multiple of {name}", entry.str()));
            }
        }
    }
    if named.iter().any(|n| is_huge_page(n)) && !named.iter().any(|n| matches!(*n, "cpu" | "memory")) {
        e.forbidden(at, "HugePages require cpu or memory");
    }
    for claim in at.at("claims").items() {
        let name = claim.at("name").str();
        if name.is_empty() {
            e.required(&claim, "");
        } else if !claims.contains(&name) {
            let list = if claims.is_empty() { " which is empty".to_owned() } else { format!(": {}", claims.join(", ")) };
            let detail = format!("must be one of the names in pod.spec.resourceClaims{list}");
            e.push(crate::field::Error { detail, ..crate::field::Error::not_found(&claim.path, name) });
        }
    }
    e.unique(at.at("claims").items().map(|c| c.at("name").called(c.path)));
}
