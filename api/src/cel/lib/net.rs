//! Addresses, networks and URLs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::Fault;
use super::super::eval::Evaluated;
use super::super::value::{Key, Val};
use super::opaque::Opaque;
use super::{bool, fault};

/// A network, its address as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address before the slash.
    pub address: IpAddr,
    /// How many bits count.
    pub bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The first `bits` bits of the address, as a number with the width of its family.
fn prefix(address: IpAddr, bits: u8) -> (u128, u32) {
    let (number, width) = match address {
        IpAddr::V4(a) => (u128::from(a.to_bits()), 32),
        IpAddr::V6(a) => (a.to_bits(), 128),
    };
    let drop = width - u32::from(bits).min(width);
    (number.checked_shr(drop).unwrap_or(0), drop)
}

impl Cidr {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}");
        let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("ParseAddr: unable to parse IP"))?;
        let well_formed = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
        let bits: u8 = bits.parse().ok().filter(|_| well_formed).ok_or_else(|| wrong("bad bits after slash"))?;
        if bits > if address.is_ipv4() { 32 } else { 128 } {
            return Err(wrong("prefix length out of range"));
        }
        mapped(address).map_err(|_| format!("IPv4-mapped IPv6 address {text:?} is not allowed"))?;
        Ok(Self { address, bits })
    }

    fn masked(self) -> Self {
        let (kept, drop) = prefix(self.address, self.bits);
        let number = kept.checked_shl(drop).unwrap_or(0);
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(0).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        };
        Self { address, bits: self.bits }
    }

    fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && prefix(self.address, self.bits).0 == prefix(address, self.bits).0
    }
}

/// An IPv4 address in IPv6 clothes is not taken.
fn mapped(address: IpAddr) -> Result<IpAddr, ()> {
    match address {
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Err(()),
        other => Ok(other),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr =
        text.parse().map_err(|_| format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"))?;
    mapped(address).map_err(|()| format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
}

fn is_link_local(address: IpAddr, multicast: bool) -> bool {
    match (address, multicast) {
        (IpAddr::V4(a), false) => a.is_link_local(),
        (IpAddr::V4(a), true) => a.octets()[..3] == [224, 0, 0],
        (IpAddr::V6(a), false) => a.segments()[0] & 0xffc0 == 0xfe80,
        (IpAddr::V6(a), true) => a.segments()[0] & 0xff0f == 0xff02,
    }
}

/// A URL, in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    /// As it was written.
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// Reads an absolute URL or an absolute path, as Go's `ParseRequestURI` does.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("parse {text:?}: {why}");
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        let mut url = Self { text: text.to_owned(), ..Self::default() };
        let scheme_end = text.find(':').filter(|end| {
            let scheme = &text[..*end];
            scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        });
        let rest = match scheme_end {
            Some(end) => {
                url.scheme = text[..end].to_ascii_lowercase();
                &text[end + 1..]
            }
            None if text.starts_with(':') => return Err(wrong("missing protocol scheme")),
            None => text,
        };
        if !rest.starts_with('/') && url.scheme.is_empty() {
            return Err(wrong("invalid URI for request"));
        }
        let rest = rest.split('#').next().unwrap_or("");
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_owned();
        let path = match rest.strip_prefix("//") {
            Some(authority) if !url.scheme.is_empty() || !text.starts_with("///") => {
                let end = authority.find('/').unwrap_or(authority.len());
                let host = authority[..end].rsplit_once('@').map_or(&authority[..end], |(_, host)| host);
                let port = if host.starts_with('[') { host.rsplit_once("]:").map(|(_, p)| p) } else { host.rsplit_once(':').map(|(_, p)| p) };
                if let Some(port) = port.filter(|p| !p.bytes().all(|b| b.is_ascii_digit())) {
                    return Err(wrong(&format!("invalid port {:?} after host", format!(":{port}"))));
                }
                if host.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '}', '|']) || (host.starts_with('[') && !host.contains(']')) {
                    return Err(wrong("invalid character in host name"));
                }
                url.host = host.to_owned();
                &authority[end..]
            }
            _ => rest,
        };
        let bytes = path.as_bytes();
        let bad_escape = |i: usize| bytes.get(i + 1..i + 3).is_none_or(|hex| !hex.iter().all(u8::is_ascii_hexdigit));
        if (0..bytes.len()).any(|i| bytes[i] == b'%' && bad_escape(i)) {
            return Err(wrong("invalid URL escape"));
        }
        url.path = path.replace(' ', "%20");
        Ok(url)
    }

    fn port(&self) -> &str {
        let after = self.host.rfind(']').map_or(0, |i| i + 1);
        self.host[after..].rsplit_once(':').map_or("", |(_, port)| port)
    }

    fn hostname(&self) -> &str {
        let port = self.port();
        let host = if port.is_empty() { self.host.trim_end_matches(':') } else { &self.host[..self.host.len() - port.len() - 1] };
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Text without its percent escapes and pluses.
fn unescaped(text: &str) -> String {
    let text = text.replace('+', " ");
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn query<'a>(text: &str) -> Val<'a> {
    let mut map: BTreeMap<Key, Vec<Val<'a>>> = BTreeMap::new();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        map.entry(Key::Str(unescaped(key).into())).or_default().push(Val::text(unescaped(value)));
    }
    Val::Map(Arc::new(map.into_iter().map(|(key, values)| (key, Val::list(values))).collect()))
}

fn opaque<'a>(parsed: Result<Opaque, String>) -> Option<Evaluated<'a>> {
    Some(parsed.map(|o| Val::Opaque(Arc::new(o))).map_err(|why| Fault::error(&why)))
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    match (name, args) {
        ("ip", [Val::Str(s)]) => return opaque(parse_ip(s).map(Opaque::Ip)),
        ("isIP", [Val::Str(s)]) => return bool(parse_ip(s).is_ok()),
        ("ip.isCanonical", [Val::Str(s)]) => return Some(parse_ip(s).map_or_else(fault, |ip| Ok(Val::Bool(ip.to_string() == **s)))),
        ("cidr", [Val::Str(s)]) => return opaque(Cidr::parse(s).map(Opaque::Cidr)),
        ("isCIDR", [Val::Str(s)]) => return bool(Cidr::parse(s).is_ok()),
        ("url", [Val::Str(s)]) => {
            return opaque(Url::parse(s).map(Opaque::Url).map_err(|why| format!("URL parse error during conversion from string: {why}")));
        }
        ("isURL", [Val::Str(s)]) => return bool(Url::parse(s).is_ok()),
        _ => {}
    }
    let (Val::Opaque(of), rest) = args.split_first()? else { return None };
    let text = |text: &str| Some(Ok(Val::text(text)));
    match (&**of, name, rest) {
        (Opaque::Ip(ip), "family", []) => Some(Ok(Val::Int(if ip.is_ipv4() { 4 } else { 6 }))),
        (Opaque::Ip(ip), "isUnspecified", []) => bool(ip.is_unspecified()),
        (Opaque::Ip(ip), "isLoopback", []) => bool(ip.is_loopback()),
        (Opaque::Ip(ip), "isLinkLocalMulticast", []) => bool(is_link_local(*ip, true)),
        (Opaque::Ip(ip), "isLinkLocalUnicast", []) => bool(is_link_local(*ip, false)),
        (Opaque::Ip(ip), "isGlobalUnicast", []) => {
            let broadcast = matches!(ip, IpAddr::V4(a) if a.is_broadcast());
            bool(!broadcast && !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_link_local(*ip, false))
        }
        (Opaque::Cidr(cidr), "ip", []) => opaque(Ok(Opaque::Ip(cidr.address))),
        (Opaque::Cidr(cidr), "masked", []) => opaque(Ok(Opaque::Cidr(cidr.masked()))),
        (Opaque::Cidr(cidr), "prefixLength", []) => Some(Ok(Val::Int(cidr.bits.into()))),
        (Opaque::Cidr(cidr), "containsIP", [Val::Str(s)]) => Some(parse_ip(s).map_or_else(fault, |ip| Ok(Val::Bool(cidr.contains(ip))))),
        (Opaque::Cidr(cidr), "containsIP", [Val::Opaque(other)]) => match &**other {
            Opaque::Ip(ip) => bool(cidr.contains(*ip)),
            _ => None,
        },
        (Opaque::Cidr(cidr), "containsCIDR", [other]) => {
            let other = match other {
                Val::Str(s) => match Cidr::parse(s) {
                    Ok(other) => other,
                    Err(why) => return Some(fault(why)),
                },
                Val::Opaque(other) => match &**other {
                    Opaque::Cidr(other) => *other,
                    _ => return None,
                },
                _ => return None,
            };
            bool(other.bits >= cidr.bits && cidr.contains(other.address))
        }
        (Opaque::Url(url), "getScheme", []) => text(&url.scheme),
        (Opaque::Url(url), "getHost", []) => text(&url.host),
        (Opaque::Url(url), "getHostname", []) => text(url.hostname()),
        (Opaque::Url(url), "getPort", []) => text(url.port()),
        (Opaque::Url(url), "getEscapedPath", []) => text(&url.path),
        (Opaque::Url(url), "getQuery", []) => Some(Ok(query(&url.query))),
        _ => None,
    }
}
