//! `rowmill models bench`: how fast a model computes on this machine. Prints what the engine measured and judges nothing.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rowmill_executor::EngineOptions;
use rowmill_executor::bench::{self as engine, Load, Measurement, Work};
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::output::{Format, say, table, tell};
use crate::setup::model_files;

/// Measures a model.
///
/// # Errors
/// The model cannot be read, or cannot hold what is asked.
pub(crate) async fn bench(args: BenchArgs, format: Format) -> Result<()> {
    let source = model_files(&args.source).await?;
    let options =
        EngineOptions { dtype: args.dtype, threads: args.threads.map(usize::from), ..EngineOptions::default() };
    let load = Load {
        time: Duration::from_secs(args.seconds.into()),
        prompt_tokens: args.prompt_tokens as usize,
        output_tokens: args.output_tokens as usize,
        shared_tokens: args.shared_tokens as usize,
        rows: args.rows.iter().map(|rows| usize::from(*rows)).collect(),
    };
    let measuring = tokio::task::spawn_blocking(move || {
        let display = Display::start();
        let measured =
            engine::bench(&source, &options, &load, &|work, rows, (done, all)| display.begun(work, rows, done, all));
        display.finish();
        measured
    });
    let measured = measuring.await.map_err(|error| Error::internal("measuring did not finish").caused_by(error))??;
    match format {
        Format::Text => say(&lines(&measured, &args)),
        Format::Json => say(&summary(&measured, &args).to_string()),
    }
    Ok(())
}

fn lines(measured: &[Measurement], args: &BenchArgs) -> String {
    let mut rows = vec![["", "rows", "tokens a row", "tokens/s", "rows/s"].map(String::from).to_vec()];
    rows.extend(measured.iter().map(|one| {
        let (rate, tokens) = (one.tokens_per_second(), tokens_a_row(one.work, args));
        vec![
            one.work.as_str().to_owned(),
            one.rows.to_string(),
            tokens.to_string(),
            format!("{rate:.0}"),
            format!("{:.1}", rate / f64::from(tokens)),
        ]
    }));
    table(&rows)
}

fn summary(measured: &[Measurement], args: &BenchArgs) -> Value {
    let measurements = measured.iter().map(|one| {
        json!({
            "work": one.work.as_str(),
            "rows": one.rows,
            "tokens_per_row": tokens_a_row(one.work, args),
            "tokens_per_second": one.tokens_per_second(),
            "tokens": one.tokens,
            "seconds": one.seconds,
        })
    });
    json!({
        "status": "ok",
        "source": args.source,
        "dtype": args.dtype,
        "threads": args.threads,
        "measurements": measurements.collect::<Vec<_>>(),
    })
}

fn tokens_a_row(work: Work, args: &BenchArgs) -> u32 {
    if work == Work::Decode { args.output_tokens } else { args.prompt_tokens }
}

/// What is measured now: a live line on a terminal, plain lines elsewhere.
struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_message("loading");
            match ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar }
    }

    fn begun(&self, work: Work, rows: usize, done: usize, all: usize) {
        let what = format!("{}, {rows} rows", work.as_str());
        match &self.bar {
            Some(bar) => {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
                bar.set_message(what);
            }
            None => tell(&format!("{}/{all}  {what}", done + 1)),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
