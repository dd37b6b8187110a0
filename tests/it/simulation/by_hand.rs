//! Small worlds without chance: store and queue keep the contracts of their traits, and what a seed once found stays found.

use std::sync::Arc;
use std::time::Duration;

use rowmill_jobs::queue::ShardQueue;
use rowmill_jobs::store::{Payload, Store};
use rowmill_jobs::{Result, layout};
use rowmill_scheduler::gc::{Retention, collect};
use rowmill_scheduler::{pin_plan, publish_if_complete, resolve};
use tokio::time::sleep;

use super::mortal::mortal;
use super::parts::part;
use super::queue::SimQueue;
use super::scheduler::Asked;
use super::store::SimStore;
use super::trouble::Trouble;
use super::world::{Node, World};
use crate::random::Random;

/// Runs something in virtual time, in a world with this trouble, and with one process.
fn in_a_world<F: Future<Output = Result<()>>>(trouble: Trouble, run: impl FnOnce(Arc<World>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let world = World::new(Random::new(1), trouble, None, &["P"], 60);
        let ended = run(Arc::clone(&world)).await;
        ended.unwrap_or_else(|error| panic!("{}", error.report()));
        assert_eq!(world.broken(), None, "{}", world.with(|inner| inner.trace.to_string()));
    });
}

#[test]
fn the_simulated_store_keeps_the_contract() {
    for trouble in [Trouble::default(), Trouble::of_writes()] {
        in_a_world(trouble, |world| async move {
            let store = Arc::new(SimStore::new(&world, Node(0)));
            rowmill_jobs::store::contract::check(store).await.map(drop)
        });
    }
}

#[test]
fn the_simulated_queue_keeps_the_contract() {
    in_a_world(Trouble::default(), |world| async move {
        let make = || async { Ok(Arc::new(SimQueue::new(&world, Node(0))) as Arc<dyn ShardQueue>) };
        rowmill_jobs::queue::contract::check(make).await
    });
}

/// Found by a seed: the rerun's parts were deleted because another run was the published one, though an older one.
#[test]
fn a_rerun_whose_publisher_died_is_not_collected() {
    in_a_world(Trouble::default(), |world| async move {
        let (store, mut random) = (SimStore::new(&world, Node(0)), Random::new(1));
        let mut plans = Vec::new();
        for nonce in [None, Some("rerun")] {
            let asked = Asked::draw(&mut random, nonce);
            let plan = pin_plan(&store, &asked.plan, asked.supersede).await?;
            for shard in &plan.shards {
                let bytes = part(&plan.run_key, shard, &"a".repeat(26));
                store.put_if_absent(&layout::part(&plan.run_key, shard.index), &Payload::Bytes(bytes)).await?;
            }
            plans.push(plan);
        }
        publish_if_complete(&store, &plans[0], 0.0).await?;
        let rerun = &plans[1];
        let mut polls = 0;
        while store.head(&layout::outcome(&rerun.run_key)).await?.is_none() {
            polls += 1;
            let died = mortal(publish_if_complete(&store, rerun, 0.0), polls).await;
            assert!(died.is_none(), "it is published before it has an outcome");
        }
        let seen = resolve(&store, None).await?.map(|seen| seen.manifest.run_key);
        assert_eq!(seen.as_ref(), Some(&plans[0].run_key), "the rerun's publisher died too late");
        sleep(Duration::from_secs(60)).await;
        let keep = Retention { abandoned_after: Duration::from_secs(1), grace: Duration::from_secs(1) };
        collect(&store, &store, keep).await?;
        for plan in &plans {
            publish_if_complete(&store, plan, 0.0).await?;
        }
        Ok(())
    });
}
