//! An encoder's feed-forward: up, activation with or without a gate, down. And activations of whole products, which
//! classifiers use, too.

use rowmill_jobs::Result;

use super::names::Named;
use super::shape::{Activation, EncoderShape, Gate};
use crate::kernels::{add, for_tokens, gelu, gelu_tanh, silu, tanh};
use crate::linear::{Linear, Precision, Product};
use crate::weights::{Part, fused};

/// The feed-forward of a layer.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(super) up: Linear,
    pub(super) activation: Activation,
    pub(super) gate: Gate,
    /// Its bias is for whoever reads the product.
    pub(crate) down: Linear,
}

impl EncoderShape {
    /// Rows of the feed-forward's first product.
    pub(crate) fn feed_rows(&self) -> usize {
        match self.gate {
            Gate::None => self.intermediate,
            Gate::FirstHalf => 2 * self.intermediate,
        }
    }
}

impl FeedForward {
    /// Reads the weights of a layer.
    pub(crate) fn load(named: &Named<'_>, shape: &EncoderShape, index: usize, dtype: Precision) -> Result<Self> {
        let modules: Vec<String> = named.names.up.iter().map(|module| named.layer(index, module)).collect();
        let rows = shape.feed_rows() / modules.len();
        let up: Vec<Part<'_>> = modules.iter().map(|module| Part { module, rows }).collect();
        let down = named.layer(index, named.names.down);
        let down = Part { module: &down, rows: shape.hidden };
        Ok(Self {
            up: fused(named.weights, &up, shape.hidden, dtype)?,
            activation: shape.activation,
            gate: shape.gate,
            down: fused(named.weights, &[down], shape.intermediate, dtype)?,
        })
    }

    /// `x` is `[tokens, hidden]`, and so is the product, which is still without the bias of `down`.
    pub(crate) fn apply(&self, x: &[f32]) -> Result<Product> {
        if self.gate == Gate::None
            && let Some(product) = self.up.apply_then(
                &self.down,
                x,
                #[inline(always)]
                |up, column| {
                    if let Some(bias) = &self.up.bias {
                        add(up, &bias[column..]);
                    }
                    self.activation.apply(up);
                },
            )
        {
            return Ok(product);
        }
        let up = self.up.apply(x)?;
        let active = match self.gate {
            Gate::None => activate(&up, &self.up, self.activation)?,
            Gate::FirstHalf => activate_gated(&up, &self.up, self.activation)?,
        };
        self.down.apply(active)
    }
}

/// activation(product + bias).
pub(crate) fn activate(product: &Product, linear: &Linear, activation: Activation) -> Result<Vec<f32>> {
    let width = linear.outputs;
    let zeros = vec![0f32; if linear.bias.is_some() { 0 } else { width }];
    let bias = linear.bias.as_ref().unwrap_or(&zeros);
    product.read(|values| {
        let mut out = vec![0f32; values.len()];
        for_tokens(
            &mut out,
            width,
            #[inline(always)]
            |token, out| {
                let row = &values[token * width..(token + 1) * width];
                for ((out, x), bias) in out.iter_mut().zip(row).zip(bias) {
                    *out = x + bias;
                }
                activation.apply(out);
            },
        );
        out
    })
}

/// activation(first half) * second half, of product + bias.
fn activate_gated(product: &Product, linear: &Linear, activation: Activation) -> Result<Vec<f32>> {
    let (width, half) = (linear.outputs, linear.outputs / 2);
    let zeros = vec![0f32; if linear.bias.is_some() { 0 } else { width }];
    let (bias, other_bias) = linear.bias.as_ref().unwrap_or(&zeros).split_at(half);
    product.read(|values| {
        let mut out = vec![0f32; values.len() / 2];
        for_tokens(
            &mut out,
            half,
            #[inline(always)]
            |token, out| {
                let (row, other) = values[token * width..(token + 1) * width].split_at(half);
                for ((out, x), bias) in out.iter_mut().zip(row).zip(bias) {
                    *out = x + bias;
                }
                activation.apply(out);
                for ((out, x), bias) in out.iter_mut().zip(other).zip(other_bias) {
                    *out *= x + bias;
                }
            },
        );
        out
    })
}

impl Activation {
    /// Activates a row.
    #[inline(always)]
    pub(crate) fn apply(self, row: &mut [f32]) {
        match self {
            Self::Gelu => each(row, gelu),
            Self::GeluTanh => each(row, gelu_tanh),
            Self::Relu => each(
                row,
                #[inline(always)]
                |x| x.max(0.0),
            ),
            Self::Silu => each(row, silu),
            Self::Tanh => each(row, tanh),
            Self::Identity => {}
        }
    }
}

#[inline(always)]
fn each(row: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in row {
        *x = f(*x);
    }
}
