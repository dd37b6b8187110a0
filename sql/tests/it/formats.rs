//! CSV and JSON tables, parts and their metadata, and rows as text.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rowmill_sql::{FooterRead, Source, discover_inputs, format_rows, read_part_metadata, write_part};

use crate::bed::{Bed, HEAD, lines, slices};

#[tokio::test]
async fn csv_with_guessed_and_declared_columns() {
    let bed = Bed::new();
    std::fs::create_dir_all(bed.path("t")).unwrap();
    std::fs::write(bed.path("t/a.csv"), "id;body\n1;\"two; words\"\n2;\n").unwrap();
    let text = format!("{HEAD}SELECT id + 1 AS n, ai_complete(body) AS c FROM t")
        .replace("PARQUET LOCATION 't/'", "CSV LOCATION 't/' OPTIONS ('format.delimiter' ';')");
    let (job, _) = bed.compiled(&text).await.unwrap();
    assert!(matches!(job.source(), Source::Staged { .. }));
    let guessed = lines(&bed.job_rows(&text).await.unwrap_or_else(|error| panic!("{}", error.report())));
    assert_eq!(guessed[0], "2 | TWO; WORDS | NULL");
    let declared = text.replace("TABLE t ", "TABLE t (id INT, body STRING) ");
    assert_eq!(lines(&bed.job_rows(&declared).await.unwrap())[0], "2 | TWO; WORDS | NULL");
}

#[tokio::test]
async fn a_csv_value_of_another_type_is_said_without_showing_it() {
    let bed = Bed::new();
    std::fs::create_dir_all(bed.path("t")).unwrap();
    std::fs::write(bed.path("t/a.csv"), "id,body\n1,x\nsecret,y\n").unwrap();
    let text = format!("{HEAD}SELECT id, ai_complete(body) AS c FROM t")
        .replace("TABLE t STORED AS PARQUET", "TABLE t (id INT, body STRING) STORED AS CSV");
    let error = bed.job_rows(&text).await.unwrap_err();
    assert_eq!(error.to_string(), "an input file cannot be read: a value of column 1 is not of the column's type");
    assert!(!error.report().contains("secret"), "{}", error.report());
}

#[tokio::test]
async fn newline_delimited_json() {
    let bed = Bed::new();
    std::fs::create_dir_all(bed.path("t")).unwrap();
    std::fs::write(bed.path("t/a.json"), "{\"id\":1,\"body\":\"x\"}\n{\"id\":2,\"body\":null}\n").unwrap();
    let text = format!("{HEAD}SELECT id, ai_complete(body) AS c FROM t").replace("PARQUET", "JSON");
    assert_eq!(lines(&bed.job_rows(&text).await.unwrap()), ["1 | X | NULL", "2 | NULL | NULL"]);
    std::fs::write(bed.path("t/a.json"), "this is not JSON\n").unwrap();
    let spec = bed.spec(&text).unwrap();
    let error = discover_inputs(&spec, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot read columns from a JSON file"), "{error}");
    assert!(!error.report().contains("this is not"), "{}", error.report());
}

#[tokio::test]
async fn a_part_holds_rows_and_metadata() {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let bodies: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..1000).map(|i| if i == 7 { "fail".into() } else { format!("b{i}") }),
    ));
    bed.parquet("t/a.parquet", vec![("id", ids), ("body", bodies)], 300);
    let (job, inputs) = bed.compiled(&format!("{HEAD}SELECT id, ai_complete(body) AS c FROM t")).await.unwrap();
    let write = async |name: &str| {
        let rows = job.run(&slices(&inputs[0]), bed.engine.clone(), bed.counter.clone()).unwrap();
        let summary =
            write_part(vec![rows], &bed.path(name), |summary| vec![("rowmill.rows".into(), summary.rows.to_string())])
                .await
                .unwrap();
        (summary, std::fs::read(bed.path(name)).unwrap())
    };
    let (summary, bytes) = write("part.parquet").await;
    assert_eq!((summary.rows, summary.errors, summary.requests, summary.bytes), (1000, 1, 1000, bytes.len() as u64));
    assert_eq!((summary.usage.input_tokens, summary.usage.output_tokens), (999 * 2, 999));
    assert_eq!(bytes, write("again.parquet").await.1, "the same rows give the same bytes");
    let total = bytes.len() as u64;
    let bytes = Bytes::from(bytes);
    let FooterRead::NeedsSuffix(needed) = read_part_metadata(bytes.slice(bytes.len() - 16..), total).unwrap() else {
        panic!()
    };
    assert!(needed > 16 && needed < total);
    let FooterRead::Found(pairs) = read_part_metadata(bytes.slice(bytes.len() - needed as usize..), total).unwrap()
    else {
        panic!()
    };
    assert_eq!(pairs["rowmill.rows"], "1000");
    assert!(read_part_metadata(bytes.slice(..100), 100).is_err());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    assert_eq!(reader.schema().fields(), job.arrow_schema().fields());
    let rows: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 1000);
}

#[tokio::test]
async fn a_published_output_is_a_table() {
    let bed = Bed::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3));
    bed.parquet("src/a.parquet", vec![("id", ids)], 300);
    let first = format!("{HEAD}SELECT id, ai_complete(id) AS c FROM t").replace("'t/'", "'src/'");
    let (job, inputs) = bed.compiled(&first).await.unwrap();
    let rows = job.run(&slices(&inputs[0]), bed.engine.clone(), bed.counter.clone()).unwrap();
    std::fs::create_dir_all(bed.path("t/_staged")).unwrap();
    std::fs::write(bed.path("t/_plan.json"), "{}").unwrap();
    write_part(vec![rows], &bed.path("t/part-00000.parquet"), |_| Vec::new()).await.unwrap();
    assert_eq!(lines(&bed.rows("SELECT * EXCEPT (_errors), ai_complete(c) AS d FROM t").await)[1], "1 | 1 | 1 | NULL");
    assert_eq!(lines(&bed.rows("SELECT count(*) AS n FROM t WHERE _errors IS NULL").await), ["3 | NULL"]);
}

#[tokio::test]
async fn an_output_is_read_by_its_last_publications() {
    let bed = Bed::new();
    for (run, id) in [("old", 1), ("new", 2), ("next", 3), ("unpublished", 4)] {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![id]));
        bed.parquet(&format!("t/run={run}/part-00000.parquet"), vec![("id", ids)], 10);
    }
    for (date, seq, run) in [("2026-11-20", 1, "old"), ("2026-11-20", 2, "new"), ("2026-11-21", 1, "next")] {
        let path = bed.path(&format!("t/{}", rowmill_jobs::layout::published(date, seq)));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!(r#"{{"run_key":"{run}","outcome_etag":null}}"#)).unwrap();
    }
    assert_eq!(lines(&bed.rows("SELECT id FROM t").await), ["2 | NULL", "3 | NULL"]);
}

#[tokio::test]
async fn rows_are_shown_shortened() {
    let bed = Bed::new();
    let bodies: ArrayRef = Arc::new(StringArray::from(vec!["a\nb", &"x".repeat(100)]));
    bed.parquet("t/a.parquet", vec![("body", bodies)], 300);
    let text = format_rows(&[bed.rows("SELECT body, ai_embed(body) AS v FROM t").await]);
    assert!(text.contains("| a b "), "{text}");
    assert!(text.contains(&format!("{}…", "x".repeat(59))) && !text.contains(&"x".repeat(61)), "{text}");
    assert!(text.contains("[3.000, 0.000, 1.000, … 3 numbers]"), "{text}");
}
