//! Rotary position embedding (Su et al., 2021): the angles of a model, from its configuration, and the rotation itself.
//! Refuses kinds of scaling that it does not compute.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::config::{number, text, unsupported_value};

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: RopeScaling,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// Every frequency divided by this factor.
    Linear(f64),
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_context: f64,
    },
}

/// Reads a `config.json`.
pub(crate) fn from_config(config: &Value) -> Result<Rope> {
    // transformers 5 nests everything in `rope_parameters`; before, theta was flat and scaling had its own object.
    let nested = config.get("rope_parameters").filter(|value| value.is_object());
    let theta = nested.and_then(|value| number(value, "rope_theta")).or_else(|| number(config, "rope_theta"));
    let scaling = nested.or_else(|| config.get("rope_scaling").filter(|value| value.is_object()));
    let scaling = match scaling {
        None => RopeScaling::None,
        Some(value) => {
            let needed = |key: &str| {
                number(value, key).ok_or_else(|| Error::invalid(format!("config.json: rope scaling has no `{key}`")))
            };
            match text(value, "rope_type").or_else(|| text(value, "type")).unwrap_or("default") {
                "default" => RopeScaling::None,
                "linear" => RopeScaling::Linear(needed("factor")?),
                "llama3" => RopeScaling::Llama3 {
                    factor: needed("factor")?,
                    low: needed("low_freq_factor")?,
                    high: needed("high_freq_factor")?,
                    original_context: needed("original_max_position_embeddings")?,
                },
                other => return Err(unsupported_value("rope_type", other)),
            }
        }
    };
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
}

impl Rope {
    /// The angle per position of each pair of a head: `[head_dim / 2]`. `factors`, where a GGUF file has them, divide it.
    pub(crate) fn frequencies(&self, head_dim: usize, factors: Option<&[f32]>) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                let scaled = match self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear(factor) => plain / factor,
                    RopeScaling::Llama3 { factor, low, high, original_context } => {
                        let turns = original_context * plain / (2.0 * std::f64::consts::PI);
                        let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - blend) * plain / factor + blend * plain
                    }
                };
                (scaled / factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f))) as f32
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 64.0 };
        let scaled = Rope { theta: 10_000.0, scaling }.frequencies(16, None);
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(16, None);
        assert!((scaled[0] / plain[0] - 1.0).abs() < 1e-6);
        assert!((scaled[7] / plain[7] - 0.125).abs() < 1e-6);
    }
}
