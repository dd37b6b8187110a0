//! Reads `targets.toml`: for each provider a list of layers, of which those apply whose `models` match. The table is part
//! of the program; what is wrong with it is found by the tests, not by users.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rowmill_jobs::error::closest;
use rowmill_jobs::{Error, Result};

use super::Overrides;

const TABLE: &str = include_str!("../targets.toml");
/// The layers under every provider's own.
const DEFAULTS: &str = "defaults";

/// Fields for the models that one of the globs matches; without globs, for all.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    pub(super) models: Vec<String>,
    pub(super) fields: Overrides,
}

type Table = BTreeMap<String, Vec<Layer>>;

static PARSED: LazyLock<Result<Table, String>> = LazyLock::new(|| parse(TABLE));

fn table() -> Result<&'static Table> {
    PARSED.as_ref().map_err(|message| Error::internal(format!("the table of providers: {message}")))
}

/// The fields that the table has for a model.
pub(super) fn fields(provider: &str, model: &str) -> Result<Overrides> {
    let table = table()?;
    let layers = table.get(provider).filter(|_| provider != DEFAULTS).ok_or_else(|| {
        let names: Vec<&str> = table.keys().map(String::as_str).filter(|name| *name != DEFAULTS).collect();
        let error = Error::invalid(format!("there is no provider `{provider}`"));
        match closest(provider, names.iter().copied()) {
            Some(close) => error.hint(format!("did you mean `{close}`?")),
            None => error.hint(format!("providers: {}", names.join(", "))),
        }
    })?;
    let common = table.get(DEFAULTS).into_iter().flatten();
    let matching = common.chain(layers).filter(|layer| {
        layer.models.is_empty() || layer.models.iter().any(|glob| matches(glob.as_bytes(), model.as_bytes()))
    });
    Ok(matching.fold(Overrides::default(), |under, layer| layer.fields.clone().over(under)))
}

/// The names of all providers.
pub(super) fn providers() -> Result<Vec<String>> {
    Ok(table()?.keys().filter(|name| *name != DEFAULTS).cloned().collect())
}

/// Reads a table. The error names the entry.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    let providers: BTreeMap<String, Vec<toml::Table>> = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut table = Table::new();
    for (provider, layers) in providers {
        for (index, mut fields) in layers.into_iter().enumerate() {
            let wrong = |message: String| format!("{provider}, entry {}: {message}", index + 1);
            let models = match fields.remove("models") {
                None => Vec::new(),
                Some(models) => models.try_into().map_err(|error: toml::de::Error| wrong(error.to_string()))?,
            };
            let fields = fields.try_into().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
            table.entry(provider.clone()).or_default().push(Layer { models, fields });
        }
    }
    Ok(table)
}

/// Whether a glob, in which `*` stands for any text, is of the whole name. ASCII case is not told apart: providers spell
/// the same model in both.
pub(super) fn matches(glob: &[u8], name: &[u8]) -> bool {
    match glob.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        Some((first, rest)) => {
            name.split_first().is_some_and(|(byte, name)| first.eq_ignore_ascii_case(byte) && matches(rest, name))
        }
    }
}
