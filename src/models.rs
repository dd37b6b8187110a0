//! `rowmill models`: what a job's models are, and bringing them here.

use rowmill_executor::ResolvedModel;
use rowmill_jobs::Result;
use rowmill_jobs::plan::Ability;
use serde_json::json;

use crate::args::JobArgs;
use crate::output::{Format, say, table};
use crate::setup::{read_job, resolve_models};

/// Lists a job's models.
///
/// # Errors
/// A model cannot be fetched or is none.
pub(crate) async fn list(args: &JobArgs, format: Format) -> Result<()> {
    let models = resolve_models(&read_job(args)?.models).await?;
    match format {
        Format::Json => {
            let pins: Vec<_> = models.iter().map(|model| &model.pin).collect();
            say(&json!({ "status": "ok", "models": pins }).to_string());
        }
        Format::Text => {
            let mut rows =
                vec![["model", "architecture", "answers", "context", "MiB", "digest"].map(String::from).to_vec()];
            rows.extend(models.iter().map(row));
            say(&table(&rows));
        }
    }
    Ok(())
}

/// Fetches a job's models.
///
/// # Errors
/// A model cannot be fetched or is none.
pub(crate) async fn pull(args: &JobArgs, format: Format) -> Result<()> {
    let models = resolve_models(&read_job(args)?.models).await?;
    for model in models.iter().filter(|model| format == Format::Text && model.path.is_some()) {
        let path = model.path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        say(&format!("{}  {path}", model.pin.name));
    }
    if format == Format::Json {
        let found = models
            .iter()
            .map(|model| json!({ "name": model.pin.name, "path": model.path, "digest": model.pin.digest }));
        say(&json!({ "status": "ok", "models": found.collect::<Vec<_>>() }).to_string());
    }
    Ok(())
}

fn row(model: &ResolvedModel) -> Vec<String> {
    let pin = &model.pin;
    let abilities = pin.abilities.iter().map(|ability| match ability {
        Ability::Complete => "text".to_owned(),
        Ability::Choose => {
            pin.labels.as_ref().map_or("labels".into(), |labels| format!("labels {}", labels.join(", ")))
        }
        Ability::Embed => pin.dimensions.map_or("vectors".into(), |dimensions| format!("vectors of {dimensions}")),
    });
    let bytes: u64 = pin.files.iter().map(|file| file.bytes).sum();
    vec![
        pin.name.clone(),
        pin.architecture.clone(),
        abilities.collect::<Vec<_>>().join(", "),
        pin.context_tokens.map_or("-".into(), |tokens| tokens.to_string()),
        format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
        pin.digest.chars().take(12).collect(),
    ]
}
