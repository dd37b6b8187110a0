//! The models of candle-transformers behind one face: fed with the next tokens of the one sequence that each holds in a cache
//! of its own. Knows no pages and no rows.

use std::sync::{Arc, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    glm4_new, granitemoehybrid, helium, lfm2, mamba, olmo, phi, recurrent_gemma, smol::smollm3, stable_lm,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::families::lfm2_config;
use super::shape::Family;
use super::tensors::Given;

/// A model at some place of a sequence.
pub(super) trait Running: Send {
    /// The logits after the last of `ids` (`[1, n]`), which follow `before` tokens that it was fed already.
    fn feed(&mut self, ids: &Tensor, before: usize) -> Result<Tensor>;

    /// Another that stands where this one does, with the same weights in memory. It and this one may go on to different
    /// tokens, one after the other: what one writes beyond this place, the other overwrites. `None`: this model cannot.
    fn at_same_place(&self) -> Option<Box<dyn Running>>;
}

type Feed<M> = fn(&mut M, &Tensor, usize) -> Result<Tensor>;

/// A model whose clone shares its weights and keeps its place.
struct Cloned<M> {
    model: M,
    feed: Feed<M>,
}

impl<M: Clone + Send + 'static> Running for Cloned<M> {
    fn feed(&mut self, ids: &Tensor, before: usize) -> Result<Tensor> {
        (self.feed)(&mut self.model, ids, before)
    }

    fn at_same_place(&self) -> Option<Box<dyn Running>> {
        Some(Box::new(Self { model: self.model.clone(), feed: self.feed }))
    }
}

fn cloned<M: Clone + Send + 'static>(model: M, feed: Feed<M>) -> Box<dyn Running> {
    Box::new(Cloned { model, feed })
}

/// Builds a family's model from its configuration, as [`super::shape`] made it.
pub(super) fn build(
    family: Family,
    config: &Value,
    tensors: VarBuilder<'_>,
    given: &Given,
) -> Result<Box<dyn Running>> {
    Ok(match family {
        Family::Phi => cloned(phi::Model::new(&read(config)?, tensors)?, |model, ids, _| model.forward(ids)),
        Family::StableLm => {
            let config: stable_lm::Config = read(config)?;
            let model = stable_lm::Model::new(&config, tensors)?;
            Box::new(StableLm { model, config: Arc::new(config), given: Arc::clone(given), empty: true })
        }
        Family::Glm4 => cloned(glm4_new::ModelForCausalLM::new(&read(config)?, tensors)?, |model, ids, before| {
            model.forward(ids, before)
        }),
        Family::Helium => {
            cloned(helium::Model::new(&read(config)?, tensors)?, |model, ids, before| model.forward(ids, before))
        }
        Family::Olmo => {
            cloned(olmo::Model::new(&read(config)?, tensors)?, |model, ids, before| model.forward(ids, before))
        }
        Family::SmolLm3 => cloned(smollm3::ModelForCausalLM::new(&read(config)?, tensors)?, |model, ids, before| {
            model.forward(ids, before)
        }),
        Family::GraniteMoeHybrid => {
            let config = read::<granitemoehybrid::GraniteMoeHybridConfig>(config)?.into_config(false);
            let model = Arc::new(granitemoehybrid::GraniteMoeHybrid::load(tensors, &config)?);
            let cache = granitemoehybrid::GraniteMoeHybridCache::new(true, DType::F32, &config, &Device::Cpu)?;
            cloned((model, cache), |(model, cache), ids, before| model.forward(ids, before, cache))
        }
        Family::Lfm2 => {
            let config = lfm2_config(config).map_err(|error| candle_core::Error::Msg(error.to_string()))?;
            let model = Arc::new(lfm2::Model::new(&config, tensors)?);
            let cache = lfm2::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            cloned((model, cache), |(model, cache), ids, before| model.forward(ids, before, cache))
        }
        Family::Mamba => {
            let config: mamba::Config = read(config)?;
            let model = Arc::new(mamba::Model::new(&config, tensors.pp("backbone"))?);
            let state = Recurrent(mamba::State::new(1, &config, DType::F32, &Device::Cpu)?);
            cloned((model, state), |(model, state), ids, _| model.forward(&ids.flatten_all()?, &mut state.0))
        }
        Family::RecurrentGemma => {
            cloned(recurrent_gemma::Model::new(&read(config)?, tensors.pp("model"))?, |model, ids, before| {
                model.forward(ids, before)
            })
        }
    })
}

fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    serde_json::from_value(config.clone()).map_err(|error| candle_core::Error::Msg(error.to_string()))
}

/// Mamba's state, whose tensors are replaced and never written into.
struct Recurrent(mamba::State);

impl Clone for Recurrent {
    fn clone(&self) -> Self {
        let mamba::State { hs, prev_xs, pos } = &self.0;
        Self(mamba::State { hs: hs.clone(), prev_xs: prev_xs.clone(), pos: *pos })
    }
}

/// A model that can neither be cloned nor emptied: built again from the tensors in memory.
struct StableLm {
    model: stable_lm::Model,
    config: Arc<stable_lm::Config>,
    given: Given,
    empty: bool,
}

impl Running for StableLm {
    fn feed(&mut self, ids: &Tensor, before: usize) -> Result<Tensor> {
        self.empty = false;
        self.model.forward(ids, before)
    }

    fn at_same_place(&self) -> Option<Box<dyn Running>> {
        if !self.empty {
            return None;
        }
        let tensors = self.given.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tensors = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = stable_lm::Model::new(&self.config, tensors).ok()?;
        let (config, given) = (Arc::clone(&self.config), Arc::clone(&self.given));
        Some(Box::new(Self { model, config, given, empty: true }))
    }
}
