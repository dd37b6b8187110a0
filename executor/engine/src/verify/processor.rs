//! A reference that this very engine makes, on the processor and in `f32`, for builds that compute elsewhere: texts of lengths
//! that begin, fill and cross pages and tiles. It shows that both places compute the same, not that either is right.

use std::path::Path;

use rowmill_jobs::spec::Dtype;
use rowmill_jobs::{Error, Result};

use super::reference::{Expected, Item, Kind, NumberType, Reference, range_of};
use super::subject::{Output, Subject};
use crate::model::{EngineOptions, Model, Network};
use crate::place::Place;

/// Letters of each text; tokens are as many or fewer.
const LETTERS: [usize; 12] = [1, 2, 7, 15, 16, 31, 32, 33, 64, 100, 129, 300];
/// Ids that follow each text.
const GREEDY: usize = 16;
/// Logits that are compared.
const LISTED: usize = 32;

/// What the model in `source` answers on the processor.
pub(super) fn reference(source: &Path) -> Result<Reference> {
    let options = EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() };
    let model = Model::load_at(source, &options, Place::Processor)?;
    let kind = match model.network {
        Network::Writer(_) => Kind::Decoder,
        Network::Embedder(_) | Network::DecoderEmbedder(_) => Kind::Encoder,
        Network::Classifier(_) => Kind::Classifier,
    };
    let context = model.prompter.context;
    let mut subject = Subject::new(model, kind)?;
    let mut items = Vec::new();
    for letters in LETTERS.into_iter().filter(|letters| letters + GREEDY + 2 <= context) {
        let blank = Expected::Vector(Vec::new());
        let mut item = Item { text: text(letters), ids: None, expected: blank };
        let ids = subject.prepare(&item)?.ids;
        item.expected = match subject.run(&[&ids], GREEDY)?.pop() {
            Some(Output::Next { logits, written }) => next(&logits, written.unwrap_or_default()),
            Some(Output::Vector(vector)) => Expected::Vector(vector),
            Some(Output::Labels(logits)) => Expected::Labels(logits),
            None => return Err(Error::internal("a text was not answered")),
        };
        items.push(item);
    }
    if items.is_empty() {
        return Err(Error::invalid(format!("the model takes {context} tokens: too few for any text to be compared"))
            .hint(format!("allow {} at least", LETTERS[0] + GREEDY + 2)));
    }
    let labels = items.iter().flat_map(|item| match &item.expected {
        Expected::Labels(logits) => logits.iter().map(|(_, logit)| *logit).collect(),
        _ => Vec::new(),
    });
    let range = range_of(labels);
    Ok(Reference { kind, dtype: NumberType::Float32, items, range })
}

/// Letters that look like noise and are the same everywhere.
fn text(letters: usize) -> String {
    let letter = |i: usize| (i as u32 + letters as u32).wrapping_mul(2_654_435_761) >> 24;
    (0..letters).map(|i| char::from(b'a' + (letter(i) % 26) as u8)).collect()
}

fn next(logits: &[f32], greedy_ids: Vec<u32>) -> Expected {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    order.truncate(LISTED);
    let top_logits = order.into_iter().map(|id| (id, logits[id as usize])).collect();
    Expected::Next { top_logits, range: range_of(logits.iter().copied()), greedy_ids }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::{checkpoint, fixtures};
    #[cfg(not(feature = "cuda"))]
    use crate::verify::verify;

    #[test]
    fn a_context_that_no_text_fits_is_an_error_and_no_agreement() {
        let (_, mut fixture) = fixtures("decoder").into_iter().find(|(name, _)| name == "llama").unwrap();
        for (context, items) in [(18, None), (19, Some(1))] {
            fixture["config"]["max_position_embeddings"] = context.into();
            match (reference(checkpoint(&fixture).path()), items) {
                (Ok(made), Some(items)) => assert_eq!(made.items.len(), items),
                (made, _) => assert!(made.unwrap_err().report().contains("allow 19 at least")),
            }
        }
    }

    #[test]
    fn the_engine_agrees_with_the_reference_that_it_makes_itself() {
        for model in ["llama-tiny", "bert-tiny"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model);
            let made = reference(&source).unwrap();
            assert!(made.items.len() > 5, "{model}");
            #[cfg(not(feature = "cuda"))]
            {
                let options = EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() };
                let report = verify(&source, &made, &options).unwrap();
                assert!(report.passed(), "{model}: {:?}", report.items);
            }
        }
    }
}
