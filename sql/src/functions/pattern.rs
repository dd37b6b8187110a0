//! The regular expression of `ai_complete(…, pattern => '…')`, checked before anything runs. Whoever holds the model to it
//! is the engine; what passes here is what the engine can enforce.

use regex_syntax::Parser;
use regex_syntax::hir::{Hir, HirKind, Look};

/// A longer pattern is no pattern for an answer.
const PATTERN_BYTES_MAX: usize = 4096;
/// Whoever demands more than this of every row wants something else.
const SHORTEST_BYTES_MAX: usize = 65_536;

/// Checks a pattern. The error has a message and what would be right.
pub(crate) fn check(pattern: &str) -> Result<(), (String, String)> {
    let wrong = |message: &str, hint: &str| Err((message.to_owned(), hint.to_owned()));
    if pattern.len() > PATTERN_BYTES_MAX {
        return wrong(
            &format!("the pattern has more than {PATTERN_BYTES_MAX} bytes"),
            "use ai_classify for a choice of many texts, response_format for fields",
        );
    }
    let hir = Parser::new().parse(pattern).map_err(|error| unreadable(&error))?;
    refuse_looks(&hir, Place { first: true, last: true })?;
    match hir.properties().minimum_len() {
        None => wrong("no text matches the pattern", "leave out classes that are empty"),
        Some(bytes) if bytes > SHORTEST_BYTES_MAX => wrong(
            &format!("every text that matches the pattern has at least {bytes} bytes"),
            "ask for fewer repetitions",
        ),
        Some(_) if hir.properties().maximum_len() == Some(0) => wrong(
            "only the empty text matches the pattern",
            "write what the answer must look like: '[A-Z]{2}-[0-9]{4}'",
        ),
        Some(_) => Ok(()),
    }
}

fn unreadable(error: &regex_syntax::Error) -> (String, String) {
    let (what, at) = match error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), Some(error.span().start.offset)),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), Some(error.span().start.offset)),
        other => (other.to_string(), None),
    };
    let place = at.map(|at| format!(" at byte {at}")).unwrap_or_default();
    let hint = "patterns are written as for Rust's regex crate: characters, [classes], (groups), a|b, *, +, ?, {2,5}";
    (format!("the pattern cannot be read{place}: {what}"), hint.to_owned())
}

/// Where in a pattern a part of it stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Nothing is before it.
    first: bool,
    /// Nothing is behind it.
    last: bool,
}

/// A pattern is of the whole answer, so `^` first and `$` last say nothing new; any other look at the surroundings of a
/// place cannot be enforced while text is being written.
fn refuse_looks(hir: &Hir, place: Place) -> Result<(), (String, String)> {
    match hir.kind() {
        HirKind::Look(Look::Start) if place.first => Ok(()),
        HirKind::Look(Look::End) if place.last => Ok(()),
        HirKind::Look(_) => Err((
            "the pattern looks around (^, $ or \\b within it)".to_owned(),
            "the pattern is of the whole answer: leave anchors and word boundaries out".to_owned(),
        )),
        HirKind::Capture(group) if group.name.as_deref() == Some("stop") => Err((
            "a group of the pattern is named `stop`, which means something else to the engine".to_owned(),
            "give the group another name, or none".to_owned(),
        )),
        HirKind::Capture(group) => refuse_looks(&group.sub, place),
        HirKind::Repetition(repetition) => refuse_looks(&repetition.sub, Place { first: false, last: false }),
        HirKind::Alternation(parts) => parts.iter().try_for_each(|part| refuse_looks(part, place)),
        HirKind::Concat(parts) => {
            let begin = parts.iter().position(|part| !matches!(part.kind(), HirKind::Look(Look::Start)));
            let end = parts.iter().rposition(|part| !matches!(part.kind(), HirKind::Look(Look::End)));
            parts.iter().enumerate().try_for_each(|(index, part)| {
                let first = place.first && begin.is_none_or(|begin| index <= begin);
                let last = place.last && end.is_none_or(|end| index >= end);
                refuse_looks(part, Place { first, last })
            })
        }
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_whole_answers_pass() {
        for pattern in
            ["[A-Z]{2}-[0-9]{4}", "^(yes|no)$", "(?i)a+?", "^a$|^b$", r"\p{L}+(, \p{L}+)*", "(^a)(b$)", "über|東京"]
        {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_said_with_its_place() {
        for (pattern, message) in [
            ("a(b", "the pattern cannot be read at byte 1: unclosed group"),
            (
                "[z-a]",
                "the pattern cannot be read at byte 1: invalid character class range, the start must be <= the end",
            ),
            (r"(a)\1", "the pattern cannot be read at byte 3: backreferences are not supported"),
            (
                "a(?=b)",
                "the pattern cannot be read at byte 1: look-around, including look-ahead and look-behind, is not supported",
            ),
            (r"\bword", "the pattern looks around (^, $ or \\b within it)"),
            ("a^b", "the pattern looks around (^, $ or \\b within it)"),
            ("(?m)^a$", "the pattern looks around (^, $ or \\b within it)"),
            ("(^a)+", "the pattern looks around (^, $ or \\b within it)"),
            ("(?P<stop>a)b", "a group of the pattern is named `stop`, which means something else to the engine"),
            (r"[^\s\S]", "no text matches the pattern"),
            ("^$", "only the empty text matches the pattern"),
            ("", "only the empty text matches the pattern"),
            ("(a{1000}){1000}", "every text that matches the pattern has at least 1000000 bytes"),
        ] {
            assert_eq!(check(pattern).unwrap_err().0, message, "{pattern}");
        }
        assert!(check(&"a".repeat(5000)).unwrap_err().0.contains("4096"));
    }
}
