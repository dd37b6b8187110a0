//! Products of matrices that stay as GGUF stores them, by candle's own kernels (candle-kernels, MMVQ for a few rows and MMQ for
//! many) on our stream and in our memory, so that a step with them can be recorded. What must be known of their layouts is
//! [`crate::device::stored`]'s. Refuses types that candle has no kernels for: those were rounded when they were read.
#![expect(unsafe_code, reason = "calls C; each call says why it is sound")]

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_kernels::ffi;
use half::bf16;
use rowmill_jobs::{Error, Result};

use super::entries;
use super::gpu::{Argument, Buffer, Gpu, Place};
use super::matrix::{Layers, Output};
use crate::decoder::Parts;
use crate::device::stored::{self, Room, Scales, Way, columns_padded, row_bytes, vector_blocks};
use crate::linear::internal;

/// Kernels of stored.cu.
pub(super) const STORED: [&str; 3] = ["widen", "settle", "gather_blocks"];
/// Threads of a block of theirs.
const THREADS: usize = 128;

/// One or more matrices of one type below each other, as they are stored.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Rows behind each other, and zeros behind the last.
    bytes: Buffer<u8>,
    dtype: GgmlDType,
    rows: usize,
}

/// Memory that all products share, and what candle's kernels ask of the GPU.
#[derive(Debug)]
pub(super) struct Bench {
    /// The other side in `f32`, or its scales.
    pub(super) floats: Buffer<f32>,
    /// The other side in 8 bits.
    pub(super) bytes: Buffer<u8>,
    products: Buffer<f32>,
    shared_tiles: Buffer<f32>,
    capability: i32,
    multiprocessors: i32,
    shared_bytes: i64,
    warp: i32,
}

/// In which form `settle` leaves a product; as `Form` in stored.cu.
#[derive(Debug, Clone, Copy)]
enum Form {
    Rounded = 0,
    Floats = 1,
    Added = 2,
}

/// `x` of a product: `[rows, inputs]`, `bf16`.
#[derive(Debug, Clone, Copy)]
struct States {
    at: Place,
    rows: usize,
    inputs: usize,
}

/// The room that a decoder's products take. Logits are floats, and of one matrix: those go straight to their place.
pub(super) fn room(parts: &Parts<'_>, layers: Layers) -> Room {
    let mut room = Room::default();
    for layer in &parts.layers {
        for linear in [layer.qkv, layer.out, &layer.feed.up, &layer.feed.down] {
            if layers == Layers::Eights || linear.blocks().is_some() {
                room.widen(linear.inputs, linear.outputs);
            }
        }
    }
    if parts.output.blocks().is_some() {
        room.widen(parts.output.inputs, 0);
    }
    room
}

fn rows_of(tensors: &[&QTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.shape().dims().first().copied().unwrap_or(0)).sum()
}

impl Bench {
    pub(super) fn new(gpu: &Gpu, room: Room) -> Result<Self> {
        let number = |attribute| gpu.attribute(attribute);
        let multiprocessors = number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let major = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Self {
            floats: gpu.buffer(room.floats())?,
            bytes: gpu.buffer(room.bytes())?,
            products: gpu.buffer(room.products())?,
            shared_tiles: gpu.buffer(Room::shared_tiles(usize::try_from(multiprocessors).unwrap_or(0)))?,
            capability: 100 * major + 10 * minor,
            multiprocessors,
            shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.into(),
            warp: number(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE)?,
        })
    }
}

impl Gpu {
    /// Copies matrices below each other as they are stored; those of one type that are neighbours become one.
    pub(super) fn blocks(&self, tensors: &[&QTensor]) -> Result<Vec<Blocks>> {
        let dtypes: Vec<GgmlDType> = tensors.iter().map(|tensor| tensor.dtype()).collect();
        let mut rest = tensors;
        let mut pieces = Vec::new();
        for (dtype, count) in stored::runs(&dtypes) {
            let (run, others) = rest.split_at(count);
            rest = others;
            let mut bytes = Vec::new();
            for tensor in run {
                bytes.extend_from_slice(&tensor.data().map_err(internal)?);
            }
            let columns = run.first().and_then(|tensor| tensor.shape().dims().last()).copied().unwrap_or(0);
            bytes.resize(bytes.len() + stored::padding(dtype, columns), 0);
            pieces.push(Blocks { bytes: self.upload(&bytes)?, dtype, rows: rows_of(run) });
        }
        Ok(pieces)
    }

    /// Some rows of a stored matrix, those whose numbers are at `rows`, as one of as many.
    pub(super) fn gather_blocks(&self, from: &[Blocks], inputs: usize, rows: &Buffer<u32>) -> Result<Vec<Blocks>> {
        let [from] = from else { return Err(Error::internal("rows of several matrices are not taken")) };
        let width = row_bytes(from.dtype, inputs);
        let bytes = self.zeros::<u8>(rows.len * width + stored::padding(from.dtype, inputs))?;
        let places = [bytes.place, from.bytes.place, rows.place].map(Argument::At);
        let numbers = [rows.len as u32, (width / 2) as u32].map(Argument::Number);
        self.launch("gather_blocks", [rows.len.div_ceil(4), 1], THREADS, &[&places[..], &numbers].concat())?;
        Ok(vec![Blocks { bytes, dtype: from.dtype, rows: rows.len }])
    }

    /// As [`Gpu::multiply`], with a matrix that is stored in pieces.
    pub(super) fn multiply_blocks(
        &self,
        pieces: &[Blocks],
        inputs: usize,
        (x, rows): (Place, usize),
        output: Output,
    ) -> Result<()> {
        let bench = self.bench()?;
        let outputs: usize = pieces.iter().map(|piece| piece.rows).sum();
        for (first, rows) in stored::steps(rows) {
            let x = States { at: x.behind::<bf16>(first * inputs), rows, inputs };
            let output = output.behind(first * outputs);
            match Way::of(rows) {
                Way::Vectors => self.multiply_vectors(bench, pieces, x, (output, outputs))?,
                Way::Tiles => self.multiply_tiles(bench, pieces, x, (output, outputs))?,
            }
        }
        Ok(())
    }

    /// A few rows: each block is read once for all of them.
    fn multiply_vectors(
        &self,
        bench: &Bench,
        pieces: &[Blocks],
        x: States,
        (output, outputs): (Output, usize),
    ) -> Result<()> {
        let (rows, inputs) = (x.rows as i32, x.inputs as i32);
        // SAFETY: x has so many rows and columns, and there is room for as many blocks.
        unsafe {
            ffi::launch_mmvq_gguf_quantize_q8_1_bf16(
                pointer(x.at),
                pointer(bench.bytes.place),
                inputs,
                columns_padded(x.inputs) as i32,
                rows,
                self.raw_stream(),
            );
        }
        let mut column = 0;
        for piece in pieces {
            let kernels = entries::kernels(piece.dtype)?;
            let (kernel, to, stride) = match output {
                Output::Rounded(to) => (kernels.rounded, to.behind::<bf16>(column), outputs),
                Output::Floats(to, _) => (kernels.floats, to.behind::<f32>(column), outputs),
                Output::Added(..) => (kernels.floats, bench.product(x.rows * piece.rows)?, piece.rows),
            };
            // SAFETY: the piece has so many rows of so many columns and the bytes behind them that the kernel reads; the
            // product has room for its rows, `stride` apart.
            unsafe {
                kernel(
                    pointer(piece.bytes.place),
                    pointer(bench.bytes.place),
                    pointer(to),
                    inputs,
                    piece.rows as i32,
                    vector_blocks(x.inputs) as i32,
                    stride as i32,
                    rows,
                    self.raw_stream(),
                );
            }
            if let Output::Added(..) = output {
                self.settle(to, (x.rows, piece.rows), output, (column, outputs))?;
            }
            column += piece.rows;
        }
        if let Output::Floats(to, factor) = output
            && factor != 1.0
        {
            self.settle(to, (x.rows, outputs), output, (0, outputs))?;
        }
        entries::launched()
    }

    /// Many rows, as tiles. Products of this kind are floats, rows of their own piece behind each other.
    fn multiply_tiles(
        &self,
        bench: &Bench,
        pieces: &[Blocks],
        x: States,
        (output, outputs): (Output, usize),
    ) -> Result<()> {
        let count = x.rows * x.inputs;
        let arguments = [Argument::At(bench.floats.place), Argument::At(x.at), Argument::Wide(count as u64)];
        self.launch("widen", [count.div_ceil(8 * THREADS), 1], THREADS, &arguments)?;
        let (mut column, mut known) = (0, None);
        for piece in pieces {
            let scales =
                stored::scales(piece.dtype).ok_or_else(|| Error::internal("a matrix without kernels was kept"))?;
            if known != Some(scales) {
                self.quantise(bench, x, scales);
                known = Some(scales);
            }
            let to = match output {
                Output::Floats(to, _) if pieces.len() == 1 => to,
                _ => bench.product(x.rows * piece.rows)?,
            };
            // SAFETY: as for vectors; rows of the product stand behind each other.
            unsafe {
                (entries::kernels(piece.dtype)?.tiles)(
                    pointer(bench.shared_tiles.place),
                    pointer(piece.bytes.place),
                    pointer(bench.bytes.place),
                    pointer(to),
                    x.inputs as i64,
                    piece.rows as i64,
                    x.rows as i64,
                    (x.inputs / piece.dtype.block_size()) as i64,
                    piece.rows as i64,
                    bench.capability,
                    bench.multiprocessors,
                    bench.shared_bytes,
                    bench.warp,
                    self.raw_stream(),
                );
            }
            match output {
                Output::Floats(there, factor) if there == to && factor == 1.0 => {}
                _ => self.settle(to, (x.rows, piece.rows), output, (column, outputs))?,
            }
            column += piece.rows;
        }
        entries::launched()
    }

    /// Brings widened states to 8 bits.
    fn quantise(&self, bench: &Bench, x: States, scales: Scales) {
        let (rows, inputs, padded) = (x.rows as i64, x.inputs as i64, columns_padded(x.inputs) as i64);
        // SAFETY: there are so many floats, and room for as many blocks; no row is renamed, and there is one matrix of them.
        unsafe {
            entries::quantise(scales)(
                pointer(bench.floats.place),
                std::ptr::null(),
                pointer(bench.bytes.place),
                0,
                inputs,
                inputs,
                0,
                0,
                padded,
                rows,
                1,
                1,
                self.raw_stream(),
            );
        }
    }

    /// Puts a product `[rows, width]` where it is to go: into `width` columns of `stride`, from `column` on.
    fn settle(
        &self,
        product: Place,
        (rows, width): (usize, usize),
        output: Output,
        (column, stride): (usize, usize),
    ) -> Result<()> {
        let scales = [Place::NOWHERE; 2];
        self.settle_scaled((product, scales), (rows, width), output, (column, stride))
    }

    /// The same, times the scales of its rows and of its columns.
    pub(super) fn settle_scaled(
        &self,
        (product, [row_scales, column_scales]): (Place, [Place; 2]),
        (rows, width): (usize, usize),
        output: Output,
        (column, stride): (usize, usize),
    ) -> Result<()> {
        let (to, form, factor) = match output {
            Output::Rounded(to) => (to, Form::Rounded, 1.0),
            Output::Floats(to, factor) => (to, Form::Floats, factor),
            Output::Added(to, factor) => (to, Form::Added, factor),
        };
        let places = [to, product, row_scales, column_scales].map(Argument::At);
        let numbers = [width as u32, stride as u32, column as u32, form as u32].map(Argument::Number);
        let arguments = [&places[..], &numbers, &[Argument::Real(factor)]].concat();
        self.launch("settle", [rows, width.div_ceil(THREADS)], THREADS, &arguments)
    }
}

impl Bench {
    /// Where a product of so many numbers waits.
    pub(super) fn product(&self, numbers: usize) -> Result<Place> {
        if numbers > self.products.len {
            return Err(Error::internal("a product of blocks is larger than its room"));
        }
        Ok(self.products.place)
    }
}

fn pointer(place: Place) -> *mut c_void {
    place.address() as *mut c_void
}
