//! What the operator did not allow: nothing leaves, by a provider's own log, and the refusal says why.

use rowmill_provider_simulator::Provider;
use rowmill_provider_simulator::config::Faults;

use super::elsewhere::{Elsewhere, Providers, SELECT, provider};

#[test]
fn nothing_leaves_unless_the_operator_and_the_job_say_so() {
    let providers = Providers::start(Faults::default());
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini'";
    let inside = provider(&providers, "openai", Provider::Openai);
    let outside = "[providers.away]\nkind = \"openai\"\nsecret = \"env:ROWMILL_TEST_KEY\"\nmodels = [\"gpt-*\"]\n\
                   [providers.away.facts]\nasserted_by = \"test\"\ntrains_on_data = false\n";
    let rule = |columns: &str, class: &str| {
        format!(
            "{outside}[[egress.allow]]\nname = \"r\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [{columns}]\n\
             data_class_max = \"{class}\"\n"
        )
    };
    let cases: Vec<(&str, Option<String>, &str, &str, &str)> = vec![
        ("no file", None, "", SELECT, "there is no rowmill.toml"),
        ("no such provider", Some("[providers.other]\nkind = \"groq\"\nmodels = [\"*\"]\n".into()), "", SELECT, "away"),
        ("no rule", Some(outside.into()), "", SELECT, "policy refuses"),
        ("another column", Some(rule("\"subject\"", "internal")), ", data_class = 'internal'", SELECT, "text"),
        ("too secret", Some(rule("\"*\"", "internal")), ", data_class = 'restricted'", SELECT, "restricted"),
        ("not classified", Some(rule("\"*\"", "internal")), "", SELECT, "restricted"),
        ("never_send", Some(inside.clone()), ", never_send = 'text'", SELECT, "text"),
        (
            "never_send under another name",
            Some(inside.clone()),
            ", never_send = 'text'",
            "SELECT id, ai_complete(b) AS answer FROM (SELECT id, upper(text) || '!' AS b FROM rows) AS r",
            "text",
        ),
        ("another kind", Some(inside.replace("kind = \"openai\"", "kind = \"groq\"")), "", SELECT, "groq"),
        ("another model", Some(inside.replace("models = [\"*\"]", "models = [\"gpt-5*\"]")), "", SELECT, "gpt-4o-mini"),
    ];
    for (what, config, options, select, word) in cases {
        let away = Elsewhere::new(model, options, select);
        if let Some(config) = &config {
            away.config(config);
        }
        for command in ["plan", "run", "preview"] {
            let said = away.say(command);
            assert_eq!(said.code, Some(1), "{what}, {command}: {said:?}");
            assert!(said.stderr.contains(word) && said.stderr.contains("hint:"), "{what}, {command}: {}", said.stderr);
        }
        assert!(!away.job.output().join("_claims").exists(), "{what}: a refused run was claimed");
    }
    assert_eq!(providers.requests(), 0, "something was sent");
}
