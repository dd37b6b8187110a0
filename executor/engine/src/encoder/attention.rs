//! Self-attention of an encoder's layer over packed rows: queries, keys and values with their biases and rotations, keys and
//! values laid out in blocks, scores with what the model knows of distances. The arithmetic itself is `crate::attention`'s.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;
use rowmill_jobs::Result;

use super::disentangled::{DisentangledBias, DistanceVectors};
use super::distance::DistanceBias;
use super::names::Named;
use super::shape::{EncoderShape, LayerShape, Relation};
use crate::attention::{BLOCK, Blocks, Direction, Heads, Query, RowView, Scores, TileBlocks, attend};
use crate::buffers::Buffer;
use crate::gemm::{self, Exactness};
use crate::kernels::{add, for_tokens, simd};
use crate::linear::{Linear, Precision};
use crate::rope::Rope;
use crate::weights::{Part, fused};

/// Where the rows of a batch are: their tokens stand one after the other.
pub(crate) struct Packed {
    /// The row's first token, for each row.
    starts: Vec<usize>,
    /// Tokens of each row.
    lengths: Vec<usize>,
    /// Each token's place in its row.
    pub(crate) positions: Vec<usize>,
    /// The first token and the number of tokens of each block of keys and values, row by row.
    blocks: Vec<(usize, usize)>,
}

impl Packed {
    pub(crate) fn new(rows: &[&[u32]]) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let mut packed = Self { starts: Vec::new(), positions: Vec::new(), blocks: Vec::new(), lengths };
        for length in &packed.lengths {
            let start = packed.positions.len();
            packed.starts.push(start);
            packed.positions.extend(0..*length);
            packed.blocks.extend((0..*length).step_by(BLOCK).map(|at| (start + at, BLOCK.min(length - at))));
        }
        packed
    }

    /// Each row's first token and number of tokens.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.starts.iter().copied().zip(self.lengths.iter().copied())
    }

    /// The row of a token.
    fn row_of(&self, token: usize) -> usize {
        self.starts.partition_point(|start| *start <= token) - 1
    }
}

/// Cosines and sines of all positions: `[context, head_dim]`, first half cosines, second half sines.
#[derive(Debug)]
struct Angles {
    table: Vec<f32>,
    head_dim: usize,
}

impl Angles {
    fn new(rope: &Rope, context: usize, head_dim: usize) -> Self {
        let (frequencies, magnitude) = (rope.frequencies(head_dim, None), rope.magnitude());
        let mut table = vec![0f32; context * head_dim];
        for (position, out) in table.chunks_exact_mut(head_dim).enumerate() {
            let (cos, sin) = out.split_at_mut(head_dim / 2);
            for (i, frequency) in frequencies.iter().enumerate() {
                let (s, c) = (position as f32 * frequency).sin_cos();
                (sin[i], cos[i]) = (s * magnitude, c * magnitude);
            }
        }
        Self { table, head_dim }
    }

    /// Rotates all heads of a token.
    #[inline(always)]
    fn rotate(&self, heads: &mut [f32], position: usize) {
        let at = position * self.head_dim;
        let (cos, sin) = self.table[at..at + self.head_dim].split_at(self.head_dim / 2);
        for head in heads.chunks_exact_mut(self.head_dim) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// What scores know of distances, with its weights.
#[derive(Debug)]
enum Distances {
    Nothing,
    Biases(Arc<DistanceBias>),
    Disentangled(DisentangledBias),
}

/// What layers share: tables that depend on positions alone.
pub(crate) struct Shared {
    heads: Heads,
    angles: Vec<(Rope, Arc<Angles>)>,
    biases: Option<Arc<DistanceBias>>,
    vectors: Option<DistanceVectors>,
}

impl Shared {
    /// Reads and computes them.
    pub(crate) fn load(named: &Named<'_>, shape: &EncoderShape) -> Result<Self> {
        let head_dim = shape.hidden / shape.heads;
        let heads = Heads { heads: shape.heads, kv_heads: shape.heads, head_dim, value_dim: head_dim };
        let mut shared = Self { heads, angles: Vec::new(), biases: None, vectors: None };
        for rope in shape.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
            if !shared.angles.iter().any(|(known, _)| known == rope) {
                shared.angles.push((rope.clone(), Arc::new(Angles::new(rope, shape.context, head_dim))));
            }
        }
        match shape.relation {
            Relation::None => {}
            Relation::Buckets { rows } => {
                let table = format!("{}.weight", named.module(named.names.relative));
                let biases = named.weights.read(&table, &[rows, shape.heads])?;
                shared.biases = Some(Arc::new(DistanceBias::of_buckets(&biases, shape.heads, shape.context)));
            }
            Relation::Slopes => shared.biases = Some(Arc::new(DistanceBias::of_slopes(shape.heads, shape.context))),
            Relation::Disentangled(relation) => {
                shared.vectors = Some(DistanceVectors::load(named, shape, relation)?);
            }
        }
        Ok(shared)
    }
}

/// The attention of a layer, up to its values' sum.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    heads: Heads,
    pub(super) qkv: Linear,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    angles: Option<Arc<Angles>>,
    distances: Distances,
    /// How exactly keys and values are kept in tiles, where they are.
    tiles: Option<Exactness>,
}

/// Keys and values of a batch, in one of two forms.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    floats: Vec<f32>,
    high: Vec<bf16>,
    low: Vec<bf16>,
}

impl SelfAttention {
    /// Reads the weights of a layer.
    pub(crate) fn load(
        named: &Named<'_>,
        shape: &EncoderShape,
        index: usize,
        shared: &Shared,
        dtype: Precision,
    ) -> Result<Self> {
        let LayerShape { rope, window } = &shape.layers[index];
        let modules: Vec<String> = named.names.qkv.iter().map(|module| named.layer(index, module)).collect();
        let rows = 3 * shape.hidden / modules.len();
        let parts: Vec<Part<'_>> = modules.iter().map(|module| Part { module, rows }).collect();
        let qkv = fused(named.weights, &parts, shape.hidden, dtype)?;
        let angles = rope.as_ref().and_then(|rope| shared.angles.iter().find(|(known, _)| known == rope));
        let distances = match (&shared.biases, &shared.vectors) {
            (Some(biases), _) => Distances::Biases(Arc::clone(biases)),
            (None, Some(vectors)) => {
                Distances::Disentangled(vectors.project(named, index, &qkv, (shared.heads, shape.context))?)
            }
            (None, None) => Distances::Nothing,
        };
        let scale = match shape.relation {
            Relation::Disentangled(relation) => DistanceVectors::scale(relation, shared.heads.head_dim),
            _ => Scores::plain(shared.heads.head_dim).scale,
        };
        let angles = angles.map(|(_, angles)| Arc::clone(angles));
        // Disentangled biases read keys as they are.
        let tiles = qkv.exactness().filter(|_| gemm::available() && shared.vectors.is_none());
        Ok(Self { heads: shared.heads, qkv, scale, window: *window, angles, distances, tiles })
    }

    /// Attention over states `x` (`[tokens, hidden]`), each row over itself. `memory` is for keys and values, which layers
    /// of one batch use one after the other.
    pub(crate) fn apply(&self, x: &[f32], packed: &Packed, memory: &mut Memory) -> Result<Vec<f32>> {
        let hidden = self.heads.heads * self.heads.head_dim;
        let mut queries = Buffer::of(x.len());
        self.qkv.apply(x)?.read(|qkv| {
            for_tokens(
                &mut queries,
                hidden,
                #[inline(always)]
                |token, out| self.part(0, token, qkv, packed, out),
            );
            match self.tiles {
                None => {
                    let numbers = self.heads.block_floats();
                    memory.floats.resize(packed.blocks.len() * numbers, 0.0);
                    let places = memory.floats.par_chunks_mut(numbers).zip(&packed.blocks);
                    places.for_each(|(block, place)| {
                        self.each_slot(qkv, packed, *place, |slot, [keys, values]| {
                            self.heads.write(block, slot, keys, values);
                        });
                    });
                }
                Some(exactness) => {
                    // Slots that no token has stay empty.
                    let numbers = self.heads.block_numbers();
                    memory.high.resize(packed.blocks.len() * numbers, bf16::ZERO);
                    let split_up = exactness == Exactness::Exact;
                    memory.low.resize(if split_up { memory.high.len() } else { 0 }, bf16::ZERO);
                    let mut low: Vec<&mut [bf16]> = memory.low.chunks_exact_mut(numbers).collect();
                    low.resize_with(packed.blocks.len(), Default::default);
                    let places = memory.high.par_chunks_mut(numbers).zip(low).zip(&packed.blocks);
                    places.for_each(|((high, low), place)| {
                        self.each_slot(
                            qkv,
                            packed,
                            *place,
                            #[inline(always)]
                            |slot, token| self.heads.write_tiles(high, split_up.then_some(&mut *low), slot, token),
                        );
                    });
                }
            }
        })?;
        Ok(self.attend(&queries, packed, memory))
    }

    /// Gives `write` the keys and values of a block's tokens.
    fn each_slot(
        &self,
        qkv: &[f32],
        packed: &Packed,
        (first, tokens): (usize, usize),
        mut write: impl FnMut(usize, [&[f32]; 2]),
    ) {
        let hidden = self.heads.heads * self.heads.head_dim;
        let mut kv = Buffer::of(2 * hidden);
        let (keys, values) = kv.split_at_mut(hidden);
        for slot in 0..tokens {
            simd(
                #[inline(always)]
                || {
                    self.part(1, first + slot, qkv, packed, keys);
                    self.part(2, first + slot, qkv, packed, values);
                    write(slot, [keys, values]);
                },
            );
        }
    }

    /// A token's query (0), key (1) or value (2), of the product `[tokens, 3 * hidden]`.
    #[inline(always)]
    fn part(&self, part: usize, token: usize, qkv: &[f32], packed: &Packed, out: &mut [f32]) {
        let hidden = out.len();
        out.copy_from_slice(&qkv[(token * 3 + part) * hidden..(token * 3 + part + 1) * hidden]);
        if let Some(bias) = &self.qkv.bias {
            add(out, &bias[part * hidden..(part + 1) * hidden]);
        }
        if let Some(angles) = self.angles.as_ref().filter(|_| part < 2) {
            angles.rotate(out, packed.positions[token]);
        }
    }

    fn attend(&self, queries: &[f32], packed: &Packed, memory: &Memory) -> Vec<f32> {
        let mut floats = memory.floats.chunks_exact(self.heads.block_floats());
        let mut high = memory.high.chunks_exact(self.heads.block_numbers());
        let mut low = memory.low.chunks_exact(self.heads.block_numbers());
        let rows: Vec<RowView<'_>> = packed
            .rows()
            .map(|(first, tokens)| {
                let count = tokens.div_ceil(BLOCK);
                let blocks = match self.tiles {
                    None => Blocks::Floats(floats.by_ref().take(count).collect()),
                    Some(exactness) => Blocks::Tiles(TileBlocks {
                        high: high.by_ref().take(count).collect(),
                        low: (exactness == Exactness::Exact).then(|| low.by_ref().take(count).collect()),
                    }),
                };
                RowView { first, tokens, before: 0, blocks }
            })
            .collect();
        let scores = Scores { scale: self.scale, softcap: None, window: self.window, bias: None };
        let run = |scores| attend(self.heads, Direction::Both, scores, queries, &rows);
        match &self.distances {
            Distances::Nothing => run(scores),
            Distances::Biases(biases) => {
                let bias = |query: Query, scores: &mut [f32]| biases.add(query.head, query.position, scores);
                run(Scores { bias: Some(&bias), ..scores })
            }
            Distances::Disentangled(biases) => {
                let Heads { heads, head_dim, .. } = self.heads;
                let bias = |query: Query, scores: &mut [f32]| {
                    let vector = &queries[(query.token * heads + query.head) * head_dim..][..head_dim];
                    let Blocks::Floats(keys) = &rows[packed.row_of(query.token)].blocks else { return };
                    biases.add(vector, keys, query.head, query.position, scores);
                };
                run(Scores { bias: Some(&bias), ..scores })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::{RopeScaling, Yarn};

    #[test]
    fn rotations_have_the_magnitude_of_their_scaling() {
        let magnitude = 1.25;
        let yarn = Yarn {
            factor: 4.0,
            fast: 32.0,
            slow: 1.0,
            original_context: 64.0,
            truncated: true,
            magnitude,
            attention: 1.0,
        };
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Yarn(yarn) };
        let angles = Angles::new(&rope, 9, 8);
        for position in 0..9 {
            let mut head = [1.0, 2.0, -3.0, 0.5, 4.0, -1.0, 2.0, 1.0];
            let length = |head: &[f32]| head.iter().map(|x| x * x).sum::<f32>().sqrt();
            let before = length(&head);
            angles.rotate(&mut head, position);
            assert!((length(&head) / before - magnitude as f32).abs() < 1e-5, "at {position}");
        }
    }
}
