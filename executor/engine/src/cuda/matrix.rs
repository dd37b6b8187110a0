//! Matrices in a GPU's memory, in the forms that they are kept in, and what multiplies each: cuBLAS those in `bf16`, candle's kernels
//! those that stay as GGUF stores them, cuBLASLt those of 8-bit floats. Adds no bias itself.
#![expect(unsafe_code, reason = "cuBLAS is told in C; the call says why it is sound")]

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as blas};
use half::bf16;
use rowmill_jobs::Result;

use super::eights::Eights;
use super::gpu::{Buffer, Gpu, Place, failed};
use super::stored::Blocks;
use crate::linear::Linear;

/// A matrix `[outputs, inputs]` in a GPU's memory, and its bias.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) values: Values,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// A matrix's numbers.
#[derive(Debug)]
pub(super) enum Values {
    /// `bf16`, row by row.
    Rounded(Buffer<bf16>),
    /// As GGUF stores them, in pieces below each other.
    Blocks(Vec<Blocks>),
    /// In 8-bit floats.
    Eights(Eights),
}

/// How the matrices of layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// In blocks where they are stored so, else in `bf16`.
    Stored,
    /// In 8-bit floats.
    Eights,
}

/// Where a product goes, and in which form.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    /// `bf16`.
    Rounded(Place),
    /// `f32`, times a factor.
    Floats(Place, f32),
    /// Added to `f32` that are there, times a factor.
    Added(Place, f32),
}

impl Output {
    /// The same, so many numbers behind it.
    pub(super) fn behind(self, count: usize) -> Self {
        match self {
            Self::Rounded(to) => Self::Rounded(to.behind::<bf16>(count)),
            Self::Floats(to, factor) => Self::Floats(to.behind::<f32>(count), factor),
            Self::Added(to, factor) => Self::Added(to.behind::<f32>(count), factor),
        }
    }
}

impl Gpu {
    /// A matrix that was held for a device.
    pub(super) fn matrix(&self, linear: &Linear) -> Result<Matrix> {
        match linear.blocks() {
            Some(tensors) => self.matrix_of(Values::Blocks(self.blocks(&tensors)?), linear),
            None => self.rounded(linear),
        }
    }

    /// The same, rounded to `bf16` whatever it was stored as.
    pub(super) fn rounded(&self, linear: &Linear) -> Result<Matrix> {
        self.matrix_of(Values::Rounded(self.upload(&linear.held()?)?), linear)
    }

    /// The matrix of a layer.
    pub(super) fn layer_matrix(&self, linear: &Linear, layers: Layers) -> Result<Matrix> {
        match layers {
            Layers::Stored => self.matrix(linear),
            Layers::Eights => {
                let eights = self.eights(&linear.held()?, [linear.outputs, linear.inputs])?;
                self.matrix_of(Values::Eights(eights), linear)
            }
        }
    }

    fn matrix_of(&self, values: Values, linear: &Linear) -> Result<Matrix> {
        Ok(Matrix {
            values,
            bias: linear.bias.as_deref().map(|bias| self.upload(bias)).transpose()?,
            outputs: linear.outputs,
            inputs: linear.inputs,
        })
    }

    /// `x` (`[rows, inputs]`, `bf16`) times a matrix, `[rows, outputs]`, without the bias.
    pub(super) fn multiply(&self, matrix: &Matrix, x: Place, rows: usize, output: Output) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let values = match &matrix.values {
            Values::Rounded(values) => values.place,
            Values::Blocks(pieces) => return self.multiply_blocks(pieces, matrix.inputs, (x, rows), output),
            Values::Eights(eights) => {
                return self.multiply_eights(eights, [matrix.outputs, matrix.inputs], (x, rows), output);
            }
        };
        let (to, kind, alpha, beta) = match output {
            Output::Rounded(to) => (to, blas::cudaDataType_t::CUDA_R_16BF, 1f32, 0f32),
            Output::Floats(to, factor) => (to, blas::cudaDataType_t::CUDA_R_32F, factor, 0.0),
            Output::Added(to, factor) => (to, blas::cudaDataType_t::CUDA_R_32F, factor, 1.0),
        };
        let (outputs, inputs) = (matrix.outputs as i32, matrix.inputs as i32);
        // SAFETY: to cuBLAS, whose matrices are column by column, ours are transposed: it computes [outputs, rows]. Sizes are those
        // of the buffers, and both factors live through the call.
        unsafe {
            gemm_ex(
                self.blas_handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                outputs,
                rows as i32,
                inputs,
                (&raw const alpha).cast::<c_void>(),
                values.address() as *const c_void,
                blas::cudaDataType_t::CUDA_R_16BF,
                inputs,
                x.address() as *const c_void,
                blas::cudaDataType_t::CUDA_R_16BF,
                inputs,
                (&raw const beta).cast::<c_void>(),
                to.address() as *mut c_void,
                kind,
                outputs,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(failed)
    }
}
