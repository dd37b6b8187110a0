//! What writes text: the engine's own decoder, or a model of candle-transformers on the compatible path. To what stands above
//! them both give the logits of the tokens that a batch wants. Decides how many rows run at a time, and no more.

use rowmill_jobs::Result;

use crate::compatible::Compatible;
use crate::decoder::Decoder;
use crate::decoder::shape::DecoderShape;
use crate::kv::{KvCache, KvForm};
use crate::linear::Linear;
use crate::pack::Pack;
use crate::schedule::Limits;

/// Computes what follows tokens.
#[derive(Debug)]
pub(crate) enum Writer {
    Packed { decoder: Box<Decoder>, shape: Box<DecoderShape> },
    Compatible(Box<Compatible>),
}

/// Which logits are asked for.
#[derive(Debug)]
pub(crate) enum Head {
    /// Those of the whole vocabulary.
    Whole,
    /// Those of these rows of the output matrix.
    Rows(Linear),
    /// Those of these tokens, where there is no matrix to take rows of.
    Tokens(Vec<u32>),
}

impl Writer {
    /// Bounds of a step: tokens enough to keep the matrix products busy, few enough to stay in the processor's caches. A model
    /// with one sequence of its own takes the next row when it is done with one.
    pub(crate) fn limits(&self) -> Limits {
        Limits { tokens: 512, rows: if matches!(self, Self::Packed { .. }) { 128 } else { 1 } }
    }

    /// Bytes of one page of its cache.
    pub(crate) fn page_bytes(&self) -> usize {
        match self {
            Self::Packed { decoder, shape } => {
                KvCache::page_bytes(Decoder::heads(shape), shape.layers.len(), decoder.kv_form())
            }
            Self::Compatible(_) => KvCache::page_bytes(KvCache::ID_HEADS, 1, KvForm::Ids),
        }
    }

    /// An empty cache of at most `pages_max` pages.
    pub(crate) fn cache(&self, pages_max: usize) -> KvCache {
        match self {
            Self::Packed { decoder, shape } => {
                KvCache::of(Decoder::heads(shape), shape.layers.len(), decoder.kv_form(), pages_max)
            }
            Self::Compatible(_) => KvCache::of(KvCache::ID_HEADS, 1, KvForm::Ids, pages_max),
        }
    }

    /// What gives the logits of `tokens` only, in this order.
    pub(crate) fn head(&self, tokens: &[u32]) -> Result<Head> {
        match self {
            Self::Packed { decoder, .. } => decoder.output.select(tokens).map(Head::Rows),
            Self::Compatible(_) => Ok(Head::Tokens(tokens.to_vec())),
        }
    }

    /// How many logits a wanted token has.
    pub(crate) fn outputs(&self, head: &Head) -> usize {
        match (head, self) {
            (Head::Rows(rows), _) => rows.outputs,
            (Head::Tokens(tokens), _) => tokens.len(),
            (Head::Whole, Self::Packed { decoder, .. }) => decoder.output.outputs,
            (Head::Whole, Self::Compatible(model)) => model.vocab(),
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
        }
    }
}
