//! Parts for simulated attempts: real Parquet, and no two attempts' parts alike. Ten thousand seeds need a hundred thousand
//! of them, so one file is written and its footer's metadata is replaced by other metadata of the same length.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{Int64Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use rowmill_jobs::infer::Usage;
use rowmill_jobs::part::PartMetadata;
use rowmill_jobs::plan::Shard;

/// The file, and where its metadata stands.
static TEMPLATE: LazyLock<(Vec<u8>, usize, usize)> = LazyLock::new(|| {
    let text = metadata(&"k".repeat(26), 0, 1, &"a".repeat(26));
    let column = Arc::new(Int64Array::from(vec![1]));
    let batch = RecordBatch::try_from_iter([("id", column as _)]).expect("a column");
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a Parquet writer");
    writer.write(&batch).expect("a row is written");
    writer.append_key_value_metadata(KeyValue::new(rowmill_jobs::part::METADATA_KEY.to_owned(), text.clone()));
    let file = writer.into_inner().expect("the footer is written");
    let at =
        file.windows(text.len()).position(|window| window == text.as_bytes()).expect("the metadata is in the footer");
    (file, at, text.len())
});

fn metadata(run_key: &str, shard: u32, rows: u64, attempt: &str) -> String {
    let metadata = PartMetadata {
        rowmill: String::new(),
        run_key: run_key.into(),
        shard,
        attempt: attempt.into(),
        input_rows: rows,
        rows,
        errors: 0,
        usage: Usage::default(),
        models: BTreeMap::new(),
    };
    metadata.to_pair().expect("plain data").1
}

/// The part of an attempt at a shard.
pub fn part(run_key: &str, shard: &Shard, attempt: &str) -> Bytes {
    let (file, at, length) = &*TEMPLATE;
    let text = metadata(run_key, shard.index, shard.rows(), attempt);
    assert_eq!(text.len(), *length, "keys and attempts have 26 characters, shards and rows one digit");
    let mut file = file.clone();
    file[*at..at + length].copy_from_slice(text.as_bytes());
    file.into()
}
