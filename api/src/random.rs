//! The one source of randomness: name suffixes, jitter, uids that needn't be secret.
//!
//! A thread that called [`seed`] draws the same values each run. Secrets (keys, tokens) are never drawn from here.

/// The letters and digits of generated names: upstream's set, without vowels and look-alikes, so that no word can form.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Makes this thread's draws repeatable.
pub fn seed(seed: u64) {
    fastrand::seed(seed);
}

/// A suffix of `len` characters, as generated names carry it (`nginx-7d4f8c9b5-x2x7k`).
pub fn suffix(len: usize) -> String {
    (0..len).map(|_| NAME_ALPHABET[fastrand::usize(..NAME_ALPHABET.len())] as char).collect()
}

/// A fraction in `0.0..1.0`.
pub fn fraction() -> f64 {
    fastrand::f64()
}

/// A number below `bound`; 0 when `bound` is 0.
pub fn below(bound: usize) -> usize {
    if bound == 0 { 0 } else { fastrand::usize(..bound) }
}

/// A version 4 UUID, as objects carry it in `metadata.uid`.
pub fn uid() -> String {
    let mut bits = fastrand::u128(..);
    bits = (bits & !(0xf << 76)) | (0x4 << 76);
    bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_4_and_repeat_with_the_seed() {
        seed(7);
        let first = uid();
        assert_eq!(first.as_bytes()[14], b'4');
        assert!("89ab".contains(first.as_bytes()[19] as char), "{first}");
        seed(7);
        assert_eq!(uid(), first);
    }
}
