//! Vectors of decoders are those of transformers: the fixtures of tests/fixtures/make_decoders.py with a pooling.

#![allow(clippy::unwrap_used, clippy::panic)]

use rowmill_jobs::plan::Ability;
use rowmill_jobs::spec::Dtype;

use crate::alone::ids;
use crate::model::{EngineOptions, Model, Network, inspect};
use crate::synthetic::{checkpoint, fixtures};

#[test]
fn vectors_of_decoders_with_a_pooling_configuration() {
    let fixtures = fixtures("embedder");
    assert!(!fixtures.is_empty());
    for (name, fixture) in fixtures {
        let folder = checkpoint(&fixture);
        let pooling = fixture["pooling"].as_str().unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let config = serde_json::json!({"word_embedding_dimension": 48, format!("pooling_mode_{pooling}"): true});
        std::fs::write(folder.path().join("1_Pooling/config.json"), config.to_string()).unwrap();
        let facts = inspect(folder.path()).unwrap();
        assert_eq!((facts.abilities, facts.dimensions), (vec![Ability::Embed], Some(48)), "{name}");
        let options = EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() };
        let model = Model::load(folder.path(), &options).unwrap();
        let Network::DecoderEmbedder(embedder) = model.network else { panic!("{name}: not an embedder") };
        let items = fixture["items"].as_array().unwrap();
        let rows: Vec<Vec<u32>> = items.iter().map(|value| ids(&value["ids"])).collect();
        for size in [1, 3, 20] {
            let of: Vec<usize> = (0..size.max(rows.len())).map(|i| (i * 5 + 1) % rows.len()).collect();
            for batch in of.chunks(size) {
                let packed: Vec<&[u32]> = batch.iter().map(|row| rows[*row].as_slice()).collect();
                for (row, vector) in batch.iter().zip(embedder.embed(&packed).unwrap()) {
                    let expected = items[*row]["vector"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32);
                    let vector = vector.unwrap();
                    let near = vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
                    assert!(near, "{name}: {} tokens in a batch of {size}", rows[*row].len());
                }
            }
        }
    }
}
