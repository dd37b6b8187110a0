//! GGUF files: metadata, a tokenizer made from it, and tensors dequantised to `f32`.
//! Refuses files whose tensors reach past their end.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use rowmill_jobs::{Error, Result};

use crate::source::unreadable;

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// The file.
    pub(crate) path: PathBuf,
    content: Content,
}

impl GgufFile {
    /// Reads the header and checks that every tensor lies within the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| unreadable(path, e))?;
        let file_bytes = file.metadata().map_err(|e| unreadable(path, e))?.len();
        let content = Content::read(&mut BufReader::new(file))
            .map_err(|e| damaged(path, "its header cannot be read").caused_by(e))?;
        for (name, info) in &content.tensor_infos {
            let elements = info.shape.elem_count();
            let bytes = (elements / info.ggml_dtype.block_size()).saturating_mul(info.ggml_dtype.type_size()) as u64;
            let end = content.tensor_data_offset.saturating_add(info.offset).saturating_add(bytes);
            if end > file_bytes {
                return Err(damaged(path, &format!("tensor `{name}` ends at byte {end}, the file at {file_bytes}")));
            }
        }
        Ok(Self { path: path.to_path_buf(), content })
    }

    /// Text metadata.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.content.metadata.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer of any width.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        integer(self.content.metadata.get(key)?)
    }

    /// A floating-point number.
    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.content.metadata.get(key)? {
            Value::F32(value) => Some(f64::from(*value)),
            Value::F64(value) => Some(*value),
            other => integer(other).map(|value| value as f64),
        }
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.content.metadata.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let Value::Array(items) = self.content.metadata.get(key)? else { return None };
        items.iter().map(|item| if let Value::String(text) = item { Some(text.as_str()) } else { None }).collect()
    }

    /// A list of integers.
    pub(crate) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let Value::Array(items) = self.content.metadata.get(key)? else { return None };
        items
            .iter()
            .map(|item| match item {
                Value::I8(value) => Some(i64::from(*value)),
                Value::I16(value) => Some(i64::from(*value)),
                Value::I32(value) => Some(i64::from(*value)),
                Value::I64(value) => Some(*value),
                other => integer(other).map(|value| value as i64),
            })
            .collect()
    }

    /// A list of floats.
    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        let Value::Array(items) = self.content.metadata.get(key)? else { return None };
        items.iter().map(|item| if let Value::F32(value) = item { Some(*value) } else { None }).collect()
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// Bytes its tensors would take as `f32`.
    pub(crate) fn f32_bytes(&self) -> usize {
        self.content.tensor_infos.values().map(|info| info.shape.elem_count().saturating_mul(size_of::<f32>())).sum()
    }

    /// The types of all tensors.
    pub(crate) fn dtypes(&self) -> impl Iterator<Item = GgmlDType> {
        self.content.tensor_infos.values().map(|info| info.ggml_dtype)
    }

    /// How a tensor is stored.
    pub(crate) fn dtype(&self, name: &str) -> Option<GgmlDType> {
        self.content.tensor_infos.get(name).map(|info| info.ggml_dtype)
    }

    /// Whether a tensor is stored in blocks of integers.
    pub(crate) fn is_quantised(&self, name: &str) -> bool {
        self.content.tensor_infos.get(name).is_some_and(|info| info.ggml_dtype.block_size() > 1)
    }

    /// A tensor as it is stored.
    pub(crate) fn quantised(&self, name: &str) -> Result<QTensor> {
        let file = File::open(&self.path).map_err(|e| unreadable(&self.path, e))?;
        let tensor = self.content.tensor(&mut BufReader::new(file), name, &Device::Cpu);
        tensor.map_err(|e| self.unreadable_tensor(name, e))
    }

    /// A tensor's values in row-major order, dequantised.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        let values =
            self.quantised(name)?.dequantize(&Device::Cpu).and_then(|values| values.flatten_all()?.to_vec1::<f32>());
        values.map_err(|e| self.unreadable_tensor(name, e))
    }

    fn unreadable_tensor(&self, name: &str, error: candle_core::Error) -> Error {
        damaged(&self.path, &format!("tensor `{name}` cannot be read")).caused_by(error)
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::U8(value) => Some(u64::from(*value)),
        Value::U16(value) => Some(u64::from(*value)),
        Value::U32(value) => Some(u64::from(*value)),
        Value::U64(value) => Some(*value),
        Value::I32(value) => u64::try_from(*value).ok(),
        Value::I64(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{} is damaged or was not downloaded whole: {why}", path.display()))
        .hint("download the file again and compare its sha256")
}

/// Undoes the permutation llama.cpp's converter applies to the rows of q and k of a Llama: from interleaved rotary pairs
/// back to halves. `rows` is `[heads * head_dim, columns]`, of floats or of a quantised row's bytes.
pub(crate) fn unpermute<T: Copy>(rows: &[T], heads: usize, columns: usize) -> Vec<T> {
    let head_rows = rows.len() / columns / heads;
    let half = head_rows / 2;
    let mut out = Vec::with_capacity(rows.len());
    for head in 0..heads {
        for row in 0..head_rows {
            // Row `row` of the halves layout stood at 2 * (row % half) + row / half.
            let from = head * head_rows + 2 * (row % half) + row / half;
            out.extend_from_slice(&rows[from * columns..(from + 1) * columns]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermute_turns_pairs_into_halves() {
        // Two heads of four rows; permuted order of rows 0 1 2 3 is 0 2 1 3.
        let permuted = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(unpermute(&permuted, 2, 1), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }
}
