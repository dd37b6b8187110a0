//! Structured output: how a task's format is asked of a target, and whether an answer has it. The best way that the target
//! has and the schema allows is taken: its own schema mode, a tool's parameters, JSON mode, plain instructions. Whatever the
//! provider promises, the answer is checked against the task's own schema here. Knows no dialect.

mod answer;
mod print;
mod shape;

use jsonschema::Validator;
use regex::Regex;
use rowmill_jobs::infer::{TaskKind, TextFormat};
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use crate::target::{ChoiceMode, PatternMode, StructuredMode, Target};

/// A pattern's automaton may take this many bytes.
const PATTERN_SIZE_MAX: usize = 16 << 20;

/// What an answer must look like.
#[derive(Debug)]
pub(crate) enum Format {
    /// Any text.
    Free,
    /// JSON of a schema.
    Json(JsonFormat),
    /// Text that matches a pattern.
    Pattern { mode: PatternMode, pattern: String, regex: Regex },
    /// One of some labels: as JSON, `{"label":"…"}`, or as the answer's whole text, to which a grammar may hold the model.
    Label { labels: Vec<String>, json: Option<JsonFormat>, grammar: Option<String> },
}

/// How JSON of a schema is asked for and checked.
#[derive(Debug)]
pub(crate) struct JsonFormat {
    /// How it is asked for.
    pub(crate) mode: StructuredMode,
    /// The schema as it is sent.
    pub(crate) sent: Value,
    schema: Value,
    validator: Validator,
}

/// An answer in the form that the task asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Formatted {
    /// A text, compact JSON, a text of a pattern.
    Text(String),
    /// The label with this index.
    Label(usize),
}

/// Why an answer is not of its format. In words of the schema's author and ours: nothing of the answer is in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Misfit(pub(crate) String);

impl Format {
    /// The format of a task at a target.
    ///
    /// # Errors
    /// For a schema that is none, and a pattern that is too large to check.
    pub(crate) fn new(kind: &TaskKind, target: &Target) -> Result<Self> {
        Ok(match kind {
            TaskKind::Embed | TaskKind::Complete { format: TextFormat::Free, .. } => Self::Free,
            TaskKind::Complete { format: TextFormat::Json { schema }, .. } => {
                Self::Json(JsonFormat::new(schema, target)?)
            }
            TaskKind::Complete { format: TextFormat::Pattern { pattern }, .. } => {
                Self::Pattern { mode: target.pattern, pattern: pattern.clone(), regex: whole(pattern)? }
            }
            TaskKind::Choose { labels, .. } if target.choice == ChoiceMode::Grammar => {
                Self::Label { labels: labels.clone(), json: None, grammar: Some(grammar(labels)) }
            }
            TaskKind::Choose { labels, .. } => {
                let schema = json!({
                    "type": "object",
                    "properties": {"label": {"type": "string", "enum": labels}},
                    "required": ["label"],
                    "additionalProperties": false,
                });
                let json = JsonFormat::new(&schema, target)?;
                // Without any help of the provider, the label alone is easier to write than JSON around it.
                let json = (json.mode != StructuredMode::None).then_some(json);
                Self::Label { labels: labels.clone(), json, grammar: None }
            }
        })
    }

    /// The JSON that is asked for, if it is JSON.
    pub(crate) fn json(&self) -> Option<&JsonFormat> {
        match self {
            Self::Json(json) | Self::Label { json: Some(json), .. } => Some(json),
            Self::Free | Self::Pattern { .. } | Self::Label { json: None, .. } => None,
        }
    }

    /// What the model is told, where the provider does not hold it to the format.
    pub(crate) fn instructions(&self) -> Option<String> {
        match self {
            Self::Free => None,
            Self::Json(json) | Self::Label { json: Some(json), .. } => json.instructions(),
            Self::Pattern { mode: PatternMode::None, pattern, .. } => Some(format!(
                "Answer with a text that as a whole matches the regular expression below, and with nothing else: no \
                 explanation, no quotation marks.\n{pattern}"
            )),
            Self::Pattern { .. } | Self::Label { grammar: Some(_), .. } => None,
            Self::Label { labels, json: None, grammar: None } => Some(format!(
                "Answer with one of these labels exactly as it is written here, and with nothing else.\n{}",
                labels.iter().map(|label| format!("- {label}")).collect::<Vec<_>>().join("\n")
            )),
        }
    }

    /// The answer in its form.
    pub(crate) fn read(&self, text: &str) -> Result<Formatted, Misfit> {
        match self {
            Self::Free => Ok(Formatted::Text(text.to_owned())),
            Self::Json(json) => json.read(text).map(|value| Formatted::Text(value.to_string())),
            Self::Pattern { regex, .. } => {
                // White space around an answer is the model's manner; within the pattern's reach it counts.
                let found = [text, text.trim()].into_iter().find(|text| regex.is_match(text));
                let misfit = || Misfit("it does not match the regular expression as a whole".to_owned());
                found.map(|text| Formatted::Text(text.to_owned())).ok_or_else(misfit)
            }
            Self::Label { labels, json, .. } => {
                let value = match json {
                    Some(json) => json.read(text)?.get("label").cloned().unwrap_or_default(),
                    None => Value::from(text.trim().trim_matches(['"', '\'', '`', '.', '*'])),
                };
                let label = value.as_str().unwrap_or_default();
                let found = labels.iter().position(|known| known == label).or_else(|| {
                    let mut like = (0..labels.len()).filter(|i| labels[*i].to_lowercase() == label.to_lowercase());
                    like.next().filter(|_| like.next().is_none())
                });
                found.map(Formatted::Label).ok_or_else(|| Misfit("it is none of the labels".to_owned()))
            }
        }
    }
}

impl JsonFormat {
    fn new(schema: &Value, target: &Target) -> Result<Self> {
        let wrong = |error: jsonschema::ValidationError<'_>| {
            Error::invalid(format!("the JSON Schema of a call cannot be used: {error}"))
                .hint("references must point into the schema itself, as in {\"$ref\": \"#/$defs/name\"}")
        };
        let validator = jsonschema::options().offline().build(schema).map_err(wrong)?;
        let (mode, sent) = choose(schema, target);
        Ok(Self { mode, sent, schema: schema.clone(), validator })
    }

    fn instructions(&self) -> Option<String> {
        match self.mode {
            StructuredMode::JsonSchema | StructuredMode::JsonValue | StructuredMode::Tools => None,
            StructuredMode::JsonObject | StructuredMode::None => Some(format!(
                "Answer with one JSON object and with nothing else: no explanation, no code fence. It must be valid \
                 against this JSON Schema:\n{}",
                self.schema
            )),
        }
    }

    fn read(&self, text: &str) -> Result<Value, Misfit> {
        let value = answer::json_in(text).ok_or_else(|| Misfit("it is not JSON".to_owned()))?;
        let value = answer::in_order(value, &self.schema, &self.schema);
        match self.validator.validate(&value) {
            Ok(()) => Ok(value),
            // The place in the schema, not in the answer: an answer's keys are the model's words.
            Err(error) => Err(Misfit(format!("it is not valid at {} of the JSON Schema", error.schema_path()))),
        }
    }
}

/// The first way that the target has and that can carry the schema.
fn choose(schema: &Value, target: &Target) -> (StructuredMode, Value) {
    for mode in &target.structured {
        let sent = match mode {
            StructuredMode::JsonSchema | StructuredMode::JsonValue => print::print(schema, target.schema_subset),
            // Parameters of a tool are an object; where they are not strict they may be any.
            StructuredMode::Tools => print::print(schema, target.schema_subset).or_else(|| loose(schema, target)),
            StructuredMode::JsonObject => is_object(schema).then(|| schema.clone()),
            StructuredMode::None => Some(schema.clone()),
        };
        if let Some(sent) = sent {
            return (*mode, sent);
        }
    }
    (StructuredMode::None, schema.clone())
}

/// The schema as the parameters of a tool that is not strict.
fn loose(schema: &Value, target: &Target) -> Option<Value> {
    let open = !target.tools_strict && target.dialect != crate::target::Dialect::Gemini;
    (open && is_object(schema)).then(|| schema.clone())
}

fn is_object(schema: &Value) -> bool {
    schema.get("type").is_some_and(|name| name == "object")
}

/// One of the labels, in llama.cpp's GBNF, whose texts are written as JSON's are.
fn grammar(labels: &[String]) -> String {
    let labels: Vec<String> = labels.iter().map(|label| Value::from(label.as_str()).to_string()).collect();
    format!("root ::= {}", labels.join(" | "))
}

/// The pattern as one of the whole text. It is printed from what was parsed: flags and comments within it end with it.
fn whole(pattern: &str) -> Result<Regex> {
    let wrong = |error: String| Error::invalid(format!("the pattern of a call cannot be checked: {error}"));
    let hir = regex_syntax::parse(pattern).map_err(|error| wrong(error.to_string()))?;
    regex::RegexBuilder::new(&format!(r"\A(?:{hir})\z"))
        .size_limit(PATTERN_SIZE_MAX)
        .build()
        .map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
