//! A layer's attention: what it projects tokens to, and how queries and keys are normed and rotated before the cache gets
//! them. Two kinds of projection, plain and latent; scores and softmax are [`crate::attention`]'s.

use rowmill_jobs::Result;

use super::names::QkvNames;
use super::norm::Norm;
use super::order::{grouped, in_halves, latent_keys_values, latent_queries};
use super::shape::{DecoderShape, Latent, QkNorm};
use super::tensors::{Bias, Piece, Tensors};
use crate::kernels::{add, for_tokens};
use crate::linear::Linear;

/// Norms inside of latent attention have an epsilon of their own, whatever the configuration says.
const LATENT_EPSILON: f32 = 1e-6;

/// A layer's attention with its weights.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(super) projection: Projection,
    pub(crate) out: Linear,
}

#[derive(Debug)]
pub(super) enum Projection {
    Plain {
        /// q, k and v below each other.
        qkv: Linear,
        norms: Option<[Norm; 2]>,
        /// Norms are over all heads together.
        whole: bool,
    },
    Latent {
        /// q (or its short vector), the short vector of k and v, and the shared rotated part of keys, below each other.
        first: Linear,
        q: Option<(Norm, Linear)>,
        kv_norm: Norm,
        /// All keys' own parts, then all values.
        kv: Linear,
    },
}

/// What attention works on: `[tokens, heads * head_dim]`, `[tokens, kv_heads * head_dim]`, `[tokens, kv_heads * value_dim]`.
pub(crate) struct Projected {
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// Cosines and sines of a batch: `[tokens, rotary]`, first half cosines, second half sines.
#[derive(Clone, Copy)]
pub(crate) struct Angles<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rotary: usize,
}

impl Angles<'_> {
    /// Rotates the first floats of a token's head: pairs (i, i + rotary / 2).
    #[inline(always)]
    fn rotate(&self, token: usize, head: &mut [f32]) {
        let (cos, sin) = self.values[token * self.rotary..(token + 1) * self.rotary].split_at(self.rotary / 2);
        let (first, second) = head[..self.rotary].split_at_mut(cos.len());
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

impl Attention {
    pub(crate) fn load(shape: &DecoderShape, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        let bias = if shape.biases.attention_out { Bias::Yes } else { Bias::No };
        let out = Piece::whole(format!("{layer}{}", shape.names.attention_out), shape.hidden, bias);
        Ok(Self {
            projection: match &shape.latent {
                None => Projection::plain(shape, tensors, layer)?,
                Some(latent) => Projection::latent(shape, latent, tensors, layer)?,
            },
            out: tensors.stack(&[out], shape.heads.heads * shape.heads.value_dim)?,
        })
    }

    /// Queries, keys and values of normed hidden states, ready for scores and for the cache.
    pub(crate) fn project(&self, shape: &DecoderShape, x: Vec<f32>, angles: Angles<'_>) -> Result<Projected> {
        match &self.projection {
            Projection::Plain { qkv, norms, whole } => {
                let [q_norm, k_norm] = norms.as_ref().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
                let sizes = [shape.heads.heads, shape.heads.kv_heads].map(|heads| heads * shape.heads.head_dim);
                qkv.apply(x)?.read(|product| {
                    let rows = Rows { product, width: qkv.outputs, bias: qkv.bias.as_deref() };
                    let turned = |from: usize, size: usize, norm: Option<&Norm>| {
                        let turn = Turn { norm, norm_size: if *whole { size } else { shape.heads.head_dim }, angles };
                        rows.turned(from, size, shape.heads.head_dim, &turn)
                    };
                    Projected {
                        queries: turned(0, sizes[0], q_norm),
                        keys: turned(sizes[0], sizes[1], k_norm),
                        values: rows.copied(sizes[0] + sizes[1], shape.heads.kv_heads * shape.heads.value_dim),
                    }
                })
            }
            Projection::Latent { first, q, kv_norm, kv } => {
                let (q_size, d) = (shape.heads.heads * shape.heads.head_dim, shape.heads.head_dim);
                let turn = Turn { norm: None, norm_size: d, angles };
                let (queries, from, short, shared) = first.apply(x)?.read(|product| {
                    let rows = Rows { product, width: first.outputs, bias: first.bias.as_deref() };
                    let (queries, from) = match q {
                        None => (rows.turned(0, q_size, d, &turn), q_size),
                        Some((norm, second)) => (rows.normed(0, second.inputs, norm), second.inputs),
                    };
                    let shared = rows.copied(from + kv.inputs, shape.rotary);
                    (queries, from, rows.normed(from, kv.inputs, kv_norm), shared)
                })?;
                debug_assert_eq!(from + kv.inputs + shape.rotary, first.outputs);
                let queries = match q {
                    None => queries,
                    Some((_, second)) => second.apply(queries)?.read(|product| {
                        Rows { product, width: second.outputs, bias: None }.turned(0, q_size, d, &turn)
                    })?,
                };
                kv.apply(short)?.read(|product| {
                    let rows = Rows { product, width: kv.outputs, bias: None };
                    let own = d - shape.rotary;
                    Projected {
                        queries,
                        keys: rows.with_shared(&shared, own, shape.heads.heads, angles),
                        values: rows.copied(shape.heads.heads * own, shape.heads.heads * shape.heads.value_dim),
                    }
                })
            }
        }
    }
}

impl Projection {
    fn plain(shape: &DecoderShape, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        let d = shape.heads.head_dim;
        let (heads, kv_heads) = (shape.heads.heads, shape.heads.kv_heads);
        let bias = if shape.biases.qkv { Bias::Yes } else { Bias::No };
        let all = (heads + 2 * kv_heads) * d;
        let whole = |name: &str| Piece::whole(format!("{layer}{name}"), all, bias);
        let halves = |heads: usize| shape.interleaved.then(|| in_halves(heads, d, shape.rotary));
        let pieces = match &shape.names.qkv {
            QkvNames::Separate(names) => {
                let [q, k, v] = names.map(|name| format!("{layer}{name}"));
                vec![
                    Piece { rows: halves(heads), ..Piece::whole(q, heads * d, bias) },
                    Piece { rows: halves(kv_heads), ..Piece::whole(k, kv_heads * d, bias) },
                    Piece::whole(v, kv_heads * d, bias),
                ]
            }
            QkvNames::Joined(name) => vec![whole(name)],
            QkvNames::Grouped(name) => vec![Piece { rows: Some(grouped(heads, kv_heads, d)), ..whole(name) }],
        };
        let norms = |sizes: [usize; 2]| {
            let [q, k] = shape.names.qk_norms.map(|name| format!("{layer}{name}"));
            Ok(Some([Norm::load(tensors, &q, sizes[0], shape)?, Norm::load(tensors, &k, sizes[1], shape)?]))
        };
        Ok(Self::Plain {
            qkv: tensors.stack(&pieces, shape.hidden)?,
            norms: match shape.qk_norm {
                QkNorm::None => Ok(None),
                QkNorm::Head => norms([d, d]),
                QkNorm::Whole => norms([heads * d, kv_heads * d]),
            }?,
            whole: shape.qk_norm == QkNorm::Whole,
        })
    }

    fn latent(shape: &DecoderShape, latent: &Latent, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        let (heads, names) = (shape.heads, shape.names.latent);
        let name = |module: &str| format!("{layer}{module}");
        let bias = if shape.biases.qkv { Bias::Yes } else { Bias::No };
        let (q_size, kv_first) = (heads.heads * heads.head_dim, latent.kv + shape.rotary);
        let (rotary, whole) = (shape.rotary, (0..shape.rotary).collect());
        let rotated = if shape.interleaved { in_halves(1, rotary, rotary) } else { whole };
        let queries = |module: &str| Piece {
            rows: Some(latent_queries(heads, &rotated)),
            ..Piece::whole(name(module), q_size, Bias::No)
        };
        let q_first = match latent.q {
            None => queries(names.q),
            Some(short) => Piece::whole(name(names.q_a), short, bias),
        };
        let shared = shape.interleaved.then(|| {
            let turned = in_halves(1, shape.rotary, shape.rotary).into_iter().map(|row| latent.kv + row);
            (0..latent.kv).chain(turned).collect()
        });
        let kv_first = Piece { rows: shared, ..Piece::whole(name(names.kv_a), kv_first, bias) };
        let norm = |module: &str, size: usize| {
            Norm::load(tensors, &name(module), size, shape).map(|norm| norm.with_epsilon(LATENT_EPSILON))
        };
        let kv_rows = latent_keys_values(heads, shape.rotary);
        let kv = Piece { rows: Some(kv_rows.clone()), ..Piece::whole(name(names.kv_b), kv_rows.len(), Bias::No) };
        Ok(Self::Latent {
            first: tensors.stack(&[q_first, kv_first], shape.hidden)?,
            q: match latent.q {
                None => None,
                Some(short) => Some((norm(names.q_norm, short)?, tensors.stack(&[queries(names.q_b)], short)?)),
            },
            kv_norm: norm(names.kv_norm, latent.kv)?,
            kv: tensors.stack(&[kv], latent.kv)?,
        })
    }
}

/// A product `[tokens, width]` and the bias that is still to be added.
struct Rows<'a> {
    product: &'a [f32],
    width: usize,
    bias: Option<&'a [f32]>,
}

/// What is done to each head of queries and keys.
struct Turn<'a> {
    norm: Option<&'a Norm>,
    /// Floats that are normed together.
    norm_size: usize,
    angles: Angles<'a>,
}

impl Rows<'_> {
    /// Copies a token's columns from `from` on, with their bias.
    #[inline(always)]
    fn copy(&self, token: usize, from: usize, out: &mut [f32]) {
        let at = token * self.width + from;
        out.copy_from_slice(&self.product[at..at + out.len()]);
        if let Some(bias) = self.bias {
            add(out, &bias[from..]);
        }
    }

    /// `size` columns from `from` on.
    fn copied(&self, from: usize, size: usize) -> Vec<f32> {
        self.each(
            size,
            #[inline(always)]
            |token, out| self.copy(token, from, out),
        )
    }

    /// The same, normed.
    fn normed(&self, from: usize, size: usize, norm: &Norm) -> Vec<f32> {
        self.each(
            size,
            #[inline(always)]
            |token, out| {
                self.copy(token, from, out);
                norm.in_place(out);
            },
        )
    }

    /// The same, as heads of `head_dim`, normed where the model does and rotated.
    fn turned(&self, from: usize, size: usize, head_dim: usize, turn: &Turn<'_>) -> Vec<f32> {
        self.each(
            size,
            #[inline(always)]
            |token, out| {
                self.copy(token, from, out);
                if let Some(norm) = turn.norm {
                    out.chunks_exact_mut(turn.norm_size).for_each(
                        #[inline(always)]
                        |part| norm.in_place(part),
                    );
                }
                if turn.angles.rotary > 0 {
                    for head in out.chunks_exact_mut(head_dim) {
                        turn.angles.rotate(token, head);
                    }
                }
            },
        )
    }

    /// Keys of `heads` heads: the shared part (`[tokens, rotary]`), rotated, then the head's own `own` floats.
    fn with_shared(&self, shared: &[f32], own: usize, heads: usize, angles: Angles<'_>) -> Vec<f32> {
        let rotary = angles.rotary;
        self.each(
            heads * (rotary + own),
            #[inline(always)]
            |token, out| {
                for (head, out) in out.chunks_exact_mut(rotary + own).enumerate() {
                    let (turned, rest) = out.split_at_mut(rotary);
                    turned.copy_from_slice(&shared[token * rotary..(token + 1) * rotary]);
                    angles.rotate(token, turned);
                    self.copy(token, head * own, rest);
                }
            },
        )
    }

    /// `[tokens, size]`, each token's floats by `f`.
    fn each(&self, size: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        let mut out = vec![0f32; self.product.len() / self.width * size];
        for_tokens(&mut out, size, f);
        out
    }
}
