//! One face for safetensors and GGUF: tensors by their names, checked against the shape the architecture expects.
//! A tensor of another shape, or a missing one, is named with both shapes; nothing is guessed or filled in.

use crate::linear::Precision;
use candle_core::quantized::{GgmlDType, QTensor};
use rowmill_jobs::{Error, Result};

#[cfg(any(test, feature = "cuda"))]
use crate::device::stored;
use crate::gemm;
use crate::gguf::GgufFile;
use crate::linear::Linear;
use crate::lora::Adapter;
use crate::safetensors::SafetensorsFiles;

/// A model's tensors.
#[derive(Debug)]
pub(crate) enum Weights {
    /// Safetensors; `adapter` changes what is read from them.
    Safetensors { files: SafetensorsFiles, adapter: Option<Adapter> },
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
    /// Those that a device multiplies so.
    #[cfg(any(test, feature = "cuda"))]
    Carried,
}

impl Weights {
    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors { files, .. } => files.has(name),
            Self::Gguf { file, .. } => file.has(name),
        }
    }

    /// Checks that a tensor is there and has this shape; reads nothing.
    pub(crate) fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        let (found, file) = match self {
            Self::Safetensors { files, .. } => (files.shape(name), files.file_of(name)),
            Self::Gguf { file, .. } => (file.shape(name), file.path.as_path()),
        };
        let error = match found {
            Some(found) if found == expected => return Ok(()),
            Some(found) => {
                format!("tensor `{name}` has the shape {found:?}, but the configuration asks for {expected:?}")
            }
            None => format!("tensor `{name}` is missing; the configuration asks for the shape {expected:?}"),
        };
        Err(Error::invalid(error)
            .with("file", file.display())
            .hint("weights and configuration are not of the same model, or the download is not whole"))
    }

    /// A tensor's values in row-major order, after [`Weights::check`].
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        match self {
            Self::Safetensors { files, adapter } => {
                let mut values = files.read(name)?;
                if let (Some(adapter), [_, columns]) = (adapter, shape) {
                    adapter.merge(name, *columns, &mut values)?;
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
            #[cfg(any(test, feature = "cuda"))]
            Kept::Carried => file.dtype(name).is_some_and(stored::is_carried),
        };
        if stays { file.quantised(name).map(Some) } else { Ok(None) }
    }

    /// Whether these tensors were all made for rounded arithmetic: stored as `bf16`, or quantised.
    pub(crate) fn are_rounded<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        names.into_iter().all(|name| match self {
            Self::Safetensors { files, .. } => files.dtype(name) == Some("BF16"),
            Self::Gguf { file, .. } => file.dtype(name) == Some(GgmlDType::BF16) || file.is_quantised(name),
        })
    }

    /// How the matrix that these tensors make is kept, where `asked` leaves it to them.
    pub(crate) fn precision<'a>(&self, asked: Precision, names: impl IntoIterator<Item = &'a str>) -> Precision {
        match asked {
            Precision::Stored if !gemm::available() => Precision::F32,
            Precision::Stored if self.are_rounded(names) => Precision::Bf16,
            Precision::Stored => Precision::Split,
            other => other,
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
    let names: Vec<String> = parts.iter().map(|part| format!("{}.weight", part.module)).collect();
    let mut matrix = Vec::with_capacity(parts.iter().map(|part| part.rows).sum::<usize>() * columns);
    for (name, part) in names.iter().zip(parts) {
        matrix.extend(weights.read(name, &[part.rows, columns])?);
    }
    Linear::new(matrix, columns, bias, weights.precision(dtype, names.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// One rounded matrix says nothing of the others.
    #[test]
    fn each_matrix_is_kept_as_it_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensor = |dtype| Tensor::ones((2, 32), DType::F32, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let tensors = [("a.weight", DType::BF16), ("b.weight", DType::BF16), ("c.weight", DType::F32)];
        let tensors: HashMap<&str, Tensor> = tensors.map(|(name, dtype)| (name, tensor(dtype))).into();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let weights = Weights::Safetensors { files: SafetensorsFiles::open(&[path]).unwrap(), adapter: None };
        let rounded =
            [("a.weight", "b.weight", true), ("a.weight", "c.weight", false), ("c.weight", "c.weight", false)];
        for (first, second, expected) in rounded {
            assert_eq!(weights.are_rounded([first, second]), expected, "{first}, {second}");
            for asked in [Precision::F32, Precision::F16, Precision::Bf16, Precision::Split] {
                assert_eq!(weights.precision(asked, [first, second]), asked, "what is asked for is done");
            }
        }
        let exact = fused(&weights, &[Part { module: "c", rows: 2 }], 32, Precision::Stored).unwrap();
        assert!(!exact.is_rounded());
        let rounded = fused(&weights, &[Part { module: "a", rows: 2 }], 32, Precision::Stored).unwrap();
        assert_eq!(rounded.is_rounded(), gemm::available());
    }
}
