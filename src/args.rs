//! The command line: what can be asked, in the words a newcomer reads under `--help`. Every flag and environment
//! variable is declared here and nowhere else; what they do is in the other files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use rowmill_jobs::{Error, Kind, Result};

/// Enrich tables with language models, every night: a SQL file in, a Parquet table out, all or nothing.
#[derive(Debug, Parser)]
#[command(name = "rowmill", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  rowmill preview job.sql --param ds=2026-11-20 -n 5     look at a few rows first
  rowmill plan    job.sql --param ds=2026-11-20          what a run would do; computes nothing
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
    /// Show what a run would read and do, without computing or writing anything
    Plan(JobArgs),
    /// Compute a job's first rows and print them; writes nothing
    Preview {
        /// The job.
        #[command(flatten)]
        job: JobArgs,
        /// How many rows to show
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        rows: u64,
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
    /// Look at or fetch a job's models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Check that this machine and a job's output can be relied on
    ///
    /// Races many create-only writes against the output and refuses a store that lets two of them win. It leaves small
    /// objects under _doctor/ in the output, because nothing in Rowmill that writes can delete.
    Doctor(OutputArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What can be asked about models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List a job's models: what they are, what they can do, and their digests
    List(JobArgs),
    /// Fetch a job's models to this machine, so that a run needs no network
    Pull(JobArgs),
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

/// What `run` takes.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The run.
    #[command(flatten)]
    pub(crate) id: RunIdArgs,

    /// Shards worked on at once: while one computes, others read and write
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) slots: u8,
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
