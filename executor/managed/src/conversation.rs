//! [`Conversation`]: everything that is said with a provider for one row, or for one pack of texts to embed, until each row
//! has an outcome. A state machine without I/O: it says what to send, is told what came, and says what next.
//!
//! What is a row's error and what stops everything is decided here. A row's own: it is too long, the model declined, a filter
//! held it back, its answer was cut or has not the shape, the provider does not take it. Everything's: keys and permissions,
//! money, a cap or cancellation, and a provider that does not answer. A row is never given up because the provider is away.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rowmill_jobs::infer::{Answer, Answered, Outcome, Request, RowError, RowErrorCode, Usage};
use rowmill_jobs::{Error, Kind, Result};

use crate::call::{Call, CallError, Class, Estimate, Reply, Spent};
use crate::dialect::{self, End, Said, Unreadable};
use crate::question::Question;
use crate::structured::{Format, Formatted, Misfit};
use crate::tokens::Estimates;
use crate::transport::errors;
use crate::{choice, vectors};

/// How often a response that cannot be read is asked for again.
const REPEATS_MAX: u32 = 2;

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Send [`Conversation::call`].
    Ask,
    /// Every row has its outcome, in their order.
    Done(Vec<Outcome>),
    /// The target cannot go on, whatever the row: fails the shard.
    Failed(Error),
}

/// What came of a reply.
#[derive(Debug)]
pub struct Turn {
    /// What the call took, money apart. Settle with it, and tell it to [`Estimates::observe`].
    pub spent: Spent,
    /// What to do next.
    pub step: Step,
}

/// The talk about one row, or one pack of texts.
#[derive(Debug)]
pub struct Conversation {
    question: Arc<Question>,
    texts: Vec<String>,
    outcomes: Vec<Option<Outcome>>,
    /// Rows without outcome, as they will be asked; the first now.
    waiting: VecDeque<Vec<usize>>,
    tries: Tries,
    /// The call that was asked for last.
    asked: Asked,
    /// Tokens for the first of `waiting` so far.
    usage: Usage,
}

/// How the first of the waiting rows was asked so far.
#[derive(Debug, Default)]
struct Tries {
    /// Why its answer was not usable, if it is asked for again with that.
    misfit: Option<String>,
    /// It gets all the tokens that the task allows.
    widened: bool,
    /// Responses that could not be read.
    repeats: u32,
}

/// Numbers of a call.
#[derive(Debug, Default)]
struct Asked {
    estimate: Estimate,
    /// Limit of the output tokens, thinking included.
    limit: u32,
}

impl Conversation {
    /// Begins to ask about rows: one of [`Question::packs`].
    pub fn start(question: &Arc<Question>, rows: &[Request]) -> Result<Self> {
        let texts = rows.iter().map(|row| question.text(row)).collect::<Result<Vec<String>>>()?;
        Ok(Self::of_texts(question, texts))
    }

    /// Begins to ask about texts: what [`Question`] makes of rows.
    pub(crate) fn of_texts(question: &Arc<Question>, texts: Vec<String>) -> Self {
        let (mut outcomes, mut waiting) = (vec![None; texts.len()], VecDeque::new());
        if question.form.is_some() {
            waiting.extend((0..texts.len()).map(|row| vec![row]));
        } else {
            // Providers refuse a whole pack for one empty text.
            let (empty, full): (Vec<usize>, Vec<usize>) = (0..texts.len()).partition(|row| texts[*row].is_empty());
            for row in empty {
                let message = "an empty text has no tokens, so nothing can be computed of it";
                outcomes[row] = Some(Err(RowError::new(RowErrorCode::InvalidOutput, message)));
            }
            let packs = question.packs_of(full.iter().map(|row| texts[*row].len()));
            waiting.extend(packs.into_iter().map(|pack| full[pack].to_vec()));
        }
        Self {
            question: Arc::clone(question),
            texts,
            outcomes,
            waiting,
            tries: Tries::default(),
            asked: Asked::default(),
            usage: Usage::default(),
        }
    }

    /// What to do before anything was sent: [`Step::Done`] where nothing needs to be.
    pub fn first(&mut self) -> Step {
        self.next()
    }

    /// The call to send now.
    pub fn call(&mut self, estimates: &Estimates) -> Call {
        let question = &self.question;
        let (body, limit) = match (&question.form, self.waiting.front()) {
            (Some(form), Some(rows)) => {
                let limit = if self.tries.widened { question.limit() } else { estimates.output.budget() };
                let text = self.texts_of(rows).concat();
                let body = match &self.tries.misfit {
                    None => form.fill(&text, limit),
                    Some(misfit) => form.fill(&format!("{text}\n\n{}", repair(misfit)), limit),
                };
                (body, limit)
            }
            (None, Some(rows)) => (dialect::embedding(&question.target, &self.texts_of(rows)), 0),
            (_, None) => (Bytes::new(), 0),
        };
        let output_tokens = if question.form.is_some() { estimates.output.tokens() } else { 0 };
        let estimate = Estimate { input_tokens: estimates.input.tokens(body.len()), output_tokens, nano_usd_max: 0 };
        self.asked = Asked { estimate, limit };
        Call { path: question.path.clone(), body: Some(body), estimate }
    }

    /// The most output tokens that the last call may write: what its greatest cost is reckoned with.
    pub fn output_tokens_max(&self) -> u64 {
        u64::from(self.asked.limit)
    }

    /// The provider answered the last call.
    pub fn on_reply(&mut self, reply: &Reply) -> Turn {
        let Some(rows) = self.waiting.front().cloned() else {
            return Turn { spent: Spent::default(), step: self.next() };
        };
        if self.question.form.is_some() {
            self.on_completion(&reply.body)
        } else {
            self.on_embeddings(&rows, &reply.body)
        }
    }

    /// The last call has no reply, after whoever sends has tried as often as it does.
    pub fn on_error(&mut self, error: &CallError) -> Step {
        let Some(rows) = self.waiting.front().cloned() else { return self.next() };
        let at = |kind: Kind| Error::new(kind, error.to_string()).with("provider", &self.question.target.provider);
        let code = match error.class {
            Class::Throttled | Class::Transient => return Step::Failed(at(Kind::Temporary)),
            Class::Stopped => return Step::Failed(at(Kind::Incomplete)),
            Class::Billing => {
                return Step::Failed(at(Kind::Invalid).hint("the provider's account has no money left; then resume"));
            }
            Class::Denied => {
                return Step::Failed(at(Kind::Invalid).hint("check the key, what it may do, and the model's name"));
            }
            Class::InvalidOutput => {
                return self.on_misfit(Misfit("it is not of the form that was asked for".to_owned()));
            }
            Class::TooLong => RowErrorCode::TooLong,
            Class::Refused if error.code.as_deref().is_some_and(errors::is_filter) => RowErrorCode::Filtered,
            Class::Refused => RowErrorCode::Provider,
        };
        if rows.len() > 1 {
            // One row of the pack may be the reason: the others shall not pay for it.
            let (first, second) = rows.split_at(rows.len() / 2);
            self.leave();
            self.waiting.push_front(second.to_vec());
            self.waiting.push_front(first.to_vec());
            return Step::Ask;
        }
        self.end(Err(RowError::new(code, error.to_string())))
    }

    /// What would be asked again is not: the answer that came stays unusable.
    pub(crate) fn give_up(&mut self) -> Step {
        let error = match &self.tries.misfit {
            Some(misfit) => RowError::new(
                RowErrorCode::InvalidOutput,
                format!("the model's answer was not usable: {misfit}; it was not asked again"),
            ),
            None => RowError::new(RowErrorCode::Provider, "the provider's answer cannot be read"),
        };
        self.end(Err(error))
    }

    /// Nothing is asked any more: this is what the waiting rows come to.
    pub(crate) fn end_with(&mut self, error: RowError) -> Step {
        self.end(Err(error))
    }

    fn on_completion(&mut self, body: &[u8]) -> Turn {
        let said = match dialect::read_completion(&self.question.target, body) {
            Ok(said) => said,
            Err(Unreadable(message)) => return self.on_unreadable(&message),
        };
        let spent = said.spent.unwrap_or_else(|| self.unsaid(said.text.len()));
        self.count(&spent);
        let fail = |code, message: &str| Err(RowError::new(code, message));
        let step = match &said.end {
            End::Refused => self.end(fail(RowErrorCode::Refused, "the model declined to answer")),
            End::Filtered => self.end(fail(RowErrorCode::Filtered, "the provider's content filter held it back")),
            End::Broken(message) => self.repeat(message),
            End::Length if self.asked.limit < self.question.limit() => {
                self.tries.widened = true;
                Step::Ask
            }
            End::Length => {
                let message = format!("the answer was not whole after {} tokens", self.question.tokens_max);
                self.end(fail(RowErrorCode::Truncated, &message))
            }
            End::Whole => match self.question.format.read(&said.text) {
                Ok(formatted) => {
                    let answer = self.answer(formatted, &said);
                    self.end(Ok(Answered::new(answer, self.usage)))
                }
                Err(misfit) => self.on_misfit(misfit),
            },
        };
        Turn { spent, step }
    }

    fn on_embeddings(&mut self, rows: &[usize], body: &[u8]) -> Turn {
        let embedded = match dialect::read_embeddings(&self.question.target, body, rows.len()) {
            Ok(embedded) => embedded,
            Err(Unreadable(message)) => return self.on_unreadable(&message),
        };
        let spent = embedded.spent.unwrap_or_else(|| self.unsaid(0));
        for vector in &embedded.vectors {
            let wanted = match self.question.target.dimensions {
                0 => *self.question.dimensions.get_or_init(|| vector.len()),
                dimensions => dimensions as usize,
            };
            if vector.len() != wanted {
                let message = format!("the model gave a vector of length {}, expected is {wanted}", vector.len());
                let error = Error::invalid(message).with("provider", &self.question.target.provider);
                return Turn { spent, step: Step::Failed(error) };
            }
        }
        let lengths: Vec<usize> = self.texts_of(rows).iter().map(|text| text.len()).collect();
        let shares = vectors::shares(spent.input_tokens, &lengths);
        for ((row, vector), input_tokens) in rows.iter().zip(embedded.vectors).zip(shares) {
            let usage = Usage { input_tokens, ..Usage::default() };
            let answered = vectors::normalised(vector).map(|vector| Answered::new(Answer::Vector(vector), usage));
            self.outcomes[*row] = Some(
                answered
                    .ok_or_else(|| RowError::new(RowErrorCode::Numeric, "the model computed a vector without length")),
            );
        }
        self.leave();
        Turn { spent, step: self.next() }
    }

    fn texts_of(&self, rows: &[usize]) -> Vec<&str> {
        rows.iter().map(|row| self.texts[*row].as_str()).collect()
    }

    fn answer(&self, formatted: Formatted, said: &Said) -> Answer {
        match formatted {
            Formatted::Text(text) => Answer::Text(text),
            Formatted::Label(index) => Answer::Choice { index, scores: self.scores(index, said).unwrap_or_default() },
        }
    }

    /// Probabilities of the labels, if the tokens of the answer tell.
    fn scores(&self, chosen: usize, said: &Said) -> Option<Vec<f32>> {
        let Format::Label { labels, json, .. } = &self.question.format else { return None };
        let text =
            String::from_utf8(said.tokens.iter().flat_map(|token| token.bytes.iter().copied()).collect()).ok()?;
        let (endings, start) = if json.is_some() {
            // As JSON has them, without the first quotation mark: the last one is what ends a label.
            let endings: Vec<String> = labels
                .iter()
                .map(|label| serde_json::Value::from(label.as_str()).to_string()[1..].to_owned())
                .collect();
            let start = text.rfind(&format!("\"{}", endings.get(chosen)?))? + 1;
            (endings, start)
        } else {
            (labels.clone(), text.rfind(labels.get(chosen)?.as_str())?)
        };
        let place = start..start + endings.get(chosen)?.len();
        choice::scores(&said.tokens, place, &endings, chosen)
    }

    /// An answer without the form that was asked for: asked for once more, with what is wrong.
    fn on_misfit(&mut self, Misfit(message): Misfit) -> Step {
        if self.tries.misfit.is_none() && self.question.form.is_some() {
            self.tries.misfit = Some(message);
            return Step::Ask;
        }
        let message = format!("the model's answer was not usable twice: {message}");
        self.end(Err(RowError::new(RowErrorCode::InvalidOutput, message)))
    }

    /// A response that cannot be read was paid for all the same; how much is not known.
    fn on_unreadable(&mut self, message: &str) -> Turn {
        let Estimate { input_tokens, output_tokens, .. } = self.asked.estimate;
        let spent = Spent { input_tokens, output_tokens, ..Spent::default() };
        self.count(&spent);
        Turn { spent, step: self.repeat(message) }
    }

    fn repeat(&mut self, message: &str) -> Step {
        self.tries.repeats += 1;
        if self.tries.repeats <= REPEATS_MAX {
            return Step::Ask;
        }
        let times = self.tries.repeats;
        self.end(Err(RowError::new(RowErrorCode::Provider, format!("{message}, {times} times"))))
    }

    /// What a call took whose response does not say: what was estimated, and the answer's bytes.
    fn unsaid(&self, answer_bytes: usize) -> Spent {
        let output = answer_bytes as f64 / self.question.target.tokenizer.bytes_per_token();
        let input_tokens = self.asked.estimate.input_tokens;
        Spent { input_tokens, output_tokens: output.ceil() as u64, ..Spent::default() }
    }

    fn count(&mut self, spent: &Spent) {
        let Spent { input_tokens, cached_tokens, output_tokens, .. } = *spent;
        self.usage += Usage { input_tokens, cached_tokens, output_tokens, nano_usd: 0 };
    }

    /// Ends all rows that are being asked.
    fn end(&mut self, outcome: Outcome) -> Step {
        for row in self.waiting.front().cloned().unwrap_or_default() {
            self.outcomes[row] = Some(outcome.clone());
        }
        self.leave();
        self.next()
    }

    fn leave(&mut self) {
        self.waiting.pop_front();
        self.tries = Tries::default();
        self.usage = Usage::default();
    }

    fn next(&mut self) -> Step {
        if !self.waiting.is_empty() {
            return Step::Ask;
        }
        let lost = || RowError::new(RowErrorCode::Provider, "the row was lost in a conversation");
        Step::Done(self.outcomes.iter_mut().map(|outcome| outcome.take().unwrap_or_else(|| Err(lost()))).collect())
    }
}

/// What is said to the model after the row's text, when its first answer was not usable.
fn repair(misfit: &str) -> String {
    format!("(An earlier answer was not usable: {misfit}. Answer again, in exactly the form that is asked for.)")
}
