//! The operator's policy, from `rowmill.toml`: which providers there are, and which data may leave to them. Nothing leaves
//! without the file. It takes two keys: the operator allows it here, and the job asks for it.

pub mod config;
mod decide;
mod read;
mod values;

#[cfg(test)]
mod refused;

use std::collections::BTreeMap;
use std::path::Path;

use rowmill_jobs::{Error, Result};
use sha2::{Digest, Sha256};

use crate::hex;
use crate::pricing::{Catalogue, LanePrice, ModelPrice, PricedModel, Prices, Rates};
use config::{Config, LanePrices, Price, Provider};
pub use decide::{EgressRequest, Permit, Reason, Refusal, Storage, Who};
pub use values::{BaseUrl, DataClass, DatasetPrefix, ModelGlob, Retention, Usd};

/// The operator's policy.
#[derive(Debug, Clone)]
pub struct Policy {
    config: Config,
    hash: String,
    is_from_file: bool,
}

impl Policy {
    /// Reads `rowmill.toml`.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong, with its line.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::invalid(format!("cannot read {}", path.display()))
                .caused_by(error)
                .hint("--config or ROWMILL_CONFIG names the operator's rowmill.toml")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a `rowmill.toml`; `file` names it in errors.
    ///
    /// # Errors
    /// Something in it is wrong, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let config = read::config(text, file)?;
        let hash = hash(&config)?;
        Ok(Self { config, hash, is_from_file: true })
    }

    /// The policy where there is no file: nothing leaves.
    ///
    /// # Errors
    /// Never in practice.
    pub fn none() -> Result<Self> {
        let config = Config::default();
        Ok(Self { hash: hash(&config)?, config, is_from_file: false })
    }

    /// What the operator wrote.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// sha256 of what the file says, in hex: the same for files that say the same. To be pinned by the plan.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A provider, if it is known.
    pub fn provider(&self, alias: &str) -> Option<&Provider> {
        self.config.providers.get(alias)
    }

    /// Whether something may be sent. To be asked again at every fallback: a permit holds for its provider, model and lane.
    ///
    /// # Errors
    /// It may not; the refusal says why, and what would have to change.
    pub fn decide(&self, asked: &EgressRequest) -> Result<Permit, Refusal> {
        if !self.is_from_file {
            let found = "there is no rowmill.toml";
            let change =
                "write one (infra/rowmill.example.toml is a start) and name it with --config or ROWMILL_CONFIG";
            return Err(Refusal::new(Reason::NoPolicy, Who::Operator, found, change));
        }
        decide::decide(&self.config, &self.hash, asked)
    }

    /// The prices of a catalogue, with the operator's in place of its own.
    pub fn prices(&self, catalogue: Catalogue) -> Prices {
        let own = self.config.prices.iter().map(|(name, price)| (name.clone(), model_price(price)));
        Prices::new(catalogue, own.collect::<BTreeMap<_, _>>())
    }

    /// A model's prices: the operator's, the catalogue's, or nothing for one in the house.
    ///
    /// # Errors
    /// None is known, or there is no such provider.
    pub fn price(&self, prices: &Prices, alias: &str, model: &str) -> Result<ModelPrice> {
        let provider = self.provider(alias).ok_or_else(|| Error::invalid(format!("there is no provider {alias:?}")))?;
        // Not the regions of the facts: only an address of a region is billed as one.
        let region = provider.region.as_deref();
        let named = provider.priced_as.get(model).map_or(model, String::as_str);
        let asked = PricedModel { alias, kind: provider.kind.as_str(), model: named, region };
        if let Some(own) = prices.own(alias, model) {
            return Ok(own.clone());
        }
        match prices.find(&asked) {
            Some(price) => Ok(price),
            None if provider.self_hosted => Ok(ModelPrice::free("self-hosted")),
            None => prices.require(&PricedModel { model, ..asked }),
        }
    }
}

/// sha256 of the configuration in one form: fields in order, tables sorted, no comments and no spaces.
fn hash(config: &Config) -> Result<String> {
    let text = serde_json::to_vec(config).map_err(|error| Error::internal("cannot write JSON").caused_by(error))?;
    Ok(hex::encode(Sha256::digest(text)))
}

fn model_price(price: &Price) -> ModelPrice {
    let lane = |prices: LanePrices| {
        let (input, output) = (prices.input.nano_usd, prices.output.nano_usd);
        let cached_input = prices.cached_input.map_or(input, |cached| cached.nano_usd);
        LanePrice::flat(Rates { input, cached_input, cache_write: input, output })
    };
    let online = LanePrices { input: price.input, cached_input: price.cached_input, output: price.output };
    ModelPrice {
        online: lane(online),
        flex: price.flex.map(lane),
        batch: price.batch.map(lane),
        source: "rowmill.toml".into(),
    }
}
