//! Looking at the provider: for a batch that may have been created, in its list, and for results. Where a provider keeps no
//! name of ours, a batch of the right size and time is told by the names of its rows, once it has ended.

use std::collections::HashSet;

use rowmill_jobs::Result;

use super::api::{BatchApi, Listed, Source, Status};
use super::machine::{Found, Sought};
use super::reconcile::Lines;
use super::rows::row_name;
use super::seam::{BatchCall, BatchWire};
use crate::call::CallError;

/// Most pages of a list that are read.
const PAGES_MAX: usize = 200;

/// What a call to the provider came to: its error leaves everything as it is for now.
type Answered<T> = std::result::Result<T, CallError>;

/// Looks for a batch, by its name and its rows.
pub(super) async fn find(
    wire: &dyn BatchWire,
    api: &dyn BatchApi,
    batch: (&str, &[u32]),
    sought: &Sought,
) -> Result<Answered<Found>> {
    let (mut after, mut found) = (None, Found::Nothing);
    for _ in 0..PAGES_MAX {
        let page = match wire.send(api.list(after.as_deref())).await {
            Ok(reply) => api.listed(after.as_deref(), &reply.body)?,
            Err(error) => return Ok(Err(error)),
        };
        for listed in &page.items {
            if sought.is_named(batch.0, listed) {
                return Ok(Ok(Found::Batch(listed.remote.clone())));
            }
            if sought.may_be(listed) {
                match told_by_rows(wire, api, batch, listed).await? {
                    Ok(Some(true)) => return Ok(Ok(Found::Batch(listed.remote.clone()))),
                    Ok(Some(false)) => {}
                    Ok(None) => found = Found::Perhaps,
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        let is_old = page.items.last().is_some_and(|last| sought.is_before(last));
        match page.next {
            Some(next) if !is_old => after = Some(next),
            _ => break,
        }
    }
    Ok(Ok(found))
}

/// Whether a batch that has no name is ours; `None` as long as it runs.
async fn told_by_rows(
    wire: &dyn BatchWire,
    api: &dyn BatchApi,
    (name, rows): (&str, &[u32]),
    listed: &Listed,
) -> Result<Answered<Option<bool>>> {
    if !listed.has_ended {
        return Ok(Ok(None));
    }
    let status = match wire.send(api.poll(&listed.remote)).await {
        Ok(reply) => api.status(&listed.remote, &reply.body)?,
        Err(error) => return Ok(Err(error)),
    };
    let lines = match fetch(wire, api, &status).await? {
        Ok(lines) => lines,
        Err(error) => return Ok(Err(error)),
    };
    let names: HashSet<String> = rows.iter().map(|row| row_name(name, *row)).collect();
    Ok(Ok(Some(lines.lines.iter().any(|line| line.name.as_ref().is_some_and(|name| names.contains(name))))))
}

/// All lines of all results. A source that is not kept any more has none.
pub(super) async fn fetch(wire: &dyn BatchWire, api: &dyn BatchApi, status: &Status) -> Result<Answered<Lines>> {
    let mut lines = Lines::default();
    for source in &status.sources {
        let content = match source {
            Source::Inline(content) => Ok(content.clone()),
            Source::Path(path) => wire.send(BatchCall::get(path)).await.map(|reply| reply.body),
            Source::Object(url) => wire.send(BatchCall::read(url)).await.map(|reply| reply.body),
        };
        let content = match content {
            Ok(content) => content,
            Err(error) if error.status == Some(404) => continue,
            Err(error) => return Ok(Err(error)),
        };
        let read = api.lines(&content)?;
        lines.lines.extend(read.lines);
        lines.nameless += read.nameless;
    }
    Ok(Ok(lines))
}
