//! Models on a GPU: weights, keys and values and everything between them stay in its memory, in `bf16`, with residual sums in
//! `f32`; matrices of GGUF files stay as they are stored. Products are cuBLAS's, on candle's device, or for such matrices those of
//! candle's own kernels; what stands between them is this folder's kernels. A step is told as
//! [`crate::device`] lays it out. Computes what [`crate::device::carried`] lets in, and decides nothing about
//! rows.

mod answers;
mod decoder;
mod eights;
mod embedder;
mod encoder;
mod entries;
mod gpu;
mod launch;
mod layer;
mod matrix;
mod memory;
mod staging;
mod stored;

pub(crate) use self::answers::Coming;
pub(crate) use self::decoder::{DeviceDecoder, Memory};
pub(crate) use self::embedder::DeviceEmbedder;
pub(crate) use self::encoder::DeviceEncoder;
pub(crate) use self::gpu::count;
pub(crate) use self::matrix::Layers;
