//! Products of 8-bit floats (E4M3), by cuBLASLt: rows of both sides are brought to 8 bits with a scale each, and the product, in `f32`,
//! gets both scales when it is put in its place. So nothing is asked of cuBLASLt but the plain product. What it needs to know of a
//! size is asked once and kept. Which models and GPUs do this is [`crate::device::eights`]'s to say.
#![expect(unsafe_code, reason = "cuBLASLt is told in C; each call says why it is sound")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::{result as lt, sys};
use half::bf16;
use rowmill_jobs::Result;

use super::gpu::{Argument, Buffer, Gpu, Place, failed};
use super::matrix::Output;
use crate::device::stored;

/// Kernels of eights.cu.
pub(super) const EIGHTS: [&str; 1] = ["eights"];
/// Threads of a block of theirs, which has four rows.
const THREADS: usize = 128;
/// What cuBLASLt may write while it multiplies.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A matrix in 8-bit floats.
#[derive(Debug)]
pub(super) struct Eights {
    /// `[outputs, inputs]`.
    bytes: Buffer<u8>,
    /// `[outputs]`.
    scales: Buffer<f32>,
}

/// cuBLASLt on a GPU.
#[derive(Debug)]
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer<u8>,
    /// By outputs, inputs and rows.
    plans: Mutex<HashMap<[usize; 3], Plan>>,
}

// SAFETY: cuBLASLt's handle may be used from any thread, and plans are behind a lock.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

/// How a product of one size is computed.
#[derive(Debug)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    /// Of the matrix, the other side, and the product.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they are this plan's alone. What cannot be given back is lost with the process.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more; what was asked for is behind the same stream's frees.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Lt {
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        let workspace = gpu.buffer(WORKSPACE_BYTES)?;
        Ok(Self { handle: lt::create_handle().map_err(failed)?, workspace, plans: Mutex::new(HashMap::new()) })
    }

    /// Asks cuBLASLt how it computes such a product.
    fn plan(&self, [outputs, inputs, rows]: [usize; 3]) -> Result<Plan> {
        let eight = sys::cudaDataType_t::CUDA_R_8F_E4M3;
        let float = sys::cudaDataType_t::CUDA_R_32F;
        // To cuBLASLt matrices are column by column, so ours are transposed: it computes [outputs, rows].
        let layout = |kind, rows: usize, columns: usize| {
            lt::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).map_err(failed)
        };
        let product = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float).map_err(failed)?;
        let layouts = [layout(eight, inputs, outputs)?, layout(eight, inputs, rows)?, layout(float, outputs, rows)?];
        let mut plan = Plan { product, layouts, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        let transposed = cublasOperation_t::CUBLAS_OP_T;
        let preference = lt::create_matmul_pref().map_err(failed)?;
        // SAFETY: all of it was made above and lives; the attributes are of the sizes that they are given with.
        let found = unsafe {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            let set = lt::set_matmul_desc_attribute(product, attribute, (&raw const transposed).cast(), 4);
            let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = WORKSPACE_BYTES;
            let set = set.and(lt::set_matmul_pref_attribute(preference, attribute, (&raw const bytes).cast(), 8));
            let [left, right, to] = layouts;
            let found =
                set.and_then(|()| lt::get_matmul_algo_heuristic(self.handle, product, left, right, to, to, preference));
            let _ = lt::destroy_matmul_pref(preference);
            found
        };
        plan.algorithm = found.map_err(failed)?.algo;
        Ok(plan)
    }

    /// `out` (`[rows, outputs]`, `f32`) is `x` (`[rows, inputs]`) times a matrix.
    fn multiply(&self, gpu: &Gpu, matrix: &Eights, (x, out): (Place, Place), sizes: [usize; 3]) -> Result<()> {
        // Plans are whole or not there.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(sizes) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(sizes)?),
        };
        let (one, none) = (1f32, 0f32);
        let [left, right, to] = plan.layouts;
        // SAFETY: places have the sizes of their layouts; factors live through the call, the workspace as long as the handle.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                (&raw const none).cast(),
                matrix.bytes.place.address() as *const c_void,
                left,
                x.address() as *const c_void,
                right,
                out.address() as *const c_void,
                to,
                out.address() as *mut c_void,
                to,
                &raw const plan.algorithm,
                self.workspace.place.address() as *mut c_void,
                WORKSPACE_BYTES,
                gpu.raw_stream().cast(),
            )
        }
        .map_err(failed)
    }
}

impl Gpu {
    /// A matrix (`[outputs, inputs]`, `bf16`) in 8-bit floats.
    pub(super) fn eights(&self, values: &[bf16], [outputs, inputs]: [usize; 2]) -> Result<Eights> {
        let rounded = self.upload(values)?;
        let eights = Eights { bytes: self.buffer(values.len())?, scales: self.buffer(outputs)? };
        self.to_eights([eights.bytes.place, eights.scales.place], rounded.place, [outputs, inputs])?;
        Ok(eights)
    }

    /// Rows of `bf16` as rows of 8-bit floats, and their scales.
    fn to_eights(&self, [bytes, scales]: [Place; 2], x: Place, [rows, width]: [usize; 2]) -> Result<()> {
        let numbers = [rows as u32, width as u32].map(Argument::Number);
        let arguments = [&[bytes, scales, x].map(Argument::At)[..], &numbers].concat();
        self.launch("eights", [rows.div_ceil(4), 1], THREADS, &arguments)
    }

    /// As [`Gpu::multiply`], with a matrix of 8-bit floats.
    pub(super) fn multiply_eights(
        &self,
        matrix: &Eights,
        [outputs, inputs]: [usize; 2],
        (x, rows): (Place, usize),
        output: Output,
    ) -> Result<()> {
        let (bench, lt) = (self.bench()?, self.lt()?);
        for (first, rows) in stored::steps(rows) {
            let other = [bench.bytes.place, bench.floats.place];
            self.to_eights(other, x.behind::<bf16>(first * inputs), [rows, inputs])?;
            let product = bench.product(rows * outputs)?;
            lt.multiply(self, matrix, (other[0], product), [outputs, inputs, rows])?;
            let scales = [other[1], matrix.scales.place];
            self.settle_scaled((product, scales), (rows, outputs), output.behind(first * outputs), (0, outputs))?;
        }
        Ok(())
    }
}
