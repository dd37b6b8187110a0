//! The options of `CREATE … WITH (name = value, …)`: taken one by one with their type, and what nobody took is an error
//! at its place. It knows no option's meaning.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rowmill_jobs::{Error, Result, error::closest};

use super::render::Rendered;

/// A line and a column of the filled-in text, both from 1.
pub(crate) type Place = (u64, u64);

/// An option's value as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OptionValue {
    /// `'text'`
    Text(String),
    /// `12`, `-1`, `0.5`
    Number(String),
    /// `true`, `false`
    Bool(bool),
}

impl OptionValue {
    fn kind(&self) -> &'static str {
        match self {
            OptionValue::Text(_) => "a string",
            OptionValue::Number(_) => "a number",
            OptionValue::Bool(_) => "true or false",
        }
    }
}

/// One `name = value`.
#[derive(Debug, Clone)]
pub(crate) struct OptionItem {
    /// Name in lower case.
    pub(crate) name: String,
    /// Where the name stands.
    pub(crate) name_at: Place,
    /// The value.
    pub(crate) value: OptionValue,
    /// Where the value stands.
    pub(crate) value_at: Place,
}

/// The options of one statement.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    source: &'a Rendered,
    /// `CREATE MODEL triage`, for messages.
    owner: String,
    /// Where the statement's name stands.
    at: Place,
    items: Vec<OptionItem>,
    taken: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// Refuses an option given twice.
    pub(crate) fn new(source: &'a Rendered, owner: String, at: Place, items: Vec<OptionItem>) -> Result<Self> {
        for (index, item) in items.iter().enumerate() {
            if items[..index].iter().any(|earlier| earlier.name == item.name) {
                return Err(source.error(item.name_at, format!("option `{}` is given twice", item.name)));
            }
        }
        Ok(Self { source, owner, at, items, taken: Vec::new() })
    }

    fn take(&mut self, name: &'static str) -> Option<OptionItem> {
        self.taken.push(name);
        self.items.iter().position(|item| item.name == name).map(|index| self.items.remove(index))
    }

    fn wrong_type(&self, item: &OptionItem, wanted: &str) -> Error {
        self.source.error(item.value_at, format!("option `{}` takes {wanted}, not {}", item.name, item.value.kind()))
    }

    /// An error at this option's value.
    pub(crate) fn error(&self, at: Place, message: impl Into<String>) -> Error {
        self.source.error(at, message)
    }

    /// The error for a required option that is absent.
    pub(crate) fn missing(&self, name: &str, hint: &str) -> Error {
        self.source.error(self.at, format!("{} needs the option `{name}`", self.owner)).hint(hint.to_owned())
    }

    /// A string, with its place.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<(String, Place)>> {
        match self.take(name) {
            None => Ok(None),
            Some(OptionItem { value: OptionValue::Text(text), value_at, .. }) => Ok(Some((text, value_at))),
            Some(item) => Err(self.wrong_type(&item, "a string in single quotes")),
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<T>> {
        self.word_at(name, words).map(|found| found.map(|(value, _)| value))
    }

    /// One of a few words, with its place.
    pub(crate) fn word_at<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<(T, Place)>> {
        let Some((text, at)) = self.text(name)? else { return Ok(None) };
        Ok(Some((self.one_of(name, (&text, at), words)?, at)))
    }

    /// Some of a few words, with commas between them, in the order in which they stand there.
    pub(crate) fn words<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<Vec<T>>> {
        let Some((text, at)) = self.text(name)? else { return Ok(None) };
        text.split(',').map(|word| self.one_of(name, (word.trim(), at), words)).collect::<Result<_>>().map(Some)
    }

    fn one_of<T: Copy>(&self, name: &str, (text, at): (&str, Place), words: &[(&str, T)]) -> Result<T> {
        if let Some((_, value)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
            return Ok(*value);
        }
        let list = words.iter().map(|(word, _)| format!("'{word}'")).collect::<Vec<_>>().join(", ");
        Err(self.error(at, format!("option `{name}` cannot be '{text}'")).hint(format!("it is one of {list}")))
    }

    /// `true` or `false`.
    pub(crate) fn truth(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(OptionItem { value: OptionValue::Bool(truth), .. }) => Ok(Some(truth)),
            Some(item) => Err(self.wrong_type(&item, "true or false")),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn count<T: FromStr + PartialOrd + Display>(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<T>,
    ) -> Result<Option<T>> {
        let Some(item) = self.take(name) else { return Ok(None) };
        let OptionValue::Number(digits) = &item.value else { return Err(self.wrong_type(&item, "a whole number")) };
        let (least, most) = (bounds.start(), bounds.end());
        match digits.parse::<T>() {
            Ok(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => Err(self.error(
                item.value_at,
                format!("option `{name}` takes a whole number of at least {least} and at most {most}"),
            )),
        }
    }

    /// A number as it is written, with its place: for those that must not pass through floating point.
    pub(crate) fn number_text(&mut self, name: &'static str) -> Result<Option<(String, Place)>> {
        match self.take(name) {
            None => Ok(None),
            Some(OptionItem { value: OptionValue::Number(digits), value_at, .. }) => Ok(Some((digits, value_at))),
            Some(item) => Err(self.wrong_type(&item, "a number")),
        }
    }

    /// A number from 0 to 1.
    pub(crate) fn ratio(&mut self, name: &'static str) -> Result<Option<f64>> {
        let Some(item) = self.take(name) else { return Ok(None) };
        let OptionValue::Number(digits) = &item.value else {
            return Err(self.wrong_type(&item, "a number from 0 to 1"));
        };
        match digits.parse::<f64>() {
            Ok(number) if (0.0..=1.0).contains(&number) => Ok(Some(number)),
            _ => Err(self.error(item.value_at, format!("option `{name}` takes a number from 0 to 1"))),
        }
    }

    /// Refuses the first option that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(item) = self.items.first() else { return Ok(()) };
        let error = self.error(item.name_at, format!("{} has no option `{}`", self.owner, item.name));
        Err(match closest(&item.name, self.taken.iter().copied()) {
            Some(name) => error.hint(format!("did you mean `{name}`?")),
            None => error.hint(format!("its options are: {}", self.taken.join(", "))),
        })
    }
}
