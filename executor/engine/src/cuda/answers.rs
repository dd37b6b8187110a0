//! What leaves a decoder on a GPU: logits of the whole vocabulary or of some tokens, the token that follows each row, and vectors of
//! whole rows. Logits and tokens are asked for without waiting, so that the next batch can be asked for before they are here.
//! Decides nothing about rows.

use half::bf16;
use rayon::prelude::*;
use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};

use super::decoder::{DeviceDecoder, LOGIT_ROWS};
use super::launch::{NONE_ALLOWED, NOT_FINITE, States};
use super::matrix::{Matrix, Output, Values};
use super::staging::Reading;
use crate::device::masks::Masks;
use crate::device::step::spans;
use crate::guide::Guide;
use crate::kv::KvCache;
use crate::pack::Pack;
use crate::row::Choice;
use crate::writer::{Answer, Head};

/// Logits of more bytes are read at once.
const PART_BYTES: usize = 1 << 20;

/// What was asked of a batch and is on its way from the GPU.
pub(crate) enum Coming {
    /// Logits in their order.
    Logits(Vec<Part>),
    /// Ids, or what stands for none.
    Choices(Reading<u32>),
}

/// Some rows' logits.
pub(crate) enum Part {
    /// Too many to be on their way beside others.
    Here(Vec<f32>),
    Coming(Reading<f32>),
}

impl std::fmt::Debug for Coming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coming")
    }
}

impl DeviceDecoder {
    /// Asks for the logits of the `wanted` tokens of the batch that was begun last.
    pub(crate) fn ask_logits(&mut self, wanted: usize, head: &Head) -> Result<Coming> {
        if let Head::Tokens(tokens) = head {
            self.select(tokens)?;
        }
        let matrix = match (head, &self.subset) {
            (Head::Whole, _) => self.output_matrix(),
            (Head::Tokens(_), Some((_, matrix))) => matrix,
            (Head::Tokens(_) | Head::Rows(_), _) => return Err(Error::internal("the GPU has no such rows of logits")),
        };
        let mut parts = Vec::with_capacity(wanted.div_ceil(LOGIT_ROWS));
        for first in (0..wanted).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(wanted - first);
            self.multiply_output(matrix, first, rows)?;
            let numbers = rows * matrix.outputs;
            parts.push(if numbers * size_of::<f32>() <= PART_BYTES {
                Part::Coming(self.gpu.begin_read(self.logits.place, numbers)?)
            } else {
                Part::Here(self.gpu.read(&self.logits, numbers)?)
            });
        }
        Ok(Coming::Logits(parts))
    }

    /// Asks for what follows each of the `wanted` tokens of the batch that was begun last. Masks are made while the GPU computes
    /// it.
    pub(crate) fn ask_choices(&mut self, wanted: usize, guides: &mut [Option<&mut Guide>]) -> Result<Coming> {
        let allowed: Vec<Option<Vec<u32>>> =
            guides.par_iter_mut().map(|guide| guide.as_mut().map(|guide| guide.allowed())).collect();
        let masks = Masks::of(allowed.iter().map(Option::as_deref), self.vocab());
        if masks.places.len() != wanted {
            return Err(Error::internal("a step wants other rows than its grammars are of"));
        }
        let (places, bits) = (self.gpu.upload(&masks.places)?, self.gpu.upload(&masks.bits)?);
        if self.chosen.len < wanted {
            self.chosen = self.gpu.buffer(wanted.next_power_of_two())?;
        }
        for first in (0..wanted).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(wanted - first);
            // A soft bound of logits changes no order, so it is left out.
            self.multiply_output(self.output_matrix(), first, rows)?;
            let logits = States { at: self.logits.place, tokens: rows, hidden: self.vocab() };
            let masks_of = [places.place.behind::<u32>(first), bits.place];
            self.gpu.choose(self.chosen.place.behind::<u32>(first), logits, masks_of, masks.words)?;
        }
        self.gpu.begin_read(self.chosen.place, wanted).map(Coming::Choices)
    }

    /// What was asked, when it is here.
    pub(crate) fn answer(&self, coming: Coming) -> Result<Answer> {
        match coming {
            Coming::Logits(parts) => self.logits_of(parts).map(Answer::Logits),
            Coming::Choices(reading) => {
                let mut ids = Vec::new();
                self.gpu.end_read(reading, &mut ids)?;
                let choice = |id| match id {
                    NONE_ALLOWED => Choice::NoneAllowed,
                    NOT_FINITE => Choice::NotFinite,
                    id => Choice::Token(id),
                };
                Ok(Answer::Choices(ids.into_iter().map(choice).collect()))
            }
        }
    }

    fn logits_of(&self, parts: Vec<Part>) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        for part in parts {
            match part {
                Part::Here(numbers) => logits.extend(numbers),
                Part::Coming(reading) => self.gpu.end_read(reading, &mut logits)?,
            }
        }
        if let Some(cap) = self.shape.logits_softcap {
            logits.par_iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(logits)
    }

    /// Runs whole rows; one vector of each, of so many wanted tokens of each, `[rows, hidden]`.
    pub(super) fn pooled(
        &mut self,
        pack: &Pack,
        cache: &mut KvCache,
        wanted: &[usize],
        pooling: Pooling,
    ) -> Result<Vec<f32>> {
        let tokens = self.forward(pack, cache)?;
        let spans = self.gpu.upload(&spans(wanted))?;
        let numbers = wanted.len() * self.shape.hidden;
        let out = self.gpu.buffer::<f32>(numbers)?;
        let states = States { at: self.work()?.x.place, tokens, hidden: self.shape.hidden };
        self.gpu.pool(out.place, states, (spans.place, wanted.len()), pooling)?;
        self.gpu.read(&out, numbers)
    }

    fn output_matrix(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Logits of some wanted tokens, whose normed states are where [`DeviceDecoder::forward`] left them.
    fn multiply_output(&self, matrix: &Matrix, first: usize, rows: usize) -> Result<()> {
        let x = self.work()?.x.place.behind::<bf16>(first * self.shape.hidden);
        self.gpu.multiply(matrix, x, rows, Output::Floats(self.logits.place, self.shape.logits_multiplier))
    }

    /// Takes these rows of the output matrix for the ones that are asked for, in this order.
    fn select(&mut self, tokens: &[u32]) -> Result<()> {
        if self.subset.as_ref().is_some_and(|(known, _)| known == tokens) {
            return Ok(());
        }
        self.gpu.enter()?;
        let hidden = self.shape.hidden;
        let rows = self.gpu.upload(tokens)?;
        let values = match &self.output_matrix().values {
            Values::Rounded(from) => {
                let values = self.gpu.buffer::<bf16>(tokens.len() * hidden)?;
                self.gpu.gather(values.place, from.place, rows.place, [tokens.len(), hidden * size_of::<bf16>()])?;
                Values::Rounded(values)
            }
            Values::Blocks(from) => Values::Blocks(self.gpu.gather_blocks(from, hidden, &rows)?),
            Values::Eights(_) => return Err(Error::internal("the output matrix is not one of a layer")),
        };
        let matrix = Matrix { values, bias: None, outputs: tokens.len(), inputs: hidden };
        self.subset = Some((tokens.to_vec(), matrix));
        Ok(())
    }
}
