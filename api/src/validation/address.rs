//! IP addresses and ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::check::{At, Errors};

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Reads an address; leading zeros are taken, as the oldest fields do.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut parts = [0u8; 4];
    let mut given = text.split('.');
    for part in &mut parts {
        let digits = given.next().filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
        *part = digits.trim_start_matches('0').parse().or_else(|_| if digits.bytes().all(|b| b == b'0') { Ok(0) } else { Err(()) }).ok()?;
    }
    given.next().is_none().then(|| Ipv4Addr::from(parts).into())
}

/// Reads a range; bits beyond the prefix are cleared.
pub(super) fn parse_range(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let bits: u8 = bits.parse().ok().filter(|_| bits.bytes().all(|b| b.is_ascii_digit()))?;
    match parse(ip)? {
        IpAddr::V4(ip) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Some((Ipv4Addr::from(u32::from(ip) & mask).into(), bits))
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Some((Ipv6Addr::from(u128::from(ip) & mask).into(), bits))
        }
        _ => None,
    }
}

/// Whether the first range lies within the second one and isn't all of it.
pub(super) fn is_strictly_within(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    let shown = format!("{}/{}", inner.0, outer.1);
    inner.1 > outer.1 && inner.0.is_ipv4() == outer.0.is_ipv4() && parse_range(&shown) == Some(outer)
}

/// An IP address, in any form.
pub(super) fn ip(e: &mut Errors, at: &At) {
    if parse(at.str()).is_none() {
        e.invalid_value(at, at.str(), NO_IP);
    }
}

/// An IP address in its canonical form.
pub(super) fn strict_ip(e: &mut Errors, at: &At) {
    match parse(at.str()) {
        None => e.invalid_value(at, at.str(), NO_IP),
        Some(_) if at.str().parse::<IpAddr>().is_err() => e.invalid(at, "must not have leading 0s"),
        Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => e.invalid(at, "must not be an IPv4-mapped IPv6 address"),
        Some(ip) if ip.to_string() != at.str() => e.invalid(at, format!("must be in canonical form ({:?})", ip.to_string())),
        Some(_) => {}
    }
}

/// A range of addresses, in any form.
pub(super) fn range(e: &mut Errors, at: &At) {
    if parse_range(at.str()).is_none() {
        e.invalid_value(at, at.str(), NO_RANGE);
    }
}

/// A range of addresses in its canonical form.
pub(super) fn strict_range(e: &mut Errors, at: &At) {
    let Some((first, bits)) = parse_range(at.str()) else { return e.invalid_value(at, at.str(), NO_RANGE) };
    let (ip, length) = at.str().split_once('/').unwrap_or(("", ""));
    match ip.parse::<IpAddr>() {
        Err(_) => e.invalid(at, "must not have leading 0s in IP or prefix length"),
        Ok(_) if length != bits.to_string() => e.invalid(at, "must not have leading 0s in IP or prefix length"),
        Ok(ip) if ip != first => e.invalid(at, "must not have bits set beyond the prefix length"),
        Ok(_) if format!("{first}/{bits}") != at.str() => e.invalid(at, format!("must be in canonical form (\"{first}/{bits}\")")),
        Ok(_) => {}
    }
}

/// An address that others can reach: none of those with a meaning of their own.
pub(super) fn endpoint_ip(e: &mut Errors, at: &At) {
    let Some(ip) = parse(at.str()) else { return e.invalid_value(at, at.str(), "must be a valid IP address") };
    let (local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        e.invalid(at, format!("may not be unspecified ({})", at.str()));
    }
    if ip.is_loopback() {
        e.invalid(at, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if local {
        e.invalid(at, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        e.invalid(at, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// At most two, and of two one of each family. `read` gives an item's address or range.
pub(super) fn one_of_each_family(e: &mut Errors, list: &At, read: for<'x> fn(&At<'x>) -> &'x str, words: &str) {
    let families: Vec<bool> = list.items().map(|item| read(&item).contains(':')).collect();
    let fine = match families.as_slice() {
        [] | [_] => true,
        [a, b] => a != b,
        _ => false,
    };
    if !fine {
        e.invalid(list, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(parse("010.1.1.1"), Some(Ipv4Addr::new(10, 1, 1, 1).into()));
        assert_eq!(parse("1.2.3"), None);
        assert_eq!(parse("1.2.3.256"), None);
        assert!(parse("fd00::1").is_some_and(|ip| ip.is_ipv6()));
        assert_eq!(parse_range("10.1.2.3/8").map(|(ip, bits)| (ip.to_string(), bits)), Some(("10.0.0.0".into(), 8)));
        assert_eq!(parse_range("0.0.0.0/0").map(|r| r.1), Some(0));
        assert_eq!(parse_range("10.0.0.0/33"), None);
        let within = |a: &str, b: &str| is_strictly_within(parse_range(a).expect(a), parse_range(b).expect(b));
        assert!(within("10.1.0.0/16", "10.0.0.0/8"));
        assert!(!within("10.0.0.0/8", "10.0.0.0/8") && !within("11.0.0.0/16", "10.0.0.0/8"));
    }
}
