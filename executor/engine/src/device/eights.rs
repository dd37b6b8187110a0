//! Which models a device computes with 8-bit floats (E4M3: four bits of exponent, three of fraction, up to 448), and how a matrix is
//! brought there: each of its rows with a scale of its own, as each row of what it is multiplied with, so products are right by both
//! scales and nothing has to be measured before. Refuses by name what the products cannot take.

use rowmill_jobs::{Error, Result};

use crate::decoder::shape::{DecoderShape, Feed};
use crate::descriptor::Descriptor;

/// Rows and columns of a matrix are multiples of this.
const UNIT: usize = 16;
/// Ada, the first GPUs that multiply such numbers.
const CAPABILITY: [i32; 2] = [8, 9];

/// Refuses models but decoders whose matrices can be multiplied so.
pub(crate) fn check(architecture: &str, descriptor: &Descriptor) -> Result<()> {
    let why = match descriptor {
        Descriptor::Decoder(shape) | Descriptor::Embedder(shape) if !widths(shape).all(|w| w.is_multiple_of(UNIT)) => {
            "its sizes are not multiples of 16"
        }
        Descriptor::Decoder(_) | Descriptor::Embedder(_) => return Ok(()),
        _ => "only decoders are",
    };
    Err(Error::invalid(format!("{architecture} is not computed in fp8: {why}"))
        .hint("leave `dtype` out: it is computed in bf16 then"))
}

/// Rows and columns of all matrices of its layers.
fn widths(shape: &DecoderShape) -> impl Iterator<Item = usize> {
    let heads = shape.heads;
    let inner = shape.layers.iter().filter_map(|layer| match layer.feed {
        Feed::Dense(inner) => Some(inner),
        Feed::Experts => None,
    });
    [shape.hidden, heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim].into_iter().chain(inner)
}

/// Refuses a GPU that does not multiply such numbers.
pub(crate) fn check_capability(capability: [i32; 2]) -> Result<()> {
    if capability >= CAPABILITY {
        return Ok(());
    }
    let [major, minor] = capability;
    Err(Error::invalid(format!("this GPU (compute capability {major}.{minor}) does not multiply 8-bit floats"))
        .hint("leave `dtype` out, or use a GPU of 8.9 or later: L4, L40, H100 and H200 are"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::descriptor::{architecture_of, from_config};

    fn checked(config: &Value) -> Result<()> {
        check(&architecture_of(config), &from_config(config).unwrap())
    }

    #[test]
    fn decoders_of_suitable_sizes_are_computed_and_nothing_else() {
        let llama = |inner: usize| {
            json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": inner, "vocab_size": 100,
                "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5})
        };
        checked(&llama(1008)).unwrap();
        let error = checked(&llama(1000)).unwrap_err();
        assert!(error.to_string().contains("LlamaForCausalLM") && error.to_string().contains("multiples of 16"));
        let bert = json!({"architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 100,
            "num_hidden_layers": 2, "num_attention_heads": 12, "type_vocab_size": 2, "max_position_embeddings": 128});
        assert!(checked(&bert).unwrap_err().to_string().contains("only decoders"));
    }

    #[test]
    fn gpus_before_ada_are_refused_with_those_that_are_not() {
        for [major, minor] in [[8, 9], [9, 0], [10, 0]] {
            check_capability([major, minor]).unwrap();
        }
        for [major, minor] in [[7, 5], [8, 0], [8, 6]] {
            assert!(check_capability([major, minor]).unwrap_err().hint_text().unwrap().contains("8.9"));
        }
    }
}
