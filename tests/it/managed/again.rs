//! Rows of a batch whose answers have the wrong form, and which are asked again online: also where the model is not the
//! job's own but one that it spills to.

use rowmill_provider_simulator::config::Batches;
use rowmill_provider_simulator::{Config, Provider};

use super::elsewhere::{Elsewhere, Providers, ROWS, provider};

#[test]
fn a_model_that_rows_spill_to_in_batches_is_asked_again_online() {
    let batches = Batches { validating_ms: 0, row_ms: 1, finalizing_ms: 0, row_invalid: 0.5, ..Batches::default() };
    let providers = Providers::with(Config { batches, ..Config::default() });
    let model = "engine = 'openai', provider = 'away', name = 'gpt-4o-mini', lane = 'batch'";
    let job = Elsewhere::new(model, "", "SELECT id, ai_extract(text, 'product STRING') AS facts FROM rows");
    job.rewrite(
        "CREATE JOB ask WITH (",
        "CREATE MODEL own WITH (engine = 'echo');\nCREATE JOB ask WITH (spill_to = 'away', spill_when = 'always', ",
    );
    job.rewrite("model = 'away'", "model = 'own'");
    let batches = "[providers.away.facts]\nasserted_by = \"test\"\nbatch_allowed = true\nbatch_retention = 30\n\
                   [providers.away.batches]\nlook_seconds_min = 1\nlook_seconds_max = 1\n";
    job.config(&format!("{}{batches}", provider(&providers, "openai", Provider::Openai)));
    let summary = job.say("run").ok().summary();
    assert_eq!((summary["rows"].as_i64(), summary["errors"].as_u64()), (Some(ROWS), Some(0)), "{summary}");
    let online = providers.simulator.journal().count(Provider::Openai, "/chat/completions").requests;
    assert!(online > 0 && online < ROWS as u64, "{online} rows were asked again");
}
