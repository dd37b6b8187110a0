//! Rotary position embedding (Su et al., 2021): the angles of a model, from its configuration.
//! Refuses kinds of scaling that it does not compute.

use std::f64::consts::PI;

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
    Yarn(Yarn),
    Long(Long),
}

/// YaRN (Peng et al., 2023): frequencies that turn less than `slow` times in the original context are divided by `factor`,
/// those that turn more than `fast` times kept, those between blended by their index.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f64,
    pub(crate) fast: f64,
    pub(crate) slow: f64,
    pub(crate) original_context: f64,
    /// Whether the blend begins and ends at whole indices.
    pub(crate) truncated: bool,
    /// Multiplies cosines and sines.
    pub(crate) magnitude: f64,
    /// Multiplies the scale of attention (DeepSeek).
    pub(crate) attention: f64,
}

/// LongRoPE (Ding et al., 2024; Phi-3): a divisor of its own for each frequency, in two sets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Long {
    /// For sequences within the original context.
    pub(crate) short: Vec<f64>,
    /// For longer ones.
    pub(crate) long: Vec<f64>,
    pub(crate) original_context: usize,
    /// Multiplies cosines and sines.
    pub(crate) magnitude: f64,
    /// Whether the long set is used.
    pub(crate) extended: bool,
}

/// Reads a `config.json` whose layers rotate alike.
pub(crate) fn from_config(config: &Value) -> Result<Rope> {
    // transformers 5 nests everything in `rope_parameters`; before, theta was flat and scaling had its own object.
    let nested = config.get("rope_parameters").filter(|value| value.is_object());
    let theta = ["rope_theta", "rotary_emb_base"].iter().find_map(|key| number(config, key)).unwrap_or(10_000.0);
    from_parameters(config, nested.or_else(|| config.get("rope_scaling")), theta)
}

/// Reads one object of rotary parameters; `theta` is that of the configuration around it.
pub(crate) fn from_parameters(config: &Value, parameters: Option<&Value>, theta: f64) -> Result<Rope> {
    let Some(value) = parameters.filter(|value| value.is_object()) else {
        return Ok(Rope { theta, scaling: RopeScaling::None });
    };
    let theta = number(value, "rope_theta").unwrap_or(theta);
    let needed = |key: &str| {
        number(value, key).ok_or_else(|| Error::invalid(format!("config.json: rope scaling has no `{key}`")))
    };
    let scaling = match text(value, "rope_type").or_else(|| text(value, "type")).unwrap_or("default") {
        // Dynamic scaling changes nothing up to `max_position_embeddings`, which is the context rows may have.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear(needed("factor")?),
        "llama3" => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original_context: needed("original_max_position_embeddings")?,
        },
        "yarn" => RopeScaling::Yarn(yarn(config, value)?),
        "longrope" | "su" => RopeScaling::Long(long(config, value)?),
        other => return Err(unsupported_value("rope_type", other)),
    };
    Ok(Rope { theta, scaling })
}

/// The context a model was first trained with. Phi-3 says it beside its scaling.
fn original_context(config: &Value, value: &Value) -> Result<f64> {
    let key = "original_max_position_embeddings";
    let found =
        number(config, key).or_else(|| number(value, key)).or_else(|| number(config, "max_position_embeddings"));
    found
        .filter(|tokens| *tokens > 1.0)
        .ok_or_else(|| Error::invalid(format!("config.json: rope scaling has no usable `{key}`")))
}

/// How many times longer than the original context the model's is.
fn stretch(config: &Value, value: &Value, original: f64) -> f64 {
    let own = || number(config, "max_position_embeddings").map(|context| context / original);
    number(value, "factor").or_else(own).unwrap_or(1.0)
}

fn yarn(config: &Value, value: &Value) -> Result<Yarn> {
    let original_context = original_context(config, value)?;
    let factor = stretch(config, value, original_context);
    let magnitude_of = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weight = |key: &str| number(value, key).filter(|weight| *weight != 0.0);
    let (one, all) = (weight("mscale"), weight("mscale_all_dim"));
    let inferred = match (one, all) {
        (Some(one), Some(all)) => magnitude_of(one) / magnitude_of(all),
        _ => magnitude_of(1.0),
    };
    Ok(Yarn {
        factor,
        fast: weight("beta_fast").unwrap_or(32.0),
        slow: weight("beta_slow").unwrap_or(1.0),
        original_context,
        truncated: value.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        magnitude: number(value, "attention_factor").unwrap_or(inferred),
        attention: all.map_or(1.0, |all| magnitude_of(all).powi(2)),
    })
}

fn long(config: &Value, value: &Value) -> Result<Long> {
    let original = original_context(config, value)?;
    let factor = stretch(config, value, original);
    let factors = |key: &str| {
        let list: Option<Vec<f64>> =
            value.get(key).and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_f64).collect());
        list.ok_or_else(|| Error::invalid(format!("config.json: rope scaling has no list `{key}`")))
    };
    let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    Ok(Long {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original_context: original as usize,
        magnitude: number(value, "attention_factor").unwrap_or(inferred),
        extended: false,
    })
}

impl Rope {
    /// The angle per position of each pair of the `rotary` floats: `[rotary / 2]`. `factors`, where a GGUF file has them,
    /// divide it.
    pub(crate) fn frequencies(&self, rotary: usize, factors: Option<&[f32]>) -> Vec<f32> {
        let turn = |i: usize| self.theta.powf(-2.0 * i as f64 / rotary as f64);
        let scaled = |i: usize| match &self.scaling {
            RopeScaling::None => turn(i),
            RopeScaling::Linear(factor) => turn(i) / factor,
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                let turns = original_context * turn(i) / (2.0 * PI);
                let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - blend) * turn(i) / factor + blend * turn(i)
            }
            RopeScaling::Yarn(yarn) => {
                let divided = yarn.divided(i, rotary, self.theta);
                divided * turn(i) / yarn.factor + (1.0 - divided) * turn(i)
            }
            RopeScaling::Long(long) => turn(i) / long.factors().get(i).copied().unwrap_or(1.0),
        };
        (0..rotary / 2)
            .map(|i| (scaled(i) / factors.and_then(|f| f.get(i)).map_or(1.0, |f| f64::from(*f))) as f32)
            .collect()
    }

    /// What multiplies cosines and sines.
    pub(crate) fn magnitude(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.magnitude as f32,
            RopeScaling::Long(long) => long.magnitude as f32,
            _ => 1.0,
        }
    }

    /// The context within which other factors hold than beyond it.
    pub(crate) fn original_context(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Long(long) => Some(long.original_context),
            _ => None,
        }
    }

    /// Takes the factors for sequences beyond the original context.
    pub(crate) fn extend(&mut self) {
        if let RopeScaling::Long(long) = &mut self.scaling {
            long.extended = true;
        }
    }

    /// Whether its factors are as many as there are pairs.
    pub(crate) fn fits(&self, rotary: usize) -> bool {
        match &self.scaling {
            RopeScaling::Long(long) => [&long.short, &long.long].iter().all(|factors| factors.len() == rotary / 2),
            _ => true,
        }
    }
}

impl Yarn {
    /// How far the `i`-th frequency is divided: 0 not at all, 1 wholly.
    fn divided(&self, i: usize, rotary: usize, theta: f64) -> f64 {
        let size = rotary as f64;
        let index_of = |turns: f64| size * (self.original_context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (from, to) = (index_of(self.fast), index_of(self.slow));
        let (from, to) = if self.truncated { (from.floor(), to.ceil()) } else { (from, to) };
        let (from, to) = (from.max(0.0), to.min(size - 1.0));
        let to = if from == to { to + 0.001 } else { to };
        ((i as f64 - from) / (to - from)).clamp(0.0, 1.0)
    }
}

impl Long {
    fn factors(&self) -> &[f64] {
        if self.extended { &self.long } else { &self.short }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 64.0 };
        let scaled = Rope { theta: 10_000.0, scaling }.frequencies(16, None);
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None }.frequencies(16, None);
        assert!((scaled[0] / plain[0] - 1.0).abs() < 1e-6);
        assert!((scaled[7] / plain[7] - 0.125).abs() < 1e-6);
    }

    #[test]
    fn both_spellings_say_the_same() {
        let flat = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let nested = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}});
        let rope = Rope { theta: 5e5, scaling: RopeScaling::Linear(4.0) };
        assert_eq!(from_config(&flat).unwrap(), rope);
        assert_eq!(from_config(&nested).unwrap(), rope);
        let error = from_config(&json!({"rope_scaling": {"type": "spiral"}})).unwrap_err();
        assert!(error.to_string().contains("spiral"));
    }
}
