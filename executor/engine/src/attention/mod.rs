//! Attention of packed rows over blocks of keys and values, for decoders (paged cache, causal) and encoders (whole row).
//! A row sees only its own blocks: there is no padding and no mask between rows. Exact softmax, no approximation.

#[cfg(test)]
mod tests;
mod tiles;

use rayon::prelude::*;

pub(crate) use self::tiles::TileBlocks;
use crate::kernels::{simd, softmax, tanh, tile};

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
    /// Length of a head's query and key.
    pub(crate) head_dim: usize,
    /// Length of a head's value; that of its key in all but multi-head latent attention.
    pub(crate) value_dim: usize,
}

/// How products of queries and keys become weights.
#[derive(Clone, Copy)]
pub(crate) struct Scores<'a> {
    /// Multiplies each product; `1 / sqrt(head_dim)` in most models.
    pub(crate) scale: f32,
    /// Bounds scores softly: `cap * tanh(score / cap)` (Gemma 2).
    pub(crate) softcap: Option<f32>,
    /// A token sees only tokens less than so many positions away.
    pub(crate) window: Option<usize>,
    /// Changes scores before the softmax: position and relation biases.
    pub(crate) bias: Option<Bias<'a>>,
}

/// Adds to one query's scores: `scores[j]` is that of the row's `j`-th token, scaled already.
pub(crate) type Bias<'a> = &'a (dyn Fn(Query, &mut [f32]) + Sync);

/// One query of a batch, for a [`Bias`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) head: usize,
    /// Its token in the batch.
    pub(crate) token: usize,
    /// Its token's place in its row.
    pub(crate) position: usize,
}

/// A window as a model's layers get it: one that hides nothing from rows of up to `context` tokens is none. So what is added to
/// a position stays a number, in a device's 32 bits too.
pub(crate) fn narrower(window: Option<usize>, context: usize) -> Option<usize> {
    window.filter(|window| *window < context)
}

impl Scores<'_> {
    /// The scale of `head_dim` and nothing else.
    pub(crate) fn plain(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None, bias: None }
    }

    /// The tokens that the token at `position` of a row of `whole` tokens sees.
    #[inline(always)]
    fn seen(&self, direction: Direction, position: usize, whole: usize) -> (usize, usize) {
        let from = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let to = match direction {
            Direction::Causal => position + 1,
            Direction::Both => self.window.map_or(whole, |window| whole.min(position + window)),
        };
        (from, to)
    }
}

impl Heads {
    /// Floats of one head's keys in a block: `[head_dim, BLOCK]`, so that scores of neighbouring tokens lie side by side.
    pub(crate) fn key_floats(self) -> usize {
        self.head_dim * BLOCK
    }

    /// Length of a value row in a block.
    pub(crate) fn value_stride(self) -> usize {
        self.value_dim.next_multiple_of(WIDTH)
    }

    /// Floats of one head's keys and values in a block; values are `[BLOCK, value_stride]`.
    pub(crate) fn head_floats(self) -> usize {
        self.key_floats() + BLOCK * self.value_stride()
    }

    /// Floats of all heads in a block.
    pub(crate) fn block_floats(self) -> usize {
        self.kv_heads * self.head_floats()
    }

    /// Writes one token's keys (`[kv_heads * head_dim]`) and values (`[kv_heads * value_dim]`) into slot `slot` of a block.
    pub(crate) fn write(self, block: &mut [f32], slot: usize, keys: &[f32], values: &[f32]) {
        let (d, value_dim) = (self.head_dim, self.value_dim);
        for (h, head) in block.chunks_exact_mut(self.head_floats()).enumerate() {
            let (k, v) = head.split_at_mut(self.key_floats());
            for (i, key) in keys[h * d..(h + 1) * d].iter().enumerate() {
                k[i * BLOCK + slot] = *key;
            }
            let at = slot * self.value_stride();
            v[at..at + value_dim].copy_from_slice(&values[h * value_dim..(h + 1) * value_dim]);
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
    /// Blocks that hold tokens `0..before + tokens`.
    pub(crate) blocks: Blocks<'a>,
}

/// Keys and values of a row.
pub(crate) enum Blocks<'a> {
    /// Each `[block_floats]`.
    Floats(Vec<&'a [f32]>),
    /// In the order of tile instructions.
    Tiles(TileBlocks<'a>),
}

/// Whether a token sees those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// A token sees itself and those before it.
    Causal,
    /// A token sees its whole row.
    Both,
}

/// Attention of all rows. `queries` is `[tokens, heads * head_dim]`; the result is `[tokens, heads * value_dim]`. Rows are
/// in the order of their tokens and cover the batch.
pub(crate) fn attend(
    shape: Heads,
    direction: Direction,
    scores: Scores<'_>,
    queries: &[f32],
    rows: &[RowView<'_>],
) -> Vec<f32> {
    let width = shape.heads * shape.value_dim;
    let mut out = vec![0f32; queries.len() / shape.head_dim * shape.value_dim];
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
    let layer = Attention { shape, direction, scores, queries };
    work.into_par_iter().for_each_init(<(Vec<f32>, tiles::Scratch)>::default, |scratch, (row, from, out)| {
        match &row.blocks {
            Blocks::Floats(blocks) => simd(
                #[inline(always)]
                || attend_chunk(layer, (row, blocks), from, out, &mut scratch.0),
            ),
            Blocks::Tiles(blocks) => tiles::attend_chunk(layer, row, blocks, from, out, &mut scratch.1),
        }
    });
    out
}

/// What all units of work share.
#[derive(Clone, Copy)]
struct Attention<'a> {
    shape: Heads,
    direction: Direction,
    scores: Scores<'a>,
    queries: &'a [f32],
}

/// Attention of the row's queries from `from` on, as many as `out` has room for.
#[inline(always)]
fn attend_chunk(
    layer: Attention<'_>,
    (row, blocks): (&RowView<'_>, &[&[f32]]),
    from: usize,
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let Heads { heads, kv_heads, head_dim: d, value_dim } = layer.shape;
    let (width, out_width) = (heads * d, heads * value_dim);
    let group = heads / kv_heads;
    let tokens = out.len() / out_width;
    let queries = &layer.queries[(row.first + from) * width..(row.first + from + tokens) * width];
    for kv_head in 0..kv_heads {
        let mut first = 0;
        while first < tokens * group {
            let last = (first + QUERIES).min(tokens * group) - 1;
            // The queries of one key head: `group` heads of each token, in the order of tokens.
            let tile: [Query; QUERIES] = std::array::from_fn(|i| {
                let (token, head) = ((first + i).min(last) / group, kv_head * group + (first + i).min(last) % group);
                Query { head, token: row.first + from + token, position: row.before + from + token }
            });
            let vectors = tile.map(|query| {
                let at = (query.token - row.first - from) * width + query.head * d;
                &queries[at..at + d]
            });
            attend_tile(layer, kv_head, tile, vectors, (row, blocks), scratch);
            let stride = layer.shape.value_stride();
            for (i, query) in tile.iter().enumerate().take(last - first + 1) {
                let at = (query.token - row.first - from) * out_width + query.head * value_dim;
                out[at..at + value_dim].copy_from_slice(&scratch[i * stride..i * stride + value_dim]);
            }
            first = last + 1;
        }
    }
}

/// Attention of four queries of one head; the result is left at the start of `scratch`, `[QUERIES, value_stride]`.
#[inline(always)]
fn attend_tile(
    layer: Attention<'_>,
    kv_head: usize,
    tile_queries: [Query; QUERIES],
    vectors: [&[f32]; QUERIES],
    (row, blocks): (&RowView<'_>, &[&[f32]]),
    scratch: &mut Vec<f32>,
) {
    let shape = layer.shape;
    let whole = row.before + row.tokens;
    let stride = shape.value_stride();
    let visible = tile_queries.map(|query| layer.scores.seen(layer.direction, query.position, whole));
    // Blocks that any of the queries sees, and the first token of those.
    let first = visible.iter().map(|(from, _)| from / BLOCK).min().unwrap_or(0);
    let seen = visible.iter().map(|(_, to)| *to).max().unwrap_or(0);
    let base = first * BLOCK;
    let blocks = &blocks[first..seen.div_ceil(BLOCK)];
    let keys = blocks.len() * BLOCK;
    let head_at = kv_head * shape.head_floats();
    let results = QUERIES * stride;
    // Biases see a row's tokens from the first one, so its place is kept, though nothing before `base` is computed.
    let offset = if layer.scores.bias.is_some() { base } else { 0 };
    let line = offset + keys;
    scratch.resize(results + QUERIES * line, 0.0);
    let (result, scores) = scratch.split_at_mut(results);
    for (b, block) in blocks.iter().enumerate() {
        let block_keys = &block[head_at..head_at + shape.key_floats()];
        for half in (0..BLOCK).step_by(WIDTH) {
            let products = tile::<QUERIES, WIDTH>(vectors, &block_keys[half..], BLOCK, shape.head_dim);
            for (i, row) in products.iter().enumerate() {
                let at = i * line + offset + b * BLOCK + half;
                for (score, product) in scores[at..at + WIDTH].iter_mut().zip(row) {
                    *score = product * layer.scores.scale;
                }
            }
        }
    }
    for (i, row) in scores.chunks_exact_mut(line).enumerate() {
        if let Some(bias) = layer.scores.bias {
            bias(tile_queries[i], &mut row[..visible[i].1]);
        }
        let row = &mut row[offset..];
        let (from, to) = (visible[i].0 - base, visible[i].1 - base);
        if let Some(cap) = layer.scores.softcap {
            row[from..to].iter_mut().for_each(
                #[inline(always)]
                |score| *score = cap * tanh(*score / cap),
            );
        }
        softmax(&mut row[from..to]);
        row[..from].fill(0.0);
        row[to..].fill(0.0);
    }
    let value_at = head_at + shape.key_floats();
    for column in (0..stride).step_by(WIDTH) {
        let mut sum = [[0f32; WIDTH]; QUERIES];
        for (b, block) in blocks.iter().enumerate() {
            let values = &block[value_at..head_at + shape.head_floats()];
            // Slots after the last visible token may hold anything; their weights are 0 and they are not read.
            let depth = BLOCK.min(seen - base - b * BLOCK);
            let weights = std::array::from_fn(|i| {
                let at = i * line + offset + b * BLOCK;
                &scores[at..at + BLOCK]
            });
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
