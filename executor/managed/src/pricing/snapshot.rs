//! [`Catalogue`]: prices in the shape of LiteLLM's `model_prices_and_context_window.json`: the snapshot that comes with
//! Rowmill, or a newer file of the operator's. Numbers are read as text and never pass through floating point.

use std::collections::BTreeMap;
use std::fmt;

use rowmill_jobs::{Error, Result, money};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::PricedModel;
use super::price::{LanePrice, ModelPrice, Rates, Tier};

/// The snapshot that comes with Rowmill; README.md beside it says where it is from.
const BUILT_IN: &str = include_str!("snapshot.json");
/// Key of the entry that says where a snapshot is from.
const ABOUT: &str = "_snapshot";
/// Power of ten between dollars per token and nano-dollars per million tokens.
const PER_TOKEN: i32 = 15;

/// How a kind of provider is named in the file: what its models' names may start with, and its `litellm_provider`s.
struct Naming {
    kind: &'static str,
    prefixes: &'static [&'static str],
    providers: &'static [&'static str],
}

const NAMINGS: [Naming; 11] = [
    Naming { kind: "openai", prefixes: &[""], providers: &["openai"] },
    Naming { kind: "azure", prefixes: &["azure/"], providers: &["azure"] },
    Naming { kind: "anthropic", prefixes: &[""], providers: &["anthropic"] },
    Naming { kind: "bedrock", prefixes: &[""], providers: &["bedrock", "bedrock_converse"] },
    Naming {
        kind: "vertex",
        prefixes: &["vertex_ai/", ""],
        providers: &["vertex_ai-language-models", "vertex_ai-anthropic_models", "vertex_ai-embedding-models"],
    },
    Naming { kind: "gemini", prefixes: &["gemini/"], providers: &["gemini"] },
    Naming { kind: "groq", prefixes: &["groq/"], providers: &["groq"] },
    Naming { kind: "deepseek", prefixes: &["deepseek/", ""], providers: &["deepseek"] },
    Naming { kind: "mistral", prefixes: &["mistral/"], providers: &["mistral"] },
    Naming { kind: "together", prefixes: &["together_ai/"], providers: &["together_ai"] },
    Naming {
        kind: "fireworks",
        prefixes: &["fireworks_ai/", "fireworks_ai/accounts/fireworks/models/"],
        providers: &["fireworks_ai"],
    },
];

/// Where a catalogue is from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file it was made from.
    pub origin: String,
    /// The day it was made, as `YYYY-MM-DD`.
    pub date: String,
    /// Its licence.
    pub licence: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.origin, self.date)
    }
}

/// Prices by model.
#[derive(Debug, Clone)]
pub struct Catalogue {
    origin: Origin,
    entries: BTreeMap<String, CatalogueEntry>,
}

/// One model's line of the file: its fields as text. A price may have any number of thresholds in its name, so that fields
/// cannot be listed; what is no price is passed over.
#[derive(Debug, Clone)]
struct CatalogueEntry {
    provider: String,
    numbers: BTreeMap<String, String>,
}

impl Catalogue {
    /// The snapshot that comes with Rowmill.
    ///
    /// # Errors
    /// Never in practice: a test reads it.
    pub fn built_in() -> Result<Self> {
        Self::parse(BUILT_IN, None)
    }

    /// A file in LiteLLM's shape. One that does not say where it is from is known by `origin`.
    ///
    /// # Errors
    /// It is no such file.
    pub fn parse(text: &str, origin: Option<Origin>) -> Result<Self> {
        let unreadable = |error: serde_json::Error| {
            Error::invalid("cannot read the prices").caused_by(error).hint("LiteLLM's shape is expected")
        };
        let mut raw: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).map_err(unreadable)?;
        let own = match raw.remove(ABOUT) {
            Some(about) => Some(serde_json::from_str(about.get()).map_err(unreadable)?),
            None => None,
        };
        let origin = own.or(origin).ok_or_else(|| Error::invalid("the prices do not say where they are from"))?;
        let mut entries = BTreeMap::new();
        for (name, fields) in raw {
            let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(fields.get()).map_err(unreadable)?;
            let provider =
                fields.get("litellm_provider").map_or("", |provider| provider.get().trim_matches('"')).to_owned();
            let numbers = fields.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect();
            entries.insert(name, CatalogueEntry { provider, numbers });
        }
        Ok(Self { origin, entries })
    }

    /// Where it is from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A model's prices, if they are known.
    pub fn find(&self, asked: &PricedModel<'_>) -> Option<ModelPrice> {
        let naming = naming(asked.kind)?;
        let names = names_of(naming, asked);
        let entry = names.iter().find_map(|name| {
            self.entries.get(name).filter(|entry| naming.providers.contains(&entry.provider.as_str()))
        })?;
        let uplift = asked.region.and_then(|region| entry.uplift(region)).unwrap_or(1_000);
        entry.price(uplift, self.origin.to_string())
    }

    /// The models of a kind of provider whose prices are known, as the provider calls them.
    pub(super) fn names(&self, kind: &str) -> Vec<String> {
        let Some(naming) = naming(kind) else { return Vec::new() };
        let entries = self.entries.iter().filter(|(_, entry)| naming.providers.contains(&entry.provider.as_str()));
        let stripped =
            |name: &str| naming.prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name).to_owned();
        entries.map(|(name, _)| stripped(name)).collect()
    }
}

fn naming(kind: &str) -> Option<&'static Naming> {
    NAMINGS.iter().find(|naming| naming.kind == kind)
}

/// The names under which a model's prices may stand, the most exact first.
fn names_of(naming: &Naming, asked: &PricedModel<'_>) -> Vec<String> {
    let mut models = vec![asked.model];
    // A fine-tuned model has the price of all of its base: `ft:base:organisation:name:id`.
    if let Some((position, _)) = asked.model.match_indices(':').nth(1)
        && asked.model.starts_with("ft:")
    {
        models.push(&asked.model[..position]);
    }
    models.extend(asked.model.strip_prefix("google/"));
    let mut names = Vec::new();
    for model in models {
        for prefix in naming.prefixes {
            // Azure's regional prices stand under `azure/eu/…`.
            let zone = asked.region.map(|region| region.split(['-', '.']).next().unwrap_or(region));
            names.extend(zone.filter(|_| naming.kind == "azure").map(|zone| format!("{prefix}{zone}/{model}")));
            names.push(format!("{prefix}{model}"));
        }
    }
    names
}

impl CatalogueEntry {
    /// Nano-dollars per million tokens, from a field of dollars per token.
    fn rate(&self, field: &str) -> Option<u64> {
        money::scaled(self.numbers.get(field)?, PER_TOKEN)
    }

    /// What a region's price is multiplied with, in thousandths.
    fn uplift(&self, region: &str) -> Option<u64> {
        let zone = region.split(['-', '.']).next().unwrap_or(region);
        money::scaled(self.numbers.get(&format!("regional_processing_uplift_multiplier_{zone}"))?, 3)
    }

    /// The rates that a field's suffix stands for: `_above_200k_tokens`, `_batches`, both, or none. `None` without input price.
    fn rates(&self, suffix: &str, otherwise: Rates) -> Option<Rates> {
        let rate = |field: &str| self.rate(&format!("{field}{suffix}"));
        let input = rate("input_cost_per_token")?;
        let has_cached = otherwise.cached_input != otherwise.input;
        let cached = rate("cache_read_input_token_cost").or(has_cached.then_some(otherwise.cached_input));
        Some(Rates {
            input,
            // Without a price of its own, a cached token is no cheaper than another.
            cached_input: cached.unwrap_or(input).min(input),
            cache_write: rate("cache_creation_input_token_cost").unwrap_or(input.max(otherwise.cache_write)),
            output: rate("output_cost_per_token").unwrap_or(otherwise.output),
        })
    }

    /// A lane's price; its fields end in `suffix`.
    fn lane(&self, suffix: &str, otherwise: Rates) -> Option<LanePrice> {
        let first = self.rates(suffix, otherwise)?;
        let mut tiers = Vec::new();
        for field in self.numbers.keys() {
            let threshold =
                field.strip_prefix("input_cost_per_token_above_").and_then(|rest| rest.strip_suffix(suffix));
            let Some(thousands) = threshold.and_then(|threshold| threshold.strip_suffix("k_tokens")) else { continue };
            let Ok(thousands_of_tokens) = thousands.parse::<u64>() else { continue };
            if let Some(rates) = self.rates(&format!("_above_{thousands}k_tokens{suffix}"), first) {
                tiers.push(Tier { above_input_tokens: thousands_of_tokens.saturating_mul(1_000), rates });
            }
        }
        Some(LanePrice::with_tiers(first, tiers))
    }

    fn price(&self, uplift_per_mille: u64, source: String) -> Option<ModelPrice> {
        let online = self.lane("", Rates::default())?;
        let base = self.rates("", Rates::default())?;
        let scaled = |lane: LanePrice| if uplift_per_mille == 1_000 { lane } else { lane.scaled(uplift_per_mille) };
        Some(ModelPrice {
            flex: self.lane("_flex", base).map(scaled),
            batch: self.lane("_batches", base).map(scaled),
            online: scaled(online),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokens;
    use super::*;
    use crate::lane::Lane;

    fn price(kind: &str, model: &str, region: Option<&str>) -> ModelPrice {
        let asked = PricedModel { alias: "any", kind, model, region };
        Catalogue::built_in().unwrap().find(&asked).unwrap_or_else(|| panic!("no price of {kind} {model}"))
    }

    fn input_of(price: &ModelPrice, lane: Lane) -> u64 {
        price.cost(Tokens { input: 1_000, ..Tokens::default() }, lane)
    }

    #[test]
    fn the_snapshot_says_where_it_is_from_and_every_entry_has_a_price() {
        let catalogue = Catalogue::built_in().unwrap();
        assert_eq!(catalogue.origin().to_string(), "litellm-1.109.1 of 2026-11-22");
        for (name, entry) in &catalogue.entries {
            let price = entry.price(1_000, String::new()).unwrap_or_else(|| panic!("{name}"));
            assert!(input_of(&price, Lane::Online) > 0, "{name}");
        }
    }

    /// Read off the file that the snapshot was made from.
    #[test]
    fn each_provider_finds_its_models() {
        for (kind, model, nano_usd) in [
            ("openai", "gpt-4o-mini", 150_000),
            ("openai", "text-embedding-3-small", 20_000),
            ("openai", "ft:gpt-4o-mini-2024-07-18:org:name:id", 300_000),
            ("azure", "gpt-5.4", 2_500_000),
            ("anthropic", "claude-sonnet-4-5", 3_000_000),
            ("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", 3_000_000),
            ("vertex", "google/gemini-3.5-flash", 1_500_000),
            ("gemini", "gemini-2.5-pro", 1_250_000),
            ("groq", "openai/gpt-oss-120b", 150_000),
            ("deepseek", "deepseek-v4-flash", 300_000),
            ("mistral", "mistral-small-latest", 150_000),
            ("together", "openai/gpt-oss-120b", 150_000),
        ] {
            assert_eq!(input_of(&price(kind, model, None), Lane::Online), nano_usd, "{kind} {model}");
        }
        assert!(input_of(&price("fireworks", "accounts/fireworks/models/gpt-oss-20b", None), Lane::Online) > 0);
        assert!(input_of(&price("fireworks", "gpt-oss-20b", None), Lane::Online) > 0);
    }

    #[test]
    fn lanes_tiers_and_regions_have_their_prices() {
        let sonnet = price("anthropic", "claude-sonnet-4-5", None);
        assert_eq!(input_of(&sonnet, Lane::Batch), 1_500_000);
        assert_eq!(input_of(&sonnet, Lane::Flex), 3_000_000);
        assert_eq!(sonnet.most(1_000, 0, Lane::Online), 3_750_000);
        let gpt = price("openai", "gpt-5.4", None);
        assert_eq!(input_of(&gpt, Lane::Flex), 1_250_000);
        let long = Tokens { input: 300_000, cached: 100_000, cache_written: 0, output: 10 };
        assert_eq!(gpt.cost(long, Lane::Online), 200_000 * 5_000 + 100_000 * 500 + 10 * 22_500);
        assert_eq!(gpt.cost(long, Lane::Batch), 200_000 * 2_500 + 100_000 * 250 + 10 * 11_250);
        assert_eq!(input_of(&price("openai", "gpt-5.4", Some("eu")), Lane::Online), 2_750_000);
        assert!(input_of(&price("azure", "gpt-5.4", Some("eu")), Lane::Online) >= 2_500_000);
    }

    #[test]
    fn another_providers_model_of_the_same_name_is_not_taken() {
        let asked = PricedModel { alias: "any", kind: "anthropic", model: "gpt-4o-mini", region: None };
        assert!(Catalogue::built_in().unwrap().find(&asked).is_none());
        let asked = PricedModel { kind: "vllm", ..asked };
        assert!(Catalogue::built_in().unwrap().find(&asked).is_none());
    }

    #[test]
    fn a_file_without_origin_or_shape_is_refused() {
        for text in ["{}", "[]", "{\"a\": 1}", "{"] {
            assert!(Catalogue::parse(text, None).is_err(), "{text}");
        }
        let origin = Origin { origin: "mine".into(), date: "2026-11-22".into(), licence: "none".into() };
        let text =
            r#"{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 3e-6, "output_cost_per_token": 0}}"#;
        let catalogue = Catalogue::parse(text, Some(origin)).unwrap();
        let asked = PricedModel { alias: "any", kind: "openai", model: "gpt-x", region: None };
        assert_eq!(input_of(&catalogue.find(&asked).unwrap(), Lane::Online), 3_000_000);
    }
}
