//! Inputs: what is found, what is refused, and what happens when a file is no longer the pinned one.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray};
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
use rowmill_jobs::Kind;
use rowmill_sql::{Source, discover_inputs};

use crate::bed::{Bed, HEAD, lines, slices};

fn ids(range: std::ops::Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(range))
}

async fn report(bed: &Bed) -> String {
    let spec = bed.spec(&format!("{HEAD}SELECT id FROM t")).unwrap();
    let error = discover_inputs(&spec, |_, _| {}).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    error.report().replace(bed.folder.path().to_str().unwrap(), "…")
}

#[tokio::test]
async fn hidden_files_are_skipped_and_files_are_in_order() {
    let bed = Bed::new();
    for name in ["t/b.parquet", "t/sub/c.parquet", "t/a.parquet", "t/_staged/x.parquet", "t/.tmp/y.parquet"] {
        bed.parquet(name, vec![("id", ids(0..3))], 2);
    }
    for name in ["t/_SUCCESS", "t/_plan.json", "t/.a.parquet.crc", "t/notes.md"] {
        std::fs::write(bed.path(name), "x").unwrap();
    }
    let spec = bed.spec(&format!("{HEAD}SELECT id FROM t")).unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let inputs = discover_inputs(&spec, |done, found| seen.lock().unwrap().push((done, found))).await.unwrap();
    let names: Vec<&str> = inputs[0].files.iter().map(|file| file.url.rsplit("/t/").next().unwrap()).collect();
    assert_eq!(names, ["a.parquet", "b.parquet", "sub/c.parquet"]);
    assert_eq!(inputs[0].files[0].row_groups.iter().map(|group| group.rows).collect::<Vec<_>>(), [2, 1]);
    assert!(inputs[0].files[0].etag.is_some());
    assert_eq!(seen.into_inner().unwrap().last(), Some(&(3, 3)));
}

#[tokio::test]
async fn what_is_wrong_with_files_is_said() {
    let bed = Bed::new();
    assert_eq!(
        report(&bed).await,
        "error: the folder has no files: …/t/\n  table: t\n  hint: check LOCATION, and whether the data of this day has arrived"
    );
    bed.parquet("t/a.parquet", vec![("id", ids(0..3))], 2);
    bed.parquet("t/b.parquet", vec![("id", Arc::new(Float64Array::from(vec![1.0])) as ArrayRef)], 2);
    assert_eq!(
        report(&bed).await,
        "error: column `id` is Int64 in one file and Float64 in another\n  file: …/t/b.parquet\n  differs from: …/t/a.parquet\n  table: t\n  \
         hint: all files of a table have the same columns: write them anew, or name one folder a schema"
    );
    bed.parquet("t/b.parquet", vec![("id", ids(0..3)), ("extra", ids(0..3))], 2);
    assert!(report(&bed).await.starts_with("error: column `extra` is in one file only\n  file: …/t/b.parquet"));
    bed.parquet("t/b.parquet", vec![("other", ids(0..3))], 2);
    assert!(report(&bed).await.starts_with("error: column `id` is missing in a file\n  file: …/t/b.parquet"));
    let whole = std::fs::read(bed.path("t/a.parquet")).unwrap();
    std::fs::write(bed.path("t/b.parquet"), &whole[..whole.len() - 20]).unwrap();
    assert!(report(&bed).await.starts_with("error: not a readable Parquet file"), "{}", report(&bed).await);
    std::fs::write(bed.path("t/b.parquet"), "id,body\n1,this is CSV\n").unwrap();
    assert!(report(&bed).await.contains("is it Parquet?"), "{}", report(&bed).await);
    std::fs::write(bed.path("t/b.parquet"), "PAR1").unwrap();
    assert!(report(&bed).await.contains("it has only 4 bytes"));
}

/// A Parquet file of nothing but a footer, which says of its row groups what it is told to.
fn forge(bed: &Bed, rows: &[i64]) {
    bed.parquet("t/a.parquet", vec![("id", ids(0..3))], 3);
    let real = std::fs::File::open(bed.path("t/a.parquet")).unwrap();
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&real).unwrap();
    let group = |rows: &i64| metadata.row_group(0).clone().into_builder().set_num_rows(*rows).build().unwrap();
    let forged = metadata.clone().into_builder().set_row_groups(rows.iter().map(group).collect()).build();
    let mut bytes = b"PAR1".to_vec();
    ParquetMetaDataWriter::new(&mut bytes, &forged).finish().unwrap();
    std::fs::write(bed.path("t/a.parquet"), bytes).unwrap();
}

#[tokio::test]
async fn a_footer_that_lies_about_its_rows_is_refused() {
    let bed = Bed::new();
    for (rows, said) in [
        (&[3, -5][..], "row group 1 says it has -5 rows"),
        (&[i64::MIN], "row group 0 says it has -9223372036854775808 rows"),
        (&[1 << 62], "up to row group 0 it says it has more than 70368744177664 rows"),
        (&[i64::MAX], "up to row group 0 it says it has more than 70368744177664 rows"),
        (&[1 << 45, 1 << 45, 1], "up to row group 2 it says it has more than 70368744177664 rows"),
    ] {
        forge(&bed, rows);
        assert_eq!(
            report(&bed).await,
            format!(
                "error: not a readable Parquet file: Parquet error: {said}\n  file: file://…/t/a.parquet\n  table: t\n  \
                 hint: is the file complete, and is it Parquet?"
            )
        );
    }
}

#[tokio::test]
async fn of_many_files_the_first_is_the_reference_and_the_first_that_differs_is_named() {
    let bed = Bed::new();
    for file in 0..200 {
        let other = [77, 78, 150].contains(&file);
        let column: ArrayRef = if other { Arc::new(Float64Array::from(vec![1.0])) } else { ids(0..1) };
        bed.parquet(&format!("t/{file:03}.parquet"), vec![("id", column)], 2);
    }
    let said = report(&bed).await;
    assert!(said.contains("file: …/t/077.parquet\n  differs from: …/t/000.parquet"), "{said}");
    std::fs::write(bed.path("t/060.parquet"), "id,body\n1,this is CSV\n").unwrap();
    let said = report(&bed).await;
    assert!(said.contains("not a readable Parquet file") && said.contains("060.parquet"), "{said}");
}

#[tokio::test]
async fn files_without_rows_or_row_groups_are_files() {
    let bed = Bed::new();
    for (file, rows) in [("a", 0..0), ("b", 0..3), ("c", 0..0), ("d", 3..4), ("e", 0..0)] {
        bed.parquet(&format!("t/{file}.parquet"), vec![("id", ids(rows))], 2);
    }
    for query in
        ["SELECT ai_complete(id) AS c FROM t", "SELECT ai_complete(id) AS c FROM (SELECT DISTINCT id FROM t) s"]
    {
        let mut rows = lines(&bed.rows(query).await);
        rows.sort();
        assert_eq!(rows, ["0 | NULL", "1 | NULL", "2 | NULL", "3 | NULL"], "{query}");
    }
    for file in ["b", "d"] {
        std::fs::remove_file(bed.path(&format!("t/{file}.parquet"))).unwrap();
    }
    assert_eq!(bed.rows("SELECT ai_complete(id) AS c FROM t").await.num_rows(), 0);
}

#[tokio::test]
async fn of_a_jobs_output_only_published_runs_are_read() {
    let bed = Bed::new();
    let write = |name: &str, text: &str| {
        std::fs::create_dir_all(bed.path(name).parent().unwrap()).unwrap();
        std::fs::write(bed.path(name), text).unwrap();
    };
    const NOTHING: &str = "error: nothing is published yet in the output of a job: …/t/\n  table: t\n  \
        hint: wait for that job's run, or start it again: a run is read once it is published";
    write("t/_claims/2026-11-20/000001.json", r#"{"run_key":"a"}"#);
    assert_eq!(report(&bed).await, NOTHING);
    write("t/run=a/_plan.json", "{}");
    bed.parquet("t/run=a/part-00000.parquet", vec![("id", ids(0..1))], 2);
    assert_eq!(report(&bed).await, NOTHING);
    std::fs::remove_dir_all(bed.path("t/_claims")).unwrap();
    assert_eq!(report(&bed).await, NOTHING, "the plan alone says it");
    // Run `b` is published; `a` is still not.
    bed.parquet("t/run=b/part-00000.parquet", vec![("id", ids(7..8))], 2);
    write("t/run=b/_plan.json", "{}");
    write("t/_published/2026-11-20/000001.json", r#"{"run_key":"b","outcome_etag":null}"#);
    assert_eq!(lines(&bed.rows("SELECT ai_complete(id) AS c FROM t").await), ["7 | NULL"]);
}

#[tokio::test]
async fn a_missing_file_is_said() {
    let bed = Bed::new();
    let text = format!("{HEAD}SELECT id FROM t").replace("'t/'", "'t.parquet'");
    let spec = bed.spec(&text).unwrap();
    let error = discover_inputs(&spec, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().starts_with("there is no such file: "), "{error}");
    assert_eq!(error.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_changed_or_vanished_file_fails_with_its_name() {
    let bed = Bed::new();
    bed.parquet("t/a.parquet", vec![("id", ids(0..3))], 2);
    bed.parquet("t/b.parquet", vec![("id", ids(0..3))], 2);
    let (job, inputs) = bed.compiled(&format!("{HEAD}SELECT ai_complete(id) AS c FROM t")).await.unwrap();
    assert_eq!(bed.run(&job, &slices(&inputs[0])).await.unwrap().num_rows(), 6);
    bed.parquet("t/b.parquet", vec![("id", ids(7..9))], 2);
    let error = bed.run(&job, &slices(&inputs[0])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InputChanged, "{}", error.report());
    assert!(error.report().contains("/t/b.parquet"), "{}", error.report());
    std::fs::remove_file(bed.path("t/a.parquet")).unwrap();
    let error = bed.run(&job, &slices(&inputs[0])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InputChanged, "{}", error.report());
    assert!(error.report().contains("/t/a.parquet") && error.to_string().contains("it is gone"), "{}", error.report());
}

#[tokio::test]
async fn declared_columns_read_as_null_where_they_are_missing() {
    let bed = Bed::new();
    bed.parquet("t/a.parquet", vec![("id", ids(0..1))], 2);
    bed.parquet(
        "t/b.parquet",
        vec![("id", ids(1..2)), ("body", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)],
        2,
    );
    let text = format!("{HEAD}SELECT id, ai_complete(body) AS c FROM t")
        .replace("TABLE t ", "TABLE t (id BIGINT, body STRING) ");
    assert_eq!(lines(&bed.job_rows(&text).await.unwrap()), ["0 | NULL | NULL", "1 | X | NULL"]);
}

#[tokio::test]
async fn partition_columns_come_from_folder_names() {
    let bed = Bed::new();
    bed.parquet("t/ds=2026-11-20/hour=3/a.parquet", vec![("id", ids(0..1))], 2);
    bed.parquet("t/ds=2026-11-21/hour=4/a.parquet", vec![("id", ids(1..2))], 2);
    let text = format!("{HEAD}SELECT ds, hour + 1 AS h, ai_complete(id) AS c FROM t WHERE ds > '2026-11-20'")
        .replace("PARQUET LOCATION", "PARQUET PARTITIONED BY (ds STRING, hour INT) LOCATION");
    let (job, _) = bed.compiled(&text).await.unwrap();
    assert_eq!(job.source(), Source::Table { index: 0 });
    assert_eq!(lines(&bed.job_rows(&text).await.unwrap()), ["2026-11-21 | 5 | 1 | NULL"]);
    let spec = bed.spec(&text.replace("hour INT", "region STRING").replace("hour + 1", "region")).unwrap();
    let error = discover_inputs(&spec, |_, _| {}).await.unwrap_err();
    assert!(error.to_string().contains("no folder `region=…`"), "{error}");
}

#[tokio::test]
async fn views_large_strings_and_dictionaries_are_read_as_strings() {
    use arrow::array::{DictionaryArray, LargeStringArray, StringViewArray};
    use arrow::datatypes::{DataType, Int32Type};
    let bed = Bed::new();
    let dictionary: DictionaryArray<Int32Type> = vec!["d", "d"].into_iter().collect();
    bed.parquet(
        "t/a.parquet",
        vec![
            ("a", Arc::new(LargeStringArray::from(vec!["l", "l"])) as ArrayRef),
            ("b", Arc::new(StringViewArray::from(vec!["v", "v"])) as ArrayRef),
            ("c", Arc::new(dictionary) as ArrayRef),
        ],
        10,
    );
    let rows = bed.rows("SELECT a, b, c, ai_complete(a || b || c) AS e FROM t").await;
    assert_eq!(lines(&rows)[0], "l | v | d | LVD | NULL");
    assert!(rows.schema().fields().iter().take(4).all(|field| field.data_type() == &DataType::Utf8));
}
