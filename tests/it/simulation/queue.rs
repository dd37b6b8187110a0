//! [`SimQueue`]: a process's way to the simulated queue, which may lose, repeat and reorder what it carries and forget all
//! of it, as Redis may. It never makes anything up: what it says it holds, it holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rowmill_jobs::queue::{Depth, Held, RunRef, ShardHandler, ShardQueue, ShardRef};
use rowmill_jobs::{Error, Result};
use tokio::time::{Instant, sleep, timeout_at};

use super::trouble::Trouble;
use super::world::{Inner, Node, World};
use crate::random::Random;

/// An executor that is silent for this long is taken for dead.
const LEASE: Duration = Duration::from_secs(6);
/// Longest wait of an idle executor for another look.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What the queue holds.
#[derive(Debug, Default)]
pub struct Shards {
    entries: Vec<Entry>,
    numbers: u64,
    workers: Vec<Worker>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    shard: ShardRef,
    taken: Option<Taken>,
}

/// An executor has it.
#[derive(Debug)]
struct Taken {
    worker: usize,
    /// When it is given to another although its executor lives.
    breaks: Option<Instant>,
}

/// A life of an executor.
#[derive(Debug)]
struct Worker {
    node: Node,
    /// Since when it is dead.
    died: Option<Instant>,
}

impl Shards {
    fn push(&mut self, shard: ShardRef, random: &mut Random, trouble: &Trouble) {
        if random.chance(trouble.push_lost) {
            return;
        }
        let times = 1 + usize::from(random.chance(trouble.push_repeated));
        if times == 1 && self.entries.iter().any(|entry| entry.shard == shard) {
            return;
        }
        for _ in 0..times {
            self.numbers += 1;
            self.entries.push(Entry { number: self.numbers, shard: shard.clone(), taken: None });
        }
    }

    /// Forgets everything but who works.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// A process stands still from now on: others get what it has.
    pub fn silent(&mut self, node: Node) {
        let breaks = Instant::now() + LEASE;
        for taken in self.entries.iter_mut().filter_map(|entry| entry.taken.as_mut()) {
            if self.workers[taken.worker].node == node {
                taken.breaks = Some(taken.breaks.map_or(breaks, |known| known.min(breaks)));
            }
        }
    }

    /// When what an entry's executor has goes to another.
    fn expires(&self, entry: &Entry) -> Option<Instant> {
        let taken = entry.taken.as_ref()?;
        let dead = self.workers[taken.worker].died.map(|died| died + LEASE);
        [dead, taken.breaks].into_iter().flatten().min()
    }

    /// Something for a worker to do, or when to look again.
    fn take(&mut self, worker: usize, random: &mut Random, trouble: &Trouble) -> Result<Entry, Instant> {
        let now = Instant::now();
        let expired: Vec<bool> =
            self.entries.iter().map(|entry| self.expires(entry).is_some_and(|expires| expires <= now)).collect();
        for (entry, expired) in self.entries.iter_mut().zip(expired) {
            if expired {
                entry.taken = None;
            }
        }
        let waiting: Vec<usize> =
            (0..self.entries.len()).filter(|index| self.entries[*index].taken.is_none()).collect();
        let chosen = if trouble.disorder { random.below(waiting.len()) } else { 0 };
        let Some(index) = waiting.get(chosen) else {
            let next = self.entries.iter().filter_map(|entry| self.expires(entry)).min();
            return Err(next.unwrap_or(now + IDLE_MAX).max(now + Duration::from_millis(1)));
        };
        let breaks = random.chance(trouble.lease_broken).then(|| now + random.millis(1, 4_000));
        let entry = &mut self.entries[*index];
        entry.taken = Some(Taken { worker, breaks });
        Ok(Entry { number: entry.number, shard: entry.shard.clone(), taken: None })
    }
}

/// A process's way to the queue.
#[derive(Debug, Clone)]
pub struct SimQueue {
    world: Arc<World>,
    node: Node,
}

impl SimQueue {
    /// The way of process `node`.
    pub fn new(world: &Arc<World>, node: Node) -> Self {
        Self { world: Arc::clone(world), node }
    }

    async fn call<T>(&self, what: &'static str, work: impl FnOnce(&mut Inner) -> T) -> Result<T> {
        self.world.thaw(self.node).await;
        let (back, answer) = self.world.with(|inner| {
            let back = inner.random.millis(0, 20);
            let no_answer = || Error::temporary("the simulated queue does not answer");
            if inner.is_away(self.node) {
                return (back, Err(no_answer()));
            }
            // An error says nothing of what was done.
            let rate = inner.trouble.queue_fails;
            if inner.random.chance(rate) {
                inner.note(self.node, what, "lost");
                return (back, Err(no_answer()));
            }
            let done = work(inner);
            if inner.random.chance(rate) { (back, Err(no_answer())) } else { (back, Ok(done)) }
        });
        sleep(back).await;
        answer
    }

    /// A slot of an executor.
    async fn slot(&self, worker: usize, handler: &dyn ShardHandler) {
        loop {
            self.world.thaw(self.node).await;
            let changed = self.world.queue_changed.notified();
            let next = self.world.with(|inner| {
                if inner.shards.closed {
                    return None;
                }
                let away = inner.is_away(self.node).then(|| Err(Instant::now() + Duration::from_millis(500)));
                let taken = away.unwrap_or_else(|| inner.shards.take(worker, &mut inner.random, &inner.trouble));
                if let Ok(entry) = &taken {
                    inner.note(self.node, "takes", &name(&entry.shard));
                }
                Some(taken)
            });
            match next {
                None => return,
                Some(Err(look_at)) => {
                    let _ = timeout_at(look_at, changed).await;
                }
                Some(Ok(entry)) => {
                    handler.handle(entry.shard).await;
                    // A lost acknowledgement is the same as an executor that dies now.
                    self.world.with(|inner| inner.shards.entries.retain(|held| held.number != entry.number));
                }
            }
        }
    }
}

/// A shard, for people.
pub fn name(shard: &ShardRef) -> String {
    format!("shard {} of {} (copy {})", shard.shard, shard.run.run_key, shard.copy)
}

/// A worker that ends with its process, whatever ends it.
struct SignedOn<'a> {
    queue: &'a SimQueue,
    worker: usize,
}

impl Drop for SignedOn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.queue.world.with(|inner| inner.shards.workers[self.worker].died = Some(now));
        self.queue.world.queue_changed.notify_waiters();
    }
}

#[async_trait]
impl ShardQueue for SimQueue {
    async fn push(&self, shards: Vec<ShardRef>) -> Result<()> {
        let push = |inner: &mut Inner| {
            for shard in shards {
                inner.note(self.node, "pushes", &name(&shard));
                inner.shards.push(shard, &mut inner.random, &inner.trouble);
            }
            self.world.queue_changed.notify_waiters();
        };
        self.call("push", push).await
    }

    async fn held(&self, run: &RunRef) -> Result<BTreeMap<u32, Held>> {
        let held = |inner: &mut Inner| {
            let mut held: BTreeMap<u32, Held> = BTreeMap::new();
            for entry in inner.shards.entries.iter().filter(|entry| entry.shard.run == *run) {
                let shard = held.entry(entry.shard.shard).or_default();
                shard.copies += 1;
                shard.running |= entry.taken.is_some();
            }
            held
        };
        self.call("held", held).await
    }

    async fn depth(&self) -> Result<Depth> {
        let depth = |inner: &mut Inner| {
            let running = inner.shards.entries.iter().filter(|entry| entry.taken.is_some()).count();
            Depth { waiting: inner.shards.entries.len() - running, running }
        };
        self.call("depth", depth).await
    }

    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()> {
        let worker = self.world.with(|inner| {
            inner.shards.workers.push(Worker { node: self.node, died: None });
            inner.shards.workers.len() - 1
        });
        let _signed_on = SignedOn { queue: self, worker };
        futures::future::join_all((0..slots).map(|_| self.slot(worker, handler.as_ref()))).await;
        Ok(())
    }

    fn close(&self) {
        self.world.with(|inner| inner.shards.closed = true);
        self.world.queue_changed.notify_waiters();
    }
}
