//! The header of a GGUF file: metadata and where each tensor lies, read by our own arithmetic. Every count, length, offset
//! and product of sizes is checked against the bytes that are there before anything is reserved, multiplied or read, so a
//! hostile file costs no more memory than a few times its own header. Reads no tensor data.

use std::collections::HashMap;
use std::io::{Read, Take};

use candle_core::quantized::GgmlDType;

/// Longest header that is read. The largest vocabularies there are take about 16 MiB.
const HEADER_BYTES_MAX: u64 = 256 << 20;

/// Most dimensions a tensor of the format has.
const DIMENSIONS_MAX: u32 = 4;

/// Largest alignment that is believed; the format's own is 32.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// Fewest bytes of a metadata entry: key length, type, one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;

/// Fewest bytes of a tensor's description: name length, dimensions, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// Why a header is refused.
pub(super) type Refusal = String;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// An integer of any width that `i64` holds.
    Integer(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    Integers(Vec<i64>),
    /// Integers of one byte, as raw bytes.
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// A tensor that lies wholly within the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) dtype: GgmlDType,
    /// Outermost size first, as the hub writes shapes; every size is at least one.
    pub(super) shape: Vec<usize>,
    /// Where its bytes begin in the file.
    pub(super) offset: u64,
    /// How many bytes it has: whole blocks.
    pub(super) bytes: usize,
}

impl TensorInfo {
    /// How many numbers it holds.
    pub(super) fn elements(&self) -> usize {
        self.bytes / self.dtype.type_size() * self.dtype.block_size()
    }
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

/// A tensor as the header describes it, not yet checked against the file.
struct Described {
    name: String,
    /// Innermost size first, as the format writes them.
    sizes: Vec<u64>,
    kind: u32,
    /// From the beginning of the tensor data.
    offset: u64,
}

impl Header {
    /// Reads the header of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub(super) fn read(file: impl Read, file_bytes: u64) -> Result<Self, Refusal> {
        let mut reader = Reader { inner: file.take(file_bytes.min(HEADER_BYTES_MAX)) };
        reader.magic()?;
        let tensors = reader.u64()?;
        let entries = reader.u64()?;
        reader.check_count(entries, ENTRY_BYTES_MIN, "metadata entries")?;
        reader.check_count(tensors, TENSOR_BYTES_MIN, "tensors")?;
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = reader.text("a metadata key")?;
            let value = reader.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("the key `{key}` is there twice"));
            }
        }
        let mut described = Vec::new();
        for _ in 0..tensors {
            described.push(reader.tensor()?);
        }
        let data_start = aligned(reader.position(file_bytes), alignment(&metadata)?)?;
        let mut data_bytes = file_bytes.saturating_sub(data_start);
        let mut checked = HashMap::new();
        for tensor in described {
            let info = place(&tensor, alignment(&metadata)?, data_start, file_bytes)?;
            // Tensors that shared bytes could add up to more than the file.
            data_bytes = data_bytes.checked_sub(info.bytes as u64).ok_or_else(|| {
                "its tensors together are larger than the file: it was cut off, or they overlap".to_owned()
            })?;
            if checked.insert(tensor.name.clone(), info).is_some() {
                return Err(format!("tensor `{}` is there twice", tensor.name));
            }
        }
        Ok(Self { metadata, tensors: checked })
    }
}

/// Checks a tensor's description and says where its bytes are.
fn place(tensor: &Described, alignment: u64, data_start: u64, file_bytes: u64) -> Result<TensorInfo, Refusal> {
    let broken = |why: String| format!("tensor `{}` {why}", tensor.name);
    let dtype = number_type(tensor.kind).map_err(broken)?;
    let (block, width) = (dtype.block_size() as u64, dtype.type_size() as u64);
    let row = tensor.sizes.first().copied().unwrap_or(0);
    let elements = tensor.sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size)).unwrap_or(0);
    if elements == 0 {
        return Err(broken(format!("has the impossible sizes {:?}", tensor.sizes)));
    }
    if row % block != 0 {
        return Err(broken(format!("has rows of {row} numbers, which are not whole blocks of {block}")));
    }
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(broken(format!("begins at byte {}, which is not a multiple of {alignment}", tensor.offset)));
    }
    let bytes = (elements / block).checked_mul(width);
    let offset = data_start.checked_add(tensor.offset);
    let end = offset.zip(bytes).and_then(|(offset, bytes)| offset.checked_add(bytes));
    match (offset, bytes, end) {
        (Some(offset), Some(bytes), Some(end)) if end <= file_bytes => {
            let size = |value: u64| usize::try_from(value).map_err(|_| broken("is larger than memory".to_owned()));
            let shape = tensor.sizes.iter().rev().map(|value| size(*value)).collect::<Result<_, _>>()?;
            Ok(TensorInfo { dtype, shape, offset, bytes: size(bytes)? })
        }
        (_, _, Some(end)) => Err(broken(format!("ends at byte {end}, the file at {file_bytes}"))),
        _ => Err(broken("lies outside of any file".to_owned())),
    }
}

/// The number types that are read, and the names of those that are not.
fn number_type(kind: u32) -> Result<GgmlDType, Refusal> {
    let name = match kind {
        0 => return Ok(GgmlDType::F32),
        1 => return Ok(GgmlDType::F16),
        2 => return Ok(GgmlDType::Q4_0),
        3 => return Ok(GgmlDType::Q4_1),
        6 => return Ok(GgmlDType::Q5_0),
        7 => return Ok(GgmlDType::Q5_1),
        8 => return Ok(GgmlDType::Q8_0),
        10 => return Ok(GgmlDType::Q2K),
        11 => return Ok(GgmlDType::Q3K),
        12 => return Ok(GgmlDType::Q4K),
        13 => return Ok(GgmlDType::Q5K),
        14 => return Ok(GgmlDType::Q6K),
        15 => return Ok(GgmlDType::Q8K),
        30 => return Ok(GgmlDType::BF16),
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "",
    };
    let known = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q8_K";
    if name.is_empty() {
        return Err(format!("has the number type {kind}, which the format does not have; the engine reads {known}"));
    }
    Err(format!("has the number type {name}; the engine reads {known}"))
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64, Refusal> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Integer(value)) => u64::try_from(*value)
            .ok()
            .filter(|value| value.is_power_of_two() && *value <= ALIGNMENT_MAX)
            .ok_or_else(|| format!("its alignment is {value}, which is not a power of two up to {ALIGNMENT_MAX}")),
        Some(_) => Err("its alignment is not an integer".to_owned()),
    }
}

fn aligned(position: u64, alignment: u64) -> Result<u64, Refusal> {
    position.checked_next_multiple_of(alignment).ok_or_else(|| "its header has no end".to_owned())
}

/// Reads little-endian numbers and counted lists, never past the header's limit.
struct Reader<R> {
    inner: Take<R>,
}

impl<R: Read> Reader<R> {
    fn magic(&mut self) -> Result<(), Refusal> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version if version.swap_bytes() <= 3 && version != 0 => {
                Err("it is big-endian; convert it to little-endian".to_owned())
            }
            version => Err(format!("it has version {version} of the format; the engine reads 2 and 3")),
        }
    }

    /// How far the reader has come, in a file of `file_bytes` bytes.
    fn position(&self, file_bytes: u64) -> u64 {
        file_bytes.min(HEADER_BYTES_MAX) - self.inner.limit()
    }

    /// Refuses a count of things that need more bytes than there are.
    fn check_count(&self, count: u64, bytes_min: u64, of: &str) -> Result<usize, Refusal> {
        let left = self.inner.limit();
        count
            .checked_mul(bytes_min)
            .filter(|bytes| *bytes <= left)
            .and_then(|_| usize::try_from(count).ok())
            .ok_or_else(|| format!("its header says it has {count} {of}, but only {left} bytes are left"))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|_| "its header is cut off".to_owned())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn raw(&mut self, count: u64, of: &str) -> Result<Vec<u8>, Refusal> {
        let mut bytes = vec![0; self.check_count(count, 1, of)?];
        self.inner.read_exact(&mut bytes).map_err(|_| "its header is cut off".to_owned())?;
        Ok(bytes)
    }

    fn text(&mut self, of: &str) -> Result<String, Refusal> {
        let count = self.u64()?;
        let mut bytes = self.raw(count, &format!("bytes in {of}"))?;
        // Some writers end texts with a zero, which is no part of them.
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        // Vocabularies of bytes hold pieces that are no text by themselves.
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn value(&mut self, key: &str) -> Result<Value, Refusal> {
        let kind = self.u32()?;
        match kind {
            6 => Ok(Value::Float(f64::from(f32::from_le_bytes(self.bytes()?)))),
            7 => self.flag(key).map(Value::Flag),
            8 => self.text(key).map(Value::Text),
            9 => self.list(key),
            12 => Ok(Value::Float(f64::from_le_bytes(self.bytes()?))),
            _ => self.integer(kind, key).map(Value::Integer),
        }
    }

    fn list(&mut self, key: &str) -> Result<Value, Refusal> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10 | 11 | 12 => 8,
            _ => return Err(format!("`{key}` is a list of things of type {kind}, which the engine does not read")),
        };
        let count = self.check_count(count, width, &format!("items in `{key}`"))?;
        Ok(match kind {
            0 | 1 => Value::Bytes(self.raw(count as u64, "bytes")?),
            6 => Value::Floats((0..count).map(|_| self.bytes().map(f32::from_le_bytes)).collect::<Result<_, _>>()?),
            12 => {
                let value = |_| self.bytes().map(|bytes| f64::from_le_bytes(bytes) as f32);
                Value::Floats((0..count).map(value).collect::<Result<_, _>>()?)
            }
            7 => Value::Integers((0..count).map(|_| self.flag(key).map(i64::from)).collect::<Result<_, _>>()?),
            8 => Value::Texts((0..count).map(|_| self.text(key)).collect::<Result<_, _>>()?),
            _ => Value::Integers((0..count).map(|_| self.integer(kind, key)).collect::<Result<_, _>>()?),
        })
    }

    fn flag(&mut self, key: &str) -> Result<bool, Refusal> {
        match self.bytes::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("`{key}` should be true or false and is {other}")),
        }
    }

    fn integer(&mut self, kind: u32, key: &str) -> Result<i64, Refusal> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.bytes()?)),
            1 => i64::from(i8::from_le_bytes(self.bytes()?)),
            2 => i64::from(u16::from_le_bytes(self.bytes()?)),
            3 => i64::from(i16::from_le_bytes(self.bytes()?)),
            4 => i64::from(u32::from_le_bytes(self.bytes()?)),
            5 => i64::from(i32::from_le_bytes(self.bytes()?)),
            // No key that is read means anything above.
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.bytes()?),
            _ => return Err(format!("`{key}` has the type {kind}, which the format does not have")),
        })
    }

    fn tensor(&mut self) -> Result<Described, Refusal> {
        let name = self.text("a tensor's name")?;
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let sizes = (0..dimensions).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(Described { name, sizes, kind: self.u32()?, offset: self.u64()? })
    }
}
