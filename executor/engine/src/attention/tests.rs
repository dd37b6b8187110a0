//! Attention against the textbook, one query at a time, in all three forms of keys and values.

use half::bf16;

use super::*;
use crate::synthetic;

/// Attention by the textbook, one query at a time.
fn plain(shape: Heads, direction: Direction, scores: Scores<'_>, [q, k, v]: [&[f32]; 3], before: usize) -> Vec<f32> {
    let (d, dv, group) = (shape.head_dim, shape.value_dim, shape.heads / shape.kv_heads);
    let all = k.len() / (shape.kv_heads * d);
    let tokens = q.len() / (shape.heads * d);
    let mut out = vec![0f32; tokens * shape.heads * dv];
    for token in 0..tokens {
        let position = before + token;
        for head in 0..shape.heads {
            let query = &q[(token * shape.heads + head) * d..][..d];
            let key = |j: usize| &k[(j * shape.kv_heads + head / group) * d..][..d];
            let mut row: Vec<f32> =
                (0..all).map(|j| query.iter().zip(key(j)).map(|(q, k)| q * k).sum::<f32>() * scores.scale).collect();
            if let Some(bias) = scores.bias {
                bias(Query { head, token, position }, &mut row);
            }
            for (j, score) in row.iter_mut().enumerate() {
                let near = scores.window.is_none_or(|window| position.abs_diff(j) < window);
                let capped = scores.softcap.map_or(*score, |cap| cap * (*score / cap).tanh());
                let hidden = !near || direction == Direction::Causal && j > position;
                *score = if hidden { 0.0 } else { capped.exp() };
            }
            let sum: f32 = row.iter().sum();
            for i in 0..dv {
                let value = |j: usize| v[(j * shape.kv_heads + head / group) * dv + i];
                out[(token * shape.heads + head) * dv + i] = (0..all).map(|j| row[j] / sum * value(j)).sum();
            }
        }
    }
    out
}

fn check(shape: Heads, direction: Direction, scores: Scores<'_>, tokens: usize, before: usize) {
    let all = tokens + before;
    let (keys, values) = (shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim);
    let q = synthetic::values("1", tokens * shape.heads * shape.head_dim, 0.0, 1.0);
    let k = synthetic::values("2", all * keys, 0.0, 1.0);
    let v = synthetic::values("3", all * values, 0.0, 1.0);
    let mut blocks = vec![vec![f32::NAN; shape.block_floats()]; all.div_ceil(BLOCK)];
    for t in 0..all {
        let (keys, values) = (&k[t * keys..(t + 1) * keys], &v[t * values..(t + 1) * values]);
        shape.write(&mut blocks[t / BLOCK], t % BLOCK, keys, values);
    }
    let empty = || vec![vec![bf16::ZERO; shape.block_numbers()]; all.div_ceil(BLOCK)];
    let (mut rounded, mut high, mut low) = (empty(), empty(), empty());
    for t in 0..all {
        let (block, slot) = (t / BLOCK, t % BLOCK);
        let token = [&k[t * keys..(t + 1) * keys], &v[t * values..(t + 1) * values]];
        shape.write_tiles(&mut rounded[block], None, slot, token);
        shape.write_tiles(&mut high[block], Some(&mut low[block]), slot, token);
    }
    let expected = plain(shape, direction, scores, [&q, &k, &v], before);
    for (blocks, tolerance) in [
        (Blocks::Floats(blocks.iter().map(Vec::as_slice).collect()), 1e-5),
        (Blocks::Tiles(TileBlocks { high: slices(&rounded), low: None }), 2e-2),
        (Blocks::Tiles(TileBlocks { high: slices(&high), low: Some(slices(&low)) }), 1e-4),
    ] {
        let got = attend(shape, direction, scores, &q, &[RowView { first: 0, tokens, before, blocks }]);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < tolerance, "{shape:?} {tokens} {before}: {got} is not {expected}");
        }
    }
}

fn slices(blocks: &[Vec<bf16>]) -> Vec<&[bf16]> {
    blocks.iter().map(Vec::as_slice).collect()
}

const BATCHES: [(usize, usize, Direction); 4] =
    [(1, 0, Direction::Causal), (1, 70, Direction::Causal), (45, 33, Direction::Causal), (67, 0, Direction::Both)];

#[test]
fn agrees_with_the_textbook() {
    for (heads, kv_heads, head_dim, value_dim) in
        [(4, 2, 16, 16), (3, 1, 16, 16), (4, 4, 12, 12), (2, 2, 64, 64), (6, 1, 8, 8), (3, 3, 24, 10)]
    {
        let shape = Heads { heads, kv_heads, head_dim, value_dim };
        for (tokens, before, direction) in BATCHES {
            check(shape, direction, Scores::plain(head_dim), tokens, before);
        }
    }
}

#[test]
fn windows_caps_and_biases_agree_with_the_textbook() {
    let shape = Heads { heads: 4, kv_heads: 2, head_dim: 16, value_dim: 16 };
    let far = |query: Query, scores: &mut [f32]| {
        for (j, score) in scores.iter_mut().enumerate() {
            *score -= 0.02 * (query.head + 1) as f32 * query.position.abs_diff(j) as f32;
        }
    };
    for window in [None, Some(1), Some(5), Some(40), Some(1000)] {
        for softcap in [None, Some(0.7)] {
            for bias in [None, Some(&far as Bias<'_>)] {
                let scores = Scores { scale: 0.4, softcap, window, bias };
                for (tokens, before, direction) in BATCHES {
                    check(shape, direction, scores, tokens, before);
                }
            }
        }
    }
}
