//! From a provider's result lines to one end for every row: lines come in any order, twice, for rows of others, or not at
//! all. Pure.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::rows::row_name;
use crate::call::Class;

/// A line of a provider's results.
#[derive(Debug, Clone)]
pub struct Line {
    /// The row's name; `None` where the provider does not give it back, and order tells.
    pub name: Option<String>,
    /// What the line says.
    pub says: Says,
}

/// What a provider's results say.
#[derive(Debug, Default)]
pub struct Lines {
    /// Of rows, whoever's they are.
    pub lines: Vec<Line>,
    /// Lines that cannot be read, and do not even say of which row they are.
    pub nameless: usize,
    /// Whether a file of them that there was is not kept any more.
    pub is_part_gone: bool,
}

/// What a line says of its row.
#[derive(Debug, Clone)]
pub enum Says {
    /// The provider's answer, as it would have come online.
    Answer(Box<RawValue>),
    /// The row failed.
    Error {
        /// HTTP status, if there is one.
        status: Option<u16>,
        /// The provider's own code, if it is a plain word.
        code: Option<String>,
    },
    /// The row was not come to: the batch expired or was cancelled.
    NotDone,
    /// Something in another shape than the provider documents.
    Unreadable,
}

/// A row's end in a batch, as it is recorded: exactly one of the three.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowResult {
    /// Its index in the shard's rows.
    pub row: u32,
    /// The provider's answer, as it would have come online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Box<RawValue>>,
    /// There will be no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// It goes into the next round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resubmitted: Option<Reason>,
}

/// Why there will be no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// What sort of trouble it is.
    pub reason: Reason,
    /// HTTP status, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The provider's own code, if it is a plain word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// A row's last end.
#[derive(Debug, Clone)]
pub enum RowEnd {
    /// The provider's answer, as it would have come online.
    Answered(Box<RawValue>),
    /// There is none.
    Failed(Failed),
}

impl RowResult {
    /// The end of a row that got no answer and goes nowhere else.
    pub fn failed(row: u32, reason: Reason) -> Self {
        Self { row, answered: None, failed: Some(Failed::of(reason)), resubmitted: None }
    }

    /// Whether the row was not sent.
    pub fn is_unsent(&self) -> bool {
        self.failed.as_ref().is_some_and(|failed| failed.reason == Reason::Stopped)
    }

    /// The row's last end; `None` if it goes into another round.
    pub fn into_end(self) -> Option<RowEnd> {
        self.answered.map(RowEnd::Answered).or_else(|| self.failed.map(RowEnd::Failed))
    }
}

impl Failed {
    /// For a reason of which there is no more to say.
    pub fn of(reason: Reason) -> Self {
        Self { reason, status: None, code: None }
    }
}

/// Why a row has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The provider refuses this request whatever is done.
    Refused,
    /// The prompt is longer than the model's context.
    TooLong,
    /// An error of the provider (5xx, 429).
    ProviderError,
    /// The batch ended before it came to the row.
    NotDone,
    /// What tells of it has another shape than the provider documents: it may have been computed, and would be no better
    /// the next time.
    Unreadable,
    /// No line tells of it.
    NoLine,
    /// The batch failed as a whole.
    BatchFailed,
    /// The provider knows the batch no more, or has lost what it did: that may have been computed and be on the bill.
    Gone,
    /// The batch was given up and did not end in time: the provider may compute the row still, and bill it.
    NotEnded,
    /// It was never sent: the job wanted no more of batches.
    Stopped,
    /// It was never sent: the rows are fewer than the provider takes in a batch.
    TooFew,
    /// It was never sent: the provider was away, and another model is asked for all rows.
    Elsewhere,
    /// It got no answer, and the rows that were left are fewer than the provider takes in a further batch.
    TooFewLeft,
}

impl Reason {
    /// The class of the call that it would have been online.
    pub fn class(self) -> Class {
        match self {
            Reason::Refused => Class::Refused,
            Reason::TooLong => Class::TooLong,
            Reason::Unreadable => Class::InvalidOutput,
            Reason::ProviderError
            | Reason::NotDone
            | Reason::NoLine
            | Reason::BatchFailed
            | Reason::Gone
            | Reason::NotEnded
            | Reason::TooFewLeft => Class::Transient,
            Reason::Stopped | Reason::TooFew | Reason::Elsewhere => Class::Stopped,
        }
    }
}

/// What is done with a row that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It goes into the next round.
    Yes,
    /// This was the last round, or the job wants no more.
    No,
}

/// A batch's rows and all lines that tell of them.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Name of the batch.
    pub name: &'a str,
    /// Its rows, in the order in which they were sent.
    pub rows: &'a [u32],
    /// All lines of all its files.
    pub lines: Vec<Line>,
    /// Why a row has no answer that no line tells of.
    pub untold: Reason,
}

/// One end for every row of a batch, in the rows' order. Of several lines for a row an answer counts, else the first. Lines
/// of rows that are not the batch's own count for nothing.
pub fn reconcile(ended: Ended<'_>, again: Again) -> Vec<RowResult> {
    let names: HashMap<String, usize> =
        ended.rows.iter().enumerate().map(|(i, row)| (row_name(ended.name, *row), i)).collect();
    // Order tells only where every row has a line; otherwise nothing tells.
    let is_ordered = ended.lines.len() == ended.rows.len();
    let mut said: Vec<Option<Says>> = vec![None; ended.rows.len()];
    for (position, line) in ended.lines.into_iter().enumerate() {
        let index = match &line.name {
            Some(name) => names.get(name).copied(),
            None => is_ordered.then_some(position),
        };
        let Some(slot) = index.and_then(|index| said.get_mut(index)) else { continue };
        let is_better = matches!(line.says, Says::Answer(_)) && !matches!(slot, Some(Says::Answer(_)));
        if slot.is_none() || is_better {
            *slot = Some(line.says);
        }
    }
    let ends = said.into_iter().zip(ended.rows);
    ends.map(|(says, row)| end(*row, says, ended.untold, again)).collect()
}

/// How many lines are of no row of a batch.
pub fn strangers(name: &str, rows: &[u32], lines: &[Line]) -> usize {
    let names: HashSet<String> = rows.iter().map(|row| row_name(name, *row)).collect();
    lines.iter().filter_map(|line| line.name.as_ref()).filter(|name| !names.contains(*name)).count()
}

fn end(row: u32, says: Option<Says>, untold: Reason, again: Again) -> RowResult {
    let (reason, status, code) = match says {
        Some(Says::Answer(body)) => {
            return RowResult { row, answered: Some(body), failed: None, resubmitted: None };
        }
        Some(Says::Error { status, code }) => (reason_of(status, code.as_deref()), status, code),
        Some(Says::NotDone) => (Reason::NotDone, None, None),
        Some(Says::Unreadable) => (Reason::Unreadable, None, None),
        None => (untold, None, None),
    };
    let failed = |reason| RowResult {
        row,
        answered: None,
        failed: Some(Failed { reason, status, code: code.clone() }),
        resubmitted: None,
    };
    match (reason, again) {
        (Reason::Refused | Reason::TooLong | Reason::Unreadable, _) | (_, Again::No) => failed(reason),
        (_, Again::Yes) => RowResult { row, answered: None, failed: None, resubmitted: Some(reason) },
    }
}

/// Why an error line has no answer.
fn reason_of(status: Option<u16>, code: Option<&str>) -> Reason {
    let code = code.unwrap_or_default();
    if code.contains("context_length") || code == "string_above_max_length" {
        return Reason::TooLong;
    }
    match status {
        Some(408 | 409 | 429) => Reason::ProviderError,
        Some(400..500) => Reason::Refused,
        Some(_) => Reason::ProviderError,
        None => match code {
            "batch_expired" | "batch_cancelled" => Reason::NotDone,
            "invalid_request_error" | "invalid_request" | "request_too_large" => Reason::Refused,
            _ => Reason::ProviderError,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, says: Says) -> Line {
        Line { name: Some(name.into()), says }
    }

    fn answer(text: &str) -> Says {
        Says::Answer(RawValue::from_string(text.to_owned()).unwrap())
    }

    fn error(status: u16) -> Says {
        Says::Error { status: Some(status), code: None }
    }

    fn ends(lines: Vec<Line>, again: Again) -> Vec<String> {
        let ended = Ended { name: "b", rows: &[4, 5, 9], lines, untold: Reason::NoLine };
        let told = |result: &RowResult| match (&result.answered, &result.failed, &result.resubmitted) {
            (Some(body), None, None) => format!("{} {}", result.row, body.get()),
            (None, Some(failed), None) => format!("{} {:?}", result.row, failed.reason),
            (None, None, Some(reason)) => format!("{} again: {reason:?}", result.row),
            _ => panic!("not one end: {result:?}"),
        };
        reconcile(ended, again).iter().map(told).collect()
    }

    #[test]
    fn an_answer_counts_whatever_came_before_or_after_and_strangers_do_not() {
        let [four, five] = [4, 5].map(|row| row_name("b", row));
        let lines = vec![
            line("stranger", answer("0")),
            line(&five, error(500)),
            line(&four, answer("1")),
            line(&five, answer("2")),
            line(&four, answer("3")),
            line(&five, error(400)),
        ];
        let expected = ["4 1", "5 2", "9 again: NoLine"];
        assert_eq!(ends(lines.clone(), Again::Yes), expected);
        assert_eq!(ends(lines, Again::No)[2], "9 NoLine");
    }

    #[test]
    fn what_the_provider_refuses_is_final_and_what_it_could_not_do_is_not() {
        let [four, five, nine] = [4, 5, 9].map(|row| row_name("b", row));
        let too_long = Says::Error { status: Some(400), code: Some("context_length_exceeded".into()) };
        let lines = vec![line(&four, error(400)), line(&five, error(429)), line(&nine, too_long)];
        let expected = ["4 Refused", "5 again: ProviderError", "9 TooLong"];
        assert_eq!(ends(lines, Again::Yes), expected);
    }

    #[test]
    fn order_tells_where_names_do_not_but_only_if_every_row_has_its_line() {
        let unnamed = |text: &str| Line { name: None, says: answer(text) };
        let lines = vec![unnamed("1"), unnamed("2"), unnamed("3")];
        assert_eq!(ends(lines, Again::Yes), ["4 1", "5 2", "9 3"]);
        let lines = vec![unnamed("1"), unnamed("2")];
        assert!(ends(lines, Again::Yes).iter().all(|end| end.ends_with("again: NoLine")));
    }

    #[test]
    fn what_cannot_be_read_is_final_unless_another_line_can() {
        let [four, five] = [4, 5].map(|row| row_name("b", row));
        let lines = vec![
            line(&four, Says::Unreadable),
            line(&five, Says::Unreadable),
            line(&five, answer("2")),
            line("stranger", Says::Unreadable),
        ];
        assert_eq!(strangers("b", &[4, 5, 9], &lines), 1);
        let expected = ["4 Unreadable", "5 2", "9 again: NoLine"];
        assert_eq!(ends(lines, Again::Yes), expected);
    }

    #[test]
    fn results_survive_being_recorded() {
        let ended = Ended {
            name: "b",
            rows: &[1, 2],
            lines: vec![line(&row_name("b", 1), answer(r#"{"a":[1.50]}"#)), line(&row_name("b", 2), error(422))],
            untold: Reason::NoLine,
        };
        let results = reconcile(ended, Again::No);
        let text = serde_json::to_string(&results).unwrap();
        let read: Vec<RowResult> = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        assert!(text.contains(r#"{"a":[1.50]}"#), "{text}");
    }
}
