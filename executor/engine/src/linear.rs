//! Matrix products: by tiles where the processor multiplies tiles, else through candle, dense or quantised, and the small
//! bridge between its tensors and plain slices. Adds no bias itself: whatever reads the product adds it in the same pass
//! over memory.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
#[cfg(feature = "cuda")]
use half::bf16;
use half::f16;
use rowmill_jobs::{Error, Result};

use crate::buffers::Buffer;
use crate::gemm::rows::Rows;
use crate::gemm::{self, Exactness};

/// How exactly matrices are kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Each matrix as it is stored, which [`crate::weights::Weights::precision`] knows: where the processor multiplies tiles,
    /// those that were rounded as `Bf16` and all others as `Split`, elsewhere `F32`.
    Stored,
    /// `f32`.
    F32,
    /// With 16 bits of each number.
    Split,
    /// `f16`.
    F16,
    /// `bf16`: 8 bits of each number.
    Bf16,
    /// The same, row by row, or in the blocks that they are stored in, for a device that takes them: nothing is multiplied with
    /// them here.
    #[cfg(feature = "cuda")]
    Held,
}

impl Precision {
    /// Whether matrices are read only to be held for a device.
    fn is_held(self) -> bool {
        #[cfg(feature = "cuda")]
        return self == Self::Held;
        #[cfg(not(feature = "cuda"))]
        false
    }
}

/// A matrix `[outputs, inputs]`, and a bias for whoever reads its products.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Below each other.
    matrices: Vec<Matrix>,
    /// `[outputs]`.
    pub(crate) bias: Option<Vec<f32>>,
    /// Rows of all matrices.
    pub(crate) outputs: usize,
    /// Columns of each matrix.
    pub(crate) inputs: usize,
}

/// A matrix in memory.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// `f32` or `f16`.
    Dense(Tensor),
    /// In the layout of tile instructions, and how exactly the other side enters a product.
    Tiles(Arc<gemm::Weights>, Exactness),
    /// Blocks of small integers; products quantise the other side to 8 bits, too.
    Quantised(Arc<QTensor>),
}

impl Matrix {
    fn rows(&self) -> usize {
        let shape = match self {
            Self::Tiles(weights, _) => return weights.outputs(),
            Self::Dense(tensor) => tensor.shape(),
            Self::Quantised(tensor) => tensor.shape(),
        };
        shape.dims().first().copied().unwrap_or(0)
    }

    /// `[rows of x, rows of the matrix]`, in `f32`.
    fn apply(&self, x: &[f32], inputs: usize) -> candle_core::Result<Product> {
        let tensor = || Tensor::from_slice(x, (x.len() / inputs, inputs), &Device::Cpu);
        let product = match self {
            Self::Tiles(weights, exactness) => {
                let mut out = Buffer::of(x.len() / inputs * weights.outputs());
                weights.multiply(&Rows::pack(x, inputs, *exactness), &mut out);
                return Ok(Product::Plain(out));
            }
            Self::Dense(weight) => tensor()?.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?,
            Self::Quantised(weight) => tensor()?.apply_op1_no_bwd(weight.as_ref())?,
        };
        Ok(Product::Candle(product))
    }
}

impl Linear {
    /// Takes one row-major matrix.
    pub(crate) fn new(values: Vec<f32>, inputs: usize, bias: Option<Vec<f32>>, precision: Precision) -> Result<Self> {
        let tiles = |exactness| {
            let weights = gemm::Weights::pack(&values, inputs, exactness);
            Ok(Self::of(vec![Matrix::Tiles(Arc::new(weights), exactness)], inputs, bias.clone()))
        };
        let shape = (values.len() / inputs, inputs);
        let weight = match precision {
            Precision::Bf16 => return tiles(Exactness::Rounded),
            Precision::Split => return tiles(Exactness::Exact),
            #[cfg(feature = "cuda")]
            Precision::Held => Tensor::from_vec(values.into_iter().map(bf16::from_f32).collect(), shape, &Device::Cpu),
            Precision::F16 => Tensor::from_vec(values.into_iter().map(f16::from_f32).collect(), shape, &Device::Cpu),
            Precision::F32 | Precision::Stored => Tensor::from_vec(values, shape, &Device::Cpu),
        };
        Ok(Self::of(vec![Matrix::Dense(weight.map_err(internal)?)], inputs, bias))
    }

    /// Takes quantised matrices below each other. Where tiles are multiplied, `Q8_0` is put in their order, but not for a device.
    pub(crate) fn quantised(
        tensors: Vec<QTensor>,
        inputs: usize,
        bias: Option<Vec<f32>>,
        precision: Precision,
    ) -> Result<Self> {
        let tiles = gemm::available() && !precision.is_held();
        if tiles && tensors.iter().all(|tensor| tensor.dtype() == GgmlDType::Q8_0) {
            let mut bytes = Vec::new();
            for tensor in &tensors {
                bytes.extend_from_slice(&tensor.data().map_err(internal)?);
            }
            if let Some(weights) = gemm::Weights::pack_q8(&bytes, inputs) {
                return Ok(Self::of(vec![Matrix::Tiles(Arc::new(weights), Exactness::Rounded)], inputs, bias));
            }
        }
        let matrices = tensors.into_iter().map(|tensor| Matrix::Quantised(Arc::new(tensor))).collect();
        Ok(Self::of(matrices, inputs, bias))
    }

    /// Takes matrices below each other.
    pub(crate) fn of(matrices: Vec<Matrix>, inputs: usize, bias: Option<Vec<f32>>) -> Self {
        let outputs = matrices.iter().map(Matrix::rows).sum();
        Self { matrices, bias, outputs, inputs }
    }

    /// `x` is `[rows, inputs]`; the product is `[rows, outputs]`, without the bias.
    pub(crate) fn apply(&self, x: impl AsRef<[f32]>) -> Result<Product> {
        let x = x.as_ref();
        let products = self.matrices.iter().map(|matrix| matrix.apply(x, self.inputs));
        let mut products = products.collect::<candle_core::Result<Vec<_>>>().map_err(internal)?;
        match products.len() {
            1 => Ok(products.remove(0)),
            _ => beside(&products, &self.matrices, x.len() / self.inputs),
        }
    }

    /// What [`Precision::Held`] holds, row by row, in `bf16`.
    #[cfg(feature = "cuda")]
    pub(crate) fn held(&self) -> Result<Vec<bf16>> {
        let mut values = Vec::with_capacity(self.outputs * self.inputs);
        for matrix in &self.matrices {
            let rounded = match matrix {
                Matrix::Dense(weight) => Ok(weight.clone()),
                Matrix::Quantised(weight) => weight.dequantize(&Device::Cpu),
                Matrix::Tiles(..) => return Err(Error::internal("a matrix is not held for a device")),
            };
            let rounded = rounded.and_then(|weight| weight.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<bf16>());
            values.extend(rounded.map_err(internal)?);
        }
        Ok(values)
    }

    /// The matrices as they are stored, if they are held so for a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn blocks(&self) -> Option<Vec<&QTensor>> {
        let stored = self.matrices.iter().map(|matrix| match matrix {
            Matrix::Quantised(weight) => Some(weight.as_ref()),
            _ => None,
        });
        stored.collect()
    }

    /// Whether what it is multiplied with is rounded to `bf16`.
    pub(crate) fn is_rounded(&self) -> bool {
        self.matrices.iter().any(|matrix| matches!(matrix, Matrix::Tiles(_, Exactness::Rounded)))
    }

    /// As [`Linear::apply`], where the first half of the outputs are gates of the second: `f(gate) * other`,
    /// `[rows, outputs / 2]`. `None` where that cannot be done in one go; then whoever asks does it afterwards.
    pub(crate) fn apply_gated(&self, x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Option<Buffer<f32>> {
        let (None, [Matrix::Tiles(weights, exactness)]) = (&self.bias, &self.matrices[..]) else { return None };
        if !weights.can_be_gated() {
            return None;
        }
        let mut out = Buffer::of(x.len() / self.inputs * self.outputs / 2);
        weights.multiply_gated(&Rows::pack(x, self.inputs, *exactness), f, &mut out);
        Some(out)
    }

    /// The product of `next` with what `f` makes of this product: `f` is given some of a row's outputs and the first one's
    /// place. `None` where that cannot be done in one go; then whoever asks does one after the other.
    pub(crate) fn apply_then(&self, next: &Self, x: &[f32], f: impl Fn(&mut [f32], usize) + Sync) -> Option<Product> {
        let [Matrix::Tiles(weights, exactness)] = &self.matrices[..] else { return None };
        let [Matrix::Tiles(next_weights, next_exactness)] = &next.matrices[..] else { return None };
        let rows = weights.multiply_packed(&Rows::pack(x, self.inputs, *exactness), *next_exactness, f);
        let mut out = Buffer::of(x.len() / self.inputs * next.outputs);
        next_weights.multiply(&rows, &mut out);
        Some(Product::Plain(out))
    }

    /// How exactly the other side enters products of tiles; `None` where tiles are not multiplied.
    pub(crate) fn exactness(&self) -> Option<Exactness> {
        match &self.matrices[..] {
            [Matrix::Tiles(_, exactness)] => Some(*exactness),
            _ => None,
        }
    }

    /// The matrix of only these rows of it, in this order, dense.
    pub(crate) fn select(&self, rows: &[u32]) -> Result<Self> {
        let mut values = vec![0f32; rows.len() * self.inputs];
        for (row, out) in rows.iter().zip(values.chunks_exact_mut(self.inputs)) {
            self.copy_row(*row, out)?;
        }
        let bias = self.bias.as_ref().map(|bias| rows.iter().map(|row| bias[*row as usize]).collect());
        let tiles = gemm::available() && self.matrices.iter().any(|matrix| matches!(matrix, Matrix::Tiles(..)));
        Self::new(values, self.inputs, bias, if tiles { Precision::Split } else { Precision::F32 })
    }

    /// Copies row `row` of the (one) matrix into `out` (`[inputs]`), widened to `f32`.
    pub(crate) fn copy_row(&self, row: u32, out: &mut [f32]) -> Result<()> {
        let row = row as usize;
        match self.matrices.first() {
            Some(Matrix::Quantised(weight)) => {
                let bytes = weight.data().map_err(internal)?;
                let width = bytes.len() / self.outputs;
                let one = from_bytes(bytes[row * width..(row + 1) * width].to_vec(), weight.dtype(), 1, self.inputs)?;
                let one = Product::Candle(one.dequantize(&Device::Cpu).map_err(internal)?);
                return one.read(|values| out.copy_from_slice(values));
            }
            Some(Matrix::Dense(weight)) => {
                let (storage, layout) = weight.storage_and_layout();
                let start = layout.start_offset() + row * self.inputs;
                match &*storage {
                    Storage::Cpu(CpuStorage::F32(values)) => {
                        out.copy_from_slice(&values[start..start + self.inputs]);
                        return Ok(());
                    }
                    Storage::Cpu(CpuStorage::F16(values)) => {
                        for (out, value) in out.iter_mut().zip(&values[start..start + self.inputs]) {
                            *out = value.to_f32();
                        }
                        return Ok(());
                    }
                    _ => {}
                }
            }
            Some(Matrix::Tiles(weights, _)) => {
                weights.copy_row(row, out);
                return Ok(());
            }
            None => {}
        }
        Err(Error::internal("an embedding matrix is in memory the engine cannot read"))
    }
}

/// A quantised matrix of these bytes.
pub(crate) fn from_bytes(bytes: Vec<u8>, dtype: GgmlDType, rows: usize, columns: usize) -> Result<QTensor> {
    let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, dtype).map_err(internal)?;
    QTensor::new(storage, (rows, columns)).map_err(internal)
}

/// A product on the CPU, `[rows, outputs]`, in `f32`.
pub(crate) enum Product {
    Plain(Buffer<f32>),
    Candle(Tensor),
}

impl Product {
    /// Reads it without a copy.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let tensor = match self {
            Self::Plain(values) => return Ok(f(values)),
            Self::Candle(tensor) => tensor,
        };
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => Ok(f(&values[from..to])),
            _ => Err(Error::internal("a product is in memory the engine cannot read")),
        }
    }
}

/// Products of several matrices as one: their columns beside each other.
fn beside(products: &[Product], matrices: &[Matrix], rows: usize) -> Result<Product> {
    let widths: Vec<usize> = matrices.iter().map(Matrix::rows).collect();
    let whole: usize = widths.iter().sum();
    let mut out = Buffer::of(rows * whole);
    let mut from = 0;
    for (product, width) in products.iter().zip(widths) {
        product.read(|values| {
            for (out, row) in out.chunks_exact_mut(whole).zip(values.chunks_exact(width)) {
                out[from..from + width].copy_from_slice(row);
            }
        })?;
        from += width;
    }
    Ok(Product::Plain(out))
}

/// A candle error that no input of the user's can cause.
pub(crate) fn internal(error: candle_core::Error) -> Error {
    Error::internal("the tensor library refused an operation").caused_by(error)
}
