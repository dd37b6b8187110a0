//! The commit protocol under a seeded simulation: the product's schedulers, attempts, canceller, collector and reader on a
//! store and a queue in memory, in virtual time, while everything that may go wrong does (design.md 4). A seed decides all
//! of it; a seed that fails is named, with the events that led there.
//!
//! `ROWMILL_SIM_SEEDS=N` runs N seeds, `ROWMILL_SIM_SEED=S` one, with all its events.

mod by_hand;
mod bystanders;
mod executor;
mod mortal;
mod objects;
mod parts;
#[cfg(debug_assertions)]
mod planted_bugs;
mod promises;
mod queue;
mod scheduler;
mod seed;
mod store;
mod trace;
mod trouble;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use self::seed::{Failure, run};

/// Seeds of the ordinary suite.
const SEEDS: u64 = 2_000;
/// Events that a failure tells.
const EVENTS: usize = 60;
/// What the simulation is there for: each of these happens in some seed of the ordinary suite.
const MEETS: [&str; 18] = [
    "published",
    "refused:",
    "told that it is cancelled:",
    "cancelled",
    "cancelled too late",
    "runs given up",
    "runs emptied",
    "objects collected",
    "killed",
    "zombies",
    "plans adopted",
    "outcomes too late",
    "replaced",
    "published after its replacement",
    "attempts too late",
    "attempts unwanted",
    "lingering PUTs",
    "unanswered PUTs",
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs seeds on all cores until one fails. Returns how often what happened, by seeds.
fn run_all(seeds: u64) -> Result<BTreeMap<&'static str, u64>, Failure> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    let total = Mutex::new(BTreeMap::new());
    let stop = AtomicBool::new(false);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            match run(seed, None, EVENTS) {
                Ok(kept) => {
                    let mut total = total.lock().expect("nobody panics here");
                    kept.tally.into_keys().for_each(|what| *total.entry(what).or_default() += 1);
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().expect("nobody panics here").get_or_insert(failure);
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    match failed.into_inner().expect("nobody panics here") {
        Some(failure) => Err(failure),
        None => Ok(total.into_inner().expect("nobody panics here")),
    }
}

#[test]
fn no_seed_breaks_the_protocol() {
    if let Some(seed) = number("ROWMILL_SIM_SEED") {
        match run(seed, None, usize::MAX) {
            Ok(kept) => println!("{}", kept.trace),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let started = Instant::now();
    let seeds = number("ROWMILL_SIM_SEEDS").unwrap_or(SEEDS);
    let tally = run_all(seeds).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{seeds} seeds in {:.1} s; seeds with: {tally:?}", started.elapsed().as_secs_f64());
    for what in MEETS {
        assert!(seeds < SEEDS || tally.contains_key(what), "no seed has met '{what}'");
    }
}

#[test]
fn a_seed_is_the_same_every_time() {
    for seed in 0..20 {
        let trace = || match run(seed, None, usize::MAX) {
            Ok(kept) => kept.trace,
            Err(failure) => failure.trace,
        };
        assert_eq!(trace::without_names(&trace()), trace::without_names(&trace()), "seed {seed}");
    }
}
