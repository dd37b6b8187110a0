//! [`Forecast`]: whether a run will miss its deadline, from what its store shows of it: when attempts at shards began and when
//! their parts came. Deciding is [`end_ms`], which knows no clock and no store. Only the time that shards took counts, so a
//! run that stood still goes on as fast as before.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::plan::Plan;
use rowmill_jobs::store::Store;
use rowmill_jobs::{Error, Result, layout};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a look at the store is good for.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Parts that tell how fast shards are computed now: the last so many, or twice as many as are under way if that is more, so
/// that slow executors are among them.
const RECENT: usize = 8;
/// A shard that took so many times as long as the middle one counts as if it had taken only that: its machine slept.
const SLOW_MAX: f64 = 8.0;
/// A shard that has been under way for so many times as long as it should take is not: whoever began it is gone.
const STALLED: f64 = 3.0;
/// Of a shard under way never more is taken for done: rows differ.
const DONE_MAX: f64 = 0.8;

/// What is known of a shard. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ShardSeen {
    /// Its input rows.
    pub(crate) rows: u64,
    /// When the last attempt began; of a shard that is done, the last before its part came.
    pub(crate) began_ms: Option<i64>,
    /// When its part came.
    pub(crate) ended_ms: Option<i64>,
}

impl ShardSeen {
    /// How long it took, if it is done and has rows.
    fn took(&self) -> Option<(i64, f64, f64)> {
        let (began, ended) = self.began_ms.zip(self.ended_ms)?;
        (self.rows > 0).then_some((ended, self.rows as f64, (ended - began).max(1) as f64))
    }
}

/// When a run with these shards will end; `own_rate` is what whoever asks gets done, in rows a millisecond, for as long as no
/// part says more. `None` while nothing is known.
///
/// All shards under way are taken to be as fast as those that ended last, and as many to be under way until the end.
pub(crate) fn end_ms(shards: &[ShardSeen], own_rate: Option<f64>, now_ms: i64) -> Option<i64> {
    let begun = shards.iter().filter(|shard| shard.ended_ms.is_none() && shard.began_ms.is_some());
    let row_ms = row_ms(shards, RECENT.max(2 * begun.clone().count())).or_else(|| own_rate.map(|rate| 1.0 / rate))?;
    let (mut under_way, mut done) = (0_u32, 0.0);
    for shard in begun {
        let (rows, age) = (shard.rows as f64, now_ms.saturating_sub(shard.began_ms.unwrap_or(now_ms)).max(0) as f64);
        let expected = rows * row_ms;
        if age <= STALLED * expected {
            under_way += 1;
            done += rows * (age / expected).min(DONE_MAX);
        }
    }
    let open: u64 = shards.iter().filter(|shard| shard.ended_ms.is_none()).map(|shard| shard.rows).sum();
    // Whoever asks is at work, even if the store does not show it yet.
    let left = if open > 0 { (open as f64 - done) * row_ms / f64::from(under_way.max(1)) } else { 0.0 };
    // What never ends is infinite, and a cast takes it for the greatest number there is.
    Some(now_ms.saturating_add(left as i64))
}

/// Milliseconds that a row takes in one shard, by the last `recent` parts.
fn row_ms(shards: &[ShardSeen], recent: usize) -> Option<f64> {
    let mut done: Vec<(i64, f64, f64)> = shards.iter().filter_map(ShardSeen::took).collect();
    done.sort_unstable_by_key(|(ended, ..)| std::cmp::Reverse(*ended));
    done.truncate(recent);
    let mut paces: Vec<f64> = done.iter().map(|(_, rows, took)| took / rows).collect();
    paces.sort_unstable_by(f64::total_cmp);
    let slowest = SLOW_MAX * paces.get(paces.len() / 2)?;
    let rows: f64 = done.iter().map(|(_, rows, _)| rows).sum();
    Some(done.iter().map(|(_, rows, took)| took.min(rows * slowest)).sum::<f64>() / rows)
}

/// Whether a run will miss its deadline.
#[derive(Debug)]
pub(crate) struct Forecast {
    store: Arc<dyn Store>,
    run_key: String,
    shard_rows: Vec<u64>,
    deadline_ms: i64,
    last: Mutex<Option<Look>>,
}

/// A look at the store.
#[derive(Debug)]
struct Look {
    at: Instant,
    /// What was seen, if the store answered.
    seen: Option<Arc<[ShardSeen]>>,
}

impl Forecast {
    /// Of a run with a deadline.
    pub(crate) fn of(plan: &Plan, store: &Arc<dyn Store>) -> Option<Self> {
        Some(Self {
            store: Arc::clone(store),
            run_key: plan.run_key.clone(),
            shard_rows: plan.shards.iter().map(|shard| shard.rows()).collect(),
            deadline_ms: plan.deadline_ms?,
            last: Mutex::default(),
        })
    }

    /// Whether the run will be late; as [`end_ms`]. A store that does not answer is no reason to spend money.
    pub(crate) async fn is_late(&self, own_rate: Option<f64>, now_ms: i64) -> bool {
        if now_ms >= self.deadline_ms {
            return true;
        }
        match self.look().await {
            Ok(shards) => end_ms(&shards, own_rate, now_ms).is_some_and(|end_ms| end_ms > self.deadline_ms),
            Err(error) => {
                tracing::warn!(error = %error, "the store does not answer, so the deadline cannot be forecast");
                false
            }
        }
    }

    /// Input rows whose parts are not there.
    pub(crate) async fn open_rows(&self) -> Result<u64> {
        let seen = self.look().await?;
        Ok(seen.iter().filter(|shard| shard.ended_ms.is_none()).map(|shard| shard.rows).sum())
    }

    async fn look(&self) -> Result<Arc<[ShardSeen]>> {
        let mut last = self.last.lock().await;
        if let Some(Look { at, seen }) = &*last
            && at.elapsed() < LOOK_EVERY
        {
            // Many ask, and one after the other would wait for a store that stays away.
            return seen.clone().ok_or_else(|| Error::temporary("the store did not answer a moment ago"));
        }
        let seen = self.read().await;
        *last = Some(Look { at: Instant::now(), seen: seen.as_ref().ok().cloned() });
        seen
    }

    async fn read(&self) -> Result<Arc<[ShardSeen]>> {
        let mut shards: Vec<ShardSeen> =
            self.shard_rows.iter().map(|rows| ShardSeen { rows: *rows, ..ShardSeen::default() }).collect();
        for part in self.store.list(&layout::parts(&self.run_key)).await? {
            let shard = layout::shard_of_part(&self.run_key, &part.name);
            if let Some(shard) = shard.and_then(|shard| shards.get_mut(shard as usize)) {
                shard.ended_ms = Some(part.modified_ms);
            }
        }
        for attempt in self.store.list(&layout::attempts_of_run(&self.run_key)).await? {
            let shard = layout::shard_of_attempt(&self.run_key, &attempt.name);
            let Some(shard) = shard.and_then(|shard| shards.get_mut(shard as usize)) else { continue };
            // One that began after the part came made nothing.
            if shard.ended_ms.is_none_or(|ended| attempt.modified_ms <= ended) {
                shard.began_ms = shard.began_ms.max(Some(attempt.modified_ms));
            }
        }
        Ok(shards.into())
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::store::local::LocalStore;

    use super::*;

    const HOUR: i64 = 3_600_000;

    /// A shard of 100 rows.
    fn shard(began_ms: Option<i64>, ended_ms: Option<i64>) -> ShardSeen {
        ShardSeen { rows: 100, began_ms, ended_ms }
    }

    fn done(began_ms: i64, ended_ms: i64) -> ShardSeen {
        shard(Some(began_ms), Some(ended_ms))
    }

    fn under_way(began_ms: i64) -> ShardSeen {
        shard(Some(began_ms), None)
    }

    /// Some shards, and so many that nobody has begun.
    fn run(shards: &[ShardSeen], waiting: usize) -> Vec<ShardSeen> {
        shards.iter().copied().chain(std::iter::repeat_n(shard(None, None), waiting)).collect()
    }

    #[test]
    fn before_the_first_part_the_own_rate_counts_for_all_who_work() {
        let new = run(&[under_way(0), under_way(0)], 8);
        assert_eq!(end_ms(&new, None, 0), None);
        // Two at 100 rows in 10 s, ten shards; half-way through the first two, one shard's work is done.
        assert_eq!(end_ms(&new, Some(0.01), 0), Some(50_000));
        assert_eq!(end_ms(&new, Some(0.01), 5_000), Some(50_000));
        assert_eq!(end_ms(&run(&[], 10), Some(0.01), 5_000), Some(105_000), "whoever asks works");
    }

    #[test]
    fn a_run_of_one_shard_that_is_nearly_done_is_not_at_its_beginning() {
        assert_eq!(end_ms(&[under_way(0)], Some(0.01), 7_000), Some(10_000));
        // Rows differ: one that should be done is not taken to be.
        assert_eq!(end_ms(&[under_way(0)], Some(0.01), 12_000), Some(14_000));
    }

    #[test]
    fn parts_tell_how_fast_shards_are() {
        let half = run(&[done(0, 10_000), done(10_000, 20_000), under_way(20_000)], 2);
        // The own rate is that of one moment.
        assert_eq!(end_ms(&half, Some(9.0), 20_000), Some(50_000));
        assert_eq!(end_ms(&half, None, 25_000), Some(50_000));
        // Whoever worked is gone; who asks does the rest alone.
        assert_eq!(end_ms(&half, None, 60_000), Some(90_000));
        assert_eq!(end_ms(&run(&[done(0, 10_000)], 0), None, 12_000), Some(12_000));
    }

    #[test]
    fn one_part_is_enough() {
        assert_eq!(end_ms(&run(&[done(0, 10_000), under_way(10_000)], 1), None, 10_000), Some(30_000));
        // A part that nobody is known to have begun, or without rows, tells nothing.
        let nothing = [shard(None, Some(5)), ShardSeen { rows: 0, began_ms: Some(0), ended_ms: Some(5) }];
        assert_eq!(end_ms(&run(&nothing, 1), None, 10), None);
    }

    #[test]
    fn a_pause_counts_for_nothing() {
        // Two shards each, killed in the third; ten hours later it goes on, with a third begun again and a fourth still dead.
        let before = [done(0, 10_000), done(0, 10_000), done(10_000, 20_000), done(10_000, 20_000)];
        let resumed = 10 * HOUR;
        let mut shards = run(&before, 2);
        shards.extend([under_way(resumed), under_way(20_000)]);
        // Of four open shards one is under way, by one executor.
        assert_eq!(end_ms(&shards, None, resumed), Some(resumed + 40_000));
        shards[4] = under_way(resumed + 1);
        assert_eq!(end_ms(&shards, None, resumed + 1), Some(resumed + 20_000));
        // And after the first parts that came after the pause, too.
        shards[4] = done(resumed, resumed + 10_000);
        shards[5] = under_way(resumed + 10_000);
        assert_eq!(end_ms(&shards, None, resumed + 10_000), Some(resumed + 10_000 + 11_000));
    }

    #[test]
    fn a_machine_that_slept_in_the_middle_of_a_shard_is_no_slow_machine() {
        let mut shards: Vec<ShardSeen> = (0..7).map(|at| done(at * 10_000, (at + 1) * 10_000)).collect();
        shards.push(done(70_000, 70_000 + 10 * HOUR));
        let now = 70_000 + 10 * HOUR;
        let left = end_ms(&run(&shards, 10), None, now).unwrap() - now;
        assert!((100_000..200_000).contains(&left), "{left} ms for ten shards of 10 s");
    }

    #[test]
    fn many_executors_end_together_or_one_after_the_other_and_slow_ones_count() {
        // Sixteen that end all at once: each has done one shard, and is in its second.
        let together: Vec<ShardSeen> = (0..16).flat_map(|_| [done(0, 10_000), under_way(10_000)]).collect();
        assert_eq!(end_ms(&run(&together, 32), None, 10_000), Some(40_000));
        // Sixteen of which one ends each second: all that is under way is half done in the mean.
        let staggered: Vec<ShardSeen> =
            (0..16).flat_map(|at| [done(at * 1_000, 16_000 + at * 1_000), under_way(16_000 + at * 1_000)]).collect();
        let left = end_ms(&run(&staggered, 32), None, 31_000).unwrap() - 31_000;
        assert!((38_000..43_000).contains(&left), "{left} ms for 48 shards of 16 s on 16 executors, half of 16 done");
        // Eight that are twice as fast as eight others: twelve shards in 10 s.
        let mixed: Vec<ShardSeen> = (0..8)
            .flat_map(|_| {
                [done(0, 10_000), done(10_000, 20_000), under_way(20_000), done(0, 20_000), under_way(20_000)]
            })
            .collect();
        let left = end_ms(&run(&mixed, 104), None, 20_000).unwrap() - 20_000;
        assert!((95_000..=110_000).contains(&left), "{left} ms for 120 shards at twelve in 10 s");
    }

    #[test]
    fn what_is_recent_counts() {
        let mut shards: Vec<ShardSeen> = (0..100).map(|at| done(at * 10_000, (at + 1) * 10_000)).collect();
        // From then on rows take five times as long.
        shards.extend((0..8).map(|at| done(1_000_000 + at * 50_000, 1_050_000 + at * 50_000)));
        assert_eq!(end_ms(&run(&shards, 10), None, 1_400_000), Some(1_900_000));
    }

    #[test]
    fn what_never_ends_is_late() {
        assert_eq!(end_ms(&[under_way(0)], Some(0.0), 1), Some(i64::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_not_asked_by_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("output");
        // No folder, so it cannot be listed.
        std::fs::write(&output, "").unwrap();
        let forecast = Forecast {
            store: Arc::new(LocalStore::new(output.clone())),
            run_key: "run".into(),
            shard_rows: vec![100, 20],
            deadline_ms: HOUR,
            last: Mutex::default(),
        };
        assert!(forecast.open_rows().await.is_err());
        std::fs::remove_file(&output).unwrap();
        let error = forecast.open_rows().await.unwrap_err();
        assert!(error.retryable() && error.to_string().contains("a moment ago"), "{error}");
        assert!(!forecast.is_late(Some(1e-9), 0).await, "that is no reason to spend money");
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(forecast.open_rows().await.unwrap(), 120);
    }
}
