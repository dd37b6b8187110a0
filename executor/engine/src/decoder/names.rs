//! Where families keep their tensors, as data: one table for each way of naming, in the layout of the hub or of llama.cpp.
//! A name that is there also says that the thing is: where a layer's norms stand is read off here. Computes nothing.

/// Names of a family's modules (without `.weight` and `.bias`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// What may stand before every name but that of the output matrix; the first one that fits is taken.
    pub(crate) roots: &'static [&'static str],
    pub(crate) embedding: &'static str,
    /// The table of learned positions.
    pub(crate) positions: Option<&'static str>,
    pub(crate) norm: &'static str,
    /// Where the output matrix may be, without a root; the first one that is there is taken.
    pub(crate) outputs: &'static [&'static str],
    /// Layers are `<layers>.<index>.`; all names below stand behind that.
    pub(crate) layers: &'static str,
    pub(crate) attention_before: Option<&'static str>,
    pub(crate) attention_after: Option<&'static str>,
    pub(crate) feed_before: Option<&'static str>,
    pub(crate) feed_after: Option<&'static str>,
    pub(crate) qkv: QkvNames,
    pub(crate) qk_norms: [&'static str; 2],
    pub(crate) attention_out: &'static str,
    pub(crate) up: UpNames,
    pub(crate) down: &'static str,
    pub(crate) experts: &'static ExpertNames,
    pub(crate) latent: &'static LatentNames,
}

/// Queries, keys and values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum QkvNames {
    Separate([&'static str; 3]),
    /// One matrix: all queries, all keys, all values.
    Joined(&'static str),
    /// One matrix: for each key head its queries, its key, its value.
    Grouped(&'static str),
}

/// The feed-forward's way in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UpNames {
    /// Gate and up.
    Gated([&'static str; 2]),
    /// One matrix: gate, then up.
    Joined(&'static str),
    /// No gate.
    Plain(&'static str),
}

/// Experts, however they are stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExpertNames {
    pub(crate) router: &'static str,
    /// A whole tensor's name: what DeepSeek-V3 adds to scores when it chooses.
    pub(crate) correction: &'static str,
    /// Modules `<modules>.<expert>.<part>`: gate, up, down.
    pub(crate) modules: &'static str,
    pub(crate) parts: [&'static str; 3],
    /// Whole tensors `[experts, rows, columns]`: gate and up in one, down.
    pub(crate) joined: [&'static str; 2],
    /// Whole tensors `[experts, rows, columns]`: gate, up, down.
    pub(crate) apart: [&'static str; 3],
    pub(crate) shared: [&'static str; 3],
    pub(crate) shared_gate: &'static str,
}

/// Multi-head latent attention.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LatentNames {
    pub(crate) q: &'static str,
    pub(crate) q_a: &'static str,
    pub(crate) q_norm: &'static str,
    pub(crate) q_b: &'static str,
    pub(crate) kv_a: &'static str,
    pub(crate) kv_norm: &'static str,
    pub(crate) kv_b: &'static str,
}

const MLP_EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    correction: "mlp.gate.e_score_correction_bias",
    modules: "mlp.experts",
    parts: ["gate_proj", "up_proj", "down_proj"],
    joined: ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    apart: ["mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj"],
    shared: ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"],
    shared_gate: "mlp.shared_expert_gate",
};

const LATENT: LatentNames = LatentNames {
    q: "self_attn.q_proj",
    q_a: "self_attn.q_a_proj",
    q_norm: "self_attn.q_a_layernorm",
    q_b: "self_attn.q_b_proj",
    kv_a: "self_attn.kv_a_proj_with_mqa",
    kv_norm: "self_attn.kv_a_layernorm",
    kv_b: "self_attn.kv_b_proj",
};

/// Llama, and most models since. Checkpoints of embedding models may lack the root.
pub(crate) const LLAMA: Names = Names {
    roots: &["model.", ""],
    embedding: "embed_tokens",
    positions: None,
    norm: "norm",
    outputs: &["lm_head"],
    layers: "layers",
    attention_before: Some("input_layernorm"),
    attention_after: None,
    feed_before: Some("post_attention_layernorm"),
    feed_after: None,
    qkv: QkvNames::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_out: "self_attn.o_proj",
    up: UpNames::Gated(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    experts: &MLP_EXPERTS,
    latent: &LATENT,
};

pub(crate) const MIXTRAL: Names = Names {
    experts: &ExpertNames {
        router: "block_sparse_moe.gate",
        modules: "block_sparse_moe.experts",
        parts: ["w1", "w3", "w2"],
        ..MLP_EXPERTS
    },
    ..LLAMA
};

/// Phi-3: queries, keys and values in one matrix, gate and up in another.
pub(crate) const PHI3: Names =
    Names { qkv: QkvNames::Joined("self_attn.qkv_proj"), up: UpNames::Joined("mlp.gate_up_proj"), ..LLAMA };

/// Gemma 2 and 3: norms before and after both halves of a layer. Gemma 3 comes with a picture reader, too, which is left.
pub(crate) const GEMMA: Names = Names {
    roots: &["model.", "", "language_model.model.", "model.language_model."],
    attention_after: Some("post_attention_layernorm"),
    feed_before: Some("pre_feedforward_layernorm"),
    feed_after: Some("post_feedforward_layernorm"),
    ..LLAMA
};

/// OLMo 2: norms only after the halves of a layer.
pub(crate) const OLMO2: Names = Names {
    attention_before: None,
    attention_after: Some("post_attention_layernorm"),
    feed_before: None,
    feed_after: Some("post_feedforward_layernorm"),
    ..LLAMA
};

pub(crate) const DEEPSEEK: Names = Names {
    experts: &ExpertNames {
        shared: ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"],
        ..MLP_EXPERTS
    },
    ..LLAMA
};

pub(crate) const STARCODER2: Names = Names { up: UpNames::Plain("mlp.c_fc"), down: "mlp.c_proj", ..LLAMA };

pub(crate) const GPT_NEOX: Names = Names {
    roots: &["gpt_neox.", ""],
    embedding: "embed_in",
    norm: "final_layer_norm",
    outputs: &["embed_out", "lm_head"],
    qkv: QkvNames::Grouped("attention.query_key_value"),
    attention_out: "attention.dense",
    up: UpNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    ..LLAMA
};

/// Falcon whose attention and feed-forward stand one after the other.
pub(crate) const FALCON: Names = Names {
    roots: &["transformer.", ""],
    embedding: "word_embeddings",
    norm: "ln_f",
    layers: "h",
    qkv: QkvNames::Grouped("self_attention.query_key_value"),
    attention_out: "self_attention.dense",
    up: UpNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    ..LLAMA
};

/// Falcon 7B: one norm for both halves, which stand side by side.
pub(crate) const FALCON_ONE_NORM: Names = Names { feed_before: None, ..FALCON };

/// Falcon 40B: a norm for each half.
pub(crate) const FALCON_TWO_NORMS: Names =
    Names { attention_before: Some("ln_attn"), feed_before: Some("ln_mlp"), ..FALCON };

pub(crate) const GPT_BIGCODE: Names = Names {
    roots: &["transformer.", ""],
    embedding: "wte",
    positions: Some("wpe"),
    norm: "ln_f",
    layers: "h",
    attention_before: Some("ln_1"),
    feed_before: Some("ln_2"),
    qkv: QkvNames::Grouped("attn.c_attn"),
    attention_out: "attn.c_proj",
    up: UpNames::Plain("mlp.c_fc"),
    down: "mlp.c_proj",
    ..LLAMA
};

/// llama.cpp's names, which are the same for every family that has the thing.
pub(crate) const GGUF: Names = Names {
    roots: &[""],
    embedding: "token_embd",
    positions: None,
    norm: "output_norm",
    outputs: &["output"],
    layers: "blk",
    attention_before: Some("attn_norm"),
    attention_after: None,
    feed_before: Some("ffn_norm"),
    feed_after: None,
    qkv: QkvNames::Separate(["attn_q", "attn_k", "attn_v"]),
    qk_norms: ["attn_q_norm", "attn_k_norm"],
    attention_out: "attn_output",
    up: UpNames::Gated(["ffn_gate", "ffn_up"]),
    down: "ffn_down",
    experts: &ExpertNames {
        router: "ffn_gate_inp",
        correction: "exp_probs_b.bias",
        modules: "",
        parts: ["ffn_gate", "ffn_up", "ffn_down"],
        joined: ["ffn_gate_up_exps.weight", "ffn_down_exps.weight"],
        apart: ["ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"],
        shared: ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
        shared_gate: "ffn_gate_inp_shexp",
    },
    latent: &LatentNames {
        q: "attn_q",
        q_a: "attn_q_a",
        q_norm: "attn_q_a_norm",
        q_b: "attn_q_b",
        kv_a: "attn_kv_a_mqa",
        kv_norm: "attn_kv_a_norm",
        kv_b: "attn_kv_b",
    },
};

pub(crate) const GGUF_PHI3: Names = Names { qkv: QkvNames::Joined("attn_qkv"), up: UpNames::Joined("ffn_up"), ..GGUF };

pub(crate) const GGUF_GEMMA: Names =
    Names { attention_after: Some("post_attention_norm"), feed_after: Some("post_ffw_norm"), ..GGUF };

pub(crate) const GGUF_OLMO2: Names = Names { attention_before: None, feed_before: None, ..GGUF_GEMMA };

pub(crate) const GGUF_STARCODER2: Names = Names { up: UpNames::Plain("ffn_up"), ..GGUF };

pub(crate) const GGUF_GPT_NEOX: Names = Names { qkv: QkvNames::Joined("attn_qkv"), ..GGUF_STARCODER2 };

pub(crate) const GGUF_FALCON_ONE_NORM: Names = Names { feed_before: None, ..GGUF_GPT_NEOX };

pub(crate) const GGUF_FALCON_TWO_NORMS: Names =
    Names { attention_before: Some("attn_norm_2"), feed_before: Some("attn_norm"), ..GGUF_GPT_NEOX };
