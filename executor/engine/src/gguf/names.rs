//! llama.cpp's names of tensors, from those of the hub, and the order of rows its converter changes.
//! Knows names only; which of them a model has, its architecture says.

/// llama.cpp's name for a decoder tensor with this name on the hub, if it has one.
pub(crate) fn gguf_name(hub: &str) -> Option<String> {
    Some(match hub {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => {
            let (layer, rest) = hub.strip_prefix("model.layers.")?.split_once('.')?;
            let (module, kind) = rest.rsplit_once('.')?;
            let module = match module {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{module}.{kind}")
        }
    })
}

/// Undoes the permutation llama.cpp's converter applies to the rows of q and k of a Llama: from interleaved rotary pairs
/// back to halves. `rows` is `[heads * head_dim, columns]`, of floats or of a quantised row's bytes.
pub(crate) fn unpermute<T: Copy>(rows: &[T], heads: usize, columns: usize) -> Vec<T> {
    let head_rows = rows.len() / columns / heads;
    let half = head_rows / 2;
    let mut out = Vec::with_capacity(rows.len());
    for head in 0..heads {
        for row in 0..head_rows {
            // Row `row` of the halves layout stood at 2 * (row % half) + row / half.
            let from = head * head_rows + 2 * (row % half) + row / half;
            out.extend_from_slice(&rows[from * columns..(from + 1) * columns]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermute_turns_pairs_into_halves() {
        // Two heads of four rows; permuted order of rows 0 1 2 3 is 0 2 1 3.
        let permuted = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(unpermute(&permuted, 2, 1), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }

    #[test]
    fn names_translate() {
        assert_eq!(gguf_name("model.layers.12.self_attn.q_proj.bias").as_deref(), Some("blk.12.attn_q.bias"));
        assert_eq!(gguf_name("lm_head.weight").as_deref(), Some("output.weight"));
        assert_eq!(gguf_name("model.layers.0.other.weight"), None);
    }
}
