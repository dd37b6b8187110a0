//! [`InProcessQueue`]: the queue of `rowmill run`, where scheduler and executor are one process. Nothing survives it,
//! and nothing has to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Depth, Held, RunRef, ShardHandler, ShardQueue, ShardRef};
use crate::Result;

/// A queue in memory.
#[derive(Debug, Default)]
pub struct InProcessQueue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<ShardRef>,
    /// What is waiting or running, and whether it runs.
    held: HashMap<ShardRef, bool>,
    closed: bool,
}

impl InProcessQueue {
    /// Reads or changes the state. No caller panics while it holds the lock, so a poisoned lock is still sound.
    fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next shard, or `None` once closed.
    async fn next(&self) -> Option<ShardRef> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a push between looking and waiting still wakes us.
            changed.as_mut().enable();
            let (shard, closed) = self.with_state(|state| {
                if state.closed {
                    return (None, true);
                }
                let shard = state.waiting.pop_front();
                if let Some(shard) = &shard {
                    state.held.insert(shard.clone(), true);
                }
                (shard, false)
            });
            if closed {
                return None;
            }
            if shard.is_some() {
                return shard;
            }
            changed.await;
        }
    }
}

#[async_trait]
impl ShardQueue for InProcessQueue {
    async fn push(&self, shards: Vec<ShardRef>) -> Result<()> {
        self.with_state(|state| {
            for shard in shards {
                if !state.held.contains_key(&shard) {
                    state.held.insert(shard.clone(), false);
                    state.waiting.push_back(shard);
                }
            }
        });
        self.changed.notify_waiters();
        Ok(())
    }

    async fn held(&self, run: &RunRef) -> Result<BTreeMap<u32, Held>> {
        Ok(self.with_state(|state| {
            let mut held: BTreeMap<u32, Held> = BTreeMap::new();
            for (shard, running) in state.held.iter().filter(|(shard, _)| shard.run == *run) {
                let entry = held.entry(shard.shard).or_default();
                entry.copies += 1;
                entry.running |= running;
            }
            held
        }))
    }

    async fn depth(&self) -> Result<Depth> {
        Ok(self.with_state(|state| Depth {
            waiting: state.waiting.len(),
            running: state.held.len() - state.waiting.len(),
        }))
    }

    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()> {
        let slot = || async {
            while let Some(shard) = self.next().await {
                handler.handle(shard.clone()).await;
                self.with_state(|state| state.held.remove(&shard));
            }
        };
        futures::future::join_all((0..slots).map(|_| slot())).await;
        Ok(())
    }

    fn close(&self) {
        self.with_state(|state| state.closed = true);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::contract::check(|| async { Ok(Arc::new(InProcessQueue::default()) as Arc<dyn ShardQueue>) })
            .await
            .unwrap();
    }
}
