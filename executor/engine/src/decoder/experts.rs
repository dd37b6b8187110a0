//! A mixture of experts: the router chooses experts for each token, tokens are grouped by expert, and each expert
//! multiplies all of its tokens packed. Sums are in a fixed order, whatever threads do.

use rayon::prelude::*;
use rowmill_jobs::Result;

use super::feed::Mlp;
use super::shape::{DecoderShape, Experts, Groups, Scoring};
use super::tensors::{Bias, Piece, Tensors};
use crate::kernels::{add, exp, for_tokens, simd, softmax};
use crate::linear::Linear;

/// A mixture of experts with its weights.
#[derive(Debug)]
pub(crate) struct Mixture {
    shape: Experts,
    router: Linear,
    /// Added to scores where experts are chosen; empty if nothing is.
    correction: Vec<f32>,
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
    shared_gate: Option<Linear>,
}

/// Which experts tokens go to.
struct Routes {
    /// Chosen experts of each token with their weights, `[tokens, chosen]`.
    choices: Vec<(usize, f32)>,
    /// Tokens in the order of experts, each as often as it goes to one: `[tokens * chosen]`.
    members: Vec<usize>,
    /// Where each choice stands among the members, `[tokens, chosen]`.
    places: Vec<usize>,
    /// How many members each expert has.
    counts: Vec<usize>,
}

impl Mixture {
    pub(crate) fn load(shape: &DecoderShape, experts: &Experts, tensors: &Tensors<'_>, layer: &str) -> Result<Self> {
        let (names, hidden) = (shape.names.experts, shape.hidden);
        let piece = |name: &str, rows: usize| Piece::whole(format!("{layer}{name}"), rows, Bias::No);
        let mlp = |up: Linear, down: Linear| Mlp { up, down, gated: true, activation: shape.activation };
        let shared = match experts.shared {
            None => None,
            Some(inner) => {
                let [gate, up, down] = names.shared;
                let up = tensors.stack(&[piece(gate, inner), piece(up, inner)], hidden)?;
                Some(mlp(up, tensors.stack(&[piece(down, hidden)], inner)?))
            }
        };
        let networks = load_experts(shape, experts, tensors, layer)?;
        Ok(Self {
            router: tensors.stack(&[piece(names.router, experts.count)], hidden)?,
            correction: match experts.scoring {
                Scoring::Softmax => Vec::new(),
                Scoring::CorrectedSigmoid => {
                    tensors.values(&format!("{layer}{}", names.correction), &[experts.count])?
                }
            },
            experts: networks.into_iter().map(|(up, down)| mlp(up, down)).collect(),
            shared,
            shared_gate: match experts.shared_gate {
                true => Some(tensors.stack(&[piece(names.shared_gate, 1)], hidden)?),
                false => None,
            },
            shape: experts.clone(),
        })
    }

    /// What the mixture makes of `x`, `[tokens, hidden]`.
    pub(crate) fn apply(&self, x: Vec<f32>) -> Result<Vec<f32>> {
        let hidden = self.router.inputs;
        let routes = self.router.apply(x.clone())?.read(|logits| self.route(logits))?;
        let answers = self.answers(&x, &routes)?;
        let mut out = match &self.shared {
            None => vec![0f32; x.len()],
            Some(shared) => {
                let mut out = shared.down.apply(shared.inner(x.clone())?)?.read(<[f32]>::to_vec)?;
                if let Some(gate) = &self.shared_gate {
                    gate.apply(x)?.read(|gates| {
                        for_tokens(
                            &mut out,
                            hidden,
                            #[inline(always)]
                            |token, out| {
                                let weight = sigmoid(gates[token]);
                                out.iter_mut().for_each(|out| *out *= weight);
                            },
                        );
                    })?;
                }
                out
            }
        };
        let chosen = self.shape.chosen;
        for_tokens(
            &mut out,
            hidden,
            #[inline(always)]
            |token, out| {
                for choice in token * chosen..(token + 1) * chosen {
                    let (place, (_, weight)) = (routes.places[choice], routes.choices[choice]);
                    for (out, answer) in out.iter_mut().zip(&answers[place * hidden..(place + 1) * hidden]) {
                        *out += weight * answer;
                    }
                }
            },
        );
        Ok(out)
    }

    /// Answers of experts to their members, `[tokens * chosen, hidden]`.
    fn answers(&self, x: &[f32], routes: &Routes) -> Result<Vec<f32>> {
        let hidden = self.router.inputs;
        let mut answers = vec![0f32; routes.members.len() * hidden];
        let (mut rest, mut members) = (answers.as_mut_slice(), routes.members.as_slice());
        let mut work = Vec::with_capacity(self.experts.len());
        for (expert, count) in self.experts.iter().zip(&routes.counts).filter(|(_, count)| **count > 0) {
            let (own, others) = rest.split_at_mut(count * hidden);
            let (tokens, after) = members.split_at(*count);
            (rest, members) = (others, after);
            work.push((expert, tokens, own));
        }
        work.into_par_iter().try_for_each(|(expert, tokens, own)| {
            let mut gathered = Vec::with_capacity(own.len());
            for token in tokens {
                gathered.extend_from_slice(&x[token * hidden..(token + 1) * hidden]);
            }
            expert.down.apply(expert.inner(gathered)?)?.read(|product| own.copy_from_slice(product))
        })?;
        Ok(answers)
    }

    /// Chooses experts by the router's logits, `[tokens, experts]`.
    fn route(&self, logits: &[f32]) -> Routes {
        let (count, chosen) = (self.shape.count, self.shape.chosen);
        let tokens = logits.len() / count;
        let mut scores = logits.to_vec();
        let mut choices = vec![(0, 0f32); tokens * chosen];
        scores.par_chunks_exact_mut(count).zip(choices.par_chunks_exact_mut(chosen)).for_each_init(
            Scratch::default,
            |scratch, (scores, choices)| {
                simd(
                    #[inline(always)]
                    || choose(&self.shape, &self.correction, scores, choices, scratch),
                );
            },
        );
        let mut counts = vec![0usize; count];
        for (expert, _) in &choices {
            counts[*expert] += 1;
        }
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |first, count| {
                *first += count;
                Some(*first - count)
            })
            .collect();
        let mut members = vec![0; choices.len()];
        let mut places = vec![0; choices.len()];
        for (choice, (expert, _)) in choices.iter().enumerate() {
            places[choice] = next[*expert];
            members[next[*expert]] = choice / chosen;
            next[*expert] += 1;
        }
        Routes { choices, members, places, counts }
    }
}

/// What choosing needs beside its input, kept from token to token.
#[derive(Default)]
struct Scratch {
    biased: Vec<f32>,
    worth: Vec<f32>,
    order: Vec<usize>,
}

/// Chooses the experts of one token: `scores` are the router's logits and are overwritten.
#[inline(always)]
fn choose(
    shape: &Experts,
    correction: &[f32],
    scores: &mut [f32],
    choices: &mut [(usize, f32)],
    scratch: &mut Scratch,
) {
    let Scratch { biased, worth, order } = scratch;
    match shape.scoring {
        Scoring::Softmax => softmax(scores),
        Scoring::CorrectedSigmoid => scores.iter_mut().for_each(
            #[inline(always)]
            |score| *score = sigmoid(*score),
        ),
    }
    biased.clear();
    biased.extend_from_slice(scores);
    add(biased, correction);
    if let Some(Groups { count, kept, best }) = shape.groups {
        let size = shape.count / count;
        worth.clear();
        for group in biased.chunks_exact(size) {
            rank(group, order);
            worth.push(order.iter().take(best).map(|i| group[*i]).sum());
        }
        rank(worth, order);
        for group in &order[kept..] {
            biased[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
    rank(biased, order);
    for (choice, expert) in choices.iter_mut().zip(order.iter()) {
        *choice = (*expert, scores[*expert]);
    }
    let sum: f32 = choices.iter().map(|(_, weight)| weight).sum();
    let scale = if shape.normalised { shape.scale / sum } else { shape.scale };
    choices.iter_mut().for_each(|(_, weight)| *weight *= scale);
}

/// Indices of scores, best first; of equal ones the first, so that the choice is the same everywhere.
fn rank(scores: &[f32], order: &mut Vec<usize>) {
    order.clear();
    order.extend(0..scores.len());
    order.sort_unstable_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Each expert's (gate and up, down), from modules of their own or from tensors of all experts.
fn load_experts(
    shape: &DecoderShape,
    experts: &Experts,
    tensors: &Tensors<'_>,
    layer: &str,
) -> Result<Vec<(Linear, Linear)>> {
    let (names, hidden, inner, count) = (shape.names.experts, shape.hidden, experts.intermediate, experts.count);
    let whole = |name: &str, rows: usize| (format!("{layer}{name}"), rows);
    let [joined, _] = names.joined;
    let [gate, up, down] = names.apart;
    let stacked = if tensors.has(&format!("{layer}{joined}")) {
        Some((vec![whole(joined, 2 * inner)], names.joined[1]))
    } else if tensors.has(&format!("{layer}{gate}")) {
        Some((vec![whole(gate, inner), whole(up, inner)], down))
    } else {
        None
    };
    if let Some((ups, down)) = stacked {
        let ups = tensors.slabs(&ups, count, hidden)?;
        return Ok(ups.into_iter().zip(tensors.slabs(&[whole(down, hidden)], count, inner)?).collect());
    }
    let [gate, up, down] = names.parts;
    let modules = (0..count).map(|expert| {
        let piece =
            |part: &str, rows: usize| Piece::whole(format!("{layer}{}.{expert}.{part}", names.modules), rows, Bias::No);
        let up = tensors.stack(&[piece(gate, inner), piece(up, inner)], hidden)?;
        Ok((up, tensors.stack(&[piece(down, hidden)], inner)?))
    });
    modules.collect()
}
