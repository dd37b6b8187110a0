//! Weights of 8 bits with a scale for each 32 (llama.cpp's `Q8_0`), in the order of tiles, so that they can be widened into
//! tiles just before they are multiplied: half the memory to read, which is what small batches wait for.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::round;
use super::tiles::{DEPTH, SIDE, TILE, place};
use crate::kernels::simd;

/// Bytes of a `Q8_0` block: a scale as `f16`, then 32 numbers.
const BLOCK_BYTES: usize = 2 + DEPTH;

/// A matrix `[outputs, inputs]` of 8-bit numbers.
#[derive(Debug, Clone)]
pub(super) struct Quants {
    /// `[lines, across, TILE]`.
    numbers: Vec<i8>,
    /// `[lines, across, SIDE]`.
    scales: Vec<f16>,
    across: usize,
    outputs: usize,
}

impl Quants {
    /// Packs a row-major matrix of blocks. `None` where rows are not whole blocks.
    pub(super) fn pack(blocks: &[u8], inputs: usize) -> Option<Self> {
        let across = inputs / DEPTH;
        let row_bytes = across * BLOCK_BYTES;
        if across == 0 || !inputs.is_multiple_of(DEPTH) || !blocks.len().is_multiple_of(row_bytes) {
            return None;
        }
        let outputs = blocks.len() / row_bytes;
        let lines = outputs.div_ceil(SIDE);
        let mut numbers = vec![0i8; lines * across * TILE];
        let mut scales = vec![f16::ZERO; lines * across * SIDE];
        let whole = numbers.par_chunks_mut(across * TILE).zip(scales.par_chunks_mut(across * SIDE));
        whole.zip(blocks.par_chunks(SIDE * row_bytes)).for_each(|((numbers, scales), rows)| {
            for (output, row) in rows.chunks_exact(row_bytes).enumerate() {
                for (tile, block) in row.chunks_exact(BLOCK_BYTES).enumerate() {
                    scales[tile * SIDE + output] = f16::from_le_bytes([block[0], block[1]]);
                    for (input, number) in block[2..].iter().enumerate() {
                        numbers[place(output, tile * DEPTH + input)] = i8::from_le_bytes([*number]);
                    }
                }
            }
        });
        Some(Self { numbers, scales, across, outputs })
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Lines of tiles.
    pub(super) fn lines(&self) -> usize {
        self.outputs.div_ceil(SIDE)
    }

    /// One weight.
    pub(super) fn output(&self, output: usize, input: usize) -> f32 {
        let line = output / SIDE * self.across;
        let number = self.numbers[line * TILE + place(output % SIDE, input)];
        f32::from(number) * self.scales[(line + input / DEPTH) * SIDE + output % SIDE].to_f32()
    }

    /// Widens some tiles of a line, `[across, TILE]`, and what rounding leaves of them into `low`.
    pub(super) fn widen(&self, line: usize, across: &Range<usize>, high: &mut [bf16], mut low: Option<&mut [bf16]>) {
        let first = line * self.across;
        for (i, tile) in across.clone().enumerate() {
            let numbers = &self.numbers[(first + tile) * TILE..(first + tile + 1) * TILE];
            let mut scales = [0f32; SIDE];
            self.scales[(first + tile) * SIDE..(first + tile + 1) * SIDE].convert_to_f32_slice(&mut scales);
            let low = low.as_deref_mut().map(|low| &mut low[i * TILE..(i + 1) * TILE]);
            let high = &mut high[i * TILE..(i + 1) * TILE];
            simd(
                #[inline(always)]
                || widen_tile(numbers, scales, high, low),
            );
        }
    }
}

#[inline(always)]
fn widen_tile(numbers: &[i8], scales: [f32; SIDE], high: &mut [bf16], low: Option<&mut [bf16]>) {
    // Neighbouring inputs of an output have the same scale.
    let scales: [f32; DEPTH] = std::array::from_fn(|i| scales[i / 2]);
    for (numbers, high) in numbers.as_chunks::<DEPTH>().0.iter().zip(high.as_chunks_mut::<DEPTH>().0) {
        for i in 0..DEPTH {
            high[i] = round(f32::from(numbers[i]) * scales[i]);
        }
    }
    let Some(low) = low else { return };
    for ((numbers, high), low) in
        numbers.chunks_exact(DEPTH).zip(high.chunks_exact(DEPTH)).zip(low.chunks_exact_mut(DEPTH))
    {
        for i in 0..DEPTH {
            low[i] = round(f32::from(numbers[i]) * scales[i] - high[i].to_f32());
        }
    }
}
