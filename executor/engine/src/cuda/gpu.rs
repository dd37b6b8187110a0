//! One GPU: its memory as typed buffers, copies to and from it and kernel launches, all on one stream, so that they happen in the
//! order they are asked for. Knows no model.
#![expect(
    unsafe_code,
    reason = "launches and raw pointers are how a GPU is told anything; each use says why it is sound"
)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
    ValidAsZeroBits, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use rowmill_jobs::{Error, Result};

use super::eights::Lt;
use super::matrix::Layers;
use super::memory;
use super::staging::{Reading, Staging};
use super::stored::Bench;
use crate::device::eights;
use crate::device::shelf::BYTES_MAX;
use crate::device::stored::Room;
use crate::lost::device_error;

/// Kernels, compiled by build.rs, with the names of those in them.
const MODULES: [(&[u8], &[&str]); 5] = [
    (include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")), &super::launch::ATTENTION),
    (include_bytes!(concat!(env!("OUT_DIR"), "/layers.fatbin")), &super::launch::LAYERS),
    (include_bytes!(concat!(env!("OUT_DIR"), "/answers.fatbin")), &super::launch::ANSWERS),
    (include_bytes!(concat!(env!("OUT_DIR"), "/stored.fatbin")), &super::stored::STORED),
    (include_bytes!(concat!(env!("OUT_DIR"), "/eights.fatbin")), &super::eights::EIGHTS),
];

/// GPUs that this process may use.
pub(crate) fn count() -> Result<usize> {
    CudaContext::device_count().map(|count| usize::try_from(count).unwrap_or(0)).map_err(failed)
}

/// A GPU.
pub(super) struct Gpu {
    stream: Arc<CudaStream>,
    blas: Blas,
    kernels: HashMap<&'static str, CudaFunction>,
    staging: Mutex<Staging>,
    /// Where matrices are multiplied that stay as GGUF stores them.
    bench: Option<Bench>,
    /// What multiplies 8-bit floats.
    lt: Option<Lt>,
    /// cuBLAS's, as long as there is a GPU.
    _workspace: CudaSlice<u8>,
}

/// Operations that were recorded, to be asked for as one.
pub(super) struct Graph(CudaGraph);

// SAFETY: a graph is the stream's that it was recorded on, which may be used from any thread; whoever has the graph has it alone.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

impl Graph {
    /// Asks for the operations, behind all that was asked for before.
    pub(super) fn play(&self) -> Result<()> {
        self.0.launch().map_err(failed)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.stream.context().ordinal())
    }
}

/// cuBLAS on a stream.
struct Blas {
    stream: Arc<CudaStream>,
    library: ManuallyDrop<Arc<CudaBlas>>,
}

impl Drop for Blas {
    fn drop(&mut self) {
        // Whichever thread lets it go, the driver is to know which GPU is meant, and nothing is to be under way. Where the driver
        // refuses, cuBLAS would as well, and its own drop panics then: it is left to the end of the process.
        if self.stream.context().bind_to_thread().is_ok() && self.stream.synchronize().is_ok() {
            // SAFETY: nobody uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.library) };
        }
    }
}

/// Memory of a GPU for so many `T`; given back when dropped.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    /// Gives the memory back.
    _slice: CudaSlice<T>,
    /// Where it is.
    pub(super) place: Place,
    pub(super) len: usize,
}

/// An address in a GPU's memory; 0 is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    pub(super) const NOWHERE: Self = Self(0);

    /// That of the `count`-th `T` behind it.
    pub(super) fn behind<T>(self, count: usize) -> Self {
        Self(self.0 + (count * size_of::<T>()) as u64)
    }

    /// As a kernel takes it.
    pub(super) fn address(self) -> u64 {
        self.0
    }
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    At(Place),
    Number(u32),
    Wide(u64),
    Real(f32),
}

impl Gpu {
    /// The GPU of this number, with the engine's kernels.
    pub(super) fn open(number: usize) -> Result<Self> {
        // A stream of its own: the default one is another for each thread that calls.
        let device = CudaDevice::new_with_stream(number).map_err(failed)?;
        // SAFETY: everything is done on this one stream, in order; no event has to say that something is done.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        let blas = Blas { stream: Arc::clone(&stream), library: ManuallyDrop::new(device.cublas_handle()) };
        // What it holds of cuBLAS is not to be let go last.
        drop(device);
        memory::keep_freed(stream.context())?;
        let staging = Mutex::new(Staging::new(stream.context()));
        let workspace = memory::workspace(&stream, &blas.library)?;
        let mut kernels = HashMap::new();
        for (code, names) in MODULES {
            let module = stream.context().load_module(Ptx::from_binary(code.to_vec())).map_err(|error| {
                failed(error).hint(
                    "the kernels of this build are for another kind of GPU, or for a newer driver: build with \
                     CUDA_COMPUTE_CAP as infra/cuda/README.md says",
                )
            })?;
            for name in names {
                kernels.insert(*name, module.load_function(name).map_err(failed)?);
            }
        }
        Ok(Self { stream, blas, kernels, staging, bench: None, lt: None, _workspace: workspace })
    }

    /// Makes the calling thread one that may ask; whatever begins a computation calls it.
    pub(super) fn enter(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(failed)
    }

    /// Records what `ask` asks for, without doing it. What it names (buffers, sizes) is named again whenever it is played.
    pub(super) fn record(&self, ask: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Other threads may go on with GPUs of their own.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed)?;
        let asked = ask();
        // Whatever came of it, the stream must not go on recording.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed);
        asked?;
        graph?.map(Graph).ok_or_else(|| Error::internal("the GPU recorded nothing"))
    }

    /// Free memory, in bytes, with what was freed and is kept for the next buffer.
    pub(super) fn free_bytes(&self) -> Result<usize> {
        self.stream.synchronize().map_err(failed)?;
        memory::free_bytes(self.stream.context())
    }

    /// Takes the room that products of stored matrices or of 8-bit floats need, if there are any.
    pub(super) fn make_room(&mut self, room: Room, layers: Layers) -> Result<()> {
        self.bench = if room.is_needed() { Some(Bench::new(self, room)?) } else { None };
        if layers == Layers::Eights {
            let capability = [
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            ];
            eights::check_capability([self.attribute(capability[0])?, self.attribute(capability[1])?])?;
            self.lt = Some(Lt::new(self)?);
        }
        Ok(())
    }

    pub(super) fn bench(&self) -> Result<&Bench> {
        self.bench.as_ref().ok_or_else(|| Error::internal("no room was made for a product"))
    }

    pub(super) fn lt(&self) -> Result<&Lt> {
        self.lt.as_ref().ok_or_else(|| Error::internal("nothing multiplies 8-bit floats"))
    }

    /// cuBLAS, for C.
    pub(super) fn blas_handle(&self) -> blas::cublasHandle_t {
        *self.blas.library.handle()
    }

    /// What the driver says of the GPU.
    pub(super) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32> {
        self.stream.context().attribute(attribute).map_err(failed)
    }

    /// The stream, for C.
    pub(super) fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    /// Memory for so many numbers, whatever is in it.
    pub(super) fn buffer<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>> {
        // SAFETY: kernels write what they read later; where they read what no kernel wrote (slots of pages without a token), they
        // put zeros in its place.
        let slice = unsafe { self.stream.alloc::<T>(len.max(1)) }.map_err(failed)?;
        Ok(self.owned(slice, len))
    }

    /// Memory for so many numbers, all 0.
    pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Buffer<T>> {
        let slice = self.stream.alloc_zeros::<T>(len.max(1)).map_err(failed)?;
        Ok(self.owned(slice, len))
    }

    /// A copy of `values`.
    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(values.len())?;
        self.write(&mut buffer, values)?;
        Ok(buffer)
    }

    /// Copies `values` to the beginning of a buffer, which they must fit.
    pub(super) fn write<T: DeviceRepr>(&self, buffer: &mut Buffer<T>, values: &[T]) -> Result<()> {
        if values.len() > buffer.len {
            return Err(Error::internal("a copy to the GPU does not fit its buffer"));
        }
        self.staging().write(&self.stream, buffer.place.0, values).map_err(failed)
    }

    /// The first `len` numbers of a buffer, when everything asked for before is done.
    pub(super) fn read<T: DeviceRepr>(&self, buffer: &Buffer<T>, len: usize) -> Result<Vec<T>> {
        let (len, piece) = (len.min(buffer.len), BYTES_MAX / size_of::<T>());
        let mut values = Vec::with_capacity(len);
        for first in (0..len).step_by(piece) {
            let reading = self.begin_read(buffer.place.behind::<T>(first), piece.min(len - first))?;
            self.end_read(reading, &mut values)?;
        }
        Ok(values)
    }

    /// Asks for `len` numbers at a place, [`BYTES_MAX`] bytes of them at most, as they are when everything asked for before is done,
    /// and waits for nothing.
    pub(super) fn begin_read<T: DeviceRepr>(&self, place: Place, len: usize) -> Result<Reading<T>> {
        self.staging().begin(&self.stream, place.0, len).map_err(failed)
    }

    /// Adds numbers that were asked for to `values`, when they are here. Keeps nobody else waiting meanwhile.
    pub(super) fn end_read<T: DeviceRepr>(&self, reading: Reading<T>, values: &mut Vec<T>) -> Result<()> {
        reading.append_to(values).map_err(failed)?;
        self.staging().end(reading);
        Ok(())
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        // What a panic may have left in a buffer is written over.
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owned<T>(&self, slice: CudaSlice<T>, len: usize) -> Buffer<T> {
        let place = Place(slice.device_ptr(&self.stream).0);
        Buffer { _slice: slice, place, len }
    }

    /// Starts a kernel on `grid` blocks of `threads` threads; nothing to do where there are none.
    pub(super) fn launch(&self, kernel: &str, grid: [usize; 2], threads: usize, arguments: &[Argument]) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut builder = self.stream.launch_builder(self.kernel(kernel)?);
        for argument in arguments {
            match argument {
                Argument::At(Place(address)) => builder.arg(address),
                Argument::Number(number) => builder.arg(number),
                Argument::Wide(number) => builder.arg(number),
                Argument::Real(number) => builder.arg(number),
            };
        }
        // SAFETY: launch.rs passes what the kernel of this name takes, in its order, and buffers as large as the grid reads.
        unsafe { builder.launch(shape_of(grid, threads)) }.map(drop).map_err(failed)
    }

    /// The same with one structure in place of single arguments.
    pub(super) fn launch_with<T: DeviceRepr>(
        &self,
        kernel: &str,
        grid: [usize; 2],
        threads: usize,
        arguments: &T,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut builder = self.stream.launch_builder(self.kernel(kernel)?);
        builder.arg(arguments);
        // SAFETY: as above; the structure is laid out as the kernel's.
        unsafe { builder.launch(shape_of(grid, threads)) }.map(drop).map_err(failed)
    }

    fn kernel(&self, name: &str) -> Result<&CudaFunction> {
        self.kernels.get(name).ok_or_else(|| Error::internal(format!("there is no kernel {name}")))
    }
}

fn shape_of([x, y]: [usize; 2], threads: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 }
}

/// An error of the driver's or of cuBLAS; its words say when memory ran out.
pub(super) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    device_error("the GPU refused an operation", error)
}
