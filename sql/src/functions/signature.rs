//! The AI functions' names, parameters and how they are written, once for checks, hints and documentation.

/// One AI function.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// Name in lower case.
    pub(crate) name: &'static str,
    /// Other names for it.
    pub(crate) aliases: &'static [&'static str],
    /// Parameters that must be given, in order.
    pub(crate) required: &'static [&'static str],
    /// Parameters given by name only.
    pub(crate) optional: &'static [&'static str],
    /// How it is written.
    pub(crate) usage: &'static str,
}

/// All AI functions.
pub(crate) const SIGNATURES: [Signature; 5] = [
    Signature {
        name: "ai_complete",
        aliases: &["ai_gen"],
        required: &["prompt"],
        optional: &["model", "max_tokens", "system", "response_format", "pattern"],
        usage: "ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    },
    Signature {
        name: "ai_classify",
        aliases: &[],
        required: &["input", "labels"],
        optional: &["model", "with_score", "calibrate", "task_description"],
        usage: "ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    },
    Signature {
        name: "ai_extract",
        aliases: &[],
        required: &["input", "fields"],
        optional: &["model", "max_tokens"],
        usage: "ai_extract(input, 'name TYPE, …' [, model => 'name'] [, max_tokens => 256])",
    },
    Signature {
        name: "ai_filter",
        aliases: &["ai_if"],
        required: &["prompt"],
        optional: &["model"],
        usage: "ai_filter(prompt('question {0}', column) [, model => 'name'])",
    },
    Signature {
        name: "ai_embed",
        aliases: &[],
        required: &["input"],
        optional: &["model"],
        usage: "ai_embed(input [, model => 'name'])",
    },
];

/// The function of that name, if there is one.
pub(crate) fn find(name: &str) -> Option<&'static Signature> {
    SIGNATURES.iter().find(|signature| signature.name == name || signature.aliases.contains(&name))
}

/// All names, for "did you mean".
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SIGNATURES.iter().flat_map(|signature| std::iter::once(signature.name).chain(signature.aliases.iter().copied()))
}
