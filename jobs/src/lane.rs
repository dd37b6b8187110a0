//! [`Lane`]: how a request to a managed model is sent, which decides what it costs, how soon it is answered and what the
//! provider keeps of it; and which kinds of providers have which lane.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::PROVIDER_KINDS;

/// How a request is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// One call, answered at once.
    #[default]
    Online,
    /// One call, answered when the provider has room (`service_tier: flex`), for less.
    Flex,
    /// A file of requests, answered within a day, for about half. The provider stores the rows meanwhile.
    Batch,
}

/// Kinds whose APIs have a flex tier.
const FLEX_KINDS: [&str; 3] = ["openai", "gemini", "groq"];
/// Kinds whose batch APIs Rowmill speaks.
const BATCH_KINDS: [&str; 8] = ["openai", "azure", "anthropic", "bedrock", "gemini", "groq", "mistral", "together"];

impl Lane {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Online, Self::Flex, Self::Batch];

    /// The word for it in job files, configuration and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Flex => "flex",
            Self::Batch => "batch",
        }
    }

    /// The kinds of providers that have it.
    pub fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Online => &PROVIDER_KINDS,
            Self::Flex => &FLEX_KINDS,
            Self::Batch => &BATCH_KINDS,
        }
    }

    /// Whether it is the usual one, which records leave out.
    pub fn is_online(&self) -> bool {
        *self == Self::Online
    }
}

/// What a job says of a model's lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LaneChoice {
    /// This one.
    Fixed(Lane),
    /// The cheapest that the provider has, the operator permits and the deadline leaves time for.
    Auto,
}

impl LaneChoice {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Fixed(Lane::Online), Self::Fixed(Lane::Flex), Self::Fixed(Lane::Batch), Self::Auto];

    /// The word for it in job files and plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fixed(lane) => lane.as_str(),
            Self::Auto => "auto",
        }
    }

    /// Whether it is the usual one, which records leave out.
    pub fn is_online(&self) -> bool {
        *self == Self::Fixed(Lane::Online)
    }
}

impl Default for LaneChoice {
    fn default() -> Self {
        Self::Fixed(Lane::default())
    }
}

impl From<LaneChoice> for String {
    fn from(choice: LaneChoice) -> Self {
        choice.as_str().to_owned()
    }
}

impl TryFrom<String> for LaneChoice {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        Self::ALL.into_iter().find(|choice| choice.as_str() == word).ok_or_else(|| format!("there is no lane {word:?}"))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_written_as_the_lane_that_it_is() {
        for choice in LaneChoice::ALL {
            let text = serde_json::to_string(&choice).unwrap();
            assert_eq!(text, format!("\"{}\"", choice.as_str()));
            assert_eq!(serde_json::from_str::<LaneChoice>(&text).unwrap(), choice);
        }
        assert!(serde_json::from_str::<LaneChoice>("\"soon\"").is_err());
    }

    #[test]
    fn every_kind_is_one_of_those_that_job_files_may_name() {
        let all = Lane::ALL.iter().flat_map(|lane| lane.kinds());
        assert!(all.clone().all(|kind| PROVIDER_KINDS.contains(kind)), "{:?}", all.collect::<Vec<_>>());
    }
}
