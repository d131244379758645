//! Certificate signing requests: kubelets' own are approved where rules allow it, and what is approved is signed by the
//! cluster's authority, for upstream's signers that lead to this API.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;
use serde_json::{Value, json};
use skiff_api::value::{at, items, text};
use skiff_api::{Status, resource, value};
use skiff_store::Revision;

use crate::auth::pki::Request;
use crate::auth::{self, Attributes, User};
use crate::bootstrap;
use crate::cache::Filter;
use crate::server::Server;
use crate::verbs::now_text;

const GROUP: &str = "certificates.k8s.io";
/// How long certificates last that ask for nothing else: upstream's year. None lasts longer.
const LIFETIME: i64 = 365 * 86_400;
/// The shortest time that a certificate can ask for: upstream's ten minutes.
const SHORTEST: i64 = 600;

/// What is to be done about a request.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing, now or ever.
    Nothing,
    /// It is a kubelet's own: approve it, with this message.
    Approve(&'static str),
    /// It is approved and in order: sign it, to last so many seconds.
    Sign(i64),
    /// It is approved, but can't be signed.
    Fail(String),
}

fn has(csr: &Value, kind: &str) -> bool {
    value::condition(csr, kind).is_some_and(|c| c["status"] == "True")
}

/// Whether nothing more comes of the request.
fn is_done(csr: &Value) -> bool {
    !text(csr, &["status", "certificate"]).is_empty() || has(csr, "Denied") || has(csr, "Failed")
}

/// Decides what to do. `may` says whether who asked may create this subresource of signing requests; `node` is the node
/// that asked, or null.
fn plan(csr: &Value, request: &Result<Request, String>, node: &Value, may: impl Fn(&str) -> bool) -> Plan {
    let signer = text(csr, &["spec", "signerName"]);
    let usages: Vec<&str> = items(csr, &["spec", "usages"]).iter().filter_map(Value::as_str).collect();
    let check: fn(&Request, &[&str]) -> Result<(), String> = match signer {
        "kubernetes.io/kube-apiserver-client" => client,
        "kubernetes.io/kube-apiserver-client-kubelet" => kubelet_client,
        "kubernetes.io/kubelet-serving" => kubelet_server,
        _ => return Plan::Nothing,
    };
    let fault = match request {
        Ok(request) => check(request, &usages).err(),
        Err(why) => Some(why.clone()),
    };
    match (is_done(csr), has(csr, "Approved"), fault) {
        (true, ..) => Plan::Nothing,
        (false, true, Some(why)) => Plan::Fail(why),
        (false, true, None) => {
            let asked = at(csr, &["spec", "expirationSeconds"]).as_i64().unwrap_or(LIFETIME);
            Plan::Sign(asked.clamp(SHORTEST, LIFETIME))
        }
        (false, false, None) if signer == "kubernetes.io/kube-apiserver-client-kubelet" => {
            let own = request.as_ref().is_ok_and(|r| r.common_name == text(csr, &["spec", "username"]));
            if own && may("selfnodeclient") {
                Plan::Approve("Auto approving self kubelet client certificate after SubjectAccessReview.")
            } else if may("nodeclient") {
                Plan::Approve("Auto approving kubelet client certificate after SubjectAccessReview.")
            } else {
                Plan::Nothing
            }
        }
        (false, false, None) if signer == "kubernetes.io/kubelet-serving" && request.as_ref().is_ok_and(|r| is_nodes_own(csr, r, node)) => {
            Plan::Approve("Auto approving kubelet serving certificate: the names are the node's own.")
        }
        _ => Plan::Nothing,
    }
}

/// Whether a node asks for a serving certificate for itself, with no names and addresses but those of its status. Upstream
/// leaves this to approvers of others, who use the same rule. What differs waits for a person to approve it.
fn is_nodes_own(csr: &Value, request: &Request, node: &Value) -> bool {
    let user = text(csr, &["spec", "username"]);
    let own = user == request.common_name && user.strip_prefix("system:node:") == Some(text(node, &["metadata", "name"]));
    let in_group = items(csr, &["spec", "groups"]).iter().any(|g| g == "system:nodes");
    let known = |name: &str| items(node, &["status", "addresses"]).iter().any(|a| a["address"] == name);
    own && in_group
        && request.names().iter().all(|name| match name {
            SanType::DnsName(name) => known(name.as_str()),
            SanType::IpAddress(ip) => known(&ip.to_string()),
            _ => false,
        })
}

fn client(_: &Request, usages: &[&str]) -> Result<(), String> {
    if let Some(other) = usages.iter().find(|u| !matches!(**u, "digital signature" | "key encipherment" | "client auth")) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.contains(&"client auth") { Ok(()) } else { Err("missing required usage for client certificate: client auth".into()) }
}

fn kubelet_client(request: &Request, usages: &[&str]) -> Result<(), String> {
    of_nodes(request)?;
    for (which, found) in alternatives(request) {
        if found {
            return Err(format!("{which} subjectAltNames are not allowed"));
        }
    }
    exactly(usages, "client auth")?;
    of_a_node(request)
}

fn kubelet_server(request: &Request, usages: &[&str]) -> Result<(), String> {
    of_nodes(request)?;
    let [(_, dns), emails, (_, addresses), uris] = alternatives(request);
    if !dns && !addresses {
        return Err("DNS or IP subjectAltName is required".into());
    }
    for (which, found) in [emails, uris] {
        if found {
            return Err(format!("{which} subjectAltNames are not allowed"));
        }
    }
    exactly(usages, "server auth")?;
    of_a_node(request)
}

fn of_nodes(request: &Request) -> Result<(), String> {
    if request.organizations == ["system:nodes"] { Ok(()) } else { Err("subject organization is not system:nodes".into()) }
}

fn of_a_node(request: &Request) -> Result<(), String> {
    let node = request.common_name.starts_with("system:node:");
    if node { Ok(()) } else { Err("subject common name does not begin with system:node:".into()) }
}

/// Which kinds of alternative names the request has.
fn alternatives(request: &Request) -> [(&'static str, bool); 4] {
    let any = |kind: fn(&SanType) -> bool| request.names().iter().any(kind);
    [
        ("DNS", any(|n| matches!(n, SanType::DnsName(_)))),
        ("Email", any(|n| matches!(n, SanType::Rfc822Name(_)))),
        ("IP", any(|n| matches!(n, SanType::IpAddress(_)))),
        ("URI", any(|n| matches!(n, SanType::URI(_)))),
    ]
}

/// A kubelet asks for these usages and no others; one for a key that isn't RSA goes without encipherment.
fn exactly(usages: &[&str], auth: &str) -> Result<(), String> {
    let mut usages = usages.to_vec();
    usages.sort_unstable();
    let (mut full, mut short) = (["digital signature", "key encipherment", auth], ["digital signature", auth]);
    full.sort_unstable();
    short.sort_unstable();
    if usages == full || usages == short { Ok(()) } else { Err(format!("usages did not match [{}]", full.join(" "))) }
}

/// Looks after signing requests, each time that one changes. Ends with the server.
pub(crate) async fn run(server: Arc<Server>) {
    let Some(csrs) = resource::find_kind(GROUP, "v1", "CertificateSigningRequest") else { return };
    let Some(cache) = server.cache.resource(&csrs.storage_prefix) else { return };
    let mut bell = cache.subscribe();
    let mut settled: HashMap<Arc<str>, Revision> = HashMap::new();
    loop {
        bell.mark_unchanged();
        let listed = cache.list(&Filter::default(), 0).objects;
        let before = std::mem::take(&mut settled);
        for object in &listed {
            // What has come to its end is not read again each time that another one changes.
            if before.get(&object.key) == Some(&object.revision) {
                settled.insert(Arc::clone(&object.key), object.revision);
                continue;
            }
            let Ok(csr) = object.value() else { continue };
            if is_done(&csr) {
                settled.insert(Arc::clone(&object.key), object.revision);
                continue;
            }
            // A conflict rings the bell again.
            if let Err(error) = settle(&server, &csr).await.or_else(|e| if e.code == 409 { Ok(()) } else { Err(e) }) {
                tracing::warn!(name = object.name(), error = error.message, "signing request not settled");
            }
        }
        if bell.changed().await.is_err() {
            return;
        }
    }
}

async fn settle(server: &Arc<Server>, csr: &Value) -> Result<(), Status> {
    let request = STANDARD.decode(text(csr, &["spec", "request"])).map_err(|e| e.to_string()).and_then(|pem| Request::parse(&pem).map_err(|e| e.to_string()));
    let groups = items(csr, &["spec", "groups"]).iter().filter_map(Value::as_str);
    let user = User::new(text(csr, &["spec", "username"]), groups);
    let create = |subresource| Attributes { verb: "create", group: GROUP, version: "v1", resource: "certificatesigningrequests", subresource, ..Attributes::default() };
    let mut held = Vec::new();
    if text(csr, &["spec", "signerName"]) == "kubernetes.io/kube-apiserver-client-kubelet" {
        for subresource in ["selfnodeclient", "nodeclient"] {
            if auth::allowed(server, &user, &create(subresource)).await {
                held.push(subresource);
            }
        }
    }
    let may = |subresource: &str| held.contains(&subresource);
    let with = |kind: &str, reason: &str, message: &str| {
        let mut conditions = items(csr, &["status", "conditions"]).to_vec();
        let now = now_text();
        conditions.push(json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now, "lastTransitionTime": now}));
        json!({"conditions": conditions})
    };
    let failed = |why: &str| ("status", with("Failed", "SignerValidationFailure", why));
    let node = user.node().and_then(|name| server.cache.resource("/registry/minions/")?.get(&format!("/registry/minions/{name}")));
    let node = node.and_then(|node| node.value().ok()).unwrap_or_default();
    let (subresource, status) = match (plan(csr, &request, &node, may), request) {
        (Plan::Nothing, _) => return Ok(()),
        (Plan::Approve(message), _) => ("approval", with("Approved", "AutoApproved", message)),
        (Plan::Fail(why), _) | (Plan::Sign(_), Err(why)) => failed(&why),
        (Plan::Sign(seconds), Ok(request)) => {
            let usages: Vec<&str> = items(csr, &["spec", "usages"]).iter().filter_map(Value::as_str).collect();
            match server.authority.sign_request(request, &usages, seconds) {
                Ok(pem) => ("status", json!({"certificate": STANDARD.encode(pem)})),
                Err(error) => failed(&error.to_string()),
            }
        }
    };
    let patch = json!({"metadata": {"resourceVersion": at(csr, &["metadata", "resourceVersion"])}, "status": status});
    let path = format!("/apis/{GROUP}/v1/certificatesigningrequests/{}/{subresource}", text(csr, &["metadata", "name"]));
    bootstrap::patch(server, &path, &patch).await
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;
    use crate::auth::pki::Authority;

    fn request(common_name: &str, organizations: &[&str], names: &[&str]) -> Request {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.distinguished_name.push(DnType::CommonName, common_name);
        let pem = params.serialize_request(&KeyPair::generate().expect("a key")).and_then(|r| r.pem()).expect("a request");
        Request::parse(pem.as_bytes()).expect("readable")
    }

    fn check(signer: &str, usages: &[&str], condition: &str, request: Request, expected: Plan) {
        let csr = json!({
            "spec": {
                "signerName": format!("kubernetes.io/{signer}"), "usages": usages, "expirationSeconds": 60,
                "username": "system:node:a", "groups": ["system:nodes", "system:authenticated"],
            },
            "status": {"conditions": [{"type": condition, "status": "True"}]},
        });
        let node = json!({"metadata": {"name": "a"}, "status": {"addresses": [{"address": "a"}, {"address": "10.0.0.1"}]}});
        assert_eq!(plan(&csr, &Ok(request), &node, |sub| sub == "selfnodeclient"), expected, "{csr}");
    }

    #[test]
    fn plans() {
        let usages = ["client auth", "digital signature"];
        let node = || request("system:node:a", &["system:nodes"], &[]);
        check("kube-apiserver-client", &usages, "Approved", request("bob", &["dev"], &[]), Plan::Sign(600));
        check("kube-apiserver-client", &usages, "Denied", request("bob", &[], &[]), Plan::Nothing);
        check("kube-apiserver-client", &usages, "Other", request("bob", &[], &[]), Plan::Nothing);
        let why = "invalid usage for client certificate: server auth";
        check("kube-apiserver-client", &["server auth"], "Approved", request("bob", &[], &[]), Plan::Fail(why.into()));
        let auto = Plan::Approve("Auto approving self kubelet client certificate after SubjectAccessReview.");
        check("kube-apiserver-client-kubelet", &usages, "Other", node(), auto);
        check("kube-apiserver-client-kubelet", &usages, "Other", request("system:node:b", &["system:nodes"], &[]), Plan::Nothing);
        let why = "subject organization is not system:nodes";
        check("kube-apiserver-client-kubelet", &usages, "Approved", request("bob", &[], &[]), Plan::Fail(why.into()));
        let serving = ["digital signature", "server auth"];
        check("kubelet-serving", &serving, "Approved", node(), Plan::Fail("DNS or IP subjectAltName is required".into()));
        check("kubelet-serving", &serving, "Approved", request("system:node:a", &["system:nodes"], &["a", "10.0.0.1"]), Plan::Sign(600));
        let serve = |name: &str, names: &[&str]| request(name, &["system:nodes"], names);
        let auto = Plan::Approve("Auto approving kubelet serving certificate: the names are the node's own.");
        check("kubelet-serving", &serving, "Other", serve("system:node:a", &["a", "10.0.0.1"]), auto);
        check("kubelet-serving", &serving, "Other", serve("system:node:a", &["a", "10.0.0.2"]), Plan::Nothing);
        check("kubelet-serving", &serving, "Other", serve("system:node:b", &["a"]), Plan::Nothing);
        check("other", &serving, "Approved", node(), Plan::Nothing);
    }

    #[test]
    fn names_in_alphabets_of_old_are_refused() {
        let mut params = CertificateParams::default();
        let masters = rcgen::string::BmpString::try_from("system:masters").expect("letters");
        params.distinguished_name.push(DnType::OrganizationName, rcgen::DnValue::BmpString(masters));
        let pem = params.serialize_request(&KeyPair::generate().expect("a key")).and_then(|r| r.pem()).expect("a request");
        assert!(Request::parse(pem.as_bytes()).is_err());
    }

    /// A request by openssl for O=dev, CN=bob, O=ops, O=audit, OU=lab, and the uid "forged".
    const GROUPS: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBGjCBwQIBADBfMQwwCgYDVQQKDANkZXYxDDAKBgNVBAMMA2JvYjEMMAoGA1UE\n\
CgwDb3BzMQ4wDAYDVQQKDAVhdWRpdDEMMAoGA1UECwwDbGFiMRUwEwYJKwYBBAGD\n\
wlMCDAZmb3JnZWQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATw5rcsTyimq69E\n\
4Uu/954nQ+ABEg4IfslBH2NT+n3LXOcszi9RQgAzROVRksmXqpc8QZJ7RjFGcjJ/\n\
d7x/e+gzoAAwCgYIKoZIzj0EAwIDSAAwRQIhAIpZdDztLjpzdSECZ6K6696ZSQhM\n\
8Zv4A6cTSL2Upuu1AiAhJxMvCOak5Lho5zIjBPcZck+1k3zPeCWAhwWTtjCHKw==\n\
-----END CERTIFICATE REQUEST-----\n\
";

    #[test]
    fn certificates_may_be_for_several_groups_but_choose_no_uid() {
        let authority = Authority::generate().expect("an authority");
        let asked = Request::parse(GROUPS.as_bytes()).expect("readable");
        assert_eq!(asked.organizations, ["dev", "ops", "audit"]);
        let pem = authority.sign_request(asked, &["client auth"], 600).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let (_, root) = x509_parser::pem::parse_x509_pem(authority.pair.certificate.as_bytes()).expect("PEM");
        let (certificate, root) = (pem.parse_x509().expect("a certificate"), root.parse_x509().expect("a certificate"));
        assert_eq!(certificate.subject().to_string(), "O=dev + O=ops + O=audit, OU=lab, CN=bob");
        assert!(certificate.verify_signature(Some(root.public_key())).is_ok());
    }

    #[test]
    fn signed_certificates_say_what_was_asked() {
        let authority = Authority::generate().expect("an authority");
        let pem = authority.sign_request(request("bob", &["dev"], &[]), &["client auth"], 600).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        assert_eq!(certificate.subject().to_string(), "O=dev, CN=bob");
        assert!(certificate.extended_key_usage().ok().flatten().is_some_and(|u| u.value.client_auth && !u.value.server_auth));
        assert!(!certificate.is_ca());
        let lasts = certificate.validity().not_after.timestamp() - skiff_api::clock::now().as_second();
        assert!((590..=600).contains(&lasts), "{lasts}");
    }
}
