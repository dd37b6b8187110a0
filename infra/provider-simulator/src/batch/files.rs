//! Files in OpenAI's API and its copies: upload by form, list, read, delete.

use http::Method;
use serde_json::{Value, json};

use super::{Desk, StoredFile};
use crate::provider::Provider;
use crate::reply::Reply;
use crate::serve::Incoming;
use crate::trouble::Trouble;

/// Files in a page of a list.
const PAGE: usize = 100;

pub(super) fn answer(desk: &mut Desk<'_>, incoming: &Incoming, tail: &[&str]) -> Result<Reply, Trouble> {
    match (&incoming.method, tail) {
        // Together has the upload of a whole file at a path of its own.
        (&Method::POST, [] | ["upload"]) => upload(desk, incoming),
        (&Method::GET, []) => list(desk, incoming),
        (&Method::GET, [id, "content"]) => {
            let file = desk.shelf.files.get(*id).ok_or(Trouble::NotFound)?;
            Ok(Reply::lines(file.content.clone()))
        }
        (&Method::GET, [id]) => {
            desk.shelf.files.get(*id).map(|file| Reply::ok(&shown(id, file))).ok_or(Trouble::NotFound)
        }
        (&Method::DELETE, [id]) => {
            desk.shelf.files.remove(*id).ok_or(Trouble::NotFound)?;
            Ok(Reply::ok(&json!({"id": id, "object": "file", "deleted": true})))
        }
        _ => Err(Trouble::NotFound),
    }
}

fn upload(desk: &mut Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let missing = |what: &str| Trouble::Invalid(format!("missing form field `{what}`"));
    let form = incoming.form.as_ref().ok_or_else(|| missing("file"))?;
    let (name, content) = form.file.clone().ok_or_else(|| missing("file"))?;
    let purpose = form.fields.get("purpose").cloned().ok_or_else(|| missing("purpose"))?;
    let expected = if desk.provider == Provider::Together { "batch-api" } else { "batch" };
    if purpose != expected {
        return Err(Trouble::Invalid(format!("`purpose` must be {expected}")));
    }
    let name = form.fields.get("file_name").cloned().unwrap_or(name);
    let id = format!("file-{}", desk.name());
    let file = StoredFile { name, purpose, content, created_ms: desk.now_ms };
    let reply = Reply::ok(&shown(&id, &file));
    desk.store(id, file);
    Ok(reply)
}

fn list(desk: &Desk<'_>, incoming: &Incoming) -> Result<Reply, Trouble> {
    let purpose = incoming.query.get("purpose");
    let mut files: Vec<_> = desk.shelf.files.iter().collect();
    files.retain(|(_, file)| purpose.is_none_or(|purpose| file.purpose == *purpose));
    files.sort_by_key(|(id, file)| (std::cmp::Reverse(file.created_ms), (*id).clone()));
    let start = match incoming.query.get("after") {
        Some(after) => files.iter().position(|(id, _)| *id == after).ok_or(Trouble::NotFound)? + 1,
        None => 0,
    };
    let page: Vec<Value> = files.iter().skip(start).take(PAGE).map(|(id, file)| shown(id, file)).collect();
    let has_more = start + page.len() < files.len();
    Ok(Reply::ok(&json!({"object": "list", "data": page, "has_more": has_more})))
}

fn shown(id: &str, file: &StoredFile) -> Value {
    json!({
        "id": id, "object": "file", "bytes": file.content.len(), "created_at": file.created_ms / 1000,
        "filename": file.name, "purpose": file.purpose, "status": "processed",
        // What Mistral's clients insist on besides.
        "sample_type": "batch_request", "source": "upload", "size_bytes": file.content.len(),
    })
}
