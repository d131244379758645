//! What of a certificate rcgen can't write: a subject in which an attribute stands more than once, as groups do. The certificate
//! is made with another subject first, gets this one, and is signed again.

use rcgen::{KeyPair, SigningKey};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const BITS: u8 = 0x03;

/// What Go writes of a subject, in its order, by the last number of the attribute's type, 2.5.4.N: country, organizations, their
/// units, locality, province, street, postal code, common name, serial number. What else is asked for is left out, a uid too.
const ATTRIBUTES: [u8; 9] = [6, 10, 11, 7, 8, 9, 17, COMMON_NAME, 5];
const COMMON_NAME: u8 = 3;
const COUNTRY: u8 = 6;

/// A value behind its tag and length.
fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
    let bytes = content.len().to_be_bytes();
    let length = bytes.iter().position(|byte| *byte != 0).map_or(&bytes[..0], |from| &bytes[from..]);
    let mut out = vec![tag];
    match (content.len(), u8::try_from(length.len())) {
        (short @ 0..128, _) => out.extend(u8::try_from(short)),
        (_, count) => {
            out.extend(count.map(|count| 0x80 | count));
            out.extend(length);
        }
    }
    out.extend(content);
    out
}

/// How many bytes the tag and length take of a value that has so many in all.
fn head(value: &[u8]) -> Option<usize> {
    let first = *value.get(1)?;
    Some(2 + if first < 0x80 { 0 } else { usize::from(first & 0x7f) })
}

/// A subject as Go's library would write it anew; `None` when it isn't text.
pub(super) fn subject(asked: &X509Name<'_>) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for attribute in ATTRIBUTES {
        let oid = format!("2.5.4.{attribute}");
        let of_type = asked.iter_attributes().filter(|a| a.attr_type().to_id_string() == oid);
        let mut texts: Vec<&str> = of_type.map(|a| a.as_str().ok()).collect::<Option<_>>()?;
        if attribute == COMMON_NAME {
            texts = texts.pop().into_iter().collect();
        }
        let tag = if attribute == COUNTRY { PRINTABLE } else { UTF8 };
        let pair = |text: &&str| wrapped(SEQUENCE, &[wrapped(OBJECT_ID, &[0x55, 4, attribute]), wrapped(tag, text.as_bytes())].concat());
        let mut pairs: Vec<Vec<u8>> = texts.iter().map(pair).collect();
        // The members of a set stand in the order of their bytes.
        pairs.sort();
        if !pairs.is_empty() {
            names.extend(wrapped(SET, &pairs.concat()));
        }
    }
    Some(wrapped(SEQUENCE, &names))
}

/// The certificate with this subject in the place of its own, signed by the key that signed it before.
pub(super) fn with_subject(certificate: &[u8], subject: &[u8], key: &KeyPair) -> Option<Vec<u8>> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let (signed, old) = (read.tbs_certificate.as_ref(), read.subject().as_raw());
    let content = signed.get(head(signed)?..)?;
    // The parser's slices are of the same bytes.
    let from = (old.as_ptr() as usize).checked_sub(content.as_ptr() as usize)?;
    let renewed = wrapped(SEQUENCE, &[content.get(..from)?, subject, content.get(from + old.len()..)?].concat());
    let behind = certificate.get(head(certificate)? + signed.len()..)?;
    let algorithm = behind.get(..head(behind)? + usize::from(*behind.get(1)?))?;
    let signature = [&[0], key.sign(&renewed).ok()?.as_slice()].concat();
    Some(wrapped(SEQUENCE, &[renewed.as_slice(), algorithm, &wrapped(BITS, &signature)].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let check = |length: usize, expected: &[u8]| {
            let whole = wrapped(SEQUENCE, &vec![7; length]);
            assert_eq!((&whole[1..whole.len() - length], head(&whole)), (expected, Some(expected.len() + 1)));
        };
        check(0, &[0]);
        check(127, &[127]);
        check(128, &[0x81, 128]);
        check(300, &[0x82, 1, 44]);
    }
}
