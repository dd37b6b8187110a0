//! What became of each row of a batch that has ended, in no order, with lines that come twice.

use serde_json::Value;

use super::Job;
use super::timeline::{Look, Phase};
use crate::answer::Flaw;
use crate::dialect;
use crate::provider::Provider;
use crate::random;
use crate::serve::State;
use crate::trouble::Trouble;

/// A row's end.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RowResult {
    Answered(Value),
    /// In no shape that is documented.
    Odd,
    Failed(Trouble),
    Expired,
    Cancelled,
}

pub(super) fn make(state: &State, provider: Provider, job: &Job, look: &Look) -> Vec<(String, RowResult)> {
    if look.phase == Phase::Failed {
        // Anthropic's batches do not fail as a whole: each row tells its own end.
        let rows = job.rows.iter().filter(|_| provider == Provider::Anthropic);
        return rows.map(|row| (row.custom_id.clone(), RowResult::Failed(Trouble::Broken))).collect();
    }
    let behaviour = state.config.batches_of(provider);
    let mut results = Vec::with_capacity(job.rows.len());
    for (index, row) in job.rows.iter().enumerate() {
        let drawn = |what: u64| random::draw(state.config.seed, &[job.number, index as u64, what]);
        let result = match look.phase {
            _ if index < look.done => {
                if random::happens(drawn(201), behaviour.row_lost) {
                    continue;
                }
                let answer = answer(state, provider, job, index, [drawn(202), drawn(203), drawn(205)]);
                if random::happens(drawn(207), behaviour.row_odd) { RowResult::Odd } else { answer }
            }
            Phase::Expired => RowResult::Expired,
            _ => RowResult::Cancelled,
        };
        if random::happens(drawn(206), behaviour.stranger_line) {
            results.push((format!("stranger-{index}"), result.clone()));
        }
        if random::happens(drawn(204), behaviour.duplicate_line) {
            results.push((row.custom_id.clone(), result.clone()));
        }
        results.push((row.custom_id.clone(), result));
    }
    shuffle(&mut results, random::draw(state.config.seed, &[job.number]));
    results
}

fn answer(state: &State, provider: Provider, job: &Job, index: usize, numbers: [u64; 3]) -> RowResult {
    let behaviour = state.config.batches_of(provider);
    if random::happens(numbers[0], behaviour.row_error) {
        return RowResult::Failed(Trouble::Broken);
    }
    if random::happens(numbers[1], behaviour.row_refused) {
        return RowResult::Failed(Trouble::Invalid("this row is refused, as configured".into()));
    }
    let body = &job.rows[index].body;
    let flaw = random::happens(numbers[2], behaviour.row_invalid).then_some(Flaw::Invalid);
    match dialect::infer(provider, &job.operation, body, flaw) {
        Ok(answered) => {
            state.journal.paid(provider, body.to_string().as_bytes(), answered.take);
            RowResult::Answered(answered.body)
        }
        Err(trouble) => RowResult::Failed(trouble),
    }
}

/// Fisher–Yates.
fn shuffle<T>(items: &mut [T], seed: u64) {
    for i in (1..items.len()).rev() {
        items.swap(i, random::draw(seed, &[i as u64]) as usize % (i + 1));
    }
}
