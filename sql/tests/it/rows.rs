//! Rows: nested calls, conditions, NULLs, errors, repeated values, order, slices, column pruning.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::DataType;
use rowmill_jobs::plan::Slice;
use rowmill_sql::Source;

use crate::bed::{Bed, HEAD, lines, slices};

fn tickets() -> Bed {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..6));
    let bodies: ArrayRef = Arc::new(StringArray::from(vec![
        Some("bug one"),
        Some("bill two"),
        None,
        Some("fail three"),
        Some("bug one"),
        Some("yes bill"),
    ]));
    let langs: ArrayRef = Arc::new(StringArray::from(vec!["en", "en", "en", "en", "de", "en"]));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", bodies), ("lang", langs)], 2);
    bed
}

#[tokio::test]
async fn a_classified_table_keeps_its_rows_in_order() {
    let bed = tickets();
    let rows = bed.rows("SELECT id, ai_classify(body, ['bug', 'bill'], with_score => true) AS topic FROM t").await;
    assert_eq!(
        lines(&rows),
        [
            "0 | {label: bug, score: 0.75} | NULL",
            "1 | {label: bill, score: 0.75} | NULL",
            "2 | NULL | NULL",
            "3 | NULL | [{column: topic, code: injected, message: told to}]",
            "4 | {label: bug, score: 0.75} | NULL",
            "5 | {label: bill, score: 0.75} | NULL",
        ]
    );
    // Six rows: one NULL is not asked, one value is there twice.
    assert_eq!(bed.engine.asked().len(), 4);
    let sums = *bed.counter.0.lock().unwrap();
    assert_eq!((sums.rows_in, sums.rows_out, sums.errors, sums.values, sums.requests), (6, 6, 1, 5, 4));
}

#[tokio::test]
async fn nested_calls_feed_each_other() {
    let bed = tickets();
    let rows = bed.rows("SELECT id, ai_classify(lower(ai_complete(body)), ['bug', 'bill']) AS topic, length(ai_complete(body)) + 1 AS n FROM t").await;
    assert_eq!(
        lines(&rows),
        [
            "0 | bug | 8 | NULL",
            "1 | bill | 9 | NULL",
            "2 | NULL | NULL | NULL",
            "3 | NULL | NULL | [{column: topic, n, code: injected, message: told to}]",
            "4 | bug | 8 | NULL",
            "5 | bill | 9 | NULL",
        ]
    );
    // The inner call stands twice in the query and is asked once a value.
    assert_eq!(bed.engine.asked().len(), 4 + 3);
}

#[tokio::test]
async fn a_condition_filters_before_other_models_and_keeps_rows_that_failed() {
    let bed = tickets();
    let rows = bed
        .rows("SELECT id, ai_complete(body) AS text, ai_filter(body) AS wanted FROM t WHERE lang = 'en' AND ai_filter(body)")
        .await;
    assert_eq!(
        lines(&rows),
        ["3 | NULL | NULL | [{column: wanted, WHERE, code: injected, message: told to}]", "5 | YES BILL | true | NULL",]
    );
    // Row 4 is cut by `lang`; rows 0, 1, 3, 5 are asked whether they are wanted; only row 5 is completed.
    assert_eq!(
        bed.engine.asked(),
        [vec!["bill two"], vec!["bug one"], vec!["fail three"], vec!["yes bill"], vec!["yes bill"]]
    );
}

/// What a guard keeps from a model is not computed either.
#[tokio::test]
async fn values_that_a_guard_protects_fail_nothing() {
    let bed = Bed::new();
    let id: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), Some(2), None, Some(5)]));
    bed.parquet("t/a.parquet", vec![("id", id)], 10);
    for query in [
        "SELECT id, CASE WHEN id > 0 THEN ai_complete(CAST(10 / id AS STRING)) END AS c FROM t ORDER BY id NULLS LAST",
        "SELECT id, CASE WHEN id IS NULL OR id = 0 THEN NULL ELSE ai_complete(CAST(10 / id AS STRING)) END AS c FROM t \
         ORDER BY id NULLS LAST",
    ] {
        assert_eq!(
            lines(&bed.rows(query).await),
            ["0 | NULL | NULL", "2 | 5 | NULL", "5 | 2 | NULL", "NULL | NULL | NULL"]
        );
    }
}

#[tokio::test]
async fn case_asks_only_for_its_branch() {
    let bed = tickets();
    let rows = bed.rows("SELECT id, CASE WHEN id < 2 THEN ai_complete(body) ELSE 'other' END AS c FROM t").await;
    assert_eq!(lines(&rows)[..3], ["0 | BUG ONE | NULL", "1 | BILL TWO | NULL", "2 | other | NULL"]);
    assert_eq!(bed.engine.asked(), [["bill two"], ["bug one"]]);
}

#[tokio::test]
async fn or_and_and_ask_only_where_it_matters() {
    let bed = tickets();
    let rows = bed.rows("SELECT id FROM t WHERE id < 2 OR (lang = 'en' AND ai_filter(body))").await;
    assert_eq!(
        lines(&rows),
        ["0 | NULL", "1 | NULL", "3 | [{column: WHERE, code: injected, message: told to}]", "5 | NULL"]
    );
    assert_eq!(bed.engine.asked(), [["fail three"], ["yes bill"]]);
}

#[tokio::test]
async fn conditions_are_asked_one_after_another() {
    let bed = tickets();
    let rows = bed
        .rows("SELECT id FROM t WHERE ai_filter(prompt('{0}', body)) AND ai_filter(prompt('Sure? {0}', body))")
        .await;
    assert_eq!(lines(&rows), ["3 | [{column: WHERE, code: injected, message: told to}]", "5 | NULL"]);
    // The second question is for row 5 only: the others were refused, and row 3 failed.
    assert_eq!(bed.engine.asked().len(), 4 + 1);
}

#[tokio::test]
async fn prompts_and_concatenations_keep_text_and_values_apart() {
    let bed = tickets();
    let text = format!(
        "{HEAD}SELECT id, ai_complete(prompt('{{1}} of {{0}}: {{\"x\": 1}}', id, lang)) AS a, ai_complete('Say: ' || body || '!') AS b FROM t"
    );
    let (job, inputs) = bed.compiled(&text).await.unwrap();
    use rowmill_jobs::infer::Piece::{Text, Value};
    assert_eq!(job.calls()[0].task.template, [Value(1), Text(" of ".into()), Value(0), Text(": {\"x\": 1}".into())]);
    assert_eq!(job.calls()[1].task.template, [Text("Say: ".into()), Value(0), Text("!".into())]);
    assert_eq!((job.calls()[0].column.as_str(), job.calls()[0].function.as_str()), ("a", "ai_complete"));
    let rows = bed.run(&job, &slices(&inputs[0])).await.unwrap();
    assert_eq!(lines(&rows)[1], "1 | 1|EN | BILL TWO | NULL");
}

#[tokio::test]
async fn every_kind_of_answer_has_its_type() {
    let bed = Bed::new();
    let bodies: ArrayRef = Arc::new(StringArray::from(vec![
        r#"{"product":"x","severity":2,"ok":true}"#,
        r#"{"product":null,"severity":null,"ok":null}"#,
        "no json",
    ]));
    bed.parquet("t/a.parquet", vec![("body", bodies)], 10);
    let rows = bed
        .rows("SELECT ai_extract(body, 'product STRING, severity INT, ok BOOLEAN') AS facts, ai_embed(body, model => 'vectors') AS v, \
               ai_if(prompt('{0}?', body)) AS yes FROM t")
        .await;
    let lines = lines(&rows);
    assert_eq!(lines[0], "{product: x, severity: 2, ok: true} | [38.0, 0.0, 1.0] | false | NULL");
    assert!(lines[1].starts_with("{product: NULL, severity: NULL, ok: NULL}"), "{}", lines[1]);
    assert!(lines[2].starts_with("NULL | "), "{}", lines[2]);
    assert!(
        lines[2].ends_with("[{column: facts, code: invalid_output, message: the output is not JSON (at character 2)}]"),
        "{}",
        lines[2]
    );
    let schema = rows.schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["facts", "v", "yes", "_errors"]);
    assert!(
        matches!(schema.field(1).data_type(), DataType::FixedSizeList(item, 3) if item.data_type() == &DataType::Float32)
    );
}

#[tokio::test]
async fn fields_of_answers_can_be_used() {
    let bed = tickets();
    let rows = bed
        .rows(
            "SELECT id, ai_classify(body, ['bug', 'bill'], with_score => true)['score'] AS score FROM t \
             WHERE ai_classify(body, ['bug', 'bill'], with_score => true)['label'] = 'bill'",
        )
        .await;
    assert_eq!(
        lines(&rows),
        ["1 | 0.75 | NULL", "3 | NULL | [{column: score, WHERE, code: injected, message: told to}]", "5 | 0.75 | NULL"]
    );
    assert_eq!(bed.engine.asked().len(), 4);
}

#[tokio::test]
async fn labels_with_descriptions_and_fields_with_questions_reach_the_prompt() {
    let bed = tickets();
    let query = "SELECT ai_classify(body, {'bug': 'it is broken', 'bill': 'money'}, task_description => 'By team.') AS a, \
                 ai_extract(body, {'who': 'Who wrote it?'}) AS b FROM t";
    let (job, _) = bed.compiled(&format!("{HEAD}{query}")).await.unwrap();
    let prompt = |call: usize| {
        let pieces = job.calls()[call].task.template.iter();
        pieces
            .map(|piece| match piece {
                rowmill_jobs::infer::Piece::Text(text) => text.clone(),
                rowmill_jobs::infer::Piece::Value(index) => format!("<{index}>"),
            })
            .collect::<String>()
    };
    assert_eq!(
        prompt(0),
        "Which category fits the text best?\nBy team.\nCategories:\n- bug: it is broken\n- bill: money\n\nText:\n<0>"
    );
    assert!(prompt(1).contains("\n- who (string): Who wrote it?\n"), "{}", prompt(1));
}

#[tokio::test]
async fn a_value_that_is_too_large_is_an_error_without_a_call() {
    let bed = Bed::new();
    let bodies: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(1024 * 1024 + 1), "y".into()]));
    bed.parquet("t/a.parquet", vec![("body", bodies)], 10);
    let rows = bed.rows("SELECT ai_complete(body) AS c FROM t").await;
    assert_eq!(
        lines(&rows),
        ["NULL | [{column: c, code: too_large, message: a value has more than 1048576 bytes}]", "Y | NULL"]
    );
    assert_eq!(bed.engine.asked(), [["y"]]);
}

#[tokio::test]
async fn slices_are_read_exactly_and_in_order() {
    let bed = Bed::new();
    for (name, first) in [("t/a.parquet", 0i64), ("t/b.parquet", 1000)] {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + 1000));
        bed.parquet(name, vec![("id", ids)], 300);
    }
    let (job, _) =
        bed.compiled(&format!("{HEAD}SELECT id, ai_complete(id) AS c FROM t WHERE id % 2 = 0")).await.unwrap();
    assert_eq!(job.source(), Source::Table { index: 0 });
    let slice = |file, row_group, first_row, rows| Slice { file, row_group, first_row, rows };
    let rows = bed
        .run(
            &job,
            &[slice(1, 3, 10, 4), slice(0, 0, 298, 2), slice(0, 1, 0, 2), slice(0, 1, 100, 2), slice(0, 0, 0, 1)],
        )
        .await
        .unwrap();
    assert_eq!(
        lines(&rows),
        [
            "1910 | 1910 | NULL",
            "1912 | 1912 | NULL",
            "298 | 298 | NULL",
            "300 | 300 | NULL",
            "400 | 400 | NULL",
            "0 | 0 | NULL"
        ]
    );
}

#[tokio::test]
async fn many_rows_pass_through_many_windows_in_order_and_repeats_are_asked_once() {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20_000));
    let bodies: ArrayRef = Arc::new(StringArray::from_iter_values((0..20_000).map(|i| format!("v{}", i % 5_000))));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", bodies)], 7_000);
    let rows = bed.rows("SELECT id, ai_complete(body) AS c FROM t").await;
    let expected: Vec<String> = (0..20_000).map(|i| format!("{i} | V{} | NULL", i % 5_000)).collect();
    assert_eq!(lines(&rows), expected);
    assert_eq!(bed.engine.asked().len(), 5_000);
}

#[tokio::test]
async fn only_used_columns_are_read_and_cheap_conditions_stay_below() {
    let bed = tickets();
    let (job, _) = bed
        .compiled(&format!(
            "{HEAD}SELECT upper(ai_complete(body)) AS c FROM (SELECT * FROM t) s WHERE ai_filter(body) AND id > 1"
        ))
        .await
        .unwrap();
    let plan = job.explain().await.unwrap();
    let at = |needle: &str| plan.find(needle).unwrap_or_else(|| panic!("{needle} is not in\n{plan}"));
    assert!(plan.contains("projection=[id, body]") && !plan.contains("lang"), "{plan}");
    assert!(at("InferExec: calls=1") < at("id@0 > 1"), "{plan}");
    assert!(plan.contains("InferExec: calls=0"), "{plan}");
    // After the condition on `id`, only `body` goes on.
    assert!(plan.contains("projection=[body@1]") || plan.contains("expr=[body@1"), "{plan}");
}

#[tokio::test]
async fn a_job_without_ai_copies() {
    let bed = tickets();
    let rows = bed.rows("SELECT id, upper(lang) AS lang FROM t WHERE id < 2").await;
    assert_eq!(lines(&rows), ["0 | EN | NULL", "1 | EN | NULL"]);
    assert_eq!(rows.schema().field(1).data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn conditions_on_answers_of_a_subquery() {
    let bed = tickets();
    let query = "WITH a AS (SELECT id, lang, ai_complete(body) AS c FROM t) \
                 SELECT id, c || '!' AS d FROM a WHERE c LIKE 'BUG%' AND lang = 'en'";
    assert_eq!(
        lines(&bed.rows(query).await),
        ["0 | BUG ONE! | NULL", "3 | NULL | [{column: d, WHERE, code: injected, message: told to}]"]
    );
    // `lang` is cheap: row 4 is never asked, though the condition stands outside.
    assert_eq!(bed.engine.asked(), [["bill two"], ["bug one"], ["fail three"], ["yes bill"]]);
}

#[tokio::test]
async fn an_order_goes_below_conditions_too() {
    let bed = tickets();
    let rows = bed.rows("SELECT id FROM t WHERE NOT ai_filter(body) ORDER BY id DESC").await;
    assert_eq!(lines(&rows)[..2], ["4 | NULL", "3 | [{column: WHERE, code: injected, message: told to}]"]);
}

#[tokio::test]
async fn queries_without_rows() {
    let bed = tickets();
    for query in ["SELECT ai_complete(body) AS c FROM t WHERE false", "SELECT ai_complete(body) AS c FROM t LIMIT 0"] {
        assert_eq!(bed.rows(query).await.num_rows(), 0, "{query}");
    }
    assert!(bed.engine.asked().is_empty());
}

#[tokio::test]
async fn an_empty_table_gives_no_rows() {
    let bed = Bed::new();
    let none: ArrayRef = Arc::new(StringArray::from(Vec::<Option<&str>>::new()));
    bed.parquet("t/a.parquet", vec![("body", none)], 10);
    assert_eq!(bed.rows("SELECT ai_complete(body) AS c FROM t").await.num_rows(), 0);
}
