//! The encoder: BERT over packed rows, no padding, each row attending to itself only; then pooling and length 1.
//! Takes token ids that already carry their special tokens. Knows no text and no batching policy.

pub(crate) mod shape;

use candle_core::DType;
use rayon::prelude::*;
use rowmill_jobs::Result;
use rowmill_jobs::spec::Pooling;

use self::shape::{Activation, EncoderShape};
use crate::attention::{BLOCK, Blocks, Direction, Heads, RowView, Scores, attend};
use crate::kernels::{add, for_tokens, gelu, gelu_tanh, layer_norm, normalise};
use crate::linear::{Linear, Product};
use crate::weights::{Part, Weights, fused};

/// A BERT encoder with its weights.
#[derive(Debug)]
pub(crate) struct Encoder {
    shape: EncoderShape,
    words: Linear,
    positions: Vec<f32>,
    /// The first token type's vector, which every token gets.
    token_type: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    out_norm: Norm,
}

impl Encoder {
    /// Checks the tensors whose shapes tell whether weights and configuration belong together; reads none.
    pub(crate) fn check(shape: &EncoderShape, weights: &Weights) -> Result<()> {
        weights.check("embeddings.word_embeddings.weight", &[shape.vocab, shape.hidden])?;
        weights.check("embeddings.position_embeddings.weight", &[shape.context, shape.hidden])?;
        for layer in 0..shape.layers {
            let root = format!("encoder.layer.{layer}");
            weights.check(&format!("{root}.attention.self.query.weight"), &[shape.hidden, shape.hidden])?;
            weights.check(&format!("{root}.intermediate.dense.weight"), &[shape.intermediate, shape.hidden])?;
            weights.check(&format!("{root}.output.dense.weight"), &[shape.hidden, shape.intermediate])?;
        }
        Ok(())
    }

    /// Reads the weights.
    pub(crate) fn load(shape: &EncoderShape, weights: &Weights, dtype: DType) -> Result<Self> {
        let hidden = shape.hidden;
        let types = weights.read("embeddings.token_type_embeddings.weight", &[shape.types, hidden])?;
        let words = Part { module: "embeddings.word_embeddings", rows: shape.vocab };
        let layers = (0..shape.layers).map(|layer| Layer::load(shape, weights, layer, dtype)).collect::<Result<_>>()?;
        Ok(Self {
            words: fused(weights, &[words], hidden, dtype)?,
            positions: weights.read("embeddings.position_embeddings.weight", &[shape.context, hidden])?,
            token_type: types[..hidden].to_vec(),
            norm: Norm::load(weights, "embeddings.LayerNorm", hidden)?,
            layers,
            shape: shape.clone(),
        })
    }

    /// Vectors of rows of token ids, each `[hidden]` and of length 1; `None` where a vector is not finite.
    pub(crate) fn embed(&self, rows: &[&[u32]], pooling: Pooling) -> Result<Vec<Option<Vec<f32>>>> {
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let states = self.states(rows)?;
        let hidden = self.shape.hidden;
        let mut vectors = Vec::with_capacity(rows.len());
        let mut first = 0;
        for length in lengths {
            let tokens = &states[first * hidden..(first + length) * hidden];
            first += length;
            let mut vector = pool(tokens, hidden, pooling);
            vectors.push(normalise(&mut vector).then_some(vector));
        }
        Ok(vectors)
    }

    /// Hidden states of all rows, packed: `[tokens, hidden]`.
    fn states(&self, rows: &[&[u32]]) -> Result<Vec<f32>> {
        let hidden = self.shape.hidden;
        let tokens: usize = rows.iter().map(|row| row.len()).sum();
        let mut h = vec![0f32; tokens * hidden];
        let placed = rows.iter().flat_map(|row| row.iter().copied().enumerate());
        for ((position, id), out) in placed.zip(h.chunks_exact_mut(hidden)) {
            self.words.copy_row(id, out)?;
            add(out, &self.positions[position * hidden..(position + 1) * hidden]);
            add(out, &self.token_type);
        }
        let epsilon = self.shape.norm_epsilon;
        for_tokens(
            &mut h,
            hidden,
            #[inline(always)]
            |_, x| layer_norm(x, &self.norm.weight, &self.norm.bias, epsilon),
        );
        for layer in &self.layers {
            let context = self.attention(layer, &h, rows)?;
            add_and_norm(
                &mut h,
                &layer.attention_out.apply(context)?,
                &layer.attention_out,
                &layer.attention_norm,
                epsilon,
            )?;
            let up = layer.up.apply(h.clone())?;
            let active = activate(&up, &layer.up, self.shape.activation)?;
            add_and_norm(&mut h, &layer.down.apply(active)?, &layer.down, &layer.out_norm, epsilon)?;
        }
        Ok(h)
    }

    fn attention(&self, layer: &Layer, h: &[f32], rows: &[&[u32]]) -> Result<Vec<f32>> {
        let hidden = self.shape.hidden;
        let head_dim = hidden / self.shape.heads;
        let heads = Heads { heads: self.shape.heads, kv_heads: self.shape.heads, head_dim, value_dim: head_dim };
        let bias = layer.qkv.bias.as_deref().unwrap_or_default();
        let mut queries = vec![0f32; h.len()];
        let starts: Vec<usize> = rows
            .iter()
            .scan(0, |at, row| {
                *at += row.len();
                Some(*at - row.len())
            })
            .collect();
        let blocks: Vec<Vec<f32>> = layer.qkv.apply(h.to_vec())?.read(|qkv| {
            for_tokens(
                &mut queries,
                hidden,
                #[inline(always)]
                |token, out| {
                    out.copy_from_slice(&qkv[token * 3 * hidden..(token * 3 + 1) * hidden]);
                    add(out, &bias[..hidden.min(bias.len())]);
                },
            );
            let blocks = |(row, start): (&&[u32], &usize)| {
                let mut blocks = vec![0f32; row.len().div_ceil(BLOCK) * heads.block_floats()];
                let mut kv = vec![0f32; 2 * hidden];
                for t in 0..row.len() {
                    let token = start + t;
                    kv.copy_from_slice(&qkv[(token * 3 + 1) * hidden..(token * 3 + 3) * hidden]);
                    add(&mut kv, bias.get(hidden..).unwrap_or_default());
                    let at = t / BLOCK * heads.block_floats();
                    let block = &mut blocks[at..at + heads.block_floats()];
                    heads.write(block, t % BLOCK, &kv[..hidden], &kv[hidden..]);
                }
                blocks
            };
            rows.par_iter().zip(&starts).map(blocks).collect()
        })?;
        let views: Vec<RowView<'_>> = rows
            .iter()
            .zip(&starts)
            .zip(&blocks)
            .map(|((row, first), blocks)| RowView {
                first: *first,
                tokens: row.len(),
                before: 0,
                blocks: Blocks::Floats(blocks.chunks_exact(heads.block_floats()).collect()),
            })
            .collect();
        Ok(attend(heads, Direction::Both, Scores::plain(heads.head_dim), &queries, &views))
    }
}

impl Layer {
    fn load(shape: &EncoderShape, weights: &Weights, layer: usize, dtype: DType) -> Result<Self> {
        let (hidden, root) = (shape.hidden, format!("encoder.layer.{layer}"));
        let linear = |module: &str, rows: usize, columns: usize| {
            let module = format!("{root}.{module}");
            fused(weights, &[Part { module: &module, rows }], columns, dtype)
        };
        let qkv = ["query", "key", "value"].map(|name| format!("{root}.attention.self.{name}"));
        let qkv = qkv.each_ref().map(|module| Part { module, rows: hidden });
        Ok(Self {
            qkv: fused(weights, &qkv, hidden, dtype)?,
            attention_out: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: Norm::load(weights, &format!("{root}.attention.output.LayerNorm"), hidden)?,
            up: linear("intermediate.dense", shape.intermediate, hidden)?,
            down: linear("output.dense", hidden, shape.intermediate)?,
            out_norm: Norm::load(weights, &format!("{root}.output.LayerNorm"), hidden)?,
        })
    }
}

impl Norm {
    fn load(weights: &Weights, module: &str, size: usize) -> Result<Self> {
        // Checkpoints from TensorFlow's time call them gamma and beta.
        let (weight, bias) =
            if weights.has(&format!("{module}.gamma")) { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Self {
            weight: weights.read(&format!("{module}.{weight}"), &[size])?,
            bias: weights.read(&format!("{module}.{bias}"), &[size])?,
        })
    }
}

/// h = norm(h + product + bias), token by token.
fn add_and_norm(h: &mut [f32], product: &Product, linear: &Linear, norm: &Norm, epsilon: f32) -> Result<()> {
    let width = linear.outputs;
    product.read(|values| {
        for_tokens(
            h,
            width,
            #[inline(always)]
            |token, x| {
                add(x, &values[token * width..(token + 1) * width]);
                if let Some(bias) = &linear.bias {
                    add(x, bias);
                }
                layer_norm(x, &norm.weight, &norm.bias, epsilon);
            },
        );
    })
}

/// activation(product + bias).
fn activate(product: &Product, linear: &Linear, activation: Activation) -> Result<Vec<f32>> {
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
                let items = out.iter_mut().zip(row).zip(bias);
                match activation {
                    Activation::Gelu => items.for_each(
                        #[inline(always)]
                        |((out, x), bias)| *out = gelu(x + bias),
                    ),
                    Activation::GeluTanh => items.for_each(
                        #[inline(always)]
                        |((out, x), bias)| *out = gelu_tanh(x + bias),
                    ),
                    Activation::Relu => items.for_each(
                        #[inline(always)]
                        |((out, x), bias)| *out = (x + bias).max(0.0),
                    ),
                }
            },
        );
        out
    })
}

/// One vector of a row's token vectors (`[tokens, hidden]`).
fn pool(tokens: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    match pooling {
        Pooling::Cls => tokens[..hidden].to_vec(),
        Pooling::Last => tokens[tokens.len() - hidden..].to_vec(),
        // The division by the number of tokens is lost in the normalisation that follows.
        Pooling::Mean => {
            let mut sum = vec![0f32; hidden];
            for token in tokens.chunks_exact(hidden) {
                add(&mut sum, token);
            }
            sum
        }
    }
}
