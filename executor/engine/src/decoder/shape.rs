//! What a decoder's architecture is, as data: sizes and switches. The decoder is written once and driven by this; reading
//! it from `config.json` is [`super::families`]'s, from GGUF metadata [`super::metadata`]'s.

use rowmill_jobs::{Error, Result};

use super::names::Names;
use crate::attention::{Heads, Scores, narrower};
use crate::rope::Rope;

/// More than the queries or keys of any model have together: their rows are put in order before their tensors are looked for.
const ROWS_MAX: usize = 1 << 20;
/// Longest rows, in tokens. A device gets cosines and sines of every position, and no tensor bounds what a file says.
const CONTEXT_MAX: usize = 1 << 20;

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderShape {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    /// Longest sequence it is used with, in tokens.
    pub(crate) context: usize,
    pub(crate) heads: Heads,
    pub(crate) layers: Vec<LayerShape>,
    pub(crate) norm: NormKind,
    pub(crate) norm_epsilon: f32,
    pub(crate) residual: Residual,
    /// Rotary embeddings, by [`LayerShape::rope`]; none where positions are learned.
    pub(crate) ropes: Vec<Rope>,
    /// Leading floats of a head that are rotated.
    pub(crate) rotary: usize,
    /// Rows of q and k that are rotated together are stored as neighbours, not as halves of the rotated part.
    pub(crate) interleaved: bool,
    /// Rows of the table of learned positions.
    pub(crate) positions: Option<usize>,
    pub(crate) biases: Biases,
    pub(crate) qk_norm: QkNorm,
    /// Multiplies products of queries and keys.
    pub(crate) scale: f32,
    /// Soft bound of attention scores.
    pub(crate) softcap: Option<f32>,
    pub(crate) latent: Option<Latent>,
    pub(crate) activation: Activation,
    pub(crate) experts: Option<Experts>,
    /// Multiplies the tokens' embeddings.
    pub(crate) embedding_multiplier: f32,
    /// Multiplies what each half of a layer adds.
    pub(crate) residual_multiplier: f32,
    /// Multiplies logits.
    pub(crate) logits_multiplier: f32,
    /// Soft bound of logits, after the multiplier.
    pub(crate) logits_softcap: Option<f32>,
    /// The output matrix is the embedding matrix.
    pub(crate) tied: bool,
    pub(crate) names: &'static Names,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerShape {
    /// A token sees only tokens less than so many positions away.
    pub(crate) window: Option<usize>,
    /// Index into [`DecoderShape::ropes`].
    pub(crate) rope: usize,
    pub(crate) feed: Feed,
}

/// A layer's feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// One, of this inner size.
    Dense(usize),
    /// [`DecoderShape::experts`].
    Experts,
}

/// How a token's vector is normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// Root of the mean square.
    Rms,
    /// The same, with weights stored as their distance from 1.
    RmsPlusOne,
    /// Mean and variance, with a bias.
    Layer,
}

/// How the halves of a layer (attention, feed-forward) stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residual {
    /// The second reads what the first has added.
    Sequential,
    /// Both read the layer's input.
    Parallel,
}

/// Which matrices have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) attention_out: bool,
    pub(crate) feed: bool,
    pub(crate) output: bool,
}

/// RMS norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Of each head alone, with weights that heads share.
    Head,
    /// Over all heads of a token together.
    Whole,
}

/// Multi-head latent attention (DeepSeek-V2, 2024): keys and values come out of a short vector. A head's key is
/// `[rotated (shared by all heads), its own]`, `rotary` floats and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Latent {
    /// Length of the short vector of queries, if they have one.
    pub(crate) q: Option<usize>,
    /// Length of that of keys and values.
    pub(crate) kv: usize,
}

/// Activation of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    Relu,
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Experts {
    pub(crate) count: usize,
    /// Experts that each token goes to.
    pub(crate) chosen: usize,
    /// Inner size of each.
    pub(crate) intermediate: usize,
    pub(crate) scoring: Scoring,
    /// The chosen experts' weights are divided by their sum. After a softmax this is the same as a softmax of the chosen.
    pub(crate) normalised: bool,
    /// Multiplies the weights.
    pub(crate) scale: f32,
    /// Experts are chosen from the best groups only.
    pub(crate) groups: Option<Groups>,
    /// Inner size of the feed-forward that every token goes to as well.
    pub(crate) shared: Option<usize>,
    /// A sigmoid of each token weighs the shared one.
    pub(crate) shared_gate: bool,
}

/// How a router's logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scoring {
    Softmax,
    /// Sigmoid; a correction is added where experts are chosen, and only there (DeepSeek-V3).
    CorrectedSigmoid,
}

/// Groups of experts, of equal size, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    pub(crate) kept: usize,
    /// A group counts as the sum of so many of its best scores.
    pub(crate) best: usize,
}

impl DecoderShape {
    /// Attention scores of a layer.
    pub(crate) fn scores(&self, layer: &LayerShape) -> Scores<'static> {
        Scores { scale: self.scale, softcap: self.softcap, window: layer.window, bias: None }
    }

    /// The shape for rows of at most `asked` tokens. Rotary factors that depend on the length (LongRoPE) are chosen here,
    /// once for all rows, so that rows can share keys: those of the original context unless more is asked for.
    pub(crate) fn used_with(mut self, asked: Option<usize>) -> Self {
        let original = self.ropes.iter().filter_map(Rope::original_context).min();
        self.context = match original {
            Some(original) if asked.is_none_or(|asked| asked <= original) => self.context.min(original),
            Some(_) => {
                self.ropes.iter_mut().for_each(Rope::extend);
                self.context
            }
            None => self.context,
        };
        self.context = asked.map_or(self.context, |asked| asked.min(self.context));
        self
    }

    /// The shape of a model that is asked for hidden states only: no output matrix of its own is read.
    pub(crate) fn headless(self) -> Self {
        Self { tied: true, ..self }
    }

    /// Refuses sizes that do not fit together. A context longer than the engine takes is cut: shorter rows are computed as
    /// they are in the whole one.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let Heads { heads, kv_heads, head_dim, value_dim } = self.heads;
        let rotary = self.rotary;
        let windows = self.layers.iter().filter_map(|layer| layer.window);
        let fits = kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && head_dim > 0
            && value_dim > 0
            && heads.saturating_mul(head_dim.saturating_add(value_dim)) <= ROWS_MAX
            && self.latent.is_none_or(|latent| latent.kv <= ROWS_MAX)
            && rotary <= head_dim
            && rotary.is_multiple_of(2)
            && (rotary > 0 || self.ropes.is_empty())
            && windows.min() != Some(0)
            && self.layers.iter().all(|layer| layer.rope < self.ropes.len().max(1))
            && self.ropes.iter().all(|rope| rope.fits(rotary));
        if !fits {
            return Err(Error::invalid(format!(
                "the model's attention cannot be computed: {heads} heads, {kv_heads} key heads, head size {head_dim}, of \
                 which {rotary} are rotated"
            )));
        }
        if let Some(experts) = &self.experts {
            let groups = experts.groups.unwrap_or(Groups { count: 1, kept: 1, best: 1 });
            let size = experts.count.checked_div(groups.count).unwrap_or(0);
            let fits = size * groups.count == experts.count
                && (1..=groups.count).contains(&groups.kept)
                && (1..=size * groups.kept).contains(&experts.chosen)
                && groups.best <= size;
            if !fits {
                return Err(Error::invalid(format!(
                    "the model's experts cannot be computed: {} of {} in {} groups, of which {} are kept",
                    experts.chosen, experts.count, groups.count, groups.kept
                )));
            }
        }
        self.context = self.context.min(CONTEXT_MAX);
        let context = self.context;
        self.layers.iter_mut().for_each(|layer| layer.window = narrower(layer.window, context));
        Ok(self)
    }
}
