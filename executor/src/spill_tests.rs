//! Spilling between two engines that say what they were asked.

use std::sync::atomic::AtomicUsize;

use rowmill_jobs::Kind;
use rowmill_jobs::infer::{Answered, Piece, RowError, TaskKind, Usage};

use super::*;

/// Answers with its name and the row; what it does with a row is in the row's first letter.
#[derive(Debug)]
struct Model {
    name: &'static str,
    /// Calls after which it fails.
    fails_after: usize,
    calls: AtomicUsize,
    delay: Duration,
    /// Whether long rows are too long for it as well.
    refuses: bool,
    /// Whether it keeps back answers to rows that begin with an f.
    filters: bool,
    asked: Mutex<Vec<String>>,
}

impl Model {
    fn new(name: &'static str) -> Self {
        let (calls, asked) = (AtomicUsize::new(0), Mutex::default());
        Self {
            name,
            fails_after: usize::MAX,
            calls,
            delay: Duration::ZERO,
            refuses: name == "here",
            filters: false,
            asked,
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Engine for Model {
    async fn infer(&self, _task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        if self.calls.fetch_add(1, Ordering::SeqCst) >= self.fails_after {
            return Err(Error::new(Kind::Incomplete, "the money is spent"));
        }
        tokio::time::sleep(self.delay * u32::try_from(requests.len()).unwrap()).await;
        let here = self.name == "here";
        Ok(requests
            .into_iter()
            .map(|request| {
                let row = request.values[0].clone();
                self.asked.lock().unwrap().push(row.clone());
                let usage = Usage { input_tokens: 1, ..Usage::default() };
                let choice =
                    |score| Answered::new(Answer::Choice { index: 0, scores: vec![score, 1.0 - score] }, usage);
                match row.as_bytes()[0] {
                    b'l' if self.refuses => Err(RowError::new(RowErrorCode::TooLong, "too long")),
                    b'f' if self.filters => Err(RowError::new(RowErrorCode::Filtered, "filtered")),
                    b'x' => Err(RowError::new(RowErrorCode::Refused, "refused")),
                    b'u' if here => Ok(choice(0.51)),
                    b's' if here => Ok(choice(0.99)),
                    _ => Ok(Answered::new(Answer::Text(format!("{} {row}", self.name)), usage)),
                }
            })
            .collect())
    }
}

#[async_trait]
impl Elsewhere for Model {
    async fn ask(&self, task: &Arc<Task>, requests: Vec<Request>) -> Partial {
        let nothing = Partial::nothing(requests.len());
        match self.infer(task, requests).await {
            Ok(outcomes) => Partial { outcomes: outcomes.into_iter().map(Some).collect(), stopped: None },
            Err(error) => Partial { stopped: Some(error), ..nothing },
        }
    }
}

fn task() -> Arc<Task> {
    let template = vec![Piece::Value(0)];
    let kind = TaskKind::Choose { labels: vec!["a".into(), "b".into()], calibrate: false };
    Arc::new(Task { model: "m".into(), kind, system: None, input: template.clone(), template })
}

fn rows(texts: &[&str]) -> Vec<Request> {
    texts.iter().map(|text| Request { values: [(*text).to_owned()].into_iter().collect() }).collect()
}

fn spill(when: &[SpillWhen]) -> Spill {
    let min_confidence = when.contains(&SpillWhen::LowConfidence).then_some(0.7);
    Spill::new(&SpillSpec { to: vec!["there".into()], when: when.to_vec(), min_confidence })
}

async fn ask(spill: &Spill, here: &Model, there: &Model, texts: &[&str]) -> Result<Vec<Outcome>> {
    spill.answer(Seats { here, there, forecast: None }, &task(), rows(texts)).await
}

/// Late after this moment.
#[derive(Debug)]
struct LateAfter(Instant);

#[async_trait]
impl Lateness for LateAfter {
    async fn is_late(&self) -> bool {
        Instant::now() >= self.0
    }
}

/// Asks for a thousand rows that are late after this.
async fn ask_late(here: &Model, there: &Model, after: Duration) -> Vec<String> {
    let texts: Vec<String> = (0..1_000).map(|row| format!("r{row}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let late = LateAfter(Instant::now() + after);
    let seats = Seats { here, there, forecast: Some(&late) };
    let outcomes = spill(&[SpillWhen::Late]).answer(seats, &task(), rows(&texts)).await.unwrap();
    let answers: Vec<String> = outcomes.iter().map(text).collect();
    for (row, answer) in texts.iter().zip(&answers) {
        assert!(answer.ends_with(&format!(" {row}")), "{row}: {answer}");
    }
    answers
}

fn from(answers: &[String], name: &str) -> usize {
    answers.iter().filter(|answer| answer.starts_with(name)).count()
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Ok(Answered { answer: Answer::Text(text), .. }) => text.clone(),
        Ok(answered) => format!("{:?}", answered.answer),
        Err(error) => error.code.to_string(),
    }
}

#[tokio::test]
async fn without_a_case_nothing_leaves() {
    let (here, there) = (Model::new("here"), Model::new("there"));
    let outcomes = ask(&spill(&[]), &here, &there, &["l1", "u2", "t3"]).await.unwrap();
    assert_eq!(text(&outcomes[0]), "too_long");
    assert!(there.asked().is_empty());
}

#[tokio::test]
async fn always_asks_nobody_here() {
    let (here, there) = (Model::new("here"), Model::new("there"));
    let outcomes = ask(&spill(&[SpillWhen::Always]), &here, &there, &["a", "b"]).await.unwrap();
    assert_eq!(outcomes.iter().map(text).collect::<Vec<_>>(), ["there a", "there b"]);
    assert!(here.asked().is_empty());
}

#[tokio::test]
async fn overflow_takes_only_the_rows_that_are_too_long() {
    let (here, there) = (Model::new("here"), Model::new("there"));
    let outcomes = ask(&spill(&[SpillWhen::Overflow]), &here, &there, &["a", "l1", "x", "u2"]).await.unwrap();
    assert_eq!(text(&outcomes[1]), "there l1");
    assert_eq!(text(&outcomes[2]), "refused");
    assert_eq!(there.asked(), ["l1"]);
}

#[tokio::test]
async fn low_confidence_asks_again_and_counts_both() {
    let (here, there) = (Model::new("here"), Model::new("there"));
    let outcomes = ask(&spill(&[SpillWhen::LowConfidence]), &here, &there, &["s1", "u2", "l3"]).await.unwrap();
    assert_eq!(there.asked(), ["u2"]);
    assert_eq!(text(&outcomes[1]), "there u2");
    assert_eq!(outcomes[1].as_ref().unwrap().usage.input_tokens, 2);
    assert_eq!(text(&outcomes[2]), "too_long");
    // A second model that refuses is no reason to lose the first one's answer.
    let (unsure, refused) = (Ok(Answered::new(Answer::Text("a".into()), Usage::default())), outcomes[2].clone());
    assert_eq!(text(&better(unsure, refused)), "a");
}

#[tokio::test]
async fn a_model_that_fails_is_replaced_for_good_if_the_job_says_so() {
    let there = Model::new("there");
    let here = Model { fails_after: 1, ..Model::new("here") };
    let unavailable = spill(&[SpillWhen::Unavailable]);
    for (row, answer) in [("a", "here a"), ("b", "there b"), ("c", "there c")] {
        let outcomes = ask(&unavailable, &here, &there, &[row]).await.unwrap();
        assert_eq!(text(&outcomes[0]), answer);
    }
    assert_eq!(here.calls.load(Ordering::SeqCst), 2, "it is not tried again");
    let here = Model { fails_after: 0, ..Model::new("here") };
    assert!(ask(&spill(&[SpillWhen::Overflow]), &here, &there, &["a"]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn late_rows_are_divided_and_each_is_answered_once_in_its_place() {
    let here = Model { delay: Duration::from_millis(100), ..Model::new("here") };
    let there = Model { delay: Duration::from_millis(20), ..Model::new("there") };
    let answers = ask_late(&here, &there, Duration::ZERO).await;
    assert_eq!(here.asked().len() + there.asked().len(), answers.len());
    assert!(from(&answers, "here") >= HERE_FIRST);
    assert!(from(&answers, "there") > from(&answers, "here"));
    assert!(answers[0].starts_with("here") && answers[999].starts_with("there"));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_not_late_sends_nothing_until_it_is() {
    let here = Model { delay: Duration::from_millis(100), ..Model::new("here") };
    let there = Model::new("there");
    let started = Instant::now();
    assert_eq!(from(&ask_late(&here, &there, Duration::from_secs(1_000)).await, "here"), 1_000);
    assert_eq!(started.elapsed(), Duration::from_secs(100), "nobody waits for the next look");
    let answers = ask_late(&here, &there, Duration::from_secs(60)).await;
    let share = from(&answers, "here");
    assert!((550..=700).contains(&share), "{share} rows in a minute and what was under way then");
}

#[tokio::test(start_paused = true)]
async fn when_the_money_is_spent_late_rows_are_answered_here() {
    let here = Model { delay: Duration::from_millis(1), ..Model::new("here") };
    let there = Model { fails_after: 2, delay: Duration::from_millis(1), ..Model::new("there") };
    let answers = ask_late(&here, &there, Duration::ZERO).await;
    assert_eq!(from(&answers, "there"), 2 * THERE);
    assert_eq!(from(&answers, "here"), 1_000 - 2 * THERE);
}

#[tokio::test(start_paused = true)]
async fn when_this_machine_fails_half_way_no_row_that_was_answered_is_asked_again() {
    let here = Model { delay: Duration::from_millis(10), fails_after: 1, ..Model::new("here") };
    let there = Model { delay: Duration::from_millis(1), ..Model::new("there") };
    let texts: Vec<String> = (0..1_000).map(|row| format!("r{row}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let late = LateAfter(Instant::now());
    let seats = Seats { here: &here, there: &there, forecast: Some(&late) };
    let both = spill(&[SpillWhen::Late, SpillWhen::Unavailable]);
    let outcomes = both.answer(seats, &task(), rows(&texts)).await.unwrap();
    for (row, outcome) in texts.iter().zip(&outcomes) {
        assert!(text(outcome).ends_with(&format!(" {row}")), "{row}: {}", text(outcome));
    }
    let (mut paid, mine) = (there.asked(), here.asked());
    assert_eq!((mine.len(), here.calls.load(Ordering::SeqCst)), (HERE_FIRST, 2), "it fails at its second call");
    assert_eq!(mine.len() + paid.len(), texts.len(), "each row is answered once");
    paid.sort_unstable();
    paid.dedup();
    assert_eq!(mine.len() + paid.len(), texts.len(), "no row is paid for twice");
}

#[tokio::test(start_paused = true)]
async fn a_late_row_that_another_model_could_not_answer_is_not_asked_there_again() {
    let here = Model { delay: Duration::from_millis(100), ..Model::new("here") };
    let there = Model { delay: Duration::from_millis(1), refuses: true, ..Model::new("there") };
    let texts: Vec<String> = (0..200).map(|row| format!("l{row}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let late = LateAfter(Instant::now());
    let seats = Seats { here: &here, there: &there, forecast: Some(&late) };
    let outcomes = spill(&[SpillWhen::Late, SpillWhen::Overflow]).answer(seats, &task(), rows(&texts)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| text(outcome) == "too_long"));
    let mut asked = there.asked();
    assert_eq!(asked.len(), texts.len(), "each row once: from the back, or because it was too long here");
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), texts.len());
}

#[tokio::test(start_paused = true)]
async fn late_rows_that_another_model_refuses_are_answered_here() {
    let here = Model { delay: Duration::from_millis(100), ..Model::new("here") };
    let there = Model { delay: Duration::from_millis(1), filters: true, ..Model::new("there") };
    let texts: Vec<String> = (0..200).map(|row| format!("f{row}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let late = LateAfter(Instant::now());
    let seats = Seats { here: &here, there: &there, forecast: Some(&late) };
    let outcomes = spill(&[SpillWhen::Late]).answer(seats, &task(), rows(&texts)).await.unwrap();
    let answers: Vec<String> = outcomes.iter().map(text).collect();
    assert_eq!(answers, texts.iter().map(|row| format!("here {row}")).collect::<Vec<_>>());
    assert_eq!((here.asked().len(), there.asked().len()), (200, 200 - HERE_FIRST), "each once, wherever it was asked");
}

#[tokio::test(start_paused = true)]
async fn when_this_machine_fails_at_refused_rows_their_errors_stand_only_if_the_job_does_without_it() {
    let texts: Vec<String> = (0..200).map(|row| format!("{}{row}", if row < 197 { 'r' } else { 'f' })).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let models = |fails_after| {
        let here = Model { delay: Duration::from_millis(100), fails_after, ..Model::new("here") };
        (here, Model { delay: Duration::from_millis(1), filters: true, ..Model::new("there") })
    };
    let late = LateAfter(Instant::now());
    // A machine that does not fail shows which of its calls is the one about refused rows: the last.
    let (here, there) = models(usize::MAX);
    let seats = Seats { here: &here, there: &there, forecast: Some(&late) };
    let outcomes = spill(&[SpillWhen::Late]).answer(seats, &task(), rows(&texts)).await.unwrap();
    assert_eq!(outcomes.iter().map(text).collect::<Vec<_>>()[197..], ["here f197", "here f198", "here f199"]);
    let last = here.calls.load(Ordering::SeqCst) - 1;
    for (when, errors) in [(&[SpillWhen::Late][..], None), (&[SpillWhen::Late, SpillWhen::Unavailable], Some(3))] {
        let (here, there) = models(last);
        let seats = Seats { here: &here, there: &there, forecast: Some(&late) };
        let answered = spill(when).answer(seats, &task(), rows(&texts)).await;
        assert_eq!(here.calls.load(Ordering::SeqCst), last + 1, "{when:?}: it failed at another call");
        let found = answered.ok().map(|outcomes| outcomes.iter().filter(|outcome| outcome.is_err()).count());
        assert_eq!(found, errors, "{when:?}");
        assert!(there.asked().len() <= 200, "{when:?}: a row was asked there twice");
    }
}

#[test]
fn rows_are_taken_from_both_ends_until_they_meet() {
    let requests = rows(&["a"; 10]);
    let shared = Shared::new(&requests);
    assert_eq!(shared.first(3), Some(0..3));
    assert_eq!(shared.last(4), Some(6..10));
    // Of four rows elsewhere the second was answered before the provider went away.
    let answer = Some(Ok(Answered::new(Answer::Text("there".into()), Usage::default())));
    let came = Partial { outcomes: vec![None, answer, None, None], stopped: Some(Error::temporary("away")) };
    assert!(shared.answered_there(6..10, came).is_some());
    assert_eq!(shared.last(1), Some(9..10));
    assert_eq!(shared.first(9), Some(3..7));
    assert_eq!(shared.first(9), Some(8..9));
    assert_eq!((shared.first(1), shared.last(1)), (None, None));
    let first = shared.state.into_inner().unwrap().first;
    assert_eq!(first.partial.open(), [0, 1, 2, 3, 4, 5, 6, 8, 9]);
    assert_eq!(first.spilled.iter().position(|spilled| *spilled), Some(7));
}
