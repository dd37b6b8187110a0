//! [`Lane`]: how a request is sent, which decides what it costs, how soon it is answered and what the provider keeps of it.

use std::fmt;

use serde::{Deserialize, Serialize};

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

impl Lane {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Online, Self::Flex, Self::Batch];

    /// The word for it in configuration and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Flex => "flex",
            Self::Batch => "batch",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
