//! One seed: who takes part and what goes wrong is drawn, then the protocol runs in virtual time, through trouble and then
//! in calm, until every run has ended. A promise that is broken on the way ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rowmill_jobs::planted::{self, Bug};
use rowmill_scheduler::gc::Retention;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::bystanders::{canceller, collector, nemesis, reader};
use super::executor::executor;
use super::promises::Breach;
use super::scheduler::{Asked, scheduler};
use super::trouble::Trouble;
use super::world::{Node, World};
use crate::random::Random;

/// Longest time of trouble, in milliseconds.
const TROUBLE_MAX: u64 = 50_000;
/// Time after which a run that still has not ended hangs. A scheduler that stood still while it looked at the store waits
/// ten times as long for its next look.
const CALM_MAX: Duration = Duration::from_secs(600);

/// Everybody who may take part, by [`Node`]: schedulers of the run, of its rerun and of another rerun, executors, others.
const NAMES: [&str; 11] = ["A", "B", "C", "D", "E1", "E2", "E3", "E4", "X", "GC", "R"];
const EXECUTORS: std::ops::Range<usize> = 4..8;
const CANCELLER: Node = Node(8);
const COLLECTOR: Node = Node(9);
const READER: Node = Node(10);

/// A seed in which a promise was broken.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub breach: Breach,
    pub what: String,
    pub trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, breach, what, trace } = self;
        writeln!(f, "seed {seed} breaks a promise: {breach:?}: {what}\nthe last events:\n{trace}")?;
        write!(f, "again: ROWMILL_SIM_SEED={seed} cargo test --locked --test it simulation::no_seed -- --nocapture")
    }
}

/// What a seed that kept all promises had in it.
#[derive(Debug)]
pub struct Kept {
    pub tally: BTreeMap<&'static str, u64>,
    pub trace: String,
}

/// Who takes part.
#[derive(Debug)]
struct Cast {
    asked: Vec<(Node, Asked)>,
    executors: Vec<(Node, usize, Duration)>,
    /// Who cancels which run, and when.
    cancels: Option<(String, Duration)>,
    collects: Option<(Retention, u64)>,
    trouble_for: Duration,
}

impl Cast {
    fn draw(random: &mut Random) -> Self {
        let nonces = [None, None, Some("rerun"), Some("another")];
        let drawn: Vec<(Node, Asked)> =
            nonces.iter().enumerate().map(|(node, nonce)| (Node(node), Asked::draw(random, *nonce))).collect();
        let takes_part = [true, true, random.chance(700), random.chance(150)];
        let asked: Vec<_> =
            drawn.into_iter().zip(takes_part).filter(|(_, takes_part)| *takes_part).map(|(asked, _)| asked).collect();
        let count = random.between(2, EXECUTORS.len() as u64) as usize;
        let executors = EXECUTORS
            .take(count)
            .map(|node| (Node(node), random.between(1, 2) as usize, random.millis(2_000, 20_000)))
            .collect();
        let cancelled = asked[random.below(asked.len())].1.plan.run_key.clone();
        let keep = Retention { abandoned_after: random.mostly_short(30_000), grace: random.mostly_short(20_000) };
        Self {
            asked,
            executors,
            cancels: random.chance(250).then(|| (cancelled, random.mostly_short(20_000))),
            collects: random.chance(500).then(|| (keep, random.between(0, 4))),
            trouble_for: random.millis(1_000, TROUBLE_MAX),
        }
    }
}

/// Runs a seed, with a bug planted if there is one. Keeps the last `room` events.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, bug: Option<Bug>, room: usize) -> Result<Kept, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let world = runtime.block_on(async {
        let mut random = Random::new(seed);
        let cast = Cast::draw(&mut random);
        let trouble = Trouble::draw(&mut random);
        let world = World::new(random, trouble, cast.collects.map(|(keep, _)| keep.grace), &NAMES, room);
        planted::plant(bug.map(|bug| (bug, world.sabotage())));
        play(&world, cast).await;
        world
    });
    drop(runtime);
    planted::plant(None);
    let trace = world.with(|inner| inner.trace.to_string());
    match world.broken() {
        Some((breach, what)) => Err(Failure { seed, breach, what, trace }),
        None => Ok(Kept { tally: world.with(|inner| std::mem::take(&mut inner.tally)), trace }),
    }
}

/// Everybody does what they do, until all runs have ended or a promise is broken.
async fn play(world: &Arc<World>, cast: Cast) {
    let runs: BTreeSet<String> = cast.asked.iter().map(|(_, asked)| asked.plan.run_key.clone()).collect();
    let mut processes = JoinSet::new();
    let mut start = |process: futures::future::BoxFuture<'static, ()>| {
        let world = Arc::clone(world);
        processes.spawn(async move {
            if AssertUnwindSafe(process).catch_unwind().await.is_err() {
                world.with(|inner| inner.hold::<()>(Err((Breach::Panicked, "see above".into()))));
            }
        });
    };
    for (node, asked) in cast.asked {
        start(scheduler(Arc::clone(world), node, asked).boxed());
    }
    for (node, slots, patience) in cast.executors {
        start(executor(Arc::clone(world), node, slots, patience).boxed());
    }
    if let Some((run_key, after)) = cast.cancels {
        start(canceller(Arc::clone(world), CANCELLER, run_key, after).boxed());
    }
    if let Some((keep, times)) = cast.collects {
        start(collector(Arc::clone(world), COLLECTOR, keep, times).boxed());
    }
    start(reader(Arc::clone(world), READER).boxed());
    start(nemesis(Arc::clone(world)).boxed());
    // So that everybody has begun before it is asked who is busy.
    sleep(Duration::from_millis(1)).await;

    let _ = timeout_at(Instant::now() + cast.trouble_for, world.broken_promise()).await;
    world.calm();
    if timeout_at(Instant::now() + CALM_MAX, world.settled()).await.is_err() {
        world.with(|inner| {
            let what = format!("{} s after trouble ended, somebody is busy", CALM_MAX.as_secs());
            inner.hold::<()>(Err((Breach::Stuck, what)));
        });
    }
    world.with(|inner| {
        let kept = inner.promises.at_last(&inner.objects, &runs);
        inner.hold(kept);
    });
    processes.abort_all();
    while processes.join_next().await.is_some() {}
}
