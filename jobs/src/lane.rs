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
const BATCH_KINDS: [&str; 7] = ["openai", "azure", "anthropic", "gemini", "groq", "mistral", "together"];

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

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_one_of_those_that_job_files_may_name() {
        let all = Lane::ALL.iter().flat_map(|lane| lane.kinds());
        assert!(all.clone().all(|kind| PROVIDER_KINDS.contains(kind)), "{:?}", all.collect::<Vec<_>>());
    }
}
