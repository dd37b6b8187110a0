//! [`ShardQueue`]: carries the names of shards to executors. A hint, never the truth: losing, repeating or reordering
//! what is in it costs work, not correctness.

pub mod in_process;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Names a shard. Ids only: no row content and no secret ever travels through a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRef {
    /// URL of the output, where the plan is.
    pub output: String,
    /// The run.
    pub run_key: String,
    /// Index of the shard.
    pub shard: u32,
}

/// What became of a shard, told by executors of the same process. The store stays the truth; news only saves waiting.
#[derive(Debug)]
pub enum ShardNews {
    /// Its part exists.
    Committed(u32),
    /// This attempt failed.
    Failed(u32, Error),
}

/// Does a shard's work. It always returns: a committed shard's part stands in the store.
#[async_trait]
pub trait ShardHandler: Send + Sync {
    /// Runs one shard.
    async fn handle(&self, shard: ShardRef);
}

/// Carries shards. Delivery is at least once.
#[async_trait]
pub trait ShardQueue: Send + Sync {
    /// Adds shards.
    async fn push(&self, shards: Vec<ShardRef>) -> Result<()>;

    /// Shards that wait.
    async fn depth(&self) -> Result<usize>;

    /// Runs shards with `handler`, up to `slots` at once, until [`ShardQueue::close`]; then finishes those in hand.
    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()>;

    /// Lets every `serve` of this process end.
    fn close(&self);
}
