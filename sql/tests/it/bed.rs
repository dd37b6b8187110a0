//! A job's surroundings for a test: a folder, tables, an engine that follows a script and remembers what it was asked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, RecordBatch};
use async_trait::async_trait;
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use rowmill_jobs::Result;
use rowmill_jobs::infer::{
    Answer, Answered, Engine, Outcome, Request, RowError, RowErrorCode, Task, TaskKind, TextFormat, Usage,
};
use rowmill_jobs::plan::{Ability, InputFile, ModelPin, Slice, TableInput};
use rowmill_jobs::spec::JobSpec;
use rowmill_sql::{CompiledJob, Observer, Progress, Source, compile, discover_inputs, read_job_file};
use tempfile::TempDir;

/// Answers from the request's own values; a value with `fail` in it fails.
#[derive(Debug, Default)]
pub struct Script {
    /// Every request, by model.
    pub asked: Mutex<Vec<(String, Vec<String>)>>,
}

impl Script {
    pub fn asked(&self) -> Vec<Vec<String>> {
        let mut asked: Vec<Vec<String>> = self.asked.lock().unwrap().iter().map(|(_, values)| values.clone()).collect();
        asked.sort();
        asked
    }
}

#[async_trait]
impl Engine for Script {
    async fn infer(&self, task: &Arc<Task>, requests: Vec<Request>) -> Result<Vec<Outcome>> {
        Ok(requests
            .into_iter()
            .map(|request| {
                self.asked.lock().unwrap().push((task.model.clone(), request.values.to_vec()));
                let text = request.values.join("|");
                if text.contains("fail") {
                    return Err(RowError::new(RowErrorCode::Injected, "told to"));
                }
                let answer = match &task.kind {
                    TaskKind::Choose { labels, .. } => {
                        // The label that the text names, else the last.
                        let index =
                            labels.iter().position(|label| text.contains(label.as_str())).unwrap_or(labels.len() - 1);
                        let scores = (0..labels.len()).map(|label| if label == index { 0.75 } else { 0.25 }).collect();
                        Answer::Choice { index, scores }
                    }
                    TaskKind::Embed => Answer::Vector(vec![text.len() as f32, 0.0, 1.0]),
                    TaskKind::Complete { format: TextFormat::Free, .. } => Answer::Text(text.to_uppercase()),
                    TaskKind::Complete { .. } => Answer::Text(text),
                };
                let usage = Usage { input_tokens: 2, cached_tokens: 1, output_tokens: 1, ..Usage::default() };
                Ok(Answered::new(answer, usage))
            })
            .collect())
    }
}

#[derive(Debug, Default)]
pub struct Counter(pub Mutex<Progress>);

impl Observer for Counter {
    fn window(&self, progress: &Progress) {
        let mut sums = self.0.lock().unwrap();
        sums.rows_in += progress.rows_in;
        sums.rows_out += progress.rows_out;
        sums.errors += progress.errors;
        sums.requests += progress.requests;
        sums.values += progress.values;
    }
}

pub struct Bed {
    pub folder: TempDir,
    pub engine: Arc<Script>,
    pub counter: Arc<Counter>,
}

pub fn pins() -> Vec<ModelPin> {
    let pin = |name: &str, abilities: Vec<Ability>, dimensions| ModelPin {
        name: name.into(),
        engine: "echo".into(),
        architecture: "echo".into(),
        abilities,
        dimensions,
        labels: None,
        context_tokens: None,
        revision: None,
        digest: "0".into(),
        files: Vec::new(),
    };
    vec![
        pin("m", vec![Ability::Complete, Ability::Choose, Ability::Embed], Some(3)),
        pin("vectors", vec![Ability::Embed], Some(3)),
        ModelPin { labels: Some(vec!["Billing".into(), "bug".into()]), ..pin("topics", vec![Ability::Choose], None) },
    ]
}

/// The head of a job file over table `t`; the query follows.
pub const HEAD: &str = "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 't/';\n\
    CREATE MODEL m WITH (engine = 'echo');\nCREATE MODEL vectors WITH (engine = 'echo', dimensions = 3); \
    CREATE MODEL topics WITH (engine = 'echo');\n\
    CREATE JOB j WITH (output = 'out', logical_date = '2026-11-20', model = 'm') AS\n";

impl Bed {
    pub fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), engine: Arc::default(), counter: Arc::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn parquet(&self, name: &str, columns: Vec<(&str, ArrayRef)>, group_rows: usize) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
        let mut writer =
            ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    pub fn spec(&self, text: &str) -> Result<JobSpec> {
        self.spec_with(text, &[])
    }

    pub fn spec_with(&self, text: &str, params: &[(&str, &str)]) -> Result<JobSpec> {
        std::fs::write(self.path("job.sql"), text).unwrap();
        let params: BTreeMap<String, String> = params.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        read_job_file(&self.path("job.sql"), &params)
    }

    pub async fn compiled(&self, text: &str) -> Result<(CompiledJob, Vec<TableInput>)> {
        let spec = self.spec(text)?;
        let inputs = discover_inputs(&spec, |_, _| {}).await?;
        let job = compile(&spec, &inputs, None, &pins()).await?;
        Ok((job, inputs))
    }

    /// Runs a whole query over `t`, staging if need be.
    pub async fn rows(&self, query: &str) -> RecordBatch {
        self.job_rows(&format!("{HEAD}{query}")).await.unwrap_or_else(|error| panic!("{}", error.report()))
    }

    pub async fn job_rows(&self, text: &str) -> Result<RecordBatch> {
        let (job, inputs) = self.compiled(text).await?;
        match job.source() {
            Source::Table { index } => self.run(&job, &slices(&inputs[index])).await,
            Source::Staged { .. } => {
                let spec = self.spec(text)?;
                let folder = self.path("staged");
                let _ = std::fs::remove_dir_all(&folder);
                std::fs::create_dir_all(&folder).unwrap();
                let staged = staged_input(&job, &folder).await?;
                let job = compile(&spec, &inputs, Some(&staged), &pins()).await?;
                assert!(matches!(job.source(), Source::Staged { .. }));
                self.run(&job, &slices(&staged)).await
            }
        }
    }

    pub async fn run(&self, job: &CompiledJob, slices: &[Slice]) -> Result<RecordBatch> {
        let rows = job.run(slices, self.engine.clone(), self.counter.clone())?;
        let schema = rows.schema();
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        Ok(arrow::compute::concat_batches(&schema, &batches).unwrap())
    }
}

pub async fn staged_input(job: &CompiledJob, folder: &Path) -> Result<TableInput> {
    let files = job
        .stage(folder)
        .await?
        .into_iter()
        .map(|file| InputFile {
            url: format!("file://{}", file.path.display()),
            bytes: file.bytes,
            etag: None,
            modified: "2026-11-20T00:00:00Z".into(),
            partition_values: Vec::new(),
            row_groups: file.row_groups,
        })
        .collect();
    job.staged_input(files)
}

/// All rows of a table.
pub fn slices(input: &TableInput) -> Vec<Slice> {
    let mut slices = Vec::new();
    for (file, input_file) in input.files.iter().enumerate() {
        for (group, row_group) in input_file.row_groups.iter().enumerate() {
            slices.push(Slice { file: file as u32, row_group: group as u32, first_row: 0, rows: row_group.rows });
        }
    }
    slices
}

/// A batch's rows as `a|b|c` lines.
pub fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| arrow::util::display::ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | "))
        .collect()
}
