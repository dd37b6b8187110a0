//! The values of `rowmill.toml` that are more than text or numbers. Each checks itself when it is read, so that a bad one is
//! an error at its line, and is written back in one form, which the policy's hash is made of.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use rowmill_jobs::money;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use url::Url;

/// Makes a type read from text by its `FromStr`, with the text that it was read from kept.
macro_rules! from_text {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

/// How secret a job's data is, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataClass {
    /// Anybody may read it.
    Public,
    /// Anybody in the house may read it.
    Internal,
    /// Some in the house may read it: personal data, contracts.
    Confidential,
    /// Few may read it: health data, secrets.
    Restricted,
}

impl DataClass {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        }
    }
}

impl FromStr for DataClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Public, Self::Internal, Self::Confidential, Self::Restricted];
        all.into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no data class: public, internal, confidential or restricted"))
    }
}

/// How long a provider keeps what it was sent: `"zero"`, or a number of days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Retention {
    /// Days; 0 is none at all.
    pub days: u32,
}

impl Retention {
    /// Nothing is kept.
    pub const ZERO: Self = Self { days: 0 };
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.days {
            0 => f.write_str("zero"),
            1 => f.write_str("1 day"),
            days => write!(f, "{days} days"),
        }
    }
}

impl Serialize for Retention {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.days)
    }
}

impl<'de> Deserialize<'de> for Retention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Days;
        impl Visitor<'_> for Days {
            type Value = Retention;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"zero\" or a number of days")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Retention, E> {
                if text == "zero" {
                    Ok(Retention::ZERO)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            fn visit_i64<E: de::Error>(self, days: i64) -> Result<Retention, E> {
                let days = u32::try_from(days).map_err(|_| E::invalid_value(de::Unexpected::Signed(days), &self))?;
                Ok(Retention { days })
            }
            fn visit_u64<E: de::Error>(self, days: u64) -> Result<Retention, E> {
                let days = u32::try_from(days).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(days), &self))?;
                Ok(Retention { days })
            }
        }
        deserializer.deserialize_any(Days)
    }
}

/// A sum of dollars: a decimal number in quotes (`"0.15"`) or a whole number. Not a floating-point number, which would not be
/// what is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd {
    /// In nano-dollars.
    pub nano_usd: u64,
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} USD", money::show(self.nano_usd))
    }
}

impl Serialize for Usd {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.nano_usd)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dollars;
        impl Visitor<'_> for Dollars {
            type Value = Usd;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("dollars as a decimal number in quotes (\"0.15\") or as a whole number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Usd, E> {
                let nano_usd = money::scaled(text, 9);
                nano_usd
                    .map(|nano_usd| Usd { nano_usd })
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
            fn visit_i64<E: de::Error>(self, dollars: i64) -> Result<Usd, E> {
                self.visit_str(&dollars.to_string())
            }
        }
        deserializer.deserialize_any(Dollars)
    }
}

/// Names of models: `gpt-4o-mini`, or with wildcards: `text-embedding-3-*`. A `*` also stands for `/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelGlob(GlobMatcher);

impl ModelGlob {
    /// Whether it names a model.
    pub fn matches(&self, model: &str) -> bool {
        self.0.is_match(model)
    }
}

impl PartialEq for ModelGlob {
    fn eq(&self, other: &Self) -> bool {
        self.0.glob() == other.0.glob()
    }
}

impl fmt::Display for ModelGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.glob().glob())
    }
}

impl FromStr for ModelGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty name is no model".into());
        }
        let glob = Glob::new(text).map_err(|error| format!("{text:?} is no pattern for models: {}", error.kind()))?;
        Ok(Self(glob.compile_matcher()))
    }
}
from_text!(ModelGlob);

/// Where tables are: the URL of a folder (it covers all below it) or of a file, or `*` for any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DatasetPrefix {
    /// Any table.
    Any,
    /// Tables at or below this URL, which has no dots left to resolve.
    Below(String),
}

impl DatasetPrefix {
    /// Whether a table's URL lies there. `s3://lake/tickets/` does not cover `s3://lake/tickets_private/`, nor does
    /// `s3://lake/tickets/../x`.
    pub fn covers(&self, dataset: &str) -> bool {
        let Self::Below(prefix) = self else { return true };
        let Some(dataset) = normal_url(dataset) else { return false };
        if prefix.ends_with('/') {
            return dataset.starts_with(prefix.as_str()) || format!("{dataset}/") == *prefix;
        }
        dataset.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A URL with its dot segments resolved, so that it cannot lead out of the folder it seems to lie in.
fn normal_url(text: &str) -> Option<String> {
    let url = Url::parse(text).ok().filter(|url| !url.cannot_be_a_base())?;
    let has_escaped_separator = url.path().to_ascii_lowercase().contains("%2f") || url.path().contains('\\');
    let plain = url.query().is_none() && url.fragment().is_none() && !has_escaped_separator;
    plain.then(|| url.to_string())
}

impl fmt::Display for DatasetPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(prefix) => f.write_str(prefix),
        }
    }
}

impl FromStr for DatasetPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let url = normal_url(text).filter(|_| !text.contains('*'));
        url.map(Self::Below).ok_or_else(|| {
            format!("{text:?} is no place of tables: give a URL (s3://lake/tickets/, file:///data/), or \"*\" for any")
        })
    }
}
from_text!(DatasetPrefix);

/// A provider's own base URL: https, or http for machines of the operator's; without user, password, query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseUrl(Url);

impl BaseUrl {
    /// The URL.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Whether it is this machine: a gateway that passes requests on, to which nothing travels unencrypted.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    /// Its host.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text itself is not repeated: it may hold a password.
        let url = Url::parse(text).map_err(|error| format!("this is no URL: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a base URL holds no user and no password: name a secret in `secret`".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a base URL holds no query: name a secret in `secret`".into());
        }
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err("a base URL starts with https:// and a host".into());
        }
        Ok(Self(url))
    }
}
from_text!(BaseUrl);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_covers_what_is_in_it_and_nothing_beside_it() {
        let covers = |prefix: &str, dataset: &str| prefix.parse::<DatasetPrefix>().unwrap().covers(dataset);
        for (prefix, dataset) in [
            ("s3://lake/tickets/", "s3://lake/tickets/ds=2026-11-20/"),
            ("s3://lake/tickets/", "s3://lake/tickets"),
            ("s3://lake/tickets", "s3://lake/tickets/a.parquet"),
            ("s3://lake/tickets/a.parquet", "s3://lake/tickets/a.parquet"),
            ("file:///data/", "file:///data/a/b/"),
            ("*", "anything at all"),
        ] {
            assert!(covers(prefix, dataset), "{prefix} {dataset}");
        }
        for (prefix, dataset) in [
            ("s3://lake/tickets/", "s3://lake/tickets_private/"),
            ("s3://lake/tickets", "s3://lake/tickets_private/"),
            ("s3://lake/tickets/", "s3://lake/tickets/../patients/"),
            ("s3://lake/tickets/", "s3://lake/tickets/%2e%2e/patients/"),
            ("s3://lake/tickets/", "s3://lake/tickets/..%2fpatients/"),
            ("s3://lake/tickets/", "s3://other/tickets/"),
            ("s3://lake/tickets/", "https://lake/tickets/"),
            ("s3://lake/tickets/", "s3://lake/tickets/?x"),
            ("file:///data/", "/data/a"),
            ("file:///data/", ""),
        ] {
            assert!(!covers(prefix, dataset), "{prefix} {dataset}");
        }
        for bad in ["", "tickets", "s3://lake/*", "/data"] {
            assert!(bad.parse::<DatasetPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn models_are_named_with_wildcards() {
        let matches = |glob: &str, model: &str| glob.parse::<ModelGlob>().unwrap().matches(model);
        assert!(
            matches("gpt-4o*", "gpt-4o-mini") && matches("*", "a/b:c") && matches("openai/*", "openai/gpt-oss-120b")
        );
        assert!(!matches("gpt-4o", "gpt-4o-mini") && !matches("gpt-?", "gpt-10"));
        assert!("[".parse::<ModelGlob>().is_err() && "".parse::<ModelGlob>().is_err());
    }

    #[test]
    fn base_urls_hold_no_secrets() {
        for bad in ["https://user:hunter2@host/v1", "https://host/v1?key=hunter2", "ftp://host/", "host", "https://"] {
            let error = bad.parse::<BaseUrl>().unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!("https://api.example.com/v1".parse::<BaseUrl>().unwrap().host(), "api.example.com");
    }
}
