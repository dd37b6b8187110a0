//! What writes text: the engine's own decoder, on the processor or on a device, or a model of candle-transformers on the
//! compatible path. To what stands above them all give the logits of the tokens that a batch wants, or the tokens that follow: a
//! processor at once, a device when it is asked a second time. Decides how many rows run at a time, and no more.

use rayon::prelude::*;
use rowmill_jobs::{Error, Result};

use crate::compatible::Compatible;
#[cfg(feature = "cuda")]
use crate::cuda::{Coming, DeviceDecoder};
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

/// A batch that was begun.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Normed states of its wanted tokens, `[wanted, hidden]`.
    States(Vec<f32>),
    /// Their logits.
    Logits(Vec<f32>),
    /// A device has the states of so many.
    #[cfg(feature = "cuda")]
    OnDevice(usize),
}

/// What was asked of a batch.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It is here.
    Here(Answer),
    /// A device sends it when it has computed it.
    #[cfg(feature = "cuda")]
    Coming(Coming),
}

/// What a batch gave.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The wanted tokens' logits, `[wanted, outputs]`.
    Logits(Vec<f32>),
    /// The token that follows each wanted one.
    Choices(Vec<Choice>),
}

impl Asked {
    /// The choice at a place among the wanted tokens, if it is here.
    pub(crate) fn known(&self, place: usize) -> Option<Choice> {
        match self {
            Self::Here(Answer::Choices(choices)) => choices.get(place).copied(),
            _ => None,
        }
    }
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

    /// Whether a batch is computed while its choices, and so the ids of the next one's tokens, are still to come.
    pub(crate) fn runs_ahead(&self) -> bool {
        match self {
            Self::Packed { .. } | Self::Compatible(_) => false,
            #[cfg(feature = "cuda")]
            Self::Device(_) => true,
        }
    }

    /// Begins a batch: what it computes of its tokens goes into the cache. One question may be asked of it, before the next
    /// begins.
    pub(crate) fn begin(&mut self, pack: &Pack, cache: &mut KvCache) -> Result<Begun> {
        match self {
            Self::Packed { decoder, .. } => decoder.forward(pack, cache).map(Begun::States),
            Self::Compatible(model) => model.logits(pack, cache).map(Begun::Logits),
            #[cfg(feature = "cuda")]
            Self::Device(decoder) => decoder.forward(pack, cache).map(Begun::OnDevice),
        }
    }

    /// Asks for the logits of a batch's wanted tokens.
    pub(crate) fn ask_logits(&mut self, begun: Begun, head: &Head) -> Result<Asked> {
        let logits = match (self, begun) {
            (_, Begun::States(states)) if states.is_empty() => Vec::new(),
            (Self::Packed { decoder, .. }, Begun::States(states)) => match head {
                Head::Rows(rows) => decoder.logits(states, rows)?,
                Head::Whole => decoder.logits(states, &decoder.output)?,
                Head::Tokens(tokens) => decoder.logits(states, &decoder.output.select(tokens)?)?,
            },
            (Self::Compatible(model), Begun::Logits(logits)) => match head {
                Head::Tokens(tokens) => {
                    let rows = logits.chunks_exact(model.vocab());
                    rows.flat_map(|row| tokens.iter().map(|token| row[*token as usize])).collect()
                }
                Head::Rows(_) | Head::Whole => logits,
            },
            #[cfg(feature = "cuda")]
            (Self::Device(decoder), Begun::OnDevice(wanted)) => {
                return decoder.ask_logits(wanted, head).map(Asked::Coming);
            }
            _ => return Err(Error::internal("a batch was begun by another model")),
        };
        Ok(Asked::Here(Answer::Logits(logits)))
    }

    /// Asks for the token that follows each wanted one of a batch: the likeliest, of those that its grammar in `guides` allows
    /// where it has one.
    pub(crate) fn ask_choices(&mut self, begun: Begun, guides: &mut [Option<&mut Guide>]) -> Result<Asked> {
        #[cfg(feature = "cuda")]
        if let (Self::Device(decoder), Begun::OnDevice(wanted)) = (&mut *self, &begun) {
            return decoder.ask_choices(*wanted, guides).map(Asked::Coming);
        }
        let asked = self.ask_logits(begun, &Head::Whole)?;
        let Answer::Logits(logits) = self.answer(asked)? else { return Err(misheard()) };
        let rows = logits.par_chunks_exact(self.outputs(&Head::Whole));
        let choices = rows.zip(guides).map(|(logits, guide)| Choice::of(logits, guide.as_deref_mut())).collect();
        Ok(Asked::Here(Answer::Choices(choices)))
    }

    /// What was asked, when it is here.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unused_self, reason = "a processor's answers are here at once"))]
    pub(crate) fn answer(&mut self, asked: Asked) -> Result<Answer> {
        match asked {
            Asked::Here(answer) => Ok(answer),
            #[cfg(feature = "cuda")]
            Asked::Coming(coming) => match self {
                Self::Device(decoder) => decoder.answer(coming),
                Self::Packed { .. } | Self::Compatible(_) => Err(misheard()),
            },
        }
    }

    /// Runs a batch; the wanted tokens' logits, `[wanted, outputs]`.
    pub(crate) fn logits(&mut self, pack: &Pack, cache: &mut KvCache, head: &Head) -> Result<Vec<f32>> {
        let begun = self.begin(pack, cache)?;
        let asked = self.ask_logits(begun, head)?;
        match self.answer(asked)? {
            Answer::Logits(logits) => Ok(logits),
            Answer::Choices(_) => Err(misheard()),
        }
    }
}

fn misheard() -> Error {
    Error::internal("a model answered what it was not asked")
}
