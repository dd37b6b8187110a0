//! For tests: one row through a decoder, nothing beside it, and how far its logits are from a reference's.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

use crate::attention::BLOCK;
use crate::decoder::Decoder;
use crate::decoder::shape::DecoderShape;
use crate::kv::KvCache;
use crate::pack::Pack;

/// The hidden state of the last of `ids`.
pub(crate) fn last_hidden(decoder: &Decoder, shape: &DecoderShape, ids: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::new(Decoder::heads(shape), shape.layers.len(), ids.len().div_ceil(BLOCK));
    let mut table = Vec::new();
    cache.grow(&mut table, ids.len()).unwrap();
    let mut pack = Pack::new();
    pack.push(ids, 0, &table);
    pack.want_last();
    pack.finish();
    decoder.forward(&pack, &mut cache).unwrap()
}

/// All logits after `ids`.
pub(crate) fn last_logits(decoder: &Decoder, shape: &DecoderShape, ids: &[u32]) -> Vec<f32> {
    decoder.logits(last_hidden(decoder, shape, ids), &decoder.output).unwrap()
}

/// The ids of a JSON list.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Highest logit minus lowest.
pub(crate) fn range(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::MIN, f32::max) - logits.iter().copied().fold(f32::MAX, f32::min)
}

/// How far logits are from the reference's `[[id, logit], …]`, as parts of `range`.
pub(crate) fn errors(logits: &[f32], expected: &Value, range: f32) -> Vec<f32> {
    let error = |pair: &Value| (logits[pair[0].as_u64().unwrap() as usize] - pair[1].as_f64().unwrap() as f32).abs();
    expected.as_array().unwrap().iter().map(|pair| error(pair) / range).collect()
}
