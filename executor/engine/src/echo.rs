//! [`EchoEngine`]: answers without a model, deterministically. For dry runs of a pipeline, for tests and for measuring
//! the machinery around a model. Never a fallback: a job gets it only by `engine = 'echo'`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regex_syntax::hir::{Class, Hir, HirKind};
use rowmill_jobs::infer::{
    Answer, Answered, Engine, Outcome, Piece, Request, RowError, RowErrorCode, Task, TaskKind, TextFormat, Usage,
};
use serde_json::{Map, Value};

/// It has no tokenizer: this many bytes count as a token, about what English text has.
const BYTES_PER_TOKEN: usize = 4;

/// Answers text with itself, labels with the first, vectors from a hash of the text.
#[derive(Debug, Clone, PartialEq)]
pub struct EchoEngine {
    /// Time each request takes; requests of one call are answered one after another.
    pub delay: Duration,
    /// Share of requests, from 0 to 1, that end in a row error; which ones depends on their content only.
    pub fail_ratio: f64,
    /// Length of vectors.
    pub dimensions: usize,
    /// A request whose values contain this text ends the process.
    pub abort_on: Option<String>,
}

#[async_trait]
impl Engine for EchoEngine {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> rowmill_jobs::Result<Vec<Outcome>> {
        if let Some(text) = &self.abort_on
            && requests.iter().any(|request| request.values.iter().any(|value| value.contains(text)))
        {
            std::process::abort();
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay * u32::try_from(requests.len()).unwrap_or(u32::MAX)).await;
        }
        Ok(requests.into_iter().map(|request| self.answer(task, request)).collect())
    }
}

impl EchoEngine {
    fn answer(&self, task: &Task, request: Request) -> Outcome {
        if self.fail_ratio > 0.0 && unit_hash(&request) < self.fail_ratio {
            return Err(RowError::new(RowErrorCode::Injected, "the echo engine was told to fail by its fail_ratio"));
        }
        let mut usage = Usage::default();
        let answer = match &task.kind {
            TaskKind::Complete { format: TextFormat::Free, .. } => Answer::Text(prompt(task, request)),
            TaskKind::Complete { format: TextFormat::Json { schema }, .. } => {
                Answer::Text(smallest(schema).to_string())
            }
            TaskKind::Complete { format: TextFormat::Pattern { pattern }, .. } => Answer::Text(shortest(pattern)?),
            TaskKind::Choose { labels, .. } => Answer::Choice { index: 0, scores: first_only(labels.len()) },
            TaskKind::Embed => Answer::Vector(vector(&prompt(task, request), self.dimensions)),
        };
        if let Answer::Text(text) = &answer {
            usage.input_tokens = text.len().div_ceil(BYTES_PER_TOKEN) as u64;
            usage.output_tokens = usage.input_tokens;
        }
        Ok(Answered::new(answer, usage))
    }
}

/// The whole prompt. A prompt that is one value moves it instead of copying.
fn prompt(task: &Task, mut request: Request) -> String {
    if let ([Piece::Value(0)], [value]) = (task.template.as_slice(), request.values.as_mut_slice()) {
        return std::mem::take(value);
    }
    let piece = |piece| match piece {
        &Piece::Value(index) => request.values.get(index).map_or("", String::as_str),
        Piece::Text(text) => text,
    };
    task.template.iter().map(piece).collect()
}

/// A number in [0, 1) that depends on the request's content only.
fn unit_hash(request: &Request) -> f64 {
    let mut hasher = DefaultHasher::new();
    request.hash(&mut hasher);
    hasher.finish() as f64 / (u64::MAX as f64 + 1.0)
}

fn first_only(labels: usize) -> Vec<f32> {
    (0..labels).map(|label| if label == 0 { 1.0 } else { 0.0 }).collect()
}

/// A vector of length 1 from a hash of the text.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut state = hasher.finish();
    let raw: Vec<f32> = (0..dimensions)
        .map(|_| {
            // splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.into_iter().map(|x| x / length).collect()
}

/// The plainest value that a JSON Schema of the kind Rowmill makes allows: null where it may be null.
pub fn smallest(schema: &Value) -> Value {
    if let Some(choice) = schema.get("enum").and_then(|values| values.get(0)) {
        return choice.clone();
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => return Value::Null,
    };
    match types.as_slice() {
        many if many.contains(&"null") => Value::Null,
        ["object", ..] => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let fields = properties.into_iter().flatten().map(|(name, field)| (name.clone(), smallest(field)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        ["array", ..] => Value::Array(Vec::new()),
        ["string", ..] => Value::String(String::new()),
        ["boolean", ..] => Value::Bool(false),
        ["integer" | "number", ..] => Value::from(0),
        _ => Value::Null,
    }
}

/// A text that matches the pattern: at each choice the first or the fewest, of a class a letter or digit if it has one.
fn shortest(pattern: &str) -> Result<String, RowError> {
    let unwritten =
        || RowError::new(RowErrorCode::InvalidOutput, "the echo engine cannot write a text of this pattern");
    let hir = regex_syntax::Parser::new().parse(pattern).map_err(|_| unwritten())?;
    let mut text = Vec::new();
    match_shortest(&hir, &mut text);
    String::from_utf8(text).map_err(|_| unwritten())
}

fn match_shortest(hir: &Hir, text: &mut Vec<u8>) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => text.extend_from_slice(&literal.0),
        HirKind::Class(Class::Unicode(class)) => {
            let has = |c: &char| class.iter().any(|range| (range.start()..=range.end()).contains(c));
            let plain = ['a', 'A', '0', ' '].into_iter().find(has);
            let c = plain.or_else(|| class.iter().next().map(|range| range.start()));
            text.extend_from_slice(c.map(String::from).unwrap_or_default().as_bytes());
        }
        HirKind::Class(Class::Bytes(class)) => text.extend(class.iter().next().map(|range| range.start())),
        HirKind::Repetition(repetition) => (0..repetition.min).for_each(|_| match_shortest(&repetition.sub, text)),
        HirKind::Capture(group) => match_shortest(&group.sub, text),
        HirKind::Concat(parts) => parts.iter().for_each(|part| match_shortest(part, text)),
        HirKind::Alternation(parts) => parts.first().into_iter().for_each(|part| match_shortest(part, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(fail_ratio: f64) -> EchoEngine {
        EchoEngine { delay: Duration::ZERO, fail_ratio, dimensions: 8, abort_on: None }
    }

    fn task(kind: TaskKind) -> Arc<Task> {
        let template = vec![Piece::Text("say: ".into()), Piece::Value(0)];
        Arc::new(Task { model: "e".into(), kind, system: None, input: template.clone(), template })
    }

    fn requests(count: usize) -> Vec<Request> {
        (0..count).map(|i| Request { values: [format!("row {i}")].into() }).collect()
    }

    #[tokio::test]
    async fn answers_depend_on_content_only() {
        let free = task(TaskKind::Complete { tokens_max: 1, format: TextFormat::Free });
        let outcomes = engine(0.0).infer(&free, requests(2)).await.unwrap();
        assert_eq!(outcomes[1].as_ref().unwrap().answer, Answer::Text("say: row 1".into()));

        let embed = task(TaskKind::Embed);
        let once = engine(0.0).infer(&embed, requests(3)).await.unwrap();
        let Ok(Answered { answer: Answer::Vector(vector), .. }) = &once[2] else { panic!() };
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(once, engine(0.0).infer(&embed, requests(3)).await.unwrap());
        assert_ne!(once[0], once[1]);
    }

    #[tokio::test]
    async fn fails_about_the_ratio_it_was_told() {
        let free = task(TaskKind::Complete { tokens_max: 1, format: TextFormat::Free });
        let outcomes = engine(0.1).infer(&free, requests(10_000)).await.unwrap();
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert!((800..1200).contains(&failed), "{failed}");
    }

    #[test]
    fn text_of_a_pattern_is_the_shortest() {
        for (pattern, text) in [("[A-Z]{2}-[0-9]+", "AA-0"), ("^(yes|no)!?$", "yes"), (r"(?:über|x) .{0,9}", "über ")]
        {
            assert_eq!(shortest(pattern).unwrap(), text, "{pattern}");
        }
    }

    #[test]
    fn json_is_the_plainest_that_the_schema_allows() {
        let schema = serde_json::json!({"type": "object", "properties": {
            "a": {"type": ["string", "null"]}, "b": {"type": "integer"}, "c": {"enum": ["x", "y"]}
        }});
        assert_eq!(smallest(&schema).to_string(), r#"{"a":null,"b":0,"c":"x"}"#);
    }
}
