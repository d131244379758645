//! The hash of a template, as it appears in names and labels.

use serde::Serialize;

/// The letters and digits that a hash is spelled with, without vowels.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Hashes what `value` serializes to, and the collision count where there is one. Upstream's spelling (FNV-1a of 32
/// bits, its decimal digits in safe letters); its input is a Go program's own, so the values differ.
pub fn hash(value: &impl Serialize, collisions: Option<i32>) -> String {
    // Only maps with keys that aren't text fail to serialize; Kubernetes has none.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    let sum = bytes.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    sum.to_string().bytes().map(|b| ALPHABET[usize::from(b) % ALPHABET.len()] as char).collect()
}
