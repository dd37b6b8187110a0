//! One face for safetensors and GGUF: tensors by their hub names, checked against the shape the architecture expects.
//! A tensor of another shape, or a missing one, is named with both shapes; nothing is guessed or filled in.

use std::sync::Arc;

use candle_core::DType;
use rowmill_jobs::{Error, Result};

use crate::gguf::{GgufFile, gguf_name, unpermute};
use crate::linear::{Linear, Matrix, from_bytes, internal};
use crate::lora::Adapter;
use crate::safetensors::SafetensorsFiles;

/// A model's tensors.
#[derive(Debug)]
pub(crate) enum Weights {
    /// Safetensors; `prefix` stands before every name in the files, `adapter` changes what is read from them.
    Safetensors { files: SafetensorsFiles, prefix: &'static str, adapter: Option<Adapter> },
    /// GGUF of llama.cpp; `keep` leaves quantised matrices as they are instead of widening them.
    Gguf { file: GgufFile, keep: bool },
}

impl Weights {
    /// Whether there is a tensor of this hub name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors { files, prefix, .. } => files.has(&format!("{prefix}{name}")),
            Self::Gguf { file, .. } => gguf_name(name).is_some_and(|name| file.has(&name)),
        }
    }

    /// Checks that a tensor is there and has this shape; reads nothing.
    pub(crate) fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        let (found, file, stored) = match self {
            Self::Safetensors { files, prefix, .. } => {
                let stored = format!("{prefix}{name}");
                (files.shape(&stored), files.file_of(&stored), stored)
            }
            Self::Gguf { file, .. } => {
                let stored = gguf_name(name).unwrap_or_default();
                (file.shape(&stored), file.path.as_path(), stored)
            }
        };
        let error = match found {
            Some(found) if found == expected => return Ok(()),
            Some(found) => {
                format!("tensor `{stored}` has the shape {found:?}, but the configuration asks for {expected:?}")
            }
            None => format!("tensor `{stored}` is missing; the configuration asks for the shape {expected:?}"),
        };
        Err(Error::invalid(error)
            .with("file", file.display())
            .hint("weights and configuration are not of the same model, or the download is not whole"))
    }

    /// A tensor's values in row-major order, after [`Weights::check`].
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        match self {
            Self::Safetensors { files, prefix, adapter } => {
                let stored = format!("{prefix}{name}");
                let mut values = files.read(&stored)?;
                if let (Some(adapter), [_, columns]) = (adapter, shape) {
                    adapter.merge(&stored, *columns, &mut values)?;
                }
                Ok(values)
            }
            Self::Gguf { file, .. } => file.read(&gguf_name(name).unwrap_or_default()),
        }
    }

    /// A tensor of one dimension, or `None` where the model has none.
    pub(crate) fn read_if_there(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        if self.has(name) { self.read(name, shape).map(Some) } else { Ok(None) }
    }
}

/// One matrix of a fused [`Linear`]: rows of `name`, whose order may have to be undone.
pub(crate) struct Part<'a> {
    /// Module name without `.weight` or `.bias`.
    pub(crate) module: &'a str,
    /// Output features.
    pub(crate) rows: usize,
    /// Number of heads whose rows llama.cpp interleaved.
    pub(crate) interleaved_heads: Option<usize>,
}

/// Loads the matrices of `parts` as one, `[sum of rows, columns]`, with their biases where they have any.
pub(crate) fn fused(weights: &Weights, parts: &[Part<'_>], columns: usize, dtype: DType) -> Result<Linear> {
    let mut biases = Vec::new();
    for part in parts {
        let own = weights.read_if_there(&format!("{}.bias", part.module), &[part.rows])?;
        biases.push(own.map(|bias| part.in_order(bias, 1)));
    }
    let bias = biases.iter().any(Option::is_some).then(|| {
        biases.into_iter().zip(parts).flat_map(|(bias, part)| bias.unwrap_or_else(|| vec![0.0; part.rows])).collect()
    });
    let matrices = match weights {
        Weights::Gguf { file, keep: true } => quantised(weights, file, parts, columns)?,
        _ => None,
    };
    if let Some(matrices) = matrices {
        return Ok(Linear::of(matrices, columns, bias));
    }
    let mut matrix = Vec::with_capacity(parts.iter().map(|part| part.rows).sum::<usize>() * columns);
    for part in parts {
        let values = weights.read(&format!("{}.weight", part.module), &[part.rows, columns])?;
        matrix.extend(part.in_order(values, columns));
    }
    Linear::new(matrix, columns, bias, dtype)
}

/// The matrices as they are quantised, or `None` if one of them is not.
fn quantised(weights: &Weights, file: &GgufFile, parts: &[Part<'_>], columns: usize) -> Result<Option<Vec<Matrix>>> {
    let mut matrices = Vec::new();
    for part in parts {
        let name = format!("{}.weight", part.module);
        weights.check(&name, &[part.rows, columns])?;
        let stored = gguf_name(&name).unwrap_or_default();
        if !file.is_quantised(&stored) {
            return Ok(None);
        }
        let tensor = file.quantised(&stored)?;
        let tensor = match part.interleaved_heads {
            None => tensor,
            Some(heads) => {
                // A quantised row is a run of bytes of its own, so rows can be put in order without being read.
                let bytes = tensor.data().map_err(internal)?;
                from_bytes(unpermute(&bytes, heads, bytes.len() / part.rows), tensor.dtype(), part.rows, columns)?
            }
        };
        matrices.push(Matrix::Quantised(Arc::new(tensor)));
    }
    Ok(Some(matrices))
}

impl Part<'_> {
    /// Its rows in the order of halves.
    fn in_order(&self, values: Vec<f32>, columns: usize) -> Vec<f32> {
        match self.interleaved_heads {
            Some(heads) => unpermute(&values, heads, columns),
            None => values,
        }
    }
}
