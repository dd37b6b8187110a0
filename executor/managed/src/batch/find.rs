//! Looking at the provider: for a batch that may have been created, in its list, and for results. Where a provider keeps no
//! name of ours, a batch of the right size and time is told by the names of its rows, once it has ended.

use std::collections::HashSet;

use rowmill_jobs::Result;

use super::api::{BatchApi, Listed, Source, Status};
use super::machine::{Found, Sought};
use super::reconcile::Lines;
use super::rows::row_name;
use super::seam::{BatchCall, BatchWire};
use crate::call::{CallError, Class};

/// Most pages of a list that are read.
const PAGES_MAX: usize = 200;

/// What a call to the provider came to: its error leaves everything as it is for now.
type Answered<T> = std::result::Result<T, CallError>;

/// What was read of an answer. One that cannot be read is an error of the provider.
pub(super) fn read<T>(answer: Result<T>) -> Answered<T> {
    answer.map_err(|error| no_answer(Class::InvalidOutput, format!("{error}: it has another shape than is documented")))
}

/// That results are not there, of a batch that was created a moment ago.
pub(super) fn not_there_yet() -> CallError {
    no_answer(Class::Transient, "the results of the batch are not there yet".to_owned())
}

fn no_answer(class: Class, message: String) -> CallError {
    CallError { class, status: None, code: None, message, retry_after: None, request_id: None }
}

/// Looks for a batch, by its name and its rows.
pub(super) async fn find(
    wire: &dyn BatchWire,
    api: &dyn BatchApi,
    batch: (&str, &[u32]),
    sought: &Sought,
) -> Answered<Found> {
    let (mut after, mut found) = (None, Found::Nothing);
    for _ in 0..PAGES_MAX {
        let reply = wire.send(api.list(after.as_deref())).await?;
        let page = read(api.listed(after.as_deref(), &reply.body))?;
        for listed in &page.items {
            if sought.is_named(batch.0, listed) {
                return Ok(Found::Batch(listed.remote.clone()));
            }
            if sought.may_be(listed) {
                match told_by_rows(wire, api, batch, listed).await? {
                    Some(true) => return Ok(Found::Batch(listed.remote.clone())),
                    Some(false) => {}
                    None => found = Found::Perhaps,
                }
            }
        }
        let is_old = page.items.last().is_some_and(|last| sought.is_before(last));
        match page.next {
            Some(next) if !is_old => after = Some(next),
            _ => break,
        }
    }
    Ok(found)
}

/// Whether a batch that has no name is ours; `None` as long as it runs.
async fn told_by_rows(
    wire: &dyn BatchWire,
    api: &dyn BatchApi,
    (name, rows): (&str, &[u32]),
    listed: &Listed,
) -> Answered<Option<bool>> {
    if !listed.has_ended {
        return Ok(None);
    }
    let reply = wire.send(api.poll(&listed.remote)).await?;
    let status = read(api.status(&listed.remote, &reply.body))?;
    let lines = fetch(wire, api, &status).await?;
    let names: HashSet<String> = rows.iter().map(|row| row_name(name, *row)).collect();
    Ok(Some(lines.lines.iter().any(|line| line.name.as_ref().is_some_and(|name| names.contains(name)))))
}

/// All lines of all results, and whether there were more.
pub(super) async fn fetch(wire: &dyn BatchWire, api: &dyn BatchApi, status: &Status) -> Answered<Lines> {
    let mut lines = Lines::default();
    for source in &status.sources {
        let content = match source {
            Source::Inline(content) => Ok(content.clone()),
            Source::Path(path) => wire.send(BatchCall::get(path)).await.map(|reply| reply.body),
            Source::Object(url) | Source::ObjectIfAny(url) => {
                wire.send(BatchCall::read(url)).await.map(|reply| reply.body)
            }
        };
        let content = match content {
            Ok(content) => content,
            Err(error) if error.status == Some(404) => {
                lines.is_part_gone |= !matches!(source, Source::ObjectIfAny(_));
                continue;
            }
            Err(error) => return Err(error),
        };
        let told = read(api.lines(&content))?;
        lines.lines.extend(told.lines);
        lines.nameless += told.nameless;
    }
    Ok(lines)
}
