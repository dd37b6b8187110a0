//! [`ShardQueue`]: carries the names of shards to executors. A hint, never the truth: losing, repeating or reordering
//! what is in it costs work, not correctness.

pub mod contract;
pub mod in_process;
pub mod lanes;
pub mod redis;
pub mod redis_server;
mod redis_worker;
pub mod register;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::plan::{ModelPin, Plan};
use crate::{Error, Kind, Result};

/// Most shards of a run that wait or run at once: a queue that is lost costs little, and looking at it stays cheap.
pub const WINDOW_MAX: usize = 2_000;

/// The pool of jobs and executors that name none.
pub const POOL_DEFAULT: &str = "default";

/// Checks the name of a pool: it is part of keys in Redis.
///
/// # Errors
/// It has other characters than letters, digits, `-` and `_`, or too many of them.
pub fn check_pool(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("'{name}' is no name of a pool")).hint("use up to 64 letters, digits, - and _"))
}

/// Names a run, and where it is computed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRef {
    /// URL of the output, where the plan is.
    pub output: String,
    /// The run.
    pub run_key: String,
    /// Names the set of models that the run needs: executors stay with the shards of one set while there are any.
    pub lane: String,
}

impl RunRef {
    /// The run of a plan whose output is `output`.
    pub fn of(output: &str, plan: &Plan) -> Self {
        Self { output: output.into(), run_key: plan.run_key.clone(), lane: lane_of(&plan.models) }
    }

    /// Tells runs apart in a few bytes.
    pub fn digest(&self) -> u64 {
        let hash = Sha256::digest(format!("{}\n{}", self.output, self.run_key));
        hash.iter().take(8).fold(0, |digest, byte| (digest << 8) | u64::from(*byte))
    }
}

/// The lane of a set of models: the same models, whatever they are called, are the same lane.
fn lane_of(models: &[ModelPin]) -> String {
    let mut digests: Vec<&str> = models.iter().map(|model| model.digest.as_str()).collect();
    digests.sort_unstable();
    digests.dedup();
    Sha256::digest(digests.join("\n")).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Names a shard. Ids only: no row content and no secret ever travels through a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRef {
    /// The run.
    pub run: RunRef,
    /// Index of the shard.
    pub shard: u32,
    /// Tells apart what is queued for one shard: a queue holds each copy at most once.
    pub copy: u32,
}

/// What a queue holds of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Copies in the queue, waiting and running.
    pub copies: u32,
    /// Whether an executor has one of them.
    pub running: bool,
}

/// How much is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Shards that wait.
    pub waiting: usize,
    /// Shards that executors have.
    pub running: usize,
}

/// What became of a shard, told by executors of the same process. The store stays the truth; news only saves waiting.
#[derive(Debug)]
pub enum ShardNews {
    /// Its part exists.
    Committed(u32),
    /// An attempt failed.
    Failed {
        /// The shard.
        shard: u32,
        /// Names the attempt.
        attempt: String,
        /// Why.
        error: Error,
    },
}

/// Does a shard's work. It always returns: a committed shard's part stands in the store.
#[async_trait]
pub trait ShardHandler: Send + Sync {
    /// Runs one shard.
    async fn handle(&self, shard: ShardRef);
}

/// Carries shards. Delivery is at least once.
#[async_trait]
pub trait ShardQueue: Send + Sync + std::fmt::Debug {
    /// Adds shards; one that is in the queue already, with the same copy number, changes nothing.
    async fn push(&self, shards: Vec<ShardRef>) -> Result<()>;

    /// What the queue holds of a run, by shard. A shard that is not in it is neither waiting nor running.
    async fn held(&self, run: &RunRef) -> Result<BTreeMap<u32, Held>>;

    /// How much is in it, over all runs.
    async fn depth(&self) -> Result<Depth>;

    /// Runs shards with `handler`, up to `slots` at once, until [`ShardQueue::close`]; then finishes those in hand.
    ///
    /// # Errors
    /// The queue's server stays away.
    async fn serve(&self, slots: usize, handler: Arc<dyn ShardHandler>) -> Result<()>;

    /// Lets every `serve` of this process end.
    fn close(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_have_plain_names() {
        for (name, good) in [("gpu-a100", true), ("", false), ("a:b", false), ("{x}", false), (&"x".repeat(65), false)]
        {
            assert_eq!(check_pool(name).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn a_lane_is_its_models_whatever_their_order() {
        let pin = |name: &str, digest: &str| ModelPin {
            name: name.into(),
            engine: "echo".into(),
            architecture: "echo".into(),
            abilities: Vec::new(),
            dimensions: None,
            labels: None,
            context_tokens: None,
            revision: None,
            digest: digest.into(),
            files: Vec::new(),
        };
        let (a, b) = (pin("a", "1"), pin("b", "2"));
        assert_eq!(lane_of(&[a.clone(), b.clone()]), lane_of(&[b.clone(), a.clone(), pin("c", "1")]));
        assert_ne!(lane_of(&[a]), lane_of(&[b]));
    }
}
