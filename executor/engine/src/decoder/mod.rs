//! The decoder: a Llama-like transformer over packed rows and a paged KV cache, driven by a [`DecoderShape`].
//! Computes hidden states of the tokens that are asked for, and logits of the output rows that are asked for.

pub(crate) mod shape;

use candle_core::DType;
use rowmill_jobs::Result;

use self::shape::DecoderShape;
use crate::attention::{Direction, Heads, RowView, Scores, attend};
use crate::gemm;
use crate::kernels::{add, for_tokens, rms_norm, rms_norm_in_place, silu};
use crate::kv::{KvCache, KvForm};
use crate::linear::Linear;
use crate::pack::Pack;
use crate::weights::{Part, Weights, fused};

/// A decoder with its weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    shape: DecoderShape,
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// The output matrix, `[vocab, hidden]`.
    pub(crate) output: Linear,
    /// Angle per position of each pair of a head: `[head_dim / 2]`.
    frequencies: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    /// Its place, which is its part of each page.
    index: usize,
    attention_norm: Vec<f32>,
    /// q, k and v below each other.
    qkv: Linear,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attention_out: Linear,
    feed_norm: Vec<f32>,
    /// gate and up below each other.
    gate_up: Linear,
    down: Linear,
}

impl Decoder {
    /// Checks the tensors whose shapes tell whether weights and configuration belong together; reads none.
    pub(crate) fn check(shape: &DecoderShape, weights: &Weights) -> Result<()> {
        weights.check("model.embed_tokens.weight", &[shape.vocab, shape.hidden])?;
        if !shape.tied {
            weights.check("lm_head.weight", &[shape.vocab, shape.hidden])?;
        }
        for layer in 0..shape.layers {
            let root = format!("model.layers.{layer}");
            let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            weights.check(&format!("{root}.self_attn.q_proj.weight"), &[q, shape.hidden])?;
            weights.check(&format!("{root}.self_attn.k_proj.weight"), &[kv, shape.hidden])?;
            weights.check(&format!("{root}.self_attn.v_proj.weight"), &[kv, shape.hidden])?;
            weights.check(&format!("{root}.self_attn.o_proj.weight"), &[shape.hidden, q])?;
            weights.check(&format!("{root}.mlp.gate_proj.weight"), &[shape.intermediate, shape.hidden])?;
            weights.check(&format!("{root}.mlp.up_proj.weight"), &[shape.intermediate, shape.hidden])?;
            weights.check(&format!("{root}.mlp.down_proj.weight"), &[shape.hidden, shape.intermediate])?;
        }
        Ok(())
    }

    /// Reads the weights.
    pub(crate) fn load(shape: &DecoderShape, weights: &Weights, dtype: DType) -> Result<Self> {
        let (hidden, vocab) = (shape.hidden, shape.vocab);
        let whole = |module| fused(weights, &[Part { module, rows: vocab, interleaved_heads: None }], hidden, dtype);
        let embedding = whole("model.embed_tokens")?;
        let output = if shape.tied { embedding.clone() } else { whole("lm_head")? };
        let layers = (0..shape.layers).map(|layer| Layer::load(shape, weights, layer, dtype)).collect::<Result<_>>()?;
        let factors = match weights {
            // llama.cpp's converter stores Llama 3.1's scaling as divisors of the frequencies.
            Weights::Gguf { file, .. } if file.has("rope_freqs.weight") => Some(file.read("rope_freqs.weight")?),
            _ => None,
        };
        Ok(Self {
            frequencies: shape.rope.frequencies(shape.head_dim, factors.as_deref()),
            norm: weights.read("model.norm.weight", &[hidden])?,
            shape: shape.clone(),
            embedding,
            layers,
            output,
        })
    }

    /// How its cache keeps keys and values: rounded where its matrices are.
    pub(crate) fn kv_form(&self) -> KvForm {
        if gemm::available() && self.output.is_rounded() { KvForm::Tiles } else { KvForm::Floats }
    }

    /// Shape of its attention.
    pub(crate) fn heads(shape: &DecoderShape) -> Heads {
        Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim, value_dim: shape.head_dim }
    }

    /// Runs a batch: writes its keys and values into the cache and returns the normed hidden states of the wanted
    /// tokens, `[wanted, hidden]`.
    pub(crate) fn forward(&self, pack: &Pack, cache: &mut KvCache) -> Result<Vec<f32>> {
        let (hidden, epsilon) = (self.shape.hidden, self.shape.norm_epsilon);
        let mut h = vec![0f32; pack.tokens() * hidden];
        for (id, out) in pack.ids.iter().zip(h.chunks_exact_mut(hidden)) {
            self.embedding.copy_row(*id, out)?;
        }
        let angles = self.angles(&pack.positions);
        for layer in &self.layers {
            let mut context = self.attention(layer, &h, &angles, pack, cache)?;
            if layer.index + 1 == self.layers.len() {
                // After the last attention only the wanted tokens matter.
                h = gather(&h, hidden, &pack.wanted);
                context = gather(&context, layer.attention_out.inputs, &pack.wanted);
            }
            add_product(&mut h, &layer.attention_out, context)?;
            let gate_up = layer.gate_up.apply(normed(&h, &layer.feed_norm, epsilon))?;
            let width = self.shape.intermediate;
            let bias = layer.gate_up.bias.as_deref();
            let active = gate_up.read(|values| {
                let mut out = vec![0f32; values.len() / 2];
                for_tokens(
                    &mut out,
                    width,
                    #[inline(always)]
                    |token, out| {
                        let (gate, up) = values[token * 2 * width..(token + 1) * 2 * width].split_at(width);
                        match bias {
                            None => out.iter_mut().zip(gate).zip(up).for_each(
                                #[inline(always)]
                                |((out, gate), up)| *out = silu(*gate) * up,
                            ),
                            Some(bias) => {
                                for (i, out) in out.iter_mut().enumerate() {
                                    *out = silu(gate[i] + bias[i]) * (up[i] + bias[width + i]);
                                }
                            }
                        }
                    },
                );
                out
            })?;
            add_product(&mut h, &layer.down, active)?;
        }
        Ok(normed(&h, &self.norm, epsilon))
    }

    /// Logits of hidden states (`[rows, hidden]`) for all output rows, or the selected ones in `head`: `[rows, outputs]`.
    pub(crate) fn logits(&self, hidden: Vec<f32>, head: &Linear) -> Result<Vec<f32>> {
        let bias = head.bias.as_deref();
        head.apply(hidden)?.read(|values| {
            let mut logits = values.to_vec();
            if let Some(bias) = bias {
                logits.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
            }
            logits
        })
    }

    /// Cosines and sines of each token, `[tokens, head_dim]`: first half cosines, second half sines.
    fn angles(&self, positions: &[usize]) -> Vec<f32> {
        let half = self.frequencies.len();
        let mut angles = vec![0f32; positions.len() * 2 * half];
        for_tokens(
            &mut angles,
            2 * half,
            #[inline(always)]
            |token, out| {
                let (cos, sin) = out.split_at_mut(half);
                for (i, frequency) in self.frequencies.iter().enumerate() {
                    (sin[i], cos[i]) = (positions[token] as f32 * frequency).sin_cos();
                }
            },
        );
        angles
    }

    fn attention(
        &self,
        layer: &Layer,
        h: &[f32],
        angles: &[f32],
        pack: &Pack,
        cache: &mut KvCache,
    ) -> Result<Vec<f32>> {
        let shape = Self::heads(&self.shape);
        let d = shape.head_dim;
        let (q_width, kv_width) = (shape.heads * d, shape.kv_heads * d);
        let all = q_width + 2 * kv_width;
        let (tokens, epsilon) = (pack.tokens(), self.shape.norm_epsilon);
        let mut queries = vec![0f32; tokens * q_width];
        let mut keys = vec![0f32; tokens * kv_width];
        let mut values = vec![0f32; tokens * kv_width];
        layer.qkv.apply(normed(h, &layer.attention_norm, epsilon))?.read(|qkv| {
            let qkv = Qkv { product: qkv, width: all, bias: layer.qkv.bias.as_deref(), angles, head_dim: d, epsilon };
            for_tokens(
                &mut queries,
                q_width,
                #[inline(always)]
                |token, out| {
                    qkv.copy(token, 0, out);
                    qkv.turn(token, layer.q_norm.as_deref(), out);
                },
            );
            for_tokens(
                &mut keys,
                kv_width,
                #[inline(always)]
                |token, out| {
                    qkv.copy(token, q_width, out);
                    qkv.turn(token, layer.k_norm.as_deref(), out);
                },
            );
            for_tokens(
                &mut values,
                kv_width,
                #[inline(always)]
                |token, out| qkv.copy(token, q_width + kv_width, out),
            );
        })?;
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
        Ok(attend(shape, Direction::Causal, Scores::plain(d), &queries, &rows))
    }
}

impl Layer {
    fn load(shape: &DecoderShape, weights: &Weights, layer: usize, dtype: DType) -> Result<Self> {
        let (hidden, d, root) = (shape.hidden, shape.head_dim, format!("model.layers.{layer}"));
        let name = |module: &str| format!("{root}.{module}");
        let norm = |module: &str| weights.read(&name(&format!("{module}.weight")), &[hidden]);
        let head_norm = |module: &str| match shape.qk_norm {
            true => weights.read(&name(&format!("{module}.weight")), &[d]).map(Some),
            false => Ok(None),
        };
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|module| name(&format!("self_attn.{module}")));
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        let interleaved = |heads: usize| shape.interleaved.then_some(heads);
        let qkv = [
            Part { module: &q, rows: shape.heads * d, interleaved_heads: interleaved(shape.heads) },
            Part { module: &k, rows: shape.kv_heads * d, interleaved_heads: interleaved(shape.kv_heads) },
            Part { module: &v, rows: shape.kv_heads * d, interleaved_heads: None },
        ];
        let gate_up = [&gate, &up].map(|module| Part { module, rows: shape.intermediate, interleaved_heads: None });
        let single = |module: &str, columns: usize| {
            let part = Part { module: &name(module), rows: hidden, interleaved_heads: None };
            fused(weights, &[part], columns, dtype)
        };
        Ok(Self {
            index: layer,
            attention_norm: norm("input_layernorm")?,
            qkv: fused(weights, &qkv, hidden, dtype)?,
            q_norm: head_norm("self_attn.q_norm")?,
            k_norm: head_norm("self_attn.k_norm")?,
            attention_out: single("self_attn.o_proj", shape.heads * d)?,
            feed_norm: norm("post_attention_layernorm")?,
            gate_up: fused(weights, &gate_up, hidden, dtype)?,
            down: single("mlp.down_proj", shape.intermediate)?,
        })
    }
}

/// A layer's product of queries, keys and values, `[tokens, width]`, and what is done to it.
struct Qkv<'a> {
    product: &'a [f32],
    width: usize,
    bias: Option<&'a [f32]>,
    angles: &'a [f32],
    head_dim: usize,
    epsilon: f32,
}

impl Qkv<'_> {
    /// Copies a token's columns from `from` on, with their bias.
    #[inline(always)]
    fn copy(&self, token: usize, from: usize, out: &mut [f32]) {
        let at = token * self.width + from;
        out.copy_from_slice(&self.product[at..at + out.len()]);
        if let Some(bias) = self.bias {
            add(out, &bias[from..]);
        }
    }

    /// Norms (where the model does) and rotates each head of a token.
    #[inline(always)]
    fn turn(&self, token: usize, norm: Option<&[f32]>, heads: &mut [f32]) {
        let d = self.head_dim;
        let (cos, sin) = self.angles[token * d..(token + 1) * d].split_at(d / 2);
        for head in heads.chunks_exact_mut(d) {
            if let Some(norm) = norm {
                rms_norm_in_place(head, norm, self.epsilon);
            }
            rotate(head, cos, sin);
        }
    }
}

/// Rotates a head's pairs (i, i + half) by the token's angles.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

fn normed(h: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0f32; h.len()];
    for_tokens(
        &mut out,
        width,
        #[inline(always)]
        |token, out| rms_norm(&h[token * width..(token + 1) * width], weight, epsilon, out),
    );
    out
}

/// h += linear(x) + bias.
fn add_product(h: &mut [f32], linear: &Linear, x: Vec<f32>) -> Result<()> {
    let width = linear.outputs;
    linear.apply(x)?.read(|values| {
        for_tokens(
            h,
            width,
            #[inline(always)]
            |token, h| {
                add(h, &values[token * width..(token + 1) * width]);
                if let Some(bias) = &linear.bias {
                    add(h, bias);
                }
            },
        );
    })
}

/// The rows of `x` (`[_, width]`) with these indices.
fn gather(x: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
}
