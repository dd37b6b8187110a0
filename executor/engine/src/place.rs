//! Where a model computes: on the processor, or in the build for CUDA on the machine's GPUs, one engine each. Refuses a model that
//! the place cannot carry, and a machine without a GPU, with what to do about it.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use rowmill_jobs::infer::{Portion, TaskKind};
use rowmill_jobs::spec::{Dtype, Pooling};
use rowmill_jobs::{Error, Result};

#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceDecoder, DeviceEmbedder, DeviceEncoder, Layers, Memory};
use crate::decoder::shape::DecoderShape;
use crate::decoder::{Decoder, Embedder as DecoderEmbedder};
use crate::descriptor::Descriptor;
#[cfg(feature = "cuda")]
use crate::device::{carried, eights};
use crate::encoder::Encoder;
#[cfg(feature = "cuda")]
use crate::encoder::pool::Embedder;
use crate::encoder::pool::{Dense, States};
use crate::engine::CandleEngine;
use crate::linear::Precision;
#[cfg(feature = "cuda")]
use crate::lost::{is_lost, lost_device};
use crate::model::{EngineOptions, Network};
use crate::writer::Writer;

/// Refuses a model that this build computes nowhere. Asks no device, so that a machine without one can plan.
#[cfg(not(feature = "cuda"))]
pub(crate) fn check_carried(_architecture: &str, _descriptor: &Descriptor) -> Result<()> {
    Ok(())
}

/// Refuses a model that this build computes nowhere. Asks no device, so that a machine without one can plan.
#[cfg(feature = "cuda")]
pub(crate) fn check_carried(architecture: &str, descriptor: &Descriptor) -> Result<()> {
    carried::check(architecture, descriptor)
}

/// Refuses what processors do not compute in.
fn check_processor(options: &EngineOptions) -> Result<()> {
    if options.dtype != Dtype::Fp8 {
        return Ok(());
    }
    Err(Error::invalid("`dtype = 'fp8'` is computed on GPUs only")
        .hint("leave `dtype` out, or run the job on an executor of the build for GPUs"))
}

/// A place to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Processor,
    /// The GPU of this number, among those that `CUDA_VISIBLE_DEVICES` shows.
    #[cfg(feature = "cuda")]
    Gpu(usize),
}

impl Place {
    /// All places where this build computes; there is one at least.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn all() -> Result<Vec<Self>> {
        Ok(vec![Self::Processor])
    }

    /// All places where this build computes, but those that are lost to this process; there is one at least.
    #[cfg(feature = "cuda")]
    pub(crate) fn all() -> Result<Vec<Self>> {
        let none = |why: Error| {
            Error::invalid("this build of Rowmill computes on GPUs, and finds none").caused_by(why).hint(
                "see whether `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES does not hide it (a container needs --gpus); on \
                 machines without a GPU, use the CPU build",
            )
        };
        match cuda::count() {
            Ok(0) => Err(none(Error::invalid("the driver shows no GPU"))),
            Ok(count) => {
                let sound: Vec<Self> = (0..count).filter(|gpu| !is_lost(*gpu)).map(Self::Gpu).collect();
                if sound.is_empty() {
                    return Err(Error::temporary("every GPU of this process has failed")
                        .with("device", lost_device().unwrap_or_default())
                        .hint("start the process again; if this comes again, see what the driver logs (`dmesg`)"));
                }
                Ok(sound)
            }
            Err(error) => Err(none(error)),
        }
    }

    /// The first of them.
    pub(crate) fn first() -> Result<Self> {
        Self::all().map(|places| places.first().copied().unwrap_or(Self::Processor))
    }

    /// The number of the device, if it is one.
    pub(crate) fn device(self) -> Option<usize> {
        match self {
            Self::Processor => None,
            #[cfg(feature = "cuda")]
            Self::Gpu(number) => Some(number),
        }
    }

    /// Whether a model is read only to be held for this place, not to be computed from where it was read.
    pub(crate) fn holds(self) -> bool {
        self != Self::Processor
    }

    /// How exactly the small layers behind a network are computed, which stay on the processor.
    pub(crate) fn beside(self, dtype: Precision) -> Precision {
        if self.holds() { Precision::F32 } else { dtype }
    }

    /// Refuses a model or an option that is not for this place.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn check(self, _architecture: &str, _descriptor: &Descriptor, options: &EngineOptions) -> Result<()> {
        check_processor(options)
    }

    /// Refuses a model or an option that is not for this place.
    #[cfg(feature = "cuda")]
    pub(crate) fn check(self, architecture: &str, descriptor: &Descriptor, options: &EngineOptions) -> Result<()> {
        if self == Self::Processor {
            return check_processor(options);
        }
        if options.dtype == Dtype::Fp8 {
            eights::check(architecture, descriptor)?;
        }
        if matches!(options.dtype, Dtype::F32 | Dtype::F16) {
            return Err(Error::invalid("the CUDA build computes in bf16 only")
                .hint("leave `dtype` out, or run the job on an executor of the CPU build"));
        }
        carried::check(architecture, descriptor)
    }

    /// A decoder that was read for this place.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a processor's cache gets its limit later"))]
    pub(crate) fn writer(self, decoder: Box<Decoder>, shape: DecoderShape, options: &EngineOptions) -> Result<Writer> {
        match self {
            Self::Processor => Ok(Writer::Packed { decoder, shape: Box::new(shape) }),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => {
                let memory = Memory { layers: layers(options), kv_bytes_max: options.kv_bytes_max };
                let decoder = DeviceDecoder::new(gpu, &decoder, shape, memory)?;
                Ok(Writer::Device(Box::new(decoder)))
            }
        }
    }

    /// A decoder that was read for this place, to make vectors.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "a processor's matrices were made when they were read")
    )]
    pub(crate) fn embedder(
        self,
        decoder: Decoder,
        shape: &DecoderShape,
        (pooling, dense): (Pooling, Option<Dense>),
        options: &EngineOptions,
    ) -> Result<Network> {
        match self {
            Self::Processor => {
                Ok(Network::DecoderEmbedder(Box::new(DecoderEmbedder::new(decoder, shape, pooling, dense))))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => {
                let decoder = DeviceEmbedder::new(gpu, &decoder, shape.clone(), layers(options))?;
                let encoder = States::DeviceDecoder(Box::new(decoder));
                Ok(Network::Embedder(Arc::new(Embedder { encoder, pooling, dense })))
            }
        }
    }

    /// An encoder that was read for this place.
    pub(crate) fn states(self, encoder: Encoder) -> Result<States> {
        match self {
            Self::Processor => Ok(States::Packed(Box::new(encoder))),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => DeviceEncoder::new(gpu, &encoder).map(|encoder| States::Device(Box::new(encoder))),
        }
    }
}

impl CandleEngine {
    /// How many requests of a kind an engine of this build wants at once. Of a call that writes, the last rows are few, and a GPU
    /// takes as long for them as for hundreds.
    pub fn portion(kind: &TaskKind) -> Portion {
        let on_gpus = cfg!(feature = "cuda");
        if on_gpus && matches!(kind, TaskKind::Complete { .. }) { Portion::Many } else { Portion::Usual }
    }
}

/// How a model's layers are to be kept on a GPU.
#[cfg(feature = "cuda")]
fn layers(options: &EngineOptions) -> Layers {
    if options.dtype == Dtype::Fp8 { Layers::Eights } else { Layers::Stored }
}
