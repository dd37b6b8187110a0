//! The model that is put to the proof: runs token ids through the code that a job's rows go through. Chooses no batches (it
//! runs what it is given at once) and compares nothing but token ids.

use std::sync::Arc;

use rowmill_jobs::infer::{Piece, Request, TaskKind, TextFormat};
use rowmill_jobs::{Error, Result};

use super::reference::{Item, Kind};
use crate::answer::Answerer;
use crate::decoder::Embedder as DecoderEmbedder;
use crate::encoder::head::Classifier;
use crate::encoder::pool::Embedder;
use crate::model::{KV_BYTES_DEFAULT, Model, Network};
use crate::pack::Pack;
use crate::prompt::Prompter;
use crate::row::End;
use crate::writer::Head;

/// A model with what it computes.
pub(super) struct Subject {
    prompter: Arc<Prompter>,
    network: Computes,
}

enum Computes {
    Decoder(Box<Answerer>),
    Embedder(Arc<Embedder>),
    DecoderEmbedder(Box<DecoderEmbedder>),
    Classifier(Arc<Classifier>),
}

/// An item's token ids.
pub(super) struct Prepared {
    pub(super) ids: Vec<u32>,
    /// Whether the model can run them.
    pub(super) runs: bool,
    pub(super) faults: Vec<String>,
}

/// Ids that were written, or why there are none.
pub(super) type Written = std::result::Result<Vec<u32>, String>;

/// What one run of one row gave.
#[derive(Debug)]
pub(super) enum Output {
    /// The logits after the last id, and the ids that follow.
    Next { logits: Vec<f32>, written: Written },
    /// Empty where it is not finite.
    Vector(Vec<f32>),
    /// Logits by label.
    Labels(Vec<(String, f32)>),
}

impl Subject {
    /// Takes a loaded model, which must be of this kind.
    pub(super) fn new(mut model: Model, kind: Kind) -> Result<Self> {
        // References do not end at special tokens, so that their greedy ids are all of one length.
        model.prompter.ends.clear();
        let prompter = Arc::new(model.prompter);
        let network = match (model.network, kind) {
            (Network::Writer(writer), Kind::Decoder) => {
                Computes::Decoder(Box::new(Answerer::new(writer, Arc::clone(&prompter), KV_BYTES_DEFAULT)))
            }
            (Network::Embedder(embedder), Kind::Encoder) => Computes::Embedder(embedder),
            (Network::DecoderEmbedder(embedder), Kind::Encoder) => Computes::DecoderEmbedder(embedder),
            (Network::Classifier(classifier), Kind::Classifier) => Computes::Classifier(classifier),
            (network, kind) => {
                let does = match network {
                    Network::Writer(_) => "writes text",
                    Network::Classifier(_) => "chooses labels",
                    Network::Embedder(_) | Network::DecoderEmbedder(_) => "makes vectors",
                };
                return Err(Error::invalid(format!("the reference is a {}'s; the model {does}", kind.as_str()))
                    .hint("export the reference from the same model"));
            }
        };
        Ok(Self { prompter, network })
    }

    /// The ids that an item's text is run as: the file's, else the text's as it stands.
    pub(super) fn prepare(&self, item: &Item) -> Result<Prepared> {
        let plain = self.prompter.tokens.encode(&item.text)?;
        let mut faults = Vec::new();
        let ids = match &item.ids {
            Some(ids) => {
                let wrapped = self.wrapped(&item.text, &plain)?;
                if *ids != plain && *ids != wrapped {
                    faults.push(difference(ids, &plain, &wrapped));
                }
                ids.clone()
            }
            None => plain,
        };
        let more = item.expected.greedy_ids().len();
        let refused = if ids.is_empty() {
            Some("the text has no tokens".to_owned())
        } else if ids.len() + more > self.prompter.context {
            let (has, takes) = (ids.len() + more, self.prompter.context);
            Some(format!("the text has {has} tokens with its answer; the model takes {takes}"))
        } else {
            let beyond = ids.iter().find(|id| **id as usize >= self.prompter.vocab);
            beyond.map(|id| format!("the file has the token {id}; the model has {} of them", self.prompter.vocab))
        };
        let runs = refused.is_none();
        faults.extend(refused);
        Ok(Prepared { ids, runs, faults })
    }

    /// A text's ids with special tokens around them: for an encoder, as a job embeds it.
    fn wrapped(&self, text: &str, plain: &[u32]) -> Result<Vec<u32>> {
        let tokens = &self.prompter.tokens;
        if matches!(self.network, Computes::Decoder(_)) {
            return Ok([&tokens.prefix, plain, &tokens.suffix].concat());
        }
        let request = Request { values: [text.to_owned()].into() };
        Ok(self.prompter.encoder_prompt(&[Piece::Value(0)], &request)?.unwrap_or_default())
    }

    /// Runs rows in one batch. Of a decoder, `greedy` tokens follow each row.
    pub(super) fn run(&mut self, rows: &[&[u32]], greedy: usize) -> Result<Vec<Output>> {
        match &mut self.network {
            Computes::Decoder(answerer) => {
                let logits = last_logits(answerer, rows)?;
                let written = write(answerer, rows, greedy)?;
                Ok(logits.into_iter().zip(written).map(|(logits, written)| Output::Next { logits, written }).collect())
            }
            Computes::Embedder(embedder) => embedder.embed(rows).map(vectors),
            Computes::DecoderEmbedder(embedder) => embedder.embed(rows).map(vectors),
            Computes::Classifier(classifier) => {
                let logits = classifier.logits(rows)?;
                let labels = classifier.labels();
                let named = |logits: &[f32]| labels.iter().cloned().zip(logits.iter().copied()).collect();
                Ok(logits.chunks_exact(labels.len()).map(|logits| Output::Labels(named(logits))).collect())
            }
        }
    }

    /// The logits after one row of a decoder, and what is written after it.
    pub(super) fn step(&mut self, row: &[u32], greedy: usize) -> Result<(Vec<f32>, Written)> {
        match self.run(&[row], greedy)?.pop() {
            Some(Output::Next { logits, written }) => Ok((logits, written)),
            _ => Err(Error::internal("a model that writes no text was asked for the next token")),
        }
    }
}

fn vectors(vectors: Vec<Option<Vec<f32>>>) -> Vec<Output> {
    vectors.into_iter().map(|vector| Output::Vector(vector.unwrap_or_default())).collect()
}

/// The logits after each row's last id, `[vocab]` each; the rows are one batch.
fn last_logits(answerer: &mut Answerer, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    let full =
        || Error::invalid("the reference's texts do not fit into the KV cache together").hint("export fewer texts");
    let mut tables = Vec::with_capacity(rows.len());
    let mut pack = Pack::new();
    for row in rows {
        let mut table = Vec::new();
        answerer.cache.grow(&mut table, row.len()).ok_or_else(full)?;
        pack.push(row, 0, &table);
        pack.want_last();
        tables.push(table);
    }
    pack.finish();
    let logits = answerer.writer.logits(&pack, &mut answerer.cache, &Head::Whole);
    for table in &mut tables {
        answerer.cache.release(table);
    }
    Ok(logits?.chunks_exact(answerer.writer.outputs(&Head::Whole)).map(<[f32]>::to_vec).collect())
}

/// What follows each row by argmax, through the code that writes a job's texts.
fn write(answerer: &mut Answerer, rows: &[&[u32]], tokens: usize) -> Result<Vec<Written>> {
    if tokens == 0 {
        return Ok(rows.iter().map(|_| Ok(Vec::new())).collect());
    }
    let tokens_max = u32::try_from(tokens).unwrap_or(u32::MAX);
    let kind = TaskKind::Complete { tokens_max, format: TextFormat::Free };
    let answers = answerer.run(&kind, rows, &|| false)?;
    let ends = answers.map(|answers| answers.ends).unwrap_or_default();
    Ok(ends
        .into_iter()
        .map(|end| match end {
            End::Written(ids) | End::Cut(ids) => Ok(ids),
            End::Failed(error) => Err(error.message),
            End::Scored(_) => Err("labels were scored in place of writing".to_owned()),
        })
        .collect())
}

/// Where the file's ids leave ours, in words.
fn difference(ids: &[u32], plain: &[u32], wrapped: &[u32]) -> String {
    let agree = |own: &[u32]| own.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let (at, own) =
        [plain, wrapped].map(|own| (agree(own), own)).into_iter().max_by_key(|(at, _)| *at).unwrap_or_default();
    let named = |id: Option<&u32>| id.map_or_else(|| "none".to_owned(), ToString::to_string);
    format!("the tokenizers differ: token {} is {}, should be {}", at + 1, named(own.get(at)), named(ids.get(at)))
}
