//! What writes text: the engine's own decoder, on the processor or on a device, or a model of candle-transformers on the
//! compatible path. To what stands above them all give the logits of the tokens that a batch wants, or the tokens that follow.
//! Decides how many rows run at a time, and no more.

use rayon::prelude::*;
use rowmill_jobs::Result;

use crate::compatible::Compatible;
#[cfg(feature = "cuda")]
use crate::cuda::DeviceDecoder;
use crate::decoder::Decoder;
use crate::decoder::shape::DecoderShape;
use crate::guide::Guide;
use crate::kv::{KvCache, KvForm};
use crate::linear::Linear;
use crate::pack::Pack;
use crate::row::Choice;
use crate::schedule::Limits;

/// Computes what follows tokens.
#[derive(Debug)]
pub(crate) enum Writer {
    Packed {
        decoder: Box<Decoder>,
        shape: Box<DecoderShape>,
    },
    Compatible(Box<Compatible>),
    #[cfg(feature = "cuda")]
    Device(Box<DeviceDecoder>),
}

/// Which logits are asked for.
#[derive(Debug)]
pub(crate) enum Head {
    /// Those of the whole vocabulary.
    Whole,
    /// Those of these rows of the output matrix.
    Rows(Linear),
    /// Those of these tokens, where there is no matrix here to take rows of.
    Tokens(Vec<u32>),
}

impl Writer {
    /// Bounds of a step: tokens enough to keep the matrix products busy, few enough to stay in the processor's caches. A model
    /// with one sequence of its own takes the next row when it is done with one. A device reads its weights once a step, so
    /// the more rows write at a time, the less each of them costs.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            Self::Packed { .. } => Limits { tokens: 512, rows: 128 },
            Self::Compatible(_) => Limits { tokens: 512, rows: 1 },
            #[cfg(feature = "cuda")]
            Self::Device(_) => Limits { tokens: 8192, rows: 1024 },
        }
    }

    /// Bytes of one page of its cache.
    pub(crate) fn page_bytes(&self) -> usize {
        match self {
            Self::Packed { decoder, shape } => {
                KvCache::page_bytes(Decoder::heads(shape), shape.layers.len(), decoder.kv_form())
            }
            Self::Compatible(_) => KvCache::page_bytes(KvCache::ID_HEADS, 1, KvForm::Ids),
            #[cfg(feature = "cuda")]
            Self::Device(decoder) => decoder.page_bytes(),
        }
    }

    /// Pages that its cache may have, if the operator allows so many bytes. Those of a device were taken when it was loaded.
    pub(crate) fn pages_max(&self, kv_bytes_max: usize) -> usize {
        match self {
            Self::Packed { .. } | Self::Compatible(_) => (kv_bytes_max / self.page_bytes()).max(1),
            #[cfg(feature = "cuda")]
            Self::Device(decoder) => decoder.pages(),
        }
    }

    /// An empty cache of at most `pages_max` pages.
    pub(crate) fn cache(&self, pages_max: usize) -> KvCache {
        match self {
            Self::Packed { decoder, shape } => {
                KvCache::of(Decoder::heads(shape), shape.layers.len(), decoder.kv_form(), pages_max)
            }
            Self::Compatible(_) => KvCache::of(KvCache::ID_HEADS, 1, KvForm::Ids, pages_max),
            #[cfg(feature = "cuda")]
            Self::Device(decoder) => decoder.cache(pages_max),
        }
    }

    /// What gives the logits of `tokens` only, in this order.
    pub(crate) fn head(&self, tokens: &[u32]) -> Result<Head> {
        match self {
            Self::Packed { decoder, .. } => decoder.output.select(tokens).map(Head::Rows),
            Self::Compatible(_) => Ok(Head::Tokens(tokens.to_vec())),
            #[cfg(feature = "cuda")]
            Self::Device(_) => Ok(Head::Tokens(tokens.to_vec())),
        }
    }

    /// How many logits a wanted token has.
    pub(crate) fn outputs(&self, head: &Head) -> usize {
        match (head, self) {
            (Head::Rows(rows), _) => rows.outputs,
            (Head::Tokens(tokens), _) => tokens.len(),
            (Head::Whole, Self::Packed { decoder, .. }) => decoder.output.outputs,
            (Head::Whole, Self::Compatible(model)) => model.vocab(),
            #[cfg(feature = "cuda")]
            (Head::Whole, Self::Device(decoder)) => decoder.vocab(),
        }
    }

    /// Runs a batch: what it computes of its tokens goes into the cache. Returns the wanted tokens' logits,
    /// `[wanted, outputs]`.
    pub(crate) fn logits(&mut self, pack: &Pack, cache: &mut KvCache, head: &Head) -> Result<Vec<f32>> {
        match self {
            Self::Packed { decoder, .. } => {
                let hidden = decoder.forward(pack, cache)?;
                match head {
                    _ if hidden.is_empty() => Ok(Vec::new()),
                    Head::Rows(rows) => decoder.logits(hidden, rows),
                    Head::Whole => decoder.logits(hidden, &decoder.output),
                    Head::Tokens(tokens) => decoder.logits(hidden, &decoder.output.select(tokens)?),
                }
            }
            Self::Compatible(model) => {
                let logits = model.logits(pack, cache)?;
                let Head::Tokens(tokens) = head else { return Ok(logits) };
                let rows = logits.chunks_exact(model.vocab());
                Ok(rows.flat_map(|row| tokens.iter().map(|token| row[*token as usize])).collect())
            }
            #[cfg(feature = "cuda")]
            Self::Device(decoder) => decoder.logits(pack, cache, head),
        }
    }

    /// The same, up to the token that follows each wanted one: the likeliest, of those that its grammar in `guides` allows
    /// where it has one.
    pub(crate) fn choose(
        &mut self,
        pack: &Pack,
        cache: &mut KvCache,
        guides: &mut [Option<&mut Guide>],
    ) -> Result<Vec<Choice>> {
        #[cfg(feature = "cuda")]
        if let Self::Device(decoder) = self {
            return decoder.choose(pack, cache, guides);
        }
        let logits = self.logits(pack, cache, &Head::Whole)?;
        let rows = logits.par_chunks_exact(self.outputs(&Head::Whole));
        Ok(rows.zip(guides).map(|(logits, guide)| Choice::of(logits, guide.as_deref_mut())).collect())
    }
}
