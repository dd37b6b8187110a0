//! What one output is worth beside what is expected of it: an error, and faults in words. Follows a greedy path past a close
//! call where the tolerance allows one; runs the model for nothing else.

use rowmill_jobs::{Error, Result};

use super::reference::Expected;
use super::subject::{Output, Subject, Written};
use super::{Tolerance, compare};

/// What one run of one item came to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Finding {
    pub(super) error: f64,
    pub(super) greedy: Option<(usize, usize)>,
    pub(super) faults: Vec<String>,
}

/// Compares the output of `row`. `range` is that of a classifier's logits.
pub(super) fn compare(
    subject: &mut Subject,
    row: &[u32],
    output: Output,
    expected: &Expected,
    range: f64,
    tolerance: Tolerance,
) -> Result<Finding> {
    match (output, expected) {
        (Output::Next { logits, written }, Expected::Next { top_logits, range, greedy_ids }) => {
            let mut finding = of_logits(compare::listed_logits(&logits, top_logits, *range), tolerance);
            let path = Path { row, expected: greedy_ids, range: *range, tolerance };
            let (equal, fault) = path.follow(subject, written)?;
            finding.greedy = Some((equal, greedy_ids.len()));
            finding.faults.extend(fault);
            Ok(finding)
        }
        (Output::Vector(vector), Expected::Vector(expected)) => {
            let error = compare::distance(&vector, expected);
            let fault = (error > tolerance.distance)
                .then(|| format!("1 - cosine is {error:.1e}, {:.0e} is allowed", tolerance.distance));
            Ok(Finding { error, greedy: None, faults: fault.into_iter().collect() })
        }
        (Output::Labels(labels), Expected::Labels(expected)) => {
            Ok(of_logits(compare::labelled_logits(&labels, expected, range), tolerance))
        }
        _ => Err(Error::internal("the model's output is not of its reference's kind")),
    }
}

fn of_logits(error: f64, tolerance: Tolerance) -> Finding {
    let fault = (error > tolerance.logits)
        .then(|| format!("a logit is {error:.1e} of their range away, {:.0e} is allowed", tolerance.logits));
    Finding { error, greedy: None, faults: fault.into_iter().collect() }
}

/// The ids that are to follow a row.
struct Path<'a> {
    row: &'a [u32],
    expected: &'a [u32],
    range: f64,
    tolerance: Tolerance,
}

impl Path<'_> {
    /// How many ids are as expected, and what is wrong with the first that is not and may not be. After a close call the
    /// path goes on as the reference's does.
    fn follow(&self, subject: &mut Subject, mut written: Written) -> Result<(usize, Option<String>)> {
        let (mut from, mut close) = (0, 0);
        loop {
            let ids = match written {
                Ok(ids) => ids,
                Err(message) => return Ok((from - close, Some(message))),
            };
            let at = from + self.expected[from..].iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let Some(wanted) = self.expected.get(at) else { return Ok((at - close, None)) };
            let Some(own) = ids.get(at - from) else {
                return Ok((at - close, Some(format!("{at} of {} greedy ids were written", self.expected.len()))));
            };
            if !self.is_close(subject, at, *own, *wanted)? {
                return Ok((at - close, Some(format!("greedy id {} is {own}, should be {wanted}", at + 1))));
            }
            (from, close) = (at + 1, close + 1);
            let onward = [self.row, &self.expected[..from]].concat();
            written = subject.step(&onward, self.expected.len() - from)?.1;
        }
    }

    /// Whether id `at` may be either of two: the tolerance is of that sort, and the engine's own logits say so.
    fn is_close(&self, subject: &mut Subject, at: usize, own: u32, wanted: u32) -> Result<bool> {
        if !self.tolerance.close_calls {
            return Ok(false);
        }
        let (logits, _) = subject.step(&[self.row, &self.expected[..at]].concat(), 0)?;
        let of = |id: u32| logits.get(id as usize).map(|logit| f64::from(*logit));
        let gap = of(own).zip(of(wanted)).map(|(own, wanted)| (own - wanted) / self.range);
        Ok(gap.is_some_and(|gap| gap <= self.tolerance.logits))
    }
}
