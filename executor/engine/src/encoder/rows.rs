//! Rows of token ids to outcomes, in batches of bounded size: vectors of an embedding model, labels of a classifier.

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Answer, Answered, Outcome, RowError, RowErrorCode, Usage};

use super::head::{Classifier, probabilities};
use super::pool::Embedder;
use crate::pack::batches;
use crate::row::choice;

/// Tokens an encoder computes at a time.
const TOKENS: usize = 2048;

/// A vector for each row; `None` if it was stopped.
pub(crate) fn embed(
    embedder: &Embedder,
    rows: &[&[u32]],
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Outcome>>> {
    in_batches(rows, stopped, |batch| {
        Ok(embedder.embed(batch)?.into_iter().map(|vector| vector.map(Answer::Vector)).collect())
    })
}

/// One of the labels `asked` (indices into the model's own) for each row; `None` if it was stopped.
pub(crate) fn classify(
    classifier: &Classifier,
    asked: &[usize],
    rows: &[&[u32]],
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Outcome>>> {
    in_batches(rows, stopped, |batch| {
        let logits = classifier.logits(batch)?;
        let rows = logits.chunks_exact(classifier.labels().len());
        Ok(rows.map(|logits| probabilities(logits, asked).map(choice)).collect())
    })
}

/// Answers rows batch by batch. A row without an answer computed something that is not finite.
fn in_batches(
    rows: &[&[u32]],
    stopped: &(dyn Fn() -> bool + Sync),
    answer: impl Fn(&[&[u32]]) -> Result<Vec<Option<Answer>>>,
) -> Result<Option<Vec<Outcome>>> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let numeric = || RowError::new(RowErrorCode::Numeric, "the model computed a number that is not finite");
    let mut outcomes: Vec<Outcome> = rows.iter().map(|_| Err(numeric())).collect();
    for batch in batches(&lengths, TOKENS) {
        if stopped() {
            return Ok(None);
        }
        let packed: Vec<&[u32]> = batch.iter().map(|row| rows[*row]).collect();
        for (row, answer) in batch.iter().zip(answer(&packed)?) {
            if let Some(answer) = answer {
                let usage = Usage { input_tokens: lengths[*row] as u64, ..Usage::default() };
                outcomes[*row] = Ok(Answered { answer, usage });
            }
        }
    }
    Ok(Some(outcomes))
}
