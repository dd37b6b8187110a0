//! Queries that mix rows are run once, staged, and sharded afterwards.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use rowmill_jobs::Kind;
use rowmill_sql::Source;

use crate::bed::{Bed, HEAD, lines};

fn shop() -> Bed {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![3, 1, 2, 1]));
    let bodies: ArrayRef = Arc::new(StringArray::from(vec!["c", "a", "b", "a2"]));
    bed.parquet("t/a.parquet", vec![("id", ids.clone()), ("body", bodies)], 2);
    let names: ArrayRef = Arc::new(StringArray::from(vec!["three", "one", "two", "one again"]));
    bed.parquet("u/a.parquet", vec![("id", ids), ("name", names)], 2);
    bed
}

const TWO: &str = "CREATE EXTERNAL TABLE u STORED AS PARQUET LOCATION 'u/';\n";

async fn why(bed: &Bed, query: &str) -> String {
    let (job, _) =
        bed.compiled(&format!("{TWO}{HEAD}{query}")).await.unwrap_or_else(|error| panic!("{}", error.report()));
    match job.source() {
        Source::Staged { why } => why,
        Source::Table { index } => format!("table {index}"),
    }
}

async fn rows(bed: &Bed, query: &str) -> Vec<String> {
    let batch = bed.job_rows(&format!("{TWO}{HEAD}{query}")).await.unwrap_or_else(|error| panic!("{}", error.report()));
    lines(&batch)
}

#[tokio::test]
async fn joins_with_columns_of_the_same_name() {
    let bed = shop();
    let query = "SELECT t.id, u.id AS other, ai_complete(t.body || ' ' || u.name) AS c FROM t JOIN u ON t.id = u.id \
                 WHERE t.id > 1 ORDER BY t.id DESC";
    assert_eq!(why(&bed, query).await, "it orders the whole table");
    assert_eq!(rows(&bed, query).await, ["3 | 3 | C|THREE | NULL", "2 | 2 | B|TWO | NULL"]);
}

#[tokio::test]
async fn aggregates_below_an_ai_function() {
    let bed = shop();
    let query = "WITH g AS (SELECT id, count(*) AS n, min(body) AS first FROM t GROUP BY id) \
                 SELECT id, n, ai_complete(first) AS c FROM g ORDER BY id";
    assert_eq!(rows(&bed, query).await, ["1 | 2 | A | NULL", "2 | 1 | B | NULL", "3 | 1 | C | NULL"]);
}

#[tokio::test]
async fn order_and_limit_go_below_the_ai_function() {
    let bed = shop();
    let query = "SELECT ai_complete(body) AS c FROM t ORDER BY id, body LIMIT 2";
    assert_eq!(rows(&bed, query).await, ["A | NULL", "A2 | NULL"]);
    assert_eq!(bed.engine.asked(), [["a"], ["a2"]]);
}

#[tokio::test]
async fn every_reason_to_stage_is_said() {
    let bed = shop();
    for (query, reason) in [
        ("SELECT id, ai_complete(body) AS c FROM t WHERE id > 1", "table 1"),
        ("SELECT id, ai_complete(b) AS c FROM (SELECT id, upper(body) AS b FROM t) s", "table 1"),
        ("SELECT ai_complete(name) AS c FROM t JOIN u ON t.id = u.id", "it joins tables"),
        ("SELECT ai_complete(body) AS c FROM (SELECT DISTINCT body FROM t) s", "it aggregates or removes duplicates"),
        ("SELECT ai_complete(body) AS c FROM t LIMIT 2", "it has a LIMIT"),
        ("SELECT ai_complete(b) AS c FROM (SELECT body AS b FROM t UNION ALL SELECT name FROM u) s", "it is a UNION"),
        (
            "SELECT r, ai_complete(body) AS c FROM (SELECT body, row_number() OVER (ORDER BY id) AS r FROM t) s",
            "it has a window function",
        ),
        ("SELECT ai_complete(body) AS c FROM t WHERE id IN (SELECT id FROM u)", "it joins tables"),
        ("SELECT id, count(*) AS n FROM t GROUP BY id", "it aggregates or removes duplicates"),
    ] {
        assert_eq!(why(&bed, query).await, reason, "{query}");
    }
}

#[tokio::test]
async fn subqueries_and_unions_give_the_right_rows() {
    let bed = shop();
    assert_eq!(
        rows(&bed, "SELECT id, ai_complete(body) AS c FROM t WHERE id IN (SELECT id FROM u WHERE name = 'two')").await,
        ["2 | B | NULL"]
    );
    let mut union = rows(
        &bed,
        "SELECT ai_complete(b) AS c FROM (SELECT body AS b FROM t UNION ALL SELECT name FROM u) s WHERE b <> 'c'",
    )
    .await;
    union.sort();
    assert_eq!(
        union,
        ["A | NULL", "A2 | NULL", "B | NULL", "ONE AGAIN | NULL", "ONE | NULL", "THREE | NULL", "TWO | NULL"]
    );
    assert_eq!(rows(&bed, "SELECT id, count(*) AS n FROM t GROUP BY id HAVING count(*) > 1").await, ["1 | 2 | NULL"]);
}

#[tokio::test]
async fn a_base_without_columns_keeps_its_rows() {
    let bed = shop();
    assert_eq!(rows(&bed, "SELECT ai_complete('hello') AS c FROM t LIMIT 3").await, [" | NULL"; 3]);
    assert_eq!(bed.engine.asked().len(), 1);
}

#[tokio::test]
async fn a_value_that_cannot_be_cast_is_said_as_everywhere_without_showing_it() {
    let bed = shop();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let bodies: ArrayRef = Arc::new(StringArray::from_iter_values((0..1000).map(|n| match n {
        700 => "secret".to_owned(),
        n => n.to_string(),
    })));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", bodies)], 100);
    let row_local = "SELECT ai_complete(CAST(body AS INT)) AS c FROM t";
    let said = bed.job_rows(&format!("{TWO}{HEAD}{row_local}")).await.unwrap_err().report();
    let (explanation, _) = said.split_once("\n  reading").expect("a file's name");
    for query in [
        "SELECT ai_complete(n) AS c FROM (SELECT DISTINCT CAST(body AS INT) AS n FROM t) s",
        "SELECT ai_complete(n) AS c FROM (SELECT CAST(body AS INT) AS n, count(*) AS k FROM t GROUP BY 1) s",
        "SELECT ai_complete(u.name) AS c FROM u JOIN (SELECT CAST(body AS INT) AS n FROM t) s ON u.id = s.n",
        "SELECT ai_complete(u.name) AS c FROM (SELECT CAST(body AS INT) AS n FROM t) s JOIN u ON u.id = s.n",
        "SELECT ai_complete(n) AS c FROM (SELECT CAST(body AS INT) AS n FROM t ORDER BY n) s",
    ] {
        let error = bed.job_rows(&format!("{TWO}{HEAD}{query}")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{query}: {}", error.report());
        assert!(error.report().starts_with(explanation), "{query}: {}", error.report());
        assert!(error.hint_text().is_some_and(|hint| hint.contains("TRY_CAST")), "{query}: {}", error.report());
        assert!(!error.report().contains("secret"), "{query}: {}", error.report());
    }
}
