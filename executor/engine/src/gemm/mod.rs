//! Products of matrices on processors that multiply tiles of `bf16`. `f32` goes through them as a sum of two `bf16` parts
//! (Henry, Tang and Heinecke, 2019), which keeps 16 bits of each number: three products of tiles for `f32` by `f32`, two for
//! `f32` by `bf16`, one where both sides are rounded. An output depends on its own row alone, bit for bit, whatever rows are
//! multiplied beside it. Knows no model. Without tile instructions it computes the same, slowly: [`crate::linear`] takes candle
//! then wherever it can.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "amx_absent.rs"]
mod amx;
pub(crate) mod band;
mod quants;
pub(crate) mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

pub(crate) use self::amx::available;
use self::band::{BLOCK, Band, Kernel, Lines, Pair, Start, bands};
use self::quants::Quants;
use self::rows::Rows;
use self::tiles::{DEPTH, SIDE, TILE, Tiles, place};
use crate::kernels::simd;

/// Tiles along the inputs that are multiplied before the next rows are: their part of the weights stays in the cache.
const ACROSS: usize = 64;
/// Blocks of outputs of one task.
const BLOCKS: usize = 4;

/// How exactly the side that is not weights enters a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exactness {
    /// Rounded to `bf16`.
    Rounded,
    /// With 16 bits.
    Exact,
}

impl Exactness {
    /// Of numbers that have a second part, or have not.
    #[inline(always)]
    pub(crate) fn of<T>(low: &Option<T>) -> Self {
        if low.is_some() { Self::Exact } else { Self::Rounded }
    }

    /// Parts of each number.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::Rounded => 1,
            Self::Exact => 2,
        }
    }

    /// The second part, where there is one.
    #[inline(always)]
    pub(crate) fn low<T>(self, low: impl FnOnce() -> T) -> Option<T> {
        (self == Self::Exact).then(low)
    }
}

/// A matrix `[outputs, inputs]` of weights.
#[derive(Debug)]
pub(crate) struct Weights {
    form: Form,
    outputs: usize,
    inputs: usize,
}

#[derive(Debug)]
enum Form {
    /// Numbers that are `bf16`.
    Whole(Tiles<Vec<bf16>>),
    /// Numbers as the sum of two `bf16`.
    Split { high: Tiles<Vec<bf16>>, low: Tiles<Vec<bf16>> },
    /// 8-bit numbers with a scale for each 32, widened when they are used.
    Quants(Quants),
}

impl Weights {
    /// Packs a row-major matrix. With [`Exactness::Rounded`] its numbers are rounded to `bf16`; else those that are not
    /// `bf16` are kept in two parts.
    pub(crate) fn pack(values: &[f32], inputs: usize, exactness: Exactness) -> Self {
        let outputs = values.len() / inputs;
        let whole = exactness == Exactness::Rounded
            || values.par_chunks(1 << 16).all(|chunk| chunk.iter().all(|x| round(*x).to_f32() == *x));
        let form = if whole {
            Form::Whole(outputs_of(values, inputs, round))
        } else {
            Form::Split {
                high: outputs_of(values, inputs, round),
                low: outputs_of(values, inputs, |x| round(x - round(x).to_f32())),
            }
        };
        Self { form, outputs, inputs }
    }

    /// Packs a matrix of `Q8_0` blocks.
    pub(crate) fn pack_q8(blocks: &[u8], inputs: usize) -> Option<Self> {
        let quants = Quants::pack(blocks, inputs)?;
        Some(Self { outputs: quants.outputs(), form: Form::Quants(quants), inputs })
    }

    /// The number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Copies the weights of one output, `[inputs]`.
    pub(crate) fn copy_row(&self, output: usize, out: &mut [f32]) {
        for (input, out) in out.iter_mut().enumerate() {
            *out = match &self.form {
                Form::Whole(tiles) => tiles.output(output, input).to_f32(),
                Form::Split { high, low } => high.output(output, input).to_f32() + low.output(output, input).to_f32(),
                Form::Quants(quants) => quants.output(output, input),
            };
        }
    }

    /// Writes `[rows, outputs]`.
    pub(crate) fn multiply(&self, rows: &Rows, out: &mut [f32]) {
        let blocks = self.outputs.div_ceil(BLOCK);
        for across in parts(self.inputs) {
            let start = if across.start == 0 { Start::Zero } else { Start::Present };
            let bands = bands(out, self.outputs, BLOCKS * BLOCK);
            bands.into_par_iter().enumerate().for_each_init(
                <[Widened; BLOCKS]>::default,
                |widened, (task, mut band)| {
                    let kernel = Kernel::begin();
                    for group in rows.groups() {
                        let mine = task * BLOCKS..blocks.min((task + 1) * BLOCKS);
                        for (block, widened) in mine.zip(widened.iter_mut()) {
                            let outputs = self.lines([2 * block, 2 * block + 1], &across, rows.exactness(), widened);
                            for line in group.clone().step_by(2) {
                                let pair = Pair { rows: rows.lines(line, &across), outputs };
                                band.add(&kernel, &[pair], [line * SIDE, block * BLOCK], start);
                            }
                        }
                    }
                },
            );
        }
    }

    /// As [`Weights::multiply`], through `f` and packed for the next product: `f` is given a row's products from some output
    /// on, up to 32 of them. The products themselves never leave the cache.
    pub(crate) fn multiply_packed(
        &self,
        rows: &Rows,
        exactness: Exactness,
        f: impl Fn(&mut [f32], usize) + Sync,
    ) -> Rows {
        let mut next = Rows::of(rows.count, self.outputs, exactness);
        let lines = |block| [2 * block, 2 * block + 1];
        let place = (next.bands(BLOCKS), self.outputs.div_ceil(BLOCK));
        self.each_block(rows, place, lines, |band, products, [line, block]| {
            let column = block * BLOCK;
            let columns = BLOCK.min(self.outputs - column);
            simd(
                #[inline(always)]
                || {
                    for products in products.chunks_exact_mut(BLOCK) {
                        f(&mut products[..columns], column);
                        products[columns..].fill(0.0);
                    }
                    band.write(products, line, block % BLOCKS);
                },
            );
        });
        next
    }

    /// Whether [`Weights::multiply_gated`] can be asked for.
    pub(crate) fn can_be_gated(&self) -> bool {
        self.outputs.is_multiple_of(2 * SIDE) && parts(self.inputs).count() == 1
    }

    /// As [`Weights::multiply`], where the first half of the outputs are gates of the second: writes `f(gate) * other`,
    /// `[rows, outputs / 2]`, and the products themselves never leave the cache.
    pub(crate) fn multiply_gated(&self, rows: &Rows, f: impl Fn(f32) -> f32 + Sync, out: &mut [f32]) {
        let (half, lines) = (self.outputs / 2, self.outputs / 2 / SIDE);
        let place = (bands(out, half, BLOCKS * SIDE), lines);
        self.each_block(
            rows,
            place,
            |gate| [gate, lines + gate],
            |band, products, [line, gate]| {
                simd(
                    #[inline(always)]
                    || close_gates(products, &f),
                );
                let at = gate % BLOCKS * SIDE;
                for (row, products) in (line * SIDE..rows.count).zip(products.chunks_exact(BLOCK)) {
                    band.row(row)[at..at + SIDE].copy_from_slice(&products[..SIDE]);
                }
            },
        );
    }

    /// Gives `close` the products of each block, over all inputs: 32 rows by two lines of outputs. There are so many blocks
    /// for each two lines of rows; each band is written from [`BLOCKS`] of them.
    fn each_block<B: Send>(
        &self,
        rows: &Rows,
        (bands, blocks): (Vec<B>, usize),
        outputs: impl Fn(usize) -> [usize; 2] + Sync,
        close: impl Fn(&mut B, &mut [f32; BLOCK * BLOCK], [usize; 2]) + Sync,
    ) {
        let across = 0..self.inputs.div_ceil(DEPTH);
        bands.into_par_iter().enumerate().for_each_init(<[Widened; BLOCKS]>::default, |widened, (task, mut band)| {
            let kernel = Kernel::begin();
            let mut products = [0f32; BLOCK * BLOCK];
            for group in rows.groups() {
                let mine = task * BLOCKS..blocks.min((task + 1) * BLOCKS);
                for (block, widened) in mine.zip(widened.iter_mut()) {
                    let outputs = self.lines(outputs(block), &across, rows.exactness(), widened);
                    for line in group.clone().step_by(2) {
                        let pair = Pair { rows: rows.lines(line, &across), outputs };
                        Band::whole(&mut products, BLOCK).add(&kernel, &[pair], [0, 0], Start::Zero);
                        close(&mut band, &mut products, [line, block]);
                    }
                }
            }
        });
    }

    /// Two lines of weights, some of their inputs, as tiles, and what is left of rounding where rows are exact.
    fn lines<'a>(
        &'a self,
        lines: [usize; 2],
        across: &Range<usize>,
        exactness: Exactness,
        widened: &'a mut Widened,
    ) -> Lines<'a> {
        let of = |tiles: &'a Tiles<Vec<bf16>>| {
            // A last line without a neighbour is multiplied twice; the second product is not kept.
            lines.map(|line| &tiles.line(line.min(tiles.lines() - 1))[across.start * TILE..across.end * TILE])
        };
        match &self.form {
            Form::Whole(tiles) => Lines { high: of(tiles), low: None },
            Form::Split { high, low } => Lines { high: of(high), low: exactness.low(|| of(low)) },
            Form::Quants(quants) => {
                let tiles = across.len() * TILE;
                let of = Some((lines, across.start));
                let known = std::mem::replace(&mut widened.of, of) == of;
                widened.tiles.resize(4 * tiles, bf16::ZERO);
                let (high, low) = widened.tiles.split_at_mut(2 * tiles);
                for (place, line) in lines.into_iter().enumerate().filter(|_| !known) {
                    let at = place * tiles..(place + 1) * tiles;
                    let low = exactness.low(|| &mut low[at.clone()]);
                    quants.widen(line.min(quants.lines() - 1), across, &mut high[at], low);
                }
                let (a, b) = high.split_at(tiles);
                let (c, d) = low.split_at(tiles);
                Lines { high: [a, b], low: exactness.low(|| [c, d]) }
            }
        }
    }
}

/// The parts of the inputs, in tiles, that are multiplied one after the other.
fn parts(inputs: usize) -> impl Iterator<Item = Range<usize>> {
    let across = inputs.div_ceil(DEPTH);
    (0..across).step_by(ACROSS).map(move |from| from..across.min(from + ACROSS))
}

/// Of 32 rows of products, 16 gates and 16 others: leaves `f(gate) * other` where the gate was.
#[inline(always)]
fn close_gates(products: &mut [f32; BLOCK * BLOCK], f: impl Fn(f32) -> f32) {
    for row in products.chunks_exact_mut(BLOCK) {
        let (gates, others) = row.split_at_mut(SIDE);
        for (gate, other) in gates.iter_mut().zip(others) {
            *gate = f(*gate) * *other;
        }
    }
}

/// Two lines of 8-bit weights as tiles, while rows meet them group by group.
#[derive(Default)]
struct Widened {
    /// Which lines, and the first of their inputs.
    of: Option<([usize; 2], usize)>,
    tiles: Vec<bf16>,
}

/// Packs a row-major matrix as outputs.
fn outputs_of(values: &[f32], inputs: usize, part: impl Fn(f32) -> bf16 + Sync) -> Tiles<Vec<bf16>> {
    let mut tiles = Tiles::zeros(values.len() / inputs, inputs);
    let lines: Vec<&mut [bf16]> = tiles.lines_mut().collect();
    values.par_chunks(SIDE * inputs).zip(lines).for_each(|(values, line)| {
        for (output, values) in values.chunks_exact(inputs).enumerate() {
            for (input, x) in values.iter().enumerate() {
                line[place(output, input)] = part(*x);
            }
        }
    });
    tiles
}

/// The nearest `bf16`, ties to even; NaN stays NaN. Written so that it vectorises.
#[inline(always)]
pub(crate) fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() { 0x7fc0 } else { rounded })
}
