//! What the commands take that compute, schedule or carry runs.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{EngineArgs, RunIdArgs};

/// What `run` takes.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The run.
    #[command(flatten)]
    pub(crate) id: RunIdArgs,

    /// Shards worked on at once: while one computes, others read and write
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) slots: u8,

    /// The engines.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Which Redis carries shards.
#[derive(Debug, Args)]
pub(crate) struct RedisArgs {
    /// redis://HOST:PORT, rediss:// (TLS), or redis+sentinel://HOST:26379,HOST:26379/NAME
    #[arg(long, value_name = "URL", env = "ROWMILL_REDIS_URL", hide_env_values = true)]
    pub(crate) redis: Option<String>,

    /// Reach a Redis on another machine without TLS: the network is private
    #[arg(long, env = "ROWMILL_REDIS_PLAINTEXT")]
    pub(crate) redis_plaintext: bool,

    /// Give up, with exit code 75, when Redis or the store stay away for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) patience: u64,
}

impl RedisArgs {
    /// How long Redis and the store may stay away.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// What `submit` takes.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The run.
    #[command(flatten)]
    pub(crate) id: RunIdArgs,

    /// The queue.
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    /// Schedule the run here until it is published
    #[arg(long)]
    pub(crate) wait: bool,
}

/// What `work` takes.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// The queue.
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    /// Serve the jobs that name this pool
    #[arg(long, value_name = "NAME", default_value = "default", env = "ROWMILL_POOL")]
    pub(crate) pool: String,

    /// Shards worked on at once: while one computes, others read and write
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) slots: u8,

    /// The engines.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    /// Be taken for dead, and have shards given to others, after this long without a sign; the same for all of a pool
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) lease: u64,

    /// When told to stop, finish shards in hand for at most this long
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) drain: u64,

    /// Answer /livez and /readyz at this address, for example 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS", env = "ROWMILL_HEALTH")]
    pub(crate) health: Option<SocketAddr>,
}

/// What `serve` takes.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Outputs whose unfinished runs are taken up even if Redis has forgotten them
    #[arg(value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,

    /// The queue.
    #[command(flatten)]
    pub(crate) redis: RedisArgs,

    /// The pool for runs that Redis has forgotten
    #[arg(long, value_name = "NAME", default_value = "default", env = "ROWMILL_POOL")]
    pub(crate) pool: String,

    /// Answer /livez, /readyz and /depth/POOL at this address, for example 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS", env = "ROWMILL_HEALTH")]
    pub(crate) health: Option<SocketAddr>,
}
