//! A classifier on top of an encoder: from hidden states to a score for each label, and from labels as a job names them to
//! the model's own. Refuses labels that the model does not have.

use crate::linear::Precision;
use rowmill_jobs::Result;
use rowmill_jobs::spec::Pooling;

use super::feed::activate;
use super::names::Named;
use super::norm::Norm;
use super::pool::States;
use super::shape::{EncoderShape, HeadShape, HeadState};
use crate::kernels::for_tokens;
use crate::linear::Linear;
use crate::weights::{Part, Weights, fused};

/// Chooses labels of rows.
#[derive(Debug)]
pub(crate) struct Classifier {
    encoder: States,
    hidden: usize,
    norm_epsilon: f32,
    shape: HeadShape,
    dense: Linear,
    norm: Option<Norm>,
    out: Linear,
}

impl Classifier {
    /// Checks the tensors of the head; reads none.
    pub(crate) fn check(encoder: &EncoderShape, head: &HeadShape, weights: &Weights) -> Result<()> {
        let named = Named::find(weights, encoder.spellings);
        named.check(&place(&named, head.dense), &[encoder.hidden, encoder.hidden])?;
        named.check(&place(&named, head.out), &[head.labels.len(), encoder.hidden])
    }

    /// Reads the head of an encoder.
    pub(crate) fn load(
        states: States,
        (encoder, head): (&EncoderShape, &HeadShape),
        weights: &Weights,
        dtype: Precision,
    ) -> Result<Self> {
        let named = Named::find(weights, encoder.spellings);
        let linear = |module: &str, rows: usize| {
            let module = place(&named, module);
            fused(weights, &[Part { module: &module, rows }], encoder.hidden, dtype)
        };
        Ok(Self {
            encoder: states,
            hidden: encoder.hidden,
            norm_epsilon: encoder.norm_epsilon,
            dense: linear(head.dense, encoder.hidden)?,
            norm: head.norm.map(|norm| Norm::load(weights, &place(&named, norm), encoder.hidden)).transpose()?,
            out: linear(head.out, head.labels.len())?,
            shape: head.clone(),
        })
    }

    /// The model's own labels.
    pub(crate) fn labels(&self) -> &[String] {
        &self.shape.labels
    }

    /// Tokens that are computed before anybody looks whether it is to stop.
    pub(crate) fn tokens_max(&self) -> usize {
        self.encoder.tokens_max()
    }

    /// Whether a device computes its encoder.
    pub(crate) fn on_device(&self) -> bool {
        self.encoder.on_device()
    }

    /// Logits of all labels for each row, `[rows, labels]`.
    pub(crate) fn logits(&self, rows: &[&[u32]]) -> Result<Vec<f32>> {
        let pooling = match self.shape.state {
            HeadState::First => Pooling::Cls,
            HeadState::Mean => Pooling::Mean,
        };
        let (pooled, _) = self.encoder.pooled(rows, pooling)?;
        let mut active = activate(&self.dense.apply(pooled)?, &self.dense, self.shape.activation)?;
        if let Some(norm) = &self.norm {
            for_tokens(
                &mut active,
                self.hidden,
                #[inline(always)]
                |_, x| norm.apply(x, self.norm_epsilon),
            );
        }
        activate(&self.out.apply(active)?, &self.out, super::shape::Activation::Identity)
    }
}

/// The name in the files of a head's module: beside the encoder, or below its prefix.
fn place(named: &Named<'_>, module: &str) -> String {
    let below = named.module(module);
    if named.weights.has(&format!("{below}.weight")) { below } else { module.to_owned() }
}

/// Probabilities of the labels `asked` (indices into the model's own): the softmax over all of the model's labels, then the
/// share of those that were asked for. `None` if a logit is not finite.
pub(crate) fn probabilities(logits: &[f32], asked: &[usize]) -> Option<Vec<f32>> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    // The softmax's own sum is lost in the division by the share of those asked, so it is never computed.
    let top = asked.iter().map(|label| logits[*label]).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = asked.iter().map(|label| f64::from(logits[*label] - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| (weight / sum) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_the_share_of_the_labels_asked_for() {
        let logits = [0.0, 3f32.ln(), 12.0, f32::MIN];
        let both = probabilities(&logits, &[1, 0]).unwrap_or_default();
        assert!(both.iter().zip([0.75, 0.25]).all(|(a, b)| (a - b).abs() < 1e-6), "{both:?}");
        assert_eq!(probabilities(&logits, &[3, 2]), Some(vec![0.0, 1.0]));
        assert_eq!(probabilities(&[f32::NAN, 1.0], &[1]), None);
    }
}
