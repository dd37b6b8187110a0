//! `rowmill models`: what a job's models are, what there can be, and bringing them here.

use rowmill_executor::{ResolvedModel, architectures};
use rowmill_jobs::Result;
use rowmill_jobs::plan::Ability;
use serde_json::json;

use crate::args::{JobArgs, ListArgs};
use crate::output::{Format, say, table};
use crate::setup::{read_job, resolve_models};

/// Lists a job's models, or the architectures.
///
/// # Errors
/// A model cannot be fetched or is none.
pub(crate) async fn list(args: ListArgs, format: Format) -> Result<()> {
    let Some(job) = args.job else {
        list_architectures(format);
        return Ok(());
    };
    let models = resolve_models(&read_job(&JobArgs { job, params: args.params })?.models).await?;
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

fn list_architectures(format: Format) {
    let known = architectures();
    match format {
        Format::Json => {
            let known = known
                .iter()
                .map(|one| json!({ "name": one.name, "family": one.family, "computed_by": one.computed_by.as_str() }));
            say(&json!({ "status": "ok", "architectures": known.collect::<Vec<_>>() }).to_string());
        }
        Format::Text => {
            let mut rows = vec![["architecture", "family", "computed by"].map(String::from).to_vec()];
            rows.extend(
                known.iter().map(|one| [one.name, one.family, one.computed_by.as_str()].map(String::from).to_vec()),
            );
            say(&table(&rows));
        }
    }
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
