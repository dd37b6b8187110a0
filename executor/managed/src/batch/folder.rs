//! [`Folder`]: the operator's folder of a bucket, for providers that read a batch's input and write its results there and
//! nowhere else. The store is the one that runs use: an object is created once, under a name that all processes know, and
//! never changed. It refuses to read what lies outside, whatever a provider says, and deletes nothing.

use std::sync::Arc;

use bytes::Bytes;
use rowmill_jobs::store::{self, Payload, Store};
use rowmill_jobs::{Error, Result};

/// A folder that a provider reads and writes, too.
#[derive(Debug, Clone)]
pub struct Folder {
    store: Arc<dyn Store>,
    role: String,
}

impl Folder {
    /// The folder with this URL, which the provider opens as `role`. Opens no connection yet.
    ///
    /// # Errors
    /// The URL names no bucket.
    pub fn open(url: &str, role: &str) -> Result<Self> {
        Ok(Self { store: store::open(url)?, role: role.to_owned() })
    }

    /// As whom the provider reads and writes: the ARN of a role in the operator's account.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Its URL, which ends in `/`.
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// Creates an object, unless it is there: its name says what is in it. Returns its URL.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<String> {
        store::create(self.store.as_ref(), name, &Payload::Bytes(content)).await?;
        Ok(format!("{}{name}", self.url()))
    }

    /// The object with this URL, if it exists.
    ///
    /// # Errors
    /// It is not in this folder; the store does not answer, or refuses.
    pub async fn read(&self, url: &str) -> Result<Option<Bytes>> {
        let name = url.strip_prefix(self.url()).ok_or_else(|| {
            Error::invalid("a batch's results are not in the folder that rowmill.toml names")
                .with("results", url)
                .with("folder", self.url())
                .hint("set s3_uri back to what it was when the batch was created, until its run is finished")
        })?;
        self.store.get(name).await
    }
}

#[cfg(test)]
mod tests {
    use rowmill_jobs::Kind;

    use super::*;

    #[tokio::test]
    async fn objects_are_created_once_and_read_by_their_urls_and_nothing_else_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(&store::folder_url(&place.path().join("batches")), "role").unwrap();
        let url = folder.put("a.jsonl", "1".into()).await.unwrap();
        assert_eq!(folder.put("a.jsonl", "1".into()).await.unwrap(), url);
        assert_eq!(folder.read(&url).await.unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(folder.read(&format!("{url}.out")).await.unwrap(), None);
        std::fs::write(place.path().join("secret"), "2").unwrap();
        let outside = store::folder_url(place.path()) + "secret";
        assert_eq!(folder.read(&outside).await.unwrap_err().kind(), Kind::Invalid);
        let above = format!("{}../secret", folder.url());
        assert_eq!(folder.read(&above).await.unwrap_err().kind(), Kind::Internal);
    }
}
