//! Attention of packed rows over blocks of keys and values, for decoders (paged cache, causal) and encoders (whole row).
//! A row sees only its own blocks: there is no padding and no mask between rows. Exact softmax, no approximation.

use rayon::prelude::*;

use crate::kernels::{simd, softmax, tile};

/// Tokens in a block of keys and values, which is also a page of the cache.
pub(crate) const BLOCK: usize = 32;

/// Queries computed together; with grouped-query attention one token fills a tile.
const QUERIES: usize = 4;
/// Width of a product tile, and the unit value rows are padded to.
const WIDTH: usize = 16;
/// Query tokens in one unit of parallel work.
const CHUNK: usize = 32;

/// Shape of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Floats of one head's keys in a block: `[head_dim, BLOCK]`, so that scores of neighbouring tokens lie side by side.
    pub(crate) fn key_floats(self) -> usize {
        self.head_dim * BLOCK
    }

    /// Length of a value row in a block.
    pub(crate) fn value_stride(self) -> usize {
        self.head_dim.next_multiple_of(WIDTH)
    }

    /// Floats of one head's keys and values in a block; values are `[BLOCK, value_stride]`.
    pub(crate) fn head_floats(self) -> usize {
        self.key_floats() + BLOCK * self.value_stride()
    }

    /// Floats of all heads in a block.
    pub(crate) fn block_floats(self) -> usize {
        self.kv_heads * self.head_floats()
    }

    /// Writes one token's keys and values (each `[kv_heads * head_dim]`) into slot `slot` of a block.
    pub(crate) fn write(self, block: &mut [f32], slot: usize, keys: &[f32], values: &[f32]) {
        let d = self.head_dim;
        for (h, head) in block.chunks_exact_mut(self.head_floats()).enumerate() {
            let (k, v) = head.split_at_mut(self.key_floats());
            for (i, key) in keys[h * d..(h + 1) * d].iter().enumerate() {
                k[i * BLOCK + slot] = *key;
            }
            let at = slot * self.value_stride();
            v[at..at + d].copy_from_slice(&values[h * d..(h + 1) * d]);
        }
    }
}

/// One row of a packed batch, as attention sees it.
pub(crate) struct RowView<'a> {
    /// Its queries' first token in the batch.
    pub(crate) first: usize,
    /// Its queries.
    pub(crate) tokens: usize,
    /// Tokens before the first query, which every query sees.
    pub(crate) before: usize,
    /// Blocks that hold tokens `0..before + tokens`, each `[block_floats]`.
    pub(crate) blocks: Vec<&'a [f32]>,
}

/// Whether a token sees those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// A token sees itself and those before it.
    Causal,
    /// A token sees its whole row.
    Both,
}

/// Attention of all rows. `queries` is `[tokens, heads * head_dim]`; so is the result. Rows are in the order of their
/// tokens and cover the batch.
pub(crate) fn attend(shape: Heads, direction: Direction, queries: &[f32], rows: &[RowView<'_>]) -> Vec<f32> {
    let width = shape.heads * shape.head_dim;
    let mut out = vec![0f32; queries.len()];
    let mut work = Vec::new();
    let mut rest = out.as_mut_slice();
    for row in rows {
        let mut from = 0;
        while from < row.tokens {
            let tokens = CHUNK.min(row.tokens - from);
            let (head, tail) = rest.split_at_mut(tokens * width);
            rest = tail;
            work.push((row, from, head));
            from += tokens;
        }
    }
    let layer = Attention { shape, direction, queries };
    work.into_par_iter().for_each_init(Vec::new, |scratch, (row, from, out)| {
        simd(
            #[inline(always)]
            || attend_chunk(layer, row, from, out, scratch),
        );
    });
    out
}

/// What all units of work share.
#[derive(Clone, Copy)]
struct Attention<'a> {
    shape: Heads,
    direction: Direction,
    queries: &'a [f32],
}

/// Attention of the row's queries from `from` on, as many as `out` has room for.
#[inline(always)]
fn attend_chunk(layer: Attention<'_>, row: &RowView<'_>, from: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
    let Attention { shape, direction, queries } = layer;
    let (d, width) = (shape.head_dim, shape.heads * shape.head_dim);
    let group = shape.heads / shape.kv_heads;
    let tokens = out.len() / width;
    let queries = &queries[(row.first + from) * width..(row.first + from + tokens) * width];
    let whole = row.before + row.tokens;
    for kv_head in 0..shape.kv_heads {
        // The queries of one key head: `group` heads of each token, in the order of tokens.
        let place = |i: usize| (i / group) * width + (kv_head * group + i % group) * d;
        let mut first = 0;
        while first < tokens * group {
            let last = (first + QUERIES).min(tokens * group) - 1;
            let at: [usize; QUERIES] = std::array::from_fn(|i| place((first + i).min(last)));
            let visible: [usize; QUERIES] = std::array::from_fn(|i| match direction {
                Direction::Causal => row.before + from + (first + i).min(last) / group + 1,
                Direction::Both => whole,
            });
            let tile_queries = at.map(|at| &queries[at..at + d]);
            attend_tile(shape, kv_head, tile_queries, visible, &row.blocks, scratch);
            let stride = shape.value_stride();
            for i in 0..=last - first {
                out[at[i]..at[i] + d].copy_from_slice(&scratch[i * stride..i * stride + d]);
            }
            first = last + 1;
        }
    }
}

/// Attention of four queries of one head; the result is left at the start of `scratch`, `[QUERIES, value_stride]`.
#[inline(always)]
fn attend_tile(
    shape: Heads,
    kv_head: usize,
    queries: [&[f32]; QUERIES],
    visible: [usize; QUERIES],
    blocks: &[&[f32]],
    scratch: &mut Vec<f32>,
) {
    let stride = shape.value_stride();
    let seen = visible[QUERIES - 1];
    let used = seen.div_ceil(BLOCK);
    let keys = used * BLOCK;
    let head_at = kv_head * shape.head_floats();
    let results = QUERIES * stride;
    scratch.resize(results + QUERIES * keys, 0.0);
    let (result, scores) = scratch.split_at_mut(results);
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    for (b, block) in blocks.iter().take(used).enumerate() {
        let block_keys = &block[head_at..head_at + shape.key_floats()];
        for half in (0..BLOCK).step_by(WIDTH) {
            let products = tile::<QUERIES, WIDTH>(queries, &block_keys[half..], BLOCK, shape.head_dim);
            for (i, row) in products.iter().enumerate() {
                let at = i * keys + b * BLOCK + half;
                for (score, product) in scores[at..at + WIDTH].iter_mut().zip(row) {
                    *score = product * scale;
                }
            }
        }
    }
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let (seen, unseen) = row.split_at_mut(visible[i]);
        softmax(seen);
        unseen.fill(0.0);
    }
    let value_at = head_at + shape.key_floats();
    for column in (0..stride).step_by(WIDTH) {
        let mut sum = [[0f32; WIDTH]; QUERIES];
        for (b, block) in blocks.iter().take(used).enumerate() {
            let values = &block[value_at..head_at + shape.head_floats()];
            // Slots after the last visible token may hold anything; their weights are 0 and they are not read.
            let depth = BLOCK.min(seen - b * BLOCK);
            let weights = std::array::from_fn(|i| &scores[i * keys + b * BLOCK..(i * keys + b * BLOCK) + BLOCK]);
            let products = tile::<QUERIES, WIDTH>(weights, &values[column..], stride, depth);
            for (sum, product) in sum.iter_mut().zip(products) {
                for (sum, product) in sum.iter_mut().zip(product) {
                    *sum += product;
                }
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            result[i * stride + column..i * stride + column + WIDTH].copy_from_slice(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention by the textbook, one query at a time.
    fn plain(shape: Heads, direction: Direction, q: &[f32], k: &[f32], v: &[f32], before: usize) -> Vec<f32> {
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (width, kv_width) = (shape.heads * d, shape.kv_heads * d);
        let all = k.len() / kv_width;
        let mut out = vec![0f32; q.len()];
        for token in 0..q.len() / width {
            for head in 0..shape.heads {
                let seen = if direction == Direction::Causal { before + token + 1 } else { all };
                let query = &q[token * width + head * d..][..d];
                let at = (head / group) * d;
                let dot =
                    |j: usize| (0..d).map(|i| query[i] * k[j * kv_width + at + i]).sum::<f32>() / (d as f32).sqrt();
                let scores: Vec<f32> = (0..seen).map(|j| dot(j).exp()).collect();
                let sum: f32 = scores.iter().sum();
                for i in 0..d {
                    out[token * width + head * d + i] =
                        (0..seen).map(|j| scores[j] / sum * v[j * kv_width + at + i]).sum::<f32>();
                }
            }
        }
        out
    }

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn agrees_with_the_textbook() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 16), (4, 4, 12), (2, 2, 64), (6, 1, 8)] {
            let shape = Heads { heads, kv_heads, head_dim };
            for (tokens, before, direction) in [
                (1, 0, Direction::Causal),
                (1, 70, Direction::Causal),
                (45, 33, Direction::Causal),
                (67, 0, Direction::Both),
            ] {
                let all = tokens + before;
                let q = noise(tokens * heads * head_dim, 1);
                let k = noise(all * kv_heads * head_dim, 2);
                let v = noise(all * kv_heads * head_dim, 3);
                let mut blocks = vec![vec![f32::NAN; shape.block_floats()]; all.div_ceil(BLOCK)];
                let row = kv_heads * head_dim;
                for t in 0..all {
                    let (keys, values) = (&k[t * row..(t + 1) * row], &v[t * row..(t + 1) * row]);
                    shape.write(&mut blocks[t / BLOCK], t % BLOCK, keys, values);
                }
                let blocks = blocks.iter().map(Vec::as_slice).collect();
                let got = attend(shape, direction, &q, &[RowView { first: 0, tokens, before, blocks }]);
                let expected = plain(shape, direction, &q, &k, &v, before);
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() < 1e-5, "{shape:?} {tokens} {before}: {got} is not {expected}");
                }
            }
        }
    }
}
