//! Which table columns a call's values are made of: never fewer than there are, whatever the query calls them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};

use crate::bed::{Bed, HEAD};

fn bed() -> Bed {
    let bed = Bed::new();
    let text = |word: &str| -> ArrayRef { Arc::new(StringArray::from(vec![word])) };
    let id: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let columns = ["email", "phone", "body", "lang"].map(|name| (name, text(name)));
    bed.parquet("t/a.parquet", [("id", id)].into_iter().chain(columns).collect(), 10);
    bed
}

#[tokio::test]
async fn values_are_followed_to_their_tables() {
    let cases: [(&str, &[&[&str]]); 14] = [
        ("SELECT id, ai_complete(body) AS a FROM t", &[&["body"]]),
        ("SELECT id, ai_complete(prompt('{0} {1}', body, email)) AS a FROM t", &[&["body", "email"]]),
        ("SELECT id, ai_complete(x.y) AS a FROM (SELECT id, upper(email) AS y, body FROM t) AS x", &[&["email"]]),
        ("WITH w AS (SELECT id, phone AS lang FROM t) SELECT id, ai_complete(lang) AS a FROM w", &[&["phone"]]),
        // A condition decides which rows there are; it is no value.
        ("SELECT id, ai_complete(body) AS a FROM t WHERE email LIKE '%x%'", &[&["body"]]),
        (
            "SELECT id, ai_complete(CASE WHEN lang = 'en' THEN body ELSE phone END) AS a FROM t",
            &[&["body", "lang", "phone"]],
        ),
        // An answer is made of what was asked.
        ("SELECT id, ai_classify(ai_complete(email), ['a', 'b']) AS a FROM t", &[&["email"], &["email"]]),
        (
            "SELECT id, ai_complete(body) AS a FROM t WHERE ai_filter(prompt('Real? {0}', lang))",
            &[&["lang"], &["body"]],
        ),
        ("SELECT a.id, ai_complete(b.phone) AS a FROM t AS a JOIN t AS b ON a.id = b.id", &[&["phone"]]),
        (
            "SELECT lang, ai_complete(m) AS a FROM (SELECT lang, max(email) AS m FROM t GROUP BY lang) AS g",
            &[&["email"]],
        ),
        (
            "SELECT id, ai_complete(v) AS a FROM (SELECT id, body AS v FROM t UNION ALL SELECT id, email FROM t) AS u",
            &[&["body", "email"]],
        ),
        ("SELECT id, ai_complete(b) AS a FROM (SELECT DISTINCT id, body AS b FROM t) AS d", &[&["body"]]),
        (
            "SELECT id, ai_complete(l) AS a FROM (SELECT id, lag(phone) OVER (ORDER BY id) AS l FROM t) AS w",
            &[&["body", "email", "id", "lang", "phone"]],
        ),
        // A subquery's rows could be any of its table's.
        (
            "SELECT id, ai_complete(s) AS a FROM (SELECT id, (SELECT max(phone) FROM t AS i WHERE i.lang = o.lang) AS s FROM t AS o) AS q",
            &[&["body", "email", "id", "lang", "phone"]],
        ),
    ];
    let bed = bed();
    for (query, expected) in cases {
        let (job, _) =
            bed.compiled(&format!("{HEAD}{query}")).await.unwrap_or_else(|error| panic!("{query}: {}", error.report()));
        let origins: Vec<Vec<&str>> =
            job.calls().iter().map(|call| call.origins.iter().map(String::as_str).collect()).collect();
        for (found, wanted) in origins.iter().zip(expected) {
            assert!(wanted.iter().all(|column| found.contains(column)), "{query}: {origins:?}");
        }
        assert_eq!(origins, expected, "{query}");
    }
}

/// A call that another model may answer has a column more: that shifts no other call's.
#[tokio::test]
async fn values_are_followed_through_calls_that_spill() {
    let bed = bed();
    let head = HEAD.replace(
        "CREATE JOB j WITH (",
        "CREATE MODEL away WITH (engine = 'openai', name = 'x');\n\
         CREATE JOB j WITH (spill_to = 'away', spill_when = 'overflow', ",
    );
    let query = "SELECT id, ai_complete(email) AS a, ai_complete(phone) AS b, ai_embed(body, model => 'vectors') AS v, \
                 ai_complete(lang) AS d, ai_classify(ai_complete(lang), ['x', 'y']) AS e, \
                 ai_classify(ai_complete(phone), ['x', 'y']) AS f FROM t";
    let (job, _) = bed.compiled(&format!("{head}{query}")).await.unwrap_or_else(|error| panic!("{}", error.report()));
    let origins: Vec<(&str, Vec<&str>)> = job
        .calls()
        .iter()
        .map(|call| (call.column.as_str(), call.origins.iter().map(String::as_str).collect()))
        .collect();
    for (column, origin) in [("a", "email"), ("e", "lang"), ("f", "phone"), ("v", "body")] {
        let (_, found) = origins.iter().rfind(|(columns, _)| columns.split(", ").any(|name| name == column)).unwrap();
        assert_eq!(found, &[origin], "{column}: {origins:?}");
    }
}
