//! Bad input, each with a clear error before anything is half-published, or with typed errors in its rows.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, StringArray};

use crate::support::{Job, Said, read_table, repository, strings};

const SELECT: &str = "SELECT id, ai_complete(text) AS answer FROM rows";

/// A run that must fail with exit code 1, say all of `words`, and leave no part behind.
fn refused(job: &Job, words: &[&str]) -> Said {
    let said = job.say("run", &[]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in words {
        assert!(said.stderr.contains(word), "{word:?} is missing in\n{}", said.stderr);
    }
    assert!(!said.stderr.contains("text of row"), "row content in an error:\n{}", said.stderr);
    assert!(!job.output().join("_published").exists());
    said
}

#[test]
fn a_missing_table_is_named() {
    refused(&Job::echo("", SELECT), &["rows", "hint"]);
}

#[test]
fn a_truncated_parquet_file_is_named() {
    let job = Job::echo("", SELECT);
    job.with_rows("good", 0, 500).with_rows("bad", 500, 500);
    let path = job.folder.path().join("rows/bad.parquet");
    let bytes = std::fs::read(&path).expect("the file");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("the file is cut");
    refused(&job, &["bad.parquet"]);
    assert!(!job.output().exists());
}

#[test]
fn a_page_that_is_corrupt_fails_the_run_and_names_the_file() {
    let job = Job::echo("", SELECT);
    job.with_rows("bad", 0, 500);
    let path = job.folder.path().join("rows/bad.parquet");
    let mut bytes = std::fs::read(&path).expect("the file");
    for byte in &mut bytes[8..200] {
        *byte ^= 0xff;
    }
    std::fs::write(&path, bytes).expect("the file is damaged");
    refused(&job, &["bad.parquet"]);
}

#[test]
fn files_of_different_schemas_are_named_with_the_column() {
    let job = Job::echo("", SELECT);
    job.with_rows("a", 0, 10);
    let ids: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    job.with_file("b", vec![("id", ids.clone()), ("text", ids)]);
    refused(&job, &["b.parquet", "id", "Int64"]);
}

#[test]
fn an_input_that_changes_after_the_plan_fails_the_run_and_names_the_file() {
    let job = Job::echo(", fail_ratio = 1.0", SELECT);
    job.with_rows("a", 0, 300);
    assert_eq!(job.say("run", &[]).code, Some(4), "held back by the gate, so the plan stays");
    for part in std::fs::read_dir(job.output()).expect("the output").flatten() {
        if part.file_name().to_string_lossy().starts_with("run=") {
            std::fs::remove_file(part.path().join("part-00001.parquet")).expect("a part");
        }
    }
    job.with_rows("a", 0, 299);
    refused(&job, &["a.parquet"]);
}

#[test]
fn nulls_and_huge_cells_are_their_rows_own_matter() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer FROM rows");
    let huge = "x".repeat(100 << 20);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![0, 1, 2]));
    let texts: ArrayRef = Arc::new(LargeStringArray::from(vec![Some("one"), None, Some(huge.as_str())]));
    job.with_file("a", vec![("id", ids), ("text", texts)]);
    let sql = std::fs::read_to_string(job.path()).expect("the job");
    std::fs::write(job.path(), sql.replace("key = 'id'", "key = 'id', max_error_ratio = 0.5")).expect("the job");
    let summary = job.say("run", &[]).ok().summary();
    assert_eq!((summary["rows"].as_u64(), summary["errors"].as_u64()), (Some(3), Some(1)));
    let rows = read_table(Path::new(summary["published"].as_str().expect("a folder")));
    assert_eq!(strings(&rows, "answer"), [Some("one".to_owned()), None, None]);
    let errors = rows[0].column_by_name("_errors").expect("errors");
    assert_eq!((errors.is_null(0), errors.is_null(1), errors.is_null(2)), (true, true, false));
    assert!(format!("{:?}", errors.slice(2, 1)).contains("too_large"));
}

/// Statements that are wrong, with where they are wrong (in the last line) and what must be said.
#[test]
fn mistakes_in_a_job_file_have_a_place_and_a_hint() {
    let mistakes = [
        ("SELECT ai_clasify(text, ['a', 'b']) AS t FROM rows", "4:8", vec!["ai_clasify", "ai_classify"]),
        ("SELECT ai_classify(text, ['a']) AS t FROM rows", "4:27", vec!["label"]),
        ("SELECT ai_classify(text, ['a', 'a']) AS t FROM rows", "4:27", vec!["twice"]),
        ("SELECT ai_classify(text, 7) AS t FROM rows", "4:26", vec!["label"]),
        ("SELECT ai_complete(text, tone => 'kind') AS t FROM rows", "4:26", vec!["tone"]),
        ("SELECT ai_extract(text, 'n INTEGRE') AS t FROM rows", "4:25", vec!["INTEGRE"]),
        ("SELECT ai_complete(text, model => 'nobody') AS t FROM rows", "4:35", vec!["nobody", "echo"]),
        ("SELECT ai_complete(txt) AS t FROM rows", "4:20", vec!["txt", "text"]),
        ("SELECT id FROM row", "4:16", vec!["row", "rows"]),
        ("SELECT id, id FROM rows", "4:8", vec!["two columns", "id"]),
        (
            "SELECT topic, count(*) AS id FROM (SELECT ai_complete(text) AS topic FROM rows) GROUP BY topic",
            "4:",
            vec!["second job"],
        ),
    ];
    for (select, place, words) in mistakes {
        let job = Job::echo("", select);
        job.with_rows("a", 0, 3);
        let mut expected = vec!["hint"];
        expected.extend(words);
        let said = refused(&job, &expected);
        let place = format!("job.sql:{place}");
        assert!(said.stderr.contains(&place), "{place} is missing for {select}:\n{}", said.stderr);
        assert!(!job.output().exists(), "{select} wrote something");
    }
}

#[test]
fn an_undefined_parameter_is_named_with_its_place() {
    let job = Job::echo("", "SELECT id FROM rows WHERE id = {{ wanted }}");
    job.with_rows("a", 0, 3);
    let said = job.say("run", &[]);
    assert_eq!(said.code, Some(2), "a parameter is part of the command line");
    for word in ["wanted", "job.sql:4:", "--param wanted="] {
        assert!(said.stderr.contains(word), "{word:?} is missing in\n{}", said.stderr);
    }
}

/// A job over a copy of the tiny model, which `damage` then damages.
fn job_with_model(damage: impl Fn(&Path)) -> Job {
    let job = Job::new(
        "CREATE EXTERNAL TABLE rows STORED AS PARQUET LOCATION 'rows/';\n\
         CREATE MODEL tiny WITH (engine = 'candle', source = 'model');\n\
         CREATE JOB j WITH (output = 'out', logical_date = 'd', model = 'tiny') AS\n\
         SELECT id, ai_classify(text, ['a', 'b']) AS topic FROM rows;\n",
    );
    job.with_rows("a", 0, 3);
    let model = job.folder.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    for entry in
        std::fs::read_dir(repository().join("executor/engine/tests/fixtures/llama-tiny")).expect("a model").flatten()
    {
        std::fs::copy(entry.path(), model.join(entry.file_name())).expect("a copy");
    }
    damage(&model);
    job
}

#[test]
fn a_whole_model_folder_runs() {
    job_with_model(|_| ()).say("run", &[]).ok();
}

#[test]
fn models_that_cannot_be_loaded_are_refused_before_anything_runs() {
    let remove = |name: &'static str| move |model: &Path| std::fs::remove_file(model.join(name)).expect("it was there");
    refused(&job_with_model(remove("config.json")), &["config.json", "hint"]);
    refused(&job_with_model(remove("tokenizer.json")), &["tokenizer.json", "hint"]);
    refused(&job_with_model(remove("model.safetensors")), &["safetensors", "hint"]);
    let cut = |model: &Path| {
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).expect("weights");
        std::fs::write(&path, &bytes[..bytes.len() - 1000]).expect("cut weights");
    };
    refused(&job_with_model(cut), &["model.safetensors"]);
    let pickle = |model: &Path| {
        std::fs::rename(model.join("model.safetensors"), model.join("pytorch_model.bin")).expect("renamed");
    };
    refused(&job_with_model(pickle), &["pytorch_model.bin", "safetensors"]);
    let disguised =
        |model: &Path| std::fs::write(model.join("model.safetensors"), b"\x80\x02}q\x00.").expect("a pickle");
    refused(&job_with_model(disguised), &["model.safetensors"]);
    let other = |model: &Path| {
        let path = model.join("config.json");
        let text = std::fs::read_to_string(&path).expect("config");
        std::fs::write(path, text.replace("LlamaForCausalLM", "WhaleForCausalLM")).expect("config");
    };
    refused(&job_with_model(other), &["WhaleForCausalLM", "LlamaForCausalLM"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused() {
    // The super-user may write anywhere but into the kernel's own tables.
    let job = Job::echo("", SELECT);
    job.with_rows("a", 0, 3);
    let closed = job.folder.path().join("closed");
    std::fs::create_dir(&closed).expect("a folder");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).expect("permissions");
    let output =
        if std::fs::create_dir(closed.join("try")).is_ok() { "/sys/kernel/out".into() } else { closed.join("out") };
    let sql = std::fs::read_to_string(job.path()).expect("the job");
    std::fs::write(job.path(), sql.replace("'out'", &format!("'{}'", output.display()))).expect("the job");
    refused(&job, &["cannot write", "hint"]);
}

#[test]
fn a_full_disk_publishes_nothing_and_the_next_run_goes_on() {
    let job = Job::echo("", "SELECT id, ai_complete(text) AS answer, ai_embed(text) AS vector FROM rows");
    job.with_rows("a", 0, 2000);
    // A limit on the size of files stands for the disk: 16 KiB suffice for the records, not for the parts.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{}' run '{}' --json",
        env!("CARGO_BIN_EXE_rowmill"),
        job.path().display()
    );
    let said = Said::of(Command::new("bash").args(["-c", &limited]));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("too large") || said.stderr.contains("No space"), "{}", said.stderr);
    assert!(!job.output().join("_published").exists());
    assert_eq!(job.say("run", &[]).ok().summary()["rows"], 2000);
}
