//! Host memory between ours and a GPU's: pages that the system never moves, so copies run at the bus's speed, and asking for one
//! waits for nothing that the GPU still computes. Two buffers take turns: one is filled while the other's copy is under way. What is
//! longer goes over in pieces. Decides nothing.
#![expect(unsafe_code, reason = "copies bytes of plain numbers to and from memory that the driver owns")]

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, result, sys,
};

/// Bytes of a buffer: both take the token masks of a full step.
const BYTES: usize = 32 << 20;

/// Both buffers of a GPU.
pub(super) struct Staging {
    buffers: [Pinned; 2],
    /// The one whose turn it is.
    turn: usize,
}

struct Pinned {
    memory: PinnedHostSlice<u8>,
    /// Whether its last copy is done.
    done: CudaEvent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The memory must outlive the copy; a driver that cannot say so has none under way.
        let _ = self.done.synchronize();
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let pinned = || {
            // SAFETY: it is written before it is read, byte for byte. Plain pages: what is read here was not written here.
            let memory = unsafe { context.alloc_pinned_with_flags::<u8>(BYTES, 0) }?;
            Ok(Pinned { memory, done: context.new_event(None)? })
        };
        Ok(Self { buffers: [pinned()?, pinned()?], turn: 0 })
    }

    /// The next buffer, when its last copy is done.
    fn take(&mut self) -> Result<&mut Pinned, DriverError> {
        self.turn = 1 - self.turn;
        let buffer = &mut self.buffers[self.turn];
        buffer.done.synchronize()?;
        Ok(buffer)
    }

    /// Asks for a copy of `values` to an address that has room for them. They may change at once.
    pub(super) fn write<T: DeviceRepr>(
        &mut self,
        stream: &CudaStream,
        to: sys::CUdeviceptr,
        values: &[T],
    ) -> Result<(), DriverError> {
        // SAFETY: numbers without gaps between them are bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        for (piece, at) in bytes.chunks(BYTES).zip((0u64..).step_by(BYTES)) {
            let buffer = self.take()?;
            let memory = &mut buffer.memory.as_mut_slice()?[..piece.len()];
            memory.copy_from_slice(piece);
            // SAFETY: the address has so many bytes; the copy reads what stands here until `done` says otherwise.
            unsafe { result::memcpy_htod_async(to + at, memory, stream.cu_stream()) }?;
            buffer.done.record(stream)?;
        }
        Ok(())
    }

    /// The `len` numbers at an address, when all that was asked for before is done.
    pub(super) fn read<T: DeviceRepr>(
        &mut self,
        stream: &CudaStream,
        from: sys::CUdeviceptr,
        len: usize,
    ) -> Result<Vec<T>, DriverError> {
        let mut values: Vec<T> = Vec::with_capacity(len);
        let bytes = len * size_of::<T>();
        for at in (0..bytes).step_by(BYTES) {
            let buffer = self.take()?;
            let memory = &mut buffer.memory.as_mut_slice()?[..BYTES.min(bytes - at)];
            // SAFETY: the address has so many bytes.
            unsafe { result::memcpy_dtoh_async(memory, from + at as u64, stream.cu_stream()) }?;
            buffer.done.record(stream)?;
            buffer.done.synchronize()?;
            // SAFETY: there is room for all bytes of `len` numbers, and both are apart.
            unsafe {
                let to = values.as_mut_ptr().cast::<u8>().add(at);
                std::ptr::copy_nonoverlapping(memory.as_ptr(), to, memory.len());
            }
        }
        // SAFETY: all of them were written, and whatever bytes they are of, they are numbers.
        unsafe { values.set_len(len) };
        Ok(values)
    }
}
