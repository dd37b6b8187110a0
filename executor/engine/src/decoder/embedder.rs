//! Makes vectors with a decoder: the last hidden states of whole rows, pooled and brought to length 1. Keeps no keys: one
//! layer's are enough at a time, because every row is whole in its batch.

use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};

use super::Decoder;
use super::shape::DecoderShape;
use crate::attention::{BLOCK, Heads};
use crate::encoder::pool::{Dense, finish, pool};
use crate::kv::KvCache;
use crate::pack::Pack;

/// Whole rows (none of them empty) in one batch, and how many tokens are wanted of each: of rows that are pooled by one token
/// only that one. The cache has as many pages as all rows need.
pub(crate) fn pack_texts(rows: &[&[u32]], pooling: Pooling, cache: &mut KvCache) -> Result<(Pack, Vec<usize>)> {
    let (mut pack, mut wanted) = (Pack::new(), Vec::with_capacity(rows.len()));
    for row in rows {
        let mut table = Vec::new();
        if cache.grow(&mut table, row.len()).is_none() {
            return Err(Error::internal("the pages of a batch were counted wrongly"));
        }
        let (first, before) = (pack.tokens(), pack.wanted.len());
        pack.push(row, 0, &table);
        match pooling {
            Pooling::Cls => pack.wanted.push(first),
            Pooling::Last => pack.wanted.push(first + row.len() - 1),
            Pooling::Mean | Pooling::Max => pack.wanted.extend(first..first + row.len()),
        }
        wanted.push(pack.wanted.len() - before);
    }
    pack.finish();
    Ok((pack, wanted))
}

/// A decoder that makes vectors.
#[derive(Debug)]
pub(crate) struct Embedder {
    decoder: Decoder,
    heads: Heads,
    hidden: usize,
    pooling: Pooling,
    /// A layer after pooling.
    dense: Option<Dense>,
}

impl Embedder {
    pub(crate) fn new(decoder: Decoder, shape: &DecoderShape, pooling: Pooling, dense: Option<Dense>) -> Self {
        Self { decoder, heads: Decoder::heads(shape), hidden: shape.hidden, pooling, dense }
    }

    /// Vectors of rows of token ids (none of them empty), each of length 1; `None` where a vector is not
    /// finite.
    pub(crate) fn embed(&self, rows: &[&[u32]]) -> Result<Vec<Option<Vec<f32>>>> {
        let pages = rows.iter().map(|row| row.len().div_ceil(BLOCK)).sum();
        let mut cache = KvCache::of_one_layer(self.heads, self.decoder.kv_form(), pages);
        let (pack, wanted) = pack_texts(rows, self.pooling, &mut cache)?;
        let states = self.decoder.forward(&pack, &mut cache)?;
        let mut first = 0;
        let mut pooled = Vec::with_capacity(rows.len() * self.hidden);
        for tokens in wanted {
            let states = &states[first * self.hidden..(first + tokens) * self.hidden];
            pooled.extend(pool(states, self.hidden, self.pooling));
            first += tokens;
        }
        finish(pooled, self.hidden, self.dense.as_ref())
    }
}
