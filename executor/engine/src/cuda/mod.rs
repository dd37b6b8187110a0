//! Models on a GPU: weights, keys and values and everything between them stay in its memory, in `bf16`, with residual sums in
//! `f32`. Products are cuBLAS's, on candle's device; what stands between them is this folder's kernels. A step is told as
//! [`crate::device`] lays it out. Computes what [`crate::device::carried`] lets in, and decides nothing about
//! rows.

mod decoder;
mod embedder;
mod encoder;
mod gpu;
mod launch;
mod layer;
mod staging;

pub(crate) use self::decoder::DeviceDecoder;
pub(crate) use self::embedder::DeviceEmbedder;
pub(crate) use self::encoder::DeviceEncoder;
pub(crate) use self::gpu::count;
