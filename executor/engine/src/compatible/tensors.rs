//! A model's tensors as candle-transformers asks for them: by name and shape, through the same checks as everybody's.
//! Maps no file; a tensor that is missing or of another shape is refused with our words before it is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use rowmill_jobs::{Error, Result};

use crate::linear::internal;
use crate::weights::Weights;

/// Names that stand for others: where the first is not in the files, the second is taken.
pub(super) type Instead = &'static [(&'static str, &'static str)];

/// Whether tensors are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// They are only checked; in their place stand zeros that take no memory.
    Checks,
    /// They are read, as `f32`.
    Reads,
}

/// The tensors that a model was given, by the names it asked with: for one that must be built again to be emptied.
pub(super) type Given = Arc<Mutex<HashMap<String, Tensor>>>;

/// How a family's tensors are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) instead: Instead,
    /// Multiplies what tokens are embedded as, and leaves the logits of the same matrix as they are.
    pub(super) embedding: f32,
    pub(super) reading: Reading,
}

struct Backend<'a> {
    weights: &'a Weights,
    manner: Manner,
    refused: &'a Mutex<Option<Error>>,
    given: Given,
}

/// Gives `build` the tensors of `weights`. An error that a tensor caused is ours; any other is the library's refusal of the
/// configuration.
pub(super) fn with_tensors<T>(
    weights: &Weights,
    manner: Manner,
    build: impl FnOnce(VarBuilder<'_>, &Given) -> candle_core::Result<T>,
) -> Result<T> {
    let (refused, given) = (Mutex::new(None), Given::default());
    let backend = Backend { weights, manner, refused: &refused, given: Arc::clone(&given) };
    let built = build(VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu), &given);
    let tensor = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    built.map_err(|error| match tensor {
        Some(refusal) => refusal,
        None => Error::invalid("the configuration is none that candle-transformers computes")
            .caused_by(error)
            .hint("use another model of this family"),
    })
}

impl Backend<'_> {
    fn stored<'b>(&self, name: &'b str) -> &'b str {
        let other = self.manner.instead.iter().find(|(asked, _)| *asked == name && !self.weights.has(name));
        other.map_or(name, |(_, stored)| stored)
    }

    fn tensor(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        let name = self.stored(name);
        match self.manner.reading {
            Reading::Checks => {
                self.weights.check(name, shape.dims())?;
                let zero = Tensor::zeros((), DType::F32, &Device::Cpu).map_err(internal)?;
                zero.broadcast_as(shape).map_err(internal)
            }
            Reading::Reads => {
                let mut values = self.weights.read(name, shape.dims())?;
                self.scale(name, &mut values);
                Tensor::from_vec(values, shape, &Device::Cpu).map_err(internal)
            }
        }
    }
}

impl Backend<'_> {
    /// The library has no place for a factor of the embedding alone: what the matrix, which is also the output's, has too
    /// much, the last norm's weights, to which it adds 1, have too little.
    fn scale(&self, name: &str, values: &mut [f32]) {
        let factor = self.manner.embedding;
        match name {
            _ if factor == 1.0 => {}
            "model.embed_tokens.weight" => values.iter_mut().for_each(|x| *x *= factor),
            "model.final_norm.weight" => values.iter_mut().for_each(|x| *x = (*x + 1.0) / factor - 1.0),
            _ => {}
        }
    }
}

impl SimpleBackend for Backend<'_> {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        match self.tensor(name, &shape) {
            Ok(tensor) => {
                let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
                given.insert(name.to_owned(), tensor.clone());
                Ok(tensor)
            }
            Err(error) => {
                let words = error.to_string();
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(candle_core::Error::Msg(words))
            }
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("tensor `{name}` is asked for without its shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.has(self.stored(name))
    }
}
