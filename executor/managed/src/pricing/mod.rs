//! Prices of models: a dated snapshot that comes with Rowmill, overridden by the operator and by the job. A model without a
//! price is refused where money is capped; no price is ever made up.

mod price;
mod snapshot;

use std::collections::BTreeMap;

use rowmill_jobs::{Error, Result, error::closest};

pub use price::{LanePrice, ModelPrice, Rates, Tier, Tokens, local_cost};
pub use snapshot::{Catalogue, Origin};

/// All prices that are known to a process.
#[derive(Debug, Clone)]
pub struct Prices {
    catalogue: Catalogue,
    /// The operator's, by `provider alias/model`.
    overrides: BTreeMap<String, ModelPrice>,
}

/// A model whose price is asked for.
#[derive(Debug, Clone, Copy)]
pub struct PricedModel<'a> {
    /// The provider's name in `rowmill.toml`.
    pub alias: &'a str,
    /// The provider's kind.
    pub kind: &'a str,
    /// The model, as the provider calls it (for Azure, the model behind the deployment).
    pub model: &'a str,
    /// Where it is computed, if that is fixed: some regions cost more.
    pub region: Option<&'a str>,
}

impl Prices {
    /// The prices of a catalogue, except where the operator has others (by `provider alias/model`).
    pub fn new(catalogue: Catalogue, overrides: BTreeMap<String, ModelPrice>) -> Self {
        Self { catalogue, overrides }
    }

    /// Where the catalogue comes from: to be stored beside every cost.
    pub fn origin(&self) -> &Origin {
        self.catalogue.origin()
    }

    /// A model's prices: the operator's, else the catalogue's, else none.
    pub fn find(&self, asked: &PricedModel<'_>) -> Option<ModelPrice> {
        self.own(asked.alias, asked.model).cloned().or_else(|| self.catalogue.find(asked))
    }

    /// The operator's own prices of a model, if there are any.
    pub fn own(&self, alias: &str, model: &str) -> Option<&ModelPrice> {
        self.overrides.get(&format!("{alias}/{model}"))
    }

    /// A model's prices, for a job whose money is capped.
    ///
    /// # Errors
    /// No price is known.
    pub fn require(&self, asked: &PricedModel<'_>) -> Result<ModelPrice> {
        self.find(asked).ok_or_else(|| {
            let known = self.catalogue.names(asked.kind);
            let similar = closest(asked.model, known.iter().map(String::as_str));
            let similar = similar.map_or_else(String::new, |name| format!(" (is it {name}?)"));
            Error::invalid(format!("no price is known of {}{similar}, and the job has a cap", asked.model))
                .with("provider", asked.alias)
                .with("prices", self.origin())
                .hint(format!(
                    "give it in rowmill.toml: [prices.\"{}/{}\"] input = \"0.15\", output = \"0.60\" (USD per million tokens)",
                    asked.alias, asked.model
                ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(kind: &'a str, model: &'a str, region: Option<&'a str>) -> PricedModel<'a> {
        PricedModel { alias: kind, kind, model, region }
    }

    #[test]
    fn the_operators_price_goes_before_the_snapshots() {
        let own = ModelPrice::free("the operator");
        let prices = Prices::new(Catalogue::built_in().unwrap(), [("openai/gpt-4o-mini".to_owned(), own)].into());
        assert_eq!(prices.find(&asked("openai", "gpt-4o-mini", None)).unwrap().source, "the operator");
        assert!(prices.find(&asked("openai", "gpt-4o", None)).unwrap().source.contains("litellm"));
    }

    #[test]
    fn an_unknown_price_is_refused_and_says_how_to_give_one() {
        let prices = Prices::new(Catalogue::built_in().unwrap(), BTreeMap::new());
        let error = prices.require(&asked("openai", "gpt-4o-mnii", None)).unwrap_err();
        assert!(error.to_string().contains("is it gpt-4o-mini?"), "{error}");
        assert!(error.hint_text().unwrap().contains("[prices.\"openai/gpt-4o-mnii\"]"));
    }
}
