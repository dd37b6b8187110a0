//! LoRA adapters in the layout of PEFT: low-rank changes of a model's matrices, added to them while they are read, so that an
//! adapted model costs what its base does. Refuses adapters of another base, by names and shapes, and kinds of adapters
//! whose sum would be another (DoRA, changed biases, saved modules): a part that is left out would go unnoticed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use rowmill_jobs::{Error, Result};
use serde_json::{Map, Value};

use crate::safetensors::SafetensorsFiles;
use crate::source::read_json;

/// What PEFT puts before the names of the model it wraps.
const WRAPPER: &str = "base_model.model.";

/// Ways of starting a training that change the base's own matrices.
const CHANGED_BASES: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// Settings that must be absent, empty or false: with them the change is more, or other, than a product of two matrices.
const REFUSED: [&str; 6] = [
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
];

/// An adapter, checked against its base.
#[derive(Debug)]
pub(crate) struct Adapter {
    folder: PathBuf,
    files: SafetensorsFiles,
    /// By the name of the base's tensor that it changes.
    changes: HashMap<String, Change>,
}

/// A change of one matrix: `scale · B·A`.
#[derive(Debug)]
struct Change {
    /// `[rank, inputs]`.
    down: String,
    /// `[outputs, rank]`.
    up: String,
    /// The matrix to change, where the adapter brings its own: PEFT saves embeddings with what it learnt about them.
    own: Option<String>,
    rank: usize,
    scale: f32,
    /// The base's matrix is `[inputs, outputs]`.
    transposed: bool,
    /// Whether the model has read the matrix.
    used: AtomicBool,
}

/// What a tensor of an adapter is for its module.
#[derive(Clone, Copy)]
enum Role {
    Down,
    Up,
    EmbeddingDown,
    EmbeddingUp,
    Own,
}

/// How the names of an adapter's tensors end.
const ENDS: [(&str, Role); 5] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_embedding_A", Role::EmbeddingDown),
    (".lora_embedding_B", Role::EmbeddingUp),
    (".base_layer.weight", Role::Own),
];

/// The tensors that an adapter has for one module.
#[derive(Default)]
struct Pair {
    down: Option<String>,
    up: Option<String>,
    own: Option<String>,
    embedding: bool,
}

impl Adapter {
    /// Reads the adapter's configuration and header, and checks every tensor of it against `base`.
    pub(crate) fn open(folder: &Path, base: &SafetensorsFiles) -> Result<Self> {
        let [config_file, weights] = Self::files_of(folder);
        let unfit = |error: Error| error.with("adapter", folder.display());
        let config = read_json(&config_file)?;
        let settings = Settings::read(&config).map_err(unfit)?;
        let files = SafetensorsFiles::open(&[weights])?;
        let mut changes = HashMap::new();
        for (module, pair) in pairs(&files).map_err(unfit)? {
            let (name, change) = settings.change(&module, pair, &files, base).map_err(unfit)?;
            changes.insert(name, change);
        }
        if changes.is_empty() {
            return Err(unfit(Error::invalid("the adapter has no tensors").hint("train and save it again")));
        }
        Ok(Self { folder: folder.to_path_buf(), files, changes })
    }

    /// The files an adapter is read from.
    pub(crate) fn files_of(folder: &Path) -> [PathBuf; 2] {
        [folder.join("adapter_config.json"), folder.join("adapter_model.safetensors")]
    }

    /// Adds its change to a matrix of the base, `[rows, columns]` in row-major order, if it has one.
    pub(crate) fn merge(&self, name: &str, columns: usize, values: &mut [f32]) -> Result<()> {
        let Some(change) = self.changes.get(name) else { return Ok(()) };
        change.used.store(true, Ordering::Relaxed);
        if let Some(own) = &change.own {
            values.copy_from_slice(&self.files.read(own)?);
        }
        let (down, up) = (self.files.read(&change.down)?, self.files.read(&change.up)?);
        let rank = change.rank;
        values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
            for k in 0..rank {
                if change.transposed {
                    // The row is an input: its numbers in A, one by one, times the outputs' column of B.
                    let weight = change.scale * down[k * (down.len() / rank) + row];
                    for (value, up) in values.iter_mut().zip(up[k..].iter().step_by(rank)) {
                        *value += weight * up;
                    }
                } else {
                    let weight = change.scale * up[row * rank + k];
                    for (value, down) in values.iter_mut().zip(&down[k * columns..(k + 1) * columns]) {
                        *value += weight * down;
                    }
                }
            }
        });
        Ok(())
    }

    /// Refuses an adapter of which a part was not merged, once the model is loaded.
    pub(crate) fn check_merged(&self) -> Result<()> {
        let unused = self.changes.iter().filter(|(_, change)| !change.used.load(Ordering::Relaxed));
        match unused.map(|(name, _)| name).min() {
            None => Ok(()),
            Some(name) => {
                Err(Error::invalid(format!("the adapter changes `{name}`, which the engine does not compute"))
                    .with("adapter", self.folder.display())
                    .hint("train the adapter without this module"))
            }
        }
    }
}

/// What `adapter_config.json` says of all modules.
struct Settings<'a> {
    rank: usize,
    alpha: f64,
    /// Divides by the root of the rank instead of the rank.
    rooted: bool,
    transposed: bool,
    ranks: Option<&'a Map<String, Value>>,
    alphas: Option<&'a Map<String, Value>>,
}

impl<'a> Settings<'a> {
    fn read(config: &'a Value) -> Result<Self> {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let refused = |what: String| {
            Err(Error::invalid(format!("the engine does not merge adapters with {what}"))
                .hint("merge it with PEFT (merge_and_unload) and name the merged model as the source"))
        };
        match config.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            other => return refused(format!("peft_type = {}", other.unwrap_or("nothing"))),
        }
        if flag("use_dora") {
            return refused("use_dora (DoRA)".to_owned());
        }
        // Variants that are yet to come will be asked for as these are.
        let asked = |(key, value): &(&String, &Value)| {
            key.starts_with("use_") && *key != "use_rslora" && !matches!(value, Value::Null | Value::Bool(false))
        };
        if let Some((key, _)) = config.as_object().into_iter().flatten().find(asked) {
            return refused(key.clone());
        }
        let empty = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if let Some(key) = REFUSED.into_iter().find(|key| config.get(*key).is_some_and(|value| !empty(value))) {
            return refused(key.to_owned());
        }
        if let Some(bias) = config.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
            return refused(format!("bias = {bias}"));
        }
        let start = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if CHANGED_BASES.iter().any(|name| start.starts_with(name)) {
            return refused(format!("init_lora_weights = {start}, which changes the base, too"));
        }
        let lacks = |key: &str| {
            Error::invalid(format!("adapter_config.json has no `{key}`")).hint("save the adapter again with PEFT")
        };
        Ok(Self {
            rank: config.get("r").and_then(Value::as_u64).ok_or_else(|| lacks("r"))? as usize,
            alpha: config.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| lacks("lora_alpha"))?,
            rooted: flag("use_rslora"),
            transposed: flag("fan_in_fan_out"),
            ranks: config.get("rank_pattern").and_then(Value::as_object),
            alphas: config.get("alpha_pattern").and_then(Value::as_object),
        })
    }

    /// The change of a module, and the name of the base's tensor.
    fn change(
        &self,
        module: &str,
        pair: Pair,
        files: &SafetensorsFiles,
        base: &SafetensorsFiles,
    ) -> Result<(String, Change)> {
        let (Some(down), Some(up)) = (pair.down, pair.up) else {
            return Err(Error::invalid(format!("the adapter has only one of two matrices for `{module}`"))
                .hint("download the adapter again"));
        };
        let name = format!("{module}.weight");
        if !base.has(&name) {
            return Err(Error::invalid(format!("the adapter changes `{module}`, which its base does not have"))
                .hint("the adapter is of another model"));
        }
        let rank = pattern(self.ranks, module)?.map_or(self.rank, |rank| rank as usize);
        let alpha = pattern(self.alphas, module)?.unwrap_or(self.alpha);
        // An embedding looks rows up by its input; what it gives are its columns.
        let transposed = self.transposed || pair.embedding;
        let shapes = [files.shape(&down), files.shape(&up), base.shape(&name)].map(Option::unwrap_or_default);
        let fits = match shapes {
            [[r, inputs], [outputs, r2], [rows, columns]] => {
                let expected = if transposed { [inputs, outputs] } else { [outputs, inputs] };
                *r > 0 && [r, r2] == [&rank; 2] && [rows, columns] == expected
            }
            _ => false,
        };
        let fits = fits && pair.own.as_ref().is_none_or(|own| files.shape(own) == base.shape(&name));
        if !fits {
            let [down_shape, up_shape, base_shape] = shapes;
            let why = format!(
                "the adapter's `{down}` {down_shape:?} and `{up}` {up_shape:?} of rank {rank} do not fit `{name}` {base_shape:?}"
            );
            return Err(Error::invalid(why).hint("the adapter is of another model"));
        }
        let divisor = if self.rooted { (rank as f64).sqrt() } else { rank as f64 };
        let scale = (alpha / divisor) as f32;
        Ok((name, Change { down, up, own: pair.own, rank, scale, transposed, used: AtomicBool::new(false) }))
    }
}

/// The value that a pattern of names gives a module, if one does.
fn pattern(patterns: Option<&Map<String, Value>>, module: &str) -> Result<Option<f64>> {
    for (key, value) in patterns.into_iter().flatten() {
        if key.contains(|c: char| "^$*+?()[]{}|\\".contains(c)) {
            return Err(Error::invalid(format!("adapter_config.json gives ranks by the expression `{key}`"))
                .hint("the engine reads names and ends of names there; write out the modules"));
        }
        if module == key || module.strip_suffix(key.as_str()).is_some_and(|before| before.ends_with('.')) {
            return value.as_f64().map(Some).ok_or_else(|| {
                Error::invalid(format!("adapter_config.json gives `{key}` no number")).hint("save the adapter again")
            });
        }
    }
    Ok(None)
}

/// The adapter's tensors by module, in order.
fn pairs(files: &SafetensorsFiles) -> Result<BTreeMap<String, Pair>> {
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for name in files.names() {
        let found =
            ENDS.into_iter().find_map(|(end, role)| Some((name.strip_prefix(WRAPPER)?.strip_suffix(end)?, role)));
        let Some((module, role)) = found else {
            return Err(Error::invalid(format!("the adapter has a tensor `{name}`, which is none of LoRA's"))
                .hint("merge it with PEFT (merge_and_unload) and name the merged model as the source"));
        };
        let pair = pairs.entry(module.to_owned()).or_default();
        let place = match role {
            Role::Down | Role::EmbeddingDown => &mut pair.down,
            Role::Up | Role::EmbeddingUp => &mut pair.up,
            Role::Own => &mut pair.own,
        };
        *place = Some(name.to_owned());
        pair.embedding |= matches!(role, Role::EmbeddingDown | Role::EmbeddingUp);
    }
    Ok(pairs)
}

#[cfg(test)]
#[path = "lora_tests.rs"]
mod tests;
