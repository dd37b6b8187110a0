//! Attention whose two products are multiplied as tiles of `bf16`, for models that compute in `bf16`: keys and values lie in
//! the cache as tiles, queries and weights are rounded on their way. The softmax stays in `f32`.

use half::bf16;

use super::{Attention, BLOCK, Heads, Query, RowView};
use crate::gemm::band::{Band, Kernel, Lines, Pair};
use crate::gemm::round;
use crate::gemm::tiles::{DEPTH, SIDE, TILE, place};
use crate::kernels::{simd, softmax, tanh};

/// Queries computed together.
const QUERIES: usize = crate::gemm::band::BLOCK;
const _: () = assert!(BLOCK == DEPTH && BLOCK == QUERIES, "a page's tokens are the depth of one tile");

impl Heads {
    /// Tiles along a key.
    fn key_across(self) -> usize {
        self.head_dim.div_ceil(DEPTH)
    }

    /// Numbers of one head's keys in a block: `[2 lines of tokens, tiles along the key]` tiles.
    fn key_numbers(self) -> usize {
        2 * self.key_across() * TILE
    }

    /// Lines of a head's values: 16 of a value's numbers each, over a block's tokens.
    fn value_lines(self) -> usize {
        self.value_dim.div_ceil(SIDE)
    }

    fn head_numbers(self) -> usize {
        self.key_numbers() + self.value_lines() * TILE
    }

    /// Numbers of all heads in a block of tiles.
    pub(crate) fn block_numbers(self) -> usize {
        self.kv_heads * self.head_numbers()
    }

    /// As [`Heads::write`], into a block of tiles.
    pub(crate) fn write_tiles(self, block: &mut [bf16], slot: usize, keys: &[f32], values: &[f32]) {
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.value_dim));
        for ((key, value), head) in heads.zip(block.chunks_exact_mut(self.head_numbers())) {
            let (k, v) = head.split_at_mut(self.key_numbers());
            let line = &mut k[slot / SIDE * self.key_across() * TILE..];
            for (i, x) in key.iter().enumerate() {
                line[place(slot % SIDE, i)] = round(*x);
            }
            for (i, x) in value.iter().enumerate() {
                v[i / SIDE * TILE + place(i % SIDE, slot)] = round(*x);
            }
        }
    }

    /// Empties the values of slots from `slot` on: a weight of 0 does not silence a value that is not finite.
    pub(crate) fn clear_tiles(self, block: &mut [bf16], slot: usize) {
        for head in block.chunks_exact_mut(self.head_numbers()) {
            for line in head[self.key_numbers()..].chunks_exact_mut(TILE) {
                for slot in slot..BLOCK {
                    for i in 0..SIDE {
                        line[place(i, slot)] = bf16::ZERO;
                    }
                }
            }
        }
    }
}

/// Memory that is used again.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Vec<bf16>,
    scores: Vec<f32>,
    weights: Vec<bf16>,
    result: Vec<f32>,
}

/// Attention of the row's queries from `from` on, as many as `out` has room for.
pub(super) fn attend_chunk(
    layer: Attention<'_>,
    row: &RowView<'_>,
    blocks: &[&[bf16]],
    from: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let shape = layer.shape;
    let kernel = Kernel::begin();
    let group = shape.heads / shape.kv_heads;
    let tokens = out.len() / (shape.heads * shape.value_dim);
    for kv_head in 0..shape.kv_heads {
        // The queries of one key head: `group` heads of each token, in the order of tokens.
        let query = |i: usize| Query {
            head: kv_head * group + i % group,
            token: row.first + from + i / group,
            position: row.before + from + i / group,
        };
        for first in (0..tokens * group).step_by(QUERIES) {
            let queries: Vec<Query> = (first..(tokens * group).min(first + QUERIES)).map(query).collect();
            attend_tile(layer, (row, blocks), &kernel, &queries, scratch);
            let stride = shape.value_lines().next_multiple_of(2) * SIDE;
            for (query, result) in queries.iter().zip(scratch.result.chunks_exact(stride)) {
                let at = ((query.token - row.first - from) * shape.heads + query.head) * shape.value_dim;
                out[at..at + shape.value_dim].copy_from_slice(&result[..shape.value_dim]);
            }
        }
    }
}

/// Attention of up to 32 queries of one key head; left in `scratch.result`, `[QUERIES, ..]`.
fn attend_tile(
    layer: Attention<'_>,
    (row, blocks): (&RowView<'_>, &[&[bf16]]),
    kernel: &Kernel,
    queries: &[Query],
    scratch: &mut Scratch,
) {
    let shape = layer.shape;
    let whole = row.before + row.tokens;
    let seen = |query: &Query| layer.scores.seen(layer.direction, query.position, whole);
    let first = queries.iter().map(|query| seen(query).0 / BLOCK).min().unwrap_or(0);
    let last = queries.iter().map(|query| seen(query).1.div_ceil(BLOCK)).max().unwrap_or(0);
    let head = queries.first().map_or(0, |query| query.head / (shape.heads / shape.kv_heads)) * shape.head_numbers();
    let keys = (last - first) * BLOCK;
    // Biases see a row's tokens from the first one, so their places are kept.
    let offset = if layer.scores.bias.is_some() { first * BLOCK } else { 0 };
    let line = offset + keys;
    scratch.pack_queries(layer, queries);
    scratch.scores.resize(QUERIES * line, 0.0);
    let across = shape.key_across() * TILE;
    let (upper, lower) = scratch.queries.split_at(across);
    let mut band = Band::whole(&mut scratch.scores, line);
    for (b, block) in blocks[first..last].iter().enumerate() {
        let (left, right) = block[head..head + shape.key_numbers()].split_at(across);
        let pair = Pair { rows: Lines { high: [upper, lower], low: None }, outputs: Lines { high: [left, right], low: None } };
        band.add(kernel, &[pair], [0, offset + b * BLOCK], true);
    }
    scratch.weights.resize(2 * (last - first) * TILE, bf16::ZERO);
    let (upper, lower) = scratch.weights.split_at_mut((last - first) * TILE);
    for (i, (query, scores)) in queries.iter().zip(scratch.scores.chunks_exact_mut(line)).enumerate() {
        let (from, to) = seen(query);
        let weights = if i < SIDE { &mut *upper } else { &mut *lower };
        simd(
            #[inline(always)]
            || weigh(layer, *query, scores, (from - first * BLOCK, to - first * BLOCK, offset)),
        );
        simd(
            #[inline(always)]
            || {
                for (tile, scores) in weights.chunks_exact_mut(TILE).zip(scores[offset..].chunks_exact(DEPTH)) {
                    let at = i % SIDE * DEPTH;
                    for (weight, score) in tile[at..at + DEPTH].iter_mut().zip(scores) {
                        *weight = round(*score);
                    }
                }
            },
        );
    }
    let lines = shape.value_lines();
    let stride = lines.next_multiple_of(2) * SIDE;
    scratch.result.resize(QUERIES * stride, 0.0);
    let mut band = Band::whole(&mut scratch.result, stride);
    let values = head + shape.key_numbers();
    for left in (0..lines).step_by(2) {
        let at = |block: &'_ [bf16], line: usize| values + line.min(lines - 1) * TILE..block.len();
        let pairs: Vec<Pair<'_>> = blocks[first..last]
            .iter()
            .zip(upper.chunks_exact(TILE).zip(lower.chunks_exact(TILE)))
            .map(|(block, (upper, lower))| Pair {
                rows: Lines { high: [upper, lower], low: None },
                outputs: Lines { high: [&block[at(block, left)][..TILE], &block[at(block, left + 1)][..TILE]], low: None },
            })
            .collect();
        band.add(kernel, &pairs, [0, left * SIDE], true);
    }
}

/// Turns a query's products into weights, in place: 0 for tokens it does not see.
#[inline(always)]
fn weigh(layer: Attention<'_>, query: Query, scores: &mut [f32], (from, to, offset): (usize, usize, usize)) {
    for score in &mut scores[offset..] {
        *score *= layer.scores.scale;
    }
    if let Some(bias) = layer.scores.bias {
        bias(query, &mut scores[..offset + to]);
    }
    let scores = &mut scores[offset..];
    if let Some(cap) = layer.scores.softcap {
        for score in &mut scores[from..to] {
            *score = cap * tanh(*score / cap);
        }
    }
    softmax(&mut scores[from..to]);
    scores[..from].fill(0.0);
    scores[to..].fill(0.0);
}

impl Scratch {
    /// Two lines of queries as tiles; those that are not there are zero.
    fn pack_queries(&mut self, layer: Attention<'_>, queries: &[Query]) {
        let (across, d) = (layer.shape.key_across(), layer.shape.head_dim);
        self.queries.clear();
        self.queries.resize(2 * across * TILE, bf16::ZERO);
        for (i, query) in queries.iter().enumerate() {
            let at = (query.token * layer.shape.heads + query.head) * d;
            let vector = &layer.queries[at..at + d];
            let line = &mut self.queries[i / SIDE * across * TILE..];
            for (tile, vector) in vector.chunks(DEPTH).enumerate() {
                let at = tile * TILE + i % SIDE * DEPTH;
                for (out, x) in line[at..at + vector.len()].iter_mut().zip(vector) {
                    *out = round(*x);
                }
            }
        }
    }
}
