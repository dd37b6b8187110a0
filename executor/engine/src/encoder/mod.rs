//! The encoder: one network over packed rows, no padding, each row attending to itself only, driven by an
//! [`EncoderShape`]. Its hidden states become vectors ([`pool`]) or label scores ([`head`]). Takes token ids that already carry
//! their special tokens. Knows no text and no batching policy.

mod attention;
mod disentangled;
mod distance;
pub(crate) mod families;
mod feed;
pub(crate) mod head;
mod names;
mod norm;
#[cfg(test)]
mod odd_tests;
#[cfg(test)]
mod parity_tests;
#[cfg(feature = "cuda")]
mod parts;
pub(crate) mod pool;
pub(crate) mod rows;
pub(crate) mod settings;
pub(crate) mod shape;

#[cfg(feature = "cuda")]
pub(crate) use self::parts::LayerParts;

use std::borrow::Cow;

use rayon::prelude::*;
use rowmill_jobs::Result;

use self::attention::{Memory, Packed, SelfAttention, Shared};
use self::feed::FeedForward;
use self::names::Named;
use self::norm::Norm;
use self::shape::{EncoderShape, NormPlace, Relation};
use crate::kernels::{add, for_tokens};
use crate::linear::{Linear, Precision, Product};
use crate::weights::{Part, Weights, fused};

/// An encoder with its weights.
#[derive(Debug)]
pub(crate) struct Encoder {
    shape: EncoderShape,
    words: Linear,
    /// Vectors of positions, from a text's first on; empty where there are none.
    positions: Vec<f32>,
    /// The first token type's vector, which every token gets.
    token_type: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    last_norm: Option<Norm>,
}

#[derive(Debug)]
struct Layer {
    attention: SelfAttention,
    attention_out: Linear,
    /// `None` for the first layer of a network whose norms stand before.
    attention_norm: Option<Norm>,
    feed: FeedForward,
    feed_norm: Norm,
}

/// Tokens that go through the whole network together, on one thread where there are enough of them: what they become on
/// their way stays in its second-level cache, and no thread waits for another.
const TOKENS_TOGETHER: usize = 256;

/// Hidden states of a batch.
pub(crate) struct States {
    /// `[tokens, hidden]`.
    values: Vec<f32>,
    hidden: usize,
    /// Tokens of each row.
    lengths: Vec<usize>,
}

impl States {
    /// Each row's states, `[tokens of the row, hidden]`.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let mut rest = self.values.as_slice();
        self.lengths.iter().map(move |tokens| {
            let (row, after) = rest.split_at(tokens * self.hidden);
            rest = after;
            row
        })
    }
}

impl Encoder {
    /// Checks the tensors whose shapes tell whether weights and configuration belong together; reads none.
    pub(crate) fn check(shape: &EncoderShape, weights: &Weights) -> Result<()> {
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        let named = Named::find(weights, shape.spellings);
        let names = named.names;
        named.check(&named.module(names.words), &[shape.vocab, hidden])?;
        if let Some(positions) = shape.positions {
            named.check(&named.module(names.positions), &[positions.rows, hidden])?;
        }
        match shape.relation {
            Relation::Buckets { rows } => named.check(&named.module(names.relative), &[rows, shape.heads])?,
            Relation::Disentangled(relation) => {
                named.check(&named.module(names.relative), &[2 * relation.span, hidden])?;
            }
            Relation::None | Relation::Slopes => {}
        }
        for layer in 0..shape.layers.len() {
            for module in names.qkv {
                named.check(&named.layer(layer, module), &[3 * hidden / names.qkv.len(), hidden])?;
            }
            for module in names.up {
                named.check(&named.layer(layer, module), &[shape.feed_rows() / names.up.len(), hidden])?;
            }
            named.check(&named.layer(layer, names.down), &[hidden, inner])?;
        }
        Ok(())
    }

    /// Reads the weights.
    pub(crate) fn load(shape: &EncoderShape, weights: &Weights, dtype: Precision) -> Result<Self> {
        let hidden = shape.hidden;
        let named = Named::find(weights, shape.spellings);
        let names = named.names;
        let table =
            |module: &str, rows: usize| weights.read(&format!("{}.weight", named.module(module)), &[rows, hidden]);
        let positions = match shape.positions {
            Some(positions) => table(names.positions, positions.rows)?.split_off(positions.first * hidden),
            None => Vec::new(),
        };
        let mut token_type = if shape.types > 0 { table(names.types, shape.types)? } else { vec![0.0; hidden] };
        token_type.truncate(hidden);
        let words = named.module(names.words);
        // They are read row by row and multiplied with nothing.
        let words_dtype = match weights.precision(dtype, [format!("{words}.weight").as_str()]) {
            Precision::Split => Precision::F32,
            other => other,
        };
        let words = Part { module: &words, rows: shape.vocab };
        let shared = Shared::load(&named, shape)?;
        let layer = |index| Layer::load(&named, shape, index, &shared, dtype);
        let last_norm = match shape.norm_place {
            NormPlace::After => None,
            NormPlace::Before => Some(Norm::load(weights, &named.module(names.last_norm), hidden)?),
        };
        Ok(Self {
            words: fused(weights, &[words], hidden, words_dtype)?,
            positions,
            token_type,
            norm: Norm::load(weights, &named.module(names.embedding_norm), hidden)?,
            layers: (0..shape.layers.len()).map(layer).collect::<Result<_>>()?,
            last_norm,
            shape: shape.clone(),
        })
    }

    /// Hidden states of all rows.
    pub(crate) fn states(&self, rows: &[&[u32]]) -> Result<States> {
        let hidden = self.shape.hidden;
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let mut values = vec![0f32; lengths.iter().sum::<usize>() * hidden];
        let mut work = Vec::new();
        let mut rest = values.as_mut_slice();
        for rows in neighbours(rows, TOKENS_TOGETHER) {
            let tokens: usize = rows.iter().map(|row| row.len()).sum();
            let (own, after) = rest.split_at_mut(tokens * hidden);
            rest = after;
            work.push((rows, own));
        }
        work.into_par_iter().with_max_len(1).try_for_each(|(rows, h)| self.run(rows, h))?;
        Ok(States { values, hidden, lengths })
    }

    /// Hidden states of some rows, packed into `h` (`[tokens, hidden]`).
    fn run(&self, rows: &[&[u32]], h: &mut [f32]) -> Result<()> {
        let (hidden, epsilon) = (self.shape.hidden, self.shape.norm_epsilon);
        let packed = Packed::new(rows);
        self.embed(rows, &packed, h)?;
        let mut memory = Memory::default();
        for layer in &self.layers {
            let x = self.before(h, layer.attention_norm.as_ref());
            let context = layer.attention.apply(&x, &packed, &mut memory)?;
            let product = layer.attention_out.apply(context)?;
            self.sum(h, &product, &layer.attention_out, layer.attention_norm.as_ref())?;
            let x = self.before(h, Some(&layer.feed_norm));
            let product = layer.feed.apply(&x)?;
            self.sum(h, &product, &layer.feed.down, Some(&layer.feed_norm))?;
        }
        if let Some(norm) = &self.last_norm {
            for_tokens(
                h,
                hidden,
                #[inline(always)]
                |_, x| norm.apply(x, epsilon),
            );
        }
        Ok(())
    }

    /// Writes what the first layer reads, `[tokens, hidden]`.
    fn embed(&self, rows: &[&[u32]], packed: &Packed, h: &mut [f32]) -> Result<()> {
        let (hidden, epsilon) = (self.shape.hidden, self.shape.norm_epsilon);
        for (id, out) in rows.iter().copied().flatten().zip(h.chunks_exact_mut(hidden)) {
            self.words.copy_row(*id, out)?;
        }
        for_tokens(
            h,
            hidden,
            #[inline(always)]
            |token, x| {
                if !self.positions.is_empty() {
                    let at = packed.positions[token] * hidden;
                    add(x, &self.positions[at..at + hidden]);
                }
                add(x, &self.token_type);
                self.norm.apply(x, epsilon);
            },
        );
        Ok(())
    }

    /// What a layer reads of the states: themselves, or normed where norms stand before.
    fn before<'a>(&self, h: &'a [f32], norm: Option<&Norm>) -> Cow<'a, [f32]> {
        let (NormPlace::Before, Some(norm)) = (self.shape.norm_place, norm) else { return Cow::Borrowed(h) };
        let mut x = h.to_vec();
        for_tokens(
            &mut x,
            self.shape.hidden,
            #[inline(always)]
            |_, x| norm.apply(x, self.shape.norm_epsilon),
        );
        Cow::Owned(x)
    }

    /// h += product + bias, token by token; then the norm, where norms stand after.
    fn sum(&self, h: &mut [f32], product: &Product, linear: &Linear, norm: Option<&Norm>) -> Result<()> {
        let width = linear.outputs;
        let norm = norm.filter(|_| self.shape.norm_place == NormPlace::After);
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
                    if let Some(norm) = norm {
                        norm.apply(x, self.shape.norm_epsilon);
                    }
                },
            );
        })
    }
}

/// Cuts rows into neighbours of at most `tokens_max` tokens together; a longer row is alone.
pub(crate) fn neighbours<'a, 'b>(rows: &'a [&'b [u32]], tokens_max: usize) -> impl Iterator<Item = &'a [&'b [u32]]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut tokens = rest.first()?.len();
        let more = rest[1..].iter().take_while(|row| {
            tokens += row.len();
            tokens <= tokens_max
        });
        let (some, after) = rest.split_at(1 + more.count());
        rest = after;
        Some(some)
    })
}

impl Layer {
    fn load(named: &Named<'_>, shape: &EncoderShape, index: usize, shared: &Shared, dtype: Precision) -> Result<Self> {
        let (hidden, names, weights) = (shape.hidden, named.names, named.weights);
        let out = named.layer(index, names.attention_out);
        let out = Part { module: &out, rows: hidden };
        let attention_norm = match (shape.norm_place, index) {
            (NormPlace::Before, 0) => None,
            _ => Some(Norm::load(weights, &named.layer(index, names.attention_norm), hidden)?),
        };
        Ok(Self {
            attention: SelfAttention::load(named, shape, index, shared, dtype)?,
            attention_out: fused(weights, &[out], hidden, dtype)?,
            attention_norm,
            feed: FeedForward::load(named, shape, index, dtype)?,
            feed_norm: Norm::load(weights, &named.layer(index, names.feed_norm), hidden)?,
        })
    }
}
