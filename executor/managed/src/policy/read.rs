//! From the text of a `rowmill.toml` to a [`Config`] that makes sense as a whole, or an error at its line.

use std::collections::BTreeSet;
use std::ops::Range;

use rowmill_jobs::{Error, Location, Result, error::closest};
use toml::de::{DeTable, DeValue};

use super::config::{Config, Provider};
use super::values::{BaseUrl, Retention};
use crate::{redaction, secrets};

/// Hosts of services that everybody can reach: none of them is in the house.
const PUBLIC_HOSTS: [&str; 16] = [
    "openai.com",
    "azure.com",
    "anthropic.com",
    "amazonaws.com",
    "api.aws",
    "googleapis.com",
    "groq.com",
    "deepseek.com",
    "mistral.ai",
    "together.xyz",
    "together.ai",
    "fireworks.ai",
    "openrouter.ai",
    "x.ai",
    "cohere.com",
    "huggingface.cloud",
];

/// Longest timeout of an attempt: half of what a call as a whole has, so that there can be a second one.
const TIMEOUT_SECONDS_MAX: u32 = 1_800;

/// Something wrong, and the keys that lead to it.
struct Wrong<'a> {
    keys: Vec<&'a str>,
    message: String,
    hint: &'static str,
}

fn wrong<'a>(keys: &[&'a str], message: impl Into<String>, hint: &'static str) -> Wrong<'a> {
    Wrong { keys: keys.to_vec(), message: message.into(), hint }
}

/// Reads and checks.
///
/// # Errors
/// Something is wrong, with its line.
pub(super) fn config(text: &str, file: &str) -> Result<Config> {
    let at = |span: Range<usize>| location(text, file, span.start);
    let toml_error = |error: toml::de::Error| {
        let wrapped = Error::invalid(format!("rowmill.toml is wrong: {}", error.message()));
        error.span().map_or_else(|| Error::invalid(error.to_string()), |span| wrapped.at(at(span)))
    };
    let table = DeTable::parse(text).map_err(toml_error)?;
    refuse_keys(table.get_ref(), &mut Vec::new(), &at)?;
    let config: Config = toml::from_str(text).map_err(toml_error)?;
    let checked = check(&config);
    checked.map_err(|wrong| {
        let error = Error::invalid(wrong.message).hint(wrong.hint);
        match find(table.get_ref(), &wrong.keys) {
            Some(span) => error.at(at(span)),
            None => error.with("file", file),
        }
    })?;
    Ok(config)
}

/// Line and column of a byte.
fn location(text: &str, file: &str, byte: usize) -> Location {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1;
    Location { file: file.to_owned(), line, column }
}

/// Where the value is that keys lead to, or the last of them that is there. In a list, a key is the index or an entry's `name`.
fn find(table: &DeTable<'_>, keys: &[&str]) -> Option<Range<usize>> {
    let (first, mut rest) = keys.split_first()?;
    let (key, mut value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    let mut span = key.span();
    while let Some((next, after)) = rest.split_first() {
        let found = match value.get_ref() {
            DeValue::Table(table) => {
                table.iter().find(|(key, _)| key.get_ref() == next).map(|(key, value)| (key.span(), value))
            }
            DeValue::Array(entries) => {
                let index = next.parse::<usize>().ok();
                index.and_then(|index| entries.get(index)).map(|entry| (entry.span(), entry))
            }
            _ => None,
        };
        let Some(found) = found else { break };
        (span, value) = found;
        rest = after;
    }
    Some(span)
}

/// Refuses keys that somebody wrote down, wherever they stand.
fn refuse_keys(table: &DeTable<'_>, path: &mut Vec<String>, at: &impl Fn(Range<usize>) -> Location) -> Result<()> {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        refuse_key_values(value, path, at)?;
        path.pop();
    }
    Ok(())
}

fn refuse_key_values(
    value: &toml::Spanned<DeValue<'_>>,
    path: &mut Vec<String>,
    at: &impl Fn(Range<usize>) -> Location,
) -> Result<()> {
    match value.get_ref() {
        DeValue::String(text) => secrets::refuse_key(&path.join("."), text).map_err(|error| error.at(at(value.span()))),
        DeValue::Array(entries) => entries.iter().try_for_each(|entry| refuse_key_values(entry, path, at)),
        DeValue::Table(table) => refuse_keys(table, path, at),
        _ => Ok(()),
    }
}

/// What one field's type cannot check.
fn check(config: &Config) -> Result<(), Wrong<'_>> {
    for (alias, provider) in &config.providers {
        check_provider(alias, provider)?;
    }
    check_rules(config)?;
    for name in config.prices.keys() {
        let alias = name.split_once('/').map_or("", |(alias, _)| alias);
        if !config.providers.contains_key(alias) {
            return Err(wrong(
                &["prices", name],
                format!("there is no provider {alias:?}"),
                "a price is named \"provider/model\"",
            ));
        }
    }
    if config.audit.folder.as_ref().is_some_and(|folder| !folder.is_absolute()) {
        return Err(wrong(&["audit", "folder"], "the audit's folder is no absolute path", "write it from / on"));
    }
    for (name, pattern) in &config.redaction.patterns {
        let keys = ["redaction", "patterns", name.as_str()];
        if !redaction::is_name(name) {
            let hint = "a name is 2 to 16 capital letters and digits: it stands in the pseudonym";
            return Err(wrong(&keys, format!("{name:?} is no name of a detector"), hint));
        }
        if let Err(error) = redaction::pattern(pattern) {
            return Err(wrong(
                &keys,
                format!("this is no regular expression: {error}"),
                "the syntax is that of Rust's regex crate",
            ));
        }
    }
    for name in config.redaction.detectors.iter().flatten() {
        if !redaction::BUILT_IN.contains(&name.as_str()) {
            let message = format!("there is no detector {name:?}, only: {}", redaction::BUILT_IN.join(", "));
            return Err(wrong(
                &["redaction", "detectors"],
                message,
                "detectors of your own go into [redaction.patterns]",
            ));
        }
    }
    Ok(())
}

fn check_provider<'a>(alias: &'a str, provider: &'a Provider) -> Result<(), Wrong<'a>> {
    let kind = provider.kind;
    let at = |key: &'static str| ["providers", alias, key];
    if !is_word(alias) {
        let message = format!("{alias:?} is no name of a provider");
        return Err(wrong(&["providers", alias], message, "use letters, digits, - and _"));
    }
    if provider.models.is_empty() {
        return Err(wrong(&at("models"), format!("{alias:?} has no models"), "name those that may be used, or \"*\""));
    }
    if provider.base_url.is_none() {
        if kind.is_program() {
            let message = format!("a provider of kind {} has no address of its own", kind.as_str());
            return Err(wrong(&at("kind"), message, "set base_url"));
        }
        let given = |part: &str| match part {
            "region" => provider.region.is_some(),
            "resource" => provider.resource.is_some(),
            _ => provider.project.is_some(),
        };
        if let Some(missing) = kind.address_parts().iter().find(|part| !given(part)) {
            let message = format!("a provider of kind {} needs `{missing}`", kind.as_str());
            return Err(wrong(&at("kind"), message, "its address is made of it"));
        }
    }
    for (key, part) in [("region", &provider.region), ("resource", &provider.resource), ("project", &provider.project)]
    {
        // They become parts of a host or path: nothing that could make it another one.
        if part.as_deref().is_some_and(|part| !is_word(part)) {
            return Err(wrong(
                &["providers", alias, key],
                "this is no part of an address",
                "use letters, digits, - and _",
            ));
        }
    }
    check_house(alias, provider)?;
    let facts = &provider.facts;
    let asserts = facts.retention.is_some()
        || facts.batch_retention.is_some()
        || facts.trains_on_data.is_some()
        || facts.hipaa_baa.is_some()
        || facts.batch_allowed
        || !facts.regions.is_empty();
    if asserts && facts.asserted_by.as_deref().is_none_or(|by| by.trim().is_empty()) {
        let hint = "say who asserts them, from what: asserted_by = \"J. Doe, agreement of 2026-03-01\"";
        return Err(wrong(&at("facts"), format!("the facts about {alias:?} are asserted by nobody"), hint));
    }
    if facts.batch_retention == Some(Retention::ZERO) {
        let keys = ["providers", alias, "facts", "batch_retention"];
        return Err(wrong(&keys, "a batch is stored until it is fetched, so this is not zero", "give it in days"));
    }
    check_target(alias, provider)?;
    check_batches(alias, provider)?;
    if provider.limits.concurrency == Some(0) {
        let keys = ["providers", alias, "limits", "concurrency"];
        return Err(wrong(&keys, "a provider with no request in flight answers none", "give 1 or more"));
    }
    let timeouts =
        [("idle_seconds", provider.timeouts.idle_seconds), ("attempt_seconds", provider.timeouts.attempt_seconds)];
    for (key, seconds) in timeouts {
        if seconds.is_some_and(|seconds| !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds)) {
            let keys = ["providers", alias, "timeouts", key];
            return Err(wrong(
                &keys,
                format!("`{key}` is from 1 to {TIMEOUT_SECONDS_MAX}"),
                "a call as a whole has an hour",
            ));
        }
    }
    Ok(())
}

/// That nothing is said in a second place that rules are decided by: where it is, whose it is, and what opens it.
fn check_target<'a>(alias: &'a str, provider: &'a Provider) -> Result<(), Wrong<'a>> {
    let target = &provider.target;
    let set = [
        ("base_url", target.base_url.is_some(), "set base_url in [providers.NAME]"),
        ("batch_url", target.batch_url.is_some(), "set base_url in [providers.NAME.batches]"),
        ("holes", target.holes.is_some(), "set region, resource and project in [providers.NAME]"),
        ("self_hosted", target.self_hosted.is_some(), "set self_hosted in [providers.NAME]"),
        ("key_env", target.key_env.is_some(), "set secret in [providers.NAME]"),
        ("dimensions", target.dimensions.is_some(), "write dimensions in CREATE MODEL"),
    ];
    match set.into_iter().find(|(_, is_set, _)| *is_set) {
        None => Ok(()),
        Some((key, _, hint)) => {
            Err(wrong(&["providers", alias, "target", key], format!("`{key}` does not stand in target"), hint))
        }
    }
}

fn check_batches<'a>(alias: &'a str, provider: &'a Provider) -> Result<(), Wrong<'a>> {
    let batches = &provider.batches;
    let set = [
        ("rows_min", batches.rows_min),
        ("rows_max", batches.rows_max),
        ("look_seconds_min", batches.look_seconds_min),
        ("look_seconds_max", batches.look_seconds_max),
        ("rounds_max", batches.rounds_max),
        ("cancel_seconds_max", batches.cancel_seconds_max),
    ];
    if let Some((key, _)) = set.iter().find(|(_, value)| *value == Some(0)) {
        return Err(wrong(&["providers", alias, "batches", *key], format!("`{key}` is 0"), "give 1 or more"));
    }
    if let (Some(least), Some(most)) = (batches.rows_min, batches.rows_max)
        && u64::from(most) + 1 < 2 * u64::from(least)
    {
        let message = format!("what is one row too much for a batch of {most} cannot be two of {least}");
        let hint = "set rows_max to twice rows_min or more";
        return Err(wrong(&["providers", alias, "batches", "rows_max"], message, hint));
    }
    check_folder(alias, provider)
}

/// That batches' folder is one, and who opens it a role, where there are such batches.
fn check_folder<'a>(alias: &'a str, provider: &'a Provider) -> Result<(), Wrong<'a>> {
    let at = |key: &'static str| ["providers", alias, "batches", key];
    let batches = &provider.batches;
    let named = [("s3_uri", &batches.s3_uri), ("role_arn", &batches.role_arn)];
    let set = named.iter().find(|(_, value)| value.is_some());
    let Some((key, _)) = set else { return Ok(()) };
    if !provider.kind.has_batch_folder() {
        let message = format!("batches of a provider of kind {} go through no folder", provider.kind.as_str());
        return Err(wrong(&at(key), message, "take it out: the provider keeps the files"));
    }
    let (Some(folder), Some(role)) = (&batches.s3_uri, &batches.role_arn) else {
        return Err(wrong(&at(key), "a folder of batches needs who opens it", "set both s3_uri and role_arn"));
    };
    // What stands for Bedrock on this machine, in tests, reads folders of this machine.
    let is_here = provider.base_url.as_ref().is_some_and(BaseUrl::is_loopback) && folder.starts_with("file:///");
    let bucket = folder.strip_prefix("s3://").and_then(|place| place.split('/').next());
    if !is_here && bucket.is_none_or(str::is_empty) {
        return Err(wrong(&at("s3_uri"), format!("{folder:?} is no folder of a bucket"), "write s3://bucket/folder/"));
    }
    if !(role.starts_with("arn:aws") && role.contains(":iam::") && role.contains(":role/")) {
        let hint = "write arn:aws:iam::ACCOUNT:role/NAME, a role that Bedrock may take on";
        return Err(wrong(&at("role_arn"), format!("{role:?} is no role"), hint));
    }
    Ok(())
}

/// That what is called in the house can be, and that what leaves it is encrypted.
fn check_house<'a>(alias: &'a str, provider: &'a Provider) -> Result<(), Wrong<'a>> {
    let at = |key: &'static str| ["providers", alias, key];
    let is_public =
        |host: &str| PUBLIC_HOSTS.iter().any(|public| host == *public || host.ends_with(&format!(".{public}")));
    if provider.self_hosted {
        if !provider.kind.is_program() {
            let message = format!("{} is a service of others, not a program of this house", provider.kind.as_str());
            return Err(wrong(
                &at("self_hosted"),
                message,
                "take self_hosted out, and let a rule allow what may leave",
            ));
        }
        if let Some(url) = provider.base_url.as_ref().filter(|url| is_public(url.host())) {
            let message = format!("{} is not in the house", url.host());
            return Err(wrong(&at("base_url"), message, "take self_hosted out, and let a rule allow what may leave"));
        }
        return Ok(());
    }
    let urls = [
        (vec!["providers", alias, "base_url"], &provider.base_url),
        (vec!["providers", alias, "batches", "base_url"], &provider.batches.base_url),
    ];
    for (keys, url) in urls {
        if let Some(url) = url.as_ref().filter(|url| url.url().scheme() != "https" && !url.is_loopback()) {
            let message = format!("rows would travel to {} unencrypted", url.host());
            let hint = "use https://, or say self_hosted = true if it is a machine of the house";
            return Err(wrong(&keys, message, hint));
        }
    }
    Ok(())
}

fn check_rules(config: &Config) -> Result<(), Wrong<'_>> {
    const INDICES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let mut seen = BTreeSet::new();
    for (number, rule) in config.egress.allow.iter().enumerate() {
        // The line of a later rule is that of the list; its name is in the message.
        let at = |key: &'static str| match INDICES.get(number) {
            Some(index) => vec!["egress", "allow", index, key],
            None => vec!["egress", "allow"],
        };
        let name = &rule.name;
        if !seen.insert(name) || name.is_empty() {
            return Err(wrong(
                &at("name"),
                format!("rule {name:?} needs a name of its own"),
                "it stands in refusals and records",
            ));
        }
        if let Some(unknown) = rule.providers.iter().find(|alias| !config.providers.contains_key(*alias)) {
            let similar = closest(unknown, config.providers.keys().map(String::as_str));
            let similar = similar.map_or_else(String::new, |similar| format!(" (is it {similar:?}?)"));
            let message = format!("rule {name:?} names provider {unknown:?}, which there is not{similar}");
            return Err(wrong(&at("providers"), message, "add it to [providers], or take it out"));
        }
        let empty = [
            ("providers", rule.providers.is_empty()),
            ("datasets", rule.datasets.is_empty()),
            ("columns", rule.columns.is_empty()),
            ("lanes", rule.lanes.is_empty()),
        ];
        if let Some((key, _)) = empty.iter().find(|(_, is_empty)| *is_empty) {
            let hint = "an empty list allows nothing: name what is allowed, or take the rule out";
            return Err(wrong(&at(key), format!("`{key}` of rule {name:?} is empty"), hint));
        }
    }
    Ok(())
}

/// Letters, digits, `-` and `_`.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}
