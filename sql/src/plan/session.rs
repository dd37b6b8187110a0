//! DataFusion sessions for jobs: one runtime over pinned stores, and settings that keep rows in their order. No catalog,
//! no file system and no URL can be reached but the job's own tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::path::Path;
use rowmill_jobs::plan::{InputFile, TableInput};
use rowmill_jobs::{Error, Result};
use url::Url;

use crate::functions::CallSpec;
use crate::functions::udf::AiFunction;
use crate::source::pinned::{PinnedStore, Troubles};
use crate::source::storage::{object_store_for, path_of, root_of};
use crate::source::table::Scope;

/// Rows of a batch if nothing is known of their size.
pub(crate) const BATCH_ROWS: usize = 8192;

/// A runtime that reads the pinned files of `inputs` and nothing else.
pub(crate) async fn runtime(inputs: &[&TableInput], troubles: &Arc<Troubles>) -> Result<Arc<RuntimeEnv>> {
    let pool = Arc::new(FairSpillPool::new(memory_for_queries()));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(pool)
        .build()
        .map_err(|error| Error::internal("cannot make a DataFusion runtime").caused_by(error))?;
    let mut by_root: BTreeMap<String, Vec<(Path, &InputFile)>> = BTreeMap::new();
    for file in inputs.iter().flat_map(|input| &input.files) {
        let url = Url::parse(&file.url)
            .map_err(|error| Error::invalid(format!("'{}' is not a URL", file.url)).caused_by(error))?;
        by_root.entry(root_of(&url)).or_default().push((path_of(&file.url)?, file));
    }
    for (root, files) in by_root {
        let (store, _) = object_store_for(&root).await?;
        let url = Url::parse(&root).map_err(|error| Error::internal("a store's root is a URL").caused_by(error))?;
        runtime.register_object_store(&url, Arc::new(PinnedStore::new(store, files, Arc::clone(troubles))));
    }
    Ok(Arc::new(runtime))
}

/// Half of the memory that this machine or container has: sorts and joins of staged queries spill to disk beyond it.
fn memory_for_queries() -> usize {
    const LEAST: usize = 1 << 30;
    let number = |text: &str| text.split_whitespace().find_map(|word| word.parse::<usize>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| text.lines().find(|line| line.starts_with("MemTotal:")).and_then(number))
        .map(|kilobytes| kilobytes * 1024);
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| number(&text));
    machine.into_iter().chain(container).min().map_or(LEAST, |bytes| (bytes / 2).max(LEAST))
}

/// Settings of a session. One partition keeps the order of files and rows.
pub(crate) fn config(partitions: usize, batch_rows: usize, scope: Option<Scope>) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_batch_size(batch_rows)
        .with_collect_statistics(false);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.pushdown_filters = false;
    options.optimizer.repartition_file_scans = partitions > 1;
    match scope {
        Some(scope) => config.with_extension(Arc::new(scope)),
        None => config,
    }
}

/// A context with DataFusion's functions and the placeholders of the job's AI calls.
pub(crate) fn context(runtime: Arc<RuntimeEnv>, calls: &[CallSpec], types: &[DataType]) -> SessionContext {
    let state = state(runtime, config(1, BATCH_ROWS, None));
    let context = SessionContext::new_with_state(state);
    for (index, (call, returns)) in calls.iter().zip(types).enumerate() {
        context.register_udf(ScalarUDF::from(AiFunction::new(index, call.function, call.values, returns.clone())));
    }
    context
}

/// A session's state.
pub(crate) fn state(runtime: Arc<RuntimeEnv>, config: SessionConfig) -> SessionState {
    SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build()
}
