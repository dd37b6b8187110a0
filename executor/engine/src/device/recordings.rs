//! Steps that a device is told in one word. A step of small rows is hundreds of kernels, each too short to hide what asking for
//! it costs; a device that has recorded such a step plays it again at once. Which steps those are, how many rows they are filled
//! up to so that few recordings serve all, and when one is made, is decided here; what a recording is, is the device's.

use std::collections::HashMap;

use crate::pack::Pack;

/// Numbers of rows that steps are filled up to. Beyond the last, kernels take longer than asking for them. Filling costs little: up
/// to some 180 rows a step takes as long as reading the weights.
const FILLED: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 192, 256];

/// How many rows a batch is to be filled up to, where each of its rows grows by one token and what follows is wanted of all.
pub(crate) fn filled(pack: &Pack) -> Option<usize> {
    let rows = pack.tables.len();
    let alike = [pack.tokens(), pack.wanted.len(), pack.writes.len()].iter().all(|count| *count == rows);
    FILLED.into_iter().find(|filled| alike && (1..=*filled).contains(&rows))
}

/// What a device is to do with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Kernel by kernel.
    Asked,
    /// The same, and record it.
    Recorded,
    /// Play the recording.
    Played,
}

/// A device's recordings.
#[derive(Debug)]
pub(crate) struct Recordings<R> {
    /// For each number of rows that was met; `None`: met once, not recorded yet.
    known: HashMap<usize, Option<R>>,
    refused: bool,
}

impl<R> Recordings<R> {
    pub(crate) fn new() -> Self {
        Self { known: HashMap::new(), refused: false }
    }

    /// What to do with the next step of so many rows. The first one is asked for as ever: what a device loads or chooses when it
    /// meets a size for the first time cannot be recorded.
    pub(crate) fn way(&mut self, rows: usize) -> Way {
        if self.refused {
            return Way::Asked;
        }
        match self.known.get(&rows) {
            Some(Some(_)) => Way::Played,
            Some(None) => Way::Recorded,
            None => {
                self.known.insert(rows, None);
                Way::Asked
            }
        }
    }

    /// The recording of a step of so many rows.
    pub(crate) fn get(&self, rows: usize) -> Option<&R> {
        self.known.get(&rows).and_then(Option::as_ref)
    }

    /// Keeps a recording.
    pub(crate) fn keep(&mut self, rows: usize, recording: R) {
        self.known.insert(rows, Some(recording));
    }

    /// Forgets all: buffers that they name are elsewhere now.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// The device cannot record: every step is asked for from now on.
    pub(crate) fn refuse(&mut self) {
        self.forget();
        self.refused = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(tokens: &[usize]) -> Pack {
        let mut pack = Pack::new();
        for (row, tokens) in tokens.iter().enumerate() {
            pack.push(&vec![7; *tokens], 3, &[row]);
            pack.want_last();
        }
        pack.finish();
        pack
    }

    #[test]
    fn batches_whose_rows_all_grow_by_one_token_are_filled_up_to_few_sizes() {
        let mut sizes = Vec::new();
        for rows in 1..=256 {
            let filled = filled(&pack(&vec![1; rows])).unwrap_or_default();
            assert!(filled >= rows && filled < 2 * rows, "{rows}: {filled}");
            sizes.push(filled);
        }
        assert!(sizes.is_sorted());
        sizes.dedup();
        assert_eq!(sizes, FILLED);
        assert_eq!(filled(&pack(&[1; 257])), None, "long enough to be asked for kernel by kernel");
    }

    #[test]
    fn other_batches_are_not_filled() {
        assert_eq!(filled(&Pack::new()), None);
        assert_eq!(filled(&pack(&[1, 2, 1])), None, "a row reads");
        let mut unwanted = pack(&[1, 1]);
        unwanted.push(&[7], 3, &[2]);
        assert_eq!(filled(&unwanted), None, "of a beginning nothing is wanted");
        let mut copied = Pack::new();
        copied.push(&[7], 3, &[0]);
        copied.want_last();
        copied.mirror(0, 8, 9);
        copied.finish();
        assert_eq!(filled(&copied), None, "a token goes to two pages");
    }

    #[test]
    fn a_step_is_asked_for_then_recorded_then_played() {
        let mut recordings = Recordings::new();
        assert_eq!((recordings.way(4), recordings.way(8)), (Way::Asked, Way::Asked));
        assert_eq!(recordings.way(4), Way::Recorded);
        recordings.keep(4, "four");
        assert_eq!((recordings.way(4), recordings.get(4)), (Way::Played, Some(&"four")));
        assert_eq!((recordings.way(8), recordings.get(8)), (Way::Recorded, None));
        recordings.forget();
        assert_eq!((recordings.way(4), recordings.get(4)), (Way::Asked, None), "buffers have moved");
        recordings.keep(4, "four");
        recordings.refuse();
        assert_eq!((recordings.way(4), recordings.way(4), recordings.get(4)), (Way::Asked, Way::Asked, None));
    }
}
