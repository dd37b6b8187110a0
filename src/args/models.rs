//! What `rowmill models` takes: sources, number types and what to measure. It reads no file.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use rowmill_jobs::spec::Dtype;

/// What `models list` takes.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The job file
    #[arg(value_name = "JOB.sql", required_unless_present = "architectures")]
    pub(crate) job: Option<PathBuf>,

    /// Value of a {{ NAME }} in the job file; may be given several times
    #[arg(short, long = "param", value_name = "NAME=VALUE", requires = "job")]
    pub(crate) params: Vec<String>,

    /// List the architectures that can be computed, and by what, in place of a job's models
    #[arg(long, conflicts_with = "job")]
    pub(crate) architectures: bool,
}

/// What `models verify` takes.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The model: a folder, a .gguf file, hf://owner/name, or s3://
    #[arg(long, value_name = "DIR")]
    pub(crate) source: String,

    /// What another implementation answered; in the build for GPUs also `cpu`: what this machine's processor answers, in f32
    #[arg(long, value_name = "FILE")]
    pub(crate) reference: PathBuf,

    /// Number type to compute in
    #[arg(long, default_value = if cfg!(feature = "cuda") { "bf16" } else { "f32" }, value_parser = dtypes())]
    pub(crate) dtype: Dtype,

    /// Threads to compute with; without it, all of the machine's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// What `models bench` takes.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The model: a folder, a .gguf file, hf://owner/name, or s3://
    #[arg(long, value_name = "DIR")]
    pub(crate) source: String,

    /// Number type to compute in
    #[arg(long, default_value = "auto", value_parser = dtypes())]
    pub(crate) dtype: Dtype,

    /// Threads to compute with; without it, all of the machine's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Time for all measurements together; each takes one step at least
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,

    /// Tokens of a prompt, or of an embedded text
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) prompt_tokens: u32,

    /// Tokens that are written after each prompt
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) output_tokens: u32,

    /// Measure choices among labels, too: prompts whose first N tokens are the same, computed once
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) shared_tokens: u32,

    /// Rows that are computed together; a measurement of each kind for each number
    #[arg(long, value_name = "N,N", default_value = "1,8,64", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=32_768))]
    pub(crate) rows: Vec<u16>,
}

/// Number types by their names.
fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["auto", "f32", "bf16", "f16", "fp8"]).map(|name| match name.as_str() {
        "f32" => Dtype::F32,
        "bf16" => Dtype::Bf16,
        "f16" => Dtype::F16,
        "fp8" => Dtype::Fp8,
        _ => Dtype::Auto,
    })
}
