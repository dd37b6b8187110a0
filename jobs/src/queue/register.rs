//! The register on Redis: which runs schedulers look after that did not plan them. A hint like the queue: a Redis that was
//! emptied is told again by whoever looks after a run already. It decides nothing of a run.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;
use serde::{Deserialize, Serialize};

use super::redis::RedisQueue;
use crate::{Error, Result};

/// Where runs are registered, by run key.
const RUNS: &str = "rowmill:runs";
/// Where services find out whether Redis was emptied.
const SERVICES: &str = "rowmill:service:";
/// How long Redis keeps what a service said that is gone.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// Registers runs, and only then says that they are: unlike a transaction, a script ends where a command fails. `KEYS`: runs,
/// the service's word. `ARGV`: how long the word is kept, in seconds; then each run's key and what it is.
static REMIND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for at = 2, #ARGV, 2 do
           redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
         end
         redis.call('SET', KEYS[2], 1, 'EX', ARGV[1])",
    )
});

/// A run that schedulers look after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisteredRun {
    /// URL of its output.
    pub output: String,
    /// The run.
    pub run_key: String,
    /// The pool that computes it.
    pub pool: String,
}

impl RegisteredRun {
    fn as_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal("cannot write JSON").caused_by(error))
    }
}

impl RedisQueue {
    /// Registers a run for all schedulers of this Redis.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn register(&self, run: &RegisteredRun) -> Result<()> {
        let text = run.as_text()?;
        self.with_connection("register a run in", async |connection| {
            redis::cmd("HSET").arg(RUNS).arg(&run.run_key).arg(text).query_async::<()>(connection).await
        })
        .await
    }

    /// Registers the runs that a service looks after again, if Redis forgot what the service told it before, under a word
    /// of its own: then it was emptied. What another service took off the register since then stays off. The runs and the word
    /// are written in one step, so a call that failed is made up for by the next, which registers no run twice.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn remind(&self, service: &str, runs: impl Iterator<Item = &RegisteredRun>) -> Result<()> {
        let key = format!("{SERVICES}{service}");
        let kept = REMEMBERED.as_secs();
        let known: Option<u8> = self
            .with_connection("look into", async |connection| {
                redis::cmd("GETEX").arg(&key).arg("EX").arg(kept).query_async(connection).await
            })
            .await?;
        if known.is_some() {
            return Ok(());
        }
        let mut told = REMIND.prepare_invoke();
        told.key(RUNS).key(&key).arg(kept);
        for run in runs {
            told.arg(&run.run_key).arg(run.as_text()?);
        }
        self.with_connection("tell", async |connection| told.invoke_async::<()>(connection).await).await
    }

    /// Takes a run off the register.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn unregister(&self, run_key: &str) -> Result<()> {
        self.with_connection("take a run off", async |connection| {
            redis::cmd("HDEL").arg(RUNS).arg(run_key).query_async::<()>(connection).await
        })
        .await
    }

    /// All registered runs, by run key. What is no registration is left out.
    ///
    /// # Errors
    /// Redis does not answer.
    pub async fn registered(&self) -> Result<Vec<RegisteredRun>> {
        let runs: BTreeMap<String, String> = self
            .with_connection("read the runs of", async |connection| {
                redis::cmd("HGETALL").arg(RUNS).query_async(connection).await
            })
            .await?;
        Ok(runs.values().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }
}
