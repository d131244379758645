//! A node's certificates, asked for by signing requests as upstream's kubelet asks: one to be known by as
//! `system:node:NAME`, and one to serve with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use skiff_api::clock;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

/// How long a request is waited for before it is made anew; upstream's fifteen minutes.
const PATIENCE: Duration = Duration::from_secs(900);
/// From when on it is worth a word that nobody approved.
const UNUSUAL: Duration = Duration::from_secs(5);

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS#8.
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be known to the API server.
    Client,
    /// To serve the kubelet's API under these names and addresses.
    Serving {
        /// Names.
        names: Vec<String>,
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
}

/// A certificate that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request can't be written.
    #[error("write a certificate signing request: {0}")]
    Write(#[from] rcgen::Error),
    /// The API server refused it.
    #[error("create a certificate signing request: {0}")]
    Create(#[source] kube::Error),
    /// It can't be followed.
    #[error("follow the certificate signing request {0}: {1}")]
    Follow(String, String),
    /// It was denied, or could not be signed.
    #[error("the certificate signing request {name} was turned down: {why}")]
    Refused {
        /// Which.
        name: String,
        /// What its condition says.
        why: String,
    },
    /// Nobody approved or signed it in time.
    #[error("the certificate signing request {0} was neither approved nor denied in time")]
    Ignored(String),
}

/// The name that a node is known by.
pub fn user(node: &str) -> String {
    format!("system:node:{node}")
}

/// Has a certificate signed. Waits until somebody approves the request; `waiting` is told its name when that takes long.
pub async fn obtain(client: &kube::Client, node: &str, purpose: &Purpose, waiting: impl Fn(&str)) -> Result<Pair, Error> {
    let (key, spec) = request(node, purpose)?;
    let prefix = if *purpose == Purpose::Client { "node-csr-" } else { "csr-" };
    let metadata = ObjectMeta { generate_name: Some(prefix.into()), ..ObjectMeta::default() };
    let csrs: Api<CertificateSigningRequest> = Api::all(client.clone());
    let csr = CertificateSigningRequest { metadata, spec, status: None };
    let csr = csrs.create(&PostParams::default(), &csr).await.map_err(Error::Create)?;
    let name = csr.metadata.name.unwrap_or_default();
    let certificate = async {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = pin!(watcher(csrs, config).default_backoff().applied_objects());
        loop {
            match changes.try_next().await {
                Ok(Some(csr)) => match outcome(&csr) {
                    Outcome::Signed(certificate) => return Ok(certificate),
                    Outcome::Refused(why) => return Err(Error::Refused { name: name.clone(), why }),
                    Outcome::Open => {}
                },
                Ok(None) => return Err(Error::Ignored(name.clone())),
                // What the server doesn't let us see is no use waiting for; that it is away for a moment is no matter.
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                    return Err(Error::Follow(name.clone(), status.message));
                }
                Err(error) => tracing::debug!(%error, "following a signing request"),
            }
        }
    };
    let mut certificate = pin!(certificate);
    let soon = tokio::time::timeout(UNUSUAL, &mut certificate).await;
    let certificate = match soon {
        Ok(done) => done?,
        Err(_) => {
            waiting(&name);
            tokio::time::timeout(PATIENCE, certificate).await.unwrap_or_else(|_| Err(Error::Ignored(name.clone())))?
        }
    };
    Ok(Pair { certificate, key: key.serialize_pem() })
}

fn request(node: &str, purpose: &Purpose) -> Result<(KeyPair, CertificateSigningRequestSpec), Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user(node));
    let (signer, usage) = match purpose {
        Purpose::Client => ("kubernetes.io/kube-apiserver-client-kubelet", "client auth"),
        Purpose::Serving { names, addresses } => {
            for name in names {
                params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
            }
            params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
            ("kubernetes.io/kubelet-serving", "server auth")
        }
    };
    let key = KeyPair::generate()?;
    let pem = params.serialize_request(&key)?.pem()?;
    let spec = CertificateSigningRequestSpec {
        request: ByteString(pem.into_bytes()),
        signer_name: signer.into(),
        // A key that isn't RSA goes without encipherment.
        usages: Some(vec!["digital signature".into(), usage.into()]),
        extra: Some(BTreeMap::new()),
        ..CertificateSigningRequestSpec::default()
    };
    Ok((key, spec))
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Signed(String),
    Refused(String),
    Open,
}

fn outcome(csr: &CertificateSigningRequest) -> Outcome {
    let Some(status) = &csr.status else { return Outcome::Open };
    let refused = status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
    if let Some(condition) = refused {
        let said = [&condition.reason, &condition.message].map(|text| text.clone().unwrap_or_default()).join(": ");
        return Outcome::Refused(said);
    }
    let certificate = status.certificate.as_ref().filter(|c| !c.0.is_empty());
    certificate.and_then(|c| String::from_utf8(c.0.clone()).ok()).map_or(Outcome::Open, Outcome::Signed)
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The common name: who bears it.
    pub user: String,
    /// From when it holds.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// The names and addresses that it serves.
    pub names: Vec<String>,
}

impl Facts {
    /// Reads PEM; `None` for what is no certificate.
    pub fn of(pem: &str) -> Option<Self> {
        let (_, block) = parse_x509_pem(pem.as_bytes()).ok()?;
        let certificate = block.parse_x509().ok()?;
        let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string()),
            _ => None,
        });
        let validity = certificate.validity();
        Some(Self { user, from: at(validity.not_before)?, until: at(validity.not_after)?, names: names.collect() })
    }

    /// When it is to be renewed: after four fifths of its time, as upstream's (which takes 70 to 90 %).
    pub fn renewal(&self) -> Timestamp {
        let fifth = self.until.duration_since(self.from) / 5;
        self.until.checked_sub(fifth).unwrap_or(self.from)
    }

    /// How long until then; zero when it is due.
    pub fn fresh_for(&self) -> Duration {
        let left = self.renewal().duration_since(clock::now());
        Duration::try_from(left.max(SignedDuration::ZERO)).unwrap_or_default()
    }

    /// Whether it holds now.
    pub fn holds(&self) -> bool {
        (self.from..self.until).contains(&clock::now())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};

    use super::*;

    #[test]
    fn outcomes() {
        let check = |type_: &str, certificate: &str, expected: Outcome| {
            let condition = CertificateSigningRequestCondition {
                type_: type_.into(),
                status: "True".into(),
                reason: Some("R".into()),
                message: Some("m".into()),
                ..CertificateSigningRequestCondition::default()
            };
            let status = CertificateSigningRequestStatus {
                conditions: Some(vec![condition]),
                certificate: Some(ByteString(certificate.into())),
            };
            let csr = CertificateSigningRequest { status: Some(status), ..CertificateSigningRequest::default() };
            assert_eq!(outcome(&csr), expected);
        };
        check("Approved", "", Outcome::Open);
        check("Approved", "pem", Outcome::Signed("pem".into()));
        check("Denied", "", Outcome::Refused("R: m".into()));
        check("Failed", "", Outcome::Refused("R: m".into()));
        assert_eq!(outcome(&CertificateSigningRequest::default()), Outcome::Open);
    }

    #[test]
    fn renewal_is_after_four_fifths() {
        let at = |second| Timestamp::from_second(second).expect("a moment");
        let facts = Facts { user: "u".into(), from: at(1_000), until: at(2_000), names: Vec::new() };
        assert_eq!(facts.renewal(), at(1_800));
        assert!(!facts.holds() && facts.fresh_for().is_zero());
    }
}
