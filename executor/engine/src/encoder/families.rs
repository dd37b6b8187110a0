//! Reads the `config.json` of each family of encoders into the one shape that the network is driven by, in the spellings of
//! transformers 4 and 5. Refuses variants that the network does not compute.

use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use super::distance::BUCKETS;
use super::names::{self, Names};
use super::shape::{
    Activation, Disentangled, EncoderShape, Gate, HeadShape, HeadState, LayerShape, NormPlace, Positions, Relation,
};
use crate::config::{flag, layers, number, optional_size, size, text, unsupported_value};
use crate::rope::{self, Rope, RopeScaling};

/// Architectures the encoder computes, by the names weights give them. Masked-language-model checkpoints hold an encoder
/// under a prefix; those for sequence classification hold a classifier beside it.
pub(crate) const ARCHITECTURES: [&str; 37] = [
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "bert",
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "roberta",
    "XLMRobertaModel",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForSequenceClassification",
    "xlm-roberta",
    "CamembertModel",
    "CamembertForMaskedLM",
    "CamembertForSequenceClassification",
    "camembert",
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "distilbert",
    "MPNetModel",
    "MPNetForMaskedLM",
    "MPNetForSequenceClassification",
    "mpnet",
    "ModernBertModel",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "modernbert",
    "NomicBertModel",
    "NomicBertForSequenceClassification",
    "nomic_bert",
    "JinaBertModel",
    "JinaBertForMaskedLM",
    "DebertaV2Model",
    "DebertaV2ForMaskedLM",
    "DebertaV2ForSequenceClassification",
    "deberta-v2",
];

/// Reads the `config.json` of one of [`ARCHITECTURES`].
pub(crate) fn from_config(architecture: &str, config: &Value) -> Result<EncoderShape> {
    let family = architecture.split("Model").next().and_then(|name| name.split("For").next()).unwrap_or_default();
    let mut shape = match family {
        "Roberta" | "XLMRoberta" | "Camembert" | "roberta" | "xlm-roberta" | "camembert" => roberta(config)?,
        "DistilBert" | "distilbert" => distilbert(config)?,
        "MPNet" | "mpnet" => mpnet(config)?,
        "ModernBert" | "modernbert" => modernbert(config)?,
        "NomicBert" | "nomic_bert" => nomic(config)?,
        "JinaBert" => jina(config)?,
        "DebertaV2" | "deberta-v2" => deberta(config)?,
        _ => bert(config)?,
    };
    if architecture.ends_with("ForSequenceClassification") {
        shape.head = Some(head(family, config)?);
    }
    shape.checked()
}

/// What families have in common, under the keys that most of them use.
fn bert_like(spellings: &'static [&'static Names], config: &Value) -> Result<EncoderShape> {
    Ok(EncoderShape {
        spellings,
        hidden: size(config, "hidden_size")?,
        intermediate: size(config, "intermediate_size")?,
        heads: size(config, "num_attention_heads")?,
        vocab: size(config, "vocab_size")?,
        context: size(config, "max_position_embeddings")?,
        positions: None,
        types: config.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(2) as usize,
        norm_epsilon: number(config, "layer_norm_eps").unwrap_or(1e-12) as f32,
        norm_place: NormPlace::After,
        activation: activation(config, "hidden_act")?,
        gate: Gate::None,
        relation: Relation::None,
        layers: plain_layers(layers(config, "num_hidden_layers")?),
        head: None,
    })
}

fn plain_layers(count: usize) -> Vec<LayerShape> {
    vec![LayerShape { rope: None, window: None }; count]
}

fn activation(config: &Value, key: &str) -> Result<Activation> {
    Ok(match text(config, key).unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        other => return Err(unsupported_value(key, other)),
    })
}

fn absolute_positions_only(config: &Value) -> Result<()> {
    match text(config, "position_embedding_type").unwrap_or("absolute") {
        "absolute" => Ok(()),
        other => Err(unsupported_value("position_embedding_type", other)),
    }
}

/// BERT (Devlin et al., 2019).
fn bert(config: &Value) -> Result<EncoderShape> {
    absolute_positions_only(config)?;
    let shape = bert_like(&[&names::BERT], config)?;
    Ok(EncoderShape { positions: Some(Positions { rows: shape.context, first: 0 }), ..shape })
}

/// RoBERTa (Liu et al., 2019) and those built like it: BERT whose positions count from behind the padding token's index.
fn roberta(config: &Value) -> Result<EncoderShape> {
    absolute_positions_only(config)?;
    let first = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1) as usize;
    let first = first.saturating_add(1);
    let shape = behind(bert_like(&[&names::ROBERTA], config)?, first)?;
    Ok(EncoderShape { norm_epsilon: number(config, "layer_norm_eps").unwrap_or(1e-5) as f32, ..shape })
}

/// Learned positions of which the first rows stay unused.
fn behind(shape: EncoderShape, first: usize) -> Result<EncoderShape> {
    let rows = shape.context;
    let context = rows.checked_sub(first).filter(|context| *context > 0).ok_or_else(|| {
        Error::invalid(format!("config.json: {rows} positions, of which the first {first} are not used"))
    })?;
    Ok(EncoderShape { positions: Some(Positions { rows, first }), context, ..shape })
}

/// DistilBERT (Sanh et al., 2019): BERT without token types, under keys of its own.
fn distilbert(config: &Value) -> Result<EncoderShape> {
    let context = size(config, "max_position_embeddings")?;
    Ok(EncoderShape {
        spellings: &[&names::DISTILBERT],
        hidden: size(config, "dim")?,
        intermediate: size(config, "hidden_dim")?,
        heads: size(config, "n_heads")?,
        vocab: size(config, "vocab_size")?,
        context,
        positions: Some(Positions { rows: context, first: 0 }),
        types: 0,
        norm_epsilon: 1e-12,
        norm_place: NormPlace::After,
        activation: activation(config, "activation")?,
        gate: Gate::None,
        relation: Relation::None,
        layers: plain_layers(layers(config, "n_layers")?),
        head: None,
    })
}

/// MPNet (Song et al., 2020): learned positions as RoBERTa's, and biases by distance. Its padding token's index is always 1.
fn mpnet(config: &Value) -> Result<EncoderShape> {
    let shape = behind(bert_like(&[&names::MPNET], config)?, 2)?;
    let rows = optional_size(config, "relative_attention_num_buckets").unwrap_or(BUCKETS);
    if rows < BUCKETS {
        return Err(unsupported_value("relative_attention_num_buckets", &rows.to_string()));
    }
    Ok(EncoderShape { types: 0, relation: Relation::Buckets { rows }, ..shape })
}

/// ModernBERT (Warner et al., 2024): rotary positions, windows in most layers, gated feed-forward, norms before layers.
fn modernbert(config: &Value) -> Result<EncoderShape> {
    let keyed = |key: &str, other: &str| number(config, key).or_else(|| number(config, other));
    let ropes = config.get("rope_parameters").filter(|value| value.is_object());
    let rope = |kind: &str, key: &str, theta: f64| match ropes.and_then(|ropes| ropes.get(kind)) {
        Some(nested) => rope::from_config(&json!({"rope_parameters": nested, "rope_theta": theta})),
        None => rope::from_config(&json!({
            "rope_theta": number(config, key).unwrap_or(theta),
            "rope_scaling": config.get("rope_scaling"),
        })),
    };
    let everywhere = rope("full_attention", "global_rope_theta", 160_000.0)?;
    let nearby = rope("sliding_attention", "local_rope_theta", 10_000.0)?;
    let window = size(config, "local_attention")? / 2 + 1;
    let every = optional_size(config, "global_attn_every_n_layers").unwrap_or(3);
    let types = config.get("layer_types").and_then(Value::as_array);
    let layer = |index: usize| {
        let sees_all = match types.and_then(|types| types.get(index)?.as_str()) {
            Some(kind) => kind == "full_attention",
            None => index.is_multiple_of(every),
        };
        let (rope, window) = if sees_all { (&everywhere, None) } else { (&nearby, Some(window)) };
        LayerShape { rope: Some(rope.clone()), window }
    };
    Ok(EncoderShape {
        spellings: &[&names::MODERNBERT],
        hidden: size(config, "hidden_size")?,
        intermediate: size(config, "intermediate_size")?,
        heads: size(config, "num_attention_heads")?,
        vocab: size(config, "vocab_size")?,
        context: size(config, "max_position_embeddings")?,
        positions: None,
        types: 0,
        norm_epsilon: keyed("norm_eps", "layer_norm_eps").unwrap_or(1e-5) as f32,
        norm_place: NormPlace::Before,
        activation: activation(config, "hidden_activation")?,
        gate: Gate::FirstHalf,
        relation: Relation::None,
        layers: (0..layers(config, "num_hidden_layers")?).map(layer).collect(),
        head: None,
    })
}

/// Nomic's BERT (Nussbaum et al., 2024): BERT with rotary positions and a gated feed-forward. Published configurations have
/// the keys of GPT-2; transformers 5 writes BERT's.
fn nomic(config: &Value) -> Result<EncoderShape> {
    const SPELLINGS: &[&Names] = &[&names::NOMIC, &names::NOMIC_NATIVE];
    let Some(hidden) = optional_size(config, "n_embd") else {
        let shape = bert_like(SPELLINGS, config)?;
        let rope = rope::from_config(&with_default(config, "rope_theta", 1000.0))?;
        let activation = match text(config, "hidden_act") {
            Some(_) => shape.activation,
            None => Activation::Silu,
        };
        let layers = vec![LayerShape { rope: Some(rope), window: None }; shape.layers.len()];
        return Ok(EncoderShape { gate: Gate::FirstHalf, activation, layers, ..shape });
    };
    for key in ["prenorm", "use_rms_norm", "parallel_block", "rotary_emb_interleaved", "causal"] {
        if flag(config, key, false) {
            return Err(unsupported_value(key, "true"));
        }
    }
    if number(config, "rotary_emb_fraction").is_some_and(|fraction| fraction != 1.0) {
        return Err(unsupported_value("rotary_emb_fraction", "less than 1"));
    }
    if number(config, "num_experts").or_else(|| number(config, "moe_every_n_layers")).is_some_and(|n| n > 0.0) {
        return Err(unsupported_value("num_experts", "more than 0"));
    }
    let activation = match text(config, "activation_function").unwrap_or("swiglu") {
        "swiglu" => Activation::Silu,
        "geglu" => Activation::Gelu,
        other => return Err(unsupported_value("activation_function", other)),
    };
    // With a scaling factor, frequencies depend on the text's length beyond the trained positions: texts are cut there.
    let trained = number(config, "rotary_scaling_factor").and(optional_size(config, "max_trained_positions"));
    let positions = size(config, "n_positions")?;
    let rope = Rope { theta: number(config, "rotary_emb_base").unwrap_or(10_000.0), scaling: RopeScaling::None };
    Ok(EncoderShape {
        spellings: SPELLINGS,
        hidden,
        intermediate: optional_size(config, "n_inner").unwrap_or(4 * hidden),
        heads: size(config, "n_head")?,
        vocab: size(config, "vocab_size")?,
        context: trained.map_or(positions, |trained| trained.min(positions)),
        positions: None,
        types: config.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(0) as usize,
        norm_epsilon: number(config, "layer_norm_epsilon").unwrap_or(1e-5) as f32,
        norm_place: NormPlace::After,
        activation,
        gate: Gate::FirstHalf,
        relation: Relation::None,
        layers: vec![LayerShape { rope: Some(rope), window: None }; layers(config, "n_layer")?],
        head: None,
    })
}

/// The configuration with a value where it has none.
fn with_default(config: &Value, key: &str, value: f64) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        object.entry(key).or_insert(json!(value));
    }
    config
}

/// Jina's BERT v2 (Günther et al., 2023): BERT with slopes for positions and a gated feed-forward.
fn jina(config: &Value) -> Result<EncoderShape> {
    match text(config, "position_embedding_type") {
        Some("alibi") => {}
        other => return Err(unsupported_value("position_embedding_type", other.unwrap_or("absolute"))),
    }
    let activation = match text(config, "feed_forward_type").unwrap_or("original") {
        "geglu" => Activation::Gelu,
        "reglu" => Activation::Relu,
        other => return Err(unsupported_value("feed_forward_type", other)),
    };
    let shape = bert_like(&[&names::JINA], config)?;
    Ok(EncoderShape { activation, gate: Gate::FirstHalf, relation: Relation::Slopes, ..shape })
}

/// DeBERTa v2 and v3 (He et al., 2021).
fn deberta(config: &Value) -> Result<EncoderShape> {
    if optional_size(config, "conv_kernel_size").is_some() {
        return Err(unsupported_value("conv_kernel_size", "more than 0"));
    }
    let mut shape = bert_like(&[&names::DEBERTA], config)?;
    shape.types = config.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(0) as usize;
    shape.norm_epsilon = number(config, "layer_norm_eps").unwrap_or(1e-7) as f32;
    for (key, usual) in [("embedding_size", shape.hidden), ("attention_head_size", shape.hidden / shape.heads.max(1))] {
        if let Some(other) = optional_size(config, key).filter(|value| *value != usual) {
            return Err(unsupported_value(key, &other.to_string()));
        }
    }
    if flag(config, "position_biased_input", true) {
        shape.positions = Some(Positions { rows: shape.context, first: 0 });
    }
    if !flag(config, "relative_attention", false) {
        return Ok(shape);
    }
    let kinds: Vec<String> = match config.get("pos_att_type") {
        Some(Value::String(kinds)) => kinds.split('|').map(|kind| kind.trim().to_lowercase()).collect(),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(|kind| Some(kind.as_str()?.to_lowercase())).collect(),
        _ => Vec::new(),
    };
    let distance_max = optional_size(config, "max_relative_positions").unwrap_or(shape.context);
    let buckets = optional_size(config, "position_buckets");
    shape.relation = Relation::Disentangled(Disentangled {
        content_to_position: kinds.iter().any(|kind| kind == "c2p"),
        position_to_content: kinds.iter().any(|kind| kind == "p2c"),
        shared: flag(config, "share_att_key", false),
        normed: text(config, "norm_rel_ebd").is_some_and(|kinds| kinds.contains("layer_norm")),
        span: buckets.unwrap_or(distance_max),
        buckets,
        distance_max,
    });
    Ok(shape)
}

/// The classifier of a family's checkpoints for sequence classification.
fn head(family: &str, config: &Value) -> Result<HeadShape> {
    let labels = labels(config)?;
    let plain =
        |dense, activation, out| HeadShape { state: HeadState::First, dense, activation, norm: None, out, labels };
    Ok(match family {
        "Roberta" | "XLMRoberta" | "Camembert" | "MPNet" => {
            plain("classifier.dense", Activation::Tanh, "classifier.out_proj")
        }
        "DistilBert" => plain("pre_classifier", Activation::Relu, "classifier"),
        "DebertaV2" => plain("pooler.dense", activation(config, "pooler_hidden_act")?, "classifier"),
        "ModernBert" => {
            let state = match text(config, "classifier_pooling").unwrap_or("cls") {
                "cls" => HeadState::First,
                "mean" => HeadState::Mean,
                other => return Err(unsupported_value("classifier_pooling", other)),
            };
            let plain = plain("head.dense", activation(config, "classifier_activation")?, "classifier");
            HeadShape { state, norm: Some("head.norm"), ..plain }
        }
        _ => plain("pooler.dense", Activation::Tanh, "classifier"),
    })
}

/// The names of a classifier's labels, in their order. Refuses classifiers that do not choose one of several.
fn labels(config: &Value) -> Result<Vec<String>> {
    if text(config, "problem_type") == Some("multi_label_classification") {
        return Err(Error::invalid(
            "the classifier gives each label a yes or no of its own; the engine chooses one label",
        )
        .hint("use a model whose problem_type is single_label_classification"));
    }
    let named = config.get("id2label").and_then(Value::as_object);
    let count = named.map(serde_json::Map::len).or_else(|| optional_size(config, "num_labels")).unwrap_or(2);
    if count < 2 || text(config, "problem_type") == Some("regression") {
        return Err(Error::invalid("the model gives a number, not one of several labels")
            .hint("the engine serves classifiers with two or more labels"));
    }
    let label = |id: usize| match named {
        None => Ok(format!("LABEL_{id}")),
        Some(named) => named.get(&id.to_string()).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
            Error::invalid(format!("config.json: `id2label` has {count} labels, but none of the number {id}"))
        }),
    };
    (0..count).map(label).collect()
}
