//! `rowmill models verify`: whether a model answers on this machine as its authors' implementation does. Prints what
//! the engine found; the comparison itself is the engine's.

use rowmill_executor::EngineOptions;
use rowmill_executor::verify::{self as engine, Kind, Reference, Report, Verdict};
use rowmill_jobs::spec::Dtype;
use rowmill_jobs::{Error, Result};
use serde_json::{Value, json};

use crate::args::VerifyArgs;
use crate::output::{Format, say, table, tell};
use crate::setup::model_files;

/// Runs a reference and prints a line for each of its items.
///
/// # Errors
/// The model or the reference cannot be read, or an item is not as the reference says.
pub(crate) async fn verify(args: VerifyArgs, format: Format) -> Result<()> {
    #[cfg(feature = "cuda")]
    let here = args.reference == std::path::Path::new("cpu");
    #[cfg(not(feature = "cuda"))]
    let here = false;
    let reference = if here { None } else { Some(Reference::read(&args.reference)?) };
    let source = model_files(&args.source).await?;
    let options =
        EngineOptions { dtype: args.dtype, threads: args.threads.map(usize::from), ..EngineOptions::default() };
    let running = tokio::task::spawn_blocking(move || match reference {
        Some(reference) => engine::verify(&source, &reference, &options),
        #[cfg(feature = "cuda")]
        None => engine::against_processor(&source, &options),
        #[cfg(not(feature = "cuda"))]
        None => Err(Error::internal("there is nothing to compare with")),
    });
    let report = running.await.map_err(|error| Error::internal("verifying did not finish").caused_by(error))??;
    let (all, passed) = (report.items.len(), report.items.iter().filter(|item| item.passed()).count());
    if format == Format::Text {
        say(&lines(&report));
    } else if !report.passed() {
        // The one object on standard output is the failure's.
        tell(&lines(&report));
    }
    if !report.passed() {
        let wrong = (1..).zip(&report.items).filter(|(_, item)| !item.passed());
        let numbers: Vec<String> = wrong.map(|(number, _)| number.to_string()).collect();
        return Err(Error::invalid(format!("{} of {all} items are not as the reference says", all - passed))
            .with("model", &args.source)
            .with("items", numbers.join(", "))
            .hint("is the reference of these very weights? if it is, do not use this model here, and tell us"));
    }
    match format {
        Format::Text => {
            say(&format!("all {all} as the reference says, alone and in one batch: {}", allowed(&report, args.dtype)));
        }
        Format::Json => say(&summary(&report).to_string()),
    }
    Ok(())
}

/// A line for each item, and under it what is wrong.
fn lines(report: &Report) -> String {
    let error = if report.kind == Kind::Encoder { "1 - cosine" } else { "largest error" };
    let mut rows = vec![["item", "tokens", error, "greedy ids", ""].map(String::from).to_vec()];
    rows.extend((1..).zip(&report.items).map(|(number, item): (usize, &Verdict)| {
        vec![
            number.to_string(),
            item.tokens.to_string(),
            item.largest_error().map_or("-".into(), |error| format!("{error:.1e}")),
            item.greedy.map_or("-".into(), |(equal, all)| format!("{equal} of {all}")),
            if item.passed() { "ok".into() } else { item.faults.join("; ") },
        ]
    }));
    table(&rows)
}

/// What was allowed, in words.
fn allowed(report: &Report, dtype: Dtype) -> String {
    let (tolerance, dtype) = (report.tolerance, format!("{dtype:?}").to_lowercase());
    match report.kind {
        Kind::Encoder => format!("cosine {} at least in {dtype}", 1.0 - tolerance.distance),
        Kind::Decoder if tolerance.close_calls => {
            format!(
                "logits within {} of their range in {dtype}, greedy ids equal but for close calls",
                tolerance.logits
            )
        }
        Kind::Decoder => format!("logits within {} of their range in {dtype}, greedy ids equal", tolerance.logits),
        Kind::Classifier => format!("logits within {} of their range in {dtype}", tolerance.logits),
    }
}

fn summary(report: &Report) -> Value {
    let items = report.items.iter().map(|item| {
        json!({
            "tokens": item.tokens,
            "error_alone": item.alone,
            "error_together": item.together,
            "greedy_equal": item.greedy.map(|(equal, _)| equal),
        })
    });
    json!({
        "status": "ok",
        "kind": report.kind.as_str(),
        "logits_tolerance": report.tolerance.logits,
        "cosine_min": 1.0 - report.tolerance.distance,
        "items": items.collect::<Vec<_>>(),
    })
}
