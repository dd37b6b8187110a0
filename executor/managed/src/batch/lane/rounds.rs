//! Rounds: how rows are cut into batches, and the decision that no more of them go into any. Each is recorded before anything
//! is done by it, and the first record stands.

use bytes::Bytes;
use rowmill_jobs::{Error, Kind, Result};

use super::super::machine::{BatchMachine, Fact};
use super::super::reconcile::Again;
use super::super::record::{Round, Steps, Why};
use super::super::rows::{cut, ranges, row_name};
use super::{Batch, BatchLane};

/// What was sent of a shard's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// No batch was created, for certain.
    Nothing,
    /// All batches that were created have their rows' ends recorded.
    Ended,
    /// A batch is at the provider, or may be.
    UnderWay,
}

impl Sent {
    /// By the records of one batch.
    fn of(steps: &Steps) -> Self {
        let is_permitted = steps.intents.last().is_some_and(|(_, void)| void.is_none());
        match steps.has_results {
            true => Sent::Ended,
            false if steps.created.is_some() || is_permitted => Sent::UnderWay,
            false => Sent::Nothing,
        }
    }
}

impl BatchLane {
    /// How a round is cut: as recorded, or now.
    pub(super) async fn plan(&self, round: u32, rows: &[u32], not_before_ms: i64) -> Result<Round> {
        let plan = match self.records.round(round).await? {
            Some(plan) => plan,
            None => {
                let batches = self.cut(rows)?.iter().map(|batch| ranges(batch)).collect();
                self.records.plan(round, Round { not_before_ms, batches, ..self.no_round() }).await?
            }
        };
        self.check(plan)
    }

    /// Records that there is no such round, and why, unless there is; returns what stands.
    pub(super) async fn stop(&self, round: u32, why: Why, now_ms: i64) -> Result<Round> {
        let plan = match self.records.round(round).await? {
            Some(plan) => plan,
            None => self.records.plan(round, Round { stopped_ms: Some(now_ms), why, ..self.no_round() }).await?,
        };
        self.check(plan)
    }

    /// Tells a batch's machine whether no more is wanted after its round.
    pub(super) async fn learn_stop(&self, round: u32, machine: &mut BatchMachine) -> Result<()> {
        if let Some(at_ms) = self.records.round(round + 1).await?.and_then(|next| next.stopped_ms) {
            machine.learn(Fact::Stopped(at_ms));
        }
        Ok(())
    }

    /// Whether a row without an answer in this batch goes into another one.
    pub(super) fn again(&self, batch: &Batch<'_>) -> Again {
        if batch.round + 1 < self.patience.rounds_max { Again::Yes } else { Again::No }
    }

    /// Whether anybody has begun: decided how the rows are cut, or that none goes into a batch.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn has_begun(&self) -> Result<bool> {
        Ok(self.records.round(0).await?.is_some())
    }

    /// How many rows would go into no batch, because they are too few for one.
    ///
    /// # Errors
    /// A row's request is no JSON.
    pub fn too_few(&self) -> Result<usize> {
        let rows: Vec<u32> = (0..u32::try_from(self.job.rows.len()).unwrap_or(u32::MAX)).collect();
        Ok(rows.len() - self.cut(&rows)?.iter().map(Vec::len).sum::<usize>())
    }

    /// How batches stand, by what is recorded of them.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn sent(&self) -> Result<Sent> {
        let mut sent = Sent::Nothing;
        for round in 0.. {
            let Some(plan) = self.records.round(round).await? else { break };
            for index in 0..plan.batches.len() {
                sent = sent.max(Sent::of(&self.records.steps(round, index).await?));
            }
        }
        Ok(sent)
    }

    fn cut(&self, rows: &[u32]) -> Result<Vec<Vec<u32>>> {
        // What surrounds a row in the provider's format is about as long for all rows.
        let around = self.provider.api().line(&row_name("", 0), self.job.asks, b"{}")?.len() + 1;
        Ok(cut(rows, self.limits, |row| self.body(row).map_or(0, Bytes::len) + around))
    }

    fn no_round(&self) -> Round {
        Round {
            provider: self.provider.name().into(),
            model: self.job.model.clone(),
            input_sha256: self.digest.clone(),
            not_before_ms: 0,
            batches: Vec::new(),
            stopped_ms: None,
            why: Why::default(),
        }
    }

    fn check(&self, plan: Round) -> Result<Round> {
        if plan.input_sha256 != self.digest || plan.provider != self.provider.name() {
            return Err(Error::new(
                Kind::InputChanged,
                "the rows of a shard are not those that its batches were made of",
            )
            .with("run", &self.job.run_key)
            .with("shard", self.job.shard)
            .hint("a shard that was sent as a batch is finished with the same input, prompt, model and provider"));
        }
        Ok(plan)
    }
}
