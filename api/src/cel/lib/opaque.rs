//! Values of Kubernetes' own types.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::formats::Format;
use super::net::{Cidr, Url};
use super::numbers::Semver;
use crate::quantity::Quantity;

/// What an expression wants to know whether it is allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Whose rights, where not the requesting user's: a service account's namespace and name.
    pub account: Option<(String, String)>,
    /// For what is no resource.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Verb.
    pub verb: String,
}

/// An authorizer's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// What went wrong with asking; empty for nothing.
    pub error: String,
}

/// Who knows what the requesting user may do.
pub trait Authorizer: Send + Sync {
    /// Whether the query is allowed.
    fn check(&self, query: &Query) -> Decision;
}

/// One of Kubernetes' own.
#[derive(Clone)]
pub enum Opaque {
    /// `quantity("1Gi")`
    Quantity(Quantity),
    /// `semver("1.2.3")`
    Semver(Semver),
    /// `url("https://a")`
    Url(Url),
    /// `ip("::1")`
    Ip(IpAddr),
    /// `cidr("10.0.0.0/8")`
    Cidr(Cidr),
    /// `format.uuid()`
    Format(Format),
    /// `authorizer`, and the checks made of it.
    Authorizer(Arc<dyn Authorizer>, Check, Query),
    /// What a check came to.
    Decision(Decision),
}

/// How far a check has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing is said yet.
    Nothing,
    /// A path.
    Path,
    /// A group, no resource yet.
    Group,
    /// A resource.
    Resource,
}

impl Opaque {
    pub(in super::super) fn type_name(&self) -> &'static str {
        match self {
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorizer(_, Check::Nothing, _) => "kubernetes.authorization.Authorizer",
            Self::Authorizer(_, Check::Path, _) => "kubernetes.authorization.PathCheck",
            Self::Authorizer(_, Check::Group, _) => "kubernetes.authorization.GroupCheck",
            Self::Authorizer(_, Check::Resource, _) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    pub(in super::super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Format(a), Self::Format(b)) => a.name == b.name,
            (Self::Authorizer(_, a, x), Self::Authorizer(_, b, y)) => a == b && x == y,
            (Self::Decision(a), Self::Decision(b)) => a == b,
            _ => false,
        }
    }

    pub(in super::super) fn cost_size(&self) -> u64 {
        match self {
            Self::Ip(ip) => if ip.is_ipv4() { 4 } else { 16 },
            Self::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            _ => 1,
        }
    }

    /// How long the regular expression of a format is.
    pub(in super::super) fn regex_size(&self) -> u64 {
        let Self::Format(format) = self else { return 0 };
        match format.name {
            "DNS1123Subdomain" | "QualifiedName" | "DNS1123SubdomainPrefix" => 60,
            "LabelValue" => 40,
            "URI" => 1103,
            "uuid" => 70,
            "byte" => 84,
            "date" | "datetime" => 71,
            _ => 30,
        }
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(quantity) => quantity.fmt(f),
            Self::Semver(version) => version.fmt(f),
            Self::Url(url) => f.write_str(&url.text),
            Self::Ip(ip) => ip.fmt(f),
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Format(format) => f.write_str(format.name),
            Self::Authorizer(..) | Self::Decision(_) => f.write_str(self.type_name()),
        }
    }
}

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.type_name())
    }
}
