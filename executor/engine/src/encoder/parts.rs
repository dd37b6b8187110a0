//! An encoder taken apart, for a device that is to hold it: its matrices, norms and tables as they were read. What attention
//! knows of distances and rotations is left out; whoever asks has refused encoders with either before.

use super::feed::FeedForward;
use super::norm::Norm;
use super::shape::{Activation, EncoderShape, Gate};
use super::{Encoder, Layer};
use crate::linear::Linear;

/// An encoder's parts.
pub(crate) struct Parts<'a> {
    pub(crate) shape: &'a EncoderShape,
    pub(crate) words: &'a Linear,
    /// `[positions, hidden]`, or empty.
    pub(crate) positions: &'a [f32],
    /// `[hidden]`.
    pub(crate) token_type: &'a [f32],
    pub(crate) norm: (&'a [f32], &'a [f32]),
    pub(crate) layers: Vec<LayerParts<'a>>,
}

/// A layer's parts; norms are weight and bias.
pub(crate) struct LayerParts<'a> {
    pub(crate) qkv: &'a Linear,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) out: &'a Linear,
    /// `None` before the first layer of a network whose norms stand before.
    pub(crate) attention_norm: Option<(&'a [f32], &'a [f32])>,
    pub(crate) up: &'a Linear,
    pub(crate) activation: Activation,
    pub(crate) gate: Gate,
    pub(crate) down: &'a Linear,
    pub(crate) feed_norm: (&'a [f32], &'a [f32]),
}

impl Encoder {
    /// Takes it apart.
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            shape: &self.shape,
            words: &self.words,
            positions: &self.positions,
            token_type: &self.token_type,
            norm: weights(&self.norm),
            layers: self.layers.iter().map(Layer::parts).collect(),
        }
    }
}

impl Layer {
    fn parts(&self) -> LayerParts<'_> {
        let FeedForward { up, activation, gate, down } = &self.feed;
        LayerParts {
            qkv: &self.attention.qkv,
            scale: self.attention.scale,
            window: self.attention.window,
            out: &self.attention_out,
            attention_norm: self.attention_norm.as_ref().map(weights),
            up,
            activation: *activation,
            gate: *gate,
            down,
            feed_norm: weights(&self.feed_norm),
        }
    }
}

fn weights(norm: &Norm) -> (&[f32], &[f32]) {
    (&norm.weight, &norm.bias)
}
