//! The cluster's own certificate authority, and what it signs.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use skiff_api::clock;
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::{User, der};

/// How long the authority and what it signs last, in days: ten years, as k3s and kubeadm give their authorities.
const DAYS: i64 = 3_650;

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The key that signs service account tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// PKCS#8 PEM.
    pub private_pem: String,
    /// PEM.
    pub public_pem: String,
}

/// A certificate can't be made.
#[derive(Debug, thiserror::Error)]
#[error("make a certificate: {0}")]
pub struct Error(#[from] rcgen::Error);

/// The cluster's certificate authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// The authority's own certificate and key.
    pub pair: Pair,
}

fn params(common_name: &str, organizations: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // X.509 has one value an attribute here; groups are O attributes, and rcgen keeps one of a type.
    for organization in organizations.iter().take(1) {
        params.distinguished_name.push(DnType::OrganizationName, organization.clone());
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = clock::now().as_second();
    let day = 86_400;
    // A little earlier than now, for machines whose clocks differ.
    params.not_before = moment(now - 3_600);
    params.not_after = moment(now + DAYS * day);
    params
}

fn moment(second: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(second).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

impl Authority {
    /// A new authority.
    pub fn generate() -> Result<Self, Error> {
        Self::named("skiff-ca")
    }

    /// A new authority of this name.
    pub fn named(common_name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = params(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self { pair: Pair { certificate: certificate.pem(), key: key.serialize_pem() } })
    }

    fn sign(&self, params: &CertificateParams) -> Result<Pair, Error> {
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&self.pair.certificate, KeyPair::from_pem(&self.pair.key)?)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Signs a request, for these usages and so many seconds: PEM.
    pub(crate) fn sign_request(&self, request: Request, usages: &[&str], seconds: i64) -> Result<String, RequestError> {
        let mut asked = request.params;
        set_usages(usages, &mut asked.params)?;
        asked.params.is_ca = IsCa::ExplicitNoCa;
        let now = clock::now().as_second();
        // Upstream's five minutes earlier, for machines whose clocks differ.
        (asked.params.not_before, asked.params.not_after) = (moment(now - 300), moment(now + seconds));
        let key = KeyPair::from_pem(&self.pair.key)?;
        let made = asked.signed_by(&Issuer::from_ca_cert_pem(&self.pair.certificate, &key)?)?;
        let whole = der::with_subject(made.der(), &request.subject, &key).ok_or(RequestError::Subject)?;
        Ok(pem(&whole))
    }

    /// A server's certificate for these names and addresses.
    pub fn server(&self, common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<Pair, Error> {
        let mut params = params(common_name, &[]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.sign(&params)
    }

    /// A client's certificate: the user's name, and the first of the groups.
    pub fn client(&self, user: &User) -> Result<Pair, Error> {
        self.client_lasting(user, DAYS * 86_400)
    }

    /// A client's certificate that lasts so many seconds.
    pub fn client_lasting(&self, user: &User, seconds: i64) -> Result<Pair, Error> {
        let mut params = params(&user.name, &user.groups);
        params.not_after = moment(clock::now().as_second() + seconds);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }
}

/// Who a client's certificate says it is: the common name is the user, the organizations are the groups.
pub(crate) fn user_of(leaf: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = certificate.subject();
    let name = last_name(subject).filter(|name| !name.is_empty())?;
    let mut user = User::new(name, subject.iter_organization().filter_map(|o| o.as_str().ok()));
    let digest: String = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("X509SHA256={digest}")]);
    let mut uids = subject.iter_attributes().filter(|a| a.attr_type().to_id_string() == UID);
    // Who has two has none that could be believed, nor is it known who that would be.
    match (uids.next().map(|uid| uid.as_str()), uids.next()) {
        (None, _) => {}
        (Some(Ok(uid)), None) if !uid.is_empty() => user.uid = uid.to_owned(),
        _ => return None,
    }
    Some(user)
}

/// The attribute of a subject that is the user's uid.
const UID: &str = "1.3.6.1.4.1.57683.2";

/// The common name of a subject: of several the last, as Go reads it.
fn last_name<'a>(subject: &'a X509Name<'_>) -> Option<&'a str> {
    subject.iter_common_name().last()?.as_str().ok()
}

/// A certificate signing request, read and found to be signed by the key that it is for.
pub(crate) struct Request {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// The subject as it is to stand in the certificate.
    subject: Vec<u8>,
    params: CertificateSigningRequestParams,
}

/// A certificate in text.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

impl Request {
    /// Reads PEM.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| RequestError::Form)?;
        let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|_| RequestError::Form)?;
        let subject = &request.certification_request_info.subject;
        // In some alphabet of old, it would say one thing to whoever decides, and another to those who read the certificate.
        let whole = der::subject(subject).ok_or(RequestError::Alphabet)?;
        let common_name = last_name(subject).unwrap_or("").to_owned();
        let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        let params = CertificateSigningRequestParams::from_der(&block.contents.as_slice().into())?;
        Ok(Self { common_name, organizations, subject: whole, params })
    }

    /// The alternative names asked for.
    pub fn names(&self) -> &[SanType] {
        &self.params.params.subject_alt_names
    }
}

/// A certificate signing request can't be read or carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// It is none.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Form,
    /// Its subject can't be read.
    #[error("the subject's names must be UTF-8 or ASCII text")]
    Alphabet,
    /// Its subject can't be written.
    #[error("the subject can't be written into a certificate")]
    Subject,
    /// A usage that X.509 libraries don't know by name.
    #[error("usage {0:?} can't be written into a certificate")]
    Usage(String),
    /// What it asks for can't be written.
    #[error("sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Writes usages by Kubernetes' names of them.
fn set_usages(names: &[&str], params: &mut CertificateParams) -> Result<(), RequestError> {
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for name in names {
        let key = match *name {
            "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
            "content commitment" => KeyUsagePurpose::ContentCommitment,
            "key encipherment" => KeyUsagePurpose::KeyEncipherment,
            "key agreement" => KeyUsagePurpose::KeyAgreement,
            "data encipherment" => KeyUsagePurpose::DataEncipherment,
            other => {
                params.extended_key_usages.push(match other {
                    "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
                    "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
                    other => return Err(RequestError::Usage(other.to_owned())),
                });
                continue;
            }
        };
        if !params.key_usages.contains(&key) {
            params.key_usages.push(key);
        }
    }
    Ok(())
}

impl SigningKey {
    /// A new key.
    pub fn generate() -> Result<Self, Error> {
        Self::of(&KeyPair::generate()?)
    }

    /// The key kept as PKCS#8 PEM.
    pub fn from_pem(private_pem: &str) -> Result<Self, Error> {
        Self::of(&KeyPair::from_pem(private_pem)?)
    }

    fn of(key: &KeyPair) -> Result<Self, Error> {
        Ok(Self { private_pem: key.serialize_pem(), public_pem: key.public_key_pem() })
    }
}
