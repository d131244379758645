//! The status of a resource claim: which devices it was given, what their drivers say of them, and who uses them.

use serde_json::Value;

use super::address;
use super::check::{At, Errors, same};
use super::devices::{conditions as binding_conditions, configuration, pool_name, request_reference, set, slice};
use super::volume::csi_driver_name;
use super::{meta, scheduling};
use crate::field::Error;
use crate::names;

/// The most users of a claim, conditions of a device and addresses of a network device.
const MAX_USERS: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_ADDRESSES: usize = 16;
/// The longest data of a device, in bytes.
const MAX_DATA: usize = 10 * 1024;

fn uid(e: &mut Errors, at: &At) {
    let text = at.str();
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b == b'-';
    if at.is_set() && !(text.len() == 36 && text.bytes().all(lower)) {
        e.invalid(at, "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
    }
}

/// What makes a device the one that it is.
fn id<'a>(device: &At<'a>) -> [&'a Value; 4] {
    ["driver", "pool", "device", "shareID"].map(|field| device.at(field).value)
}

pub(super) fn update(e: &mut Errors, new: &At, old: &Value) {
    let (status, was) = (new.at("status"), At::root(old).at("status"));
    let (users, allocation) = (status.at("reservedFor"), status.at("allocation"));
    set(e, &users, MAX_USERS, "uid", |e, user| ["resource", "name", "uid"].iter().for_each(|field| e.filled(&user.at(field))));
    let results = allocation.at("devices.results");
    let devices = status.at("devices");
    for (i, at) in devices.items().enumerate() {
        device(e, &at, results.items().any(|given| id(&given) == id(&at)));
        if devices.items().take(i).any(|other| id(&other) == id(&at)) {
            e.duplicate(&at);
        }
    }
    if !users.is_empty() && !allocation.is_set() {
        e.forbidden(&users, "may not be specified when `allocated` is not set");
    } else if new.at("metadata.deletionTimestamp").is_set() && users.items().any(|user| !was.at("reservedFor").items().any(|old| same(old.value, user.value))) {
        e.forbidden(&users, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set");
    }
    if allocation.is_set() && was.at("allocation").is_set() {
        e.unchanged(&status, was.value, &["allocation"]);
    } else if allocation.is_set() {
        allocated(e, &allocation, &new.at("spec.devices"));
    }
}

fn allocated(e: &mut Errors, allocation: &At, wanted: &At) {
    slice(e, &allocation.at("devices.results"), 32, |e, result| {
        request_reference(e, &result.at("request"), wanted);
        csi_driver_name(e, &result.at("driver"));
        pool_name(e, &result.at("pool"));
        e.form(&result.at("device"), names::dns_label);
        binding_conditions(e, result);
        uid(e, &result.at("shareID"));
    });
    slice(e, &allocation.at("devices.config"), 64, |e, config| {
        e.one_of(&config.at("source"), &["FromClaim", "FromClass"]);
        set(e, &config.at("requests"), 32, "", |e, name| request_reference(e, name, wanted));
        configuration(e, config);
    });
    if allocation.at("nodeSelector").is_set() {
        scheduling::node_selector(e, &allocation.at("nodeSelector"));
    }
}

/// What a driver says of a device, which the claim must have been given.
fn device(e: &mut Errors, device: &At, given: bool) {
    csi_driver_name(e, &device.at("driver"));
    pool_name(e, &device.at("pool"));
    e.form(&device.at("device"), names::dns_label);
    uid(e, &device.at("shareID"));
    if !given {
        let parts = [("Driver", "driver"), ("Pool", "pool"), ("Device", "device"), ("ShareID", "shareID")];
        let parts: Vec<String> = parts.iter().map(|(name, field)| format!("{name:?}:{}", Value::from(device.at(field).str()))).collect();
        e.push(Error { value: Some(format!("{{{}}}", parts.join(","))), ..Error::invalid(&device.path, Value::Null, "must be an allocated device in the claim") });
    }
    let conditions = device.at("conditions");
    e.too_many(&conditions, MAX_CONDITIONS);
    meta::conditions(e, &conditions);
    let data = device.at("data");
    if data.is_set() && data.value.to_string().len() > MAX_DATA {
        e.too_long(&data, MAX_DATA);
    } else if data.is_set() && !data.value.is_object() {
        e.invalid_value(&data, "<value omitted>", "must be a valid JSON object");
    }
    let network = device.at("networkData");
    for (field, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if network.at(field).str().len() > max {
            e.too_long(&network.at(field), max);
        }
    }
    set(e, &network.at("ips"), MAX_ADDRESSES, "", |e, at| {
        let (ip, bits) = at.str().split_once('/').unwrap_or((at.str(), ""));
        match (address::parse(ip), address::parse_range(at.str())) {
            (Some(ip), Some((_, length))) if format!("{ip}/{length}") != at.str() => e.invalid(at, format!("must be in canonical form (\"{ip}/{length}\")")),
            (Some(_), Some(_)) if !bits.is_empty() => {}
            _ => e.invalid(at, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"),
        }
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_those_of_the_allocation() {
        let check = |status: Value, expected: &[&str]| {
            let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r"}]}}, "status": status});
            let mut e = Errors::default();
            update(&mut e, &At::root(&claim), &json!({"metadata": {"name": "c"}}));
            assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{claim}");
        };
        let given = json!({"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "x"}]}});
        let named = json!([{"driver": "d.io", "pool": "p", "device": "x", "networkData": {"ips": ["10.0.0.1/8"]}}]);
        check(json!({"allocation": given, "devices": named}), &[]);
        check(json!({"devices": named}), &[r#"status.devices[0]: Invalid value: {"Driver":"d.io","Pool":"p","Device":"x","ShareID":""}: must be an allocated device in the claim"#]);
        check(json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}), &["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]);
    }
}
