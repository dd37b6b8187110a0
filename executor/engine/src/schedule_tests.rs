//! Tests of the scheduler's decisions: step by step in small, and in large with tables of rows that are played through with
//! pages counted, answers of any length and steps that fail.

use crate::attention::BLOCK;
use crate::line::{Demand, Line};
use crate::prefixes::Prefixes;
use crate::schedule::{Limits, Need, Relief, Scheduler, Shared, Slice, Work, pages_needed};

const WIDE: Limits = Limits { tokens: 1024, rows: 128 };

fn row(row: usize, from: usize, to: usize, completes: bool) -> Slice {
    Slice { work: Work::Row(row), from, to, completes }
}

fn node(node: usize, from: usize, to: usize, completes: bool) -> Slice {
    Slice { work: Work::Node(node), from, to, completes }
}

fn need(tokens: usize, pages: usize, after: usize) -> Need {
    Need { tokens, pages, after }
}

fn shared(tokens: usize, pages: usize, parent: Option<usize>) -> Shared {
    Shared { tokens, pages, parent }
}

const NONE: [usize; 0] = [];
/// A first beginning of no tokens.
const NOTHING: Shared = Shared { tokens: 0, pages: 0, parent: None };

#[test]
fn rows_begin_where_what_they_share_ends_in_the_very_step_that_computes_it() {
    let nodes = [shared(10, 0, None), shared(40, 2, Some(0)), shared(55, 1, Some(1))];
    let rows = [(4, need(60, 1, 2)), (2, need(58, 1, 2)), (9, need(42, 1, 1)), (7, need(12, 1, 0))];
    let mut scheduler = Scheduler::new(&nodes, 10, rows, 9, WIDE);
    let first = [
        node(1, 10, 40, true),
        node(2, 40, 55, true),
        row(4, 55, 60, true),
        row(2, 55, 58, true),
        row(9, 40, 42, true),
        row(7, 10, 12, true),
    ];
    assert_eq!(scheduler.step(), first);
    assert_eq!(scheduler.finish(4), NONE);
    assert_eq!(scheduler.finish(2), [2], "no row needs it any more");
    assert_eq!(scheduler.finish(9), [1]);
    assert_eq!(scheduler.finish(7), NONE, "the first one is not the scheduler's to close");
    assert!(scheduler.step().is_empty() && scheduler.is_computed(0));
}

#[test]
fn a_beginning_stays_while_a_row_below_it_waits() {
    let nodes = [NOTHING, shared(40, 2, Some(0))];
    let rows = [(0, need(50, 2, 1)), (1, need(50, 2, 1)), (2, need(50, 2, 1))];
    let mut scheduler = Scheduler::new(&nodes, 0, rows, 4, WIDE);
    assert_eq!(scheduler.step(), [node(1, 0, 40, true), row(0, 40, 50, true)]);
    assert!(scheduler.step().is_empty(), "no pages for row 1 beside row 0");
    assert_eq!(scheduler.finish(0), NONE);
    assert_eq!(scheduler.step(), [row(1, 40, 50, true)]);
    assert_eq!(scheduler.finish(1), NONE);
    assert_eq!(scheduler.step(), [row(2, 40, 50, true)]);
    assert_eq!(scheduler.finish(2), [1]);
}

#[test]
fn a_beginning_whose_step_is_undone_is_not_computed() {
    for computed in [0, 10, 40] {
        let mut scheduler = Scheduler::new(&[shared(40, 0, None)], computed, [(0, need(50, 2, 0))], 4, WIDE);
        let step = scheduler.step();
        assert!(scheduler.is_computed(0));
        scheduler.undo(&step);
        assert_eq!(scheduler.is_computed(0), computed == 40);
    }
}

#[test]
fn long_prompts_and_long_beginnings_are_cut_and_writers_go_first() {
    let limits = Limits { tokens: 50, rows: 8 };
    let mut scheduler = Scheduler::new(&[NOTHING], 0, [(0, need(10, 1, 0)), (1, need(100, 4, 0))], 10, limits);
    assert_eq!(scheduler.step(), [row(0, 0, 10, true), row(1, 0, 40, false)]);
    scheduler.append(0, 1);
    assert_eq!(scheduler.step(), [row(0, 10, 11, true), row(1, 40, 89, false)]);
    scheduler.finish(0);
    assert_eq!(scheduler.step(), [row(1, 89, 100, true)]);
    scheduler.finish(1);
    assert!(scheduler.step().is_empty());
    let nodes = [shared(70, 0, None), shared(140, 3, Some(0))];
    let mut scheduler = Scheduler::new(&nodes, 0, [(0, need(150, 1, 1))], 10, limits);
    assert_eq!(scheduler.step(), [node(0, 0, 50, false)]);
    assert!(!scheduler.is_computed(0));
    assert_eq!(scheduler.step(), [node(0, 50, 70, true), node(1, 70, 100, false)]);
    assert_eq!(scheduler.step(), [node(1, 100, 140, true), row(0, 140, 150, true)]);
}

#[test]
fn rows_wait_for_pages_and_for_a_place() {
    let first = [shared(32, 0, None)];
    let mut scheduler = Scheduler::new(&first, 32, (0..3).map(|row| (row, need(40, 2, 0))), 3, WIDE);
    assert_eq!(scheduler.step(), [row(0, 32, 40, true)]);
    assert!(scheduler.step().is_empty(), "row 0 has nothing to do until it is given a token");
    scheduler.finish(0);
    assert_eq!(scheduler.step(), [row(1, 32, 40, true)]);
    let limits = Limits { tokens: 100, rows: 2 };
    let mut scheduler = Scheduler::new(&[NOTHING], 0, (0..3).map(|row| (row, need(4, 1, 0))), 30, limits);
    assert_eq!(scheduler.step().len(), 2);
}

#[test]
fn pages_of_a_beginning_are_not_needed_again() {
    assert_eq!(pages_needed(70, 0), 3);
    assert_eq!(pages_needed(70, 64), 1);
    assert_eq!(pages_needed(70, 63), 2);
}

#[test]
fn a_row_that_outgrows_its_pages_gets_more_or_waits_behind_all_others() {
    let nodes = [NOTHING, shared(32, 1, Some(0))];
    let rows = [(0, need(40, 1, 1)), (1, need(40, 1, 1)), (2, need(40, 1, 1))];
    let mut scheduler = Scheduler::new(&nodes, 0, rows, 4, Limits { tokens: 1024, rows: 2 });
    assert_eq!(scheduler.step().len(), 3);
    scheduler.append(0, 25);
    assert!(scheduler.extend(0, 1), "one page was free");
    scheduler.append(1, 25);
    assert!(!scheduler.extend(1, 1));
    assert_eq!(scheduler.put_back(1, 1), NONE);
    assert_eq!(scheduler.step(), [row(0, 40, 65, true), row(2, 32, 40, true)]);
    scheduler.finish(0);
    assert_eq!(scheduler.finish(2), [1]);
    assert_eq!(scheduler.step(), [row(1, 0, 65, true)], "all of it again, its beginning too");
}

#[test]
fn a_step_that_lacks_memory_is_halved_and_a_row_that_lacks_it_alone_fails() {
    let nodes = [NOTHING, shared(40, 2, Some(0))];
    let rows = (0..4).map(|row| (row, need(60, 1, if row < 3 { 1 } else { 0 })));
    let mut scheduler = Scheduler::new(&nodes, 0, rows, 20, WIDE);
    let slices = scheduler.step();
    assert_eq!(slices.len(), 5);
    let relief = scheduler.relieve(&slices);
    // The beginning is not there after all: the rows below it begin once more. Row 3 runs on without it.
    assert_eq!((relief.undone, relief.put_back, relief.closed, relief.failed), (vec![2, 1, 0], vec![], vec![], None));
    // Row 3 runs beside the beginning of the others, then alone.
    for expected in [vec![row(3, 0, 60, true), node(1, 0, 20, false)], vec![row(3, 0, 40, false)]] {
        let slices = scheduler.step();
        assert_eq!(slices, expected);
        assert_eq!(scheduler.relieve(&slices).failed, None);
    }
    let slices = scheduler.step();
    assert_eq!(slices, [row(3, 0, BLOCK, false)]);
    assert_eq!(scheduler.relieve(&slices).failed, Some(3), "a page of tokens of one row");
    assert_eq!(scheduler.step(), [node(1, 0, BLOCK, false)]);
    assert_eq!(scheduler.step(), [node(1, BLOCK, 40, true), row(0, 40, 60, true)]);
}

#[test]
fn a_row_that_was_not_in_a_step_that_lacks_memory_does_not_fail() {
    let limits = Limits { tokens: 1024, rows: 1 };
    let mut scheduler = Scheduler::new(&[NOTHING], 0, (0..2).map(|row| (row, need(20, 2, 0))), 4, limits);
    assert_eq!(scheduler.step(), [row(0, 0, 20, true)]);
    scheduler.append(0, 1);
    // Begun before it is known that row 0 has ended with the step before.
    let slices = scheduler.step();
    assert_eq!(slices, [row(0, 20, 21, true)]);
    scheduler.finish(0);
    assert_eq!(scheduler.relieve(&slices), Relief::default());
    assert_eq!(scheduler.step(), [row(1, 0, 20, true)]);
    // A row that waits for its token is not at fault either, and goes on beside fewer.
    let limits = Limits { tokens: 1024, rows: 2 };
    let mut scheduler = Scheduler::new(&[NOTHING], 0, (0..2).map(|row| (row, need(20, 2, 0))), 4, limits);
    scheduler.step();
    scheduler.append(0, 1);
    let slices = scheduler.step();
    let relief = scheduler.relieve(&slices);
    assert_eq!((slices, relief.put_back, relief.failed), (vec![row(0, 20, 21, true)], vec![1], None));
    let slices = scheduler.step();
    assert_eq!(slices, [row(0, 20, 21, true)]);
    assert_eq!(scheduler.relieve(&slices).failed, Some(0));
}

/// Numbers that are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// What came of playing a table through.
#[derive(Debug, Default)]
struct Played {
    computed: usize,
    steps: usize,
    ended: Vec<bool>,
    failed: usize,
}

/// Plays rows through as the engine does, without a model: `answers` are the lengths of the answers, `fails` says which
/// steps lack memory. Checks that nobody computes what is not there, or holds more than there is.
fn play(
    rows: &[Vec<u32>],
    answers: &[usize],
    pages: usize,
    limits: Limits,
    mut fails: impl FnMut(&[Slice]) -> bool,
) -> Played {
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let prefixes = Prefixes::of(&slices, 0);
    let mut reserved: Vec<usize> = rows.iter().zip(answers).map(|(row, answer)| row.len() + 4.min(*answer)).collect();
    let demands: Vec<Demand> = rows
        .iter()
        .zip(&reserved)
        .map(|(row, reserved)| Demand { tokens: row.len(), reserved: *reserved, extra_pages: 0 })
        .collect();
    let line = Line::of(&prefixes, &demands, pages);
    let mut played = Played { ended: vec![false; rows.len()], ..Played::default() };
    for row in &line.refused {
        played.ended[*row] = true;
        played.failed += 1;
    }
    let mut scheduler = Scheduler::new(&line.nodes, 0, line.rows.clone(), pages, limits);
    let mut node_done = vec![0; line.nodes.len()];
    let mut after: Vec<usize> = vec![0; rows.len()];
    for (row, need) in &line.rows {
        after[*row] = need.after;
    }
    let (mut row_done, mut written) = (vec![0; rows.len()], vec![0; rows.len()]);
    loop {
        let slices = scheduler.step();
        if slices.is_empty() {
            return played;
        }
        played.steps += 1;
        assert!(played.steps < 100_000, "it goes on for ever");
        assert!(slices.iter().map(|slice| slice.to - slice.from).sum::<usize>() <= limits.tokens);
        if fails(&slices) {
            let relief = scheduler.relieve(&slices);
            relief.closed.iter().for_each(|node| node_done[*node] = 0);
            relief.undone.iter().chain(&relief.put_back).for_each(|row| row_done[*row] = 0);
            relief.put_back.iter().for_each(|row| after[*row] = 0);
            if let Some(row) = relief.failed {
                assert!(!std::mem::replace(&mut played.ended[row], true));
                played.failed += 1;
            }
            continue;
        }
        for slice in slices {
            played.computed += slice.to - slice.from;
            let (done, parent) = match slice.work {
                Work::Node(node) => {
                    (&mut node_done[node], line.nodes[node].parent.map_or((0, 0), |p| (p, line.nodes[p].tokens)))
                }
                Work::Row(row) => (&mut row_done[row], (after[row], line.nodes[after[row]].tokens)),
            };
            if *done == 0 {
                assert_eq!(slice.from, parent.1, "{slice:?} begins where its beginning ends");
            } else {
                assert_eq!(slice.from, *done, "{slice:?} goes on where it was");
            }
            *done = slice.to;
            if slice.from == parent.1 && parent.1 > 0 {
                assert_eq!(node_done[parent.0], parent.1, "the beginning of {slice:?} is there");
            }
            let Work::Row(row) = slice.work else { continue };
            if !slice.completes {
                continue;
            }
            assert_eq!(slice.to, rows[row].len() + written[row]);
            if written[row] == answers[row] {
                assert!(!std::mem::replace(&mut played.ended[row], true));
                for node in scheduler.finish(row) {
                    node_done[node] = 0;
                }
                continue;
            }
            written[row] += 1;
            scheduler.append(row, 1);
            let tokens = rows[row].len() + written[row];
            if tokens > reserved[row] {
                let larger = tokens + (reserved[row] - rows[row].len());
                let more = pages_needed(larger, 0) - pages_needed(reserved[row], 0);
                reserved[row] = larger;
                if !scheduler.extend(row, more) {
                    (row_done[row], after[row]) = (0, 0);
                    for node in scheduler.put_back(row, more) {
                        node_done[node] = 0;
                    }
                }
            }
        }
    }
}

/// A table as a join makes them: a template, then columns with few values, then one with many.
fn joined(rows: usize, dice: &mut Dice) -> Vec<Vec<u32>> {
    let value = |column: u32, value: usize, tokens: usize| {
        (0..tokens as u32).map(move |t| column * 1_000_000 + value as u32 * 1000 + t)
    };
    (0..rows)
        .map(|row| {
            let (country, product) = (dice.below(3), dice.below(12));
            let text = 5 + dice.below(30);
            (0..45).chain(value(1, country, 20)).chain(value(2, product, 37)).chain(value(3, row, text)).collect()
        })
        .collect()
}

#[test]
fn a_join_like_table_is_computed_once_for_each_distinct_beginning() {
    let rows = joined(500, &mut Dice(1));
    let distinct: std::collections::HashSet<&[u32]> =
        rows.iter().flat_map(|row| (1..=row.len()).map(|end| &row[..end])).collect();
    let all: usize = rows.iter().map(Vec::len).sum();
    // Much room and little, wide steps and narrow ones: what is computed is the same.
    for (pages, tokens, width) in [(10_000, 1024, 128), (40, 1024, 128), (9, 64, 3), (9, 1024, 128)] {
        let played = play(&rows, &vec![0; 500], pages, Limits { tokens, rows: width }, |_| false);
        assert!(played.ended.iter().all(|ended| *ended) && played.failed == 0);
        assert_eq!(played.computed, distinct.len(), "{pages} pages, steps of {tokens} tokens and {width} rows");
    }
    assert!(distinct.len() * 5 < all, "{} of {all}", distinct.len());
}

#[test]
fn every_row_ends_whatever_the_memory_the_answers_and_the_failures() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let count = 1 + dice.below(60);
        let rows = joined(count, &mut dice);
        let answers: Vec<usize> = (0..rows.len()).map(|_| dice.below(40)).collect();
        let longest = rows.iter().zip(&answers).map(|(row, answer)| row.len() + 2 * answer + 4).max().unwrap_or(0);
        let pages = longest.div_ceil(BLOCK) + dice.below(20);
        let limits = Limits { tokens: 1 + dice.below(300), rows: 1 + dice.below(12) };
        let one_in = 3 + dice.below(40);
        let mut failures = dice.below(12);
        let played = play(&rows, &answers, pages, limits, |_| {
            let fails = failures > 0 && dice.below(one_in) == 0;
            failures -= usize::from(fails);
            fails
        });
        assert!(played.ended.iter().all(|ended| *ended), "seed {seed}: {played:?}");
    }
}

#[test]
fn a_memory_that_holds_few_tokens_fails_only_rows_that_are_too_much_alone() {
    let mut dice = Dice(5);
    let rows = joined(80, &mut dice);
    let narrow = |slices: &[Slice]| slices.iter().map(|slice| slice.to - slice.from).sum::<usize>() > 100;
    let played = play(&rows, &[3; 80], 1000, WIDE, narrow);
    assert_eq!((played.failed, played.ended.iter().filter(|ended| **ended).count()), (0, 80));
    let poisoned = |slices: &[Slice]| slices.iter().any(|slice| slice.work == Work::Row(17));
    let played = play(&rows, &[3; 80], 1000, WIDE, poisoned);
    assert_eq!((played.failed, played.ended.iter().filter(|ended| **ended).count()), (1, 80));
}
