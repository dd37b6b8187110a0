//! Whether the parity fixtures would notice: each switch of the descriptor is set wrongly, for every fixture that has it, and
//! the logits must then be wrong. A fixture in which a switch decides nothing could not show that the decoder computes it.

#![allow(clippy::unwrap_used)]

use crate::linear::Precision;

use super::shape::{Activation, Biases, DecoderShape, NormKind, QkNorm, Residual};
use super::{Decoder, from_config};
use crate::alone::{errors, ids, last_logits};
use crate::rope::RopeScaling;
use crate::safetensors::SafetensorsFiles;
use crate::synthetic::{checkpoint, fixtures};
use crate::weights::Weights;

/// An error of logits that a wrong switch must be above, as a part of their range: twice what parity allows.
const SEEN: f32 = 4e-5;

/// Sets a switch wrongly; false if the architecture has nothing to set.
type Wrong = fn(&mut DecoderShape) -> bool;

const SWITCHES: [(&str, Wrong); 27] = [
    ("attention softcap", |shape| shape.softcap.take().is_some()),
    ("logits softcap", |shape| shape.logits_softcap.take().is_some()),
    ("no window", |shape| shape.layers.iter_mut().filter_map(|layer| layer.window.take()).count() > 0),
    ("window of one more", |shape| {
        shape.layers.iter_mut().filter_map(|layer| layer.window.as_mut()).map(|w| *w += 1).count() > 0
    }),
    ("scale", |shape| scaled(&mut shape.scale, 1.1)),
    ("embedding multiplier", |shape| changed(&mut shape.embedding_multiplier, 1.0)),
    ("residual multiplier", |shape| changed(&mut shape.residual_multiplier, 1.0)),
    ("logits multiplier", |shape| changed(&mut shape.logits_multiplier, 1.0)),
    ("norm epsilon", |shape| changed(&mut shape.norm_epsilon, 1e-6)),
    ("norm weights from 1", |shape| match shape.norm {
        NormKind::RmsPlusOne => changed(&mut shape.norm, NormKind::Rms),
        NormKind::Rms => changed(&mut shape.norm, NormKind::RmsPlusOne),
        NormKind::Layer => false,
    }),
    ("rope scaling", |shape| any(shape.ropes.iter_mut().map(|rope| changed(&mut rope.scaling, RopeScaling::None)))),
    ("theta", |shape| {
        shape.ropes.iter_mut().for_each(|rope| rope.theta *= 7.0);
        !shape.ropes.is_empty()
    }),
    ("one rope for all layers", |shape| any(shape.layers.iter_mut().map(|layer| changed(&mut layer.rope, 0)))),
    ("rotated part", |shape| {
        shape.latent.is_none() && shape.rotary > 2 && {
            shape.rotary -= 2;
            true
        }
    }),
    ("pairs", |shape| {
        shape.rotary > 2 && (shape.latent.is_some() || !shape.interleaved) && {
            shape.interleaved = !shape.interleaved;
            matches!(shape.names.qkv, super::names::QkvNames::Separate(_))
        }
    }),
    ("positions", |shape| shape.positions.take().is_some()),
    ("norms of queries and keys", |shape| changed(&mut shape.qk_norm, QkNorm::None)),
    ("biases", |shape| changed(&mut shape.biases, Biases::default())),
    ("activation", |shape| match shape.activation {
        Activation::Silu => changed(&mut shape.activation, Activation::Gelu),
        Activation::Gelu | Activation::GeluTanh | Activation::Relu => changed(&mut shape.activation, Activation::Silu),
    }),
    ("kind of gelu", |shape| match shape.activation {
        Activation::Gelu => changed(&mut shape.activation, Activation::GeluTanh),
        Activation::GeluTanh => changed(&mut shape.activation, Activation::Gelu),
        Activation::Silu | Activation::Relu => false,
    }),
    ("residual", |shape| match shape.residual {
        Residual::Sequential => changed(&mut shape.residual, Residual::Parallel),
        Residual::Parallel => changed(&mut shape.residual, Residual::Sequential),
    }),
    ("experts normalised", |shape| {
        shape.experts.as_mut().is_some_and(|e| {
            e.normalised = !e.normalised;
            true
        })
    }),
    ("experts' scale", |shape| shape.experts.as_mut().is_some_and(|e| scaled(&mut e.scale, 1.2))),
    ("experts' groups", |shape| shape.experts.as_mut().is_some_and(|experts| experts.groups.take().is_some())),
    ("one expert less", |shape| {
        shape.experts.as_mut().is_some_and(|e| {
            e.chosen -= 1;
            true
        })
    }),
    ("shared expert", |shape| shape.experts.as_mut().is_some_and(|experts| experts.shared.take().is_some())),
    ("gate of the shared expert", |shape| shape.experts.as_mut().is_some_and(|e| changed(&mut e.shared_gate, false))),
];

fn scaled(place: &mut f32, by: f32) -> bool {
    *place *= by;
    true
}

/// Whether any of them is; all are tried.
fn any(results: impl Iterator<Item = bool>) -> bool {
    results.filter(|result| *result).count() > 0
}

fn changed<T: PartialEq>(place: &mut T, value: T) -> bool {
    *place != value && {
        *place = value;
        true
    }
}

#[test]
fn a_wrong_switch_shows() {
    let mut hits = [0; SWITCHES.len()];
    let mut missed = Vec::new();
    for (name, fixture) in fixtures("decoder") {
        let folder = checkpoint(&fixture);
        let files = SafetensorsFiles::open(&[folder.path().join("model.safetensors")]).unwrap();
        let weights = Weights::Safetensors { files, adapter: None };
        let config = &fixture["config"];
        let asked = fixture.get("context").and_then(serde_json::Value::as_u64).map(|tokens| tokens as usize);
        let shape = from_config(config["architectures"][0].as_str().unwrap(), config).unwrap().used_with(asked);
        let items = fixture["items"].as_array().unwrap();
        for (hit, (switch, wrong)) in hits.iter_mut().zip(SWITCHES) {
            let mut shape = shape.clone();
            if !wrong(&mut shape) {
                continue;
            }
            *hit += 1;
            let decoder = Decoder::load(&shape, &weights, Precision::F32).unwrap();
            let seen = items.iter().any(|item| error(&decoder, &shape, item) > SEEN);
            if !seen {
                missed.push(format!("{name}: {switch}"));
            }
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
    let never: Vec<&str> =
        hits.iter().zip(SWITCHES).filter(|(hits, _)| **hits == 0).map(|(_, (name, _))| name).collect();
    assert!(never.is_empty(), "in no fixture: {never:?}");
}

/// The largest error of the item's logits, as a part of their range.
pub(super) fn error(decoder: &Decoder, shape: &DecoderShape, item: &serde_json::Value) -> f32 {
    let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
    let range = number(&item["range"][1]) - number(&item["range"][0]);
    let logits = last_logits(decoder, shape, &ids(&item["ids"]));
    errors(&logits, &item["logits"], range).into_iter().fold(0.0, f32::max)
}
