//! [`Nemesis`]: what goes wrong next. It only decides, from a seed, so that a failure can be repeated; the test does it.
//! Blows come in rounds: each kind once a round, in random order, so that a short run meets them all.

use std::fmt;

use crate::random::Random;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// `kill -9` of an executor.
    KillExecutor,
    /// `kill -9` of the scheduler.
    KillScheduler,
    /// An executor stands still for longer than its lease, then goes on as if nothing had been.
    FreezeExecutor,
    /// Redis ends and starts again, empty.
    RestartRedis,
    /// Redis forgets everything.
    FlushRedis,
    /// Requests to S3 fail for a while, before and after they took effect.
    BreakS3,
}

impl Blow {
    pub const ALL: [Self; 6] = [
        Self::KillExecutor,
        Self::KillScheduler,
        Self::FreezeExecutor,
        Self::RestartRedis,
        Self::FlushRedis,
        Self::BreakS3,
    ];

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillExecutor => "kills_executor",
            Self::KillScheduler => "kills_scheduler",
            Self::FreezeExecutor => "freezes",
            Self::RestartRedis => "redis_restarts",
            Self::FlushRedis => "redis_flushes",
            Self::BreakS3 => "s3_bursts",
        }
    }
}

/// Chooses blows.
#[derive(Debug)]
pub struct Nemesis {
    random: Random,
    round: Vec<Blow>,
    dealt: Vec<Blow>,
}

impl Nemesis {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), round: Vec::new(), dealt: Vec::new() }
    }

    /// What happens next.
    pub fn next(&mut self) -> Blow {
        if self.round.is_empty() {
            self.round = Blow::ALL.to_vec();
        }
        let blow = self.round.swap_remove(self.random.below(self.round.len()));
        self.dealt.push(blow);
        blow
    }

    /// Which of `candidates` it meets; `None` if there are none.
    pub fn choose<T: Copy>(&mut self, candidates: &[T]) -> Option<T> {
        (!candidates.is_empty()).then(|| candidates[self.random.below(candidates.len())])
    }

    /// How many blows there were.
    pub fn dealt(&self) -> usize {
        self.dealt.len()
    }
}

impl fmt::Display for Nemesis {
    /// How many blows of each kind there were: `kills_executor=3 …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, kind) in Blow::ALL.into_iter().enumerate() {
            let count = self.dealt.iter().filter(|blow| **blow == kind).count();
            write!(f, "{}{}={count}", if place == 0 { "" } else { " " }, kind.name())?;
        }
        Ok(())
    }
}

#[test]
fn a_seed_repeats_its_blows_and_a_round_has_them_all() {
    let deal = |seed| {
        let mut nemesis = Nemesis::new(seed);
        (0..12).map(|_| nemesis.next()).collect::<Vec<_>>()
    };
    assert_eq!(deal(7), deal(7));
    assert!((0..20).any(|seed| deal(seed) != deal(7)));
    for round in deal(7).chunks(6) {
        assert!(Blow::ALL.iter().all(|kind| round.contains(kind)), "{round:?}");
    }
}
