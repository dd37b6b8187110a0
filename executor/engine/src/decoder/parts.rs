//! A decoder taken apart, for a device that is to hold it: its matrices, norms and tables as they were read. Only plain
//! attention and plain feed-forwards can be taken apart; whoever asks has refused the others before.

use rowmill_jobs::{Error, Result};

use super::attention::Projection;
use super::feed::{FeedForward, Mlp};
use super::norm::Norm;
use super::shape::LayerShape;
use super::{Decoder, Layer};
use crate::linear::Linear;

/// A decoder's parts.
pub(crate) struct Parts<'a> {
    pub(crate) embedding: &'a Linear,
    /// `[positions, hidden]`, or empty.
    pub(crate) positions: &'a [f32],
    pub(crate) layers: Vec<LayerParts<'a>>,
    pub(crate) norm: &'a Norm,
    pub(crate) output: &'a Linear,
    /// For each rotary embedding the cosines and sines of each position, `[context, rotary]`.
    pub(crate) angles: Vec<Vec<f32>>,
}

/// A layer's parts.
pub(crate) struct LayerParts<'a> {
    pub(crate) shape: LayerShape,
    pub(crate) qkv: &'a Linear,
    /// Of queries and keys, and whether they are over all heads together.
    pub(crate) qk_norms: Option<(&'a [Norm; 2], bool)>,
    pub(crate) out: &'a Linear,
    pub(crate) feed: &'a Mlp,
    /// Before and after attention, before and after the feed-forward.
    pub(crate) norms: [Option<&'a Norm>; 4],
}

impl Decoder {
    /// Takes it apart.
    pub(crate) fn parts(&self) -> Result<Parts<'_>> {
        let positions: Vec<usize> = (0..self.shape.context).collect();
        Ok(Parts {
            embedding: &self.embedding,
            positions: &self.positions,
            layers: self.layers.iter().map(Layer::parts).collect::<Result<_>>()?,
            norm: &self.norm,
            output: &self.output,
            angles: (0..self.frequencies.len()).map(|rope| self.angles(rope, &positions)).collect(),
        })
    }
}

impl Layer {
    fn parts(&self) -> Result<LayerParts<'_>> {
        let Projection::Plain { qkv, norms, whole } = &self.attention.projection else {
            return Err(unknown("latent attention"));
        };
        let FeedForward::Dense(feed) = &self.feed else { return Err(unknown("experts")) };
        let around = [&self.attention_before, &self.attention_after, &self.feed_before, &self.feed_after];
        Ok(LayerParts {
            shape: self.shape,
            qkv,
            qk_norms: norms.as_ref().map(|norms| (norms, *whole)),
            out: &self.attention.out,
            feed,
            norms: around.map(Option::as_ref),
        })
    }
}

fn unknown(what: &str) -> Error {
    Error::internal(format!("a decoder with {what} was to be taken apart"))
}
