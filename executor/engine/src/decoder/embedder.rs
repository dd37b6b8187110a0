//! Makes vectors with a decoder: the last hidden states of whole rows, pooled and brought to length 1. Keeps no keys: one
//! layer's are enough at a time, because every row is whole in its batch.

use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};

use super::Decoder;
use super::shape::DecoderShape;
use crate::attention::{BLOCK, Heads};
use crate::kernels::{add, normalise};
use crate::kv::KvCache;
use crate::pack::Pack;

/// A decoder that makes vectors.
#[derive(Debug)]
pub(crate) struct Embedder {
    decoder: Decoder,
    heads: Heads,
    hidden: usize,
    pooling: Pooling,
}

impl Embedder {
    pub(crate) fn new(decoder: Decoder, shape: &DecoderShape, pooling: Pooling) -> Self {
        Self { decoder, heads: Decoder::heads(shape), hidden: shape.hidden, pooling }
    }

    /// Vectors of rows of token ids (none of them empty), each `[hidden]` and of length 1; `None` where a vector is not
    /// finite.
    pub(crate) fn embed(&self, rows: &[&[u32]]) -> Result<Vec<Option<Vec<f32>>>> {
        let pages = rows.iter().map(|row| row.len().div_ceil(BLOCK)).sum();
        let mut cache = KvCache::of_one_layer(self.heads, pages);
        let mut pack = Pack::new();
        for row in rows {
            let mut table = Vec::new();
            // There are as many pages as all rows need.
            if cache.grow(&mut table, row.len()).is_none() {
                return Err(Error::internal("the pages of a batch were counted wrongly"));
            }
            let first = pack.tokens();
            pack.push(row, 0, &table, false);
            match self.pooling {
                Pooling::Cls => pack.wanted.push(first),
                Pooling::Last => pack.wanted.push(first + row.len() - 1),
                Pooling::Mean => pack.wanted.extend(first..first + row.len()),
            }
        }
        pack.finish();
        let states = self.decoder.forward(&pack, &mut cache)?;
        let mut states = states.chunks_exact(self.hidden);
        let mut vectors = Vec::with_capacity(rows.len());
        for row in rows {
            let tokens = if self.pooling == Pooling::Mean { row.len() } else { 1 };
            let mut vector = vec![0f32; self.hidden];
            // The mean's division by the number of tokens is lost in the normalisation that follows.
            states.by_ref().take(tokens).for_each(|state| add(&mut vector, state));
            vectors.push(normalise(&mut vector).then_some(vector));
        }
        Ok(vectors)
    }
}
