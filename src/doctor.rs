//! `rowmill doctor`: whether this machine and an output keep the promises that publishing rests on.

use rowmill_executor::Scratch;
use rowmill_jobs::Result;
use rowmill_jobs::store::contract;
use serde_json::json;

use crate::args::OutputArgs;
use crate::output::{Format, say};
use crate::setup::{open_output, plain, resolve_models, temporary};

/// Checks the store, the temporary folder and, for a job, its models.
///
/// # Errors
/// The first check that fails.
pub(crate) async fn doctor(args: &OutputArgs, format: Format) -> Result<()> {
    let mut passed = Vec::new();
    let mut pass = |what: String| {
        if format == Format::Text {
            say(&format!("ok  {what}"));
        }
        passed.push(what);
    };
    let scratch = Scratch::new(&temporary())?;
    pass(format!("temporary files go to {}", scratch.path().display()));
    let (store, job) = open_output(args)?;
    let url = store.url().to_owned();
    for promise in contract::check(store).await? {
        pass(format!("{}: {promise}", plain(&url)));
    }
    for model in resolve_models(&job.map(|job| job.models).unwrap_or_default()).await? {
        pass(format!("model {}: {}, digest {}", model.pin.name, model.pin.architecture, model.pin.digest));
    }
    if format == Format::Json {
        say(&json!({ "status": "ok", "checks": passed }).to_string());
    }
    Ok(())
}
