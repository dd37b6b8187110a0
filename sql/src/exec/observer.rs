//! What a running shard tells: amounts to add up, never rows.

use std::sync::{Arc, Mutex, PoisonError};

use rowmill_jobs::infer::Usage;

/// What happened since the last report; add them up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows that came out of the job's base query.
    pub rows_in: u64,
    /// Rows of the result.
    pub rows_out: u64,
    /// Rows of the result with at least one error.
    pub errors: u64,
    /// Row values that had to be answered, repeated ones included.
    pub values: u64,
    /// Distinct requests that the engine was sent.
    pub requests: u64,
    /// Tokens they took.
    pub usage: Usage,
}

/// Hears how a shard comes along. Called from any thread, after each window of requests and each batch of rows.
pub trait Observer: Send + Sync {
    /// Something moved.
    fn window(&self, progress: &Progress);
}

/// The sums of one shard, handed on to its observer.
pub(crate) struct Totals {
    observer: Arc<dyn Observer>,
    sums: Mutex<Progress>,
}

impl Totals {
    pub(crate) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer, sums: Mutex::default() }
    }

    pub(crate) fn add(&self, progress: Progress) {
        {
            let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.rows_in += progress.rows_in;
            sums.rows_out += progress.rows_out;
            sums.errors += progress.errors;
            sums.values += progress.values;
            sums.requests += progress.requests;
            sums.usage += progress.usage;
        }
        self.observer.window(&progress);
    }

    pub(crate) fn sums(&self) -> Progress {
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Totals({:?})", self.sums())
    }
}
