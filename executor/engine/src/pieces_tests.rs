//! Texts have the same ids in pieces as whole: for tokenizers of every kind that is cut, over texts that are put together at
//! random from what is odd in texts, met once and again. And tokenizers that see further are not cut.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::cuts::Cuts;
use crate::pieces::Pieces;
use crate::tokens::Tokens;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What texts are made of here.
const ODDS: [&str; 60] = [
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "   \n",
    "the",
    "The",
    "THE",
    "ticket",
    "invoice",
    "a",
    "I",
    "x",
    "don",
    "'t",
    "'s",
    "'LL",
    "'",
    "''",
    "''s",
    ".",
    ",",
    "...",
    "!",
    "?",
    "-",
    "--",
    "_",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    "=",
    "+",
    "1",
    "12",
    "2026",
    "3.14",
    "\u{e9}",
    "e\u{301}",
    "\u{301}",
    "\u{338}",
    "\u{df}",
    "\u{130}",
    "\u{4f60}\u{597d}",
    "\u{2019}",
    "\u{a0}",
    "\u{3000}",
    "\u{200b}",
    "\u{0}",
    "\u{b}",
    "\u{1f600}",
    "<|im_end|>",
    "[SEP]",
];

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokenizer(json: &Value) -> Tokenizer {
    json.to_string().parse().unwrap()
}

/// A tokenizer of bytes with these steps before its merges, which join all that stands side by side where words are cut: a cut
/// within a split shows.
fn bytes(normalizer: Value, steps: &[Value]) -> Tokenizer {
    let mut json = fixture("llama-tiny/tokenizer.json");
    for left in ["e", "s", "t", "x", "1", "2", "4", ".", ",", "'", "!", "?", "-", "_", ")", "]", ">", "+", "\u{102}"] {
        for right in ["\u{120}", "\u{10a}", "\u{109}", "\u{10d}", ".", ",", "'", "!", "-", "_", "(", "[", "<", "="] {
            let id = json["model"]["vocab"].as_object().unwrap().len() + 1000;
            json["model"]["vocab"][format!("{left}{right}")] = id.into();
            json["model"]["merges"].as_array_mut().unwrap().push(json!([left, right]));
        }
    }
    json["normalizer"] = normalizer;
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    tokenizer(&json)
}

fn split(expression: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

fn byte_level(prefix: bool, expression: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": expression})
}

/// Texts of up to 40 of [`ODDS`], some of them again.
fn texts(seed: u32) -> impl Iterator<Item = String> {
    let mut state = seed;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    std::iter::repeat_with(move || (0..next(40)).map(|_| ODDS[next(ODDS.len())]).collect()).take(1500)
}

fn assert_equal_ids(tokenizer: &Tokenizer, name: &str) {
    let tokens = Tokens::new(tokenizer.clone()).unwrap();
    for (number, text) in texts(7).chain(texts(7)).enumerate() {
        let whole = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        assert_eq!(tokens.encode(&text).unwrap(), whole, "{name}, text {number}: {text:?}");
        let data = if tokens.markers_in(&whole) > 0 { tokens.encode_data(&text).unwrap() } else { whole };
        let mut ids = vec![5];
        tokens.encode_beginning(&text, number % 20, &mut ids).unwrap();
        assert_eq!(ids[1..], data[..data.len().min(number % 20)], "{name}, beginning of text {number}: {text:?}");
    }
}

#[test]
fn texts_have_the_same_ids_in_pieces_as_whole() {
    let nfc = || json!({"type": "NFC"});
    let gpt4o = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let digits = json!({"type": "Digits", "individual_digits": true});
    let mut cased = fixture("bert-tiny/tokenizer.json");
    cased["normalizer"]["lowercase"] = false.into();
    for (name, tokenizer) in [
        ("BERT", tokenizer(&fixture("bert-tiny/tokenizer.json"))),
        ("BERT, cased", tokenizer(&cased)),
        ("GPT-2", tokenizer(&fixture("llama-tiny/tokenizer.json"))),
        ("GPT-2 after a space", bytes(Value::Null, &[byte_level(true, true)])),
        ("Llama 3", bytes(Value::Null, &[split(LLAMA3), byte_level(false, false)])),
        ("Qwen 2", bytes(nfc(), &[split(&LLAMA3.replace("{1,3}", "")), byte_level(false, false)])),
        ("GPT-4o", bytes(json!({"type": "Sequence", "normalizers": []}), &[split(gpt4o), byte_level(false, false)])),
        ("Phi-4", bytes(Value::Null, &[split(&LLAMA3.replace(r"]?\p{L}+", r"]?+\p{L}++")), byte_level(false, false)])),
        ("SmolLM", bytes(Value::Null, &[digits, byte_level(false, true)])),
    ] {
        assert!(Pieces::of(&tokenizer).unwrap().is_some(), "{name} is cut");
        assert_equal_ids(&tokenizer, name);
    }
}

#[test]
fn added_tokens_are_found_as_the_tokenizer_finds_them() {
    let mut json = fixture("llama-tiny/tokenizer.json");
    json["normalizer"] = json!({"type": "NFC"});
    let token = |id: usize, content: &str, flag: &str| {
        let mut token = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false});
        if !flag.is_empty() {
            token[flag] = true.into();
        }
        token
    };
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.extend([
        token(320, "  ", "normalized"),
        token(321, "tick", ""),
        token(322, "ticketthe", ""),
        token(323, "12", "lstrip"),
    ]);
    added.extend([token(324, "[SEP]", "rstrip"), token(325, "The", "single_word"), token(326, "..", "")]);
    let with_added = tokenizer(&json);
    assert!(Pieces::of(&with_added).unwrap().is_some());
    assert_equal_ids(&with_added, "added tokens");
    // What NFC may make of something else cannot be looked for in the text.
    json["added_tokens"].as_array_mut().unwrap().push(token(327, ";x", "normalized"));
    assert!(Pieces::of(&tokenizer(&json)).unwrap().is_none());
    assert_equal_ids(&tokenizer(&json), "an added token that may be made");
}

#[test]
fn tokenizers_that_see_further_are_not_cut() {
    let not_cut = |steps: &[Value]| Cuts::of(&bytes(Value::Null, steps)).is_none();
    let level = || byte_level(false, false);
    assert!(not_cut(&[level()]), "merges across words");
    assert!(not_cut(&[split(r"\w+\b|\W"), level()]), "looks beside a match");
    assert!(not_cut(&[split(r"\p{L}*"), level()]), "matches nothing");
    assert!(not_cut(&[level(), split(r" ?\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+")]), "a blank is a letter then");
    assert!(not_cut(&[split(r"\s?+\s|\p{L}++"), level()]), "the blank is taken, and another one wanted");
    assert!(not_cut(&[split(r"\p{L}+|\s+(?!\S)"), level()]), "a blank before a word is not matched");
    assert!(not_cut(&[json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})]));
    let mut removed = split(r"\s+|\p{L}+");
    removed["behavior"] = "Removed".into();
    assert!(not_cut(&[removed, level()]));
    let mut unsteady = fixture("llama-tiny/tokenizer.json");
    unsteady["model"]["dropout"] = json!(0.5);
    assert!(Cuts::of(&tokenizer(&unsteady)).is_none(), "other ids each time");
    for normalizer in
        [json!({"type": "Prepend", "prepend": "▁"}), json!({"type": "Strip", "strip_left": true, "strip_right": true})]
    {
        assert!(Cuts::of(&bytes(normalizer, &[byte_level(false, true)])).is_none());
    }
}

#[test]
fn words_are_cut_where_no_expression_goes_on() {
    let cut = |steps: &[Value], text: &str| {
        let cuts = Cuts::of(&bytes(Value::Null, steps)).unwrap();
        let (mut pieces, mut rest) = (Vec::new(), text.to_owned());
        while !rest.is_empty() {
            let (piece, behind) = cuts.first(&rest);
            pieces.push(piece.to_owned());
            rest = behind.to_owned();
        }
        pieces.join("|")
    };
    let llama3 = [split(LLAMA3), byte_level(false, false)];
    assert_eq!(cut(&llama3, "It's  12, (ok).\nNext\nline"), "It|'s|  12|,| (ok|).\nNext|\nline");
    assert_eq!(cut(&llama3, "caf\u{e9} \u{a0} x\u{3000} y"), "caf\u{e9}| \u{a0} x\u{3000} y");
    // A word that takes the space behind it, and one that takes a mark.
    assert_eq!(cut(&[split(r"\p{L}+ ?|[^\p{L}]")], "so, it is. 1"), "so|, it is|. 1");
    assert_eq!(cut(&[split(r"\p{L}+['_]?|[^\p{L}]")], "it's_ so"), "it's_| so");
    assert_eq!(cut(&[byte_level(true, true)], "It's so, \nhere"), "It's| so,| \nhere");
    let cuts = Cuts::of(&tokenizer(&fixture("bert-tiny/tokenizer.json"))).unwrap();
    assert_eq!(cuts.first("  don't"), ("don", "'t"));
    assert_eq!(cuts.first("'t"), ("'", "t"));
    assert_eq!(cuts.first(" \n"), ("", ""));
}

/// More words than a table has room for, and as many that come once: each has its own ids all the same.
#[test]
fn a_table_that_is_full_begins_anew() {
    let tokenizer = tokenizer(&fixture("bert-tiny/tokenizer.json"));
    let pieces = Pieces::of(&tokenizer).unwrap().unwrap();
    for from in (0..120_000).step_by(1000) {
        let words: Vec<String> =
            (from..from + 1000).flat_map(|word| [word, word, word / 2]).map(|word| format!("{word:x}")).collect();
        let text = words.join(" ");
        let mut ids = Vec::new();
        assert!(pieces.encode(&tokenizer, &text, &mut ids).unwrap());
        assert_eq!(ids, tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids(), "from {from} on");
    }
}
