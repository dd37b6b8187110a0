//! [`Providers`]: a simulator of providers, and [`Elsewhere`]: a job whose model is elsewhere, with the operator's
//! configuration. No test stands here.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use rowmill_provider_simulator::config::{Faults, Keep};
use rowmill_provider_simulator::{Config, Provider, Simulator};

use crate::support::{Job, Said, rowmill};

/// A key that must be found nowhere but in requests' headers.
pub const KEY: &str = "canary-7f3a9c-key";
/// The id of the AWS credentials, which signatures show, and their secret half, which nothing shows.
pub const AWS_KEY_ID: &str = "AKIACANARY7F3A9C";
pub const AWS_SECRET: &str = "canary-c1d2e3-aws-secret";
/// Rows of a table, if a test does not need others.
pub const ROWS: i64 = 60;

/// A simulator with the runtime that it lives in.
pub struct Providers {
    pub simulator: Simulator,
    /// What stands for a bucket, where batches go through one.
    pub bucket: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Providers {
    pub fn start(faults: Faults) -> Self {
        Self::with(Config { faults, ..Config::default() })
    }

    /// With this configuration; all bodies are kept.
    pub fn with(config: Config) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a free port"), config)
    }

    /// The same, at this address.
    pub fn on(listener: TcpListener, config: Config) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let config = Config { keep_bodies: Keep::Everything, ..config };
        listener.set_nonblocking(true).expect("a socket");
        let start = async { Simulator::start_on(tokio::net::TcpListener::from_std(listener)?, config) };
        let simulator = runtime.block_on(start).expect("a simulator");
        Self { simulator, bucket: tempfile::tempdir().expect("a folder"), runtime }
    }

    /// Goes away: connections break, and there are no new ones. What it has written down stays.
    pub fn stop(self) -> Simulator {
        self.runtime.shutdown_background();
        self.simulator
    }

    pub fn requests(&self) -> u64 {
        self.simulator.journal().requests()
    }
}

/// A job over table `rows`, which asks the model `away` of the provider of that name, and the operator's configuration.
pub struct Elsewhere {
    pub job: Job,
}

impl Elsewhere {
    /// Over ids and texts, in shards of 20 rows. `model` = CREATE MODEL's options, `options` = further ones of the job.
    pub fn new(model: &str, options: &str, select: &str) -> Self {
        let ids: Vec<i64> = (0..ROWS).collect();
        let texts: Vec<String> = ids.iter().map(|id| format!("text of row {id}")).collect();
        let columns: Vec<(&str, ArrayRef)> =
            vec![("id", Arc::new(Int64Array::from(ids))), ("text", Arc::new(StringArray::from(texts)))];
        Self::over(columns, model, &format!(", shard_rows = 20{options}"), select)
    }

    /// Over these columns.
    pub fn over(columns: Vec<(&str, ArrayRef)>, model: &str, options: &str, select: &str) -> Self {
        let job = Job::new(&format!(
            "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
             CREATE MODEL away WITH ({model});\n\
             CREATE JOB ask WITH (output = 'out', logical_date = '2026-11-20', key = 'id', model = 'away'{options}) AS\n\
             {select};\n"
        ));
        job.with_file("a", columns);
        Self { job }
    }

    /// Writes the operator's configuration; audits go beside the job.
    pub fn config(&self, text: &str) -> &Self {
        let text = format!("{text}\n[audit]\nfolder = \"{}\"\n", self.audit().display());
        std::fs::write(self.config_path(), text).expect("the configuration is written");
        self
    }

    pub fn config_path(&self) -> PathBuf {
        self.job.folder.path().join("rowmill.toml")
    }

    pub fn audit(&self) -> PathBuf {
        self.job.folder.path().join("audit")
    }

    /// Replaces a text of the job file, which is there once.
    pub fn rewrite(&self, from: &str, to: &str) {
        let path = self.job.path();
        let text = std::fs::read_to_string(&path).expect("the job file");
        assert_eq!(text.matches(from).count(), 1, "{from} in\n{text}");
        std::fs::write(path, text.replace(from, to)).expect("the job file is written");
    }

    /// `rowmill <args>` with the configuration, if there is one, the keys, and nothing of this machine's own settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = rowmill(args);
        let ours = |name: &str| ["AWS_", "ROWMILL_"].iter().any(|prefix| name.starts_with(prefix));
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        let home = self.job.folder.path();
        command
            .env("ROWMILL_TEST_KEY", KEY)
            .env("AWS_ACCESS_KEY_ID", AWS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", AWS_SECRET);
        command.env("HOME", home).env("TMPDIR", home);
        if self.config_path().exists() {
            command.arg("--config").arg(self.config_path());
        }
        command
    }

    /// `rowmill <command> job.sql`, to its end.
    pub fn say(&self, command: &str) -> Said {
        let job = self.job.path();
        let mut command = self.command(&[command, job.to_str().expect("UTF-8"), "--json"]);
        Said::of(&mut command)
    }
}

/// The operator's configuration of provider `away`, with `more` lines, and a rule that lets everything go there.
pub fn allowed(kind: &str, base: &str, more: &str) -> String {
    format!(
        "[providers.away]\nkind = \"{kind}\"\nbase_url = \"{base}\"\nmodels = [\"*\"]\n{more}\n\
         [[egress.allow]]\nname = \"test\"\nproviders = [\"away\"]\ndatasets = [\"*\"]\ncolumns = [\"*\"]\n"
    )
}

/// The line that names the key.
pub const SECRET: &str = "secret = \"env:ROWMILL_TEST_KEY\"";

/// A provider that is simulated here, opened with the key.
pub fn provider(providers: &Providers, kind: &str, provider: Provider) -> String {
    allowed(kind, &providers.simulator.base(provider), SECRET)
}

/// Three calls a row.
pub const SELECT: &str = "SELECT id, ai_classify(text, ['billing', 'bug', 'other'], with_score => true) AS topic, \
                          ai_extract(text, 'product STRING, severity INT') AS facts, ai_complete(text) AS answer FROM rows";

/// A file below a folder, but not below `but`, that holds a text.
pub fn holds(folder: &Path, text: &str, but: &Path) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let found = match path.is_dir() {
            true if path == but => None,
            true => holds(&path, text, but),
            false => contains(&std::fs::read(&path).unwrap_or_default(), text).then_some(path),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Whether bytes contain a text.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
