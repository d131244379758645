//! Dynamic resource allocation: device classes, claims and their templates, slices.

use serde_json::Value;

use super::check::{At, Errors, same};
use super::volume::csi_driver_name;
use super::{meta, scheduling};
use crate::cel::{SelectorFault, Semver};
use crate::field::{Error, ErrorType};
use crate::names;

/// The most requests of a claim, results of an allocation, constraints, configurations and selectors.
const MAX: usize = 32;
/// The most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;
/// The most devices of a slice, and of one that says more of them than attributes and capacity.
const MAX_DEVICES: (usize, usize) = (128, 64);
/// The longest parameters and expressions, in bytes.
const MAX_TEXT: usize = 10 * 1024;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const NOT_A_REQUEST: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Each item keeps the rule, and there aren't too many. `false` when there are.
pub(super) fn slice(e: &mut Errors, list: &At, max: usize, mut rule: impl FnMut(&mut Errors, &At)) -> bool {
    let fits = !e.too_many(list, max);
    list.items().filter(|_| fits).for_each(|item| rule(e, &item));
    fits
}

/// The same, and no two have the same name.
pub(super) fn set<'a>(e: &mut Errors, list: &At<'a>, max: usize, name: &str, rule: impl FnMut(&mut Errors, &At)) {
    if slice(e, list, max, rule) {
        let named = |item: At<'a>| if name.is_empty() { item } else { item.at(name).called(item.path) };
        e.unique(list.items().map(named));
    }
}

pub(super) fn template(e: &mut Errors, template: &At) {
    meta::annotations(e, &template.at("spec.metadata.annotations"));
    meta::labels(e, &template.at("spec.metadata.labels"));
    claim_spec(e, &template.at("spec.spec"));
}

pub(super) fn claim(e: &mut Errors, claim: &At) {
    claim_spec(e, &claim.at("spec"));
}

fn claim_spec(e: &mut Errors, spec: &At) {
    let devices = spec.at("devices");
    let references = |e: &mut Errors, list: &At| set(e, list, MAX, "", |e, name| request_reference(e, name, &devices));
    set(e, &devices.at("requests"), MAX, "name", request);
    slice(e, &devices.at("constraints"), MAX, |e, constraint| {
        references(e, &constraint.at("requests"));
        let (same, distinct) = (constraint.at("matchAttribute"), constraint.at("distinctAttribute"));
        match [same, distinct].into_iter().find(At::is_set) {
            Some(attribute) => {
                qualified(e, &attribute, attribute.str());
                if !attribute.str().contains('/') {
                    e.invalid(&attribute, "a fully qualified name must be a domain and a name separated by a slash");
                }
            }
            None => e.required(constraint, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
        }
    });
    slice(e, &devices.at("config"), MAX, |e, config| {
        references(e, &config.at("requests"));
        configuration(e, config);
    });
}

/// The name of one of the requests of `devices`, or of one of its alternatives.
pub(super) fn request_reference(e: &mut Errors, name: &At, devices: &At) {
    if name.str().matches('/').count() > 1 {
        return e.invalid(name, NOT_A_REQUEST);
    }
    name.str().split('/').for_each(|part| e.text_form(name, part, names::dns_label));
    let (request, alternative) = name.str().split_once('/').map_or((name.str(), None), |(request, rest)| (request, Some(rest)));
    let mut requests = devices.at("requests").items().filter(|r| r.at("name").str() == request);
    if !requests.any(|r| alternative.is_none_or(|wanted| r.at("firstAvailable").items().any(|sub| sub.at("name").str() == wanted))) {
        e.invalid_value(name, name.str(), NOT_A_REQUEST);
    }
}

fn request(e: &mut Errors, request: &At) {
    e.form(&request.at("name"), names::dns_label);
    let (exactly, alternatives) = (request.at("exactly"), request.at("firstAvailable"));
    match (exactly.is_set(), alternatives.is_empty()) {
        (false, true) => e.required(request, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, false) => e.invalid_value(request, Value::Null, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"),
        (true, true) => wanted(e, &exactly),
        (false, false) => set(e, &alternatives, MAX_ALTERNATIVES, "name", |e, alternative| {
            e.form(&alternative.at("name"), names::dns_label);
            wanted(e, alternative);
        }),
    }
}

/// What devices are wanted, and how many.
fn wanted(e: &mut Errors, request: &At) {
    e.required_form(&request.at("deviceClassName"), names::dns_subdomain);
    selectors(e, &request.at("selectors"));
    let (mode, count) = (request.at("allocationMode"), request.at("count"));
    match mode.str() {
        "All" if count.number() != 0 => e.invalid(&count, "must not be specified when allocationMode is 'All'"),
        "ExactCount" if count.number() <= 0 => e.invalid_value(&count, count.number(), "must be greater than zero"),
        "All" | "ExactCount" => {}
        other => e.push(Error::not_supported(&mode.path, other, &["All", "ExactCount"])),
    }
    for toleration in request.at("tolerations").items() {
        let (key, operator, value) = (toleration.at("key"), toleration.at("operator"), toleration.at("value"));
        e.optional_form(&key, names::qualified_name);
        match operator.str() {
            "Exists" if !value.is_empty() => e.invalid(&value, "must be empty for operator `Exists`"),
            "Equal" => e.form(&value, names::label_value),
            _ => e.one_of(&operator, &["Equal", "Exists"]),
        }
        if !toleration.at("effect").is_empty() {
            e.maybe_one_of(&toleration.at("effect"), &EFFECTS);
        }
    }
}

fn selectors(e: &mut Errors, list: &At) {
    slice(e, list, MAX, |e, selector| {
        let cel = selector.at("cel");
        if !cel.is_set() {
            return e.required(&cel, "");
        }
        let expression = cel.at("expression");
        if expression.str().len() > MAX_TEXT {
            return e.too_long(&expression, MAX_TEXT);
        }
        match crate::cel::selector(expression.str()) {
            Ok(_) => {}
            Err(SelectorFault::Invalid(why)) => e.invalid_value(&expression, expression.str(), why),
            Err(SelectorFault::Internal(why)) => e.push(Error { kind: ErrorType::Internal, path: expression.path, value: None, detail: why }),
            Err(SelectorFault::TooComplex) => e.forbidden(&expression, "too complex, exceeds cost limit"),
        }
    });
}

pub(super) fn configuration(e: &mut Errors, config: &At) {
    let opaque = config.at("opaque");
    if !opaque.is_set() {
        return e.required(&opaque, "");
    }
    csi_driver_name(e, &opaque.at("driver"));
    let parameters = opaque.at("parameters");
    if !parameters.is_set() {
        e.required(&parameters, "");
    } else if parameters.value.to_string().len() > MAX_TEXT {
        e.too_long(&parameters, MAX_TEXT);
    } else if !parameters.value.is_object() {
        e.invalid_value(&parameters, "<value omitted>", "must be a valid JSON object");
    }
}

pub(super) fn class(e: &mut Errors, class: &At) {
    selectors(e, &class.at("spec.selectors"));
    slice(e, &class.at("spec.config"), MAX, configuration);
    let extended = class.at("spec.extendedResourceName");
    let text = extended.str();
    let ours = !text.contains('/') || text.contains("kubernetes.io/") || text.starts_with("requests.");
    if extended.is_set() && (ours || !names::qualified_name(&format!("requests.{text}")).is_empty()) {
        e.invalid(&extended, "must be a valid extended resource name");
    }
}

pub(super) fn resource_slice(e: &mut Errors, object: &At) {
    slice_spec(e, &object.at("spec"), &Value::Null);
}

pub(super) fn resource_slice_update(e: &mut Errors, new: &At, old: &Value) {
    slice_spec(e, &new.at("spec"), &old["spec"]);
}

/// Which of the ways to say where devices are is taken; each must say something.
fn places(e: &mut Errors, at: &At, names: &[&str], nothing: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        let place = at.at(name);
        match place.value {
            Value::Null => continue,
            Value::Bool(false) => e.invalid(&place, "must be either unset or set to true"),
            Value::String(text) if text.is_empty() => e.invalid(&place, nothing),
            value => {
                found.push(format!("`{name}`"));
                match value {
                    Value::String(_) => e.form(&place, names::dns_subdomain),
                    Value::Object(_) => scheduling::node_selector(e, &place),
                    _ => {}
                }
            }
        }
    }
    found
}

/// The name of a pool of devices.
pub(super) fn pool_name(e: &mut Errors, name: &At) {
    if name.is_empty() {
        return e.required(name, "");
    }
    e.no_longer(name, 253);
    for part in name.str().split('/') {
        e.text_form(name, part, names::dns_subdomain);
    }
}

fn slice_spec(e: &mut Errors, spec: &At, old: &Value) {
    csi_driver_name(e, &spec.at("driver"));
    let pool = spec.at("pool");
    pool_name(e, &pool.at("name"));
    e.positive(&pool.at("resourceSliceCount"), "must be greater than zero");
    e.at_least(&pool.at("generation"), 0, "must be greater than or equal to zero");
    if !old.is_null() {
        e.unchanged(spec, old, &["pool.name", "driver", "nodeName"]);
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let ways = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let found = places(e, spec, &ways, "must be either unset or set to a non-empty string");
    let terms = spec.at("nodeSelector.nodeSelectorTerms");
    if spec.at("nodeSelector").is_set() && terms.len() != 1 {
        e.invalid(&terms, "must have exactly one node selector term");
    }
    match found.len() {
        0 => e.required(spec, ONE),
        1 => {}
        _ => e.invalid_value(spec, format!("{{{}}}", found.join(", ")), format!("{ONE}, but multiple fields are set")),
    }
    let devices = spec.at("devices");
    if spec.at("sharedCounters").is_set() && devices.is_set() {
        e.invalid_value(spec, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = devices.items().any(|d| !d.at("taints").is_empty() || !d.at("consumesCounters").is_empty());
    let most = if advanced { MAX_DEVICES.1 } else { MAX_DEVICES.0 };
    let per_device = spec.at("perDeviceNodeSelection").flag();
    set(e, &devices, most, "name", |e, at| {
        let before = old["devices"].as_array().into_iter().flatten().find(|d| d["name"] == *at.at("name").value);
        device(e, at, before, per_device);
    });
    set(e, &spec.at("sharedCounters"), 8, "name", |e, counters| {
        e.required_form(&counters.at("name"), names::dns_label);
        self::counters(e, &counters.at("counters"));
    });
}

fn counters(e: &mut Errors, counters: &At) {
    if counters.is_empty() {
        return e.required(counters, "");
    }
    if e.too_many(counters, MAX) {
        return;
    }
    for (key, _) in counters.entries() {
        e.text_form(counters, key, names::dns_label);
    }
}

fn device(e: &mut Errors, device: &At, old: Option<&Value>, per_device: bool) {
    e.form(&device.at("name"), names::dns_label);
    let (attributes, capacity) = (device.at("attributes"), device.at("capacity"));
    let count = attributes.len() + capacity.len();
    if count > MAX {
        e.invalid_value(device, count, format!("the total number of attributes and capacities must not exceed {MAX}"));
    }
    for (key, attribute) in attributes.entries() {
        qualified(e, &attributes, key);
        let given: Vec<At> = ["bool", "int", "string", "version"].iter().map(|kind| attribute.at(kind)).filter(At::is_set).collect();
        for value in given.iter().filter(|v| v.str().len() > 64) {
            e.too_long(value, 64);
        }
        let version = attribute.at("version");
        if version.is_set() && Semver::parse(version.str()).is_err() {
            e.invalid(&version, "must be a string compatible with semver.org spec 2.0.0");
        }
        match given.len() {
            0 => e.invalid_value(&attribute, "", "exactly one value must be specified"),
            1 => {}
            _ => e.invalid(&attribute, "exactly one value must be specified"),
        }
    }
    for (key, amount) in capacity.entries() {
        qualified(e, &capacity, key);
        if amount.at("requestPolicy").is_set() && !device.at("allowMultipleAllocations").flag() {
            e.forbidden(&amount.at("requestPolicy"), "allowMultipleAllocations must be true");
        }
    }
    if old.is_none_or(|old| !same(&old["taints"], device.at("taints").value)) {
        slice(e, &device.at("taints"), 16, |e, taint| {
            e.form(&taint.at("key"), names::qualified_name);
            e.optional_form(&taint.at("value"), names::label_value);
            e.one_of(&taint.at("effect"), &EFFECTS);
        });
    }
    set(e, &device.at("consumesCounters"), 2, "counterSet", |e, consumed| {
        e.required_form(&consumed.at("counterSet"), names::dns_label);
        counters(e, &consumed.at("counters"));
    });
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    const NONE: &str = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let ways = ["nodeName", "nodeSelector", "allNodes"];
    if per_device {
        let found = places(e, device, &ways, "must not be empty");
        match found.len() {
            0 => e.required(device, ONE),
            1 => {}
            _ => e.invalid_value(device, format!("{{{}}}", found.join(", ")), ONE),
        }
    } else if ways.iter().any(|way| device.at(way).is_set()) {
        e.invalid_value(device, Value::Null, NONE);
    }
    conditions(e, device);
}

/// The conditions that a binding waits for, and those that end it.
pub(super) fn conditions(e: &mut Errors, device: &At) {
    let (good, bad) = (device.at("bindingConditions"), device.at("bindingFailureConditions"));
    for list in [&good, &bad] {
        slice(e, list, 4, |e, name| e.form(name, names::qualified_name));
    }
    e.unique(good.items());
    e.unique(bad.items());
    for name in bad.items().filter(|name| good.texts().contains(&name.str())) {
        e.invalid(&name, "bindingFailureConditions must not overlap with bindingConditions");
    }
    if good.is_empty() && !bad.is_empty() {
        e.invalid(&good, "bindingConditions are required to use bindingFailureConditions");
    }
    if bad.is_empty() && !good.is_empty() {
        e.invalid(&bad, "bindingFailureConditions are required to use bindingConditions");
    }
}

/// A C identifier, perhaps after the domain of a driver.
fn qualified(e: &mut Errors, at: &At, name: &str) {
    let identifier = |e: &mut Errors, part: &str| {
        if part.len() > 32 {
            e.too_long(at, 32);
        }
        e.text_form(at, part, names::c_identifier);
    };
    match name.split('/').collect::<Vec<_>>()[..] {
        [part] => identifier(e, part),
        [domain, part] => {
            if domain.is_empty() {
                e.invalid_value(at, "", "the domain must not be empty");
            } else {
                csi_driver_name(e, &At::root(&domain.into()).called(&at.path));
            }
            if part.is_empty() {
                e.invalid_value(at, "", "the name must not be empty");
            } else {
                identifier(e, part);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors of a selector are those of upstream's 1.36.
    #[test]
    fn selectors_are_compiled() {
        let check = |expression: &str, expected: &[&str]| {
            let list = serde_json::json!([{"cel": {"expression": expression}}]);
            let mut e = Errors::default();
            selectors(&mut e, &At::root(&list).called("s"));
            let shown: Vec<String> = e.0.iter().map(|error| error.to_string().replace("s[0].cel.expression: ", "")).collect();
            assert_eq!(shown, expected, "{expression}");
        };
        check("device.driver == 'a' && device.attributes['a'].b", &[]);
        check("cel.bind(a, device.attributes['a'], a.b || a.c > 5)", &[]);
        check("device.capacity['a'].b.compareTo(quantity('1Gi')) >= 0", &[]);
        check("device.attributes['a'].b in ['x'] || device.attributes.all(a, device.attributes[a].all(b, b.contains(a)))", &[]);
        check("device.attributes.all(a, device.attributes[a].all(b, device.attributes.all(c, device.attributes[c].all(d, true))))", &["Forbidden: too complex, exceeds cost limit"]);
        check("device.attributes['a']", &["Invalid value: \"device.attributes['a']\": must evaluate to bool or the unknown type, not map(string, google.protobuf.Any)"]);
        check("device.foo", &["Invalid value: \"device.foo\": compilation failed: ERROR: <input>:1:7: undefined field 'foo'\n | device.foo\n | ......^"]);
        check("device.attributes['a'].b.all(x, x)", &["Invalid value: \"device.attributes['a'].b.all(x, x)\": compilation failed: ERROR: <input>:1:23: expression of type 'any' cannot be range of a comprehension (must be list, map, or dynamic)\n | device.attributes['a'].b.all(x, x)\n | ......................^"]);
        check("'a'.find('(') == 'a'", &["Internal error: program instantiation failed: error parsing regexp: missing closing ): `(`"]);
    }

    #[test]
    fn semantic_versions() {
        for (text, expected) in [("1.2.3", true), ("1.2", false), ("01.2.3", false), ("1.2.3-rc.1+b.01", true), ("1.2.3-01", false), ("1.2.3-", false)] {
            assert_eq!(Semver::parse(text).is_ok(), expected, "{text}");
        }
    }
}
