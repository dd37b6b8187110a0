//! Job files that are wrong, and the whole report that their author sees.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray};
use arrow::datatypes::Int32Type;

use crate::bed::{Bed, HEAD};

/// Queries after [`HEAD`], whose last line is line 4, with the report they give.
const QUERIES: &[(&str, &str)] = &[
    // unknown names
    (
        "SELECT ai_clasify(body, ['a', 'b']) FROM t",
        "error: there is no AI function `ai_clasify`\n  at job.sql:5:8\n  hint: did you mean `ai_classify`? ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_think(body) FROM t",
        "error: there is no AI function `ai_think`\n  at job.sql:5:8\n  hint: the AI functions are ai_complete, ai_gen, ai_classify, ai_extract, ai_filter, ai_if, ai_embed",
    ),
    ("SELECT uper(body) FROM t", "error: there is no function `uper`\n  at job.sql:5:8\n  hint: did you mean `upper`?"),
    (
        "SELECT id,\n  ai_complete(boddy) AS c\nFROM t",
        "error: there is no column `boddy`\n  at job.sql:6:15\n  hint: did you mean `body`?",
    ),
    ("SELECT id, boddy FROM t", "error: there is no column `boddy`\n  at job.sql:5:12\n  hint: did you mean `body`?"),
    ("SELECT id FROM tt", "error: there is no table `tt`\n  at job.sql:5:16\n  hint: did you mean `t`?"),
    (
        "SELECT s.nope FROM (SELECT id FROM t) s",
        "error: there is no column `nope`\n  at job.sql:5:8\n  hint: the columns here are: id",
    ),
    (
        "SELECT ai_embed(body, model => 'vector') FROM t",
        "error: there is no model `vector`\n  at job.sql:5:32\n  hint: did you mean 'vectors'?",
    ),
    // arguments
    (
        "SELECT ai_classify(body, ['a']) FROM t",
        "error: ai_classify needs at least two labels to choose from\n  at job.sql:5:27\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body, ['a', 'a']) FROM t",
        "error: label 'a' stands twice\n  at job.sql:5:27\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body, [body, 'b']) FROM t",
        "error: the labels of ai_classify must be a literal list of strings\n  at job.sql:5:27\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body) FROM t",
        "error: ai_classify needs its argument `labels`\n  at job.sql:5:8\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body, ['a', 'b'], true) FROM t",
        "error: ai_classify takes 2 arguments without a name\n  at job.sql:5:38\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body, ['a', 'b'], with_scores => true) FROM t",
        "error: ai_classify has no argument `with_scores`\n  at job.sql:5:38\n  hint: did you mean `with_score`? ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_classify(body, ['a', 'b'], with_score => 'yes') FROM t",
        "error: `with_score` of ai_classify must be true or false\n  at job.sql:5:52\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_complete(body, max_tokens => 0) FROM t",
        "error: `max_tokens` of ai_complete must be a whole number from 1 to 65536\n  at job.sql:5:40\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_complete(body, pattern => 'a(b') FROM t",
        "error: the pattern cannot be read at byte 1: unclosed group\n  at job.sql:5:37\n  hint: patterns are written as for Rust's regex crate: characters, [classes], (groups), a|b, *, +, ?, {2,5}",
    ),
    (
        "SELECT ai_complete(body, pattern => body) FROM t",
        "error: `pattern` of ai_complete must be a literal string, the same for all rows\n  at job.sql:5:37\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_complete(body, response_format => 'a INT', pattern => 'a+') FROM t",
        "error: ai_complete takes `response_format` or `pattern`, not both\n  at job.sql:5:65\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_complete(body, pattern => 'up to [0-9]+$ or more') FROM t",
        "error: the pattern looks around (^, $ or \\b within it)\n  at job.sql:5:37\n  hint: the pattern is of the whole answer: leave anchors and word boundaries out",
    ),
    (
        "SELECT ai_classify(body, ['a', 'b'], calibrate => 1) FROM t",
        "error: `calibrate` of ai_classify must be true or false\n  at job.sql:5:51\n  hint: ai_classify(input, ['label', 'other', …] [, model => 'name'] [, with_score => true] [, calibrate => true] [, task_description => 'text'])",
    ),
    (
        "SELECT ai_complete(body, system => body) FROM t",
        "error: `system` of ai_complete must be a literal string, the same for all rows\n  at job.sql:5:36\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_complete(body, system => 'a', system => 'b') FROM t",
        "error: argument `system` of ai_complete is given twice\n  at job.sql:5:41\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_extract(body, 'product') FROM t",
        "error: field `product` has no type that can be read\n  at job.sql:5:25\n  hint: types are STRING, INT, BIGINT, FLOAT, DOUBLE, BOOLEAN, ARRAY<…> and STRUCT<name type, …>",
    ),
    (
        "SELECT ai_extract(body, 'd DATE') FROM t",
        "error: field `d`: it is of a type that a model cannot fill in\n  at job.sql:5:25\n  hint: types are STRING, INT, BIGINT, FLOAT, DOUBLE, BOOLEAN, ARRAY<…> and STRUCT<name type, …>",
    ),
    (
        "SELECT ai_extract(body, '{\"type\": 1') FROM t",
        "error: the JSON Schema is not JSON: EOF while parsing an object at line 1 column 10\n  at job.sql:5:25\n  hint: write a JSON object, or 'name TYPE, …'",
    ),
    (
        "SELECT ai_complete(prompt('{0} {1}', body)) FROM t",
        "error: the template has {1}, and there are 1 values after it (they count from 0)\n  at job.sql:5:20\n  hint: prompt('template {0} {1}', first, second)",
    ),
    (
        "SELECT ai_complete(prompt(body)) FROM t",
        "error: the template of prompt must be a literal string, the same for all rows\n  at job.sql:5:20\n  hint: prompt('template {0} {1}', first, second)",
    ),
    (
        "SELECT prompt('{0}', body) FROM t",
        "error: prompt(…) stands outside an AI function\n  at job.sql:5:8\n  hint: use it as an argument: ai_complete(prompt('… {0}', column))",
    ),
    (
        "SELECT ai_complete(named_struct('a', id)) FROM t",
        "error: ai_complete cannot read a value of type Struct(\"a\": Int64): it is not text and cannot be shown as text.\n  at job.sql:5:8\n  hint: take a field of it, or make a text of it first",
    ),
    (
        "SELECT id, tag AS id FROM t",
        "error: more than one column is called `id`\n  at job.sql:5:19\n  hint: write table.column, or give one another name with AS",
    ),
    (
        "SELECT random() AS r FROM t",
        "error: random() gives another value every time, and a shard that is tried again must give the same rows\n  at job.sql:5:8\n  hint: use a parameter: '{{ ds }}'",
    ),
    (
        "SELECT id FROM t WHERE body = 1 + body",
        "error: Cannot coerce arithmetic expression Int64 + Utf8 to valid types\n  at job.sql:5:31\n  hint: CAST one of the two to the other's type",
    ),
    (
        "SELECT id FROM t WHERE id = 1 AND tags = 2 AND tag = 'x'",
        "error: Cannot infer common argument type for comparison operation List(Int32) = Int64\n  at job.sql:5:35\n  hint: CAST one of the two to the other's type",
    ),
    (
        "SELECT id FROM t WHERE tags > 1 OR tags > 2",
        "error: Cannot infer common argument type for comparison operation List(Int32) > Int64\n  at job.sql:5:1\n  hint: CAST one of the two to the other's type",
    ),
    (
        "SELECT id FROM t WHERE tag AND id > 1",
        "error: Cannot infer common argument type for logical boolean operation Utf8 AND Boolean\n  at job.sql:5:24\n  hint: CAST one of the two to the other's type",
    ),
    (
        "SELECT id + tags AS x FROM t",
        "error: Cannot coerce arithmetic expression Int64 + List(Int32) to valid types\n  at job.sql:5:8\n  hint: CAST one of the two to the other's type",
    ),
    (
        "SELECT ai_complete(body) OVER () FROM t",
        "error: ai_complete answers row by row: no OVER, FILTER, DISTINCT or ORDER BY\n  at job.sql:5:8\n  hint: ai_complete(prompt [, model => 'name'] [, max_tokens => 256] [, system => 'text'] [, response_format => 'name TYPE, …' | pattern => 'regex'])",
    ),
    (
        "SELECT ai_complete(body, model => 'vectors') FROM t",
        "error: model `vectors` (echo) cannot answer ai_complete\n  at job.sql:5:8\n  hint: it can answer ai_embed; name another model with model => '…'",
    ),
    // classifiers know their own labels only
    (
        "SELECT ai_classify(body, ['billing', 'praise'], model => 'topics') FROM t",
        "error: the model has no label `praise`\n  at job.sql:5:8\n  model: topics\n  hint: the model was trained to choose among: Billing, bug",
    ),
    (
        "SELECT ai_complete(body, model => 'topics') FROM t",
        "error: model `topics` (echo) cannot answer ai_complete\n  at job.sql:5:8\n  hint: it can answer ai_classify; name another model with model => '…'",
    ),
    // what cannot be lifted
    (
        "SELECT ai_classify(body, ['a', 'b']) AS k, count(*) AS n FROM t GROUP BY 1",
        "error: GROUP BY or an aggregate over AI results is not run in the same job\n  at job.sql:5:8\n  hint: publish the AI results first, then do this in a second job that reads them",
    ),
    (
        "SELECT DISTINCT ai_complete(body) AS c FROM t",
        "error: DISTINCT over AI results is not run in the same job\n  at job.sql:5:17\n  hint: publish the AI results first, then do this in a second job that reads them",
    ),
    (
        "SELECT id, ai_complete(body) AS c FROM t ORDER BY c",
        "error: ORDER BY on an AI result: the rows of a shard know only their own shard\n  at job.sql:5:12\n  hint: publish the AI results first, then do this in a second job that reads them",
    ),
    (
        "SELECT id FROM t WHERE ai_filter(body) LIMIT 3",
        "error: LIMIT after a condition that a model decides: which rows those are is known only when all were asked\n  at job.sql:5:24\n  hint: put the LIMIT into a subquery below the AI function, or drop it",
    ),
    (
        "SELECT a.id FROM t a JOIN t b ON ai_complete(a.body) = b.body",
        "error: a join over AI results is not run in the same job\n  at job.sql:5:34\n  hint: publish the AI results first, then do this in a second job that reads them",
    ),
    (
        "SELECT ai_complete(body) AS c, (SELECT max(id) FROM t) AS m FROM t",
        "error: a subquery stands beside an AI function\n  at job.sql:5:8\n  hint: compute it in a CTE or a subquery in FROM, and use its column",
    ),
    (
        "SELECT * FROM (SELECT id AS x, ai_complete(body) AS c FROM t) s WHERE EXISTS (SELECT 1 FROM t WHERE t.id = s.x)",
        "error: a subquery in WHERE uses a column of a query with an AI function\n  at job.sql:5:32\n  hint: compute it in a CTE or a subquery in FROM, and use its column",
    ),
    (
        "SELECT * FROM (SELECT id AS x, ai_complete(body) AS c FROM t) s WHERE x > ALL (SELECT id FROM t WHERE t.id = s.x)",
        "error: a subquery in WHERE uses a column of a query with an AI function\n  at job.sql:5:32\n  hint: compute it in a CTE or a subquery in FROM, and use its column",
    ),
    // output columns
    (
        "SELECT id AS _errors FROM t",
        "error: an output column is called `_errors`: this name is Rowmill's own\n  at job.sql:5:14\n  hint: rename it with AS, or leave it out: SELECT * EXCEPT (_errors)",
    ),
    (
        "SELECT id AS __ai_7 FROM t",
        "error: an output column is called `__ai_7`: this name is Rowmill's own\n  at job.sql:5:14\n  hint: rename it with AS, or leave it out: SELECT * EXCEPT (__ai_7)",
    ),
    (
        "SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id",
        "error: two output columns are called `id`\n  at job.sql:5:10\n  hint: give one another name: expression AS name",
    ),
    (
        "SELECT ai_embed(body), ai_embed(tag) FROM t",
        "error: two output columns are called `ai_embed`\n  at job.sql:5:24\n  hint: name them: ai_embed(…) AS name",
    ),
    (
        "SELECT now() AS at FROM t",
        "error: now() gives another value every time, and a shard that is tried again must give the same rows\n  at job.sql:5:8\n  hint: use a parameter: '{{ ds }}'",
    ),
    // syntax
    ("SELECT id FROM t WHERE", "error: Expected: an expression, found the end of the file\n  at job.sql:5:23"),
    (
        "SELECT id FROM t; DROP TABLE t",
        "error: DROP statements cannot stand in a job file\n  at job.sql:5:19\n  hint: a job file has CREATE EXTERNAL TABLE, CREATE MODEL and one CREATE JOB … AS SELECT",
    ),
    ("SELECT 'open FROM t", "error: Unterminated string literal\n  at job.sql:5:8"),
];

fn bed() -> Bed {
    let bed = Bed::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let tags: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)])]));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", text.clone()), ("tag", text), ("tags", tags)], 10);
    bed
}

async fn report(bed: &Bed, text: &str) -> String {
    let shown = bed.folder.path().to_str().unwrap().to_owned();
    match bed.compiled(text).await {
        Ok(_) => "(no error)".to_owned(),
        Err(error) => error.report().replace(&format!("{shown}/"), ""),
    }
}

#[tokio::test]
async fn queries() {
    let bed = bed();
    let mut wrong = Vec::new();
    for (query, expected) in QUERIES {
        let actual = report(&bed, &format!("{HEAD}{query}")).await;
        if actual != *expected {
            wrong.push(format!("    (\n        {query:?},\n        {actual:?},\n    ),"));
        }
    }
    assert!(wrong.is_empty(), "these reports differ; now they are:\n{}", wrong.join("\n"));
}

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
        "error: CREATE MODEL m has no option `base_url`\n  at job.sql:1:53\n  hint: its options are: engine, name, provider, dimensions, lane",
    ),
    (
        "CREATE MODEL m WITH (engine = 'openai', name = 'x', lane = 'bulk')",
        "error: option `lane` cannot be 'bulk'\n  at job.sql:1:60\n  hint: it is one of 'online', 'flex', 'batch'",
    ),
    (
        "CREATE MODEL m WITH (engine = 'bedrock', name = 'x', lane = 'batch')",
        "error: engine 'bedrock' has no batch interface that Rowmill speaks\n  at job.sql:1:61\n  hint: lane = 'batch' is for openai, azure, anthropic, gemini, groq, mistral, together; without `lane` requests go online",
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
        "error: option `dtype` cannot be 'int8'\n  at job.sql:1:63\n  hint: it is one of 'auto', 'f32', 'bf16', 'f16'",
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

#[tokio::test]
async fn places_in_the_query_survive_parameters_when_compiled_again() {
    let bed = bed();
    let text = format!("{HEAD}SELECT '{{{{ ds }}}}' AS ds, boddy FROM t");
    let spec = bed.spec_with(&text, &[("ds", "2026-11-20T00:00:00")]).unwrap();
    let inputs = rowmill_sql::discover_inputs(&spec, |_, _| {}).await.unwrap();
    let error = rowmill_sql::compile(&spec, &inputs, None, &crate::bed::pins()).await.unwrap_err();
    let line = text.lines().last().unwrap();
    let location = error.location().unwrap();
    assert_eq!((location.line, location.column), (5, line.find("boddy").unwrap() as u64 + 1), "{}", error.report());
}
