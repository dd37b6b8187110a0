//! Host memory between ours and a GPU's: pages that the system never moves, so copies run at the bus's speed, and asking for one
//! waits for nothing that the GPU still computes. What is longer than a buffer goes over in pieces. Which buffer serves which copy is
//! [`crate::device::shelf`]'s decision.
#![expect(unsafe_code, reason = "copies bytes of plain numbers to and from memory that the driver owns")]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, result, sys,
};

use crate::device::shelf::{BYTES_MAX, Lent, Shelf};

/// The buffers of a GPU.
pub(super) struct Staging {
    context: Arc<CudaContext>,
    shelf: Shelf<Pinned>,
}

pub(super) struct Pinned {
    memory: ManuallyDrop<PinnedHostSlice<u8>>,
    bytes: usize,
    /// Whether its last copy is done.
    done: CudaEvent,
}

/// Numbers on their way from a GPU.
pub(crate) struct Reading<T> {
    pinned: Pinned,
    len: usize,
    numbers: PhantomData<T>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The first time it may tell of another call's failure, without having waited.
        let waited = self.done.synchronize().or_else(|_| self.done.synchronize());
        if waited.is_ok() {
            // SAFETY: its last copy is done, and nobody uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
        // The memory must outlive the copy: that of a GPU of which nothing is known any more is the process's until its end.
    }
}

impl Lent for Pinned {
    type Error = DriverError;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_done(&self) -> bool {
        self.done.is_complete()
    }

    fn wait(&self) -> Result<(), DriverError> {
        self.done.synchronize()
    }
}

impl Pinned {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        // SAFETY: it is written before it is read, byte for byte. Plain pages: what is read here was not written here.
        let memory = unsafe { context.alloc_pinned_with_flags::<u8>(bytes, 0) }?;
        Ok(Self { memory: ManuallyDrop::new(memory), bytes, done: context.new_event(None)? })
    }

    /// With a copy that was asked of this stream just now.
    fn with_copy(self, stream: &CudaStream) -> Result<Self, DriverError> {
        match self.done.record(stream) {
            Ok(()) => Ok(self),
            Err(error) => {
                // `done` knows of the copies before only.
                if stream.synchronize().is_err() {
                    std::mem::forget(self);
                }
                Err(error)
            }
        }
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Self {
        Self { context: Arc::clone(context), shelf: Shelf::new() }
    }

    fn take(&mut self, bytes: usize) -> Result<Pinned, DriverError> {
        self.shelf.take(bytes, |bytes| Pinned::new(&self.context, bytes))
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
        for (piece, at) in bytes.chunks(BYTES_MAX).zip((0u64..).step_by(BYTES_MAX)) {
            let mut buffer = self.take(piece.len())?;
            let memory = &mut buffer.memory.as_mut_slice()?[..piece.len()];
            memory.copy_from_slice(piece);
            // SAFETY: the address has so many bytes; the copy reads what stands here until `done` says otherwise.
            unsafe { result::memcpy_htod_async(to + at, memory, stream.cu_stream()) }?;
            self.shelf.put_read(buffer.with_copy(stream)?);
        }
        Ok(())
    }

    /// Asks for the `len` numbers at an address, as they are when all that was asked for before is done. They must fit a buffer.
    pub(super) fn begin<T: DeviceRepr>(
        &mut self,
        stream: &CudaStream,
        from: sys::CUdeviceptr,
        len: usize,
    ) -> Result<Reading<T>, DriverError> {
        let bytes = len * size_of::<T>();
        let mut pinned = self.take(bytes)?;
        let memory = &mut pinned.memory.as_mut_slice()?[..bytes];
        // SAFETY: the address has so many bytes; they are read only when `done` says that they are here.
        unsafe { result::memcpy_dtoh_async(memory, from, stream.cu_stream()) }?;
        Ok(Reading { pinned: pinned.with_copy(stream)?, len, numbers: PhantomData })
    }

    /// Takes back the buffer of numbers that are here.
    pub(super) fn end<T>(&mut self, reading: Reading<T>) {
        self.shelf.put(reading.pinned);
    }
}

impl<T: DeviceRepr> Reading<T> {
    /// Adds the numbers to `values`, when they are here.
    pub(super) fn append_to(&self, values: &mut Vec<T>) -> Result<(), DriverError> {
        self.pinned.wait()?;
        let memory = &self.pinned.memory.as_slice()?[..self.len * size_of::<T>()];
        values.reserve(self.len);
        // SAFETY: there is room for all bytes of `len` more numbers, both places are apart, and whatever bytes they are of, they are
        // numbers.
        unsafe {
            let to = values.as_mut_ptr().add(values.len()).cast::<u8>();
            std::ptr::copy_nonoverlapping(memory.as_ptr(), to, memory.len());
            values.set_len(values.len() + self.len);
        }
        Ok(())
    }
}
