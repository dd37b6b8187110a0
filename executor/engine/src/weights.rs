//! One face for safetensors and GGUF: tensors by their names, checked against the shape the architecture expects.
//! A tensor of another shape, or a missing one, is named with both shapes; nothing is guessed or filled in.

use crate::linear::Precision;
use candle_core::quantized::{GgmlDType, QTensor};
use rowmill_jobs::{Error, Result};

use crate::gguf::GgufFile;
use crate::linear::Linear;
use crate::lora::Adapter;
use crate::safetensors::SafetensorsFiles;

/// A model's tensors.
#[derive(Debug)]
pub(crate) enum Weights {
    /// Safetensors; `prefix` stands before every name in the files, `adapter` changes what is read from them.
    Safetensors { files: SafetensorsFiles, prefix: &'static str, adapter: Option<Adapter> },
    /// GGUF of llama.cpp.
    Gguf { file: GgufFile, kept: Kept },
}

/// Which quantised matrices stay as they are in memory; the others are widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    None,
    /// Those that can be multiplied as tiles: `Q8_0`.
    Tiles,
    All,
}

impl Weights {
    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors { files, prefix, .. } => files.has(&format!("{prefix}{name}")),
            Self::Gguf { file, .. } => file.has(name),
        }
    }

    /// Checks that a tensor is there and has this shape; reads nothing.
    pub(crate) fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        let (found, file, stored) = match self {
            Self::Safetensors { files, prefix, .. } => {
                let stored = format!("{prefix}{name}");
                (files.shape(&stored), files.file_of(&stored), stored)
            }
            Self::Gguf { file, .. } => (file.shape(name), file.path.as_path(), name.to_owned()),
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
            Self::Gguf { file, .. } => file.read(name),
        }
    }

    /// A tensor as it is quantised, or `None` where it is not or is not to stay so.
    pub(crate) fn quantised(&self, name: &str) -> Result<Option<QTensor>> {
        let Self::Gguf { file, kept } = self else { return Ok(None) };
        let stays = match kept {
            Kept::None => false,
            Kept::Tiles => file.dtype(name) == Some(GgmlDType::Q8_0),
            Kept::All => file.is_quantised(name),
        };
        if stays { file.quantised(name).map(Some) } else { Ok(None) }
    }

    /// Whether the weights were made for rounded arithmetic: stored as `bf16`, or quantised.
    pub(crate) fn are_rounded(&self) -> bool {
        match self {
            Self::Safetensors { files, .. } => files.dtypes().any(|dtype| dtype == "BF16"),
            Self::Gguf { file, .. } => file.dtypes().any(|dtype| dtype == GgmlDType::BF16 || dtype.block_size() > 1),
        }
    }

    /// A tensor of one dimension, or `None` where the model has none.
    pub(crate) fn read_if_there(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        if self.has(name) { self.read(name, shape).map(Some) } else { Ok(None) }
    }
}

/// One matrix of a fused [`Linear`].
pub(crate) struct Part<'a> {
    /// Module name without `.weight` or `.bias`.
    pub(crate) module: &'a str,
    /// Output features.
    pub(crate) rows: usize,
}

/// Loads the matrices of `parts` as one, `[sum of rows, columns]`, with their biases where they have any.
pub(crate) fn fused(weights: &Weights, parts: &[Part<'_>], columns: usize, dtype: Precision) -> Result<Linear> {
    let mut biases = Vec::new();
    for part in parts {
        biases.push(weights.read_if_there(&format!("{}.bias", part.module), &[part.rows])?);
    }
    let bias = biases.iter().any(Option::is_some).then(|| {
        biases.into_iter().zip(parts).flat_map(|(bias, part)| bias.unwrap_or_else(|| vec![0.0; part.rows])).collect()
    });
    let mut matrix = Vec::with_capacity(parts.iter().map(|part| part.rows).sum::<usize>() * columns);
    for part in parts {
        matrix.extend(weights.read(&format!("{}.weight", part.module), &[part.rows, columns])?);
    }
    Linear::new(matrix, columns, bias, dtype)
}
