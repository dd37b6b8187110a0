"""Reads a published folder with pyarrow, DuckDB and Polars, and prints what each of them sees."""

import sys

import duckdb
import polars
import pyarrow.dataset

folder = sys.argv[1]


def report(reader, ids, vectors, labels):
    assert len(set(ids)) == len(ids), f"{reader} sees a row twice"
    (length,) = {len(vector) for vector in vectors}
    (label,) = set(labels)
    print(f"{reader}: {len(ids)} rows, ids {min(ids)}..{max(ids)}, vectors of {length}, label {label}")


table = pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist()
report("pyarrow", [r["id"] for r in table], [r["vector"] for r in table], [r["topic"]["label"] for r in table])

rows = duckdb.sql(f"SELECT id, vector, topic.label FROM read_parquet('{folder}/*.parquet')").fetchall()
report("duckdb", *map(list, zip(*rows)))

frame = polars.read_parquet(f"{folder}/*.parquet")
labels = frame["topic"].struct.field("label").to_list()
report("polars", frame["id"].to_list(), frame["vector"].to_list(), labels)
