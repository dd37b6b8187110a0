//! The others: a reader, somebody who cancels, a garbage collector that takes everything for abandoned, and what hits all
//! of them from outside.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::publish::RunOutcome;
use rowmill_jobs::{Kind, Result};
use rowmill_scheduler::gc::{Retention, collect};
use rowmill_scheduler::{cancel, resolve};
use tokio::time::sleep;

use super::mortal::mortal;
use super::promises::{Breach, DATE};
use super::store::SimStore;
use super::world::{Node, World};

/// Longest time between two looks of a reader, in milliseconds.
const READ_EVERY_MAX: u64 = 4_000;
/// Longest time between two collections, in milliseconds.
const COLLECT_EVERY_MAX: u64 = 6_000;
/// Longest time between two strikes, in milliseconds.
const STRIKE_EVERY_MAX: u64 = 6_000;

/// Looks at what is published, for ever.
pub async fn reader(world: Arc<World>, node: Node) {
    let store = SimStore::new(&world, node);
    loop {
        sleep(world.now_and_then(READ_EVERY_MAX)).await;
        let (date, before) = world.with(|inner| (inner.random.chance(500).then_some(DATE), inner.promises.seen()));
        let resolved = resolve(&store, date).await;
        world.with(|inner| {
            let kept = match &resolved {
                Ok(resolved) => inner.promises.resolved(&inner.objects, before, resolved.as_ref()),
                Err(error) if error.retryable() => Ok(()),
                Err(error) => Err((Breach::WrongError, format!("a reader: {}", error.report()))),
            };
            inner.hold(kept);
        });
    }
}

/// Cancels a run once it is planned.
pub async fn canceller(world: Arc<World>, node: Node, run_key: String, after: Duration) {
    let _busy = world.busy();
    let store = SimStore::new(&world, node);
    sleep(after).await;
    for _ in 0..20 {
        match mortal(cancel(&store, &run_key, "simulation", "why not"), world.life(node)).await {
            Some(ended) => {
                if told(&world, node, &run_key, &ended) {
                    return;
                }
            }
            None => world.died(node),
        }
        sleep(world.while_ms(2_000)).await;
    }
}

/// Checks what a canceller was told. Returns whether its run has ended.
fn told(world: &World, node: Node, run_key: &str, ended: &Result<RunOutcome>) -> bool {
    world.with(|inner| {
        inner.note(node, "cancels", &format!("{run_key}: {ended:?}"));
        let kept = match ended {
            Ok(RunOutcome::Cancelled { .. }) => {
                inner.count("cancelled");
                inner.promises.told_cancelled(&inner.objects, run_key).map(|()| true)
            }
            Ok(RunOutcome::Success { .. }) => {
                inner.count("cancelled too late");
                inner.promises.told_too_late(&inner.objects, run_key).map(|()| true)
            }
            // Not planned yet.
            Err(error) if matches!(error.kind(), Kind::Temporary | Kind::Invalid) => Ok(false),
            Err(error) => Err((Breach::WrongError, format!("cancelling: {}", error.report()))),
        };
        inner.hold(kept)
    })
}

/// Collects garbage until trouble is over, and a few times after.
pub async fn collector(world: Arc<World>, node: Node, keep: Retention, mut times_in_calm: u64) {
    let _busy = world.busy();
    let store = SimStore::new(&world, node);
    while times_in_calm > 0 {
        times_in_calm -= u64::from(world.with(|inner| inner.calm));
        sleep(world.now_and_then(COLLECT_EVERY_MAX)).await;
        world.note(node, "collects", "");
        let collected = mortal(collect(&store, &store, keep), world.life(node)).await;
        let Some(collected) = collected else {
            world.died(node);
            continue;
        };
        world.with(|inner| match &collected {
            Ok(done) => {
                inner.note(node, "collected", &format!("{done:?}"));
                if done.cancelled > 0 {
                    inner.count("runs given up");
                }
                if done.emptied > 0 {
                    inner.count("runs emptied");
                }
            }
            Err(error) if error.retryable() => {}
            Err(error) => inner.hold::<()>(Err((Breach::WrongError, format!("collecting: {}", error.report())))),
        });
    }
}

/// Hits processes until trouble is over.
pub async fn nemesis(world: Arc<World>) {
    while !world.with(|inner| inner.calm) {
        sleep(world.now_and_then(STRIKE_EVERY_MAX)).await;
        let strike = world.with(|inner| if inner.calm { None } else { inner.trouble.strike(&mut inner.random) });
        if let Some(strike) = strike {
            world.strike(strike);
        }
    }
}
