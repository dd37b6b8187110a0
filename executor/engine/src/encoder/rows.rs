//! Rows of token ids to outcomes, in batches of bounded size: vectors of an embedding model, labels of a classifier.

use rowmill_jobs::Result;
use rowmill_jobs::infer::{Answer, Answered, Outcome, RowError, RowErrorCode, Usage};

use super::head::{Classifier, probabilities};
use crate::drive::is_out_of_memory;
use crate::pack::batches;
use crate::row::choice;

/// Tokens an encoder computes before it looks whether it is to stop. It takes them through its layers in small groups.
pub(crate) const TOKENS: usize = 8192;
/// Tokens that a decoder takes through its layers together.
pub(crate) const DECODER_TOKENS: usize = 2048;

/// Vectors of a batch's rows, one for each; `None` where one is not finite.
type Vectors<'a> = &'a dyn Fn(&[&[u32]]) -> Result<Vec<Option<Vec<f32>>>>;

/// A vector for each row, computed in batches of `tokens_max`; `None` if it was stopped.
pub(crate) fn embed(
    vectors: Vectors<'_>,
    tokens_max: usize,
    rows: &[&[u32]],
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Outcome>>> {
    in_batches(rows, tokens_max, stopped, |batch| {
        Ok(vectors(batch)?.into_iter().map(|vector| vector.map(Answer::Vector)).collect())
    })
}

/// One of the labels `asked` (indices into the model's own) for each row; `None` if it was stopped.
pub(crate) fn classify(
    classifier: &Classifier,
    asked: &[usize],
    rows: &[&[u32]],
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Outcome>>> {
    in_batches(rows, classifier.tokens_max(), stopped, |batch| {
        let logits = classifier.logits(batch)?;
        let rows = logits.chunks_exact(classifier.labels().len());
        Ok(rows.map(|logits| probabilities(logits, asked).map(choice)).collect())
    })
}

/// Answers rows batch by batch. A row without an answer computed something that is not finite.
fn in_batches(
    rows: &[&[u32]],
    tokens_max: usize,
    stopped: &(dyn Fn() -> bool + Sync),
    answer: impl Fn(&[&[u32]]) -> Result<Vec<Option<Answer>>>,
) -> Result<Option<Vec<Outcome>>> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let numeric = || RowError::new(RowErrorCode::Numeric, "the model computed a number that is not finite");
    let mut outcomes: Vec<Outcome> = rows.iter().map(|_| Err(numeric())).collect();
    for batch in batches(&lengths, tokens_max) {
        if stopped() {
            return Ok(None);
        }
        let compute = |batch: &[usize]| answer(&batch.iter().map(|row| rows[*row]).collect::<Vec<_>>());
        for (row, answer) in batch.iter().zip(halving(&batch, &compute)?) {
            outcomes[*row] = answer.and_then(|answer| {
                let usage = Usage { input_tokens: lengths[*row] as u64, ..Usage::default() };
                Ok(Answered::new(answer.ok_or_else(numeric)?, usage))
            });
        }
    }
    Ok(Some(outcomes))
}

/// Computes a batch of rows, or where memory does not suffice for it, its halves. A row that does not fit alone has failed.
fn halving<T>(
    rows: &[usize],
    compute: &dyn Fn(&[usize]) -> Result<Vec<T>>,
) -> Result<Vec<std::result::Result<T, RowError>>> {
    match compute(rows) {
        Ok(values) => Ok(values.into_iter().map(Ok).collect()),
        Err(error) if !is_out_of_memory(&error) => Err(error),
        Err(_) if rows.len() < 2 => {
            let error = || RowError::new(RowErrorCode::OutOfMemory, "memory does not suffice for this row alone");
            Ok(rows.iter().map(|_| Err(error())).collect())
        }
        Err(_) => {
            let (first, second) = rows.split_at(rows.len() / 2);
            let mut values = halving(first, compute)?;
            values.extend(halving(second, compute)?);
            Ok(values)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rowmill_jobs::Error;

    use super::*;

    #[test]
    fn a_batch_that_lacks_memory_is_halved_down_to_the_rows_that_lack_it_alone() {
        let compute = |rows: &[usize]| {
            let full = Error::internal("a kernel failed").caused_by(std::io::Error::other("CUDA_ERROR_OUT_OF_MEMORY"));
            if rows.len() > 3 || rows.contains(&5) { Err(full) } else { Ok(rows.to_vec()) }
        };
        let values = halving(&(0..20).collect::<Vec<_>>(), &compute).unwrap();
        for (row, value) in values.iter().enumerate() {
            assert_eq!(
                value.as_ref().map_err(|error| error.code),
                if row == 5 { Err(RowErrorCode::OutOfMemory) } else { Ok(&row) }
            );
        }
        let broken = |_: &[usize]| Err::<Vec<usize>, _>(Error::internal("a kernel failed"));
        assert!(halving(&[1, 2], &broken).is_err(), "no other failure is taken for it");
    }
}
