//! A shard's rows on their way into batches: identities, and cutting by a provider's limits. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::call::Estimate;
use crate::hex;

/// Bytes of a digest in the names that rows and batches have at a provider: two digits each, which are allowed everywhere.
const NAME_BYTES: usize = 16;

/// A row's request.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRow {
    /// JSON body of the request that a dialect made, as it would be sent online.
    pub body: Bytes,
    /// What it will take.
    pub estimate: Estimate,
}

/// What a shard sends in batches at once: one model, one kind of request.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchJob {
    /// The run.
    pub run_key: String,
    /// The shard.
    pub shard: u32,
    /// Names these requests among all of the shard: see [`BatchJob::named_for`].
    pub chunk: String,
    /// Model, as the provider names it.
    pub model: String,
    /// What the rows ask for.
    pub asks: Asks,
    /// The rows, in an order that is the same in every process.
    pub rows: Vec<BatchRow>,
}

/// The kind of request that all rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asks {
    /// A model's words.
    Text,
    /// Vectors.
    Vectors,
}

impl BatchJob {
    /// A digest of all requests in their order: another process must have the same ones to go on.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.model.as_bytes());
        for row in &self.rows {
            hasher.update((row.body.len() as u64).to_le_bytes());
            hasher.update(&row.body);
        }
        hex::encode(hasher.finalize())
    }

    /// Names the chunk by what it asks, and whom: the same in every process, and another for other requests.
    #[must_use]
    pub fn named_for(mut self, provider: &str) -> Self {
        let text = format!("{provider}\n{}", self.digest());
        self.chunk = name_of(&text);
        self
    }

    /// Name of a batch at the provider: of this run, shard and chunk, this round, this batch.
    pub fn batch_name(&self, round: u32, batch: usize) -> String {
        let text = format!("{}\n{}\n{}\n{round}\n{batch}", self.run_key, self.shard, self.chunk);
        format!("rowmill-{}", name_of(&text))
    }
}

/// Name of a row in a batch. Tells nothing of its content.
pub fn row_name(batch_name: &str, row: u32) -> String {
    name_of(&format!("{batch_name}\n{row}"))
}

fn name_of(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..NAME_BYTES])
}

/// How much a provider takes in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fewest rows.
    pub rows_min: usize,
    /// Most rows.
    pub rows_max: usize,
    /// Bytes of the input, in the provider's own format.
    pub bytes_max: usize,
}

/// Rows that follow each other: from the first to before the second.
pub type Range = (u32, u32);

/// Rows as few ranges; `rows` must be sorted.
pub fn ranges(rows: &[u32]) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for &row in rows {
        match ranges.last_mut() {
            Some((_, end)) if *end == row => *end += 1,
            _ => ranges.push((row, row + 1)),
        }
    }
    ranges
}

/// The rows of ranges.
pub fn rows_of(ranges: &[Range]) -> impl Iterator<Item = u32> + '_ {
    ranges.iter().flat_map(|(start, end)| *start..*end)
}

/// Cuts rows into batches that respect the limits; `bytes_of` tells the size of a row in the provider's format. They are as
/// few as can be, and of about the same number of rows where the last one would have too few. Rows that are in none are too
/// few for a batch of their own. A row too large for any batch gets one of its own, where that may have one row: the provider
/// shall refuse it.
pub fn cut(rows: &[u32], limits: Limits, bytes_of: impl Fn(u32) -> usize) -> Vec<Vec<u32>> {
    let full = fill(rows, limits.bytes_max, &bytes_of, |_| limits.rows_max);
    let is_enough = |batch: &Vec<u32>| batch.len() >= limits.rows_min;
    if full.iter().all(is_enough) {
        return full;
    }
    // There is one at least: it has too few.
    let (least, longer) = (rows.len() / full.len(), rows.len() % full.len());
    let even = fill(rows, limits.bytes_max, &bytes_of, |index| least + usize::from(index < longer));
    let whole = |batches: &[Vec<u32>]| -> usize { batches.iter().filter(|batch| is_enough(batch)).map(Vec::len).sum() };
    let best = if whole(&even) > whole(&full) { even } else { full };
    best.into_iter().filter(is_enough).collect()
}

/// Fills one batch after the other, each with so many rows at most as its place allows.
fn fill(
    rows: &[u32],
    bytes_max: usize,
    bytes_of: &impl Fn(u32) -> usize,
    rows_max: impl Fn(usize) -> usize,
) -> Vec<Vec<u32>> {
    let mut batches: Vec<Vec<u32>> = Vec::new();
    let mut bytes = 0usize;
    for &row in rows {
        let more = bytes_of(row);
        let place = batches.len().saturating_sub(1);
        match batches.last_mut() {
            Some(batch) if batch.len() < rows_max(place) && bytes + more <= bytes_max => {
                batch.push(row);
                bytes += more;
            }
            _ => {
                batches.push(vec![row]);
                bytes = more;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_respect_both_limits_and_hold_every_row_once() {
        let rows: Vec<u32> = (0..1000).collect();
        let limits = Limits { rows_min: 1, rows_max: 70, bytes_max: 1000 };
        let bytes_of = |row: u32| (row as usize * 7919) % 97;
        let batches = cut(&rows, limits, bytes_of);
        assert!(batches.iter().all(|batch| batch.len() <= 70));
        assert!(batches.iter().all(|batch| batch.iter().map(|row| bytes_of(*row)).sum::<usize>() <= 1000));
        assert_eq!(batches.concat(), rows);
        // As few as can be: no batch could take the first row of the next.
        for pair in batches.windows(2) {
            let bytes: usize = pair[0].iter().map(|row| bytes_of(*row)).sum();
            assert!(pair[0].len() == 70 || bytes + bytes_of(pair[1][0]) > 1000);
        }
        assert_eq!(cut(&[3, 4], Limits { rows_min: 1, rows_max: 9, bytes_max: 1 }, |_| 50), [[3], [4]]);
    }

    #[test]
    fn no_batch_has_too_few_rows_and_as_few_rows_as_can_be_are_in_none() {
        let sizes = |count: u32, (rows_min, bytes_max): (usize, usize)| {
            let rows: Vec<u32> = (0..count).collect();
            let batches = cut(&rows, Limits { rows_min, rows_max: 10, bytes_max }, |_| 1);
            assert!(rows.starts_with(&batches.concat()), "{batches:?}");
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(22, (4, 100)), [8, 7, 7]);
        assert_eq!(sizes(21, (7, 100)), [7, 7, 7]);
        assert_eq!(sizes(24, (4, 100)), [10, 10, 4]);
        assert_eq!(sizes(20, (4, 100)), [10, 10]);
        assert_eq!(sizes(3, (4, 100)), [0; 0], "they are too few");
        assert_eq!(sizes(11, (8, 100)), [10], "none gets too few for another's sake");
        assert_eq!(sizes(7, (4, 6)), [6]);
        assert_eq!(sizes(8, (4, 6)), [4, 4]);
        // Wherever two halves of what is too much for one are enough, every row is in a batch.
        for count in 6..200 {
            assert_eq!(sizes(count, (5, 100)).iter().sum::<usize>(), count as usize, "{count}");
        }
    }

    #[test]
    fn ranges_are_the_rows() {
        let rows = [0, 1, 2, 5, 7, 8];
        assert_eq!(ranges(&rows), [(0, 3), (5, 6), (7, 9)]);
        assert_eq!(rows_of(&ranges(&rows)).collect::<Vec<_>>(), rows);
    }
}
