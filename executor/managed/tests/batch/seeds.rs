//! A seeded simulation: several processes visit one shard at once, die anywhere, and the provider is in trouble. A seed
//! decides all of it but the order in which sockets are ready, which changes the interleaving and no promise.
//!
//! `ROWMILL_BATCH_SEEDS=N` runs N seeds, `ROWMILL_BATCH_SEED=S` one.

use std::sync::Arc;
use std::time::Duration;

use rowmill_managed::batch::{BatchProvider, Limits, Progress, Reason, RowEnd, Wanted};
use rowmill_provider_simulator::Config;
use rowmill_provider_simulator::config::{Batches, Faults, Reach};

use crate::memory::{Life, Moment};
use crate::world::{World, answered, peer, reasons};

/// Seeds of the ordinary suite.
const SEEDS: u64 = 40;
/// Turns of trouble, after which one process finishes in peace.
const TURNS: u64 = 60;

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// A rate of up to `most`, and none in half of all cases.
    fn rate(&mut self, most: f64) -> f64 {
        if self.below(2) == 0 { 0.0 } else { most * self.below(1000) as f64 / 1000.0 }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn config(seed: u64, random: &mut Random) -> Config {
    let faults = Faults {
        server_error: random.rate(0.2),
        throttled: random.rate(0.2),
        cut_body: random.rate(0.2),
        overloaded_html: random.rate(0.1),
        create_answer_lost: random.rate(0.9),
        reach: Reach::Batches,
        ..Faults::default()
    };
    let batches = Batches {
        stalled: random.rate(0.6),
        failed: random.rate(0.3),
        row_error: random.rate(0.3),
        row_refused: random.rate(0.2),
        duplicate_line: random.rate(0.5),
        row_ms: [0, 10, 60_000][random.below(3) as usize],
        ..Batches::default()
    };
    Config { seed, faults, batches, ..Config::default() }
}

async fn run(seed: u64) -> String {
    let mut random = Random(seed);
    let provider = BatchProvider::ALL[random.below(BatchProvider::ALL.len() as u64) as usize];
    let rows = 1 + random.below(30) as usize;
    let mut world = World::new(provider, rows, config(seed, &mut random)).await;
    world.patience.rounds_max = 40;
    if random.below(2) == 0 {
        world.limits = Limits { rows_min: 1, rows_max: 1 + random.below(10) as usize, bytes_max: usize::MAX };
    }
    // In half of all cases, no more is wanted from some turn on.
    let stops = random.below(2) == 0;
    let mut deaths = 0;
    for turn in 0..TURNS {
        let lives: Vec<Arc<Life>> = (0..1 + random.below(3))
            .map(|_| {
                let moment = if random.below(2) == 0 { Moment::Before } else { Moment::After };
                Life::of(random.below(12) as i64, moment)
            })
            .collect();
        let names: Vec<String> = (0..lives.len()).map(|i| format!("{turn}-{i}")).collect();
        let wanted = if stops && turn > TURNS / 2 { Wanted::WhatIsDone } else { Wanted::Everything };
        let visits = lives.iter().zip(&names).map(|(life, name)| world.visit(name, wanted, life));
        let ended = futures::future::join_all(visits).await;
        let mut wait_ms = 1 + random.below(60_000);
        for visit in ended {
            match visit {
                None => deaths += 1,
                Some(Ok(Progress::Wait(until_ms))) if random.below(4) == 0 => {
                    wait_ms = wait_ms.max((until_ms - world.now_ms()).unsigned_abs());
                }
                Some(Err(error)) => assert!(error.retryable(), "seed {seed}: {}", error.report()),
                Some(Ok(_)) => {}
            }
        }
        world.pass(Duration::from_millis(wait_ms));
    }
    let ends: Vec<RowEnd> = world.finish(Wanted::Everything, &Life::endless()).await;
    world.check(&ends).await;
    let reasons = reasons(&ends);
    let is_whole = reasons.keys().all(|reason| *reason == Reason::Refused);
    assert!(is_whole || stops, "seed {seed}: {reasons:?}");
    let (paid, again) = world.simulator.journal().paid_answers(peer(provider));
    // Gemini keeps nothing of a batch that expires: what it did of such a one is paid for and lost. A batch that nobody could
    // tell for ours when no more was wanted is not fetched.
    let is_lost = reasons.contains_key(&Reason::NotEnded);
    if !is_lost && provider != BatchProvider::Gemini {
        assert_eq!((paid, again), (answered(&ends) as u64, 0), "seed {seed}: answers were paid for twice");
    }
    let batches = world.remote_batches().await;
    format!("seed {seed}: {provider:?}, {rows} rows, {batches} batches, {deaths} deaths, {} answered", answered(&ends))
}

#[tokio::test]
async fn no_seed_breaks_a_promise() {
    let seeds = match number("ROWMILL_BATCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ROWMILL_BATCH_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        println!("seed {seed}");
        println!("{}", run(seed).await);
    }
}
