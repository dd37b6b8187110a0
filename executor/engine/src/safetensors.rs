//! Safetensors files: their headers, checked by arithmetic before anything else, and their tensors as `f32`.
//! Reads with plain file reads, so a file that shrinks while it is open is an error and not a crash. Writes nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;
use rowmill_jobs::{Error, Result};
use serde_json::Value;

use crate::source::{damaged, unreadable};

/// Longest header that is read; the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The tensors of one or more safetensors files.
#[derive(Debug)]
pub(crate) struct SafetensorsFiles {
    paths: Vec<PathBuf>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    /// Where its bytes begin in the file.
    offset: u64,
    bytes: u64,
}

impl SafetensorsFiles {
    /// Reads and checks the headers of all `paths`.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut tensors = HashMap::new();
        for (file, path) in paths.iter().enumerate() {
            for (name, entry) in read_header(path, file)? {
                tensors.insert(name, entry);
            }
        }
        Ok(Self { paths: paths.to_vec(), tensors })
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// How a tensor is stored.
    pub(crate) fn dtype(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|entry| entry.dtype.as_str())
    }

    /// The file a tensor is in (the first one, if it is in none): for messages.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        self.paths.get(self.tensors.get(name).map_or(0, |entry| entry.file)).map_or(Path::new(""), PathBuf::as_path)
    }

    /// A tensor's values, in row-major order, widened to `f32`.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(
                Error::invalid(format!("tensor `{name}` is missing")).with("file", self.file_of(name).display())
            );
        };
        let path = &self.paths[entry.file];
        let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(|e| unreadable(path, e))?;
        let mut raw = vec![0u8; entry.bytes as usize];
        file.read_exact(&mut raw).map_err(|e| unreadable(path, e))?;
        Ok(match entry.dtype.as_str() {
            "F32" => raw.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            "BF16" => raw.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            "F16" => raw.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => {
                return Err(Error::invalid(format!("tensor `{name}` has the number type {other}"))
                    .with("file", path.display())
                    .hint("Rowmill reads F32, F16 and BF16 safetensors; for 8 and 4 bits use GGUF"));
            }
        })
    }
}

fn read_header(path: &Path, file_index: usize) -> Result<Vec<(String, Entry)>> {
    let mut file = File::open(path).map_err(|e| unreadable(path, e))?;
    let file_bytes = file.metadata().map_err(|e| unreadable(path, e))?.len();
    let mut length = [0u8; 8];
    if file_bytes < 8 {
        return Err(damaged(path, &format!("it has {file_bytes} bytes, less than a header")));
    }
    file.read_exact(&mut length).map_err(|e| unreadable(path, e))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX || header_bytes > file_bytes - 8 {
        return Err(damaged(
            path,
            &format!("its header says it is {header_bytes} bytes long, the file has {file_bytes}"),
        ));
    }
    let mut header = vec![0u8; header_bytes as usize];
    file.read_exact(&mut header).map_err(|e| unreadable(path, e))?;
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(&header).map_err(|e| damaged(path, "its header is not JSON").caused_by(e))?;
    let data_bytes = file_bytes - 8 - header_bytes;
    let mut entries = Vec::with_capacity(header.len());
    let (mut end_max, mut sum) = (0, 0u64);
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let (entry, end) = check_entry(path, &name, &info, 8 + header_bytes)?;
        end_max = end.max(end_max);
        sum = sum.saturating_add(entry.bytes);
        entries.push((name, Entry { file: file_index, ..entry }));
    }
    if end_max > data_bytes {
        return Err(damaged(
            path,
            &format!("its header describes {end_max} bytes of tensors, the file has {data_bytes}"),
        ));
    }
    // Tensors that shared bytes could add up to more than the file.
    if sum > data_bytes {
        return Err(damaged(
            path,
            &format!("its tensors overlap: together they have {sum} bytes, the file {data_bytes}"),
        ));
    }
    Ok(entries)
}

/// The entry a header's item describes, and where its data end.
fn check_entry(path: &Path, name: &str, info: &Value, data_start: u64) -> Result<(Entry, u64)> {
    let broken = |why: &str| damaged(path, &format!("tensor `{name}` {why}"));
    let dtype = info.get("dtype").and_then(Value::as_str).ok_or_else(|| broken("has no number type"))?;
    let numbers = |key: &str| -> Option<Vec<u64>> { info.get(key)?.as_array()?.iter().map(Value::as_u64).collect() };
    let shape = numbers("shape").ok_or_else(|| broken("has no shape"))?;
    let offsets = numbers("data_offsets").filter(|o| o.len() == 2 && o[0] <= o[1]);
    let [from, to] = offsets.ok_or_else(|| broken("has no place in the file"))?[..] else {
        return Err(broken("has no place in the file"));
    };
    let width = match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        // Narrower types are packed in ways we do not read; their size is not ours to check.
        _ => 0,
    };
    let elements = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let expected = elements.and_then(|elements| elements.checked_mul(width));
    if width > 0 && expected != Some(to - from) {
        return Err(broken(&format!("has {} bytes, which is not its shape {shape:?} in {dtype}", to - from)));
    }
    let offset = data_start.checked_add(from).ok_or_else(|| broken("lies outside of the file"))?;
    let shape = shape.into_iter().map(|dim| dim as usize).collect();
    Ok((Entry { file: 0, dtype: dtype.to_owned(), shape, offset, bytes: to - from }, to))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(header: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn open(file: &tempfile::NamedTempFile) -> Result<SafetensorsFiles> {
        SafetensorsFiles::open(&[file.path().to_path_buf()])
    }

    #[test]
    fn reads_and_widens() {
        let file = file(
            r#"{"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,1],"data_offsets":[8,10]}}"#,
            &[0, 0, 128, 63, 0, 0, 0, 192, 128, 63],
        );
        let tensors = open(&file).unwrap();
        assert_eq!(tensors.read("a").unwrap(), [1.0, -2.0]);
        assert_eq!(tensors.read("b").unwrap(), [1.0]);
        assert_eq!(tensors.shape("b"), Some(&[1usize, 1][..]));
        assert!(tensors.read("c").unwrap_err().to_string().contains("`c` is missing"));
    }

    #[test]
    fn refuses_headers_that_do_not_add_up() {
        let short = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 7]);
        assert!(open(&short).unwrap_err().to_string().contains("describes 8 bytes of tensors, the file has 7"));
        let shape = file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]);
        assert!(open(&shape).unwrap_err().to_string().contains("not its shape"));
        let overflow = file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, &[0; 8]);
        assert!(open(&overflow).is_err());
        let json = file("{nonsense", &[]);
        assert!(open(&json).unwrap_err().to_string().contains("not JSON"));
        let shared = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(open(&file(shared, &[0; 8])).unwrap_err().to_string().contains("overlap"));
        let beyond =
            file(r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}}"#, &[]);
        assert!(open(&beyond).unwrap_err().to_string().contains("outside of the file"));
    }

    const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#;

    /// Whether the file opens; if it does, what it describes can be read whole.
    fn opens(path: &Path, bytes: &[u8]) -> bool {
        std::fs::write(path, bytes).unwrap();
        let Ok(tensors) = SafetensorsFiles::open(&[path.to_path_buf()]) else { return false };
        for (name, entry) in &tensors.tensors {
            let read = tensors.read(name);
            if ["F32", "F16", "BF16"].contains(&entry.dtype.as_str()) {
                assert_eq!(read.unwrap().len(), entry.shape.iter().product::<usize>());
            }
        }
        true
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let file = file(HEADER, &[1; 14]);
        let bytes = std::fs::read(file.path()).unwrap();
        for length in 0..bytes.len() {
            assert!(!opens(file.path(), &bytes[..length]), "cut at {length}");
        }
        assert!(opens(file.path(), &bytes));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let file = file(HEADER, &[1; 14]);
        let bytes = std::fs::read(file.path()).unwrap();
        for length in [HEADER.len() as u64 + 15, HEADER_BYTES_MAX, 1 << 40, u64::MAX - 7, u64::MAX] {
            let lying = [&length.to_le_bytes()[..], &bytes[8..]].concat();
            assert!(!opens(file.path(), &lying), "{length}");
        }
    }

    #[test]
    fn random_changes_never_panic() {
        let file = file(HEADER, &[1; 14]);
        let bytes = std::fs::read(file.path()).unwrap();
        let (mut state, mut kept) = (1u32, 0);
        let mut random = || {
            // The linear congruential generator of Numerical Recipes.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        for _ in 0..3000 {
            let mut changed = bytes.clone();
            for _ in 0..=random() % 2 {
                let at = random() % changed.len();
                // Digits lie better than noise does.
                changed[at] = if random().is_multiple_of(2) { b'0' + (random() % 10) as u8 } else { random() as u8 };
            }
            kept += u32::from(opens(file.path(), &changed));
        }
        assert!(kept > 0 && kept < 3000, "{kept} kept");
    }
}
