//! Encoders of candle-transformers, for vectors: T5's. Each row runs alone, whole, in a thread of its own, so nothing of it
//! is padded or masked. Keeps nothing between rows.

use candle_core::{Device, Tensor};
use candle_transformers::models::t5;
use rayon::prelude::*;
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use super::families::epsilon;
use super::tensors::{Manner, Reading, with_tensors};
use crate::config::{layers, optional_size, size, text, unsupported_value};
use crate::linear::internal;
use crate::weights::Weights;

/// Architectures of encoders on the compatible path, by the names weights give them.
pub(crate) const ENCODERS: [&str; 1] = ["T5EncoderModel"];

/// An encoder of the compatible path, as its configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompatibleEncoderShape {
    config: t5::Config,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    /// Longest text: positions are relative and have no end, the training did.
    pub(crate) context: usize,
}

/// Reads the `config.json` of one of [`ENCODERS`].
pub(crate) fn encoder_from_config(config: &Value) -> Result<CompatibleEncoderShape> {
    let layers = layers(config, "num_layers")?;
    let buckets = optional_size(config, "relative_attention_num_buckets").unwrap_or(32);
    let distance = optional_size(config, "relative_attention_max_distance").unwrap_or(128);
    // Of each half of the buckets, half are of one distance each; the others share the logarithm of the rest.
    if buckets < 4 || buckets > distance * 2 || distance > 1 << 20 {
        return Err(unsupported_value("relative_attention_num_buckets", &buckets.to_string()));
    }
    let (vocab, hidden) = (size(config, "vocab_size")?, size(config, "d_model")?);
    let feed = text(config, "feed_forward_proj").unwrap_or("relu");
    let read = json!({
        "vocab_size": vocab,
        "d_model": hidden,
        "d_kv": size(config, "d_kv")?,
        "d_ff": size(config, "d_ff")?,
        "num_layers": layers,
        "num_heads": size(config, "num_heads")?,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": distance,
        "layer_norm_epsilon": epsilon(config, "layer_norm_epsilon", 1e-6)?,
        "feed_forward_proj": feed,
        "is_encoder_decoder": false,
        "use_cache": false,
        // Asked for and not used.
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    });
    let read = serde_json::from_value(read).map_err(|e| unsupported_value("feed_forward_proj", feed).caused_by(e))?;
    let context = optional_size(config, "n_positions").unwrap_or(512);
    Ok(CompatibleEncoderShape { config: read, vocab, hidden, context })
}

/// An encoder of candle-transformers.
#[derive(Debug)]
pub(crate) struct CompatibleEncoder {
    model: t5::T5EncoderModel,
    pub(crate) hidden: usize,
}

impl CompatibleEncoder {
    /// Checks that all tensors are there in the shapes that the architecture asks for; reads none.
    pub(crate) fn check(shape: &CompatibleEncoderShape, weights: &Weights) -> Result<()> {
        Self::model(shape, weights, Reading::Checks).map(drop)
    }

    /// Reads the weights, and tries them with one token.
    pub(crate) fn load(shape: &CompatibleEncoderShape, weights: &Weights) -> Result<Self> {
        let this = Self { model: Self::model(shape, weights, Reading::Reads)?, hidden: shape.hidden };
        this.row(&[0]).map_err(|error| {
            Error::invalid("candle-transformers cannot compute the model")
                .caused_by(error)
                .hint("use another model of this family")
        })?;
        Ok(this)
    }

    fn model(shape: &CompatibleEncoderShape, weights: &Weights, reading: Reading) -> Result<t5::T5EncoderModel> {
        let manner = Manner { instead: &[], embedding: 1.0, reading };
        with_tensors(weights, manner, |tensors, _| t5::T5EncoderModel::load(tensors, &shape.config))
    }

    /// The last hidden states of rows of token ids, `[tokens, hidden]` each.
    pub(crate) fn states(&self, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        rows.par_iter().map(|row| self.row(row)).collect()
    }

    fn row(&self, row: &[u32]) -> Result<Vec<f32>> {
        // The clone shares the weights; the library wants a model of one's own.
        let mut model = self.model.clone();
        let ids = Tensor::new(row, &Device::Cpu).and_then(|ids| ids.unsqueeze(0));
        let states = ids.and_then(|ids| model.forward(&ids)).and_then(|states| states.flatten_all()?.to_vec1());
        states.map_err(internal)
    }
}
