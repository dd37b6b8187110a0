//! The side of a product that is not weights, packed into tiles: whole or rounded numbers, or those of 16 bits in two parts.
//! It multiplies nothing.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::band::{BLOCK, Band, Lines, bands};
use super::tiles::{DEPTH, SIDE, TILE, Tiles};
use super::{Exactness, round};
use crate::buffers::Buffer;
use crate::kernels::simd;

/// Lines of rows that meet all weights of a task before the next lines do: so many stay in the second-level cache.
const LINES: usize = 16;

/// Rows `[count, inputs]`.
pub(crate) struct Rows {
    high: Tiles<Buffer<bf16>>,
    low: Option<Tiles<Buffer<bf16>>>,
    pub(super) count: usize,
}

/// Some columns of rows, which one task writes.
pub(super) struct RowsBand<'a> {
    high: Band<'a, bf16>,
    low: Option<Band<'a, bf16>>,
    /// Lines of tiles.
    lines: usize,
}

impl Rows {
    /// Rows of any numbers: whoever takes them writes all of them.
    pub(super) fn of(count: usize, inputs: usize, exactness: Exactness) -> Self {
        let low = (exactness == Exactness::Exact).then(|| Tiles::of(count, inputs));
        Self { high: Tiles::of(count, inputs), low, count }
    }

    /// Packs `x`, `[rows, inputs]`.
    pub(crate) fn pack(x: &[f32], inputs: usize, exactness: Exactness) -> Self {
        let mut rows = Self::of(x.len() / inputs, inputs, exactness);
        let lines = x.par_chunks(SIDE * inputs).zip(rows.high.lines_mut().collect::<Vec<_>>());
        match &mut rows.low {
            None => lines.for_each(|(x, high)| {
                simd(
                    #[inline(always)]
                    || pack_line(x, inputs, high, None),
                )
            }),
            Some(low) => lines.zip(low.lines_mut().collect::<Vec<_>>()).for_each(|((x, high), low)| {
                simd(
                    #[inline(always)]
                    || pack_line(x, inputs, high, Some(low)),
                );
            }),
        }
        rows
    }

    /// How exact its numbers are.
    pub(super) fn exactness(&self) -> Exactness {
        Exactness::of(&self.low)
    }

    /// Lines that meet all weights of a task before the next lines do.
    pub(super) fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let lines = self.high.lines();
        (0..lines).step_by(LINES).map(move |from| from..lines.min(from + LINES))
    }

    /// Two neighbouring lines, some tiles of them. The last line may be its own neighbour.
    pub(super) fn lines(&self, line: usize, across: &Range<usize>) -> Lines<'_> {
        fn of<'a>(tiles: &'a Tiles<Buffer<bf16>>, line: usize, across: &Range<usize>) -> [&'a [bf16]; 2] {
            let both = [line, (line + 1).min(tiles.lines() - 1)];
            both.map(|line| &tiles.line(line)[across.start * TILE..across.end * TILE])
        }
        Lines { high: of(&self.high, line, across), low: self.low.as_ref().map(|low| of(low, line, across)) }
    }

    /// Cuts them into bands of `across` tiles.
    pub(super) fn bands(&mut self, across: usize) -> Vec<RowsBand<'_>> {
        let (lines, width, columns) = (self.high.lines(), self.high.across * TILE, across * TILE);
        let mut low = self.low.as_mut().map(|low| bands(low.all_mut(), width, columns).into_iter());
        let high = bands(self.high.all_mut(), width, columns).into_iter();
        high.map(|high| RowsBand { high, low: low.as_mut().and_then(Iterator::next), lines }).collect()
    }
}

impl RowsBand<'_> {
    /// Packs 32 rows from `line` on, 32 columns of them, as the band's tile `tile`. Rows that are not there are left out.
    #[inline(always)]
    pub(super) fn write(&mut self, block: &[f32; BLOCK * BLOCK], line: usize, tile: usize) {
        const { assert!(BLOCK == DEPTH, "a block is one tile wide") };
        let at = tile * TILE..(tile + 1) * TILE;
        for (line, block) in (line..self.lines).zip(block.chunks_exact(TILE)) {
            split(
                block,
                &mut self.high.row(line)[at.clone()],
                self.low.as_mut().map(|low| &mut low.row(line)[at.clone()]),
            );
        }
    }
}

/// Packs up to 16 rows: `[across, 16, DEPTH]`.
#[inline(always)]
fn pack_line(x: &[f32], inputs: usize, high: &mut [bf16], mut low: Option<&mut [bf16]>) {
    if x.len() < SIDE * inputs || !inputs.is_multiple_of(DEPTH) {
        high.fill(bf16::ZERO);
        if let Some(low) = &mut low {
            low.fill(bf16::ZERO);
        }
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (tile, x) in x.chunks(DEPTH).enumerate() {
            let at = tile * TILE + row * DEPTH;
            let at = at..at + x.len();
            split(x, &mut high[at.clone()], low.as_mut().map(|low| &mut low[at]));
        }
    }
}

/// Rounds numbers to `bf16`, and what is left of them.
#[inline(always)]
pub(crate) fn split(x: &[f32], high: &mut [bf16], low: Option<&mut [bf16]>) {
    match low {
        None => {
            for (high, x) in high.iter_mut().zip(x) {
                *high = round(*x);
            }
        }
        Some(low) => {
            for ((low, high), x) in low.iter_mut().zip(high).zip(x) {
                *high = round(*x);
                *low = round(x - high.to_f32());
            }
        }
    }
}
