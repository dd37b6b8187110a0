//! Tokenizers of GGUF files give llama.cpp's ids.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
#[cfg(feature = "vocabularies")]
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{self, Value as Stored};

use super::*;
use crate::added::Added;
use crate::cuts::Cuts;
use crate::gguf::GgufFile;
use crate::pieces::Pieces;
use crate::tokens::Tokens;

/// The fixture of tests/fixtures/make_gguf_tokenizers.py: vocabularies, texts, and the ids llama.cpp gives them.
#[test]
fn texts_have_the_ids_of_llama_cpp() {
    agree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-tokenizers.json"));
}

/// Text that is data has no special tokens, but has those that only spell something.
#[test]
fn data_keep_the_tokens_that_files_add_for_spelling() {
    let fixture = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf-tokenizers.json"));
    let fixture: Value = serde_json::from_str(&fixture).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let pieces = &fixture["vocabularies"]["pieces"];
    write(file.path(), &[pieces, &json!({"tokenizer.ggml.model": "llama"})]);
    let tokens = Tokens::new(tokenizer(&GgufFile::open(file.path()).unwrap()).unwrap()).unwrap();
    let id = |token: &str| tokens.id_of(token).unwrap();
    assert!(tokens.encode_data("it\n\nis").unwrap().contains(&id("\n\n")));
    assert_eq!(tokens.markers_in(&tokens.encode_data("<think>\n\n<|im_end|>").unwrap()), 0);
    assert_eq!(tokens.prefix, [1]);
}

#[test]
fn vocabularies_that_cannot_be_are_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = |metadata: Value, words: &str| {
        write(file.path(), &[&metadata]);
        let report = tokenizer(&GgufFile::open(file.path()).unwrap()).unwrap_err().report();
        assert!(report.contains(words) && report.contains("hint:"), "`{words}` is not in:\n{report}");
    };
    let with = |pre: &str, merges: &[&str]| {
        json!({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["a", "b", "ab"],
            "tokenizer.ggml.merges": merges})
    };
    refused(with("kimi-k2", &["a b"]), "tokenizer.ggml.pre = \"kimi-k2\"");
    refused(with("gpt-2", &["a b", "ab ab"]), "merges \"ab ab\"");
    refused(with("gpt-2", &["a c"]), "merges \"a c\"");
    refused(with("gpt-2", &["ab"]), "merges \"ab\"");
    refused(json!({"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a"]}), "tokenizer.ggml.model = \"t5\"");
    refused(json!({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "a"]}), "\"a\" twice, as 0 and 1");
    refused(json!({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}), "no `tokenizer.ggml.merges`");
    refused(json!({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}), "no `tokenizer.ggml.scores`");
    refused(json!({"tokenizer.ggml.model": "llama"}), "no `tokenizer.ggml.tokens`");
}

fn agree(fixture: &Path) {
    let fixture: Value = serde_json::from_str(&read(fixture)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut wrong = Vec::new();
    for (number, case) in fixture["cases"].as_array().unwrap().iter().enumerate() {
        let vocabulary = &fixture["vocabularies"][case["vocabulary"].as_str().unwrap()];
        write(file.path(), &[vocabulary, &case["metadata"]]);
        let tokenizer = tokenizer(&GgufFile::open(file.path()).unwrap()).unwrap();
        let texts: Vec<&str> = fixture["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        for (text, ids) in texts.iter().zip(case["ids"].as_array().unwrap()).filter(|(_, ids)| !ids.is_null()) {
            let given = tokenizer.encode_fast(*text, false).unwrap().get_ids().to_vec();
            if json!(given) != *ids {
                wrong.push(format!("case {number}: {text:?}\n  given     {}\n  llama.cpp {ids}", json!(given)));
            }
        }
        agree_in_pieces(&tokenizer, &texts, &format!("case {number}"));
        let framed = tokenizer.encode_fast(texts[0], true).unwrap().get_ids().to_vec();
        assert_eq!(json!(framed), case["framed"], "case {number}");
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Texts have their ids also where the engine takes them in pieces: alone and side by side, met once and known.
fn agree_in_pieces(tokenizer: &Tokenizer, texts: &[&str], name: &str) {
    let tokens = Tokens::new(tokenizer.clone()).unwrap();
    // What may be cut agrees when it is loaded; else it would be the whole that is looked at below.
    let may_be_cut = Cuts::of(tokenizer).is_some() && Added::of(tokenizer).unwrap().is_some();
    assert_eq!(Pieces::of(tokenizer).unwrap().is_some(), may_be_cut, "{name}");
    for skipped in [0, 0, 0, 1, 5, 11] {
        for (text, behind) in texts.iter().zip(texts.iter().cycle().skip(skipped)) {
            let text = if skipped == 0 { (*text).to_owned() } else { format!("{text}{behind}") };
            let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(tokens.encode(&text).unwrap(), whole.get_ids(), "{name}: {text:?}");
        }
    }
}

/// Writes a GGUF file of only metadata; later parts win.
fn write(path: &Path, parts: &[&Value]) {
    let entries: BTreeMap<_, _> = parts.iter().flat_map(|part| part.as_object().unwrap()).collect();
    let stored: Vec<(&String, Stored)> = entries.into_iter().map(|(key, value)| (key, stored(value))).collect();
    let metadata: Vec<(&str, &Stored)> = stored.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &[]).unwrap();
}

fn stored(value: &Value) -> Stored {
    match value {
        Value::Bool(value) => Stored::Bool(*value),
        Value::String(text) => Stored::String(text.clone()),
        Value::Number(number) if number.is_f64() => Stored::F32(number.as_f64().unwrap() as f32),
        Value::Number(number) => Stored::I32(i32::try_from(number.as_i64().unwrap()).unwrap()),
        Value::Array(items) => Stored::Array(items.iter().map(stored).collect()),
        other => panic!("{other}"),
    }
}

/// llama.cpp's own vocabularies with their texts and ids, 80 MB that are not ours to keep: `infra/test --vocabularies`
/// fetches them and turns the feature on. The fixture above is what every run checks.
#[test]
#[cfg(feature = "vocabularies")]
fn vocabularies_of_llama_cpp_give_the_ids_beside_them() {
    let folder = PathBuf::from(std::env::var("LLAMA_CPP_MODELS").unwrap());
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "inp"));
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    let mut wrong = 0;
    for texts in files {
        let path = texts.with_extension("");
        let tokenizer = tokenizer(&GgufFile::open(&path).unwrap()).unwrap();
        let (texts, ids) = (read(&texts), read(&path.with_extension("gguf.out")));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut agreed = 0;
        for (text, ids) in texts.iter().zip(ids.split('\n')) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let given = tokenizer.encode_fast(*text, false).unwrap().get_ids().to_vec();
            if given == expected {
                agreed += 1;
            } else {
                println!("{}: {text:?}\n  given {given:?}\n  llama.cpp {expected:?}", path.display());
            }
        }
        agree_in_pieces(&tokenizer, &texts, &path.display().to_string());
        println!("{}: {agreed} of {}", path.display(), texts.len());
        wrong += texts.len() - agreed;
    }
    assert_eq!(wrong, 0);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
