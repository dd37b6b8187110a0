//! What every [`Store`] must do, as one suite that all implementations run, and that `rowmill doctor` runs against a
//! user's own store. It writes only below `_doctor/`.

use std::sync::Arc;

use bytes::Bytes;
use ulid::Ulid;

use super::{Payload, Put, Store};
use crate::{Error, Result};

/// Racing writers of one name.
const WRITERS: usize = 64;
/// Races.
const ROUNDS: usize = 20;

/// Checks a store: create-only writes with one winner in each race, reads that see writes, listings that see both.
/// Returns what was checked, a line each.
///
/// # Errors
/// The first promise that does not hold.
pub async fn check(store: Arc<dyn Store>) -> Result<Vec<String>> {
    let folder = format!("_doctor/{}/", Ulid::generate().to_string().to_lowercase());
    let mut passed = Vec::new();
    basics(store.as_ref(), &folder).await?;
    passed.push("write, read, look and list agree".into());
    for round in 0..ROUNDS {
        race(&store, &format!("{folder}race-{round:02}")).await?;
    }
    passed.push(format!("{ROUNDS} races of {WRITERS} writers: one winner each, and its bytes are the ones stored"));
    let listed = store.list(&format!("{folder}race-")).await?;
    ensure(listed.len() == ROUNDS, "a listing right after the writes misses objects")?;
    passed.push("a listing right after the writes is complete".into());
    Ok(passed)
}

async fn basics(store: &dyn Store, folder: &str) -> Result<()> {
    let name = format!("{folder}basics/one");
    ensure(store.get(&name).await?.is_none(), "an absent object can be read")?;
    ensure(store.head(&name).await?.is_none(), "an absent object can be looked at")?;
    ensure(store.list(&format!("{folder}basics/")).await?.is_empty(), "an empty folder lists objects")?;
    // `Exists` may also be our own write whose answer was lost.
    super::create(store, &name, &bytes("first")).await?;
    ensure(super::create(store, &name, &bytes("second")).await? == Put::Exists, "an existing object is created again")?;
    ensure(store.get(&name).await?.as_deref() == Some(b"first"), "an existing object was overwritten")?;
    ensure(store.get_tail(&name, 3).await? == "rst", "the end of an object reads wrong")?;
    ensure(store.get_tail(&name, 100).await? == "first", "the end of a short object reads wrong")?;
    let info = store.head(&name).await?;
    ensure(info.as_ref().is_some_and(|info| info.bytes == 5 && info.etag.is_some()), "size or entity tag is wrong")?;
    let listed = store.list(&format!("{folder}bas")).await?;
    ensure(listed.first() == info.as_ref() && listed.len() == 1, "a listing differs from a look")
}

async fn race(store: &Arc<dyn Store>, name: &str) -> Result<()> {
    let writers = (0..WRITERS).map(|writer| {
        let (store, name) = (Arc::clone(store), name.to_owned());
        tokio::spawn(async move { (writer, store.put_if_absent(&name, &bytes(&format!("writer {writer}"))).await) })
    });
    let (mut winners, mut unsure) = (Vec::new(), Vec::new());
    for result in futures::future::join_all(writers).await {
        match result.map_err(|error| Error::internal("a writer did not finish").caused_by(error))? {
            (writer, Ok(Put::Created)) => winners.push(writer),
            (_, Ok(Put::Exists)) => {}
            // Whoever got no answer may have won.
            (writer, Err(error)) if error.retryable() => unsure.push(writer),
            (_, Err(error)) => return Err(error),
        }
    }
    ensure(
        winners.len() == 1 || (winners.is_empty() && !unsure.is_empty()),
        &format!("{} of {WRITERS} racing writers were told that they created one object", winners.len()),
    )?;
    let stored = store.get(name).await?;
    let candidates = if winners.is_empty() { unsure } else { winners };
    let theirs = candidates.iter().any(|writer| stored.as_deref() == Some(format!("writer {writer}").as_bytes()));
    ensure(theirs, "the stored bytes are not the winner's")
}

fn bytes(text: &str) -> Payload {
    Payload::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

fn ensure(holds: bool, promise: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::invalid(format!("this store cannot be used: {promise}"))
        .hint("Rowmill commits by create-only writes; use a store that honours them (`rowmill doctor` tells)"))
}
