//! The kernel's memory of UDP conversations: a client that goes on talking keeps the endpoint that it was given, even when
//! that is gone, unless its entry is deleted. Spoken with over netlink (`ctnetlink`), in messages of a few fields.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// An address and a port.
pub type Socket = (Ipv4Addr, u16);

/// The UDP ports that Services have: by address (none for a node port, which every address of the node has) and port, the
/// endpoints behind it.
pub type Ports = BTreeMap<(Option<Ipv4Addr>, u16), BTreeSet<Socket>>;

/// Messages of the conntrack subsystem, and netlink's own.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flags: a request, one that is to be acknowledged, one for all there is.
const REQUEST: u16 = 0x01;
const ACK: u16 = 0x04;
const DUMP: u16 = 0x300;
/// Attributes.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const KIND: u16 = 0x3fff;
const HEAD: usize = 16;
const GENERIC: usize = 4;
const UDP: u8 = 17;

/// An entry of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Where the client sends.
    to: Socket,
    /// Who answers.
    from: Socket,
    /// What names the entry when it is to be deleted, as the kernel wrote it.
    name: Vec<u8>,
}

/// Whether the entry leads to what is no endpoint of its Service any more.
fn is_stale(entry: &Entry, changed: &Ports) -> bool {
    let (ip, port) = entry.to;
    let translated = entry.to != entry.from;
    let by_address = changed.get(&(Some(ip), port));
    let by_port = changed.get(&(None, port)).filter(|_| translated);
    by_address.or(by_port).is_some_and(|endpoints| !endpoints.contains(&entry.from))
}

/// The ports whose endpoints are others than before, with what they are now; none for what is no port of a Service now.
pub fn changed(before: Option<&Ports>, now: &Ports) -> Ports {
    let empty = Ports::new();
    let before = before.unwrap_or(&empty);
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let differ = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
    differ.map(|key| (*key, now.get(key).cloned().unwrap_or_default())).collect()
}

/// Deletes the entries that lead nowhere any more; how many. Blocks for the moment that the kernel takes.
pub fn flush(changed: &Ports) -> io::Result<usize> {
    let netlink = Netlink::open()?;
    let stale: Vec<Entry> = netlink.udp()?.into_iter().filter(|entry| is_stale(entry, changed)).collect();
    for entry in &stale {
        netlink.delete(entry)?;
    }
    Ok(stale.len())
}

struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(fd))
    }

    /// Asks, and gives each answer's type and body to `take` until that says that it was the last.
    fn ask(&self, kind: u16, flags: u16, body: &[u8], mut take: impl FnMut(u16, &[u8]) -> io::Result<bool>) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message(kind, flags, body), MsgFlags::empty())?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, after)) = split_message(rest) {
                if take(kind, body)? {
                    return Ok(());
                }
                rest = after;
            }
        }
    }

    /// All entries of UDP over IPv4.
    fn udp(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.ask(GET, REQUEST | DUMP, &[], |kind, body| match kind {
            DONE => Ok(true),
            ERROR => outcome(body).map(|()| true),
            _ => {
                entries.extend(body.get(GENERIC..).and_then(entry));
                Ok(false)
            }
        })?;
        Ok(entries)
    }

    fn delete(&self, entry: &Entry) -> io::Result<()> {
        let deleted = self.ask(DELETE, REQUEST | ACK, &entry.name, |_, body| outcome(body).map(|()| true));
        match deleted {
            // Gone by itself meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + GENERIC + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Number and sender, which nobody looks at; then the family.
    bytes.extend([0; 8]);
    bytes.extend([2, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// The type and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEAD..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// What the kernel says to a request: zero, or an error's number.
fn outcome(body: &[u8]) -> io::Result<()> {
    let number = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}

/// The attributes: kind, value, and the whole as it was written.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & KIND;
        let (value, padded) = (bytes.get(4..length)?, length.next_multiple_of(4).min(bytes.len()));
        let (whole, rest) = bytes.split_at(padded);
        bytes = rest;
        Some((kind, value, whole))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, ..)| *k == kind).map(|(_, value, _)| value)
}

/// An entry, if it is one of UDP over IPv4.
fn entry(bytes: &[u8]) -> Option<Entry> {
    let (to, from) = (end(attribute(bytes, ORIGINAL)?, true)?, end(attribute(bytes, REPLY)?, false)?);
    let name = attributes(bytes).filter(|(kind, ..)| matches!(*kind, ORIGINAL | ID | ZONE)).flat_map(|(.., whole)| whole.iter().copied()).collect();
    Some(Entry { to, from, name })
}

/// One end of a direction: where it goes, or where it comes from.
fn end(tuple: &[u8], destination: bool) -> Option<Socket> {
    let (ip, protocol) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    if attribute(protocol, 1)?.first() != Some(&UDP) {
        return None;
    }
    let (address, port) = if destination { (2, 3) } else { (1, 2) };
    let address: [u8; 4] = attribute(ip, address)?.try_into().ok()?;
    let port: [u8; 2] = attribute(protocol, port)?.try_into().ok()?;
    Some((address.into(), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Socket = (Ipv4Addr::new(10, 96, 0, 9), 53);

    fn pod(last: u8) -> Socket {
        (Ipv4Addr::new(10, 244, 0, last), 5353)
    }

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, from: Socket, to: Socket) -> Vec<u8> {
        let ip = [attr(1, &from.0.octets()), attr(2, &to.0.octets())].concat();
        let protocol = [attr(1, &[UDP]), attr(2, &from.1.to_be_bytes()), attr(3, &to.1.to_be_bytes())].concat();
        attr(kind | 0x8000, &[attr(1 | 0x8000, &ip), attr(2 | 0x8000, &protocol)].concat())
    }

    #[test]
    fn entries_are_read_as_the_kernel_writes_them() {
        let client = (Ipv4Addr::new(10, 244, 0, 9), 40_000);
        let bytes = [tuple(ORIGINAL, client, SERVICE), tuple(REPLY, pod(2), client), attr(3, &[0; 4]), attr(ID, &[1, 2, 3, 4])].concat();
        let found = entry(&bytes).expect("an entry");
        assert_eq!((found.to, found.from), (SERVICE, pod(2)));
        assert_eq!(found.name, [tuple(ORIGINAL, client, SERVICE), attr(ID, &[1, 2, 3, 4])].concat());
        let framed = message(GET, REQUEST, &bytes);
        assert_eq!(split_message(&framed).map(|(kind, body, rest)| (kind, &body[GENERIC..], rest.len())), Some((GET, &bytes[..], 0)));
        assert_eq!(entry(&bytes[..20]), None);
    }

    #[test]
    fn what_is_stale() {
        let check = |to: Socket, from: Socket, expected: bool| {
            let changed = Ports::from([((Some(SERVICE.0), 53), [pod(2)].into()), ((None, 30_053), [pod(2)].into())]);
            assert_eq!(is_stale(&Entry { to, from, name: Vec::new() }, &changed), expected, "{to:?} {from:?}");
        };
        check(SERVICE, pod(2), false);
        check(SERVICE, pod(3), true);
        // Sent while the Service had no endpoints.
        check(SERVICE, SERVICE, true);
        let node = (Ipv4Addr::new(192, 168, 1, 5), 30_053);
        check(node, pod(3), true);
        check(node, pod(2), false);
        check(node, node, false);
        check((SERVICE.0, 54), pod(3), false);
    }

    #[test]
    fn changes() {
        let key = |port| (Some(SERVICE.0), port);
        let before = Ports::from([(key(1), [pod(1)].into()), (key(2), [pod(1)].into()), (key(3), [pod(1)].into())]);
        let now = Ports::from([(key(1), [pod(1)].into()), (key(2), [pod(2)].into()), (key(4), [pod(1)].into())]);
        let expected = Ports::from([(key(2), [pod(2)].into()), (key(3), [].into()), (key(4), [pod(1)].into())]);
        assert_eq!(changed(Some(&before), &now), expected);
    }
}
