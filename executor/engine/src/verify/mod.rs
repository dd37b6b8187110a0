//! Proves on a machine that a model is computed as its authors' implementation computes it: [`verify`] runs the texts of a
//! [`Reference`] and says how far the answers are apart. Judges numbers only; what an answer is worth is not its business.
//!
//! Every text is run alone and in one ragged batch with all the others, because a packed batch must change nothing.

mod compare;
mod findings;
#[cfg(any(test, feature = "cuda"))]
mod processor;
mod reference;
mod subject;

use std::path::Path;

use rowmill_jobs::spec::Dtype;
use rowmill_jobs::{Error, Result};

pub use self::reference::{Expected, Item, Kind, NumberType, Reference};
use self::subject::{Prepared, Subject};
use crate::engine::threads;
use crate::model::{EngineOptions, Model};

/// Tokens of a reference: all of them are one batch.
const TOKENS_MAX: usize = 16_384;

/// How far answers may be from the reference's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Largest error of a logit, as a part of the logits' range.
    pub logits: f64,
    /// Largest distance of two vectors: 1 − cosine.
    pub distance: f64,
    /// Whether a greedy id may differ where the engine's own logits of both ids are no further apart than `logits`.
    pub close_calls: bool,
}

impl Tolerance {
    /// The tolerance for an engine that computes in `dtype` and a reference made in `reference`: that of the wider of both.
    ///
    /// `f32`: 1/1000 of the logits' range, cosine 0.9999, every greedy id equal. `f16`: 1/100, 0.9995. `bf16`, and `auto`,
    /// which may compute in `bf16` or with quantised weights: 1/20, 0.995. `fp8`, whose numbers have 3 bits of fraction: 1/5,
    /// 0.98. But in `f32` a greedy id may differ where both candidates' logits are that close.
    pub fn of(dtype: Dtype, reference: NumberType) -> Self {
        let exact = Self { logits: 1e-3, distance: 1e-4, close_calls: false };
        let half = Self { logits: 1e-2, distance: 5e-4, close_calls: true };
        let brain = Self { logits: 5e-2, distance: 5e-3, close_calls: true };
        let eight = Self { logits: 2e-1, distance: 2e-2, close_calls: true };
        match (dtype, reference) {
            (Dtype::Fp8, _) => eight,
            (Dtype::Auto | Dtype::Bf16, _) | (_, NumberType::Bfloat16) => brain,
            (Dtype::F16, _) | (_, NumberType::Float16) => half,
            (Dtype::F32, NumberType::Float32) => exact,
        }
    }
}

/// What came of a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What the model is, by its reference.
    pub kind: Kind,
    /// What was allowed.
    pub tolerance: Tolerance,
    /// One for each item, in the reference's order.
    pub items: Vec<Verdict>,
}

impl Report {
    /// Whether every item is as the reference says.
    pub fn passed(&self) -> bool {
        self.items.iter().all(Verdict::passed)
    }
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Verdict {
    /// Tokens that were run.
    pub tokens: usize,
    /// Largest error when it ran alone: of its logits, as a part of their range, or 1 − cosine. `None`: it did not run.
    pub alone: Option<f64>,
    /// The same in the batch with all other items.
    pub together: Option<f64>,
    /// Greedy ids that were equal, and how many there are, in the worse of both runs.
    pub greedy: Option<(usize, usize)>,
    /// What is wrong, in words; nothing if it passed.
    pub faults: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// The larger of both errors.
    pub fn largest_error(&self) -> Option<f64> {
        [self.alone, self.together].into_iter().flatten().reduce(f64::max)
    }
}

/// How an item was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Alone,
    Together,
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Together => "in the batch",
        }
    }
}

/// Runs texts of every length through the model in `source` on this machine's processor, in `f32`, and on its GPU, and
/// compares: logits within 2/100 of their range, vectors within a cosine of 0.999; in `fp8` as [`Tolerance::of`] says.
///
/// # Errors
/// The model cannot be loaded in one of both places.
#[cfg(feature = "cuda")]
pub fn against_processor(source: &Path, options: &EngineOptions) -> Result<Report> {
    let reference = threads("engine", options.threads.unwrap_or(0))?.install(|| processor::reference(source))?;
    let tolerance = match options.dtype {
        Dtype::Fp8 => Tolerance::of(Dtype::Fp8, NumberType::Float32),
        _ => Tolerance { logits: 2e-2, distance: 1e-3, close_calls: true },
    };
    run(source, &reference, options, tolerance)
}

/// Runs a reference's texts through the model in `source` (a folder with safetensors, or a `.gguf` file) and compares.
/// An item's trouble is its verdict's; `options` say the number type, which decides the [`Tolerance`].
///
/// # Errors
/// The model cannot be loaded, or is of another kind than the reference.
pub fn verify(source: &Path, reference: &Reference, options: &EngineOptions) -> Result<Report> {
    run(source, reference, options, Tolerance::of(options.dtype, reference.dtype))
}

fn run(source: &Path, reference: &Reference, options: &EngineOptions, tolerance: Tolerance) -> Result<Report> {
    threads("engine", options.threads.unwrap_or(0))?.install(|| {
        let mut subject = Subject::new(Model::load(source, options)?, reference.kind)?;
        let prepared = reference.items.iter().map(|item| subject.prepare(item)).collect::<Result<Vec<_>>>()?;
        let mut items: Vec<Verdict> = prepared
            .iter()
            .map(|one| Verdict { tokens: one.ids.len(), faults: one.faults.clone(), ..Verdict::default() })
            .collect();
        let runnable: Vec<usize> = (0..items.len()).filter(|at| prepared[*at].runs).collect();
        let tokens: usize = runnable.iter().map(|at| prepared[*at].ids.len()).sum();
        if tokens > TOKENS_MAX {
            return Err(Error::invalid(format!("the reference has {tokens} tokens; one batch takes {TOKENS_MAX}"))
                .hint("export fewer or shorter texts"));
        }
        for at in &runnable {
            judge(&mut subject, reference, &prepared, &[*at], (Way::Alone, tolerance), &mut items)?;
        }
        judge(&mut subject, reference, &prepared, &runnable, (Way::Together, tolerance), &mut items)?;
        Ok(Report { kind: reference.kind, tolerance, items })
    })
}

/// Runs the items `chosen` in one batch and adds what came of them to their verdicts.
fn judge(
    subject: &mut Subject,
    reference: &Reference,
    prepared: &[Prepared],
    chosen: &[usize],
    (way, tolerance): (Way, Tolerance),
    items: &mut [Verdict],
) -> Result<()> {
    if chosen.is_empty() {
        return Ok(());
    }
    let rows: Vec<&[u32]> = chosen.iter().map(|at| prepared[*at].ids.as_slice()).collect();
    let longest = chosen.iter().map(|at| reference.items[*at].expected.greedy_ids().len()).max().unwrap_or(0);
    for ((at, row), output) in chosen.iter().zip(&rows).zip(subject.run(&rows, longest)?) {
        let expected = &reference.items[*at].expected;
        let finding = findings::compare(subject, row, output, expected, reference.range, tolerance)?;
        let item = &mut items[*at];
        match way {
            Way::Alone => item.alone = Some(finding.error),
            Way::Together => item.together = Some(finding.error),
        }
        item.greedy = item.greedy.into_iter().chain(finding.greedy).min();
        item.faults.extend(finding.faults.into_iter().map(|fault| format!("{}: {fault}", way.words())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wider_number_type_decides() {
        let of = |dtype, reference| Tolerance::of(dtype, reference).logits;
        assert_eq!(of(Dtype::F32, NumberType::Float32), 1e-3);
        assert_eq!(of(Dtype::F32, NumberType::Bfloat16), 5e-2);
        assert_eq!(of(Dtype::F16, NumberType::Float32), 1e-2);
        assert_eq!(of(Dtype::Auto, NumberType::Float32), 5e-2);
        assert_eq!(of(Dtype::Fp8, NumberType::Bfloat16), 2e-1);
        assert!(!Tolerance::of(Dtype::F32, NumberType::Float32).close_calls);
    }
}
