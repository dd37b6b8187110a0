//! The house rules that a compiler does not check: each heavy library has one home, crates see only whom they may, every
//! file says what it is for. When a rule is wrong, change it here, in the same commit as the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::repository;

/// Crates by folder, with the crates of this workspace that each may depend on.
const CRATES: [(&str, &[&str]); 8] = [
    ("jobs", &[]),
    ("sql", &["rowmill-jobs"]),
    ("executor/engine", &["rowmill-jobs"]),
    ("executor/managed", &["rowmill-jobs"]),
    ("executor", &["rowmill-jobs", "rowmill-sql", "rowmill-engine", "rowmill-managed"]),
    ("scheduler", &["rowmill-jobs", "rowmill-sql"]),
    (".", &["rowmill-jobs", "rowmill-sql", "rowmill-executor", "rowmill-scheduler"]),
    // Serves tests and is no part of the product: nothing may depend on it but tests.
    ("infra/provider-simulator", &[]),
];

/// Libraries that one crate alone may use.
const HOMES: [(&str, &str); 24] = [
    ("arrow", "sql"),
    ("parquet", "sql"),
    ("datafusion", "sql"),
    ("object_store", "sql"),
    ("apalis", "jobs"),
    ("apalis-redis", "jobs"),
    ("aws-config", "jobs"),
    ("aws-sdk-s3", "jobs"),
    ("aws-sdk-secretsmanager", "jobs"),
    ("redis", "jobs"),
    ("candle-core", "executor/engine"),
    ("candle-nn", "executor/engine"),
    ("candle-kernels", "executor/engine"),
    ("candle-transformers", "executor/engine"),
    ("tokenizers", "executor/engine"),
    ("llguidance", "executor/engine"),
    ("safetensors", "executor/engine"),
    ("hf-hub", "executor"),
    ("async-openai", "executor/managed"),
    ("reqwest", "executor/managed"),
    ("aws-sigv4", "executor/managed"),
    ("axum", "."),
    ("clap", "."),
    ("indicatif", "."),
];

/// Uses of a library outside its home: the simulator is a server, too.
const GUESTS: [(&str, &str); 1] = [("axum", "infra/provider-simulator")];

/// A file longer than this has more than one purpose.
const LINES_MAX: usize = 500;

fn manifest(folder: &str) -> toml::Table {
    let path = format!("{folder}/Cargo.toml");
    read(&path).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    table.into_iter().flat_map(|table| table.keys().cloned()).collect()
}

/// All Rust files of the workspace.
fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "jobs", "sql", "scheduler", "executor", "tests", "infra"]
        .map(|folder| repository().join(folder))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 30, "the walk misses files");
    files
}

/// A file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

#[test]
fn the_table_of_crates_is_complete() {
    let root = manifest(".");
    let members = root["workspace"]["members"].as_array().expect("members");
    let members: BTreeSet<&str> = members.iter().filter_map(toml::Value::as_str).collect();
    assert_eq!(members, CRATES.iter().map(|(folder, _)| *folder).collect());
}

#[test]
fn arrows_between_crates_point_down() {
    for (folder, allowed) in CRATES {
        let ours = dependencies(&manifest(folder)).into_iter().filter(|name| name.starts_with("rowmill"));
        for name in ours {
            assert!(allowed.contains(&name.as_str()), "{folder} must not see {name}");
        }
    }
}

#[test]
fn each_heavy_library_has_one_home() {
    let used: BTreeMap<&str, BTreeSet<String>> =
        CRATES.iter().map(|(folder, _)| (*folder, dependencies(&manifest(folder)))).collect();
    for (library, home) in HOMES {
        for (folder, dependencies) in &used {
            let may = *folder == home || GUESTS.contains(&(library, *folder));
            assert!(may || !dependencies.contains(library), "{library} belongs to {home}, not {folder}");
        }
    }
}

#[test]
fn every_crate_keeps_the_workspaces_lints() {
    for (folder, _) in CRATES {
        let kept =
            manifest(folder).get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(kept, Some(true), "{folder}/Cargo.toml lacks [lints] workspace = true");
    }
}

#[test]
fn every_file_says_what_it_is_for_and_has_one_purpose() {
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).expect("a readable file");
        assert!(text.starts_with("//!"), "{} does not open with //!", relative(&path));
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", relative(&path));
    }
}

#[test]
fn files_have_names_that_say_something() {
    for path in rust_files() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        assert!(
            !["utils", "util", "helpers", "helper", "misc", "common", "manager"].contains(&&*stem),
            "{}",
            relative(&path)
        );
    }
}

#[test]
fn the_readmes_two_commands_are_the_ones_that_are_run() {
    let readme = read("README.md");
    assert!(readme.contains("\ninfra/test\n"), "the README names another test command than .ci/run calls");
    assert!(read(".ci/run").contains("\ninfra/test\n"), ".ci/run calls another test command than the README names");
    let example = "cargo run --release -- run examples/tickets/tickets.sql --param ds=2026-11-20";
    assert!(readme.contains(example), "the README does not run the example");
}

#[test]
fn the_examples_query_is_the_same_wherever_it_stands() {
    let example = read("examples/tickets/tickets.sql");
    let (_, select) = example.split_once("\n) AS\n").expect("a job");
    assert!(select.starts_with("SELECT ticket_id,"), "{select}");
    // kustomize reads no file outside its own folder.
    for path in ["README.md", "infra/k8s/base/jobs/tickets.sql"] {
        assert!(read(path).contains(select), "{path} has another query than the example");
    }
}
