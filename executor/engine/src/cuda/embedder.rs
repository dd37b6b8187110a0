//! Vectors of texts by a decoder on a GPU: whole rows, which are never continued, so a few pages serve one batch after the other.

use std::sync::{Mutex, PoisonError};

use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};

use super::decoder::{DeviceDecoder, Memory};
use super::matrix::Layers;
use crate::attention::BLOCK;
use crate::decoder::shape::DecoderShape;
use crate::decoder::{Decoder, pack_texts};
use crate::device::memory::rows_that_fit;
use crate::encoder::neighbours;
use crate::kv::{KvCache, KvForm};

/// Tokens that go through the layers together.
const TOKENS: usize = 8192;

/// A decoder on a GPU that makes vectors.
#[derive(Debug)]
pub(crate) struct DeviceEmbedder {
    /// Whoever computes has it alone.
    decoder: Mutex<DeviceDecoder>,
    hidden: usize,
}

impl DeviceEmbedder {
    /// Copies a decoder, which was read to be held for a device, to the GPU of this number.
    pub(crate) fn new(number: usize, host: &Decoder, shape: DecoderShape, layers: Layers) -> Result<Self> {
        // Pages for a batch of whole rows, of which each begins one, or for the longest row.
        let pages = (2 * TOKENS / BLOCK).max(shape.context.div_ceil(BLOCK));
        let bytes = pages * KvCache::page_bytes(shape.heads, shape.layers.len(), KvForm::Device);
        let (hidden, memory) = (shape.hidden, Memory { layers, kv_bytes_max: Some(bytes) });
        Ok(Self { decoder: Mutex::new(DeviceDecoder::new(number, host, shape, memory)?), hidden })
    }

    /// Length of a vector.
    pub(crate) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Tokens that are computed before anybody looks whether it is to stop.
    pub(crate) fn tokens_max(&self) -> usize {
        TOKENS
    }

    /// One vector of each text of token ids (none of them empty), `[rows, hidden]`.
    pub(crate) fn pooled(&self, rows: &[&[u32]], pooling: Pooling) -> Result<Vec<f32>> {
        // What a panic may have left there is written over.
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vectors = Vec::with_capacity(rows.len() * self.hidden);
        let pages = decoder.pages();
        if let Some(row) = rows.iter().find(|row| row.len().div_ceil(BLOCK) > pages) {
            // In the words that make it the row's error.
            return Err(Error::internal(format!(
                "the GPU is out of memory: {} tokens do not fit its pages",
                row.len()
            )));
        }
        // Short rows leave most of their pages empty, so there may be more of them than pages.
        for some in neighbours(rows, TOKENS).flat_map(|some| rows_that_fit(some, pages)) {
            let mut cache = decoder.cache(pages);
            let (pack, wanted) = pack_texts(some, pooling, &mut cache)?;
            vectors.extend(decoder.pooled(&pack, &mut cache, &wanted, pooling)?);
        }
        Ok(vectors)
    }
}
