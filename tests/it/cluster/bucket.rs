//! [`Bucket`]: the tests' own view of the S3 server, in plain HTTP: no SDK, no code of the product, no fault in between.
//! What it lists and reads is what any other reader would see. It asks again when the server fails (moto does, when a
//! listing meets a write), so that only its answers count.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::http::{Framing, Head, body};
use super::signature::sign;

/// Tries of one request.
const TRIES: usize = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A bucket of an S3 server on this machine.
#[derive(Debug, Clone)]
pub struct Bucket {
    address: String,
    name: &'static str,
}

/// What a listing tells of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub bytes: u64,
    /// Without quotation marks.
    pub etag: String,
}

impl Bucket {
    pub fn new(address: &str, name: &'static str) -> Self {
        Self { address: address.to_owned(), name }
    }

    /// Makes the bucket itself. moto has it from the start; RadosGW, which is a feature of its own, has not.
    #[cfg(feature = "rados")]
    pub fn create(&self) {
        let (status, answer) = self.send("PUT", "", b"");
        assert_eq!(status, 200, "creating {}: {}", self.name, String::from_utf8_lossy(&answer));
    }

    pub fn put(&self, key: &str, content: &[u8]) {
        let (status, _) = self.send("PUT", &format!("/{}", encoded(key, "/")), content);
        assert_eq!(status, 200, "PUT {key}");
    }

    /// An object's content, if it exists.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.send("GET", &format!("/{}", encoded(key, "/")), b"") {
            (200, content) => Some(content),
            (404, _) => None,
            (status, content) => panic!("GET {key}: {status} {}", String::from_utf8_lossy(&content)),
        }
    }

    /// An object that is JSON, if it exists.
    pub fn json(&self, key: &str) -> Option<Value> {
        self.get(key).map(|text| serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{key}: {error}")))
    }

    /// All objects whose keys start with `prefix`, sorted.
    pub fn list(&self, prefix: &str) -> Vec<Object> {
        let mut found = Vec::new();
        let mut from = String::new();
        loop {
            let query = format!("?list-type=2&prefix={}{from}", encoded(prefix, ""));
            let (status, page) = self.send("GET", &query, b"");
            let page = String::from_utf8(page).expect("UTF-8");
            assert_eq!(status, 200, "listing {prefix}: {page}");
            found.extend(page.split("<Contents>").skip(1).map(object));
            match element(&page, "NextContinuationToken") {
                Some(token) => from = format!("&continuation-token={}", encoded(&token, "")),
                None => break,
            }
        }
        found.sort_by(|a: &Object, b| a.key.cmp(&b.key));
        found
    }

    /// Keys of all objects whose keys start with `prefix`, sorted.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.list(prefix).into_iter().map(|object| object.key).collect()
    }

    /// Status and body of the answer to a request that may be repeated.
    fn send(&self, method: &str, target: &str, content: &[u8]) -> (u16, Vec<u8>) {
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.try_send(method, target, content) {
                Ok((status, answer)) if status < 500 => return (status, answer),
                Ok((status, _)) => last = format!("status {status}"),
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        panic!("{method} {target}: {last}");
    }

    /// Status and body of the answer, if one came.
    pub fn try_send(&self, method: &str, target: &str, content: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut head = Head::new(format!("{method} /{}{target} HTTP/1.1", self.name));
        head.set("Host", &self.address);
        head.set("Connection", "close");
        head.set("Content-Length", content.len());
        sign(&mut head, content);
        head.write(&mut stream)?;
        stream.write_all(content)?;
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let content = body(&mut reader, Framing::of_answer(method, &head)?)?;
        Ok((head.status(), content))
    }
}

fn object(entry: &str) -> Object {
    let get = |name| element(entry, name).unwrap_or_else(|| panic!("no {name} in {entry}"));
    Object {
        key: get("Key"),
        bytes: get("Size").parse().expect("a number"),
        etag: get("ETag").trim_matches('"').to_owned(),
    }
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

/// A text as it stands in a URL; characters of `kept` stay as they are.
fn encoded(text: &str, kept: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.as_bytes().contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[test]
fn a_bucket_lists_what_was_put() {
    let s3 = crate::servers::Server::s3();
    let bucket = Bucket::new(&s3.address, "lake");
    assert_eq!((bucket.list(""), bucket.get("none")), (Vec::new(), None));
    // More than a page.
    let keys: Vec<String> = (0..1003).map(|i| format!("a b/k=ü&{i:04}")).collect();
    for key in &keys {
        bucket.put(key, key.as_bytes());
    }
    assert_eq!(bucket.keys("a b/"), keys);
    assert_eq!(bucket.get(&keys[7]).as_deref(), Some(keys[7].as_bytes()));
    assert_eq!(bucket.list(&keys[7])[0].bytes, keys[7].len() as u64);
    assert!(bucket.list("b").is_empty());
}
