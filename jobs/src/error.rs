//! The one error type of the product. Its [`Kind`] decides the exit code and whether a shard is tried again.
//! It never carries row content: messages name files, columns, rows and shards.

use std::fmt;

/// `std::result::Result` with Rowmill's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of trouble it is, which decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The command line itself is wrong. Exit 2.
    Usage,
    /// Somebody must fix something first: the job file, the input, the model, a permission. Exit 1, never retried.
    Invalid,
    /// An input file is not the one the plan pinned. Exit 1, never retried: a new run must pin the new input.
    InputChanged,
    /// The run stopped at a limit the job set; resuming continues it. Exit 3.
    Incomplete,
    /// A quality gate (`max_error_ratio`) held the run back. Exit 4.
    Gated,
    /// Somebody cancelled the run. Exit 1.
    Cancelled,
    /// A store, queue or network did not answer; trying again may help. Exit 75.
    Temporary,
    /// A defect of Rowmill. Exit 1.
    Internal,
}

impl Kind {
    /// The process exit code (design: 0 published, 1 failed, 2 usage, 3 incomplete, 4 gated, 75 temporary).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Incomplete => 3,
            Kind::Gated => 4,
            Kind::Temporary => 75,
            Kind::Invalid | Kind::InputChanged | Kind::Cancelled | Kind::Internal => 1,
        }
    }
}

/// A place in a text file. Line and column count from 1; the column counts characters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Location {
    /// Path as the user gave it.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What went wrong, where, why, and what to do. `Display` shows the message only; [`Error::report`] shows everything.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    location: Option<Location>,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error with a message that says what happened.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            location: None,
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// Shorthand for [`Kind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Shorthand for [`Kind::Temporary`].
    pub fn temporary(message: impl Into<String>) -> Self {
        Self::new(Kind::Temporary, message)
    }

    /// Shorthand for [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Adds where in a file it happened.
    pub fn at(mut self, location: Location) -> Self {
        self.0.location = Some(location);
        self
    }

    /// Adds one fact: `("file", path)`, `("column", name)`, `("shard", "3 of 12")`.
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the underlying error.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Where in a file it happened, if it happened in a file the user wrote.
    pub fn location(&self) -> Option<&Location> {
        self.0.location.as_ref()
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether trying the same again may succeed.
    pub fn retryable(&self) -> bool {
        self.0.kind == Kind::Temporary
    }

    /// Everything, on several lines: message, place, facts, the chain of causes (each said once), hint.
    pub fn report(&self) -> String {
        let mut text = format!("error: {}", self.0.message);
        if let Some(location) = &self.0.location {
            text.push_str(&format!("\n  at {location}"));
        }
        for (key, value) in &self.0.context {
            text.push_str(&format!("\n  {key}: {value}"));
        }
        let mut said = self.0.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            if !said.contains(&message) {
                text.push_str(&format!("\n  because: {}", message.replace('\n', "\n    ")));
                said = message;
            }
            cause = error.source();
        }
        if let Some(hint) = &self.0.hint {
            text.push_str(&format!("\n  hint: {hint}"));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// The word in `candidates` that `word` most likely meant, for "did you mean".
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().min(word.chars().count()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_what_where_why_and_what_to_do_once_each() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::invalid("cannot read the table")
            .at(Location { file: "job.sql".into(), line: 3, column: 7 })
            .with("table", "tickets")
            .caused_by(Error::invalid("cannot list the folder").caused_by(io))
            .hint("check LOCATION");
        assert_eq!(
            error.report(),
            "error: cannot read the table\n  at job.sql:3:7\n  table: tickets\n  because: cannot list the folder\n  \
             because: no such file\n  hint: check LOCATION"
        );
        assert_eq!(error.to_string(), "cannot read the table");
    }

    #[test]
    fn closest_suggests_only_plausible_words() {
        let functions = ["ai_classify", "ai_extract", "ai_filter", "ai_embed", "ai_complete"];
        assert_eq!(closest("ai_clasify", functions), Some("ai_classify"));
        assert_eq!(closest("AI_EMBED", functions), Some("ai_embed"));
        assert_eq!(closest("sum", functions), None);
    }
}
