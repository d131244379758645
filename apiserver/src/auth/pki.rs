//! The cluster's own certificate authority, and what it signs.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use skiff_api::clock;

use super::User;

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
    let at = |second: i64| time::OffsetDateTime::from_unix_timestamp(second).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    // A little earlier than now, for machines whose clocks differ.
    params.not_before = at(now - 3_600);
    params.not_after = at(now + DAYS * day);
    params
}

impl Authority {
    /// A new authority.
    pub fn generate() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = params("skiff-ca", &[]);
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
        let mut params = params(&user.name, &user.groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }
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
