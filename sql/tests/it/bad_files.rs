//! Job files that are wrong around their query, and the whole report that their author sees.

use crate::bad_jobs::{bed, report};
use crate::bed::Bed;

/// Whole files with the report they give.
const FILES: &[(&str, &str)] = &[
    (
        "",
        "error: the file defines no job\n  at job.sql:1:1\n  hint: add CREATE JOB name WITH (output = '…', logical_date = '{{ ds }}') AS SELECT …",
    ),
    (
        "SELECT 1",
        "error: a SELECT alone is not a job\n  at job.sql:1:1\n  hint: write CREATE JOB name WITH (output = '…', logical_date = '{{ ds }}') AS SELECT …",
    ),
    (
        "INSERT INTO t VALUES (1)",
        "error: INSERT statements cannot stand in a job file\n  at job.sql:1:1\n  hint: a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT",
    ),
    (
        "SET a = 1",
        "error: SET statements cannot stand in a job file\n  at job.sql:1:1\n  hint: a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT",
    ),
    (
        "COPY t TO 'x'",
        "error: COPY statements cannot stand in a job file\n  at job.sql:1:1\n  hint: a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT",
    ),
    (
        "CREATE TABLE t (a INT)",
        "error: CREATE TABLE cannot stand in a job file\n  at job.sql:1:1\n  hint: tables are CREATE EXTERNAL TABLE name STORED AS PARQUET LOCATION '…'",
    ),
    (
        "CREATE VIEW v AS SELECT 1",
        "error: CREATE VIEW statements cannot stand in a job file\n  at job.sql:1:1\n  hint: a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT",
    ),
    ("CREATE MODEL m", "error: expected WITH (option = value, …), found the end of the file\n  at job.sql:1:15"),
    (
        "CREATE MODEL m WITH (engine = 'candel')",
        "error: there is no engine 'candel'\n  at job.sql:1:31\n  hint: did you mean 'candle'?",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai')",
        "error: CREATE MODEL m needs the option `name`\n  at job.sql:1:14\n  hint: name = 'gpt-4o-mini', as the provider calls the model",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x y')",
        "error: a model's name has letters, digits and - _ . : / @ only\n  at job.sql:1:48",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x', base_url = 'http://x')",
        "error: CREATE MODEL m has no option `base_url`\n  at job.sql:1:53\n  hint: its options are: engine, name, provider, dimensions, lane, structured, schema_subset, system_role, temperature, logprobs, think_tags, thinking_tokens",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x', structured = 'tools, xml')",
        "error: option `structured` cannot be 'xml'\n  at job.sql:1:66\n  hint: it is one of 'json_schema', 'json_value', 'tools', 'json_object', 'none'",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x', temperature = 0)",
        "error: option `temperature` takes true or false, not a number\n  at job.sql:1:67",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x', lane = 'bulk')",
        "error: option `lane` cannot be 'bulk'\n  at job.sql:1:60\n  hint: it is one of 'online', 'flex', 'batch', 'auto'",
    ),
    (
        "CREATE MODEL m WITH (engine = 'vertex', name = 'x', lane = 'batch')",
        "error: engine 'vertex' has no batch interface that Rowmill speaks\n  at job.sql:1:60\n  hint: lane = 'batch' is for openai, azure, anthropic, bedrock, gemini, groq, mistral, together; without `lane` requests go online",
    ),
    (
        "CREATE MODEL m WITH (engine = 'anthropic', name = 'x', lane = 'flex')",
        "error: engine 'anthropic' has no flex tier\n  at job.sql:1:63\n  hint: lane = 'flex' is for openai, gemini, groq; without `lane` requests go online",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle')",
        "error: CREATE MODEL m needs the option `source`\n  at job.sql:1:14\n  hint: source = 'hf://owner/name', a folder with safetensors, or a .gguf file",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'hf://x')",
        "error: 'hf://x' does not name a model of the hub\n  at job.sql:1:50\n  hint: hf://owner/name, or hf://owner/name/file.gguf",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'gs://x/y')",
        "error: 'gs://' is not a store this version reads\n  at job.sql:1:50\n  hint: use a path relative to the job file, file:///… or s3://bucket/…",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'x', dtype = 'int8')",
        "error: option `dtype` cannot be 'int8'\n  at job.sql:1:63\n  hint: it is one of 'auto', 'f32', 'bf16', 'f16', 'fp8'",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'x', adapter = 'hf://a/b')",
        "error: an adapter of the hub needs its commit\n  at job.sql:1:65\n  hint: adapter_revision = '<40 hex digits>'",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'x', adapter = 'hf://a/b', adapter_revision = 'main')",
        "error: an adapter_revision is a commit: 40 hex digits\n  at job.sql:1:96",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'x', adapter = 'y', adapter_revision = 'main')",
        "error: an adapter_revision belongs to an hf:// adapter only\n  at job.sql:1:89",
    ),
    (
        "CREATE MODEL m WITH (engine = 'candle', source = 'x', adapter_revision = 'main')",
        "error: an adapter_revision belongs to an adapter\n  at job.sql:1:74",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo', delay = 1)",
        "error: CREATE MODEL m has no option `delay`\n  at job.sql:1:39\n  hint: its options are: engine, delay_ms, fail_ratio, dimensions, abort_on",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo', delay_ms = 'slow')",
        "error: option `delay_ms` takes a whole number, not a string\n  at job.sql:1:50",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo', fail_ratio = 2)",
        "error: option `fail_ratio` takes a number from 0 to 1\n  at job.sql:1:52",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo', dimensions = 65537);",
        "error: option `dimensions` takes a whole number of at least 1 and at most 65536\n  at job.sql:1:52",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'n', logprobs = 5000000000);",
        "error: option `logprobs` takes a whole number of at least 0 and at most 4294967295\n  at job.sql:1:64",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo', engine = 'echo')",
        "error: option `engine` is given twice\n  at job.sql:1:39",
    ),
    (
        "CREATE MODEL m WITH (engine = 'echo');\nCREATE MODEL M WITH (engine = 'echo');",
        "error: model `m` is defined twice\n  at job.sql:2:14",
    ),
    (
        "CREATE EXTERNAL TABLE t STORED AS AVRO LOCATION 't/';",
        "error: STORED AS AVRO: not a format that can be read\n  at job.sql:1:35\n  hint: PARQUET, CSV or JSON (one object a line)",
    ),
    (
        "CREATE EXTERNAL TABLE t STORED AS PARQUET;",
        "error: Missing LOCATION clause in CREATE EXTERNAL TABLE statement\n  at job.sql:1:23",
    ),
    (
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 't/*.parquet';",
        "error: patterns in LOCATION are not supported\n  at job.sql:1:52\n  hint: name a file, or a folder: all files in it and in its subfolders are read",
    ),
    (
        "CREATE EXTERNAL TABLE a.t STORED AS PARQUET LOCATION 't/';",
        "error: a table has a plain name, without a schema\n  at job.sql:1:23",
    ),
    (
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 't/' OPTIONS (format.delimeter ';');",
        "error: option `format.delimeter`: not an option of CSV tables\n  at job.sql:1:69\n  hint: did you mean `format.delimiter`?",
    ),
    (
        "CREATE EXTERNAL TABLE t (a GEOMETRY) STORED AS CSV LOCATION 't/';",
        "error: column `a`: GEOMETRY is not a type that is supported here\n  at job.sql:1:26\n  hint: types are STRING, INT, BIGINT, FLOAT, DOUBLE, BOOLEAN, DATE, TIMESTAMP, DECIMAL(p, s), BINARY, ARRAY<…> and STRUCT<name type, …>",
    ),
    (
        "CREATE JOB j WITH (output = 'out') AS SELECT 1",
        "error: CREATE JOB j needs the option `logical_date`\n  at job.sql:1:12\n  hint: logical_date = '{{ ds }}', and run with --param ds=2026-11-20",
    ),
    (
        "CREATE JOB j WITH (logical_date = '1') AS SELECT 1",
        "error: CREATE JOB j needs the option `output`\n  at job.sql:1:12\n  hint: output = 's3://bucket/folder/' or a folder relative to the job file",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '../x') AS SELECT 1",
        "error: a logical date has letters, digits and . _ : + - only\n  at job.sql:1:51\n  hint: for example 2026-11-20 or 2026-11-20T06",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1', max_errors = 1) AS SELECT 1",
        "error: CREATE JOB j has no option `max_errors`\n  at job.sql:1:56\n  hint: its options are: output, logical_date, key, model, shard_rows, max_error_ratio, pool, never_send, data_class, max_cost_usd, spill_to, spill_when, min_confidence, deadline",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1', model = 'x') AS SELECT 1",
        "error: there is no model `x`\n  at job.sql:1:64\n  hint: define it: CREATE MODEL x WITH (engine = 'candle', source = '…')",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1', key = 'a, a') AS SELECT 1 AS a",
        "error: a name stands twice in `key`\n  at job.sql:1:62\n  hint: key = 'ticket_id' or key = 'shop, ticket_id'",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1', key = 'b') AS SELECT 1 AS a",
        "error: the job's key `b` is not an output column\n  at job.sql:1:70\n  hint: select it; the output columns are: a",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1') AS SELECT ai_complete('x')",
        "error: ai_complete does not say which model answers\n  at job.sql:1:66\n  hint: give the job a default, model = 'name', or the call its own, model => 'name'",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1') AS\nDELETE FROM t",
        "error: expected SELECT after AS, found `DELETE`\n  at job.sql:2:1",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '1') AS SELECT 1; CREATE JOB k WITH (output = 'o', logical_date = '1') AS SELECT 1",
        "error: a job file has one CREATE JOB, and this is the second\n  at job.sql:1:69\n  hint: put it into a file of its own",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '{{ ds }}') AS SELECT 1",
        "error: parameter `ds` has no value\n  at job.sql:1:52\n  hint: give it with `--param ds=VALUE`, or a default in the file: {{ ds | default('…') }}",
    ),
    (
        "CREATE JOB j WITH (output = 'out', logical_date = '{{ ds | default('2026-11-20') }}', modle = 'm') AS SELECT 1",
        "error: CREATE JOB j has no option `modle`\n  at job.sql:1:87\n  hint: did you mean `model`?",
    ),
];

#[tokio::test]
async fn files() {
    let bed = bed();
    let mut wrong = Vec::new();
    for (text, expected) in FILES {
        let actual = report(&bed, text).await;
        if actual != *expected {
            wrong.push(format!("    (\n        {text:?},\n        {actual:?},\n    ),"));
        }
    }
    assert!(wrong.is_empty(), "these reports differ; now they are:\n{}", wrong.join("\n"));
}

#[test]
fn large_files_and_parameters() {
    let bed = Bed::new();
    let error = bed.spec(&"-- x\n".repeat(60_000)).unwrap_err();
    assert!(error.to_string().ends_with("has 300000 bytes; at most 262144 are read"), "{error}");
    let text =
        "CREATE JOB j WITH (output = 'out', logical_date = '{{ ds }}') AS SELECT '{{ ds }}' AS a, uper('x') AS b";
    let error = bed.spec_with(text, &[("ds", "2026-11-20")]).unwrap_err();
    // The column is the one of the file as it was written, not as it was filled in.
    assert_eq!(error.location().unwrap().column, text.find("uper").unwrap() as u64 + 1);
    let error = bed.spec_with(text, &[("ds", "x'; DROP")]).unwrap_err();
    assert_eq!(error.to_string(), "the value of parameter `ds` contains '\\''");
}
