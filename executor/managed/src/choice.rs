//! Probabilities of labels from the probabilities of an answer's tokens. Pure.
//!
//! As with the candle engine's labels, a label's score is the probability that the model writes it, given that it writes
//! one of the labels: at each token, those alternatives that lead to a label share all of the probability. A provider
//! shows only the likeliest alternatives, so the score of the chosen label is exact up to what it leaves out. Where a token
//! that was not chosen begins several labels, they share its probability equally: the provider says no more.

use std::ops::Range;

use crate::dialect::TokenChoice;

/// A score for each label, in their order; they sum to 1. `None` where the tokens do not tell.
///
/// `place` is where the chosen label stands in the text that the tokens spell. `endings` are the labels as they would
/// stand there, with what ends them (a quotation mark) if something does.
pub(crate) fn scores(
    tokens: &[TokenChoice],
    place: Range<usize>,
    endings: &[String],
    chosen: usize,
) -> Option<Vec<f32>> {
    let text: Vec<u8> = tokens.iter().flat_map(|token| token.bytes.iter().copied()).collect();
    let before = text.get(..place.start)?;
    if endings.get(chosen).map(String::as_bytes) != text.get(place.clone()) {
        return None;
    }
    let wholes: Vec<Vec<u8>> = endings.iter().map(|ending| [before, ending.as_bytes()].concat()).collect();
    let mut scores = vec![0.0f64; endings.len()];
    let mut left = 1.0f64;
    let mut from = 0;
    for token in tokens {
        let to = from + token.bytes.len();
        if to > place.start && from < place.end {
            left = share(token, &text[..from], &wholes, &mut scores, left)?;
        }
        from = to;
    }
    scores[chosen] += left;
    Some(scores.into_iter().map(|score| score as f32).collect())
}

/// Gives the alternatives of one token their part of `left`; returns the chosen one's.
fn share(token: &TokenChoice, before: &[u8], wholes: &[Vec<u8>], scores: &mut [f64], left: f64) -> Option<f64> {
    // One alternative is no comparison: what the others have cannot be known.
    if token.others.len() < 2 {
        return None;
    }
    let leads_to = |bytes: &[u8]| -> Vec<usize> {
        let path = [before, bytes].concat();
        let on_path = |whole: &Vec<u8>| whole.starts_with(&path) || path.starts_with(whole);
        (0..wholes.len()).filter(|label| on_path(&wholes[*label])).collect()
    };
    let others = token.others.iter().filter(|(bytes, _)| *bytes != token.bytes);
    let others: Vec<(Vec<usize>, f64)> = others
        .map(|(bytes, logprob)| (leads_to(bytes), logprob.exp()))
        .filter(|(labels, _)| !labels.is_empty())
        .collect();
    let own = token.logprob.exp();
    let total = own + others.iter().map(|(_, weight)| weight).sum::<f64>();
    if !total.is_finite() || total <= 0.0 {
        return None;
    }
    for (labels, weight) in &others {
        for label in labels {
            scores[*label] += left * weight / total / labels.len() as f64;
        }
    }
    Some(left * own / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, probability: f64, others: &[(&str, f64)]) -> TokenChoice {
        let others = others.iter().map(|(text, p)| (text.as_bytes().to_vec(), p.ln())).collect();
        TokenChoice { bytes: text.as_bytes().to_vec(), logprob: probability.ln(), others }
    }

    fn close(scores: Option<Vec<f32>>, expected: &[f32]) {
        let scores = scores.unwrap();
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{scores:?}");
        assert!(scores.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{scores:?} {expected:?}");
    }

    fn endings(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|label| format!("{label}\"")).collect()
    }

    #[test]
    fn alternatives_that_are_no_label_do_not_count() {
        let tokens = [
            token("{\"label\":\"", 1.0, &[("{\"label\":\"", 1.0), ("x", 0.0)]),
            token("bug", 0.6, &[("bug", 0.6), ("how", 0.2), ("none", 0.2)]),
            token("\"}", 1.0, &[("\"}", 1.0), (" report", 0.0)]),
        ];
        close(scores(&tokens, 10..14, &endings(&["how-to", "bug", "billing"]), 1), &[0.25, 0.75, 0.0]);
    }

    #[test]
    fn a_label_that_begins_another_is_decided_where_it_ends() {
        let tokens = [
            token("{\"label\": \"b", 0.5, &[("{\"label\": \"b", 0.5), ("{\"label\": \"h", 0.5)]),
            token("ug", 0.8, &[("ug", 0.8), ("illing", 0.2)]),
            token("\"", 0.9, &[("\"", 0.9), (" report", 0.1)]),
            token("}", 1.0, &[]),
        ];
        let labels = endings(&["bug", "bug report", "billing", "how-to", "heat"]);
        // `h` begins two labels, and what the model would have chosen of them is not known.
        close(scores(&tokens, 11..15, &labels, 0), &[0.36, 0.04, 0.1, 0.25, 0.25]);
    }

    #[test]
    fn what_is_not_known_is_not_invented() {
        let alone = [token("bug", 0.9, &[("bug", 0.9)]), token("\"", 1.0, &[("\"", 1.0), ("s", 0.0)])];
        assert_eq!(
            scores(&alone, 0..4, &endings(&["bug", "how-to"]), 0),
            None,
            "one alternative says nothing of others"
        );
        assert_eq!(scores(&[], 0..4, &endings(&["bug", "how-to"]), 0), None);
        let other = [token("ham", 0.9, &[("ham", 0.9), ("bug", 0.1)])];
        assert_eq!(scores(&other, 0..3, &endings(&["bug", "how-to"]), 0), None, "tokens that spell something else");
    }
}
