//! Attention whose two products are multiplied as tiles of `bf16`: keys and values lie in memory as tiles, queries and weights
//! are rounded on their way, or split in two parts where 16 bits of each number are kept. The softmax stays in `f32`.

use std::ops::Range;

use half::bf16;

use super::{Attention, BLOCK, Heads, Query, RowView};
use crate::gemm::Exactness;
use crate::gemm::band::{Band, Kernel, Lines, Pair, Start};
use crate::gemm::rows::split;
use crate::gemm::tiles::{DEPTH, SIDE, TILE, place};
use crate::kernels::{exponentials, simd, tanh};

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

    /// As [`Heads::write`], into a block of tiles, and what rounding leaves of the numbers into `low`, another.
    #[inline(always)]
    pub(crate) fn write_tiles(
        self,
        high: &mut [bf16],
        mut low: Option<&mut [bf16]>,
        slot: usize,
        [keys, values]: [&[f32]; 2],
    ) {
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.value_dim));
        for (head, (key, value)) in heads.enumerate() {
            let head = head * self.head_numbers()..(head + 1) * self.head_numbers();
            let low = low.as_mut().map(|low| &mut low[head.clone()]);
            self.write_head(&mut high[head], low, slot, [key, value]);
        }
    }

    #[inline(always)]
    fn write_head(self, high: &mut [bf16], mut low: Option<&mut [bf16]>, slot: usize, [key, value]: [&[f32]; 2]) {
        let line = slot / SIDE * self.key_across() * TILE;
        for (tile, key) in key.chunks(DEPTH).enumerate() {
            let parts = parts(key, Exactness::of(&low));
            let at = line + tile * TILE + slot % SIDE * 2;
            // Beyond the key's end both are zero, as that place is already.
            for i in 0..DEPTH / 2 {
                let at = at + i * DEPTH..at + i * DEPTH + 2;
                high[at.clone()].copy_from_slice(&parts[0].as_chunks::<2>().0[i]);
                if let Some(low) = &mut low {
                    low[at].copy_from_slice(&parts[1].as_chunks::<2>().0[i]);
                }
            }
        }
        for (tile, value) in value.chunks(SIDE).enumerate() {
            let parts = parts(value, Exactness::of(&low));
            let at = self.key_numbers() + tile * TILE + place(0, slot);
            for i in 0..value.len() {
                high[at + 2 * i] = parts[0][i];
                if let Some(low) = &mut low {
                    low[at + 2 * i] = parts[1][i];
                }
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

/// Up to 32 numbers rounded, and what that leaves of them where they are to be exact.
#[inline(always)]
fn parts(x: &[f32], exactness: Exactness) -> [[bf16; DEPTH]; 2] {
    let mut parts = [[bf16::ZERO; DEPTH]; 2];
    let [high, low] = &mut parts;
    split(x, &mut high[..x.len()], exactness.low(|| &mut low[..x.len()]));
    parts
}

/// Keys and values in the order of tile instructions, blocks of `[block_numbers]`.
pub(crate) struct TileBlocks<'a> {
    pub(crate) high: Vec<&'a [bf16]>,
    /// What rounding left of them, in models that keep 16 bits of each number; queries and weights are split then, too.
    pub(crate) low: Option<Vec<&'a [bf16]>>,
}

impl TileBlocks<'_> {
    /// Two lines of tiles of a block.
    fn lines(&self, block: usize, [a, b]: [&Range<usize>; 2]) -> Lines<'_> {
        let low = self.low.as_ref().map(|low| [&low[block][a.clone()], &low[block][b.clone()]]);
        Lines { high: [&self.high[block][a.clone()], &self.high[block][b.clone()]], low }
    }
}

/// Memory that is used again. Of tiles, `[0]` is what is rounded and `[1]` what that leaves.
#[derive(Default)]
pub(super) struct Scratch {
    queries: [Vec<bf16>; 2],
    scores: Vec<f32>,
    weights: [Vec<bf16>; 2],
    result: Vec<f32>,
    /// Of each query: what its weights sum to.
    sums: [f32; QUERIES],
}

/// Two lines of tiles, each of half the length of `parts`.
fn halves(parts: &[Vec<bf16>; 2], exactness: Exactness) -> Lines<'_> {
    let (a, b) = parts[0].split_at(parts[0].len() / 2);
    let (c, d) = parts[1].split_at(parts[1].len() / 2);
    Lines { high: [a, b], low: exactness.low(|| [c, d]) }
}

/// Attention of the row's queries from `from` on, as many as `out` has room for.
pub(super) fn attend_chunk(
    layer: Attention<'_>,
    row: &RowView<'_>,
    blocks: &TileBlocks<'_>,
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
            let results = scratch.result.chunks_exact(stride).zip(&scratch.sums);
            for (query, (result, sum)) in queries.iter().zip(results) {
                let at = ((query.token - row.first - from) * shape.heads + query.head) * shape.value_dim;
                let out = &mut out[at..at + shape.value_dim];
                simd(
                    #[inline(always)]
                    || {
                        let scale = 1.0 / sum;
                        for (out, x) in out.iter_mut().zip(result) {
                            *out = x * scale;
                        }
                    },
                );
            }
        }
    }
}

/// Attention of up to 32 queries of one key head; left in `scratch.result`, `[QUERIES, ..]`, still to be divided by
/// `scratch.sums`.
fn attend_tile(
    layer: Attention<'_>,
    (row, blocks): (&RowView<'_>, &TileBlocks<'_>),
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
    // Biases see a row's tokens from the first one, so their places are kept.
    let offset = if layer.scores.bias.is_some() { first * BLOCK } else { 0 };
    let line = offset + (last - first) * BLOCK;
    let exactness = Exactness::of(&blocks.low);
    let across = shape.key_across() * TILE;
    scratch.pack_queries(layer, queries, exactness);
    scratch.scores.resize(QUERIES * line, 0.0);
    let rows = halves(&scratch.queries, exactness);
    let mut band = Band::whole(&mut scratch.scores, line);
    let keys = [head..head + across, head + across..head + 2 * across];
    for block in first..last {
        let pair = Pair { rows, outputs: blocks.lines(block, keys.each_ref()) };
        band.add(kernel, &[pair], [0, offset + (block - first) * BLOCK], Start::Zero);
    }
    for weights in scratch.weights.iter_mut().take(exactness.parts()) {
        weights.resize(2 * (last - first) * TILE, bf16::ZERO);
    }
    for (i, (query, scores)) in queries.iter().zip(scratch.scores.chunks_exact_mut(line)).enumerate() {
        let (from, to) = seen(query);
        let [high, low] = &mut scratch.weights;
        simd(
            #[inline(always)]
            || {
                scratch.sums[i] = weigh(layer, *query, scores, (from - first * BLOCK, to - first * BLOCK, offset));
                let line = i / SIDE * (last - first) * TILE + i % SIDE * DEPTH;
                for (tile, scores) in scores[offset..].chunks_exact(DEPTH).enumerate() {
                    let at = line + tile * TILE..line + tile * TILE + DEPTH;
                    let low = exactness.low(|| &mut low[at.clone()]);
                    split(scores, &mut high[at], low);
                }
            },
        );
    }
    let lines = shape.value_lines();
    let stride = lines.next_multiple_of(2) * SIDE;
    scratch.result.resize(QUERIES * stride, 0.0);
    let mut band = Band::whole(&mut scratch.result, stride);
    let weights = halves(&scratch.weights, exactness);
    let values = head + shape.key_numbers();
    for left in (0..lines).step_by(2) {
        let at = [left, (left + 1).min(lines - 1)].map(|line| values + line * TILE..values + (line + 1) * TILE);
        let pair = |block: usize| {
            let tile = (block - first) * TILE..(block - first + 1) * TILE;
            let rows = weights.part(&tile);
            Pair { rows, outputs: blocks.lines(block, at.each_ref()) }
        };
        let pairs: Vec<Pair<'_>> = (first..last).map(pair).collect();
        band.add(kernel, &pairs, [0, left * SIDE], Start::Zero);
    }
}

/// Turns a query's products into weights, in place: 0 for tokens it does not see. Returns the weights' sum.
#[inline(always)]
fn weigh(layer: Attention<'_>, query: Query, scores: &mut [f32], (from, to, offset): (usize, usize, usize)) -> f32 {
    let mut scale = layer.scores.scale;
    if layer.scores.bias.is_some() || layer.scores.softcap.is_some() {
        for score in &mut scores[offset..] {
            *score *= scale;
        }
        scale = 1.0;
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
    let sum = exponentials(&mut scores[from..to], scale);
    scores[..from].fill(0.0);
    scores[to..].fill(0.0);
    sum
}

impl Scratch {
    /// Two lines of queries as tiles; those that are not there are zero.
    fn pack_queries(&mut self, layer: Attention<'_>, queries: &[Query], exactness: Exactness) {
        let (across, d) = (layer.shape.key_across(), layer.shape.head_dim);
        for part in self.queries.iter_mut().take(exactness.parts()) {
            part.clear();
            part.resize(2 * across * TILE, bf16::ZERO);
        }
        let [high, low] = &mut self.queries;
        for (i, query) in queries.iter().enumerate() {
            let at = (query.token * layer.shape.heads + query.head) * d;
            let vector = &layer.queries[at..at + d];
            simd(
                #[inline(always)]
                || {
                    for (tile, vector) in vector.chunks(DEPTH).enumerate() {
                        let at = (i / SIDE * across + tile) * TILE + i % SIDE * DEPTH;
                        let at = at..at + vector.len();
                        let low = exactness.low(|| &mut low[at.clone()]);
                        split(vector, &mut high[at], low);
                    }
                },
            );
        }
    }
}
