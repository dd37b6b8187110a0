//! Layer norms with their weights: of hidden states, token by token. Those without a bias get one of zeros.

use rowmill_jobs::Result;

use crate::kernels::layer_norm;
use crate::weights::Weights;

/// A layer norm, `[size]`.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Norm {
    /// Reads the norm of this name.
    pub(crate) fn load(weights: &Weights, module: &str, size: usize) -> Result<Self> {
        // Checkpoints from TensorFlow's time call them gamma and beta.
        let (weight, bias) =
            if weights.has(&format!("{module}.gamma")) { ("gamma", "beta") } else { ("weight", "bias") };
        let bias = weights.read_if_there(&format!("{module}.{bias}"), &[size])?;
        Ok(Self {
            weight: weights.read(&format!("{module}.{weight}"), &[size])?,
            bias: bias.unwrap_or_else(|| vec![0.0; size]),
        })
    }

    /// Norms one token's vector.
    #[inline(always)]
    pub(crate) fn apply(&self, x: &mut [f32], epsilon: f32) {
        layer_norm(x, &self.weight, &self.bias, epsilon);
    }
}
