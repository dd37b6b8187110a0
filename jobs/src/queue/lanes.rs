//! Which lane an executor serves. Pure: it is told what waits where, and says where to go. Loading a model costs minutes,
//! so an executor stays in its lane while there is work, but not for ever while others wait.

use std::time::Duration;

/// An executor leaves a busy lane after this time if others wait.
const STAY_MAX: Duration = Duration::from_secs(600);

/// What is in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneLoad {
    /// The lane.
    pub lane: String,
    /// Shards that wait.
    pub waiting: usize,
    /// Shards that wait or run, or that a dead executor had: they are found again only by an executor of the same lane.
    pub held: usize,
}

/// The lane to serve next; `None` while there is nothing anywhere. `current` is the lane served now and for how long.
/// Whoever changes lanes finishes what is in hand first: two sets of models need not fit beside each other.
pub fn choose(current: Option<(&str, Duration)>, loads: &[LaneLoad]) -> Option<String> {
    let stay = current.map(|(lane, _)| lane.to_owned());
    let others = |load: &&LaneLoad| current.is_none_or(|(lane, _)| load.lane != lane);
    let busiest = |weight: fn(&LaneLoad) -> usize| {
        let candidates = loads.iter().filter(others).filter(|load| weight(load) > 0);
        candidates.max_by(|a, b| weight(a).cmp(&weight(b)).then(b.lane.cmp(&a.lane))).map(|load| load.lane.clone())
    };
    let waiting_here = loads.iter().any(|load| !others(&load) && load.waiting > 0);
    let stayed_long = current.is_some_and(|(_, stayed)| stayed >= STAY_MAX);
    if waiting_here && !stayed_long {
        return stay;
    }
    if let Some(lane) = busiest(|load| load.waiting) {
        return Some(lane);
    }
    let held_here = loads.iter().any(|load| !others(&load) && load.held > 0);
    if waiting_here || held_here {
        return stay;
    }
    busiest(|load| load.held).or(stay)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(loads: &[(&str, usize, usize)]) -> Vec<LaneLoad> {
        loads.iter().map(|&(lane, waiting, held)| LaneLoad { lane: lane.into(), waiting, held }).collect()
    }

    fn chosen(current: Option<(&str, u64)>, lanes: &[(&str, usize, usize)]) -> Option<String> {
        choose(current.map(|(lane, seconds)| (lane, Duration::from_secs(seconds))), &loads(lanes))
    }

    #[test]
    fn stays_while_there_is_work_and_goes_where_most_waits() {
        let lanes = [("a", 1, 1), ("b", 9, 9), ("c", 5, 5)];
        assert_eq!(chosen(None, &lanes).as_deref(), Some("b"));
        assert_eq!(chosen(Some(("a", 10)), &lanes).as_deref(), Some("a"));
        assert_eq!(chosen(Some(("a", 10)), &[("a", 0, 0), ("b", 9, 9)]).as_deref(), Some("b"));
        assert_eq!(chosen(None, &[]), None);
        assert_eq!(chosen(Some(("a", 10)), &[]).as_deref(), Some("a"));
    }

    #[test]
    fn leaves_a_busy_lane_after_a_while_if_others_wait() {
        assert_eq!(chosen(Some(("a", 600)), &[("a", 9, 9), ("b", 1, 1)]).as_deref(), Some("b"));
        assert_eq!(chosen(Some(("a", 600)), &[("a", 9, 9), ("b", 0, 3)]).as_deref(), Some("a"));
    }

    #[test]
    fn looks_after_shards_of_dead_executors_when_nothing_waits() {
        assert_eq!(chosen(None, &[("a", 0, 2)]).as_deref(), Some("a"));
        assert_eq!(chosen(Some(("a", 1)), &[("a", 0, 2), ("b", 0, 9)]).as_deref(), Some("a"));
        assert_eq!(chosen(Some(("a", 1)), &[("a", 0, 0), ("b", 0, 9)]).as_deref(), Some("b"));
    }
}
