//! The simulation would find the bugs that its protocol is made against: with one of them planted, some seed breaks just the
//! promise that the bug is about. Debug builds only, as the bugs are.

use std::collections::BTreeMap;

use rowmill_jobs::planted::Bug;

use super::promises::Breach;
use super::seed::run;

/// Seeds within which a planted bug must show.
const SEEDS_MAX: u64 = 2_000;

/// Looks for the first seed in which a planted bug breaks a promise, until it is the one that the bug is about: a broken
/// protocol may break others first.
fn find(bug: Bug, breach: Breach) {
    let mut others: BTreeMap<Breach, u64> = BTreeMap::new();
    for seed in 0..SEEDS_MAX {
        match run(seed, Some(bug), 0) {
            Err(failure) if failure.breach == breach => {
                println!("{bug:?}: found by seed {seed}, {breach:?}: {}; before: {others:?}", failure.what);
                return;
            }
            Err(failure) => *others.entry(failure.breach).or_default() += 1,
            Ok(_) => {}
        }
    }
    panic!("{bug:?} is not found in {SEEDS_MAX} seeds, only {others:?}");
}

#[test]
fn a_part_that_is_written_over_is_found() {
    find(Bug::OverwriteParts, Breach::PartChanged);
}

#[test]
fn collecting_without_a_tombstone_is_found() {
    find(Bug::NoTombstone, Breach::PartLost);
}

#[test]
fn two_names_for_a_runs_end_are_found() {
    find(Bug::TwoOutcomes, Breach::VisibleThoughCancelled);
}

#[test]
fn a_pointer_that_moves_is_found() {
    find(Bug::MutablePointer, Breach::WentBack);
}

#[test]
fn cleaning_up_after_an_error_is_found() {
    find(Bug::DeleteOnError, Breach::PartLost);
}
