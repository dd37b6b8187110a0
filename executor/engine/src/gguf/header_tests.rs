//! Headers that lie: cut off anywhere, with counts, lengths, sizes and offsets that cannot be, and with random bytes changed.
//! Each is refused in words, or describes tensors that are wholly there.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::header::{Header, Value};
use super::{GgufFile, tokenizer};
use crate::decoder;

/// Bytes of a file, written as the format says.
#[derive(Default, Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut with = self.u64(text.len() as u64);
        with.0.extend(text.as_bytes());
        with
    }

    fn head(tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }

    fn tensor(self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let with = self.text(name).u32(sizes.len() as u32);
        sizes.iter().fold(with, |with, size| with.u64(*size)).u32(kind).u64(offset)
    }

    /// The header's end, and `data` bytes.
    fn data(mut self, data: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + data, 7);
        self
    }

    fn read(&self) -> Result<Header, String> {
        Header::read(&self.0[..], self.0.len() as u64)
    }

    fn refused(&self, words: &str) {
        let why = self.read().unwrap_err();
        assert!(why.contains(words), "`{words}` is not in: {why}");
    }
}

/// One entry of each type, and three tensors.
fn whole() -> Bytes {
    Bytes::head(3, 6)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .text("count")
        .u32(10)
        .u64(7)
        .text("tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("bc")
        .text("types")
        .u32(9)
        .u32(5)
        .u64(2)
        .u32(1)
        .u32(u32::MAX)
        .text("scores")
        .u32(9)
        .u32(6)
        .u64(1)
        .u32(1.5f32.to_bits())
        .text("epsilon")
        .u32(12)
        .u64(0.25f64.to_bits())
        .tensor("half", &[3, 2], 1, 0)
        .tensor("blocks", &[64, 2], 8, 32)
        .tensor("norm", &[4], 0, 192)
        .data(208)
}

#[test]
fn a_whole_header_is_read() {
    let header = whole().read().unwrap();
    assert_eq!(header.metadata["general.architecture"], Value::Text("llama".into()));
    assert_eq!(header.metadata["count"], Value::Integer(7));
    assert_eq!(header.metadata["tokens"], Value::Texts(vec!["a".into(), "bc".into()]));
    assert_eq!(header.metadata["types"], Value::Integers(vec![1, -1]));
    assert_eq!(header.metadata["scores"], Value::Floats(vec![1.5]));
    assert_eq!(header.metadata["epsilon"], Value::Float(0.25));
    let blocks = &header.tensors["blocks"];
    assert_eq!((blocks.dtype, &blocks.shape[..], blocks.bytes), (GgmlDType::Q8_0, &[2, 64][..], 4 * 34));
    assert_eq!(blocks.offset, whole().0.len() as u64 - 208 + 32);
    assert_eq!(blocks.elements(), 128);
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let bytes = whole().0;
    for length in 0..bytes.len() {
        let why = Header::read(&bytes[..length], length as u64).unwrap_err();
        assert!(!why.is_empty(), "cut at {length}");
        // The same with a length that lies, as when a file shrinks while it is read.
        if length < bytes.len() - 240 {
            assert!(Header::read(&bytes[..length], bytes.len() as u64).is_err(), "cut at {length}");
        }
    }
    assert!(Header::read(&bytes[..], bytes.len() as u64).is_ok());
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_anything_is_reserved() {
    for count in [5, 1 << 40, u64::MAX / 13, u64::MAX] {
        Bytes::head(count, 0).data(64).refused("tensors, but only");
        Bytes::head(0, count.saturating_add(5)).data(64).refused("metadata entries, but only");
        Bytes::head(0, 1).u64(count.saturating_add(100)).data(64).refused("bytes in a metadata key");
        Bytes::head(0, 1).text("k").u32(8).u64(count.saturating_add(100)).data(64).refused("bytes in k");
        for kind in [0, 2, 4, 6, 7, 8, 10, 12] {
            Bytes::head(0, 1)
                .text("k")
                .u32(9)
                .u32(kind)
                .u64(count.saturating_add(100))
                .data(64)
                .refused("items in `k`");
        }
        Bytes::head(1, 0).u64(count.saturating_add(100)).data(64).refused("bytes in a tensor's name");
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    Bytes(b"GGML".to_vec()).u32(3).u64(0).u64(0).refused("does not begin with `GGUF`");
    Bytes(b"GGUF".to_vec()).u32(1).u64(0).u64(0).refused("version 1");
    Bytes(b"GGUF".to_vec()).u32(3u32.swap_bytes()).u64(0).u64(0).refused("big-endian");
    Bytes::head(0, 1).text("k").u32(13).u64(0).data(0).refused("type 13");
    Bytes::head(0, 1).text("k").u32(9).u32(9).u64(0).data(0).refused("list of things of type 9");
    Bytes::head(0, 1).text("k").u32(7).u64(9).data(0).refused("true or false");
    Bytes::head(0, 2).text("k").u32(10).u64(0).text("k").u32(10).u64(0).data(0).refused("twice");
    for alignment in [0, 3, 1 << 30] {
        Bytes::head(0, 1).text("general.alignment").u32(4).u32(alignment).data(32).refused("power of two");
    }
    Bytes::head(0, 1).text("general.alignment").u32(8).text("x").data(32).refused("not an integer");
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let one = |sizes: &[u64], kind, offset| Bytes::head(1, 0).tensor("t", sizes, kind, offset).data(64);
    assert!(one(&[16], 0, 0).read().is_ok());
    one(&[17], 0, 0).refused("ends at byte");
    one(&[16], 0, 32).refused("ends at byte");
    one(&[16], 0, 4).refused("not a multiple of 32");
    one(&[16], 0, u64::MAX - 31).refused("outside of any file");
    one(&[], 0, 0).refused("0 dimensions");
    one(&[1; 5], 0, 0).refused("5 dimensions");
    one(&[4, 0], 0, 0).refused("impossible sizes");
    one(&[1 << 32, 1 << 32], 0, 0).refused("impossible sizes");
    one(&[1 << 62], 0, 0).refused("outside of any file");
    one(&[33], 8, 0).refused("whole blocks of 32");
    one(&[32, 8], 12, 0).refused("whole blocks of 256");
    one(&[16], 23, 0).refused("IQ4_XS");
    one(&[16], 9, 0).refused("number type 9");
    Bytes::head(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64).refused("twice");
    Bytes::head(2, 0).tensor("t", &[16], 0, 0).tensor("u", &[16], 0, 0).data(64).refused("overlap");
}

/// The linear congruential generator of Numerical Recipes.
fn random(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state >> 8
}

/// Whatever survives describes what is there.
fn check(bytes: &[u8]) -> bool {
    let Ok(header) = Header::read(bytes, bytes.len() as u64) else { return false };
    for tensor in header.tensors.values() {
        assert!(tensor.offset + tensor.bytes as u64 <= bytes.len() as u64);
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.elements());
    }
    // Neither do those who read the header believe it.
    let file = GgufFile { path: "changed.gguf".into(), header };
    let _ = decoder::from_gguf(&file);
    let _ = tokenizer::tokenizer(&file);
    true
}

#[test]
fn random_changes_never_panic_and_never_reach_past_the_file() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny-q8_0.gguf");
    let real = std::fs::read(fixture).unwrap();
    for (seed, rounds, original) in [(1, 20_000, whole().0), (2, 500, real)] {
        let (mut state, mut kept) = (seed, 0);
        // Changes fall into the first bytes, where the counts and the lengths are, as often as anywhere.
        let span = original.len().min(14_000) as u32;
        for _ in 0..rounds {
            let mut bytes = original.clone();
            for _ in 0..=random(&mut state) % 3 {
                let near = if random(&mut state).is_multiple_of(2) { 64 } else { span };
                let at = (random(&mut state) % near) as usize;
                bytes[at] = match random(&mut state) % 3 {
                    0 => 0xff,
                    1 => bytes[at] ^ (1 << (random(&mut state) % 8)),
                    _ => random(&mut state) as u8,
                };
            }
            kept += u32::from(check(&bytes));
        }
        assert!(kept > 0 && kept < rounds, "seed {seed}: {kept} of {rounds} kept");
    }
}
