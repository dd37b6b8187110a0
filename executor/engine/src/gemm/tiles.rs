//! Matrices in the layout of tile instructions: `bf16` in pairs of neighbouring inputs, 16 outputs side by side. One tile
//! is `[16 pairs, 16 outputs, 2]`, one kibibyte; a matrix is `[output tiles, input tiles]`. Padding is zero.

use std::ops::{Deref, DerefMut};

use half::bf16;

use crate::buffers::Buffer;

/// Outputs of a tile, and rows of the other side that meet it at once.
pub(crate) const SIDE: usize = 16;
/// Inputs of a tile.
pub(crate) const DEPTH: usize = 32;
/// Numbers of a tile.
pub(crate) const TILE: usize = SIDE * DEPTH;

/// Tiles of a matrix `[outputs, inputs]`, in memory of their own, or of the other side of a product, `[rows, inputs]`, in
/// memory that is used again.
#[derive(Debug)]
pub(crate) struct Tiles<M> {
    values: M,
    /// Tiles along the inputs.
    pub(crate) across: usize,
}

/// Numbers of so many outputs (or rows), and their tiles along the inputs.
fn sizes(lines: usize, inputs: usize) -> (usize, usize) {
    let across = inputs.div_ceil(DEPTH);
    (lines.div_ceil(SIDE) * across * TILE, across)
}

impl Tiles<Vec<bf16>> {
    /// Room for `outputs` outputs of `inputs` numbers.
    pub(crate) fn zeros(outputs: usize, inputs: usize) -> Self {
        let (numbers, across) = sizes(outputs, inputs);
        Self { values: vec![bf16::ZERO; numbers], across }
    }
}

impl Tiles<Buffer<bf16>> {
    /// Room for rows, of any numbers: whoever takes it writes all of them.
    pub(crate) fn of(rows: usize, inputs: usize) -> Self {
        let (numbers, across) = sizes(rows, inputs);
        Self { values: Buffer::of(numbers), across }
    }
}

impl<M: Deref<Target = [bf16]>> Tiles<M> {
    /// The tiles of 16 outputs, or rows: `[across, TILE]`.
    pub(crate) fn line(&self, line: usize) -> &[bf16] {
        &self.values[line * self.across * TILE..(line + 1) * self.across * TILE]
    }

    /// The number of lines of tiles.
    pub(crate) fn lines(&self) -> usize {
        self.values.len() / (self.across * TILE)
    }

    /// The `input`-th number of an output.
    #[inline(always)]
    pub(crate) fn output(&self, output: usize, input: usize) -> bf16 {
        let tile = (output / SIDE) * self.across + input / DEPTH;
        self.values[tile * TILE + (input % DEPTH) / 2 * DEPTH + (output % SIDE) * 2 + input % 2]
    }
}

impl<M: DerefMut<Target = [bf16]>> Tiles<M> {
    /// All lines, to be written.
    pub(crate) fn lines_mut(&mut self) -> std::slice::ChunksExactMut<'_, bf16> {
        self.values.chunks_exact_mut(self.across * TILE)
    }

    /// All numbers: `[lines, across, TILE]`.
    pub(crate) fn all_mut(&mut self) -> &mut [bf16] {
        &mut self.values
    }
}

/// Where the `input`-th number of the `output`-th of 16 outputs stands among their tiles.
#[inline(always)]
pub(crate) fn place(output: usize, input: usize) -> usize {
    input / DEPTH * TILE + (input % DEPTH) / 2 * DEPTH + output * 2 + input % 2
}
