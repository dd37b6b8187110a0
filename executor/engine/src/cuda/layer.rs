//! What of a decoder is on a GPU: a layer's weights, and the buffers that a step's tokens go through. Copies and counts; computes
//! nothing.

use half::bf16;
use rowmill_jobs::{Error, Result};

use super::gpu::{Buffer, Gpu};
use super::launch::{Activation, Norm};
use super::matrix::{Layers, Matrix};
use crate::decoder::shape::{Activation as HostActivation, DecoderShape};
use crate::decoder::{LayerParts, Norm as HostNorm};
use crate::linear::Linear;

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) qkv: Matrix,
    pub(super) qk_norms: Option<[Norm; 2]>,
    /// Whether those are over all heads together.
    pub(super) whole: bool,
    pub(super) out: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
    pub(super) gated: bool,
    pub(super) activation: Activation,
    pub(super) window: u32,
    pub(super) rope: usize,
    /// Before and after attention, before and after the feed-forward.
    pub(super) before: [Norm; 2],
    pub(super) after: [Option<Norm>; 2],
}

/// What a step's tokens become on their way, each `[tokens, _]`.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) tokens: usize,
    pub(super) h: Buffer<f32>,
    /// Of the tokens that are wanted, from the last layer on.
    pub(super) last: Buffer<f32>,
    pub(super) branch: Buffer<f32>,
    pub(super) x: Buffer<bf16>,
    pub(super) qkv: Buffer<bf16>,
    pub(super) context: Buffer<bf16>,
    pub(super) up: Buffer<bf16>,
    pub(super) inner: Buffer<bf16>,
}

impl Layer {
    pub(super) fn new(gpu: &Gpu, parts: &LayerParts<'_>, layers: Layers) -> Result<Self> {
        let [attention_before, attention_after, feed_before, feed_after] = parts.norms;
        let needed = |host: Option<&HostNorm>| match host {
            Some(host) => norm(gpu, host),
            None => Err(Error::internal("a layer has no norm before its halves")),
        };
        let after = |host: Option<&HostNorm>| host.map(|host| norm(gpu, host)).transpose();
        let matrix = |linear: &Linear| gpu.layer_matrix(linear, layers);
        Ok(Self {
            qkv: matrix(parts.qkv)?,
            qk_norms: match parts.qk_norms {
                Some(([q, k], _)) => Some([norm(gpu, q)?, norm(gpu, k)?]),
                None => None,
            },
            whole: parts.qk_norms.is_some_and(|(_, whole)| whole),
            out: matrix(parts.out)?,
            up: matrix(&parts.feed.up)?,
            down: matrix(&parts.feed.down)?,
            gated: parts.feed.gated,
            activation: match parts.feed.activation {
                HostActivation::Silu => Activation::Silu,
                HostActivation::Gelu => Activation::Gelu,
                HostActivation::GeluTanh => Activation::GeluTanh,
                HostActivation::Relu => Activation::Relu,
            },
            window: parts.shape.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            rope: parts.shape.rope,
            before: [needed(attention_before)?, needed(feed_before)?],
            after: [after(attention_after)?, after(feed_after)?],
        })
    }
}

impl Work {
    pub(super) fn new(gpu: &Gpu, shape: &DecoderShape, layers: &[Layer], tokens: usize) -> Result<Self> {
        let widest = |width: fn(&Layer) -> usize| layers.iter().map(width).max().unwrap_or(0);
        Ok(Self {
            tokens,
            h: gpu.buffer(tokens * shape.hidden)?,
            last: gpu.buffer(tokens * shape.hidden)?,
            branch: gpu.buffer(tokens * shape.hidden)?,
            x: gpu.buffer(tokens * shape.hidden)?,
            qkv: gpu.buffer(tokens * widest(|layer| layer.qkv.outputs))?,
            context: gpu.buffer(tokens * widest(|layer| layer.out.inputs))?,
            up: gpu.buffer(tokens * widest(|layer| layer.up.outputs))?,
            inner: gpu.buffer(tokens * widest(|layer| layer.down.inputs))?,
        })
    }
}

/// A norm's weights on a GPU.
pub(super) fn norm(gpu: &Gpu, host: &HostNorm) -> Result<Norm> {
    Norm::new(gpu, &host.weight, host.bias.as_deref(), host.epsilon)
}
