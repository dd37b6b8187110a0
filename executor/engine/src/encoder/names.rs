//! What each family of encoders calls its tensors, as data. A checkpoint of a task holds the encoder under the family's
//! prefix; where it is, and which spelling of several, is found in the files. Reads no tensor.

use rowmill_jobs::Result;

use crate::weights::Weights;

/// Module names of a family, without `.weight` and `.bias`. Those of a layer stand below `layer` and its number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// Stands before every name in checkpoints of a task.
    pub(crate) prefix: &'static str,
    pub(crate) words: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) types: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) layer: &'static str,
    /// Queries, keys and values: three matrices, or one that holds them below each other.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) attention_out: &'static str,
    pub(crate) attention_norm: &'static str,
    /// The feed-forward's first product; of a gated one, what is activated comes first.
    pub(crate) up: &'static [&'static str],
    pub(crate) down: &'static str,
    pub(crate) feed_norm: &'static str,
    /// The norm after the last layer, where norms stand before their layers.
    pub(crate) last_norm: &'static str,
    /// Vectors or biases of relative positions.
    pub(crate) relative: &'static str,
    /// Their norm, if the model norms them.
    pub(crate) relative_norm: &'static str,
}

pub(crate) const BERT: Names = Names {
    prefix: "bert.",
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    layer: "encoder.layer",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: &["intermediate.dense"],
    down: "output.dense",
    feed_norm: "output.LayerNorm",
    last_norm: "",
    relative: "",
    relative_norm: "",
};

/// RoBERTa, XLM-R and CamemBERT.
pub(crate) const ROBERTA: Names = Names { prefix: "roberta.", ..BERT };

pub(crate) const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    layer: "transformer.layer",
    qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: &["ffn.lin1"],
    down: "ffn.lin2",
    feed_norm: "output_layer_norm",
    ..BERT
};

pub(crate) const MPNET: Names = Names {
    prefix: "mpnet.",
    qkv: &["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    relative: "encoder.relative_attention_bias",
    ..BERT
};

pub(crate) const DEBERTA: Names = Names {
    prefix: "deberta.",
    qkv: &["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
    relative: "encoder.rel_embeddings",
    relative_norm: "encoder.LayerNorm",
    ..BERT
};

pub(crate) const MODERNBERT: Names = Names {
    prefix: "model.",
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    layer: "layers",
    qkv: &["attn.Wqkv"],
    attention_out: "attn.Wo",
    attention_norm: "attn_norm",
    up: &["mlp.Wi"],
    down: "mlp.Wo",
    feed_norm: "mlp_norm",
    last_norm: "final_norm",
    ..BERT
};

/// Nomic's BERT as its checkpoints are published.
pub(crate) const NOMIC: Names = Names {
    embedding_norm: "emb_ln",
    layer: "encoder.layers",
    qkv: &["attn.Wqkv"],
    attention_out: "attn.out_proj",
    attention_norm: "norm1",
    up: &["mlp.fc12", "mlp.fc11"],
    down: "mlp.fc2",
    feed_norm: "norm2",
    ..BERT
};

/// Nomic's BERT as transformers 5 spells it.
pub(crate) const NOMIC_NATIVE: Names = Names {
    prefix: "nomic_bert.",
    layer: "layers",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_out: "self_attn.o_proj",
    attention_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    feed_norm: "post_mlp_layernorm",
    ..BERT
};

/// Jina's BERT v2.
pub(crate) const JINA: Names = Names { up: &["mlp.gated_layers"], down: "mlp.wo", feed_norm: "mlp.layernorm", ..BERT };

/// A checkpoint's tensors by the names of its family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) names: &'static Names,
    prefix: &'static str,
}

impl<'a> Named<'a> {
    /// Finds which of these spellings the files use, and whether they hold the encoder under its prefix. Where none fits, the
    /// first is taken, and whoever reads will say which tensor is missing.
    pub(crate) fn find(weights: &'a Weights, spellings: &'static [&'static Names]) -> Self {
        let fits = |named: &Self| {
            let first = named.layer(0, named.names.qkv.first().copied().unwrap_or_default());
            [named.module(named.names.words), first].iter().all(|module| weights.has(&format!("{module}.weight")))
        };
        let named = |names: &'static Names| {
            [Self { weights, names, prefix: "" }, Self { weights, names, prefix: names.prefix }]
        };
        let mut all = spellings.iter().copied().flat_map(named);
        all.clone().find(fits).or_else(|| all.next()).unwrap_or(Self { weights, names: &BERT, prefix: "" })
    }

    /// A module's name in the files.
    pub(crate) fn module(&self, module: &str) -> String {
        format!("{}{module}", self.prefix)
    }

    /// The name in the files of a module of a layer.
    pub(crate) fn layer(&self, layer: usize, module: &str) -> String {
        format!("{}{}.{layer}.{module}", self.prefix, self.names.layer)
    }

    /// Checks a module's matrix, by its name in the files.
    pub(crate) fn check(&self, module: &str, shape: &[usize]) -> Result<()> {
        self.weights.check(&format!("{module}.weight"), shape)
    }
}
