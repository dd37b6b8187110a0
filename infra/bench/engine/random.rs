//! Checkpoints of noise in the shape of known small models, and workloads for them. They measure time; what they answer
//! means nothing. Tokenizers are those of the engine's test fixtures, so texts have more tokens than they would have.

use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{TaskName, Workload};

/// A tensor's name and sizes.
type Tensor = (String, Vec<usize>);

/// Writes a model of this name into a folder that goes when it is dropped.
pub(crate) fn checkpoint(name: &str) -> TempDir {
    let (config, tensors) = match name {
        "minilm" => mini_lm(),
        "smollm" => llama(&SMOL_LM),
        "llama-1b" => llama(&LLAMA_1B),
        other => panic!("there is no shape {other}: minilm, smollm or llama-1b"),
    };
    let folder = tempfile::tempdir().unwrap();
    let donor = if name == "minilm" { "bert-tiny" } else { "llama-tiny" };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(donor);
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

/// What the random model `name` is measured with.
pub(crate) fn workloads(name: &str) -> Vec<Workload> {
    let workload = |task: TaskName, rows: usize, words: usize, tokens_max: u32| Workload {
        task,
        system: None,
        template: "{0}".into(),
        values: (0..rows).map(|row| text(row, words)).collect(),
        labels: Some(["billing", "bug", "bug report", "how-to"].map(str::to_owned).to_vec()),
        schema: None,
        tokens_max,
    };
    match name {
        "minilm" => vec![workload(TaskName::Embed, 256, 40, 0)],
        _ => vec![
            workload(TaskName::Classify, 64, 40, 0),
            workload(TaskName::Generate, 64, 40, 32),
            workload(TaskName::Generate, 1, 40, 32),
        ],
    }
}

/// A text that no other row has.
fn text(row: usize, words: usize) -> String {
    const WORDS: [&str; 11] =
        ["invoice", "the", "printer", "again", "was", "charged", "twice", "export", "stops", "password", "on"];
    let mut noise = Noise(row as u32 + 1);
    let picked: Vec<&str> = (0..words).map(|_| WORDS[noise.next() as usize % WORDS.len()]).collect();
    format!("{row}: {}", picked.join(" "))
}

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }
}

/// Writes tensors of noise as safetensors in bf16: norms are ones, everything else is uniform around 0.
fn write(path: &Path, tensors: &[Tensor]) {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut noise = Noise(7);
    for (name, shape) in tensors {
        let norm = name.ends_with("norm.weight") || name.ends_with("LayerNorm.weight");
        for _ in 0..shape.iter().product::<usize>() {
            let value = if norm { 1.0 } else { 0.05 * (noise.next() as f32 / (1u32 << 23) as f32 - 1.0) };
            file.write_all(&bf16::from_f32(value).to_le_bytes()).unwrap();
        }
    }
    file.flush().unwrap();
}

/// MiniLM-L6: 22.7 M parameters, of which 10.6 M multiply every token.
fn mini_lm() -> (Value, Vec<Tensor>) {
    let (h, inner, vocab) = (384, 1536, 30_522);
    let config = json!({"architectures": ["BertModel"], "hidden_size": h, "intermediate_size": inner,
        "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": vocab, "type_vocab_size": 2,
        "max_position_embeddings": 512});
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
    (config, tensors)
}

/// Sizes of a Llama with tied embeddings.
struct Llama {
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    theta: f64,
}

/// SmolLM2-135M: 134.5 M parameters, of which 106 M multiply every token and 28 M are the output matrix.
const SMOL_LM: Llama =
    Llama { hidden: 576, inner: 1536, layers: 30, heads: 9, kv_heads: 3, vocab: 49_152, theta: 100_000.0 };

/// Llama-3.2-1B: 1.24 G parameters, of which 973 M multiply every token and 263 M are the output matrix.
const LLAMA_1B: Llama =
    Llama { hidden: 2048, inner: 8192, layers: 16, heads: 32, kv_heads: 8, vocab: 128_256, theta: 500_000.0 };

fn llama(shape: &Llama) -> (Value, Vec<Tensor>) {
    let Llama { hidden, inner, layers, heads, kv_heads, vocab, theta } = *shape;
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": theta,
        "tie_word_embeddings": true, "eos_token_id": 2});
    let kv = hidden / heads * kv_heads;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    (config, tensors)
}
