//! candle-kernels' entry points for products of GGUF's blocks, by type. They are C functions that start kernels and say nothing:
//! [`launched`] asks the CUDA runtime, which they are linked with, whether they were started. Decides nothing.
#![expect(unsafe_code, reason = "asks the CUDA runtime for a number")]

use std::ffi::{c_int, c_void};

use candle_core::quantized::GgmlDType;
use candle_kernels::ffi;
use rowmill_jobs::{Error, Result};

use crate::device::stored::Scales;
use crate::lost::device_error;

/// Many rows: room for shared tiles, matrix, other side, product, columns and rows of the matrix, rows of the other side, blocks from
/// row to row of the matrix, numbers from row to row of the product, and what the GPU is.
pub(super) type Tiles = unsafe extern "C" fn(
    *mut c_void,
    *const c_void,
    *const c_void,
    *mut c_void,
    i64,
    i64,
    i64,
    i64,
    i64,
    i32,
    i32,
    i64,
    i32,
    *mut c_void,
);
/// Few rows: matrix, other side, product, columns and rows of the matrix, blocks from row to row of the other side, numbers from row
/// to row of the product, rows of the other side.
pub(super) type Vectors =
    unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void, i32, i32, i32, i32, i32, *mut c_void);
/// Floats to blocks: floats, no renaming, blocks, no type; columns, numbers from row to row, none from matrix to matrix, columns filled
/// up, rows, one matrix.
pub(super) type Quantise = unsafe extern "C" fn(
    *const c_void,
    *const i32,
    *mut c_void,
    i32,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    i64,
    *mut c_void,
);

// Of the CUDA runtime, which candle's kernels are linked with.
unsafe extern "C" {
    fn cudaGetLastError() -> c_int;
}

/// A type's kernels.
pub(super) struct Kernels {
    pub(super) tiles: Tiles,
    /// Their product in `f32`, and in `bf16`.
    pub(super) floats: Vectors,
    pub(super) rounded: Vectors,
}

pub(super) fn kernels(dtype: GgmlDType) -> Result<Kernels> {
    macro_rules! kernels {
        ($tiles:ident, $floats:ident, $rounded:ident) => {
            Kernels { tiles: ffi::$tiles, floats: ffi::$floats, rounded: ffi::$rounded }
        };
    }
    Ok(match dtype {
        GgmlDType::Q4_0 => {
            kernels!(launch_mmq_gguf_q4_0, launch_mmvq_gguf_q4_0_f32_plain, launch_mmvq_gguf_q4_0_bf16_plain)
        }
        GgmlDType::Q4_1 => {
            kernels!(launch_mmq_gguf_q4_1, launch_mmvq_gguf_q4_1_f32_plain, launch_mmvq_gguf_q4_1_bf16_plain)
        }
        GgmlDType::Q5_0 => {
            kernels!(launch_mmq_gguf_q5_0, launch_mmvq_gguf_q5_0_f32_plain, launch_mmvq_gguf_q5_0_bf16_plain)
        }
        GgmlDType::Q5_1 => {
            kernels!(launch_mmq_gguf_q5_1, launch_mmvq_gguf_q5_1_f32_plain, launch_mmvq_gguf_q5_1_bf16_plain)
        }
        GgmlDType::Q8_0 => {
            kernels!(launch_mmq_gguf_q8_0, launch_mmvq_gguf_q8_0_f32_plain, launch_mmvq_gguf_q8_0_bf16_plain)
        }
        GgmlDType::Q2K => {
            kernels!(launch_mmq_gguf_q2_k, launch_mmvq_gguf_q2_k_f32_plain, launch_mmvq_gguf_q2_k_bf16_plain)
        }
        GgmlDType::Q3K => {
            kernels!(launch_mmq_gguf_q3_k, launch_mmvq_gguf_q3_k_f32_plain, launch_mmvq_gguf_q3_k_bf16_plain)
        }
        GgmlDType::Q4K => {
            kernels!(launch_mmq_gguf_q4_k, launch_mmvq_gguf_q4_k_f32_plain, launch_mmvq_gguf_q4_k_bf16_plain)
        }
        GgmlDType::Q5K => {
            kernels!(launch_mmq_gguf_q5_k, launch_mmvq_gguf_q5_k_f32_plain, launch_mmvq_gguf_q5_k_bf16_plain)
        }
        GgmlDType::Q6K => {
            kernels!(launch_mmq_gguf_q6_k, launch_mmvq_gguf_q6_k_f32_plain, launch_mmvq_gguf_q6_k_bf16_plain)
        }
        other => return Err(Error::internal(format!("the GPU has no kernels for {other:?}"))),
    })
}

/// What brings floats to 8 bits for the kernels for many rows.
pub(super) fn quantise(scales: Scales) -> Quantise {
    match scales {
        Scales::Plain => ffi::launch_mmq_quantize_q8_1_D4,
        Scales::Sums => ffi::launch_mmq_quantize_q8_1_DS4,
        Scales::FineSums => ffi::launch_mmq_quantize_q8_1_D2S6,
    }
}

/// Whether what this thread started was started.
pub(super) fn launched() -> Result<()> {
    // cuda.h, cudaErrorMemoryAllocation.
    const MEMORY: c_int = 2;
    // SAFETY: reads and clears a number of this thread's.
    match unsafe { cudaGetLastError() } {
        0 => Ok(()),
        MEMORY => Err(refused("out of memory".to_owned())),
        error => Err(refused(format!("CUDA error {error}"))),
    }
}

fn refused(said: String) -> Error {
    device_error("the GPU refused a product of blocks", said)
}
