//! Measures the packed paths on this machine with random weights in the shapes of well-known small models. Asserts
//! nothing about speed. Run it optimised: `cargo test --release -p rowmill-engine --lib throughput -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rowmill_jobs::infer::{TaskKind, TextFormat};
use rowmill_jobs::spec::Pooling;
use serde_json::{Value, json};

use crate::answer::Answerer;
use crate::linear::Linear;
use crate::model::{EngineOptions, Model, Network};
use crate::pack::batches;

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn floats(&mut self, n: usize, spread: f32) -> Vec<f32> {
        (0..n).map(|_| spread * (self.next() as f32 / (1u32 << 23) as f32 - 1.0)).collect()
    }

    fn ids(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| 200 + self.next() % 20_000).collect()
    }
}

/// Loads a model of this configuration whose tensors (name, shape) are noise.
fn random(config: &Value, tensors: Vec<(String, Vec<usize>)>) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny/tokenizer.json");
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut noise = Noise(7);
    let tensors: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let values = noise.floats(shape.iter().product(), 0.05);
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    Model::load(folder.path(), &EngineOptions::default()).unwrap()
}

/// MiniLM-L6: 22.7 M parameters, of which 10.6 M multiply every token.
fn mini_lm() -> Model {
    let (h, inner, vocab) = (384, 1536, 30_522);
    let config = json!({"architectures": ["BertModel"], "hidden_size": h, "intermediate_size": inner, "num_hidden_layers": 6,
        "num_attention_heads": 12, "vocab_size": vocab, "type_vocab_size": 2, "max_position_embeddings": 512});
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![vocab, h]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![512, h]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, h]),
    ];
    let mut both = |name: String, rows: usize, columns: Option<usize>| {
        tensors.push((format!("{name}.weight"), [rows].into_iter().chain(columns).collect()));
        tensors.push((format!("{name}.bias"), vec![rows]));
    };
    both("embeddings.LayerNorm".into(), h, None);
    for layer in 0..6 {
        let root = format!("encoder.layer.{layer}");
        for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            both(format!("{root}.{name}"), h, Some(h));
        }
        both(format!("{root}.intermediate.dense"), inner, Some(h));
        both(format!("{root}.output.dense"), h, Some(inner));
        both(format!("{root}.attention.output.LayerNorm"), h, None);
        both(format!("{root}.output.LayerNorm"), h, None);
    }
    random(&config, tensors)
}

/// SmolLM2-135M: 134.5 M parameters, of which 106 M multiply every token and 28 M are the tied output matrix.
fn smol_lm() -> Model {
    let (h, inner, vocab, layers) = (576, 1536, 49_152, 30);
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": h, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true,
        "eos_token_id": 0});
    let mut tensors =
        vec![("model.embed_tokens.weight".to_owned(), vec![vocab, h]), ("model.norm.weight".to_owned(), vec![h])];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![h]),
            ("post_attention_layernorm", vec![h]),
            ("self_attn.q_proj", vec![h, h]),
            ("self_attn.k_proj", vec![192, h]),
            ("self_attn.v_proj", vec![192, h]),
            ("self_attn.o_proj", vec![h, h]),
            ("mlp.gate_proj", vec![inner, h]),
            ("mlp.up_proj", vec![inner, h]),
            ("mlp.down_proj", vec![h, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    random(&config, tensors)
}

#[test]
#[ignore = "a measurement: it says something only in a release build on a quiet machine"]
fn matrix_products() {
    let mut noise = Noise(3);
    for (rows, inputs, outputs) in
        [(2048, 384, 1152), (2048, 384, 1536), (2048, 1536, 384), (1024, 576, 3072), (64, 576, 3072), (1, 576, 3072)]
    {
        let linear = Linear::new(noise.floats(inputs * outputs, 1.0), inputs, None, DType::F32).unwrap();
        let x = noise.floats(rows * inputs, 1.0);
        let times = 1 + 4_000_000_000 / (2 * rows * inputs * outputs);
        let start = Instant::now();
        for _ in 0..times {
            linear.apply(x.clone()).unwrap().read(|y| std::hint::black_box(y[0])).unwrap();
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{rows} x {inputs} x {outputs}: {:.1} GFLOP/s",
            (2 * rows * inputs * outputs * times) as f64 / seconds / 1e9
        );
    }
}

#[test]
#[ignore = "a measurement: it says something only in a release build on a quiet machine"]
fn embedding() {
    let Network::Encoder { encoder, .. } = mini_lm().network else { panic!("not an encoder") };
    let mut noise = Noise(5);
    for (what, lengths) in [("128", vec![128usize; 256]), ("8 to 128", (0..512).map(|i| 8 + (i * 37) % 121).collect())]
    {
        let rows: Vec<Vec<u32>> = lengths.iter().map(|n| noise.ids(*n)).collect();
        let tokens: usize = lengths.iter().sum();
        for budget in [512, 1024, 2048, 4096, 8192] {
            let start = Instant::now();
            for batch in batches(&lengths, budget) {
                let packed: Vec<&[u32]> = batch.iter().map(|row| rows[*row].as_slice()).collect();
                encoder.embed(&packed, Pooling::Mean).unwrap();
            }
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "MiniLM-L6, rows of {what} tokens, budget {budget}: {:.0} rows/s, {:.0} tokens/s, {:.1} GFLOP/s in matrices",
                rows.len() as f64 / seconds,
                tokens as f64 / seconds,
                tokens as f64 * 2.0 * 10.6e6 / seconds / 1e9
            );
        }
    }
}

#[test]
#[ignore = "a measurement: it says something only in a release build on a quiet machine"]
fn deciding_and_writing() {
    let model = smol_lm();
    let Network::Decoder { decoder, shape } = model.network else { panic!("not a decoder") };
    let mut answerer = Answerer::new(*decoder, &shape, Arc::new(model.prompter));
    let mut noise = Noise(9);
    let head = noise.ids(100);
    let rows: Vec<Vec<u32>> = (0..64).map(|i| [head.clone(), noise.ids(20 + i)].concat()).collect();
    let prompts: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let labels = TaskKind::Choose { labels: ["billing", "bug", "bug report", "how-to"].map(str::to_owned).to_vec() };
    let write = TaskKind::Complete { tokens_max: 32, format: TextFormat::Free };
    for (what, kind, prompts) in [
        ("label scoring", &labels, &prompts[..]),
        ("32 tokens", &write, &prompts[..]),
        ("32 tokens alone", &write, &prompts[..1]),
    ] {
        let start = Instant::now();
        answerer.run(kind, prompts, &|| false).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "SmolLM2-135M, {} rows ({tokens} prompt tokens in 64), {what}: {:.1} rows/s, {seconds:.2} s",
            prompts.len(),
            prompts.len() as f64 / seconds
        );
    }
}
