//! What the tests share: temporary jobs, the product's process, published tables read back. No test stands here.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The product.
pub fn rowmill(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowmill"));
    command.args(args);
    command
}

/// What a finished process said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// No process of a test takes longer; one that hangs would hang all tests, and nobody would see what it said last.
const LONGEST: Duration = Duration::from_secs(600);

impl Said {
    /// Runs this to its end.
    pub fn of(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::at_end(piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// What a process, whose output is piped, has said when it ends.
    pub fn at_end(process: Child) -> Self {
        let id = process.id();
        let (ended, waiting) = channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let late = waiting.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout);
            // The shell's own `kill`, which every machine has.
            late && Command::new("sh").args(["-c", &format!("kill -KILL {id}")]).status().is_ok()
        });
        let output = process.wait_with_output().expect("it ends");
        drop(ended);
        let killed = watchdog.join().expect("the watchdog");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        let said = Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!killed, "it did not end within {LONGEST:?}: {said:?}");
        said
    }

    /// The summary: the last line of standard output.
    pub fn summary(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_else(|| panic!("nothing on stdout: {self:?}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
    }

    /// This, if the process succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs the product to its end.
pub fn say(args: &[&str]) -> Said {
    Said::of(&mut rowmill(args))
}

/// A job in a folder of its own.
#[derive(Debug)]
pub struct Job {
    pub folder: tempfile::TempDir,
}

impl Job {
    /// A job file with this text, beside whatever tables are made later.
    pub fn new(sql: &str) -> Self {
        // With a blank and an umlaut, which URLs spell otherwise than paths do.
        let folder = tempfile::Builder::new().prefix("job with ü ").tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("job.sql"), sql).expect("the job file is written");
        Self { folder }
    }

    /// A job over table `rows` (id, text) with the echo engine as its model.
    pub fn echo(with: &str, select: &str) -> Self {
        Self::new(&format!(
            "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
             CREATE MODEL echo WITH (engine = 'echo'{with});\n\
             CREATE JOB copy WITH (output = 'out', logical_date = '2026-11-20', key = 'id', model = 'echo', shard_rows = 100) AS\n\
             {select};\n"
        ))
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("job.sql")
    }

    pub fn output(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// The parts of all its runs, published or not.
    pub fn parts(&self) -> Vec<PathBuf> {
        let files = |folder: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let is_part = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("part-"));
        files(&self.output()).iter().flat_map(|run| files(run)).filter(is_part).collect()
    }

    /// Writes `rows/<name>.parquet` with ids `first..first+count`.
    pub fn with_rows(&self, name: &str, first: i64, count: i64) -> &Self {
        let ids: Vec<i64> = (first..first + count).collect();
        let texts: Vec<String> = ids.iter().map(|id| format!("text of row {id}")).collect();
        self.with_file(
            name,
            vec![("id", Arc::new(Int64Array::from(ids))), ("text", Arc::new(StringArray::from(texts)))],
        )
    }

    /// Writes `rows/<name>.parquet` with these columns, in row groups of 250.
    pub fn with_file(&self, name: &str, columns: Vec<(&str, ArrayRef)>) -> &Self {
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let folder = self.folder.path().join("rows");
        std::fs::create_dir_all(&folder).expect("a folder for the table");
        let file = File::create(folder.join(format!("{name}.parquet"))).expect("a table file");
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(250)).build();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a Parquet writer");
        writer.write(&batch).expect("rows are written");
        writer.close().expect("the footer is written");
        self
    }

    /// `rowmill <command> job.sql --json <more>`.
    pub fn say(&self, command: &str, more: &[&str]) -> Said {
        let job = self.path();
        let mut args = vec![command, job.to_str().expect("a UTF-8 path"), "--json"];
        args.extend(more);
        say(&args)
    }
}

/// All rows of the Parquet files in a folder, in the order of their names.
pub fn read_table(folder: &Path) -> Vec<RecordBatch> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let file = File::open(path).expect("a part");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a Parquet file").build().expect("a reader");
        reader.map(|batch| batch.expect("rows")).collect::<Vec<_>>()
    };
    files.iter().flat_map(read).collect()
}

/// A column of strings, over all batches; NULL as `None`.
pub fn strings(batches: &[RecordBatch], column: &str) -> Vec<Option<String>> {
    let of = |batch: &RecordBatch| {
        let array = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}")).clone();
        let array = array.as_any().downcast_ref::<StringArray>().expect("a column of strings").clone();
        array.iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}

/// A column of 64-bit integers, over all batches.
pub fn integers(batches: &[RecordBatch], column: &str) -> Vec<i64> {
    let of = |batch: &RecordBatch| {
        let array = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}")).clone();
        let array = array.as_any().downcast_ref::<Int64Array>().expect("a column of integers").clone();
        array.values().to_vec()
    };
    batches.iter().flat_map(of).collect()
}

/// The codes of all rows' errors.
pub fn row_errors(batches: &[RecordBatch]) -> Vec<String> {
    let of = |batch: &RecordBatch| {
        let errors = batch.column_by_name("_errors").expect("errors").as_list::<i32>().clone();
        let of_row = |row: ArrayRef| {
            let codes = row.as_struct().column_by_name("code").expect("codes").as_string::<i32>().clone();
            codes.iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        };
        errors.iter().flatten().flat_map(of_row).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of).collect()
}
