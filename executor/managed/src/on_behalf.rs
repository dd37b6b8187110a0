//! [`OnBehalf`]: the attempt at a shard that something is sent for. It knows what earlier attempts were answered, and lets
//! whoever ends the attempt wait for calls that are still under way: they are paid for, whether anybody wants them or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rowmill_jobs::Result;
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, RwLock};

use crate::journal::{Journal, Known};

/// An attempt at a shard.
#[derive(Debug)]
pub struct OnBehalf {
    /// The shard.
    pub shard: u32,
    /// The attempt.
    pub attempt: String,
    known: Arc<OnceCell<Known>>,
    /// Held by calls under way.
    calls: Arc<RwLock<()>>,
    /// Nano-dollars for rows that have no answer to count them with.
    unanswered_nano_usd: Arc<AtomicU64>,
    /// Whether its rows have left before.
    leaving: Leaving,
}

/// Whether rows leave for the first time: only those are taken from what a rule allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// They do.
    #[default]
    First,
    /// They have left with a batch.
    Again,
}

impl OnBehalf {
    /// An attempt at a shard.
    pub fn new(shard: u32, attempt: &str) -> Arc<Self> {
        let (known, calls, unanswered_nano_usd, leaving) = Default::default();
        Arc::new(Self { shard, attempt: attempt.to_owned(), known, calls, unanswered_nano_usd, leaving })
    }

    /// The same attempt, on behalf of rows that leave so.
    pub(crate) fn leaving(&self, leaving: Leaving) -> Arc<Self> {
        Arc::new(Self {
            shard: self.shard,
            attempt: self.attempt.clone(),
            known: Arc::clone(&self.known),
            calls: Arc::clone(&self.calls),
            unanswered_nano_usd: Arc::clone(&self.unanswered_nano_usd),
            leaving,
        })
    }

    /// How many of so many rows leave for the first time.
    pub(crate) fn first_of(&self, rows: u64) -> u64 {
        if self.leaving == Leaving::First { rows } else { 0 }
    }

    /// Counts what was paid for rows that ended in errors.
    pub(crate) fn paid_for_errors(&self, nano_usd: u64) {
        self.unanswered_nano_usd.fetch_add(nano_usd, Ordering::Relaxed);
    }

    /// What was paid in this attempt for rows that ended in errors, in nano-dollars: no answer's usage counts it.
    pub fn unanswered_nano_usd(&self) -> u64 {
        self.unanswered_nano_usd.load(Ordering::Relaxed)
    }

    /// What earlier attempts were answered; read when it is first asked for.
    ///
    /// # Errors
    /// The store does not answer.
    pub(crate) async fn known(&self, journal: &Journal) -> Result<&Known> {
        self.known.get_or_try_init(|| journal.known(self.shard)).await
    }

    /// Says that calls are under way until what is returned is dropped.
    pub(crate) async fn enter(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.calls).read_owned().await
    }

    /// Returns once no call is under way.
    pub async fn quiet(&self) {
        drop(self.calls.write().await);
    }
}

/// Tells work that nobody waits for it any more, when it is dropped: what is under way ends, nothing new begins.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// The flag that is set once nobody waits.
    pub(crate) fn unwanted(&self) -> Unwanted {
        Unwanted(Arc::clone(&self.0))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether work is not wanted any more.
#[derive(Debug, Clone)]
pub(crate) struct Unwanted(Arc<AtomicBool>);

impl Unwanted {
    /// Nobody shall begin anything new.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is so.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
