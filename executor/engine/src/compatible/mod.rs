//! The compatible path: architectures that the engine's own decoder lacks, computed by candle-transformers, one row at a time.
//! Slower, and the same to everything above it: what the KV cache keeps of a row is its token ids, and a model, which holds
//! one sequence in a cache of its own, is fed whatever of them it was not fed yet. Holds the keys and values of one row and of
//! the beginnings it shares; they grow with the row and are not counted against the KV cache's limit. Encoders of the library,
//! which hold nothing, are in [`encoder`].

mod encoder;
mod families;
mod models;
pub(crate) mod shape;
mod tensors;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Tensor};
use rowmill_jobs::{Error, Result};

pub(crate) use self::encoder::{CompatibleEncoder, CompatibleEncoderShape, ENCODERS, encoder_from_config};
use self::models::{Running, build};
pub(crate) use self::shape::{ARCHITECTURES, from_config};
use self::shape::{CompatibleShape, Pieces};
use self::tensors::{Reading, with_tensors};
use crate::kv::KvCache;
use crate::linear::internal;
use crate::pack::Pack;
use crate::weights::Weights;

/// Places of a sequence that are kept to return to. More are not needed: rows come in the order of what they share.
const KEPT_MAX: usize = 4;
/// Tokens that a model is fed at once: its scores of attention take memory for each of them with every token before. Tests
/// have no rows so long, and less here.
const PIECE: usize = if cfg!(test) { 40 } else { 256 };
/// The same where it takes several only at the beginning, and one after the other from then on.
const PIECE_AT_FIRST: usize = if cfg!(test) { 64 } else { 2048 };
/// Feeding so many tokens at once takes about as long as feeding one alone.
const AS_ONE: usize = 16;

/// A model of candle-transformers.
pub(crate) struct Compatible {
    vocab: usize,
    pieces: Pieces,
    /// Most tokens of a sequence.
    positions: usize,
    /// The model before any token.
    empty: Box<dyn Running>,
    /// The tokens of the sequence it was fed last.
    fed: Vec<u32>,
    /// The model after the first tokens of that sequence, ascending.
    kept: Vec<Place>,
    /// The model after all of them. None of these has seen another token than `fed`'s: they may write into the same memory.
    last: Option<Box<dyn Running>>,
    #[cfg(test)]
    tokens_fed: usize,
}

struct Place {
    tokens: usize,
    model: Box<dyn Running>,
}

impl std::fmt::Debug for Compatible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compatible").field("vocab", &self.vocab).field("fed", &self.fed.len()).finish_non_exhaustive()
    }
}

impl Compatible {
    /// Checks that all tensors are there in the shapes that the architecture asks for; reads none.
    pub(crate) fn check(shape: &CompatibleShape, weights: &Weights) -> Result<()> {
        Self::model(shape, weights, Reading::Checks, 1).map(drop)
    }

    /// Reads the weights, and tries them with one token: what the library refuses only when it computes is known here.
    pub(crate) fn load(shape: &CompatibleShape, weights: &Weights) -> Result<Self> {
        let empty = Self::model(shape, weights, Reading::Reads, shape.positions())?;
        let mut this = Self {
            vocab: shape.vocab,
            pieces: shape.pieces(),
            positions: shape.positions(),
            empty,
            fed: Vec::new(),
            kept: Vec::new(),
            last: None,
            #[cfg(test)]
            tokens_fed: 0,
        };
        this.next(&[0]).map_err(|error| {
            Error::invalid("candle-transformers cannot compute the model")
                .caused_by(error)
                .hint("use another model of this family")
        })?;
        Ok(this)
    }

    fn model(
        shape: &CompatibleShape,
        weights: &Weights,
        reading: Reading,
        positions: usize,
    ) -> Result<Box<dyn Running>> {
        let config = shape.config(positions);
        with_tensors(weights, shape.manner(reading), |tensors, given| build(shape.family, &config, tensors, given))
    }

    /// Size of the vocabulary.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Runs a batch: writes its ids into the cache and returns the logits of the wanted tokens, `[wanted, vocab]`.
    pub(crate) fn logits(&mut self, pack: &Pack, cache: &mut KvCache) -> Result<Vec<f32>> {
        cache.write_ids(&pack.ids, &pack.writes);
        let rows: Vec<Vec<u32>> = pack
            .starts
            .windows(2)
            .zip(&pack.before)
            .zip(&pack.tables)
            .map(|((span, before), table)| cache.ids(table, before + span[1] - span[0]))
            .collect();
        let mut logits = Vec::with_capacity(pack.wanted.len() * self.vocab);
        for (index, (row, end)) in rows.iter().zip(&pack.starts[1..]).enumerate() {
            let wanted = pack.wanted.binary_search(&(end - 1)).is_ok();
            // A row's beginning, or what later rows of this batch go on from.
            let returns =
                !wanted || rows[index + 1..].iter().any(|later| later.len() > row.len() && later.starts_with(row));
            if wanted {
                logits.extend(self.next(row)?);
            } else if self.pieces != Pieces::AtFirst {
                self.feed(row)?;
            }
            if returns && self.fed == *row {
                self.keep();
            }
        }
        Ok(logits)
    }

    /// The logits after a sequence, `[vocab]`.
    fn next(&mut self, row: &[u32]) -> Result<Vec<f32>> {
        if row.len() > self.positions {
            return Err(Error::internal(format!("a row of {} tokens; the model takes {}", row.len(), self.positions)));
        }
        // Logits come of feeding: the last token is fed even where it was before.
        self.go_back(row, row.len().saturating_sub(1));
        let logits = self.feed(row)?.ok_or_else(|| Error::internal("logits of a row without tokens"))?;
        let logits = logits.flatten_all().and_then(|x| x.to_dtype(DType::F32)).and_then(|x| x.to_vec1::<f32>());
        let logits = logits.map_err(internal)?;
        if logits.len() != self.vocab {
            return Err(Error::internal(format!("the model gave {} logits for {} tokens", logits.len(), self.vocab)));
        }
        Ok(logits)
    }

    /// Goes back to the longest place that is a beginning of `row`, of at most `tokens` tokens.
    fn go_back(&mut self, row: &[u32], tokens: usize) {
        let common = self.fed.iter().zip(row).take_while(|(a, b)| a == b).count().min(tokens);
        if self.last.is_some() && common == self.fed.len() {
            return;
        }
        self.last = None;
        while self.kept.last().is_some_and(|place| place.tokens > common) {
            self.kept.pop();
        }
        self.fed.truncate(self.kept.last().map_or(0, |place| place.tokens));
    }

    /// Feeds what of `row` was not fed yet. Returns the logits after its last token, if any was fed.
    fn feed(&mut self, row: &[u32]) -> Result<Option<Tensor>> {
        self.go_back(row, row.len());
        let left = row.len() - self.fed.len();
        if left == 0 {
            return Ok(None);
        }
        // From the beginning, and so at once, may be faster than one by one.
        let again =
            self.pieces == Pieces::AtFirst && left > 1 && left * AS_ONE > row.len() && self.fed.len() < PIECE_AT_FIRST;
        let (mut model, from) = match (self.last.take(), self.kept.last()) {
            _ if again => (copied(self.empty.as_ref())?, 0),
            (Some(model), _) => (model, self.fed.len()),
            (None, Some(place)) => (copied(place.model.as_ref())?, place.tokens),
            (None, None) => (copied(self.empty.as_ref())?, 0),
        };
        // Should feeding fail, this is what is left.
        self.fed.truncate(self.kept.last().map_or(0, |place| place.tokens));
        let (mut before, mut logits) = (from, None);
        while before < row.len() {
            let most = match self.pieces {
                Pieces::Any => PIECE,
                Pieces::AtFirst if before == 0 => PIECE_AT_FIRST,
                Pieces::AtFirst | Pieces::One => 1,
            };
            let piece = &row[before..row.len().min(before + most)];
            let ids = Tensor::new(piece, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).map_err(internal)?;
            logits = Some(model.feed(&ids, before).map_err(internal)?);
            before += piece.len();
        }
        #[cfg(test)]
        {
            self.tokens_fed += row.len() - from;
        }
        self.fed = row.to_vec();
        self.last = Some(model);
        Ok(logits)
    }

    /// Keeps the place after all that was fed, if the model can be copied there.
    fn keep(&mut self) {
        let tokens = self.fed.len();
        if self.kept.last().is_some_and(|place| place.tokens == tokens) {
            return;
        }
        if let Some(model) = self.last.as_ref().and_then(|model| model.at_same_place()) {
            self.kept.truncate(KEPT_MAX - 1);
            self.kept.push(Place { tokens, model });
        }
    }
}

fn copied(model: &dyn Running) -> Result<Box<dyn Running>> {
    model.at_same_place().ok_or_else(|| Error::internal("a model of candle-transformers cannot be copied"))
}
