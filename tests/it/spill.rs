//! Work of models of this machine that goes elsewhere, in each case that a job can name.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use rowmill_provider_simulator::config::{Batches, Faults, Reach};
use rowmill_provider_simulator::{Config, Provider};

use crate::lanes::{BATCHES, created, quick};
use crate::managed::elsewhere::{KEY, Providers, provider};
use crate::support::{Job, Said, integers, read_table, repository, rowmill, strings};

/// A job whose model `own` is on this machine and whose model `away` is a simulated provider's.
pub struct Spilling {
    pub job: Job,
    pub providers: Providers,
}

impl Spilling {
    /// `own` are the options of CREATE MODEL, `options` further ones of CREATE JOB.
    fn new(own: &str, options: &str, select: &str) -> Self {
        Self::at(Providers::start(Faults::default()), own, options, select)
    }

    pub fn at(providers: Providers, own: &str, options: &str, select: &str) -> Self {
        let job = Job::new(&format!(
            "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
             CREATE MODEL own WITH ({own});\n\
             CREATE MODEL away WITH (engine = 'openai', provider = 'away', name = 'gpt-4o-mini');\n\
             CREATE JOB ask WITH (output = 'out', logical_date = '2026-11-20', key = 'id', model = 'own', {options}) AS\n\
             {select};\n"
        ));
        let audit = format!("[audit]\nfolder = \"{}\"\n", job.folder.path().join("audit").display());
        let config = format!("{}{audit}", provider(&providers, "openai", Provider::Openai));
        std::fs::write(job.folder.path().join("rowmill.toml"), config).expect("the configuration is written");
        Self { job, providers }
    }

    /// `rowmill <command> job.sql` with the operator's configuration.
    pub fn command(&self, command: &str) -> Command {
        let (job, config) = (self.job.path(), self.job.folder.path().join("rowmill.toml"));
        let mut command = rowmill(&[command, job.to_str().expect("UTF-8"), "--json", "--config"]);
        command.arg(config).env("ROWMILL_TEST_KEY", KEY).env("TMPDIR", self.job.folder.path());
        command
    }

    pub fn say(&self, command: &str) -> Said {
        Said::of(&mut self.command(command))
    }

    /// Begins a run, and kills it as soon as it has a plan.
    fn kill_once_planned(&self) {
        let mut process = self.command("run").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let plan =
            || std::fs::read_dir(self.job.output()).ok()?.flatten().find(|run| run.path().join("_plan.json").exists());
        let started = Instant::now();
        while plan().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120), "no plan");
            std::thread::sleep(Duration::from_millis(2));
        }
        process.kill().expect("it can be killed");
        process.wait().expect("it ended");
    }

    /// The published rows of a run that succeeds without errors.
    pub fn published(&self) -> Vec<RecordBatch> {
        let summary = self.say("run").ok().summary();
        assert_eq!(summary["errors"], 0, "{summary}");
        read_table(summary["published"].as_str().expect("a folder").as_ref())
    }

    /// Changes the operator's configuration.
    pub fn configure(&self, from: &str, to: &str) {
        let path = self.job.folder.path().join("rowmill.toml");
        let text = std::fs::read_to_string(&path).expect("the configuration");
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replacen(from, to, 1)).expect("written");
    }

    /// Changes the job file.
    pub fn edit(&self, from: &str, to: &str) {
        let path = self.job.path();
        let text = std::fs::read_to_string(&path).expect("the job file");
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).expect("written");
    }
}

/// A job that spills all its rows to `away`, one at a time, and to `second` when that is away. (Of many calls at once only
/// some try a provider that fails, so it would be minutes until one gave up.)
pub fn chain(away: SocketAddr, second: &Providers, options: &str) -> Spilling {
    let options = format!("{options}, spill_to = 'away, second', spill_when = 'always'");
    // Its own provider is the second; the first is put before it.
    let spilling = Spilling::at(Providers::start(Faults::default()), "engine = 'echo'", &options, COMPLETE);
    let own = spilling.providers.simulator.base(Provider::Openai);
    let base = own.replace(&spilling.providers.simulator.address().to_string(), &away.to_string());
    assert_ne!(own, base);
    spilling.configure(&own, &base);
    let further = format!(
        "[providers.second]\nkind = \"openai\"\nbase_url = \"{}\"\nmodels = [\"*\"]\n\
         secret = \"env:ROWMILL_TEST_KEY\"\n[providers.away.limits]\nconcurrency = 1\n[[egress.allow]]",
        second.simulator.base(Provider::Openai)
    );
    spilling.configure("[[egress.allow]]", &further);
    spilling.configure("providers = [\"away\"]", "providers = [\"away\", \"second\"]");
    let model = "CREATE MODEL second WITH (engine = 'openai', provider = 'second', name = 'gpt-4o-mini');\nCREATE JOB";
    spilling.edit("CREATE JOB", model);
    spilling
}

/// Who answered which column in place of the model that was asked, by row.
fn spilled(batches: &[RecordBatch]) -> Vec<Vec<(String, String)>> {
    let of = |batch: &RecordBatch| {
        let list = batch.column_by_name("_spilled").expect("the column").as_list::<i32>().clone();
        (0..list.len())
            .map(|row| {
                let items = if list.is_null(row) { return Vec::new() } else { list.value(row) };
                let items = items.as_struct();
                let (columns, models) = (items.column(0).as_string::<i32>(), items.column(1).as_string::<i32>());
                (0..items.len()).map(|at| (columns.value(at).to_owned(), models.value(at).to_owned())).collect()
            })
            .collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

/// How many rows have an answer of `away`.
fn count(batches: &[RecordBatch]) -> usize {
    spilled(batches).iter().filter(|models| !models.is_empty()).count()
}

pub fn table(job: &Job, texts: &[String]) {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..texts.len() as i64));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    job.with_file("a", vec![("id", ids), ("text", texts)]);
}

fn triage() -> String {
    let model = repository().join("examples/tickets/models/triage");
    format!("engine = 'candle', source = '{}'", model.display())
}

const CLASSIFY: &str = "SELECT id, ai_classify(text, ['billing', 'bug', 'how-to', 'other']) AS topic FROM rows";
pub const COMPLETE: &str = "SELECT id, ai_complete(text) AS answer FROM rows";

#[test]
fn one_word_of_the_job_file_sends_all_work_elsewhere_and_back_with_the_same_schema() {
    let spilling = Spilling::new("engine = 'echo'", "spill_to = 'away', spill_when = 'never'", COMPLETE);
    spilling.job.with_rows("a", 0, 50);
    let here = spilling.published();
    assert_eq!((count(&here), spilling.providers.requests()), (0, 0));
    spilling.edit("'never'", "'always'");
    spilling.edit("2026-11-20", "2026-11-21");
    let away = spilling.published();
    assert_eq!((count(&away), spilling.providers.requests()), (50, 50));
    assert_eq!(spilled(&away)[7], [("answer".to_owned(), "away".to_owned())]);
    assert_eq!(here[0].schema().fields(), away[0].schema().fields());
    assert_ne!(strings(&here, "answer"), strings(&away, "answer"));
    spilling.edit("'always'", "'never'");
    spilling.edit("2026-11-21", "2026-11-22");
    assert_eq!(strings(&spilling.published(), "answer"), strings(&here, "answer"));
    assert_eq!(spilling.providers.requests(), 50);
}

#[test]
fn rows_that_are_too_long_are_asked_elsewhere_and_no_others() {
    let spilling = Spilling::new(&triage(), "spill_to = 'away', spill_when = 'overflow'", CLASSIFY);
    let mut texts: Vec<String> = (0..20).map(|row| format!("The invoice {row} is wrong")).collect();
    texts[7] = "the printer burns ".repeat(4_000);
    table(&spilling.job, &texts);
    let rows = spilling.published();
    let elsewhere: Vec<usize> = (0..20).filter(|row| !spilled(&rows)[*row].is_empty()).collect();
    assert_eq!((elsewhere, spilling.providers.requests()), (vec![7], 1));
    assert!(strings(&rows, "topic").iter().all(Option::is_some));
}

#[test]
fn rows_that_the_model_is_not_sure_of_are_asked_elsewhere() {
    let options = "spill_to = 'away', spill_when = 'low_confidence', min_confidence = 0.9";
    let scored = CLASSIFY.replace("'other'])", "'other'], with_score => true)");
    let spilling = Spilling::new(&triage(), "spill_to = 'away', spill_when = 'never'", &scored);
    let texts: Vec<String> = (0..60)
        .map(|row| if row % 2 == 0 { format!("Refund invoice {row}") } else { format!("zq {row} ??") })
        .collect();
    table(&spilling.job, &texts);
    let alone = spilling.published();
    let score = |batches: &[RecordBatch]| -> Vec<Option<f64>> {
        let of = |batch: &RecordBatch| {
            let topic = batch.column_by_name("topic").expect("the column").as_struct().clone();
            let scores = topic.column_by_name("score").expect("the score").clone();
            scores.as_primitive::<arrow::datatypes::Float64Type>().iter().collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    };
    let unsure = score(&alone).iter().filter(|score| score.is_some_and(|score| score < 0.9)).count();
    assert!((1..60).contains(&unsure), "{unsure} of 60 rows are unsure: the test needs both kinds");
    spilling.edit("spill_to = 'away', spill_when = 'never'", options);
    spilling.edit("2026-11-20", "2026-11-21");
    let rows = spilling.published();
    assert_eq!((count(&rows), spilling.providers.requests()), (unsure, unsure as u64));
    for (row, models) in spilled(&rows).iter().enumerate() {
        let alone = score(&alone)[row].expect("the model's own probability");
        assert_eq!(alone < 0.9, !models.is_empty(), "row {row}");
        assert!(!models.is_empty() || score(&rows)[row] == Some(alone), "row {row}");
    }
}

#[test]
fn a_model_that_is_gone_is_replaced_if_the_job_says_so() {
    for (case, code) in [("overflow", 1), ("unavailable", 0)] {
        let model = tempfile::tempdir().expect("a folder");
        for entry in
            std::fs::read_dir(repository().join("examples/tickets/models/triage")).expect("the model").flatten()
        {
            std::fs::copy(entry.path(), model.path().join(entry.file_name())).expect("copied");
        }
        let own = format!("engine = 'candle', source = '{}'", model.path().display());
        let options = format!("shard_rows = 500, spill_to = 'away', spill_when = '{case}'");
        let spilling = Spilling::new(&own, &options, CLASSIFY);
        spilling.job.with_rows("a", 0, 2_000);
        // Planned while the model was there; what goes on finds it gone.
        spilling.kill_once_planned();
        drop(model);
        let said = spilling.say("run");
        assert_eq!(said.code, Some(code), "{case}: {said:?}");
        if code == 0 {
            let summary = said.summary();
            let rows = read_table(summary["published"].as_str().expect("a folder").as_ref());
            assert_eq!(integers(&rows, "id").len(), 2_000);
            assert!(count(&rows) > 0);
        }
        assert_eq!(spilling.providers.requests() > 0, code == 0, "{case}");
    }
}

#[test]
fn a_late_run_shares_its_rows_with_a_provider_and_a_timely_one_does_not() {
    let options = "shard_rows = 200, spill_to = 'away', spill_when = 'late', deadline = '2999-01-01T06:00:00+01:00'";
    let spilling = Spilling::new("engine = 'echo', delay_ms = 10", options, COMPLETE);
    spilling.job.with_rows("a", 0, 200);
    assert_eq!((count(&spilling.published()), spilling.providers.requests()), (0, 0));
    spilling.edit("2999-01-01", "2020-01-01");
    spilling.edit("2026-11-20", "2026-11-21");
    let rows = spilling.published();
    assert_eq!(integers(&rows, "id"), (0..200).collect::<Vec<_>>());
    let away = count(&rows);
    assert!((1..200).contains(&away), "{away} of 200 rows went elsewhere");
    assert_eq!(spilling.providers.requests(), away as u64);
    // What this machine answered is the row itself.
    for (row, (models, answer)) in spilled(&rows).iter().zip(strings(&rows, "answer")).enumerate() {
        assert_eq!(answer.as_deref() == Some(&format!("text of row {row}")), models.is_empty(), "row {row}");
    }
}

#[test]
fn rows_that_spill_into_batches_go_together_wherever_that_model_stands() {
    let second = Providers::with(Config { batches: quick(), ..Config::default() });
    // Nobody is there.
    let away = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let spilling = chain(away, &second, "shard_rows = 5000");
    spilling.edit("provider = 'second', ", "provider = 'second', lane = 'batch', ");
    spilling.configure("[[egress.allow]]", &format!("{}[[egress.allow]]", BATCHES.replace(".away.", ".second.")));
    spilling.job.with_rows("a", 0, 1_500);
    assert_eq!(count(&spilling.published()), 1_500);
    assert_eq!(created(&second, Provider::Openai), 1);
}

/// A job that spills its 40 rows to `away`, in batches, and to `second`, online, when that is away.
fn batches_first(away: &Providers, second: &Providers) -> Spilling {
    let spilling = chain(away.simulator.address(), second, "shard_rows = 20");
    spilling.edit("provider = 'away', ", "provider = 'away', lane = 'batch', ");
    spilling.configure("[[egress.allow]]", &format!("{BATCHES}[[egress.allow]]"));
    spilling.job.with_rows("a", 0, 40);
    spilling
}

/// Providers whose batch interface takes nothing.
fn without_batches() -> Providers {
    let faults = Faults { throttled: 1.0, reach: Reach::Batches, ..Faults::default() };
    Providers::with(Config { faults, ..Config::default() })
}

#[test]
fn rows_that_a_batch_interface_does_not_take_are_asked_of_the_next_model_and_stay_there() {
    let (away, second) = (without_batches(), Providers::start(Faults::default()));
    let spilling = batches_first(&away, &second);
    let rows = spilling.published();
    assert_eq!((count(&rows), integers(&rows, "id")), (40, (0..40).collect()));
    let models: Vec<_> = spilled(&rows).into_iter().flatten().map(|(_, model)| model).collect();
    assert!(models.len() == 40 && models.iter().all(|model| model == "second"), "{models:?}");
    assert_eq!(second.requests(), 40);
}

#[test]
fn rows_of_batches_that_may_be_under_way_are_asked_of_nobody_else() {
    let slow = Batches { row_ms: 600_000, ..quick() };
    let there = Providers::with(Config { batches: slow, ..Config::default() });
    let (away, second) = (without_batches(), Providers::start(Faults::default()));
    let spilling = batches_first(&there, &second);
    let start = |slots: &str| {
        let mut command = spilling.command("run");
        command.args(["--slots", slots]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
    };
    let until = |process: &mut Child, what: &str, condition: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !condition() {
            assert!(process.try_wait().expect("a process").is_none(), "it ended before {what}");
            assert!(started.elapsed() < Duration::from_secs(120), "not in time: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        process.kill().expect("it can be killed");
        process.wait().expect("it ended");
    };
    // One slot: one shard has its batch, the other none, when the provider goes away.
    until(&mut start("1"), "a batch is under way", &|| created(&there, Provider::Openai) > 0);
    let [here, gone] = [&there, &away].map(|providers| providers.simulator.address().to_string());
    spilling.configure(&here, &gone);
    // Longer than it takes to find out that no batch can be created: after five failures, pauses get longer, from a second on.
    until(&mut start("2"), "one shard was asked elsewhere, of the other it looks", &|| {
        spilling.job.parts().len() == 1 && away.requests() >= 9
    });
    assert_eq!((created(&there, Provider::Openai), second.requests()), (1, 20), "rows of a batch were asked elsewhere");
    spilling.configure(&gone, &here);
    there.simulator.time().advance(Duration::from_secs(24 * 3_600));
    let rows = spilling.published();
    assert_eq!((count(&rows), integers(&rows, "id")), (40, (0..40).collect()));
    let (batches, _) = there.simulator.journal().paid_answers(Provider::Openai);
    let (online, again) = second.simulator.journal().paid_answers(Provider::Openai);
    assert_eq!((batches, online, again), (20, 20, 0));
}

#[test]
fn a_model_that_is_gone_is_missed_if_one_of_its_calls_does_not_spill() {
    let model = tempfile::tempdir().expect("a folder");
    for entry in
        std::fs::read_dir(repository().join("examples/tickets/models/mini-embed")).expect("the model").flatten()
    {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), model.path().join(entry.file_name())).expect("copied");
        }
    }
    let own = format!("engine = 'candle', source = '{}'", model.path().display());
    let select =
        "SELECT id, ai_classify(text, ['bug', 'other'], model => 'echo') AS topic, ai_embed(text) AS vector FROM rows";
    let spilling = Spilling::new(&own, "shard_rows = 500, spill_to = 'away', spill_when = 'always'", select);
    spilling.edit("CREATE JOB", "CREATE MODEL echo WITH (engine = 'echo');\nCREATE JOB");
    spilling.job.with_rows("a", 0, 1_000);
    spilling.kill_once_planned();
    let folder = model.path().display().to_string();
    drop(model);
    let said = spilling.say("run");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains(&folder), "{}", said.stderr);
}

#[test]
fn nothing_spills_that_the_operator_does_not_allow() {
    let cases = [
        ("spill_to = 'away', spill_when = 'overflow'", false, "rowmill.toml"),
        ("spill_to = 'away', spill_when = 'overflow', never_send = 'text'", true, "text"),
    ];
    for (options, configured, word) in cases {
        let spilling = Spilling::new("engine = 'echo'", options, COMPLETE);
        spilling.job.with_rows("a", 0, 10);
        if !configured {
            std::fs::write(spilling.job.folder.path().join("rowmill.toml"), "").expect("written");
        }
        for command in ["plan", "run", "preview"] {
            let said = spilling.say(command);
            assert_eq!(said.code, Some(1), "{options}, {command}: {said:?}");
            assert!(said.stderr.contains(word), "{options}, {command}: {}", said.stderr);
        }
        assert_eq!(spilling.providers.requests(), 0, "{options}");
        // What never spills needs nobody's leave.
        spilling.edit("'overflow'", "'never'");
        assert_eq!(count(&spilling.published()), 0);
    }
}

#[test]
fn a_plan_says_what_a_run_would_cost_here_and_in_each_lane_and_sends_nothing() {
    let spilling = Spilling::new("engine = 'echo', delay_ms = 2", "spill_to = 'away', spill_when = 'always'", COMPLETE);
    spilling.job.with_rows("a", 0, 1_000);
    let prices = "[local]\nusd_per_machine_hour = \"36\"\n\
                  [prices.\"away/gpt-4o-mini\"]\ninput = \"1\"\noutput = \"4\"\nbatch = { input = \"0.5\", output = \"2\" }\n[audit]";
    spilling.configure("[audit]", prices);
    let planned = spilling.say("plan").ok().summary();
    let estimate = &planned["estimate"];
    let call = &estimate["calls"][0];
    assert_eq!((call["requests"].as_u64(), call["priced_as"].as_str()), (Some(1_000), Some("away")), "{planned}");
    // "text of row 123" is 15 bytes, taken for four tokens; nobody knows how long the answers are.
    let tokens = call["input_tokens"].as_u64().expect("tokens");
    assert!((3_000..=4_500).contains(&tokens), "{planned}");
    assert_eq!((call["output_tokens"].as_u64(), call["output_assumed"].as_bool()), (Some(256_000), Some(true)));
    let lane = |lane: &str| estimate["cost_usd"][lane].as_f64().expect("a cost");
    assert!((lane("online") - 1.028).abs() < 0.002, "{planned}");
    assert!((lane("batch") * 2.0 - lane("online")).abs() < 1e-3, "{planned}");
    assert!(estimate["local"].is_null(), "{planned}");
    let measured = Said::of(spilling.command("plan").arg("--measure")).ok().summary();
    // 1,000 rows of 2 ms, and machines of a cent a second.
    let here = &measured["estimate"]["local"];
    let seconds = here["seconds"].as_f64().expect("a time");
    assert!(seconds >= 1.0, "{measured}");
    assert!((here["cost_usd"].as_f64().expect("a cost") - seconds / 100.0).abs() < 1e-3, "{measured}");
    assert_eq!(spilling.providers.requests(), 0);
}
