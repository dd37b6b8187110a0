//! Jobs whose query is wrong, and the whole report that their author sees.

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

pub fn bed() -> Bed {
    let bed = Bed::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let tags: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)])]));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", text.clone()), ("tag", text), ("tags", tags)], 10);
    bed
}

pub async fn report(bed: &Bed, text: &str) -> String {
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
