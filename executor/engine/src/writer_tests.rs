//! Parity with transformers for every architecture that writes: the fixtures of tests/fixtures/make_decoders.py and
//! make_compatible.py, each sequence alone, in ragged batches in any order, with a shared beginning, and cut into pieces of
//! any size.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;

use crate::alone::ids;
use crate::kv::{KvCache, PageId};
use crate::linear::Precision;
use crate::model::{EngineOptions, Model, Network};
use crate::pack::Pack;
use crate::synthetic::{checkpoint, fixtures};
use crate::writer::{Head, Writer};
use crate::{compatible, decoder};

/// Largest error of a logit, as a part of the logits' range. The promise is 1e-3; sums in another order are far below it.
const ERROR_MAX: f32 = 2e-5;

/// A fixture's model and what the reference says to it.
struct Case {
    name: String,
    writer: Writer,
    cache: KvCache,
    items: Vec<Item>,
    error_max: f32,
}

struct Item {
    ids: Vec<u32>,
    range: f32,
    logits: Vec<(usize, f32)>,
    greedy: Vec<u32>,
}

fn cases() -> impl Iterator<Item = Case> {
    cases_of("decoder", Precision::F32, ERROR_MAX).chain(cases_of("compatible", Precision::F32, ERROR_MAX))
}

fn cases_of(kind: &str, dtype: Precision, error_max: f32) -> impl Iterator<Item = Case> {
    fixtures(kind).into_iter().map(move |(name, fixture)| {
        let writer = load(&fixture, dtype).unwrap_or_else(|error| panic!("{name}: {}", error.report()));
        let items = fixture["items"].as_array().unwrap().iter().map(item).collect();
        let cache = writer.cache(1024);
        Case { name, writer, cache, items, error_max }
    })
}

fn load(fixture: &Value, dtype: Precision) -> rowmill_jobs::Result<Writer> {
    let folder = checkpoint(fixture);
    let context_tokens = fixture.get("context").and_then(Value::as_u64).map(|tokens| tokens as u32);
    let options = EngineOptions { context_tokens, ..EngineOptions::default() };
    let model = Model::load_kept(folder.path(), &options, dtype)?;
    let Network::Writer(writer) = model.network else { panic!("writes no text") };
    Ok(writer)
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn item(value: &Value) -> Item {
    let pair = |pair: &Value| (pair[0].as_u64().unwrap() as usize, number(&pair[1]));
    Item {
        ids: ids(&value["ids"]),
        range: number(&value["range"][1]) - number(&value["range"][0]),
        logits: value["logits"].as_array().unwrap().iter().map(pair).collect(),
        greedy: ids(&value["greedy_ids"]),
    }
}

/// SplitMix64, so that a failure names all there is to know.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % sides as u64) as usize
    }
}

/// A row under way: what it is to be fed, how much of that the cache has, and its pages.
#[derive(Default)]
struct Row {
    ids: Vec<u32>,
    done: usize,
    table: Vec<PageId>,
}

impl Case {
    fn row(&self, item: usize) -> Row {
        Row { ids: self.items[item].ids.clone(), ..Row::default() }
    }

    /// Feeds each row the next `count` of its tokens in one batch; logits of those that have no more, by row.
    fn step(&mut self, rows: &mut [Row], count: impl Fn(usize, usize) -> usize) -> Vec<(usize, Vec<f32>)> {
        let mut pack = Pack::new();
        let mut complete = Vec::new();
        for (index, row) in rows.iter_mut().enumerate() {
            let left = row.ids.len() - row.done;
            let tokens = count(index, left).min(left);
            if tokens == 0 {
                continue;
            }
            self.cache.grow(&mut row.table, row.done + tokens).unwrap();
            pack.push(&row.ids[row.done..row.done + tokens], row.done, &row.table);
            if tokens == left {
                pack.want_last();
            }
            row.done += tokens;
            if tokens == left {
                complete.push(index);
            }
        }
        pack.finish();
        let logits = self.writer.logits(&pack, &mut self.cache, &Head::Whole).unwrap();
        let rows = logits.chunks_exact(self.writer.outputs(&Head::Whole)).map(<[f32]>::to_vec);
        complete.into_iter().zip(rows).collect()
    }

    fn release(&mut self, rows: &mut [Row]) {
        rows.iter_mut().for_each(|row| self.cache.release(&mut row.table));
    }

    fn check(&self, item: usize, logits: &[f32], how: &str) {
        let (name, item) = (&self.name, &self.items[item]);
        for (id, expected) in &item.logits {
            let error = (logits[*id] - expected).abs() / item.range;
            let tokens = item.ids.len();
            // Not `error >= …`, which NaN would pass.
            let fine = error < self.error_max;
            assert!(fine, "{name}: {tokens} tokens {how}: logit of {id} is {}, should be {expected}", logits[*id]);
        }
    }

    /// Writes on from completed rows, all in one batch, and compares with the reference's next ids.
    fn check_greedy(&mut self, rows: &mut [Row], of: &[usize], mut logits: Vec<(usize, Vec<f32>)>, how: &str) {
        let longest = of.iter().map(|item| self.items[*item].greedy.len()).max().unwrap_or(0);
        for at in 0..longest {
            for (row, logits) in &logits {
                let item = &self.items[of[*row]];
                let Some(expected) = item.greedy.get(at) else { continue };
                let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
                assert_eq!(best, *expected, "{}: {} tokens {how}: token {at} after them", self.name, item.ids.len());
                rows[*row].ids.push(best);
            }
            logits = self.step(rows, |_, left| left);
            if logits.is_empty() {
                break;
            }
        }
    }
}

#[test]
fn every_architecture_has_a_fixture() {
    for (kind, architectures) in [("decoder", &decoder::ARCHITECTURES[..]), ("compatible", &compatible::ARCHITECTURES)]
    {
        let fixtures = fixtures(kind);
        for architecture in architectures.iter().filter(|name| !name.ends_with("Model")) {
            let found = fixtures.iter().any(|(_, fixture)| fixture["config"]["architectures"][0] == *architecture);
            assert!(found, "none of {architecture}");
        }
    }
}

#[test]
fn every_sequence_alone() {
    alone(cases());
}

/// What `auto` makes of `f32` weights where the processor multiplies tiles: 16 bits of each number. Elsewhere the same tiles are
/// multiplied by plain arithmetic.
#[test]
fn every_sequence_alone_in_tiles() {
    alone(cases_of("decoder", Precision::Split, 5e-4));
}

fn alone(cases: impl Iterator<Item = Case>) {
    for mut case in cases {
        for item in 0..case.items.len() {
            let mut rows = [case.row(item)];
            let logits = case.step(&mut rows, |_, left| left);
            case.check(item, &logits[0].1, "alone");
            case.check_greedy(&mut rows, &[item], logits, "alone");
            case.release(&mut rows);
        }
    }
}

#[test]
fn in_ragged_batches_of_any_size_and_order() {
    for mut case in cases() {
        let mut dice = Dice(case.name.len() as u64);
        // With one row in the model's memory, each step of a batch feeds every row from its beginning.
        let sizes: &[usize] = if case.writer.limits().rows == 1 { &[2, 9] } else { &[2, 3, 7, 64] };
        for size in sizes.iter().copied() {
            // Every sequence is there as long as there is room; a batch of 64 would take a while with the longest ones only.
            let short = case.items.iter().position(|item| item.ids.len() > 60).unwrap_or(case.items.len());
            let choices = if size > 7 { short } else { case.items.len() };
            let of: Vec<usize> = (0..size).map(|_| dice.roll(choices)).collect();
            let mut rows: Vec<Row> = of.iter().map(|item| case.row(*item)).collect();
            let logits = case.step(&mut rows, |_, left| left);
            let how = format!("in a batch of {size}");
            for (row, logits) in &logits {
                case.check(of[*row], logits, &how);
            }
            case.check_greedy(&mut rows, &of, logits, &how);
            case.release(&mut rows);
        }
    }
}

#[test]
fn in_pieces_of_any_size() {
    for mut case in cases() {
        let mut dice = Dice(1);
        let of: Vec<usize> = (0..case.items.len()).collect();
        let mut rows: Vec<Row> = of.iter().map(|item| case.row(*item)).collect();
        while rows.iter().any(|row| row.done < row.ids.len()) {
            let sizes: Vec<usize> = rows.iter().map(|_| dice.roll(50)).collect();
            for (row, logits) in case.step(&mut rows, |row, _| sizes[row]) {
                case.check(row, &logits, "in pieces");
            }
        }
        case.release(&mut rows);
    }
}

#[test]
fn with_a_shared_beginning() {
    for mut case in cases() {
        let longest = (0..case.items.len()).max_by_key(|item| case.items[*item].ids.len()).unwrap();
        let mut first = [case.row(longest)];
        let whole = first[0].ids.len();
        // Beginnings that end at a page's edge, beside it, and in the middle; all rows fork from one that has stopped there.
        for shared in [1, 31, 32, 33, 100, whole - 1].into_iter().filter(|shared| *shared < whole) {
            first[0].ids.truncate(shared);
            case.step(&mut first, |_, left| left);
            first[0].ids = case.items[longest].ids.clone();
            let mut rows: Vec<Row> = (0..3)
                .map(|_| Row {
                    done: shared,
                    table: case.cache.fork(&first[0].table, shared).unwrap(),
                    ..case.row(longest)
                })
                .collect();
            // One of them ends in another way.
            rows[1].ids[whole - 1] ^= 1;
            let logits = case.step(&mut rows, |_, left| left);
            let how = format!("of which {shared} are shared");
            for (_, logits) in logits.iter().filter(|(row, _)| *row != 1) {
                case.check(longest, logits, &how);
            }
            assert_ne!(logits[0].1, logits[1].1, "{}: another token {how}", case.name);
            case.release(&mut rows);
        }
        case.release(&mut first);
    }
}
