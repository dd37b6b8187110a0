//! Matrix products through candle, and the small bridge between its tensors and plain slices.
//! Adds no bias itself: whatever reads the product adds it in the same pass over memory.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use rowmill_jobs::{Error, Result};

use crate::weights::matrix;

/// A matrix `[outputs, inputs]`, and a bias for whoever reads its products.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    /// `[outputs]`.
    pub(crate) bias: Option<Vec<f32>>,
    /// Rows of the matrix.
    pub(crate) outputs: usize,
    /// Columns of the matrix.
    pub(crate) inputs: usize,
}

impl Linear {
    /// Takes a row-major matrix.
    pub(crate) fn new(
        values: Vec<f32>,
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        dtype: DType,
    ) -> Result<Self> {
        Ok(Self { weight: matrix(values, outputs, inputs, dtype)?, bias, outputs, inputs })
    }

    /// `x` is `[rows, inputs]`; the product is `[rows, outputs]`, without the bias.
    pub(crate) fn apply(&self, x: Vec<f32>) -> Result<Product> {
        let rows = x.len() / self.inputs;
        let product = Tensor::from_vec(x, (rows, self.inputs), &Device::Cpu)
            .and_then(|x| x.to_dtype(self.weight.dtype()))
            .and_then(|x| x.matmul(&self.weight.t()?))
            .and_then(|y| y.to_dtype(DType::F32))
            .map_err(internal)?;
        Ok(Product(product))
    }

    /// The matrix of only these rows of it, in this order.
    pub(crate) fn select(&self, rows: &[u32]) -> Result<Self> {
        let index = Tensor::new(rows, &Device::Cpu).map_err(internal)?;
        let weight = self.weight.index_select(&index, 0).map_err(internal)?;
        let bias = self.bias.as_ref().map(|bias| rows.iter().map(|row| bias[*row as usize]).collect());
        Ok(Self { weight, bias, outputs: rows.len(), inputs: self.inputs })
    }

    /// Copies row `row` of the matrix into `out` (`[inputs]`), widened to `f32`.
    pub(crate) fn copy_row(&self, row: u32, out: &mut [f32]) -> Result<()> {
        let (storage, layout) = self.weight.storage_and_layout();
        let start = layout.start_offset() + row as usize * self.inputs;
        match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => out.copy_from_slice(&values[start..start + self.inputs]),
            Storage::Cpu(CpuStorage::F16(values)) => {
                for (out, value) in out.iter_mut().zip(&values[start..start + self.inputs]) {
                    *out = value.to_f32();
                }
            }
            _ => return Err(Error::internal("an embedding matrix is in memory the engine cannot read")),
        }
        Ok(())
    }
}

/// A product on the CPU, `[rows, outputs]`, in `f32`.
pub(crate) struct Product(Tensor);

impl Product {
    /// Reads it without a copy.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let (storage, layout) = self.0.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => Ok(f(&values[from..to])),
            _ => Err(Error::internal("a product is in memory the engine cannot read")),
        }
    }
}

/// A candle error that no input of the user's can cause.
pub(crate) fn internal(error: candle_core::Error) -> Error {
    Error::internal("the tensor library refused an operation").caused_by(error)
}
