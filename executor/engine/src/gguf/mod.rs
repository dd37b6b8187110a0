//! GGUF files: metadata, a tokenizer made from it, and tensors dequantised to `f32`.
//! Refuses files whose tensors reach past their end.

mod header;
pub(crate) mod tokenizer;

#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod type_tests;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};
use rayon::prelude::*;
use rowmill_jobs::{Error, Result};

use self::header::{Header, TensorInfo, Value};
use crate::linear::{from_bytes, internal};
use crate::source::{damaged, unreadable};

/// Blocks that one thread dequantises at a time.
const BLOCKS_PER_TASK: usize = 4096;

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// The file.
    pub(crate) path: PathBuf,
    header: Header,
}

impl GgufFile {
    /// Reads the header and checks that every tensor lies within the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| unreadable(path, e))?;
        let file_bytes = file.metadata().map_err(|e| unreadable(path, e))?.len();
        let header = Header::read(BufReader::new(file), file_bytes).map_err(|why| damaged(path, &why))?;
        Ok(Self { path: path.to_path_buf(), header })
    }

    /// Text metadata.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.header.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer of any width.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.header.metadata.get(key)? {
            Value::Integer(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A floating-point number.
    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.header.metadata.get(key)? {
            Value::Float(value) => Some(*value),
            Value::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.header.metadata.get(key)? {
            Value::Flag(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        match self.header.metadata.get(key)? {
            Value::Texts(texts) => Some(texts.iter().map(String::as_str).collect()),
            _ => None,
        }
    }

    /// A list of integers.
    pub(crate) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        match self.header.metadata.get(key)? {
            Value::Integers(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// A list of floats.
    pub(crate) fn floats(&self, key: &str) -> Option<Vec<f32>> {
        match self.header.metadata.get(key)? {
            Value::Floats(values) => Some(values.clone()),
            Value::Integers(values) => Some(values.iter().map(|value| *value as f32).collect()),
            _ => None,
        }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// Bytes its tensors would take as `f32`.
    pub(crate) fn f32_bytes(&self) -> usize {
        let bytes = |info: &TensorInfo| info.elements().saturating_mul(size_of::<f32>());
        self.header.tensors.values().map(bytes).fold(0, usize::saturating_add)
    }

    /// How a tensor is stored.
    pub(crate) fn dtype(&self, name: &str) -> Option<GgmlDType> {
        self.header.tensors.get(name).map(|info| info.dtype)
    }

    /// Whether a tensor is stored in blocks of integers.
    pub(crate) fn is_quantised(&self, name: &str) -> bool {
        self.header.tensors.get(name).is_some_and(|info| info.dtype.block_size() > 1)
    }

    /// A tensor as it is stored, as a matrix: `[product of the outer sizes, innermost size]`.
    pub(crate) fn quantised(&self, name: &str) -> Result<QTensor> {
        let (info, raw) = self.raw(name)?;
        let columns = info.shape.last().copied().unwrap_or(1);
        from_bytes(raw, info.dtype, info.elements() / columns, columns)
    }

    /// A tensor's values in row-major order, dequantised.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        let (info, raw) = self.raw(name)?;
        let (block, width) = (info.dtype.block_size(), info.dtype.type_size());
        let mut values = vec![0f32; info.elements()];
        let parts = raw.par_chunks(BLOCKS_PER_TASK * width).zip(values.par_chunks_mut(BLOCKS_PER_TASK * block));
        parts
            .try_for_each(|(raw, values)| widen(raw, info.dtype, values))
            .map_err(|e| damaged(&self.path, &format!("tensor `{name}` cannot be read")).caused_by(e))?;
        Ok(values)
    }

    /// A tensor's bytes.
    fn raw(&self, name: &str) -> Result<(&TensorInfo, Vec<u8>)> {
        let Some(info) = self.header.tensors.get(name) else {
            return Err(Error::invalid(format!("tensor `{name}` is missing")).with("file", self.path.display()));
        };
        let mut file = File::open(&self.path).map_err(|e| unreadable(&self.path, e))?;
        file.seek(SeekFrom::Start(info.offset)).map_err(|e| unreadable(&self.path, e))?;
        let mut raw = vec![0u8; info.bytes];
        file.read_exact(&mut raw).map_err(|e| unreadable(&self.path, e))?;
        Ok((info, raw))
    }
}

/// Dequantises whole blocks.
fn widen(raw: &[u8], dtype: GgmlDType, values: &mut [f32]) -> Result<()> {
    let widened = from_bytes(raw.to_vec(), dtype, 1, values.len())?
        .dequantize(&Device::Cpu)
        .and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>())
        .map_err(internal)?;
    values.copy_from_slice(&widened);
    Ok(())
}
