//! [`Trouble`]: what goes wrong in a seed, and how often. Each kind is absent in some seeds: trouble of one kind often
//! hides what another would have shown.

use std::time::Duration;

use crate::random::Random;

/// Longest a process stands still, in milliseconds: longer than everybody's patience.
const FROZEN_MAX: u64 = 40_000;
/// Longest a store or a queue is out of reach, in milliseconds.
const AWAY_MAX: u64 = 15_000;
/// Longest a single call takes, in milliseconds.
const SLOW_MAX: u64 = 9_000;

/// What goes wrong; rates are per mille.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// PUTs that fail and change nothing (a 503, or a 409 between two PUTs of one name).
    pub put_lost: u64,
    /// PUTs that are applied and answered by an error.
    pub put_unanswered: u64,
    /// PUTs that are answered by an error and applied later: a request that lingers on the way.
    pub put_lingers: u64,
    /// Reads that fail.
    pub read_fails: u64,
    /// Calls that take no time, so that nothing comes between them.
    pub no_time: u64,
    /// Calls that take long.
    pub slow: u64,
    /// Pushed shards that a queue loses.
    pub push_lost: u64,
    /// Pushed shards that are in the queue twice.
    pub push_repeated: u64,
    /// Deliveries whose lease is taken for over while their executor works.
    pub lease_broken: u64,
    /// Queue calls that fail.
    pub queue_fails: u64,
    /// Attempts whose computing fails.
    pub compute_fails: u64,
    /// Attempts after whose computing the process stands still: a zombie with a finished part.
    pub zombies: u64,
    /// Whether a queue gives out shards in any order.
    pub disorder: bool,
    /// Whether the queue forgets everything now and then.
    pub forgets: bool,
    /// Whether processes stand still now and then.
    pub freezes: bool,
    /// Whether store and queue are out of reach now and then.
    pub outages: bool,
    /// How often a process is killed, at most.
    pub deaths_max: u32,
}

impl Trouble {
    /// What goes wrong in a seed.
    pub fn draw(random: &mut Random) -> Self {
        Self {
            put_lost: random.sometimes(250),
            put_unanswered: random.sometimes(250),
            put_lingers: random.sometimes(150),
            read_fails: random.sometimes(120),
            no_time: random.sometimes(1_000),
            slow: random.sometimes(150),
            push_lost: random.sometimes(500),
            push_repeated: random.sometimes(500),
            lease_broken: random.sometimes(500),
            queue_fails: random.sometimes(150),
            compute_fails: random.sometimes(250),
            zombies: random.sometimes(400),
            disorder: random.chance(500),
            forgets: random.chance(400),
            freezes: random.chance(500),
            outages: random.chance(400),
            deaths_max: if random.chance(700) { 3 } else { 0 },
        }
    }

    /// None but faults of writes, for the store's contract.
    pub fn of_writes() -> Self {
        Self { put_lost: 200, put_unanswered: 200, put_lingers: 100, ..Self::default() }
    }

    /// How a call to a store goes.
    pub fn call(&self, random: &mut Random, is_put: bool) -> Call {
        let mishap = match is_put {
            true if random.chance(self.put_lost) => Some(Mishap::Lost),
            true if random.chance(self.put_unanswered) => Some(Mishap::Unanswered),
            true if random.chance(self.put_lingers) => Some(Mishap::Lingers(random.mostly_short(AWAY_MAX))),
            false if random.chance(self.read_fails) => Some(Mishap::Lost),
            _ => None,
        };
        let mut way = || {
            if random.chance(self.no_time) {
                Duration::ZERO
            } else if random.chance(self.slow) {
                random.mostly_short(SLOW_MAX)
            } else {
                random.millis(1, 30)
            }
        };
        Call { there: way(), back: way(), mishap }
    }

    /// What happens next, if anything does. Whom it hits is the world's affair.
    pub fn strike(&self, random: &mut Random) -> Option<Strike> {
        match random.below(3) {
            0 if self.freezes => Some(Strike::Freeze(random.mostly_short(FROZEN_MAX))),
            1 if self.outages => Some(Strike::Outage(random.mostly_short(AWAY_MAX))),
            2 if self.forgets => Some(Strike::Forget),
            _ => None,
        }
    }

    /// How long a zombie stands still.
    pub fn zombie(random: &mut Random) -> Duration {
        random.millis(500, FROZEN_MAX)
    }
}

/// How a call goes.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Time until it takes effect.
    pub there: Duration,
    /// Time until its caller knows.
    pub back: Duration,
    /// What goes wrong.
    pub mishap: Option<Mishap>,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy)]
pub enum Mishap {
    /// It has no effect, and its caller gets an error.
    Lost,
    /// It has its effect, and its caller gets an error.
    Unanswered,
    /// Its caller gets an error, and it has its effect later.
    Lingers(Duration),
}

/// What happens to processes from outside.
#[derive(Debug, Clone, Copy)]
pub enum Strike {
    /// A process stands still.
    Freeze(Duration),
    /// Store and queue do not answer one process, or all.
    Outage(Duration),
    /// The queue forgets everything.
    Forget,
}
