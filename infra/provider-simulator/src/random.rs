//! All chance in the simulator: numbers drawn from a seed and a name, so that the same requests meet the same fate.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The number that a text stands for.
pub(crate) fn of(text: impl AsRef<[u8]>) -> u64 {
    xxh3_64(text.as_ref())
}

/// A number that depends on the seed and on all of `names`.
pub(crate) fn draw(seed: u64, names: &[u64]) -> u64 {
    names.iter().fold(seed, |seed, name| xxh3_64_with_seed(&name.to_le_bytes(), seed))
}

/// Whether something happens that happens at this rate, from 0 to 1.
pub(crate) fn happens(number: u64, rate: f64) -> bool {
    share(number) < rate
}

/// A number from 0 to below 1.
pub(crate) fn share(number: u64) -> f64 {
    // 53 bits: what a double holds exactly.
    (number >> 11) as f64 / (1u64 << 53) as f64
}
