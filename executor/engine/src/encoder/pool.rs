//! From a row's token vectors to its one vector: pooling, a dense layer where sentence-transformers has one, and length 1.

use crate::linear::Precision;
use rayon::prelude::*;
use rowmill_jobs::Result;
use rowmill_jobs::spec::Pooling;
use serde_json::Value;

use super::Encoder;
use super::feed::activate;
use super::rows::TOKENS;
use super::shape::Activation;
use crate::compatible::CompatibleEncoder;
use crate::config::{size, text, unsupported_value};
#[cfg(feature = "cuda")]
use crate::cuda::{DeviceEmbedder, DeviceEncoder};
use crate::kernels::{add, normalise};
use crate::linear::Linear;
use crate::weights::{Part, Weights, fused};

/// Makes vectors of rows.
#[derive(Debug)]
pub(crate) struct Embedder {
    pub(crate) encoder: States,
    pub(crate) pooling: Pooling,
    /// A layer after pooling.
    pub(crate) dense: Option<Dense>,
}

/// What computes token vectors.
#[derive(Debug)]
pub(crate) enum States {
    Packed(Box<Encoder>),
    /// candle-transformers, each row alone.
    Compatible(Box<CompatibleEncoder>),
    #[cfg(feature = "cuda")]
    Device(Box<DeviceEncoder>),
    /// The last states of a decoder.
    #[cfg(feature = "cuda")]
    DeviceDecoder(Box<DeviceEmbedder>),
}

impl States {
    /// Tokens that are computed before anybody looks whether it is to stop.
    pub(crate) fn tokens_max(&self) -> usize {
        match self {
            Self::Packed(_) | Self::Compatible(_) => TOKENS,
            #[cfg(feature = "cuda")]
            Self::Device(encoder) => encoder.tokens_max(),
            #[cfg(feature = "cuda")]
            Self::DeviceDecoder(decoder) => decoder.tokens_max(),
        }
    }

    /// Whether a device computes them.
    pub(crate) fn on_device(&self) -> bool {
        match self {
            Self::Packed(_) | Self::Compatible(_) => false,
            #[cfg(feature = "cuda")]
            Self::Device(_) | Self::DeviceDecoder(_) => true,
        }
    }

    /// One vector of each row of token ids, behind each other, and how long one is.
    pub(crate) fn pooled(&self, rows: &[&[u32]], pooling: Pooling) -> Result<(Vec<f32>, usize)> {
        Ok(match self {
            Self::Packed(encoder) => {
                let (states, width) = (encoder.states(rows)?, encoder.shape.hidden);
                (states.rows().flat_map(|tokens| pool(tokens, width, pooling)).collect(), width)
            }
            Self::Compatible(encoder) => {
                let (states, width) = (encoder.states(rows)?, encoder.hidden);
                (states.iter().flat_map(|tokens| pool(tokens, width, pooling)).collect(), width)
            }
            #[cfg(feature = "cuda")]
            Self::Device(encoder) => (encoder.pooled(rows, pooling)?, encoder.hidden()),
            #[cfg(feature = "cuda")]
            Self::DeviceDecoder(decoder) => (decoder.pooled(rows, pooling)?, decoder.hidden()),
        })
    }
}

/// What a `Dense` module of sentence-transformers is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DenseShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) activation: Activation,
}

/// A `Dense` module of sentence-transformers.
#[derive(Debug)]
pub(crate) struct Dense {
    linear: Linear,
    activation: Activation,
}

impl DenseShape {
    /// Reads its `config.json`.
    pub(crate) fn from_config(config: &Value) -> Result<Self> {
        let named = text(config, "activation_function").unwrap_or("torch.nn.modules.activation.Tanh");
        let activation = match named.rsplit('.').next().unwrap_or_default() {
            "Identity" => Activation::Identity,
            "Tanh" => Activation::Tanh,
            "ReLU" => Activation::Relu,
            "GELU" => Activation::Gelu,
            "SiLU" => Activation::Silu,
            _ => return Err(unsupported_value("activation_function", named)),
        };
        Ok(Self { inputs: size(config, "in_features")?, outputs: size(config, "out_features")?, activation })
    }
}

impl Dense {
    /// Reads its weights.
    pub(crate) fn load(shape: &DenseShape, weights: &Weights, dtype: Precision) -> Result<Self> {
        let part = Part { module: "linear", rows: shape.outputs };
        Ok(Self { linear: fused(weights, &[part], shape.inputs, dtype)?, activation: shape.activation })
    }
}

/// Pooled vectors (`[rows, width]`) through the layer after pooling, each of length 1; `None` where one is not finite.
pub(crate) fn finish(mut pooled: Vec<f32>, mut width: usize, dense: Option<&Dense>) -> Result<Vec<Option<Vec<f32>>>> {
    if let Some(dense) = dense {
        pooled = activate(&dense.linear.apply(pooled)?, &dense.linear, dense.activation)?;
        width = dense.linear.outputs;
    }
    let unit = |vector: &[f32]| {
        let mut vector = vector.to_vec();
        normalise(&mut vector).then_some(vector)
    };
    Ok(pooled.par_chunks_exact(width).map(unit).collect())
}

impl Embedder {
    /// Vectors of rows of token ids, each of length 1; `None` where a vector is not finite.
    pub(crate) fn embed(&self, rows: &[&[u32]]) -> Result<Vec<Option<Vec<f32>>>> {
        let (pooled, width) = self.encoder.pooled(rows, self.pooling)?;
        finish(pooled, width, self.dense.as_ref())
    }
}

/// One vector of a row's token vectors (`[tokens, hidden]`).
pub(crate) fn pool(tokens: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    let count = (tokens.len() / hidden) as f32;
    match pooling {
        Pooling::Cls => tokens[..hidden].to_vec(),
        Pooling::Last => tokens[tokens.len() - hidden..].to_vec(),
        Pooling::Mean => {
            let mut mean = vec![0f32; hidden];
            for token in tokens.chunks_exact(hidden) {
                add(&mut mean, token);
            }
            mean.iter_mut().for_each(|x| *x /= count);
            mean
        }
        Pooling::Max => {
            let mut top = tokens[..hidden].to_vec();
            for token in tokens.chunks_exact(hidden) {
                // A value that is not a number must stay to be seen.
                top.iter_mut()
                    .zip(token)
                    .for_each(|(top, x)| *top = if *x <= *top || top.is_nan() { *top } else { *x });
            }
            top
        }
    }
}
