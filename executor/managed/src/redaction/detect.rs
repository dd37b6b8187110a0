//! What personal data and keys look like: a regular expression finds candidates, a checksum or parser decides. Pure, and of
//! linear time: the `regex` crate does not backtrack, and what is tried again is of bounded length.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use regex::Regex;

/// A stretch of text that a detector claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// Index of the detector.
    pub detector: usize,
}

/// Finds one kind of data.
#[derive(Debug)]
pub(super) struct Detector {
    /// Stands in the pseudonym.
    pub name: String,
    candidate: Regex,
    decide: Decide,
}

/// Given a text and a candidate in it: the part of the candidate that it is, if it is.
type Decide = fn(&str, Range<usize>) -> Option<Range<usize>>;

/// Lengths of IBANs by country, from the registry of SWIFT (ISO 13616).
const IBAN_LENGTHS: [(&str, usize); 79] = [
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
];

/// The built-in detectors, in the order in which they win where two claim the same text.
const TABLE: [(&str, &str, Decide); 8] = [
    ("KEY", KEY, whole),
    ("EMAIL", r"[\p{L}\p{N}._%+'-]+@(?:[\p{L}\p{N}-]+\.)+\p{L}{2,}", whole),
    ("IBAN", r"(?i)\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}", iban),
    ("CARD", r"[0-9](?:[ -]?[0-9]){12,40}", card),
    ("SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", social_security_number),
    ("PHONE", r"(?:\+|\b00)[1-9](?:[ .()/-]{0,3}[0-9]){6,14}", phone),
    ("IPV4", r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b", ip_version_4),
    ("IPV6", r"(?i)[0-9a-f:]{2,39}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3})?", ip_version_6),
];

/// Keys of well-known services, web tokens, private keys. Repetitions have no upper bound: one costs nothing at run time, and a
/// bound costs memory.
const KEY: &str = concat!(
    r"\b(?:(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}",
    r"|(?:gsk|tgp|fw)_[A-Za-z0-9_-]{16,}",
    r"|AIza[A-Za-z0-9_-]{35}",
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}",
    r"|hf_[A-Za-z0-9]{30,}|xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})",
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[A-Za-z0-9+/=\s]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
);

/// Names of the built-in detectors.
pub const BUILT_IN: [&str; 8] = ["KEY", "EMAIL", "IBAN", "CARD", "SSN", "PHONE", "IPV4", "IPV6"];

/// The built-in detector of a name.
pub(super) fn built_in(name: &str) -> Option<Result<Detector, regex::Error>> {
    let (name, pattern, decide) = TABLE.into_iter().find(|(known, _, _)| *known == name)?;
    Some(super::pattern(pattern).map(|candidate| Detector { name: name.to_owned(), candidate, decide }))
}

impl Detector {
    /// A detector of the operator's.
    pub(super) fn own(name: &str, candidate: Regex) -> Self {
        Self { name: name.to_owned(), candidate, decide: whole }
    }

    /// Everything it finds, in order. What a candidate hides that turns out to be nothing is looked at again, from its next
    /// character on.
    pub(super) fn find(&self, text: &str, index: usize, found: &mut Vec<Found>) {
        let mut from = 0;
        while let Some(candidate) = self.candidate.find_at(text, from) {
            match (self.decide)(text, candidate.range()).filter(|range| !range.is_empty()) {
                Some(range) => {
                    from = range.end;
                    found.push(Found { range, detector: index });
                }
                None => {
                    let step = text[candidate.start()..].chars().next().map_or(1, char::len_utf8);
                    from = candidate.start() + step;
                }
            }
            if from > text.len() {
                return;
            }
        }
    }
}

fn whole(_: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    Some(candidate)
}

/// Whether a letter or digit stands right before or after a stretch of text: then it is a piece of something longer.
fn is_piece(text: &str, range: &Range<usize>) -> bool {
    let before = text[..range.start].chars().next_back().is_some_and(char::is_alphanumeric);
    let after = text[range.end..].chars().next().is_some_and(char::is_alphanumeric);
    before || after
}

/// ISO 13616: the country's length, and 1 modulo 97 once the first four characters stand last and letters are numbers.
fn iban(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    let country = text.get(candidate.start..candidate.start + 2)?.to_ascii_uppercase();
    let (_, length) = IBAN_LENGTHS.iter().find(|(known, _)| *known == country)?;
    let mut characters = Vec::with_capacity(*length);
    let mut end = candidate.start;
    for (offset, c) in text[candidate.clone()].char_indices().filter(|(_, c)| c.is_ascii_alphanumeric()).take(*length) {
        characters.push(c.to_ascii_uppercase());
        end = candidate.start + offset + 1;
    }
    let range = candidate.start..end;
    if characters.len() < *length || is_piece(text, &range) {
        return None;
    }
    characters.rotate_left(4);
    let remainder = characters.iter().try_fold(0u32, |remainder, c| {
        let value = c.to_digit(36)?;
        Some((remainder * if value < 10 { 10 } else { 100 } + value) % 97)
    })?;
    (remainder == 1).then_some(range)
}

/// A payment card's number: 13 to 19 digits, the first ones of a known network, and a Luhn check digit (ISO/IEC 7812). It
/// ends where a group of digits ends, since what follows may be an expiry date.
fn card(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    if text[..candidate.start].chars().next_back().is_some_and(char::is_alphanumeric) {
        return None;
    }
    let mut digits: Vec<u32> = Vec::with_capacity(19);
    let mut longest = None;
    for (offset, c) in text[candidate.clone()].char_indices() {
        let Some(digit) = c.to_digit(10) else { continue };
        digits.push(digit);
        if digits.len() > 19 {
            break;
        }
        let range = candidate.start..candidate.start + offset + 1;
        if digits.len() >= 13 && !is_piece(text, &range) && is_card_network(&digits) && luhn(&digits) {
            longest = Some(range);
        }
    }
    longest
}

/// Whether a network gives out numbers that begin so and are so long.
fn is_card_network(digits: &[u32]) -> bool {
    let first = digits.iter().take(4).fold(0, |number, digit| number * 10 + digit);
    match first {
        3400..=3499 | 3700..=3799 => digits.len() == 15,
        3000..=3099 | 3600..=3699 | 3800..=3999 => digits.len() >= 14,
        2221..=2720 | 5100..=5599 => digits.len() == 16,
        3528..=3589 | 6000..=6999 => digits.len() >= 16,
        4000..=4999 => matches!(digits.len(), 13 | 16 | 19),
        5000..=5099 | 5600..=5899 => true,
        _ => false,
    }
}

fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(position, digit)| match (position % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Numbers that were never given out are none.
fn social_security_number(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    let number = &text[candidate.clone()];
    let (area, group, serial) = (number.get(..3)?, number.get(4..6)?, number.get(7..)?);
    let is_given = area != "000" && area != "666" && !area.starts_with('9') && group != "00" && serial != "0000";
    let touches = |c: Option<char>| c == Some('-');
    let in_a_row =
        touches(text[..candidate.start].chars().next_back()) || touches(text[candidate.end..].chars().next());
    (is_given && !in_a_row).then_some(candidate)
}

/// E.164: a country's code and at most 15 digits in all. A number without a country's code is not told from other numbers.
fn phone(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    let digits = text[candidate.clone()].trim_start_matches("00").chars().filter(char::is_ascii_digit).count();
    let is_one = (7..=15).contains(&digits) && !is_piece(text, &candidate);
    is_one.then_some(candidate)
}

fn ip_version_4(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    let in_more_parts =
        text[candidate.end..].strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            || text[..candidate.start].ends_with('.');
    (text[candidate.clone()].parse::<Ipv4Addr>().is_ok() && !in_more_parts).then_some(candidate)
}

/// An address of at least five hexadecimal digits: `a::b` is more often something else.
fn ip_version_6(text: &str, candidate: Range<usize>) -> Option<Range<usize>> {
    // A sentence's colon at the end is none of the address's.
    let bare = text[candidate.clone()].strip_suffix(':').filter(|bare| !bare.ends_with(':'));
    let range = candidate.start..candidate.start + bare.unwrap_or(&text[candidate.clone()]).len();
    let digits = text[range.clone()].chars().filter(char::is_ascii_hexdigit).count();
    let is_one = digits >= 5 && text[range.clone()].parse::<Ipv6Addr>().is_ok() && !is_piece(text, &range);
    is_one.then_some(range)
}
