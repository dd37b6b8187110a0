//! Reads values of a model's `config.json`: a missing or senseless one is refused with its key. Knows no architecture.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

/// More layers than any model has: memory is taken for them before their tensors are looked for.
const LAYERS_MAX: usize = 1024;

pub(crate) fn size(config: &Value, key: &str) -> Result<usize> {
    optional_size(config, key)
        .ok_or_else(|| Error::invalid(format!("config.json has no usable `{key}`")).hint("download the model again"))
}

pub(crate) fn optional_size(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).and_then(usable)
}

/// A size that some model may have: above 0, and small enough that a product of two is a number.
pub(crate) fn usable(value: u64) -> Option<usize> {
    usize::try_from(value).ok().filter(|_| (1..1 << 32).contains(&value))
}

/// A number of layers.
pub(crate) fn layers(config: &Value, key: &str) -> Result<usize> {
    checked_layers(size(config, key)?, key)
}

/// The same, read from elsewhere.
pub(crate) fn checked_layers(layers: usize, key: &str) -> Result<usize> {
    if layers > LAYERS_MAX { Err(unsupported_value(key, &layers.to_string())) } else { Ok(layers) }
}

pub(crate) fn flag(config: &Value, key: &str, default: bool) -> bool {
    config.get(key).and_then(Value::as_bool).unwrap_or(default)
}

pub(crate) fn number(config: &Value, key: &str) -> Option<f64> {
    config.get(key).and_then(Value::as_f64)
}

pub(crate) fn text<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

pub(crate) fn unsupported_value(key: &str, value: &str) -> Error {
    Error::invalid(format!("the engine does not compute `{key}` = \"{value}\""))
        .hint("use another model of this family")
}
