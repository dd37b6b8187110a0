//! A published table, read by what our users read tables with: pyarrow, DuckDB and Polars.

use std::process::Command;

use crate::support::{Job, repository};

#[test]
fn pyarrow_duckdb_and_polars_read_a_published_table() {
    let python = std::env::var("ROWMILL_TEST_PYTHON").expect("infra/test names a Python with the readers");
    let select = "SELECT id, ai_complete(text) AS answer, ai_classify(text, ['a', 'b'], with_score => true) AS topic, \
                  ai_extract(text, 'n INT, s STRING') AS facts, ai_embed(text) AS vector FROM rows WHERE ai_filter(text)";
    let job = Job::echo(", dimensions = 8", select);
    job.with_rows("a", 0, 700);
    let summary = job.say("run", &[]).ok().summary();
    let folder = summary["published"].as_str().expect("a folder");
    let script = repository().join("tests/it/read_published.py");
    let output = Command::new(python).arg(script).arg(folder).output().expect("Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for reader in ["pyarrow", "duckdb", "polars"] {
        assert!(
            text.contains(&format!("{reader}: 700 rows, ids 0..699, vectors of 8, label a")),
            "{reader} in\n{text}"
        );
    }
}
