//! Reads a decoder's shape from the metadata of a GGUF file: llama.cpp's keys are the same for all families, and most
//! switches are there when a tensor is. Refuses families and variants that the decoder does not compute.

use rowmill_jobs::{Error, Result};

use super::names::{self, Names};
use super::shape::{Activation, Biases, DecoderShape, Experts, Feed, LayerShape, NormKind, QkNorm, Residual, Scoring};
use crate::attention::Heads;
use crate::config::{checked_layers, unsupported_value, usable};
use crate::descriptor::unsupported;
use crate::gguf::GgufFile;
use crate::rope::{Long, Rope, RopeScaling};

/// Families, by llama.cpp's names, and their architectures on the hub.
pub(crate) const GGUF_FAMILIES: [(&str, &str); 13] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen2moe", "Qwen2MoeForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("qwen3moe", "Qwen3MoeForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "Gemma3ForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("gptneox", "GPTNeoXForCausalLM"),
    ("falcon", "FalconForCausalLM"),
    ("starcoder2", "Starcoder2ForCausalLM"),
];

/// Layers of Gemma 2 27B and Gemma 3 27B, whose attention is scaled in another way than their sisters'; nothing else in
/// a file says so.
const GEMMA_27B_LAYERS: [usize; 2] = [46, 62];
/// The rotary base of Gemma 3's windowed layers, which its files do not say.
const GEMMA3_WINDOW_THETA: f64 = 10_000.0;

/// A file's metadata under its family's name.
struct Metadata<'a> {
    file: &'a GgufFile,
    family: &'a str,
}

impl Metadata<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.family)
    }

    fn size(&self, suffix: &str) -> Option<usize> {
        self.file.integer(&self.key(suffix)).and_then(usable)
    }

    fn needed(&self, suffix: &str) -> Result<usize> {
        self.size(suffix).ok_or_else(|| {
            let error = Error::invalid(format!("{} has no usable `{}`", self.file.path.display(), self.key(suffix)));
            error.hint("convert the model again")
        })
    }

    fn number(&self, suffix: &str) -> Option<f64> {
        self.file.float(&self.key(suffix))
    }

    fn multiplier(&self, suffix: &str) -> f32 {
        self.number(suffix).filter(|value| *value != 0.0).unwrap_or(1.0) as f32
    }

    fn first_layer_has(&self, tensor: &str) -> bool {
        self.file.has(&format!("blk.0.{tensor}"))
    }
}

/// Reads GGUF metadata. Returns the architecture's hub name and its shape.
pub(crate) fn from_gguf(file: &GgufFile) -> Result<(String, DecoderShape)> {
    let family = file.text("general.architecture").unwrap_or("unknown");
    let Some((_, name)) = GGUF_FAMILIES.iter().find(|(known, _)| *known == family) else {
        return Err(unsupported(&format!("`{family}` of a GGUF file")));
    };
    let metadata = Metadata { file, family };
    let mut shape = llama(&metadata)?;
    experts(&metadata, &mut shape)?;
    match family {
        "llama" => shape.interleaved = true,
        "granite" => {
            shape.interleaved = true;
            shape.scale = metadata.multiplier("attention.scale");
            shape.embedding_multiplier = metadata.multiplier("embedding_scale");
            shape.residual_multiplier = metadata.multiplier("residual_scale");
            shape.logits_multiplier = 1.0 / metadata.multiplier("logit_scale");
        }
        "olmo2" => {
            shape.qk_norm = QkNorm::Whole;
            shape.names = &names::GGUF_OLMO2;
        }
        "phi3" => phi3(&metadata, &mut shape)?,
        "gemma2" | "gemma3" => gemma(&metadata, &mut shape)?,
        "gptneox" | "falcon" | "starcoder2" => gpt(&metadata, &mut shape),
        _ => {}
    }
    Ok(((*name).to_owned(), shape.checked()?))
}

/// Llama, with what most others have in common with it.
fn llama(metadata: &Metadata<'_>) -> Result<DecoderShape> {
    let file = metadata.file;
    let heads = metadata.needed("attention.head_count")?;
    let hidden = metadata.needed("embedding_length")?;
    let head_dim = metadata.size("attention.key_length").unwrap_or(hidden / heads);
    let scaling = match file.text(&metadata.key("rope.scaling.type")) {
        None | Some("none" | "longrope") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(metadata.number("rope.scaling.factor").unwrap_or(1.0)),
        Some(other) => return Err(unsupported_value("rope.scaling.type", other)),
    };
    let epsilon = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"];
    let layer = LayerShape { window: None, rope: 0, feed: Feed::Dense(metadata.needed("feed_forward_length")?) };
    Ok(DecoderShape {
        hidden,
        vocab: file.shape("token_embd.weight").unwrap_or_default().first().copied().unwrap_or(0),
        context: metadata.needed("context_length")?,
        heads: Heads {
            heads,
            kv_heads: metadata.size("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            value_dim: head_dim,
        },
        layers: vec![layer; checked_layers(metadata.needed("block_count")?, "block_count")?],
        norm: NormKind::Rms,
        norm_epsilon: epsilon.iter().find_map(|key| metadata.number(key)).unwrap_or(1e-5) as f32,
        residual: Residual::Sequential,
        ropes: vec![Rope { theta: metadata.number("rope.freq_base").unwrap_or(10_000.0), scaling }],
        rotary: metadata.size("rope.dimension_count").unwrap_or(head_dim).min(head_dim),
        interleaved: false,
        positions: None,
        biases: Biases {
            qkv: metadata.first_layer_has("attn_q.bias") || metadata.first_layer_has("attn_qkv.bias"),
            attention_out: metadata.first_layer_has("attn_output.bias"),
            feed: metadata.first_layer_has("ffn_down.bias"),
            output: file.has("output.bias"),
        },
        qk_norm: if metadata.first_layer_has("attn_q_norm.weight") { QkNorm::Head } else { QkNorm::None },
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        latent: None,
        activation: Activation::Silu,
        experts: None,
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logits_multiplier: 1.0,
        logits_softcap: None,
        tied: !file.has("output.weight"),
        names: &names::GGUF,
    })
}

/// Experts of Mixtral (a `llama` here) and Qwen's families, in the layers that have a router.
fn experts(metadata: &Metadata<'_>, shape: &mut DecoderShape) -> Result<()> {
    let Some(count) = metadata.size("expert_count") else { return Ok(()) };
    let intermediate = match metadata.family {
        "llama" => metadata.needed("feed_forward_length")?,
        "qwen2moe" | "qwen3moe" => metadata.needed("expert_feed_forward_length")?,
        other => return Err(unsupported(&format!("`{other}` of a GGUF file with experts"))),
    };
    let shared = metadata.family == "qwen2moe";
    shape.experts = Some(Experts {
        count,
        chosen: metadata.needed("expert_used_count")?,
        intermediate,
        scoring: Scoring::Softmax,
        normalised: metadata.family != "qwen2moe",
        scale: 1.0,
        groups: None,
        shared: if shared { Some(metadata.needed("expert_shared_feed_forward_length")?) } else { None },
        shared_gate: shared,
    });
    for (index, layer) in shape.layers.iter_mut().enumerate() {
        if metadata.file.has(&format!("blk.{index}.ffn_gate_inp.weight")) {
            layer.feed = Feed::Experts;
        }
    }
    Ok(())
}

/// LongRoPE's factors are tensors here, named by the context they are for.
fn phi3(metadata: &Metadata<'_>, shape: &mut DecoderShape) -> Result<()> {
    let (short, long) = ("rope_factors_short.weight", "rope_factors_long.weight");
    if metadata.file.has(short) && metadata.file.has(long) {
        let read = |name| Ok(metadata.file.read(name)?.into_iter().map(f64::from).collect::<Vec<f64>>());
        let scaling = RopeScaling::Long(Long {
            short: read(short)?,
            long: read(long)?,
            original_context: metadata.size("rope.scaling.original_context_length").unwrap_or(shape.context),
            magnitude: metadata.number("rope.scaling.attn_factor").unwrap_or(1.0),
            extended: false,
        });
        shape.ropes.iter_mut().for_each(|rope| rope.scaling = scaling.clone());
    }
    let window = metadata.size("attention.sliding_window");
    shape.layers.iter_mut().for_each(|layer| layer.window = window);
    shape.names = &names::GGUF_PHI3;
    Ok(())
}

/// Norms are stored with their 1 added.
fn gemma(metadata: &Metadata<'_>, shape: &mut DecoderShape) -> Result<()> {
    let window = metadata.needed("attention.sliding_window")?;
    let second = metadata.family == "gemma2";
    let pattern = if second { 2 } else { 6 };
    for (index, layer) in shape.layers.iter_mut().enumerate() {
        let sliding = !(index + 1).is_multiple_of(pattern);
        layer.window = sliding.then_some(window);
        layer.rope = usize::from(sliding && !second);
    }
    let cap = |key: &str| metadata.number(key).filter(|cap| *cap != 0.0).map(|cap| cap as f32);
    if second {
        shape.softcap = cap("attn_logit_softcapping");
    } else {
        shape.ropes.push(Rope { theta: GEMMA3_WINDOW_THETA, scaling: RopeScaling::None });
    }
    shape.logits_softcap = cap("final_logit_softcapping");
    if GEMMA_27B_LAYERS.contains(&shape.layers.len()) {
        shape.scale = 1.0 / ((shape.hidden / shape.heads.heads) as f32).sqrt();
    }
    shape.activation = Activation::GeluTanh;
    shape.embedding_multiplier = (shape.hidden as f32).sqrt();
    shape.names = &names::GGUF_GEMMA;
    Ok(())
}

/// Families with layer norms and without gates.
fn gpt(metadata: &Metadata<'_>, shape: &mut DecoderShape) {
    shape.norm = NormKind::Layer;
    shape.activation = if metadata.family == "starcoder2" { Activation::GeluTanh } else { Activation::Gelu };
    let two_norms = metadata.first_layer_has("attn_norm_2.weight");
    let (names, parallel): (&'static Names, bool) = match (metadata.family, two_norms) {
        ("starcoder2", _) => (&names::GGUF_STARCODER2, false),
        ("gptneox", _) => {
            (&names::GGUF_GPT_NEOX, metadata.file.flag(&metadata.key("use_parallel_residual")).unwrap_or(true))
        }
        (_, true) => (&names::GGUF_FALCON_TWO_NORMS, true),
        (_, false) => (&names::GGUF_FALCON_ONE_NORM, true),
    };
    shape.names = names;
    if parallel {
        shape.residual = Residual::Parallel;
    }
}
