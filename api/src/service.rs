//! What is true of Services.

use serde_json::{Value, json};

use crate::value::{items, object_mut, text};

/// Keeps `clusterIP` and `clusterIPs` in step where a client spoke of one alone, as upstream does before it validates.
pub fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let ip = text(new, &["spec", "clusterIP"]).to_owned();
    let mut ips = items(new, &["spec", "clusterIPs"]).to_vec();
    let Some(old) = old else {
        if !ip.is_empty() && ips.is_empty() {
            object_mut(new, &["spec"]).insert("clusterIPs".into(), json!([ip]));
        }
        return;
    };
    let (old_ip, old_ips) = (text(old, &["spec", "clusterIP"]), items(old, &["spec", "clusterIPs"]));
    if ip == old_ip && ips.is_empty() {
        ips = old_ips.to_vec();
    } else if ip != old_ip && ips == old_ips {
        ips = if ip.is_empty() { Vec::new() } else { vec![ip.into()] };
    } else {
        return;
    }
    let spec = object_mut(new, &["spec"]);
    match ips.is_empty() {
        true => spec.remove("clusterIPs"),
        false => spec.insert("clusterIPs".into(), ips.into()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(new: Value, old: Option<Value>, expected: Value) {
        let mut service = json!({"spec": new});
        normalize_cluster_ips(&mut service, old.map(|spec| json!({"spec": spec})).as_ref());
        assert_eq!(service["spec"], expected);
    }

    #[test]
    fn one_follows_the_other() {
        check(json!({"clusterIP": "None"}), None, json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        check(json!({}), None, json!({}));
        let old = || Some(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}));
        check(json!({"clusterIPs": ["10.0.0.1"]}), old(), json!({}));
        check(json!({"clusterIP": "10.0.0.1"}), old(), json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}));
        check(json!({"clusterIP": "10.0.0.2"}), old(), json!({"clusterIP": "10.0.0.2"}));
        check(json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.1"]}), old(), json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}));
        check(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}), old(), json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}));
    }
}
