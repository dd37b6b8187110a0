//! What a folder says beside the architecture of a model that makes vectors: how long texts may be, how token vectors become one, whether a dense
//! layer follows. Read from the files of sentence-transformers; refuses modules that the engine does not compute.

use std::path::PathBuf;

use crate::linear::Precision;
use rowmill_jobs::spec::Pooling;
use rowmill_jobs::{Error, Result};
use serde_json::Value;

use super::pool::{Dense, DenseShape};
use crate::safetensors::SafetensorsFiles;
use crate::source::{Folder, read_json_if_there};
use crate::weights::Weights;

/// The one place of a dense layer's files.
const DENSE: &str = "2_Dense";

/// Settings of a model that makes vectors, or of a classifier.
pub(crate) struct EncoderSettings {
    /// Longest text, in tokens.
    pub(crate) context: usize,
    /// Length of the vectors.
    pub(crate) dimensions: usize,
    pub(crate) lower_case: bool,
    /// `None`: one that the engine does not compute.
    pooling: Option<Pooling>,
    dense: Option<(PathBuf, DenseShape)>,
}

impl EncoderSettings {
    /// Reads them; a folder without the files has the mean of its tokens' vectors.
    pub(crate) fn read(folder: Option<&Folder>, context: usize, hidden: usize) -> Result<Self> {
        let mut settings =
            Self { context, dimensions: hidden, lower_case: false, pooling: Some(Pooling::Mean), dense: None };
        let Some(folder) = folder else { return Ok(settings) };
        settings.read_modules(folder, hidden)?;
        let sentence = read_json_if_there(&folder.root, "sentence_bert_config.json")?.unwrap_or_default();
        let tokens = match sentence.get("max_seq_length").and_then(Value::as_u64) {
            Some(tokens) => Some(tokens),
            // Where it is not said, the tokenizer's own limit is what texts are cut to; some say "no limit" by 10^30.
            None => read_json_if_there(&folder.root, "tokenizer_config.json")?
                .and_then(|config| config.get("model_max_length")?.as_u64()),
        };
        settings.context = tokens.map_or(settings.context, |tokens| settings.context.min(tokens as usize));
        settings.lower_case = sentence.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        if let Some(pooling) = read_json_if_there(&folder.root, "1_Pooling/config.json")? {
            settings.pooling = pooling_of(&pooling);
        }
        Ok(settings)
    }

    fn read_modules(&mut self, folder: &Folder, hidden: usize) -> Result<()> {
        let Some(modules) = read_json_if_there(&folder.root, "modules.json")? else { return Ok(()) };
        let refused = |message: String| {
            Error::invalid(message)
                .with("file", folder.root.join("modules.json").display())
                .hint("the engine computes Transformer, Pooling, one Dense and Normalize; use another embedding model")
        };
        for module in modules.as_array().into_iter().flatten() {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" | "Pooling" | "Normalize" => {}
                "Dense" if text("path") == DENSE => {
                    let config = read_json_if_there(&folder.root, &format!("{DENSE}/config.json"))?
                        .ok_or_else(|| refused(format!("the model has no {DENSE}/config.json")))?;
                    let dense = DenseShape::from_config(&config)?;
                    if dense.inputs != hidden {
                        let inputs = dense.inputs;
                        return Err(refused(format!("{DENSE} takes vectors of {inputs}, the model makes {hidden}")));
                    }
                    self.dimensions = dense.outputs;
                    self.dense = Some((folder.root.join(DENSE).join("model.safetensors"), dense));
                }
                kind => return Err(refused(format!("the model has a sentence-transformers module `{kind}`"))),
            }
        }
        Ok(())
    }

    /// How vectors are pooled: as asked, else as the model says.
    pub(crate) fn pooling(&self, asked: Option<Pooling>) -> Result<Pooling> {
        asked.or(self.pooling).ok_or_else(|| {
            Error::invalid("the model pools in a way the engine does not compute").hint(
                "the engine pools by mean, first or last token or maximum; CREATE MODEL can say which: pooling = 'mean'",
            )
        })
    }

    /// The layer after pooling, if there is one.
    pub(crate) fn dense(&self, dtype: Precision) -> Result<Option<Dense>> {
        let Some((file, shape)) = &self.dense else { return Ok(None) };
        let files = SafetensorsFiles::open(std::slice::from_ref(file))?;
        Dense::load(shape, &Weights::Safetensors { files, adapter: None }, dtype).map(Some)
    }
}

/// The pooling that a sentence-transformers configuration asks for; `None` if it is not one of ours.
fn pooling_of(config: &Value) -> Option<Pooling> {
    let named = |name: &str| match name {
        "cls" | "cls_token" => Some(Pooling::Cls),
        "mean" | "mean_tokens" => Some(Pooling::Mean),
        "max" | "max_tokens" => Some(Pooling::Max),
        "lasttoken" => Some(Pooling::Last),
        _ => None,
    };
    if let Some(mode) = config.get("pooling_mode").and_then(Value::as_str) {
        return named(mode);
    }
    let set = config.as_object().into_iter().flatten().filter(|(_, value)| value.as_bool() == Some(true));
    let modes: Vec<&str> = set.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect();
    match modes[..] {
        [] => Some(Pooling::Mean),
        [mode] => named(mode),
        _ => None,
    }
}
