//! Signing requests: who may approve and sign them, and whom they may never be for.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_api::Status;
use skiff_api::value::{at, condition, text};

use super::{Plugin, Request};
use crate::auth::{self, Attributes, MASTERS, pki};

/// What of it is judged: upstream's CertificateApproval, CertificateSigning and CertificateSubjectRestriction.
pub(super) enum Certificates {
    Approval,
    Signing,
    Subject,
}

#[async_trait]
impl Plugin for Certificates {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let call = request.call;
        if call.resource.plural != "certificatesigningrequests" || call.resource.group != "certificates.k8s.io" {
            return Ok(());
        }
        let signer = text(object, &["spec", "signerName"]);
        let refuse = |why: String| Err(Status::forbidden(call.resource.group_resource(), text(object, &["metadata", "name"]), why));
        let certificate = |csr: &Value| at(csr, &["status", "certificate"]).clone();
        let failed = |csr: &Value| condition(csr, "Failed").cloned();
        let verb = match (self, call.info.subresource.as_str(), request.old) {
            (Self::Subject, "", None) if signer == "kubernetes.io/kube-apiserver-client" => {
                let pem = STANDARD.decode(text(object, &["spec", "request"])).unwrap_or_default();
                let masters = pki::Request::parse(&pem).is_ok_and(|r| r.organizations.iter().any(|o| o == MASTERS));
                let why = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
                return if masters { refuse(why.into()) } else { Ok(()) };
            }
            (Self::Approval, "approval", Some(_)) => "approve",
            (Self::Signing, "status", Some(old)) if certificate(old) != certificate(object) || failed(old) != failed(object) => "sign",
            _ => return Ok(()),
        };
        let all = signer.split_once('/').map_or_else(String::new, |(domain, _)| format!("{domain}/*"));
        let sign = |name| Attributes { verb, group: "certificates.k8s.io", version: "*", resource: "signers", name, ..Attributes::default() };
        for name in [signer, &all] {
            if auth::allowed(&call.server, &call.user, &sign(name)).await {
                return Ok(());
            }
        }
        refuse(format!("user not permitted to {verb} requests with signerName {signer:?}"))
    }
}
