//! Reads values of a model's `config.json`: a missing or senseless one is refused with its key. Knows no architecture.

use rowmill_jobs::{Error, Result};
use serde_json::Value;

pub(crate) fn size(config: &Value, key: &str) -> Result<usize> {
    optional_size(config, key)
        .ok_or_else(|| Error::invalid(format!("config.json has no usable `{key}`")).hint("download the model again"))
}

pub(crate) fn optional_size(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).filter(|value| (1..1 << 32).contains(value)).map(|value| value as usize)
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
