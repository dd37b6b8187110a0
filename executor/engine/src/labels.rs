//! Label scoring: a trie over the labels' tokens, and the probability of each label given the logits at its branches.
//! Pure. Only nodes with more than one child are branches; a path without a choice has probability 1 and costs nothing.
//!
//! A label's score is the probability that the model writes it, given that it writes one of the labels: at each branch the
//! tokens that lead to a label share all of the probability. So scores sum to 1, and a long label is at no disadvantage for
//! its length: tokens that have no alternative count for nothing. Dividing by length, as is done with the probabilities of
//! free text, would break the sum and favour long labels; it is deliberately absent.

use std::collections::BTreeMap;

use rowmill_jobs::{Error, Result};

/// A place in the trie where labels part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Branch {
    /// Tokens from the prompt's end down to here.
    pub(crate) path: Vec<u32>,
    /// The tokens labels continue with, ascending.
    pub(crate) children: Vec<u32>,
}

/// The labels of a task as token sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelTrie {
    /// Branches, in the order of their paths; the first is a prefix of all others.
    pub(crate) branches: Vec<Branch>,
    /// For each label, the branches on its way and which child it takes.
    ways: Vec<Vec<(usize, usize)>>,
}

impl LabelTrie {
    /// Builds the trie. `labels` are the labels' token ids without special tokens; `end` is the end-of-turn token, which
    /// separates a label from a longer one it begins.
    pub(crate) fn new(labels: &[Vec<u32>], end: u32) -> Result<Self> {
        let paths: Vec<Vec<u32>> = labels.iter().map(|ids| ids.iter().copied().chain([end]).collect()).collect();
        let mut nodes: BTreeMap<&[u32], Vec<u32>> = BTreeMap::new();
        for path in &paths {
            for depth in 0..path.len() {
                let children = nodes.entry(&path[..depth]).or_default();
                if let Err(at) = children.binary_search(&path[depth]) {
                    children.insert(at, path[depth]);
                }
            }
        }
        for (i, path) in paths.iter().enumerate() {
            if let Some(same) = paths[..i].iter().position(|other| other == path) {
                return Err(Error::invalid(format!(
                    "labels {} and {} are the same to the model's tokenizer",
                    same + 1,
                    i + 1
                ))
                .hint("name the labels in words the model's tokenizer can tell apart"));
            }
        }
        let branching = nodes.into_iter().filter(|(_, children)| children.len() > 1);
        let branches: Vec<Branch> =
            branching.map(|(path, children)| Branch { path: path.to_vec(), children }).collect();
        let ways = paths.iter().map(|path| way(path, &branches)).collect();
        Ok(Self { branches, ways })
    }

    /// Tokens that any branch continues with, ascending: the output rows that scoring needs.
    pub(crate) fn tokens(&self) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.branches.iter().flat_map(|branch| branch.children.iter().copied()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// A probability for each label. `logits[branch]` are the logits over [`LabelTrie::tokens`] after the branch's path.
    /// `None` if a logit that matters is not finite.
    pub(crate) fn scores(&self, logits: &[&[f32]]) -> Option<Vec<f32>> {
        let tokens = self.tokens();
        let mut shares = Vec::with_capacity(self.branches.len());
        for (branch, logits) in self.branches.iter().zip(logits) {
            let at = |token: &u32| tokens.binary_search(token).ok().and_then(|at| logits.get(at));
            let children: Vec<f64> = branch.children.iter().filter_map(at).map(|logit| f64::from(*logit)).collect();
            if children.len() != branch.children.len() || children.iter().any(|logit| !logit.is_finite()) {
                return None;
            }
            let top = children.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = children.iter().map(|logit| (logit - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            shares.push(weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>());
        }
        let score =
            |way: &Vec<(usize, usize)>| way.iter().map(|(branch, child)| shares[*branch][*child]).product::<f64>();
        Some(self.ways.iter().map(|way| score(way) as f32).collect())
    }
}

/// Scores measured against the scores that the labels have without any text, `prior`: each is divided by its prior, then all
/// by their sum. What the model prefers before it has read anything (a frequent word, the first of a list) is thereby taken
/// out, and a text that says nothing gives all labels the same score.
///
/// Zhao et al., Calibrate Before Use: Improving Few-Shot Performance of Language Models, ICML 2021 (section 5, with W =
/// diag(prior)⁻¹ and the empty text as the only content-free one). They take a softmax of the quotients; here they are
/// scaled to sum to 1, which chooses the same label and keeps evidence proportional.
pub(crate) fn calibrated(scores: &[f32], prior: &[f32]) -> Vec<f32> {
    let quotient = |(score, prior): (&f32, &f32)| f64::from(*score) / f64::from(prior.max(f32::MIN_POSITIVE));
    let quotients: Vec<f64> = scores.iter().zip(prior).map(quotient).collect();
    let sum: f64 = quotients.iter().sum();
    quotients.into_iter().map(|quotient| (quotient / sum) as f32).collect()
}

fn way(path: &[u32], branches: &[Branch]) -> Vec<(usize, usize)> {
    let mut way = Vec::new();
    for (index, branch) in branches.iter().enumerate() {
        if path.len() > branch.path.len()
            && path.starts_with(&branch.path)
            && let Ok(child) = branch.children.binary_search(&path[branch.path.len()])
        {
            way.push((index, child));
        }
    }
    way
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const END: u32 = 99;

    #[test]
    fn labels_that_differ_at_once_need_one_branch() {
        let trie = LabelTrie::new(&[vec![1, 5], vec![2], vec![3, 4, 5]], END).unwrap();
        assert_eq!(trie.branches, [Branch { path: vec![], children: vec![1, 2, 3] }]);
        let scores = trie.scores(&[&[0.0, 0.0, 0.0]]).unwrap();
        assert!(scores.iter().all(|score| (score - 1.0 / 3.0).abs() < 1e-6));
    }

    #[test]
    fn a_label_that_begins_another_is_decided_by_the_end() {
        let trie = LabelTrie::new(&[vec![1], vec![1, 2], vec![7]], END).unwrap();
        assert_eq!(trie.branches[1], Branch { path: vec![1], children: vec![2, END] });
        assert_eq!(trie.tokens(), [1, 2, 7, END]);
        let third = 3f32.ln();
        // Token 1 has three quarters; after it, 2 has one quarter.
        let scores = trie.scores(&[&[third, 0.0, 0.0, 9.0], &[9.0, 0.0, 9.0, third]]).unwrap();
        for (score, expected) in scores.iter().zip([0.5625, 0.1875, 0.25]) {
            assert!((score - expected).abs() < 1e-6, "{scores:?}");
        }
    }

    #[test]
    fn common_beginnings_come_before_the_first_branch() {
        let trie = LabelTrie::new(&[vec![4, 4, 1], vec![4, 4, 2]], END).unwrap();
        assert_eq!(trie.branches, [Branch { path: vec![4, 4], children: vec![1, 2] }]);
    }

    #[test]
    fn calibration_takes_out_what_labels_have_without_a_text() {
        let close = |a: &[f32], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let prior = [0.8, 0.15, 0.05];
        assert!(close(&calibrated(&prior, &prior), [1.0 / 3.0; 3]), "a text that says nothing");
        // The first is still the likeliest to be written, and the second is the one that the text speaks for.
        assert!(close(&calibrated(&[0.6, 0.3, 0.1], &prior), [0.75 / 4.75, 2.0 / 4.75, 2.0 / 4.75]));
        let third = [1.0 / 3.0; 3];
        assert!(close(&calibrated(&[0.7, 0.2, 0.1], &third), [0.7, 0.2, 0.1]), "without a preference nothing changes");
        assert!(close(&calibrated(&[1.0, 0.0, 0.0], &[1.0, 0.0, 0.0]), [1.0, 0.0, 0.0]), "numbers stay finite");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(LabelTrie::new(&[vec![1], vec![1]], END).unwrap_err().to_string().contains("labels 1 and 2"));
        let trie = LabelTrie::new(&[vec![1], vec![2]], END).unwrap();
        assert_eq!(trie.scores(&[&[f32::NAN, 0.0]]), None);
    }
}
