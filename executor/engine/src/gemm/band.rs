//! Blocks of a product and who computes them: tile instructions, or plain arithmetic on the same tiles where there are none.
//! Several tasks write one product, each its own columns.
#![expect(unsafe_code, reason = "columns of one slice are written by several tasks; each use says why it is sound")]

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::amx::Session;
use super::tiles::{DEPTH, SIDE, TILE};
use crate::kernels::simd;

/// Rows and outputs of a block: two tiles each.
pub(crate) const BLOCK: usize = 2 * SIDE;

/// What computes blocks on this thread.
pub(crate) enum Kernel {
    /// Tile instructions.
    Tiles(Session),
    /// The instructions that every processor has. It rounds nothing but what was rounded into tiles.
    Plain,
}

impl Kernel {
    /// The fastest that this processor has.
    pub(crate) fn begin() -> Self {
        Session::begin().map_or(Self::Plain, Self::Tiles)
    }
}

/// What the sums of a block start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Zero,
    /// What is in the block already.
    Present,
}

/// Two lines of tiles.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a> {
    pub(crate) high: [&'a [bf16]; 2],
    /// What rounding left of them.
    pub(crate) low: Option<[&'a [bf16]; 2]>,
}

impl<'a> Lines<'a> {
    /// Some numbers of each line.
    pub(crate) fn part(&self, part: &Range<usize>) -> Self {
        let of = |line: &'a [bf16]| &line[part.clone()];
        Self { high: self.high.map(of), low: self.low.map(|low| low.map(of)) }
    }
}

/// Two lines of rows and two lines of outputs that are multiplied: all parts of one with all parts of the other, but for
/// the two that rounding left. Where rows are rounded, outputs are taken so, too.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) rows: Lines<'a>,
    pub(crate) outputs: Lines<'a>,
}

impl Pair<'_> {
    /// Tiles of each slice.
    pub(super) fn tiles(&self) -> usize {
        let shortest = |lines: [&[bf16]; 2]| lines[0].len().min(lines[1].len());
        let all = [Some(self.rows.high), self.rows.low, Some(self.outputs.high), self.outputs.low];
        all.into_iter().flatten().map(shortest).min().unwrap_or(0) / TILE
    }

    /// Rows and outputs whose products are summed.
    fn products(&self) -> impl Iterator<Item = [[&[bf16]; 2]; 2]> {
        let rest = self.rows.low.and(self.outputs.low).map(|low| [self.rows.high, low]);
        let low = self.rows.low.map(|low| [low, self.outputs.high]);
        [rest, low, Some([self.rows.high, self.outputs.high])].into_iter().flatten()
    }
}

/// Some columns of a matrix `[rows, width]`, which one task writes.
pub(crate) struct Band<'a, T = f32> {
    out: *mut T,
    rows: usize,
    width: usize,
    columns: Range<usize>,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: bands of a matrix share no column, and each is written through `&mut self` only.
unsafe impl<T: Send> Send for Band<'_, T> {}

/// Cuts a matrix into bands of `columns` columns.
pub(crate) fn bands<T>(out: &mut [T], width: usize, columns: usize) -> Vec<Band<'_, T>> {
    let rows = out.len() / width;
    let out = out.as_mut_ptr();
    let band = |from: usize| Band { out, rows, width, columns: from..width.min(from + columns), borrowed: PhantomData };
    (0..width).step_by(columns).map(band).collect()
}

impl<T> Band<'_, T> {
    /// The band's columns of a row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: the row is inside the matrix, and its columns are this band's alone.
        unsafe {
            std::slice::from_raw_parts_mut(self.out.add(row * self.width + self.columns.start), self.columns.len())
        }
    }
}

impl<'a> Band<'a> {
    /// All columns.
    pub(crate) fn whole(out: &'a mut [f32], width: usize) -> Self {
        let rows = out.len() / width;
        Self { out: out.as_mut_ptr(), rows, width, columns: 0..width, borrowed: PhantomData }
    }

    /// Adds to the block at `row` and `column`, or sets it where it starts from zero, the product of two lines of rows with two lines
    /// of outputs, summed over `pairs` of them. What of the block is outside the product or the band is left out.
    #[inline]
    pub(crate) fn add(&mut self, kernel: &Kernel, pairs: &[Pair<'_>], [row, column]: [usize; 2], start: Start) {
        assert!(row < self.rows && self.columns.contains(&column));
        let (rows, columns) = (BLOCK.min(self.rows - row), BLOCK.min(self.columns.end - column));
        // SAFETY: row and column are inside the product.
        let out = unsafe { self.out.add(row * self.width + column) };
        if rows == BLOCK
            && columns == BLOCK
            && let Kernel::Tiles(session) = kernel
        {
            // SAFETY: the whole block is inside the product and this band, which is borrowed by nobody else.
            unsafe { session.block(pairs, out, self.width, start) };
            return;
        }
        let mut whole = [0f32; BLOCK * BLOCK];
        // SAFETY: `whole` is a block of its own; the copies stay inside the product and this band.
        unsafe {
            for i in 0..if start == Start::Zero { 0 } else { rows } {
                out.add(i * self.width).copy_to_nonoverlapping(whole.as_mut_ptr().add(i * BLOCK), columns);
            }
            match kernel {
                Kernel::Tiles(session) => session.block(pairs, whole.as_mut_ptr(), BLOCK, start),
                Kernel::Plain => plain(pairs, &mut whole),
            }
            for i in 0..rows {
                out.add(i * self.width).copy_from_nonoverlapping(whole.as_ptr().add(i * BLOCK), columns);
            }
        }
    }
}

/// Adds the product of two lines of rows with two lines of outputs to a block, summed over `pairs` of them.
fn plain(pairs: &[Pair<'_>], block: &mut [f32; BLOCK * BLOCK]) {
    simd(
        #[inline(always)]
        || {
            for [rows, outputs] in pairs.iter().flat_map(Pair::products) {
                for (lower, rows) in rows.into_iter().enumerate() {
                    for (right, outputs) in outputs.into_iter().enumerate() {
                        for row in (0..SIDE).step_by(ROWS) {
                            let at = (lower * SIDE + row) * BLOCK + right * SIDE;
                            plain_rows(rows, outputs, row, &mut block[at..]);
                        }
                    }
                }
            }
        },
    );
}

/// Rows that [`plain_rows`] computes together.
const ROWS: usize = 4;

/// Adds the products of rows `row..row + ROWS` of a line with a line of outputs to `out`, whose rows are [`BLOCK`] apart.
#[inline(always)]
fn plain_rows(rows: &[bf16], outputs: &[bf16], row: usize, out: &mut [f32]) {
    let mut sums = [[0f32; SIDE]; ROWS];
    for (rows, outputs) in rows.chunks_exact(TILE).zip(outputs.chunks_exact(TILE)) {
        for pair in 0..DEPTH / 2 {
            let outputs = &outputs[pair * DEPTH..(pair + 1) * DEPTH];
            let even: [f32; SIDE] = std::array::from_fn(|i| wide(outputs[2 * i]));
            let odd: [f32; SIDE] = std::array::from_fn(|i| wide(outputs[2 * i + 1]));
            for (i, sums) in sums.iter_mut().enumerate() {
                let at = (row + i) * DEPTH + 2 * pair;
                let (a, b) = (wide(rows[at]), wide(rows[at + 1]));
                for j in 0..SIDE {
                    sums[j] = b.mul_add(odd[j], a.mul_add(even[j], sums[j]));
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (out, sum) in out[i * BLOCK..].iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

#[inline(always)]
fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use super::super::tiles::place;
    use super::*;

    /// What the products of pairs sum up to at a row and column of every block, in `f64`.
    fn expected(pairs: &[Pair<'_>], row: usize, column: usize) -> f64 {
        let number = |lines: [&[bf16]; 2], line: usize, at: usize| f64::from(lines[line / SIDE][at].to_f32());
        let products = pairs.iter().flat_map(Pair::products);
        let term = |[rows, outputs]: [[&[bf16]; 2]; 2], input: usize| {
            let tile = input / DEPTH * TILE;
            let at = tile + row % SIDE * DEPTH + input % DEPTH;
            number(rows, row, at) * number(outputs, column, place(column % SIDE, input))
        };
        products.map(|product| (0..3 * DEPTH).map(|input| term(product, input)).sum::<f64>()).sum()
    }

    /// Whichever way blocks are computed: by tile instructions, where there are any, and by plain arithmetic.
    #[test]
    fn blocks_are_the_products_of_their_lines() {
        let numbers = |seed: usize| -> Vec<bf16> {
            (0..3 * TILE).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 251) as f32 / 97.0 - 1.3)).collect()
        };
        let [a, b, c, d] = [numbers(1), numbers(2), numbers(3), numbers(4)];
        let whole = |high| Lines { high, low: None };
        let split = |high, low| Lines { high, low: Some(low) };
        let pairs = [
            Pair { rows: whole([&a, &b]), outputs: whole([&c, &d]) },
            Pair { rows: split([&c, &a], [&b, &d]), outputs: split([&d, &b], [&a, &a]) },
            Pair { rows: split([&d, &a], [&c, &b]), outputs: whole([&b, &c]) },
        ];
        for (rows, width) in [(32, 32), (40, 70), (3, 5), (33, 33)] {
            let compute = |kernel: &Kernel| {
                let mut out = vec![0f32; rows * width];
                for mut band in bands(&mut out, width, 2 * BLOCK) {
                    for row in (0..rows).step_by(BLOCK) {
                        for column in (band.columns.start..band.columns.end).step_by(BLOCK) {
                            band.add(kernel, &pairs, [row, column], Start::Zero);
                            band.add(kernel, &pairs[1..], [row, column], Start::Present);
                        }
                    }
                }
                out
            };
            for kernel in [Kernel::begin(), Kernel::Plain] {
                for (i, x) in compute(&kernel).iter().enumerate() {
                    let (row, column) = (i / width % BLOCK, i % width % BLOCK);
                    let expected = expected(&pairs, row, column) + expected(&pairs[1..], row, column);
                    let error = (f64::from(*x) - expected).abs();
                    assert!(error < 1e-3 * expected.abs().max(10.0), "{x} is not {expected} at {i}");
                }
            }
        }
    }
}
