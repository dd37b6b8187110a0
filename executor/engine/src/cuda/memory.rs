//! What a GPU's memory is asked besides for buffers: to keep what is freed, how much is free, and a place for cuBLAS to work in. Knows
//! no buffer.
#![expect(unsafe_code, reason = "the driver and cuBLAS are told in C; each call says why it is sound")]

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use rowmill_jobs::Result;

use super::gpu::failed;
use crate::device::memory::free_with_pool;

/// What cuBLAS may write while it multiplies: as much as it takes for itself on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Gives cuBLAS memory to work with: what it takes for itself when it finds out that it needs some cannot be recorded.
pub(super) fn workspace(stream: &Arc<CudaStream>, products: &CudaBlas) -> Result<CudaSlice<u8>> {
    // SAFETY: cuBLAS writes there before it reads.
    let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }.map_err(failed)?;
    let place = workspace.device_ptr(stream).0 as *mut c_void;
    // SAFETY: the memory lives as long as the handle is used, and on the same stream.
    unsafe { blas::cublasSetWorkspace_v2(*products.handle(), place, WORKSPACE_BYTES).result() }.map_err(failed)?;
    Ok(workspace)
}

/// Has the driver keep memory that is freed for the next buffer: by default it gives it back whenever somebody waits.
pub(super) fn keep_freed(context: &CudaContext) -> Result<()> {
    let mut threshold = u64::MAX;
    let release = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the context's; the number is read during the call only.
    unsafe { sys::cuMemPoolSetAttribute(pool(context)?, release, (&raw mut threshold).cast::<c_void>()).result() }
        .map_err(failed)
}

/// Free memory, in bytes, with what was freed and is kept for the next buffer. Nothing may be asked for meanwhile.
pub(super) fn free_bytes(context: &CudaContext) -> Result<usize> {
    let (free, _) = context.mem_get_info().map_err(failed)?;
    let reserved = pool_bytes(context, sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = pool_bytes(context, sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok(free_with_pool(free, reserved, used))
}

/// A number of bytes that the driver knows of its pool.
fn pool_bytes(context: &CudaContext, attribute: sys::CUmemPool_attribute_enum) -> Result<usize> {
    let mut bytes = 0u64;
    // SAFETY: the pool is the context's; the number is written during the call only.
    unsafe { sys::cuMemPoolGetAttribute(pool(context)?, attribute, (&raw mut bytes).cast::<c_void>()).result() }
        .map_err(failed)?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Where the driver takes memory from.
fn pool(context: &CudaContext) -> Result<sys::CUmemoryPool> {
    let mut pool: sys::CUmemoryPool = std::ptr::null_mut();
    // SAFETY: the device is the context's, which lives; the place is written during the call only.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result() }.map_err(failed)?;
    Ok(pool)
}
