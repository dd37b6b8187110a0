//! Which fault a request meets: drawn from the seed, the key and the number of the request, so that a run can be repeated.
//! Pure.

use crate::answer::Flaw;
use crate::config::Faults;
use crate::random;

/// What happens instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instead {
    Throttled,
    Broken,
    OverloadedHtml,
    Silent,
    Billing,
    NoRoom,
}

/// What happens to an answer on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Cut,
    ErrorInOk,
    Slow,
}

/// A request's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fate {
    pub(crate) instead: Option<Instead>,
    pub(crate) way: Option<Way>,
    pub(crate) flaw: Option<Flaw>,
    /// Whether a creation is done but its answer lost, and how: cut off, or an error of a gateway.
    pub(crate) lost: Option<Lost>,
}

/// How the answer to a creation is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    CutOff,
    GatewayError,
}

/// The fate of request `number` of a key, whose name stands for `key`.
pub(crate) fn fate(faults: &Faults, seed: u64, key: u64, number: u64) -> Fate {
    let drawn = |what: u64| random::draw(seed, &[key, number, what]);
    let instead = pick(
        drawn(1),
        [
            (faults.throttled, Instead::Throttled),
            (faults.server_error, Instead::Broken),
            (faults.overloaded_html, Instead::OverloadedHtml),
            (faults.silent, Instead::Silent),
            (faults.billing, Instead::Billing),
            (faults.no_room, Instead::NoRoom),
        ],
    );
    // A burst: one of the requests just before this one was throttled by chance.
    let in_burst = (1..=faults.throttled_burst.min(number))
        .any(|back| random::happens(random::draw(seed, &[key, number - back, 1]), faults.throttled));
    let way =
        pick(drawn(2), [(faults.cut_body, Way::Cut), (faults.error_in_ok, Way::ErrorInOk), (faults.slow, Way::Slow)]);
    let flaw = pick(
        drawn(3),
        [(faults.refused, Flaw::Refused), (faults.truncated, Flaw::Truncated), (faults.invalid_output, Flaw::Invalid)],
    );
    let lost = random::happens(drawn(4), faults.create_answer_lost)
        .then(|| if drawn(5).is_multiple_of(2) { Lost::CutOff } else { Lost::GatewayError });
    Fate { instead: if in_burst { Some(Instead::Throttled) } else { instead }, way, flaw, lost }
}

/// One of several, each at its rate; none for the rest.
fn pick<T: Copy, const N: usize>(number: u64, rates: [(f64, T); N]) -> Option<T> {
    let mut share = random::share(number);
    for (rate, what) in rates {
        if share < rate {
            return Some(what);
        }
        share -= rate;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_met_and_a_burst_follows_its_first() {
        let faults = Faults { throttled: 0.02, throttled_burst: 3, server_error: 0.1, ..Faults::default() };
        let fates: Vec<Fate> = (0..20_000).map(|number| fate(&faults, 7, 1, number)).collect();
        let count = |what| fates.iter().filter(|fate| fate.instead == Some(what)).count() as f64 / 20_000.0;
        assert!((0.07..0.085).contains(&count(Instead::Throttled)), "{}", count(Instead::Throttled));
        assert!((0.08..0.1).contains(&count(Instead::Broken)), "{}", count(Instead::Broken));
        let throttled = |fate: &Fate| fate.instead == Some(Instead::Throttled);
        let first = fates.iter().position(throttled).unwrap();
        assert!(fates[first..first + 4].iter().all(throttled));
    }
}
