//! Who stands in line for the cache, in which order, after which beginning: the tree of beginnings and what rows need become
//! what the scheduler starts with. Pure. It lets nobody in line who could wait for ever.

use crate::prefixes::Prefixes;
use crate::schedule::{Need, Shared, pages_needed};

/// What a row asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// Tokens it begins with.
    pub(crate) tokens: usize,
    /// Tokens that its pages are reserved for.
    pub(crate) reserved: usize,
    /// Pages it takes beside those.
    pub(crate) extra_pages: usize,
}

/// The line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Beginnings. The first one's pages are nobody's need: it has them.
    pub(crate) nodes: Vec<Shared>,
    /// Rows with what they need, in the order of the tree; behind them those that fit only without beginnings of their own.
    pub(crate) rows: Vec<(usize, Need)>,
    /// Rows that fit in no way.
    pub(crate) refused: Vec<usize>,
}

impl Line {
    /// Forms it. `demands` are those of the rows by index; there are `pages` for all of them.
    pub(crate) fn of(prefixes: &Prefixes, demands: &[Demand], pages: usize) -> Self {
        let mut nodes: Vec<Shared> = Vec::with_capacity(prefixes.nodes.len());
        // Pages of a beginning and of those it continues.
        let mut path_pages: Vec<usize> = Vec::with_capacity(prefixes.nodes.len());
        for node in &prefixes.nodes {
            let own = node.parent.map_or(0, |parent| pages_needed(node.tokens, nodes[parent].tokens));
            path_pages.push(own + node.parent.map_or(0, |parent| path_pages[parent]));
            nodes.push(Shared { tokens: node.tokens, pages: own, parent: node.parent });
        }
        let (mut rows, mut alone, mut refused) = (Vec::with_capacity(demands.len()), Vec::new(), Vec::new());
        for (row, after) in &prefixes.rows {
            let demand = demands[*row];
            let need = |after: usize| {
                let pages = pages_needed(demand.reserved, nodes[after].tokens) + demand.extra_pages;
                Need { tokens: demand.tokens, pages, after }
            };
            if need(*after).pages + path_pages[*after] <= pages {
                rows.push((*row, need(*after)));
            } else if need(0).pages <= pages {
                alone.push((*row, need(0)));
            } else {
                refused.push(*row);
            }
        }
        rows.append(&mut alone);
        Self { nodes, rows, refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::BLOCK;

    #[test]
    fn rows_that_do_not_fit_below_their_beginnings_stand_last_without_them_or_nowhere() {
        let common: Vec<u32> = (0..40).collect();
        let rows: Vec<Vec<u32>> = (0..3).map(|i| common.iter().copied().chain([100 + i]).collect()).collect();
        let prefixes = Prefixes::of(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0);
        let demand = |reserved| Demand { tokens: 41, reserved, extra_pages: 0 };
        // A page of the beginning is shared and one is not, so row 1 takes a page more below it than alone.
        let line = Line::of(&prefixes, &[demand(2 * BLOCK), demand(3 * BLOCK), demand(4 * BLOCK)], 3);
        assert_eq!(line.nodes[1], Shared { tokens: 40, pages: 2, parent: Some(0) });
        assert_eq!(
            line.rows,
            [(0, Need { tokens: 41, pages: 1, after: 1 }), (1, Need { tokens: 41, pages: 3, after: 0 })]
        );
        assert_eq!(line.refused, [2]);
    }
}
