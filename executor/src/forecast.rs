//! [`Forecast`]: whether a run will miss its deadline, from what its store shows of it: parts and when they came, shards
//! under way. Deciding is [`Seen::end_ms`], which knows no clock and no store.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::plan::Plan;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Result, layout};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a look at the store is good for.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Silence after the last part, in mean times between parts, that is no chance any more: the run has slowed down.
const STALLED: i64 = 3;

/// What is known of a run's progress. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Seen {
    /// Input rows of the run.
    pub(crate) rows: u64,
    /// Those whose parts are there.
    pub(crate) rows_done: u64,
    /// Parts that are there.
    pub(crate) parts: i64,
    /// When the plan was stored.
    pub(crate) began_ms: i64,
    /// When the last part came.
    pub(crate) last_ms: i64,
    /// Shards that were begun and have no part.
    pub(crate) under_way: u64,
}

impl Seen {
    /// When the run will end; `own_rate` is what whoever asks gets done, in rows a millisecond, for as long as no part says
    /// more. `None` while nothing is known.
    ///
    /// Executors that have just begun show in no part yet, so the first forecasts are late rather than early.
    pub(crate) fn end_ms(&self, own_rate: Option<f64>, now_ms: i64) -> Option<i64> {
        let open = self.rows.saturating_sub(self.rows_done) as f64;
        let took = (self.last_ms - self.began_ms).max(1);
        let rate = if self.parts == 0 {
            // Others are as fast as this one.
            own_rate? * self.under_way.max(1) as f64
        } else {
            let stalled = now_ms - self.last_ms > STALLED * took / self.parts;
            let took = if stalled { (now_ms - self.began_ms).max(took) } else { took };
            self.rows_done as f64 / took as f64
        };
        let left = if open > 0.0 { open / rate } else { 0.0 };
        // What never ends is infinite, and a cast takes it for the greatest number there is.
        Some(now_ms.saturating_add(left as i64))
    }
}

/// Whether a run will miss its deadline.
#[derive(Debug)]
pub(crate) struct Forecast {
    store: Arc<dyn Store>,
    run_key: String,
    shard_rows: Vec<u64>,
    deadline_ms: i64,
    seen: Mutex<Option<(Instant, Seen)>>,
}

impl Forecast {
    /// Of a run with a deadline.
    pub(crate) fn of(plan: &Plan, store: &Arc<dyn Store>) -> Option<Self> {
        Some(Self {
            store: Arc::clone(store),
            run_key: plan.run_key.clone(),
            shard_rows: plan.shards.iter().map(|shard| shard.rows()).collect(),
            deadline_ms: plan.deadline_ms?,
            seen: Mutex::default(),
        })
    }

    /// Whether the run will be late; as [`Seen::end_ms`]. A store that does not answer is no reason to spend money.
    pub(crate) async fn is_late(&self, own_rate: Option<f64>, now_ms: i64) -> bool {
        if now_ms >= self.deadline_ms {
            return true;
        }
        match self.look().await {
            Ok(seen) => seen.end_ms(own_rate, now_ms).is_some_and(|end_ms| end_ms > self.deadline_ms),
            Err(error) => {
                tracing::warn!(error = %error, "the store does not answer, so the deadline cannot be forecast");
                false
            }
        }
    }

    /// Input rows whose parts are not there.
    pub(crate) async fn open_rows(&self) -> Result<u64> {
        let seen = self.look().await?;
        Ok(seen.rows.saturating_sub(seen.rows_done))
    }

    async fn look(&self) -> Result<Seen> {
        let mut known = self.seen.lock().await;
        if let Some((at, seen)) = *known
            && at.elapsed() < LOOK_EVERY
        {
            return Ok(seen);
        }
        let mut seen = Seen { rows: self.shard_rows.iter().sum(), ..Seen::default() };
        let plan = self.store.head(&layout::plan(&self.run_key)).await?;
        seen.began_ms = plan.map_or(0, |plan| plan.modified_ms);
        let mut done = vec![false; self.shard_rows.len()];
        for part in self.store.list(&layout::parts(&self.run_key)).await? {
            let Some(shard) = layout::shard_of_part(&self.run_key, &part.name).map(|shard| shard as usize) else {
                continue;
            };
            let Some(rows) = self.shard_rows.get(shard) else { continue };
            done[shard] = true;
            seen.parts += 1;
            seen.rows_done += rows;
            seen.last_ms = seen.last_ms.max(part.modified_ms);
        }
        let mut begun = vec![false; self.shard_rows.len()];
        for attempt in self.store.list(&layout::attempts_of_run(&self.run_key)).await? {
            let shard = layout::shard_of_attempt(&self.run_key, &attempt.name);
            if let Some(begun) = shard.and_then(|shard| begun.get_mut(shard as usize)) {
                *begun = true;
            }
        }
        seen.under_way = begun.iter().zip(&done).filter(|(begun, done)| **begun && !**done).count() as u64;
        *known = Some((Instant::now(), seen));
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Seen = Seen { rows: 1_000, rows_done: 0, parts: 0, began_ms: 0, last_ms: 0, under_way: 2 };

    #[test]
    fn before_the_first_part_the_own_rate_counts_for_all_who_work() {
        assert_eq!(NEW.end_ms(None, 50_000), None);
        assert_eq!(NEW.end_ms(Some(0.01), 50_000), Some(100_000));
        assert_eq!(Seen { under_way: 0, ..NEW }.end_ms(Some(0.01), 50_000), Some(150_000));
    }

    #[test]
    fn parts_tell_how_fast_all_are_together() {
        let half = Seen { rows_done: 500, parts: 5, last_ms: 50_000, ..NEW };
        assert_eq!(half.end_ms(Some(9.0), 52_000), Some(102_000));
        // Long silence: whoever worked has stopped.
        assert_eq!(half.end_ms(None, 100_000), Some(200_000));
        assert_eq!(Seen { rows_done: 1_000, ..half }.end_ms(None, 52_000), Some(52_000));
    }

    #[test]
    fn what_never_ends_is_late() {
        assert_eq!(NEW.end_ms(Some(0.0), 1), Some(i64::MAX));
    }
}
