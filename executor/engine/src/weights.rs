//! One face for safetensors and GGUF: tensors by their hub names, checked against the shape the architecture expects.
//! A tensor of another shape, or a missing one, is named with both shapes; nothing is guessed or filled in.

use candle_core::{DType, Device, Tensor};
use half::f16;
use rowmill_jobs::{Error, Result};

use crate::gguf::{GgufFile, gguf_name, unpermute};
use crate::linear::{Linear, internal};
use crate::safetensors::SafetensorsFiles;

/// A model's tensors.
#[derive(Debug)]
pub(crate) enum Weights {
    /// Safetensors; `prefix` stands before every name in the files.
    Safetensors { files: SafetensorsFiles, prefix: &'static str },
    /// GGUF of llama.cpp.
    Gguf(GgufFile),
}

impl Weights {
    /// Whether there is a tensor of this hub name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors { files, prefix } => files.has(&format!("{prefix}{name}")),
            Self::Gguf(file) => gguf_name(name).is_some_and(|name| file.has(&name)),
        }
    }

    /// Checks that a tensor is there and has this shape; reads nothing.
    pub(crate) fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        let (found, file, stored) = match self {
            Self::Safetensors { files, prefix } => {
                let stored = format!("{prefix}{name}");
                (files.shape(&stored), files.file_of(&stored), stored)
            }
            Self::Gguf(file) => {
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
            Self::Safetensors { files, prefix } => files.read(&format!("{prefix}{name}")),
            Self::Gguf(file) => file.read(&gguf_name(name).unwrap_or_default()),
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
    let rows: usize = parts.iter().map(|part| part.rows).sum();
    let mut matrix = Vec::with_capacity(rows * columns);
    let mut bias = Vec::new();
    for part in parts {
        let values = weights.read(&format!("{}.weight", part.module), &[part.rows, columns])?;
        let own = weights.read_if_there(&format!("{}.bias", part.module), &[part.rows])?;
        match part.interleaved_heads {
            Some(heads) => {
                matrix.extend(unpermute(&values, heads, columns));
                bias.push(own.map(|bias| unpermute(&bias, heads, 1)));
            }
            None => {
                matrix.extend(values);
                bias.push(own);
            }
        }
    }
    let bias = bias.iter().any(Option::is_some).then(|| {
        let zeros = |rows| vec![0.0; rows];
        bias.into_iter().zip(parts).flat_map(|(bias, part)| bias.unwrap_or_else(|| zeros(part.rows))).collect()
    });
    Linear::new(matrix, rows, columns, bias, dtype)
}

/// A matrix as a tensor of the given type.
pub(crate) fn matrix(values: Vec<f32>, rows: usize, columns: usize, dtype: DType) -> Result<Tensor> {
    let shape = (rows, columns);
    match dtype {
        DType::F16 => Tensor::from_vec(values.into_iter().map(f16::from_f32).collect(), shape, &Device::Cpu),
        _ => Tensor::from_vec(values, shape, &Device::Cpu),
    }
    .map_err(internal)
}
