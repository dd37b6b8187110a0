//! Counters of work in flight, for people who watch. Never read for correctness: they start at zero in each process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::infer::Usage;

/// What this process has done so far. All counters only grow.
#[derive(Debug, Default)]
pub struct Counters {
    rows_read: AtomicU64,
    rows_written: AtomicU64,
    row_errors: AtomicU64,
    input_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    output_tokens: AtomicU64,
    nano_usd: AtomicU64,
    parts_written: AtomicU64,
    rows_finished: AtomicU64,
    rows_kept: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Input rows that reached the shard's plan.
    pub rows_read: u64,
    /// Output rows.
    pub rows_written: u64,
    /// Output rows with at least one error.
    pub row_errors: u64,
    /// Tokens.
    pub usage: Usage,
    /// Parts committed by this process.
    pub parts_written: u64,
    /// Input rows of shards that this process finished.
    pub rows_finished: u64,
    /// Output rows of shards that this process finished.
    pub rows_kept: u64,
}

impl Snapshot {
    /// Input rows done, those of unfinished shards estimated. Rows are read well ahead of the model, so what was read
    /// says little; what came out says more, once finished shards tell which share of rows a filter keeps.
    pub fn rows_done(&self) -> u64 {
        let unfinished = self.rows_written.saturating_sub(self.rows_kept);
        let kept = if self.rows_kept > 0 { self.rows_kept as f64 / self.rows_finished as f64 } else { 1.0 };
        self.rows_finished + (unfinished as f64 / kept) as u64
    }
}

impl Counters {
    /// Counts input rows.
    pub fn read(&self, rows: u64) {
        self.rows_read.fetch_add(rows, Relaxed);
    }

    /// Counts output rows.
    pub fn wrote(&self, rows: u64, errors: u64) {
        self.rows_written.fetch_add(rows, Relaxed);
        self.row_errors.fetch_add(errors, Relaxed);
    }

    /// Counts tokens.
    pub fn used(&self, usage: Usage) {
        self.input_tokens.fetch_add(usage.input_tokens, Relaxed);
        self.cached_tokens.fetch_add(usage.cached_tokens, Relaxed);
        self.output_tokens.fetch_add(usage.output_tokens, Relaxed);
        self.nano_usd.fetch_add(usage.nano_usd, Relaxed);
    }

    /// Counts a committed part.
    pub fn committed(&self) {
        self.parts_written.fetch_add(1, Relaxed);
    }

    /// Counts a shard that is over, with its input rows and the output rows they became.
    pub fn finished(&self, rows: u64, kept: u64) {
        self.rows_finished.fetch_add(rows, Relaxed);
        self.rows_kept.fetch_add(kept, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            rows_read: self.rows_read.load(Relaxed),
            rows_written: self.rows_written.load(Relaxed),
            row_errors: self.row_errors.load(Relaxed),
            usage: Usage {
                input_tokens: self.input_tokens.load(Relaxed),
                cached_tokens: self.cached_tokens.load(Relaxed),
                output_tokens: self.output_tokens.load(Relaxed),
                nano_usd: self.nano_usd.load(Relaxed),
            },
            parts_written: self.parts_written.load(Relaxed),
            rows_finished: self.rows_finished.load(Relaxed),
            rows_kept: self.rows_kept.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_done_learns_what_a_filter_keeps() {
        let counters = Counters::default();
        counters.wrote(30, 0);
        assert_eq!(counters.snapshot().rows_done(), 30);
        counters.finished(60, 30);
        assert_eq!(counters.snapshot().rows_done(), 60);
        counters.wrote(10, 0);
        assert_eq!(counters.snapshot().rows_done(), 80);
    }
}
