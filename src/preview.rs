//! `rowmill preview`: a job's first rows, computed here and printed. It writes nothing but temporary files.

use std::sync::Arc;

use futures::StreamExt;
use rowmill_executor::{EngineLimits, Engines, Router, Scratch, Watch};
use rowmill_jobs::infer::Engine;
use rowmill_jobs::plan::{InputFile, Slice};
use rowmill_jobs::progress::Counters;
use rowmill_jobs::{Error, Result, store};
use rowmill_sql::{Observer, Source, compile, format_rows, rows_as_json};
use serde_json::json;

use crate::args::JobArgs;
use crate::footers;
use crate::output::{Format, say};
use crate::setup::{pins, read_job, resolve_models, temporary};

/// Computes and prints a job's first `rows` output rows. Input is taken bit by bit until there are enough, since a
/// filter may drop most of it.
///
/// # Errors
/// Whatever keeps those rows from being computed.
pub(crate) async fn preview(args: &JobArgs, rows: u64, limits: EngineLimits, format: Format) -> Result<()> {
    let job = read_job(args)?;
    let models = resolve_models(&job.models).await?;
    let pins = pins(&models);
    let draft = rowmill_scheduler::draft(&job, &pins, footers::watch()).await?;
    let scratch = Scratch::new(&temporary())?;
    let (compiled, files) = match draft.compiled.source() {
        Source::Table { index } => (draft.compiled, draft.inputs[index].files.clone()),
        Source::Staged { .. } => {
            let folder = scratch.path().join("staging");
            std::fs::create_dir_all(&folder)
                .map_err(|error| Error::invalid("cannot create a folder for temporary files").caused_by(error))?;
            draft.compiled.stage(&folder).await?;
            let staged =
                rowmill_scheduler::planning::staged_table(&job, &draft.compiled, &store::folder_url(&folder)).await?;
            (compile(&job, &draft.inputs, Some(&staged), &pins).await?, staged.files)
        }
    };
    let engine: Arc<dyn Engine> = Arc::new(Router::new(models, &pins, &Engines::new(limits))?);
    let watch: Arc<dyn Observer> = Arc::new(Watch(Arc::new(Counters::default())));
    let mut batches = Vec::new();
    let mut found = 0;
    for slices in bites(&files, rows) {
        let mut stream = compiled.run(&slices, Arc::clone(&engine), Arc::clone(&watch))?;
        // Asked only while rows are missing: the next batch may be a window of requests to a model.
        while found < rows
            && let Some(batch) = stream.next().await.transpose()?
        {
            let batch = batch.slice(0, batch.num_rows().min((rows - found) as usize));
            found += batch.num_rows() as u64;
            batches.push(batch);
        }
        if found == rows {
            break;
        }
    }
    match format {
        Format::Text => say(&format_rows(&batches)),
        Format::Json => say(&json!({ "status": "ok", "rows": rows_as_json(&batches)? }).to_string()),
    }
    Ok(())
}

/// The table in bites that grow: the first has as many rows as are wanted, each further one twice its predecessor's. They
/// are cut when they are asked for; nobody knows how large the table is, and mostly the first ones are enough.
fn bites(files: &[InputFile], rows: u64) -> impl Iterator<Item = Vec<Slice>> {
    let mut groups = (0..).zip(files).flat_map(|(file, input)| {
        (0..).zip(&input.row_groups).map(move |(row_group, group)| Slice {
            file,
            row_group,
            first_row: 0,
            rows: group.rows,
        })
    });
    let mut left: Option<Slice> = None;
    let mut size = rows;
    std::iter::from_fn(move || {
        let (mut bite, mut missing) = (Vec::new(), size);
        while missing > 0
            && let Some(group) = left.take().or_else(|| groups.next())
        {
            let taken = group.rows.min(missing);
            missing -= taken;
            if taken < group.rows {
                left = Some(Slice { first_row: group.first_row + taken, rows: group.rows - taken, ..group });
            }
            if taken > 0 {
                bite.push(Slice { rows: taken, ..group });
            }
        }
        size = size.saturating_mul(2);
        (!bite.is_empty()).then_some(bite)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowmill_jobs::plan::RowGroup;

    fn file(groups: &[u64]) -> InputFile {
        InputFile {
            url: "file:///t.parquet".into(),
            bytes: 1,
            etag: None,
            modified: String::new(),
            partition_values: Vec::new(),
            row_groups: groups.iter().map(|&rows| RowGroup { rows, bytes: 1 }).collect(),
        }
    }

    #[test]
    fn bites_are_cut_from_a_huge_table_as_they_are_asked_for() {
        let files = [file(&[0, 4]), file(&[]), file(&[1_000_000_000_000])];
        let cut: Vec<Vec<(u32, u32, u64, u64)>> = bites(&files, 10)
            .take(3)
            .map(|bite| bite.iter().map(|s| (s.file, s.row_group, s.first_row, s.rows)).collect())
            .collect();
        assert_eq!(cut, [vec![(0, 1, 0, 4), (2, 0, 0, 6)], vec![(2, 0, 6, 20)], vec![(2, 0, 26, 40)]]);
    }

    #[test]
    fn every_row_is_in_one_bite_and_an_empty_table_has_none() {
        let files = [file(&[7, 0, 64]), file(&[]), file(&[1, 9])];
        for rows in [1, 2, 10, 1000] {
            let mut next: Vec<(u32, u32, u64)> = Vec::new();
            for slice in bites(&files, rows).flatten() {
                assert!(slice.rows > 0);
                next.extend(
                    (slice.first_row..slice.first_row + slice.rows).map(|row| (slice.file, slice.row_group, row)),
                );
            }
            let all = [(0, 0, 7), (0, 2, 64), (2, 0, 1), (2, 1, 9)];
            let all: Vec<_> =
                all.iter().flat_map(|&(file, group, rows)| (0..rows).map(move |row| (file, group, row))).collect();
            assert_eq!(next, all);
        }
        assert_eq!(bites(&[file(&[0]), file(&[])], 10).count(), 0);
    }
}
