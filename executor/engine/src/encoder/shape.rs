//! What an encoder's architecture is, as data: sizes and switches that one network is driven by. Knows no `config.json`;
//! [`super::families`] reads it into this.

use rowmill_jobs::{Error, Result};

use crate::attention::narrower;
use crate::config::unsupported_value;
use crate::encoder::names::Names;
use crate::rope::{Rope, RopeScaling};

/// More heads than any model has.
const HEADS_MAX: usize = 1024;
/// Longest texts. What scores know of distances is computed for all of them, and no tensor bounds them in every family.
const CONTEXT_MAX: usize = 1 << 17;
/// The same where each layer and feature has a table of distances (DeBERTa).
const DISENTANGLED_CONTEXT_MAX: usize = 1 << 12;

/// An encoder over packed rows: bidirectional attention, layer norms, a feed-forward that may be gated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncoderShape {
    /// Spellings of tensor names that checkpoints of this family use.
    pub(crate) spellings: &'static [&'static Names],
    pub(crate) hidden: usize,
    /// Width of the feed-forward, after its gate.
    pub(crate) intermediate: usize,
    pub(crate) heads: usize,
    pub(crate) vocab: usize,
    /// Longest text, in tokens, special ones included.
    pub(crate) context: usize,
    /// Learned vectors of positions.
    pub(crate) positions: Option<Positions>,
    /// Rows of the table of token types; every token is of the first. 0 where there is none.
    pub(crate) types: usize,
    pub(crate) norm_epsilon: f32,
    pub(crate) norm_place: NormPlace,
    pub(crate) activation: Activation,
    pub(crate) gate: Gate,
    /// What scores know of positions.
    pub(crate) relation: Relation,
    pub(crate) layers: Vec<LayerShape>,
    /// What makes label scores of hidden states; `None` in embedding models.
    pub(crate) head: Option<HeadShape>,
}

impl EncoderShape {
    /// Refuses sizes that do not fit together, or that no model has.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let (heads, hidden, context) = (self.heads, self.hidden, self.context);
        if heads > HEADS_MAX || !hidden.is_multiple_of(heads) {
            return Err(Error::invalid(format!(
                "the model's attention cannot be computed: {heads} heads of the hidden size {hidden}"
            )));
        }
        let context_max = match self.relation {
            Relation::Disentangled(_) => DISENTANGLED_CONTEXT_MAX,
            _ => CONTEXT_MAX,
        };
        if context > context_max {
            return Err(Error::invalid(format!("the model's texts of {context} tokens cannot be computed"))
                .hint(format!("of such a model, the engine computes texts of up to {context_max}")));
        }
        let ropes = || self.layers.iter().filter_map(|layer| layer.rope.as_ref());
        if ropes().any(|rope| matches!(rope.scaling, RopeScaling::Long(_))) {
            // Which of its factors hold would depend on the text's length.
            return Err(unsupported_value("rope_type", "longrope"));
        }
        if ropes().next().is_some() && !(hidden / heads).is_multiple_of(2) {
            return Err(Error::invalid(format!("heads of {} cannot be rotated in pairs", hidden / heads)));
        }
        self.layers.iter_mut().for_each(|layer| layer.window = narrower(layer.window, context));
        Ok(self)
    }
}

/// A table of learned positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) rows: usize,
    /// The row of a text's first token. RoBERTa and its kin count from behind the padding token's index.
    pub(crate) first: usize,
}

/// Where a layer's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// After each sum: `norm(h + f(h))`.
    After,
    /// Before attention and feed-forward, and once after the last layer: `h + f(norm(h))`. The first layer's attention has
    /// none, as the embeddings were just normed.
    Before,
}

/// Whether a feed-forward is gated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    None,
    /// `activation(first half) * second half` (GLU, Shazeer, 2020).
    FirstHalf,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerShape {
    /// Rotates queries and keys.
    pub(crate) rope: Option<Rope>,
    /// A token sees only tokens less than so many positions away, on both sides.
    pub(crate) window: Option<usize>,
}

/// What attention scores know of how far tokens are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Relation {
    None,
    /// A learned bias for each head and bucket of distances, shared by all layers (MPNet). `rows` are those of the table.
    Buckets {
        rows: usize,
    },
    /// Less for every position between, by a slope for each head, alike on both sides (ALiBi; Jina).
    Slopes,
    /// Products with vectors of bucketed distances (He et al., 2021; DeBERTa).
    Disentangled(Disentangled),
}

/// DeBERTa's attention, beside the content's own product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disentangled {
    /// A query against the distance's vector.
    pub(crate) content_to_position: bool,
    /// A key against the distance's vector.
    pub(crate) position_to_content: bool,
    /// Distances' vectors are projected by the layer's own queries and keys.
    pub(crate) shared: bool,
    /// Distances' vectors are normed first.
    pub(crate) normed: bool,
    /// Vectors on each side of distance 0.
    pub(crate) span: usize,
    /// Buckets on both sides together; `None`: every distance is its own.
    pub(crate) buckets: Option<usize>,
    /// The distance where buckets end.
    pub(crate) distance_max: usize,
}

/// An activation, of a feed-forward or a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// GELU with the error function.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    Relu,
    Silu,
    Tanh,
    Identity,
}

/// A classifier on top of an encoder: one state of the row, a dense layer, an activation, and a product for each label.
/// Modules are named as they stand in the files, or below the encoder's prefix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadShape {
    pub(crate) state: HeadState,
    pub(crate) dense: &'static str,
    pub(crate) activation: Activation,
    /// The norm after the activation, where there is one.
    pub(crate) norm: Option<&'static str>,
    /// The last product.
    pub(crate) out: &'static str,
    /// The labels, in the order of the last product's rows.
    pub(crate) labels: Vec<String>,
}

/// Which state of a row a classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadState {
    /// The first token's.
    First,
    /// The mean of all tokens'.
    Mean,
}
