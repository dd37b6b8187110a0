//! The decoder: a transformer over packed rows and a paged KV cache, written once and driven by a [`DecoderShape`].
//! Computes hidden states of the tokens that are asked for, and logits of the output rows that are asked for.

mod attention;
mod embedder;
#[cfg(test)]
mod embedder_tests;
mod experts;
mod families;
mod feed;
#[cfg(test)]
mod gguf_tests;
mod metadata;
mod names;
mod norm;
#[cfg(test)]
mod odd_tests;
mod order;
#[cfg(feature = "cuda")]
mod parts;
pub(crate) mod shape;
#[cfg(test)]
mod switch_tests;
mod tensors;

pub(crate) use self::embedder::Embedder;
#[cfg(feature = "cuda")]
pub(crate) use self::embedder::pack_texts;
pub(crate) use self::families::{ARCHITECTURES, from_config};
pub(crate) use self::metadata::{GGUF_FAMILIES, from_gguf};
#[cfg(feature = "cuda")]
pub(crate) use self::norm::Norm;
#[cfg(feature = "cuda")]
pub(crate) use self::parts::{LayerParts, Parts};

use crate::linear::Precision;
use rowmill_jobs::Result;

use self::attention::{Angles, Attention, Projected};
use self::feed::FeedForward;
#[cfg(not(feature = "cuda"))]
use self::norm::Norm;
use self::shape::{DecoderShape, LayerShape, Residual};
use self::tensors::{Bias, Piece, Tensors};
use crate::attention::{Direction, Heads, RowView, attend};
use crate::gemm;
use crate::kernels::{add, for_tokens, tanh};
use crate::kv::{KvCache, KvForm};
use crate::linear::Linear;
use crate::pack::Pack;
use crate::weights::Weights;

/// A decoder with its weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    shape: DecoderShape,
    embedding: Linear,
    /// Learned positions, `[positions, hidden]`; empty where positions are rotary.
    positions: Vec<f32>,
    layers: Vec<Layer>,
    norm: Norm,
    /// The output matrix, `[vocab, hidden]`.
    pub(crate) output: Linear,
    /// For each rotary embedding the angle per position of each pair of a head, `[rotary / 2]`.
    frequencies: Vec<Vec<f32>>,
}

#[derive(Debug)]
struct Layer {
    /// Its place, which is its part of each page.
    index: usize,
    shape: LayerShape,
    attention: Attention,
    feed: FeedForward,
    /// Norms of what the halves read, and of what they give.
    attention_before: Option<Norm>,
    attention_after: Option<Norm>,
    feed_before: Option<Norm>,
    feed_after: Option<Norm>,
}

impl Decoder {
    /// Checks that all tensors are there in the shapes that the architecture asks for; reads none.
    pub(crate) fn check(shape: &DecoderShape, weights: &Weights) -> Result<()> {
        Self::walk(shape, weights, None).map(drop)
    }

    /// Reads the weights.
    pub(crate) fn load(shape: &DecoderShape, weights: &Weights, dtype: Precision) -> Result<Self> {
        Self::walk(shape, weights, Some(dtype))
    }

    fn walk(shape: &DecoderShape, weights: &Weights, reading: Option<Precision>) -> Result<Self> {
        let (hidden, names) = (shape.hidden, shape.names);
        let tensors = Tensors::new(weights, names, reading);
        let vocabulary = |module: String, bias| tensors.stack(&[Piece::whole(module, shape.vocab, bias)], hidden);
        let embedding = vocabulary(tensors.name(names.embedding), Bias::No)?;
        let output = match shape.tied {
            true => embedding.clone(),
            false => {
                let there = |module: &&&str| tensors.has(&format!("{module}.weight"));
                let module = names.outputs.iter().find(there).or(names.outputs.first()).copied().unwrap_or_default();
                vocabulary(module.to_owned(), if shape.biases.output { Bias::Yes } else { Bias::No })?
            }
        };
        let positions = match (shape.positions, names.positions) {
            (Some(rows), Some(module)) => {
                tensors.values(&format!("{}.weight", tensors.name(module)), &[rows, hidden])?
            }
            _ => Vec::new(),
        };
        // llama.cpp's converter stores Llama 3.1's scaling as divisors of the frequencies.
        let factors = match tensors.has("rope_freqs.weight") {
            true => Some(tensors.values("rope_freqs.weight", &[shape.rotary / 2])?),
            false => None,
        };
        let layer = |(index, layer)| Layer::load(shape, index, layer, &tensors);
        Ok(Self {
            embedding,
            output,
            positions,
            layers: shape.layers.iter().copied().enumerate().map(layer).collect::<Result<_>>()?,
            norm: Norm::load(&tensors, &tensors.name(names.norm), hidden, shape)?,
            frequencies: shape.ropes.iter().map(|rope| rope.frequencies(shape.rotary, factors.as_deref())).collect(),
            shape: shape.clone(),
        })
    }

    /// How its cache keeps keys and values: rounded where its matrices are.
    pub(crate) fn kv_form(&self) -> KvForm {
        if gemm::available() && self.output.is_rounded() { KvForm::Tiles } else { KvForm::Floats }
    }

    /// Shape of its attention.
    pub(crate) fn heads(shape: &DecoderShape) -> Heads {
        shape.heads
    }

    /// Runs a batch: writes its keys and values into the cache and returns the normed hidden states of the wanted
    /// tokens, `[wanted, hidden]`.
    pub(crate) fn forward(&self, pack: &Pack, cache: &mut KvCache) -> Result<Vec<f32>> {
        let (hidden, multiplier) = (self.shape.hidden, self.shape.residual_multiplier);
        let parallel = self.shape.residual == Residual::Parallel;
        let mut h = self.embed(pack)?;
        let angles: Vec<Vec<f32>> =
            (0..self.frequencies.len()).map(|rope| self.angles(rope, &pack.positions)).collect();
        for layer in &self.layers {
            let x = layer.attention_before.as_ref().map_or_else(|| h.clone(), |norm| norm.apply(&h));
            // Where one norm serves both halves, the feed-forward reads what attention reads.
            let mut shared = if parallel && layer.feed_before.is_none() { x.clone() } else { Vec::new() };
            let turns = angles.get(layer.shape.rope).map_or(&[][..], Vec::as_slice);
            let angles = Angles { values: turns, rotary: self.shape.rotary };
            let mut context = self.attention(layer, x, angles, pack, cache)?;
            if layer.index + 1 == self.layers.len() {
                // After the last attention only the wanted tokens matter.
                if pack.wanted.is_empty() {
                    return Ok(Vec::new());
                }
                h = gather(&h, hidden, &pack.wanted);
                shared = if shared.is_empty() { shared } else { gather(&shared, hidden, &pack.wanted) };
                context = gather(&context, layer.attention.out.inputs, &pack.wanted);
            }
            let attended = layer.attention.out.apply(context)?;
            let add_attended = |h: &mut [f32]| {
                let bias = layer.attention.out.bias.as_deref();
                attended.read(|values| add_branch(h, hidden, values, bias, layer.attention_after.as_ref(), multiplier))
            };
            if !parallel {
                add_attended(&mut h)?;
            }
            let x = match &layer.feed_before {
                Some(norm) => norm.apply(&h),
                None if parallel => shared,
                None => h.clone(),
            };
            if parallel {
                add_attended(&mut h)?;
            }
            layer.add_feed(&mut h, x, multiplier)?;
        }
        Ok(self.norm.apply(&h))
    }

    /// Logits of hidden states (`[rows, hidden]`) for all output rows, or the selected ones in `head`: `[rows, outputs]`.
    pub(crate) fn logits(&self, hidden: Vec<f32>, head: &Linear) -> Result<Vec<f32>> {
        let (multiplier, softcap) = (self.shape.logits_multiplier, self.shape.logits_softcap);
        let mut logits = head.apply(hidden)?.read(<[f32]>::to_vec)?;
        if head.bias.is_none() && multiplier == 1.0 && softcap.is_none() {
            return Ok(logits);
        }
        for_tokens(
            &mut logits,
            head.outputs,
            #[inline(always)]
            |_, row| {
                if let Some(bias) = &head.bias {
                    add(row, bias);
                }
                row.iter_mut().for_each(|logit| *logit *= multiplier);
                if let Some(cap) = softcap {
                    row.iter_mut().for_each(
                        #[inline(always)]
                        |logit| *logit = cap * tanh(*logit / cap),
                    );
                }
            },
        );
        Ok(logits)
    }

    /// The tokens' vectors before the first layer, `[tokens, hidden]`.
    fn embed(&self, pack: &Pack) -> Result<Vec<f32>> {
        let (hidden, multiplier) = (self.shape.hidden, self.shape.embedding_multiplier);
        let mut h = vec![0f32; pack.tokens() * hidden];
        for (id, out) in pack.ids.iter().zip(h.chunks_exact_mut(hidden)) {
            self.embedding.copy_row(*id, out)?;
        }
        if multiplier != 1.0 {
            h.iter_mut().for_each(|x| *x *= multiplier);
        }
        if !self.positions.is_empty() {
            for (position, out) in pack.positions.iter().zip(h.chunks_exact_mut(hidden)) {
                add(out, &self.positions[position * hidden..(position + 1) * hidden]);
            }
        }
        Ok(h)
    }

    /// Cosines and sines of each token, `[tokens, rotary]`: first half cosines, second half sines.
    fn angles(&self, rope: usize, positions: &[usize]) -> Vec<f32> {
        let frequencies = &self.frequencies[rope];
        let magnitude = self.shape.ropes[rope].magnitude();
        let half = frequencies.len();
        let mut angles = vec![0f32; positions.len() * 2 * half];
        for_tokens(
            &mut angles,
            2 * half,
            #[inline(always)]
            |token, out| {
                let (cos, sin) = out.split_at_mut(half);
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (s, c) = (positions[token] as f32 * frequency).sin_cos();
                    (sin[i], cos[i]) = (s * magnitude, c * magnitude);
                }
            },
        );
        angles
    }

    /// What attention reads from the cache for each token, `[tokens, heads * value_dim]`, after the batch's own keys and
    /// values are written.
    fn attention(
        &self,
        layer: &Layer,
        x: Vec<f32>,
        angles: Angles<'_>,
        pack: &Pack,
        cache: &mut KvCache,
    ) -> Result<Vec<f32>> {
        let Projected { queries, keys, values } = layer.attention.project(&self.shape, x, angles)?;
        cache.write(layer.index, &keys, &values, &pack.writes);
        let rows: Vec<RowView<'_>> = pack
            .starts
            .windows(2)
            .zip(&pack.before)
            .zip(&pack.tables)
            .map(|((span, before), table)| {
                let tokens = span[1] - span[0];
                RowView {
                    first: span[0],
                    tokens,
                    before: *before,
                    blocks: cache.blocks(layer.index, table, before + tokens),
                }
            })
            .collect();
        Ok(attend(self.shape.heads, Direction::Causal, self.shape.scores(&layer.shape), &queries, &rows))
    }
}

impl Layer {
    fn load(shape: &DecoderShape, index: usize, layer: LayerShape, tensors: &Tensors<'_>) -> Result<Self> {
        let names = shape.names;
        let root = tensors.name(&format!("{}.{index}.", names.layers));
        let norm = |module: Option<&str>| {
            module.map(|module| Norm::load(tensors, &format!("{root}{module}"), shape.hidden, shape)).transpose()
        };
        Ok(Self {
            index,
            shape: layer,
            attention: Attention::load(shape, tensors, &root)?,
            feed: FeedForward::load(shape, layer.feed, tensors, &root)?,
            attention_before: norm(names.attention_before)?,
            attention_after: norm(names.attention_after)?,
            feed_before: norm(names.feed_before)?,
            feed_after: norm(names.feed_after)?,
        })
    }

    /// Adds to `h` what the feed-forward makes of `x`.
    fn add_feed(&self, h: &mut [f32], x: Vec<f32>, multiplier: f32) -> Result<()> {
        let (hidden, after) = (self.attention.out.outputs, self.feed_after.as_ref());
        match &self.feed {
            FeedForward::Dense(mlp) => mlp.down.apply(mlp.inner(x)?)?.read(|values| {
                add_branch(h, hidden, values, mlp.down.bias.as_deref(), after, multiplier);
            }),
            FeedForward::Mixture(mixture) => {
                add_branch(h, hidden, &mixture.apply(x)?, None, after, multiplier);
                Ok(())
            }
        }
    }
}

/// h += multiplier * norm(values + bias), token by token.
fn add_branch(h: &mut [f32], width: usize, values: &[f32], bias: Option<&[f32]>, norm: Option<&Norm>, multiplier: f32) {
    let normed = norm.map(|norm| {
        let mut values = values.to_vec();
        for_tokens(
            &mut values,
            width,
            #[inline(always)]
            |_, x| {
                if let Some(bias) = bias {
                    add(x, bias);
                }
                norm.in_place(x);
            },
        );
        values
    });
    let (values, bias) = normed.as_deref().map_or((values, bias), |normed| (normed, None));
    for_tokens(
        h,
        width,
        #[inline(always)]
        |token, h| {
            let values = &values[token * width..(token + 1) * width];
            match bias {
                None if multiplier == 1.0 => add(h, values),
                None => h.iter_mut().zip(values).for_each(|(h, x)| *h += multiplier * x),
                Some(bias) => {
                    for ((h, x), bias) in h.iter_mut().zip(values).zip(bias) {
                        *h += multiplier * (x + bias);
                    }
                }
            }
        },
    );
}

/// The rows of `x` (`[_, width]`) with these indices.
fn gather(x: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
}
