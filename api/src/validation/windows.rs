//! What a pod says for Windows.

use serde_json::Value;

use super::check::{At, Errors};
use crate::names;

/// The longest parts of a user's name, in bytes.
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;
/// The longest credential spec, in KiB.
const MAX_SPEC: usize = 64;

/// The options of a security context.
pub(super) fn options(e: &mut Errors, at: &At) {
    let (name, spec, user) = (at.at("gmsaCredentialSpecName"), at.at("gmsaCredentialSpec"), at.at("runAsUserName"));
    e.given_form(&name, names::dns_subdomain);
    match spec.value.as_str().map(str::len) {
        Some(0) => e.invalid(&spec, "gmsaCredentialSpec cannot be an empty string"),
        Some(len) if len > MAX_SPEC * 1024 => e.invalid(&spec, format!("gmsaCredentialSpec size must be under {MAX_SPEC} KiB")),
        _ => {}
    }
    if let Some(text) = user.value.as_str() {
        user_name(text).into_iter().for_each(|fault| e.invalid(&user, format!("runAsUserName{fault}")));
    }
}

/// What is wrong with `DOMAIN\user` or `user`.
fn user_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec![" cannot be an empty string".into()];
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return vec![" cannot contain control characters".into()];
    }
    let (domain, user) = text.split_once('\\').map_or((None, text), |(domain, user)| (Some(domain), user));
    if user.contains('\\') {
        return vec![" cannot contain more than one backslash".into()];
    }
    let mut faults = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            faults.push(format!("'s Domain length must be under {MAX_DOMAIN} characters"));
        }
        let net_bios = (1..=15).contains(&domain.chars().count()) && !domain.starts_with('.') && !domain.contains(['/', ':', '*', '?', '"', '<', '>', '|']);
        if !net_bios && !domain.split('.').all(|label| names::dns_label(&label.to_lowercase()).is_empty()) {
            faults.push("'s Domain doesn't match the NetBios nor the DNS format".into());
        }
    }
    if user.is_empty() {
        faults.push("'s User cannot be empty".into());
    } else if user.len() > MAX_USER {
        faults.push(format!("'s User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        faults.push("'s User cannot contain only periods or spaces".into());
    }
    if user.contains(['"', '/', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        faults.push("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into());
    }
    faults
}

/// All containers are processes of the host, or none is.
pub(super) fn host_process(e: &mut Errors, spec: &At) {
    const ASKED: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = spec.at(ASKED).value.as_bool();
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let containers: Vec<At> = lists.iter().flat_map(|list| spec.at(list).items()).map(|container| container.at(ASKED)).collect();
    for (own, pod) in containers.iter().filter_map(|own| Some((own, of_pod?))) {
        if own.value.as_bool().is_some_and(|own| own != pod) {
            e.invalid(own, format!("pod hostProcess value must be identical if both are specified, was {pod}"));
        }
    }
    let of_host = containers.iter().filter(|own| own.value.as_bool().or(of_pod) == Some(true)).count();
    if of_host == 0 {
        return;
    }
    if of_host != containers.len() {
        e.invalid_value(spec, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
    }
    if spec.at("hostNetwork").value != &Value::Bool(true) {
        e.invalid_value(&spec.at("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        for (name, expected) in [
            ("user", &[][..]),
            ("DOMAIN\\user", &[]),
            ("", &[" cannot be an empty string"]),
            ("a\\b\\c", &[" cannot contain more than one backslash"]),
            (".d\\u", &["'s Domain doesn't match the NetBios nor the DNS format"]),
            ("d\\", &["'s User cannot be empty"]),
            (". .", &["'s User cannot contain only periods or spaces"]),
        ] {
            assert_eq!(user_name(name), expected, "{name:?}");
        }
    }
}
