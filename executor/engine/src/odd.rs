//! For tests: configurations that no model has, made of those that fixtures have, one senseless value at a time.

#![allow(clippy::unwrap_used)]

use rowmill_jobs::Result;
use serde_json::{Value, json};

use crate::safetensors::SafetensorsFiles;
use crate::synthetic::checkpoint;
use crate::weights::Weights;

/// Values that no model has.
pub(crate) fn odd() -> Vec<Value> {
    let numbers = [json!(0), json!(1), json!(2), json!(3), json!(-1), json!(0.5), json!(1e300)];
    let large = [json!(1 << 24), json!(u32::MAX), json!(u64::MAX)];
    let others = [json!(null), json!(true), json!(false), json!("odd"), json!([]), json!(["odd", 1, 1]), json!({})];
    [&numbers[..], &large, &others].concat()
}

/// Puts every odd value in the place of every key of a fixture's configuration, and of every key one level below, and counts
/// those that `computes` refused (an error) and those that it ran.
pub(crate) fn with_odd_values(fixture: &Value, computes: impl Fn(&Value, &Weights) -> Result<()>) -> (usize, usize) {
    let folder = checkpoint(fixture);
    let files = SafetensorsFiles::open(&[folder.path().join("model.safetensors")]).unwrap();
    let weights = Weights::Safetensors { files, adapter: None };
    let mut places = Vec::new();
    for (key, value) in fixture["config"].as_object().unwrap() {
        places.push(format!("/{key}"));
        places.extend(value.as_object().into_iter().flatten().map(|(inner, _)| format!("/{key}/{inner}")));
    }
    let (mut refused, mut ran) = (0, 0);
    for (place, value) in places.iter().flat_map(|place| odd().into_iter().map(move |value| (place, value))) {
        let mut config = fixture["config"].clone();
        *config.pointer_mut(place).unwrap() = value;
        let count = if computes(&config, &weights).is_ok() { &mut ran } else { &mut refused };
        *count += 1;
    }
    (refused, ran)
}
