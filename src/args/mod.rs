//! The command line: what can be asked, in the words a newcomer reads under `--help`. Every flag and environment
//! variable is declared here and nowhere else; what they do is in the other files.

mod models;
mod run;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use rowmill_executor::EngineLimits;
use rowmill_jobs::{Error, Kind, Result};

pub(crate) use models::{BenchArgs, ListArgs, VerifyArgs};
pub(crate) use run::{RedisArgs, RunArgs, ServeArgs, SubmitArgs, WorkArgs};

/// Enrich tables with language models, every night: a SQL file in, a Parquet table out, all or nothing.
#[derive(Debug, Parser)]
#[command(name = "rowmill", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  rowmill preview job.sql --param ds=2026-11-20 -n 5     look at a few rows first
  rowmill plan    job.sql --param ds=2026-11-20          what a run would do and cost; sends nothing
  rowmill run     job.sql --param ds=2026-11-20          compute and publish; safe to repeat
  rowmill resolve job.sql --param ds=2026-11-20          where the published table is

Exit codes: 0 published, 1 failed (fix something), 2 usage, 3 incomplete (resume), 4 quality gate, 75 temporary (retry).")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print one JSON object as the last line of standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The operator's rowmill.toml: which providers there are, and which data may be sent to them. Without it nothing is
    #[arg(long, global = true, env = "ROWMILL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Log to standard error: error, warn, info, debug or a filter such as rowmill_executor=debug
    #[arg(
        long,
        global = true,
        env = "ROWMILL_LOG",
        default_value = "error",
        value_name = "FILTER",
        hide_env_values = true
    )]
    pub(crate) log: String,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compute a job's rows on this machine and publish them
    ///
    /// Starting the same command again is always safe: it joins or continues the same run, computes no finished shard
    /// twice, and does nothing at all once the run is published.
    Run(RunArgs),
    /// Show what a run would read, do and cost; writes nothing and sends nothing
    ///
    /// Reads the inputs' footers, and a sample of rows for the estimate. No model answers anything, except with --measure
    /// this machine's own.
    Plan(PlanArgs),
    /// Compute a job's first rows and print them; writes nothing
    Preview {
        /// The job.
        #[command(flatten)]
        job: JobArgs,
        /// How many rows to show
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        rows: u64,
        /// The engines.
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Plan a run that executors elsewhere compute
    ///
    /// With --wait, schedules it until it is published; without, `rowmill serve` does. Starting the same command again, or
    /// ten at once, is safe: it is one run.
    Submit(SubmitArgs),
    /// Compute shards of submitted runs: an executor
    ///
    /// Takes shards from Redis, one run's or many, until it gets SIGTERM; then it finishes those in hand.
    Work(WorkArgs),
    /// Schedule submitted runs: a service; any number of them may run
    Serve(ServeArgs),
    /// Give a run up; a published run stays published
    Cancel(CancelArgs),
    /// Delete what nobody can read any more from an output; the only command that deletes
    ///
    /// Gives up runs that nobody went on with, and deletes the objects of runs that were given up or replaced by a later
    /// run of their date, and what was staged or answered on the way to a published one. Plan and outcome stay. Give it
    /// credentials of its own: no other command needs to delete.
    Gc {
        /// The output.
        #[command(flatten)]
        output: OutputArgs,
        /// Give up a run to which nothing was added for this many hours
        #[arg(long, value_name = "HOURS", default_value_t = 168, value_parser = clap::value_parser!(u64).range(1..))]
        abandoned_after: u64,
        /// Keep what is over for this many hours, for readers and writers that are still at it
        #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..))]
        grace: u64,
    },
    /// Print the folder of the published table
    Resolve {
        /// The output.
        #[command(flatten)]
        output: OutputArgs,
        /// Logical date; without it, the job's own date, or the latest that is published
        #[arg(long)]
        date: Option<String>,
    },
    /// Show how far a job's run is
    Status(RunIdArgs),
    /// Look at models, fetch them, check and measure them on this machine
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Check that this machine and a job's output can be relied on
    ///
    /// Races many create-only writes against the output and refuses a store that lets two of them win. It leaves small
    /// objects under _doctor/ in the output, because nothing in Rowmill that writes can delete.
    Doctor(OutputArgs),
    /// What a process does that an executor starts for shards that crash.
    #[command(hide = true)]
    Isolated {
        /// Its order.
        order: PathBuf,
        /// The engines.
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Look at the records of what was sent to models elsewhere
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What can be asked about audits.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no record was changed, removed, added or moved
    ///
    /// Exit code 1 if one was. A file whose end is cut, as kill -9 leaves it, is whole up to there and is reported.
    Verify {
        /// Folder of an executor's audits ([audit] folder in rowmill.toml)
        folder: PathBuf,
    },
}

/// What can be asked about models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List a job's models: what they are, what they can do, and their digests
    List(ListArgs),
    /// Fetch a job's models to this machine, so that a run needs no network
    Pull(JobArgs),
    /// Check that a model answers here as it does in its authors' implementation
    ///
    /// Runs the texts of a reference, each alone and all in one batch, and prints the largest error of each; exit code 0 if
    /// all are as the reference says, 1 if not. infra/models/export_reference.py makes a reference with Hugging Face
    /// transformers. Texts are tokenised as they stand, without template or special tokens, unless the reference has ids of
    /// its own; those must be ours with or without special tokens.
    ///
    /// In f32, a decoder's logits may be off by 1/1000 of their range (the item's `logit_range`; without one, highest minus
    /// lowest of its `top_logits`), and every greedy id must be the same. Vectors must have a cosine of 0.9999. A
    /// classifier's logits may be off by 1/1000 of the range of all logits in the file.
    ///
    /// In f16, it is 1/100 and 0.9995; in bf16 and with auto, which may compute in bf16 or with quantised weights, 1/20 and
    /// 0.995; and a greedy id may differ where the model's own logits of both ids are that close. The same goes for references
    /// that were made in these types.
    Verify(VerifyArgs),
    /// Measure how fast a model computes here: prompts and writing, or vectors, each alone
    ///
    /// Runs token ids at random, so neither the tokenizer nor a table takes part. Prefill is prompts up to the logits that
    /// follow them, decode is one more token for each row, embedding is vectors of texts.
    Bench(BenchArgs),
}

/// A job file and its parameters.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job file
    #[arg(value_name = "JOB.sql")]
    pub(crate) job: PathBuf,

    /// Value of a {{ NAME }} in the job file; may be given several times
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub(crate) params: Vec<String>,
}

/// A run of a job.
#[derive(Debug, Args)]
pub(crate) struct RunIdArgs {
    /// The job.
    #[command(flatten)]
    pub(crate) job: JobArgs,

    /// Compute the date again although a run holds it; the same ID joins the same rerun
    #[arg(long, value_name = "ID")]
    pub(crate) rerun: Option<String>,
}

/// What `plan` takes.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The run.
    #[command(flatten)]
    pub(crate) id: RunIdArgs,

    /// Rows that tokens and money are estimated from; 0 reads none
    #[arg(long, value_name = "ROWS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub(crate) sample: u64,

    /// Let this machine's models answer the sample, and so measure how long the run would take here; nothing leaves
    #[arg(long)]
    pub(crate) measure: bool,

    /// The engines.
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// What engines of this process may take.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EngineArgs {
    /// Memory for the keys and values of rows that a model works on, for each model; by default a quarter of the machine's
    /// or container's. With less, fewer rows run at a time
    #[arg(long, value_name = "MIB", env = "ROWMILL_KV_MEMORY", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) kv_memory: Option<u32>,
}

impl EngineArgs {
    /// The limits.
    pub(crate) fn limits(self) -> EngineLimits {
        let kv_bytes_max = self.kv_memory.map(|mebibytes| (mebibytes as usize) << 20);
        EngineLimits { kv_bytes_max, ..EngineLimits::default() }
    }

    /// The same as arguments of another process.
    pub(crate) fn arguments(self) -> impl Iterator<Item = OsString> {
        self.kv_memory.map(|mebibytes| format!("--kv-memory={mebibytes}").into()).into_iter()
    }
}

/// What `cancel` takes.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The run.
    #[command(flatten)]
    pub(crate) id: RunIdArgs,

    /// Why, for those who look later
    #[arg(long, value_name = "TEXT", default_value = "no reason given")]
    pub(crate) why: String,
}

/// An output: a job's, or given by its place.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// A job file (*.sql), or an output folder
    #[arg(value_name = "JOB.sql|OUTPUT")]
    pub(crate) target: PathBuf,

    /// Value of a {{ NAME }} in the job file; may be given several times
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    pub(crate) params: Vec<String>,
}

/// Parameters from `NAME=VALUE` arguments.
///
/// # Errors
/// An argument is not of that form, or a name is given twice.
pub(crate) fn parameters(arguments: &[String]) -> Result<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    for argument in arguments {
        let Some((name, value)) = argument.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::new(Kind::Usage, format!("--param {argument} is not NAME=VALUE"))
                .hint("for example --param ds=2026-11-20"));
        };
        if params.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Error::new(Kind::Usage, format!("--param {name} is given twice")));
        }
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn parameters_are_names_with_values() {
        let parsed = parameters(&["ds=2026-11-20".into(), "filter=a=b".into()]).unwrap();
        assert_eq!(parsed["filter"], "a=b");
        for bad in [vec!["ds"], vec!["=x"], vec!["a=1", "a=2"]] {
            let arguments: Vec<String> = bad.iter().map(|s| s.to_string()).collect();
            assert_eq!(parameters(&arguments).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
