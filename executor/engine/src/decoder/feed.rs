//! A layer's feed-forward: one network for every token, or a mixture of experts. The network itself is the same in both.

use rowmill_jobs::Result;

use super::experts::Mixture;
use super::names::UpNames;
use super::shape::{Activation, DecoderShape, Feed};
use super::tensors::{Bias, Piece, Tensors};
use crate::buffers::Buffer;
use crate::kernels::{for_tokens, gelu, gelu_tanh, silu};
use crate::linear::Linear;

/// A layer's feed-forward with its weights.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Mixture(Box<Mixture>),
}

/// Two products with an activation between them.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// gate and up below each other, or up alone.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) gated: bool,
    pub(crate) activation: Activation,
}

impl FeedForward {
    pub(crate) fn load(shape: &DecoderShape, feed: Feed, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        match (feed, &shape.experts) {
            (Feed::Experts, Some(experts)) => {
                Mixture::load(shape, experts, tensors, layer).map(|mixture| Self::Mixture(Box::new(mixture)))
            }
            (Feed::Dense(intermediate), _) => Mlp::load(shape, intermediate, tensors, layer).map(Self::Dense),
            (Feed::Experts, None) => Err(rowmill_jobs::Error::internal("a layer of experts without experts")),
        }
    }
}

impl Mlp {
    fn load(shape: &DecoderShape, inner: usize, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        let bias = if shape.biases.feed { Bias::Yes } else { Bias::No };
        let piece = |name: &str, rows: usize| Piece::whole(format!("{layer}{name}"), rows, bias);
        let up = match &shape.names.up {
            UpNames::Gated([gate, up]) => vec![piece(gate, inner), piece(up, inner)],
            UpNames::Joined(name) => vec![piece(name, 2 * inner)],
            UpNames::Plain(name) => vec![piece(name, inner)],
        };
        Ok(Self {
            up: tensors.stack(&up, shape.hidden)?,
            down: tensors.stack(&[piece(shape.names.down, shape.hidden)], inner)?,
            gated: !matches!(shape.names.up, UpNames::Plain(_)),
            activation: shape.activation,
        })
    }

    /// What `down` multiplies: activated inner states of `x` (`[tokens, hidden]`).
    pub(crate) fn inner(&self, x: impl AsRef<[f32]>) -> Result<Buffer<f32>> {
        let x = x.as_ref();
        match self.activation {
            Activation::Silu => self.inner_of(x, silu),
            Activation::Gelu => self.inner_of(x, gelu),
            Activation::GeluTanh => self.inner_of(x, gelu_tanh),
            Activation::Relu => self.inner_of(
                x,
                #[inline(always)]
                |x| x.max(0.0),
            ),
        }
    }

    #[inline(always)]
    fn inner_of(&self, x: &[f32], f: impl Fn(f32) -> f32 + Sync + Copy) -> Result<Buffer<f32>> {
        let gated = if self.gated { self.up.apply_gated(x, f) } else { None };
        gated.map_or_else(|| self.up.apply(x)?.read(|values| self.activated(values, f)), Ok)
    }

    /// `f(gate + bias) * (up + bias)`, or `f(up + bias)`.
    #[inline(always)]
    fn activated(&self, values: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Buffer<f32> {
        let width = self.down.inputs;
        let mut out = Buffer::of(if self.gated { values.len() / 2 } else { values.len() });
        let bias = self.up.bias.as_deref();
        for_tokens(
            &mut out,
            width,
            #[inline(always)]
            |token, out| match (self.gated, bias) {
                (true, None) => {
                    let (gate, up) = values[token * 2 * width..(token + 1) * 2 * width].split_at(width);
                    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                        *out = f(*gate) * up;
                    }
                }
                (true, Some(bias)) => {
                    let (gate, up) = values[token * 2 * width..(token + 1) * 2 * width].split_at(width);
                    let (gate_bias, up_bias) = bias.split_at(width);
                    let gates = gate.iter().zip(gate_bias);
                    for ((out, (gate, gate_bias)), (up, up_bias)) in
                        out.iter_mut().zip(gates).zip(up.iter().zip(up_bias))
                    {
                        *out = f(gate + gate_bias) * (up + up_bias);
                    }
                }
                (false, None) => {
                    for (out, up) in out.iter_mut().zip(&values[token * width..(token + 1) * width]) {
                        *out = f(*up);
                    }
                }
                (false, Some(bias)) => {
                    let up = values[token * width..(token + 1) * width].iter().zip(bias);
                    for (out, (up, bias)) in out.iter_mut().zip(up) {
                        *out = f(up + bias);
                    }
                }
            },
        );
        out
    }
}
