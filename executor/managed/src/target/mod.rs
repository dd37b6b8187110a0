//! Capability table: what is known of each provider and model, as data (`targets.toml`), and how a job's model becomes a
//! [`Target`]. A difference between providers that is not in the table is a defect of the table; nothing here asks a
//! provider, and no secret comes here.

mod fields;
mod kinds;
mod table;

use rowmill_jobs::{Error, Result};
use url::Url;

pub use fields::{Overrides, Target};
pub use kinds::{
    Auth, BatchApi, ChoiceMode, Dialect, PatternMode, RateHeaders, SchemaSubset, StructuredMode, Tokenizer,
};

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Can {
    /// Text, JSON and labels.
    pub completes: bool,
    /// Vectors.
    pub embeds: bool,
}

impl Target {
    /// The target of a provider's model: the table's layers that match the model, later ones over earlier ones, and
    /// `overrides` over all of them.
    ///
    /// # Errors
    /// [`rowmill_jobs::Kind::Invalid`] for a provider that is not in the table, a hole of the URL that nothing fills, a
    /// URL that is none, and one without TLS to a machine that is not the operator's own.
    pub fn resolve(provider: &str, model: &str, overrides: &Overrides) -> Result<Self> {
        if model.trim().is_empty() {
            return Err(Error::invalid(format!("a model of provider `{provider}` has no name")));
        }
        let fields = overrides.clone().over(table::fields(provider, model)?);
        let mut target = Self::of(provider, model, fields)?;
        target.base_url = target.filled(&target.base_url)?.trim_end_matches('/').to_owned();
        target.check_url("base_url", &target.base_url)?;
        // Who says where a provider is says it of its batches, too, unless there is more to say.
        let is_there = overrides.base_url.is_some() && overrides.batch_url.is_none();
        target.batch_url = match target.batch_url.is_empty() || is_there {
            true => target.base_url.clone(),
            false => target.filled(&target.batch_url)?.trim_end_matches('/').to_owned(),
        };
        target.check_url("batch_url", &target.batch_url)?;
        target.filled(&target.chat_path)?;
        target.filled(&target.embed_path)?;
        Ok(target)
    }

    /// What a model of a provider can be asked for, as far as the table knows.
    ///
    /// # Errors
    /// The provider is not in the table.
    pub fn can(provider: &str, model: &str) -> Result<Can> {
        let fields = table::fields(provider, model)?;
        let completes = fields.chat_path.is_some_and(|path| !path.is_empty());
        Ok(Can { completes, embeds: fields.embed_rows_max.is_some_and(|rows| rows > 0) })
    }

    /// The names of all providers.
    pub fn providers() -> Result<Vec<String>> {
        table::providers()
    }

    /// Path of a completion, after the base URL.
    pub(crate) fn completion_path(&self) -> Result<String> {
        self.filled(&self.chat_path)
    }

    /// Path of an embedding call, after the base URL.
    pub(crate) fn embedding_path(&self) -> Result<String> {
        self.filled(&self.embed_path)
    }

    /// The text with its holes filled. A model's name may hold what means something else in a path (`:`, `/` in Bedrock's
    /// ARNs), so it is encoded as one segment.
    fn filled(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| Error::invalid(format!("`{text}` has a brace that is not closed")))?;
            filled.push_str(before);
            if name == "model" {
                filled.push_str(&path_segment(&self.model));
            } else {
                let value = self.holes.get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
                    Error::invalid(format!("provider `{}` needs `{name}`", self.provider))
                        .hint(format!("it stands in its address, {text}"))
                })?;
                if !value.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
                    return Err(Error::invalid(format!("`{name}` of provider `{}` is no name", self.provider))
                        .hint("letters, digits, `-`, `.` and `_` can stand in an address"));
                }
                filled.push_str(value);
            }
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn check_url(&self, field: &str, url: &str) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid(format!("{field} of provider `{}` {what}", self.provider)));
        let Ok(url) = Url::parse(url) else { return wrong("is not a URL") };
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return wrong("may have a scheme, a host, a port and a path, nothing else");
        }
        let own = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => return wrong("names no host"),
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.self_hosted || own => Ok(()),
            "http" => wrong("has no TLS: rows and keys would travel in clear"),
            _ => wrong("is neither https nor http"),
        }
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub(crate) fn path_segment(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
