//! [`InProcessQueue`]: the queue of `rowmill run`, where scheduler and executor are one process. Nothing survives it,
//! and nothing has to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{ShardHandler, ShardQueue, ShardRef};
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
            let (shard, closed) =
                self.with_state(|state| if state.closed { (None, true) } else { (state.waiting.pop_front(), false) });
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
        self.with_state(|state| state.waiting.extend(shards));
        self.changed.notify_waiters();
        Ok(())
    }

    async fn depth(&self) -> Result<usize> {
        Ok(self.with_state(|state| state.waiting.len()))
    }

    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()> {
        let slot = || async {
            while let Some(shard) = self.next().await {
                handler.handle(shard).await;
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

    struct Recorder {
        queue: Arc<InProcessQueue>,
        seen: Mutex<Vec<u32>>,
        expected: usize,
    }

    #[async_trait]
    impl ShardHandler for Recorder {
        async fn handle(&self, shard: ShardRef) {
            tokio::task::yield_now().await;
            let mut seen = self.seen.lock().unwrap();
            seen.push(shard.shard);
            if seen.len() == self.expected {
                self.queue.close();
            }
        }
    }

    #[tokio::test]
    async fn every_shard_is_handled_once_whenever_it_is_pushed() {
        let queue = Arc::new(InProcessQueue::default());
        let shard = |shard| ShardRef { output: "file:///out/".into(), run_key: "k".into(), shard };
        queue.push((0..50).map(shard).collect()).await.unwrap();
        let handler = Arc::new(Recorder { queue: Arc::clone(&queue), seen: Mutex::default(), expected: 100 });
        let serving = tokio::spawn({
            let (queue, handler) = (Arc::clone(&queue), Arc::clone(&handler));
            async move { queue.serve(3, handler).await }
        });
        tokio::task::yield_now().await;
        queue.push((50..100).map(shard).collect()).await.unwrap();
        serving.await.unwrap().unwrap();
        let mut seen = handler.seen.lock().unwrap().clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert_eq!(queue.depth().await.unwrap(), 0);
    }
}
