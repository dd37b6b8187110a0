//! Reads what a provider's response headers say about its rate limits, the request's name and waiting, in the styles that
//! are in use. Pure; what is no number or time is left out, never guessed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::HeaderMap;
use rowmill_jobs::allowance::{Resource, Seen};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Numbers from here on are seconds since 1970, not seconds from now.
const EPOCH_SECONDS: f64 = 1e9;
/// Numbers from here on are milliseconds since 1970.
const EPOCH_MILLISECONDS: f64 = 1e10;
/// Longest time that is believed.
pub(super) const TIME_MAX: Duration = Duration::from_secs(31 * 86_400);
/// Longest name of a request that is kept.
const REQUEST_ID_MAX: usize = 128;
/// Where providers name a request.
const REQUEST_IDS: [&str; 6] =
    ["x-request-id", "request-id", "x-amzn-requestid", "apim-request-id", "x-goog-request-id", "cf-ray"];
/// What names of rate-limit headers begin with.
const PREFIXES: [&str; 4] = ["x-ratelimit-", "anthropic-ratelimit-", "ratelimit-", "x-rate-limit-"];

/// What a provider's headers count by where their names do not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Window of `x-ratelimit-limit-requests`: a minute; with Groq a day.
    pub requests: Duration,
    /// Window of `x-ratelimit-limit`, which counts requests: a minute; with Together a second.
    pub plain: Duration,
}

impl Default for Windows {
    fn default() -> Self {
        Self { requests: MINUTE, plain: MINUTE }
    }
}

impl Windows {
    /// Groq's.
    pub const GROQ: Self = Self { requests: DAY, plain: MINUTE };
    /// Together's.
    pub const TOGETHER: Self = Self { requests: MINUTE, plain: SECOND };
}

/// What the headers say about each limit. More left than there may be is read as all of it.
pub fn rate_limits(headers: &HeaderMap, windows: Windows, now: DateTime<Utc>) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    for (name, value) in headers {
        let Some((aspect, resource, window)) = subject(name.as_str(), windows) else { continue };
        let Some(text) = value.to_str().ok().map(str::trim) else { continue };
        let at = all.iter().position(|seen| seen.resource == resource && seen.window == window).unwrap_or_else(|| {
            all.push(Seen { resource, window, limit: None, remaining: None, reset: None });
            all.len() - 1
        });
        let Some(seen) = all.get_mut(at) else { continue };
        match aspect {
            Aspect::Limit => seen.limit = count(text).or(seen.limit),
            Aspect::Remaining => seen.remaining = count(text).or(seen.remaining),
            Aspect::Reset => seen.reset = time_until(text, now).or(seen.reset),
        }
    }
    for seen in &mut all {
        if let (Some(limit), Some(remaining)) = (seen.limit, seen.remaining) {
            seen.remaining = Some(remaining.min(limit));
        }
    }
    all.retain(|seen| seen.limit.is_some() || seen.remaining.is_some());
    all
}

/// What is said about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Limit,
    Remaining,
    Reset,
}

/// What a header is about: `x-ratelimit-remaining-tokens`, `anthropic-ratelimit-input-tokens-reset`,
/// `x-ratelimit-limit-req-minute`, `x-ratelimit-limit-tokens-prompt`, `ratelimit-remaining`.
fn subject(name: &str, windows: Windows) -> Option<(Aspect, Resource, Duration)> {
    let prefix = PREFIXES.into_iter().find(|prefix| name.starts_with(prefix))?;
    let rest = name.get(prefix.len()..)?;
    let aspects = [("limit", Aspect::Limit), ("remaining", Aspect::Remaining), ("reset", Aspect::Reset)];
    let (aspect, what) = aspects.into_iter().find_map(|(word, aspect)| {
        if rest == word {
            return Some((aspect, ""));
        }
        let before = rest.strip_prefix(word).and_then(|rest| rest.strip_prefix('-'));
        let what = before.or_else(|| rest.strip_suffix(word).and_then(|rest| rest.strip_suffix('-')))?;
        Some((aspect, what))
    })?;
    let units = [("-second", SECOND), ("-minute", MINUTE), ("-hour", HOUR), ("-day", DAY)];
    let named = units.into_iter().find_map(|(unit, window)| Some((what.strip_suffix(unit)?, window)));
    let (what, window) = named.map_or((what, None), |(what, window)| (what, Some(window)));
    let (resource, usual) = match what {
        "" => (Resource::Requests, windows.plain),
        "requests" if prefix == "x-ratelimit-" => (Resource::Requests, windows.requests),
        "requests" | "req" => (Resource::Requests, MINUTE),
        "tokens" => (Resource::Tokens, MINUTE),
        "input-tokens" | "tokens-prompt" => (Resource::InputTokens, MINUTE),
        "output-tokens" | "tokens-generated" => (Resource::OutputTokens, MINUTE),
        _ => return None,
    };
    Some((aspect, resource, window.unwrap_or(usual)))
}

/// `100`, `100.0`, `100, 100;w=60`.
fn count(text: &str) -> Option<u64> {
    let number = text.split([',', ';']).next()?.trim();
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && (0.0..1e15).contains(&number)).then_some(number as u64)
}

/// A time until something: a Go duration (`6m0s`, `20ms`), RFC 3339, seconds, or seconds or milliseconds since 1970.
fn time_until(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(number) = text.parse::<f64>() {
        let since_epoch = now.timestamp_millis() as f64 / 1e3;
        let seconds = match number {
            number if number >= EPOCH_MILLISECONDS => (number / 1e3 - since_epoch).max(0.0),
            number if number >= EPOCH_SECONDS => (number - since_epoch).max(0.0),
            number => number,
        };
        return believable(seconds);
    }
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some((at.to_utc() - now).to_std().unwrap_or_default().min(TIME_MAX));
    }
    duration(text)
}

/// A duration as Go and Protobuf write it: `1h2m3.5s`, `20ms`, `34s`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        let after = rest.get(digits..)?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit = match after.get(..letters)? {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * unit;
        rest = after.get(letters..)?;
    }
    believable(seconds)
}

fn believable(seconds: f64) -> Option<Duration> {
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(TIME_MAX))
}

/// How long the provider asks to wait: `retry-after-ms`, or `retry-after` in seconds, fractions or as an HTTP date.
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return believable(milliseconds / 1e3);
    }
    let text = text("retry-after")?;
    if let Some(seconds) = number(text) {
        return believable(seconds);
    }
    // An HTTP date is an RFC 2822 date in GMT.
    let at = DateTime::parse_from_rfc2822(text).ok()?;
    Some((at.to_utc() - now).to_std().unwrap_or_default().min(TIME_MAX))
}

/// Whether the provider says itself that trying again helps (`x-should-retry`).
pub fn should_retry(headers: &HeaderMap) -> Option<bool> {
    match headers.get("x-should-retry")?.as_bytes() {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

/// The provider's name for a request.
pub fn request_id(headers: &HeaderMap) -> Option<String> {
    let name = REQUEST_IDS.into_iter().find_map(|name| headers.get(name))?.to_str().ok()?.trim();
    (!name.is_empty() && name.len() <= REQUEST_ID_MAX).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn now() -> DateTime<Utc> {
        "2026-11-01T12:00:00Z".parse().unwrap()
    }

    /// `(resource, window, limit, remaining, reset)` in seconds.
    type Row = (Resource, u64, Option<u64>, Option<u64>, Option<f64>);

    fn seen(pairs: &[(&str, &str)], windows: Windows) -> Vec<Row> {
        let mut all = rate_limits(&headers(pairs), windows, now());
        all.sort_by_key(|seen| (seen.resource, seen.window));
        let row = |seen: &Seen| {
            let reset = seen.reset.map(|reset| reset.as_secs_f64());
            (seen.resource, seen.window.as_secs(), seen.limit, seen.remaining, reset)
        };
        all.iter().map(row).collect()
    }

    #[test]
    fn openai_and_groq() {
        let pairs = [
            ("x-ratelimit-limit-requests", "14400"),
            ("x-ratelimit-remaining-requests", "14370"),
            ("x-ratelimit-reset-requests", "2m59.56s"),
            ("x-ratelimit-limit-tokens", "18000"),
            ("x-ratelimit-remaining-tokens", "17997"),
            ("x-ratelimit-reset-tokens", "20ms"),
        ];
        let tokens = (Resource::Tokens, 60, Some(18_000), Some(17_997), Some(0.02));
        let requests = |window| (Resource::Requests, window, Some(14_400), Some(14_370), Some(179.56));
        assert_eq!(seen(&pairs, Windows::default()), [requests(60), tokens]);
        assert_eq!(seen(&pairs, Windows::GROQ), [requests(86_400), tokens]);
    }

    #[test]
    fn anthropic() {
        let pairs = [
            ("anthropic-ratelimit-requests-limit", "4000"),
            ("anthropic-ratelimit-requests-remaining", "3999"),
            ("anthropic-ratelimit-requests-reset", "2026-11-01T12:00:15Z"),
            ("anthropic-ratelimit-input-tokens-limit", "400000"),
            ("anthropic-ratelimit-input-tokens-remaining", "399000"),
            ("anthropic-ratelimit-output-tokens-remaining", "80000"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-11-01T11:59:00Z"),
        ];
        let expected = [
            (Resource::Requests, 60, Some(4_000), Some(3_999), Some(15.0)),
            (Resource::InputTokens, 60, Some(400_000), Some(399_000), None),
            (Resource::OutputTokens, 60, None, Some(80_000), Some(0.0)),
        ];
        // A header of Groq's style would be a day's; Anthropic's never are.
        assert_eq!(seen(&pairs, Windows::GROQ), expected);
    }

    #[test]
    fn mistral_fireworks_cerebras() {
        let mistral = [
            ("x-ratelimit-limit-tokens-minute", "500000"),
            ("x-ratelimit-remaining-tokens-minute", "499986"),
            ("x-ratelimit-tokens-query-cost", "14"),
            ("x-ratelimit-limit-req-minute", "60"),
            ("x-ratelimit-remaining-req-minute", "59"),
        ];
        let expected = [
            (Resource::Requests, 60, Some(60), Some(59), None),
            (Resource::Tokens, 60, Some(500_000), Some(499_986), None),
        ];
        assert_eq!(seen(&mistral, Windows::default()), expected);
        let fireworks =
            [("x-ratelimit-limit-tokens-prompt", "3600000"), ("x-ratelimit-limit-tokens-generated", "36000")];
        let expected = [
            (Resource::InputTokens, 60, Some(3_600_000), None, None),
            (Resource::OutputTokens, 60, Some(36_000), None, None),
        ];
        assert_eq!(seen(&fireworks, Windows::default()), expected);
        let day = [("x-ratelimit-limit-requests-day", "1000"), ("x-ratelimit-reset-requests-day", "33011.4")];
        assert_eq!(seen(&day, Windows::default()), [(Resource::Requests, 86_400, Some(1_000), None, Some(33_011.4))]);
    }

    #[test]
    fn plain_headers_and_times_since_1970() {
        let together = [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1")];
        assert_eq!(seen(&together, Windows::TOGETHER), [(Resource::Requests, 1, Some(10), Some(3), Some(1.0))]);
        for reset in ["1793534460", "1793534460000"] {
            let pairs =
                [("ratelimit-limit", "100, 100;w=60"), ("ratelimit-remaining", "120"), ("ratelimit-reset", reset)];
            let expected = [(Resource::Requests, 60, Some(100), Some(100), Some(60.0))];
            assert_eq!(seen(&pairs, Windows::default()), expected, "{reset}");
        }
    }

    #[test]
    fn nonsense_says_nothing() {
        let pairs = [
            ("x-ratelimit-limit-requests", "unlimited"),
            ("x-ratelimit-remaining-requests", "-1"),
            ("x-ratelimit-reset-requests", "soon"),
            ("x-ratelimit-limit-images", "5"),
            ("x-ratelimit-limit-tokens", "NaN"),
            ("x-ratelimit-reset-tokens", "1s"),
        ];
        assert_eq!(seen(&pairs, Windows::default()), []);
    }

    #[test]
    fn waiting_in_all_its_forms() {
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(Pairs, Option<f64>); 9] = [
            (&[("retry-after", "1")], Some(1.0)),
            (&[("retry-after", "0.25")], Some(0.25)),
            (&[("retry-after", "Sun, 01 Nov 2026 12:00:30 GMT")], Some(30.0)),
            (&[("retry-after", "Sun, 01 Nov 2026 11:00:00 GMT")], Some(0.0)),
            (&[("retry-after-ms", "1500"), ("retry-after", "9")], Some(1.5)),
            (&[("retry-after-ms", "later"), ("retry-after", "9")], Some(9.0)),
            (&[("retry-after", "-3")], None),
            (&[("retry-after", "1e300")], None),
            (&[("retry-after", "99999999")], Some(31.0 * 86_400.0)),
        ];
        for (pairs, expected) in cases {
            assert_eq!(retry_after(&headers(pairs), now()).map(|time| time.as_secs_f64()), expected, "{pairs:?}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [("6m0s", 360.0), ("1h2m3.5s", 3_723.5), ("34.074824224s", 34.074_824_224), ("0s", 0.0)]
        {
            let seconds = duration(text).unwrap().as_secs_f64();
            assert!((seconds - expected).abs() < 1e-6, "{text}: {seconds}");
        }
        for text in ["", "s", "5", "5x", "1..2s", "-1s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn requests_have_names() {
        assert_eq!(request_id(&headers(&[("cf-ray", "b"), ("request-id", "req_1")])).as_deref(), Some("req_1"));
        assert_eq!(request_id(&headers(&[("x-request-id", &"a".repeat(500))])), None);
        assert_eq!(should_retry(&headers(&[("x-should-retry", "false")])), Some(false));
    }
}
