//! [`Random`]: all chance of a test, from one number (splitmix64), so that a seed is the same every time and everywhere.

use std::time::Duration;

/// Numbers that look random.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed. Neighbouring seeds have nothing in common.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        Self(random.any())
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.any() % bound.max(1) as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.any() % (high - low + 1)
    }

    /// Whether something happens that happens `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.any() % 1_000 < per_mille
    }

    /// `per_mille`, or 0 in some of the seeds: trouble of one kind shows best when another is absent.
    pub fn sometimes(&mut self, per_mille: u64) -> u64 {
        if self.chance(600) { self.between(1, per_mille) } else { 0 }
    }

    /// A time from `low` to `high` milliseconds.
    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// A time up to `high` milliseconds, mostly short: each power of two is as likely as the next.
    pub fn mostly_short(&mut self, high: u64) -> Duration {
        let bound = 1 << self.between(0, u64::from(high.max(1).ilog2()));
        self.millis(0, bound.min(high))
    }
}
