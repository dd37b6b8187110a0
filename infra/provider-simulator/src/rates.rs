//! Rate limits in each provider's own headers.

use crate::limit::{Level, Levels};
use crate::provider::{Provider, RateHeaders};
use crate::reply::Reply;
use crate::time::rfc3339;

/// A reply with what the provider tells of an account.
pub(crate) fn tell(reply: Reply, provider: Provider, levels: &Levels, now_ms: i64) -> Reply {
    match provider.traits().rate_headers {
        RateHeaders::Absent => reply,
        RateHeaders::Openai => {
            let tokens = levels.tokens.or(levels.input_tokens);
            let reply = openai(
                reply,
                levels.requests,
                ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            );
            openai(
                reply,
                tokens,
                ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
            )
        }
        RateHeaders::Anthropic => anthropic(reply, levels, now_ms),
        RateHeaders::Mistral => {
            let reply =
                two(reply, levels.requests, ["x-ratelimit-limit-req-minute", "x-ratelimit-remaining-req-minute"]);
            let tokens = levels.tokens.or(levels.input_tokens);
            two(reply, tokens, ["x-ratelimit-limit-tokens-minute", "x-ratelimit-remaining-tokens-minute"])
        }
        RateHeaders::Fireworks => {
            let prompt = levels.input_tokens.or(levels.tokens);
            let reply = two(reply, prompt, ["x-ratelimit-limit-tokens-prompt", "x-ratelimit-remaining-tokens-prompt"]);
            let generated = ["x-ratelimit-limit-tokens-generated", "x-ratelimit-remaining-tokens-generated"];
            two(reply, levels.output_tokens, generated)
        }
        RateHeaders::Together => {
            let Some(level) = levels.requests else { return reply };
            let reply = reply.header("x-ratelimit-limit", format!("{}", level.limit as f64 / 60.0));
            reply
                .header("x-ratelimit-remaining", level.remaining.to_string())
                .header("x-ratelimit-reset", format!("{}", level.reset_ms as f64 / 1000.0))
        }
    }
}

fn two(reply: Reply, level: Option<Level>, names: [&'static str; 2]) -> Reply {
    let Some(level) = level else { return reply };
    reply.header(names[0], level.limit.to_string()).header(names[1], level.remaining.to_string())
}

fn openai(reply: Reply, level: Option<Level>, names: [&'static str; 3]) -> Reply {
    let Some(level) = level else { return reply };
    two(reply, Some(level), [names[0], names[1]]).header(names[2], go_duration(level.reset_ms))
}

fn anthropic(reply: Reply, levels: &Levels, now_ms: i64) -> Reply {
    let rows = [
        (
            levels.requests,
            [
                "anthropic-ratelimit-requests-limit",
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            ],
        ),
        (
            levels.tokens.or(levels.input_tokens),
            [
                "anthropic-ratelimit-tokens-limit",
                "anthropic-ratelimit-tokens-remaining",
                "anthropic-ratelimit-tokens-reset",
            ],
        ),
        (
            levels.input_tokens,
            [
                "anthropic-ratelimit-input-tokens-limit",
                "anthropic-ratelimit-input-tokens-remaining",
                "anthropic-ratelimit-input-tokens-reset",
            ],
        ),
        (
            levels.output_tokens,
            [
                "anthropic-ratelimit-output-tokens-limit",
                "anthropic-ratelimit-output-tokens-remaining",
                "anthropic-ratelimit-output-tokens-reset",
            ],
        ),
    ];
    rows.into_iter().fold(reply, |reply, (level, names)| {
        let Some(level) = level else { return reply };
        two(reply, Some(level), [names[0], names[1]]).header(names[2], rfc3339(now_ms + level.reset_ms))
    })
}

/// Milliseconds as Go writes a duration: `20ms`, `1.5s`, `6m0s`.
fn go_duration(ms: i64) -> String {
    let seconds = |ms: i64| format!("{}s", ms as f64 / 1000.0);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => seconds(ms),
        _ if ms < 3_600_000 => format!("{}m{}", ms / 60_000, seconds(ms % 60_000)),
        _ => format!("{}h{}m{}", ms / 3_600_000, ms / 60_000 % 60, seconds(ms % 60_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        let written = [20, 1_000, 59_990, 360_000, 179_560, 3_660_000].map(go_duration);
        assert_eq!(written, ["20ms", "1s", "59.99s", "6m0s", "2m59.56s", "1h1m0s"]);
    }
}
