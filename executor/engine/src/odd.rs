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

/// That no configuration like a fixture's panics: it is refused, or `computes` runs with it. `from_config` reads the one of an
/// architecture. Those that mean the same model as the fixture's are not computed again.
pub(crate) fn no_configuration_panics<Shape: PartialEq>(
    fixtures: Vec<(String, Value)>,
    from_config: impl Fn(&str, &Value) -> Result<Shape>,
    computes: impl Fn(&Shape, &Weights) -> Result<()>,
) {
    assert!(!fixtures.is_empty());
    for (name, fixture) in fixtures {
        let architecture = fixture["config"]["architectures"][0].as_str().unwrap();
        let as_it_is = from_config(architecture, &fixture["config"]).unwrap();
        let (refused, ran) = with_odd_values(&fixture, |config, weights| {
            let shape = from_config(architecture, config)?;
            if shape == as_it_is { Ok(()) } else { computes(&shape, weights) }
        });
        assert!(refused > 20 && ran > 20, "{name}: {refused} refused, {ran} ran");
    }
}

/// Puts every odd value in the place of every key of a fixture's configuration, and of every key one level below, and counts
/// those that `computes` refused (an error) and those that it ran.
fn with_odd_values(fixture: &Value, computes: impl Fn(&Value, &Weights) -> Result<()>) -> (usize, usize) {
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
