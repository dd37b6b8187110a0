//! Norms of a token's vector, as the architecture has them: by the root of the mean square, or by mean and variance.

use rowmill_jobs::Result;

use super::shape::{DecoderShape, NormKind};
use super::tensors::Tensors;
use crate::kernels::{for_tokens, layer_norm, rms_norm, rms_norm_in_place};

/// A norm with its weights.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    /// `None`: no mean is taken away either.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) epsilon: f32,
}

impl Norm {
    /// Reads the norm of `size` floats that the architecture has everywhere.
    pub(crate) fn load(tensors: &Tensors<'_>, module: &str, size: usize, shape: &DecoderShape) -> Result<Self> {
        let mut weight = tensors.values(&format!("{module}.weight"), &[size])?;
        let bias = match shape.norm {
            NormKind::Rms => None,
            NormKind::RmsPlusOne => {
                weight.iter_mut().for_each(|weight| *weight += 1.0);
                None
            }
            NormKind::Layer => Some(tensors.values(&format!("{module}.bias"), &[size])?),
        };
        Ok(Self { weight, bias, epsilon: shape.norm_epsilon })
    }

    /// The same weights with another epsilon.
    pub(crate) fn with_epsilon(self, epsilon: f32) -> Self {
        Self { epsilon, ..self }
    }

    /// Norms one vector.
    #[inline(always)]
    pub(crate) fn in_place(&self, x: &mut [f32]) {
        match &self.bias {
            None => rms_norm_in_place(x, &self.weight, self.epsilon),
            Some(bias) => layer_norm(x, &self.weight, bias, self.epsilon),
        }
    }

    /// Norms all vectors of `h` (`[tokens, size]`).
    pub(crate) fn apply(&self, h: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; h.len()];
        let width = self.weight.len();
        for_tokens(
            &mut out,
            width,
            #[inline(always)]
            |token, out| {
                let x = &h[token * width..(token + 1) * width];
                match &self.bias {
                    None => rms_norm(x, &self.weight, self.epsilon, out),
                    Some(bias) => {
                        out.copy_from_slice(x);
                        layer_norm(out, &self.weight, bias, self.epsilon);
                    }
                }
            },
        );
        out
    }
}
