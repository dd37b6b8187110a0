//! Biases of attention scores that depend only on how far two tokens are apart, and on the head: learned ones by buckets
//! (MPNet) and slopes (ALiBi). Each is a table, so that a query's biases are one run of it.

use crate::kernels::{add, simd};

/// Buckets of MPNet's distances, on both sides together; its table may have more rows, which nothing reads.
pub(crate) const BUCKETS: usize = 32;
/// The distance from which on all share the last bucket.
const BUCKET_DISTANCE_MAX: f32 = 128.0;

/// A bias for each head and distance.
#[derive(Debug)]
pub(crate) struct DistanceBias {
    /// `[heads, 2 * context - 1]`; column `c` is for a token `c - (context - 1)` places behind the query.
    table: Vec<f32>,
    context: usize,
}

impl DistanceBias {
    /// Learned biases, `[rows, heads]`, a row for each bucket.
    pub(crate) fn of_buckets(biases: &[f32], heads: usize, context: usize) -> Self {
        Self::new(heads, context, |head, behind| biases[bucket(behind) * heads + head])
    }

    /// A slope for each head (Press et al., 2022), alike on both sides.
    pub(crate) fn of_slopes(heads: usize, context: usize) -> Self {
        let slopes = slopes(heads);
        Self::new(heads, context, |head, behind| -slopes[head] * behind.unsigned_abs() as f32)
    }

    fn new(heads: usize, context: usize, bias: impl Fn(usize, isize) -> f32) -> Self {
        let last = context as isize - 1;
        let table = (0..heads).flat_map(|head| (-last..=last).map(move |behind| (head, behind)));
        Self { table: table.map(|(head, behind)| bias(head, behind)).collect(), context }
    }

    /// Adds the biases of the query of `head` at `position` to its scores.
    pub(crate) fn add(&self, head: usize, position: usize, scores: &mut [f32]) {
        let from = head * (2 * self.context - 1) + self.context - 1 - position;
        simd(
            #[inline(always)]
            || add(scores, &self.table[from..from + scores.len()]),
        );
    }
}

/// T5's buckets (Raffel et al., 2020), as MPNet has them: half of them for tokens behind the query; of each half, one for
/// each near distance, and then ever wider ones.
fn bucket(behind: isize) -> usize {
    let half = BUCKETS / 2;
    let near = half / 2;
    let side = if behind > 0 { half } else { 0 };
    let distance = behind.unsigned_abs();
    if distance < near {
        return side + distance;
    }
    let share = (distance as f32 / near as f32).ln() / (BUCKET_DISTANCE_MAX / near as f32).ln();
    side + (near + (share * (half - near) as f32) as usize).min(half - 1)
}

/// Slopes of heads: a geometric series for a power of two, else that of the next lower one and every other of the next higher.
fn slopes(heads: usize) -> Vec<f32> {
    let series = |count: usize| (1..=count).map(move |i| 2f32.powf(-8.0 * i as f32 / count as f32));
    let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    series(whole).chain(series(2 * whole).step_by(2)).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_any_number_of_heads() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // The values of the paper's own code for three heads.
        let expected = [0.0625, 0.00390625, 0.25];
        assert!(slopes(3).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{:?}", slopes(3));
    }

    #[test]
    fn buckets_are_exact_near_by_and_shared_far_away() {
        let behind: Vec<usize> = [0, 1, 7, 8, 15, 16, 64, 127, 128, 5000].map(bucket).to_vec();
        assert_eq!(behind, [0, 17, 23, 24, 25, 26, 30, 31, 31, 31]);
        assert_eq!([-1, -7, -8, -128].map(bucket), [1, 7, 8, 15]);
    }
}
