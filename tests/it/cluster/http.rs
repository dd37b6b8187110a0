//! HTTP/1.1 messages, as far as the proxy and the tests' own S3 client need them: heads, and bodies of every framing. It
//! knows no method's meaning and changes nothing by itself.

use std::io::{self, BufRead, Read, Write};

/// Heads longer than this are refused.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Bytes that are passed on at once.
const PIECE_BYTES: usize = 64 << 10;

/// The first line and the headers of a request or an answer.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// `GET /lake/a HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    pub fn new(first: impl Into<String>) -> Self {
        Self { first: first.into(), headers: Vec::new() }
    }

    /// The next head; `None` if the other side ended the connection before it.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut limited = from.take(HEAD_BYTES_MAX);
        let Some(first) = line(&mut limited)? else { return Ok(None) };
        let mut head = Self::new(first);
        loop {
            let text = line(&mut limited)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if text.is_empty() {
                return Ok(Some(head));
            }
            let (name, value) = text.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// Sets a header, in place of any of that name.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_string()));
    }

    /// Whether a header has this word, among others.
    pub fn says(&self, name: &str, word: &str) -> bool {
        self.get(name).is_some_and(|value| value.split(',').any(|other| other.trim().eq_ignore_ascii_case(word)))
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        to.write_all(text.as_bytes())
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// Until the connection ends.
    UntilEnd,
}

impl Framing {
    pub fn of_request(head: &Head) -> io::Result<Self> {
        Ok(declared(head)?.unwrap_or(Framing::Length(0)))
    }

    /// Of the answer to a request with this method.
    pub fn of_answer(method: &str, head: &Head) -> io::Result<Self> {
        if method == "HEAD" || matches!(head.status(), 100..200 | 204 | 304) {
            return Ok(Framing::Length(0));
        }
        Ok(declared(head)?.unwrap_or(Framing::UntilEnd))
    }
}

fn declared(head: &Head) -> io::Result<Option<Framing>> {
    if head.says("Transfer-Encoding", "chunked") {
        return Ok(Some(Framing::Chunked));
    }
    let Some(length) = head.get("Content-Length") else { return Ok(None) };
    length.parse().map(|length| Some(Framing::Length(length))).map_err(io::Error::other)
}

/// Hands a body on, piece by piece, without its framing.
pub fn each_piece(
    from: &mut impl BufRead,
    framing: Framing,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match framing {
        Framing::Length(length) => exactly(from, length, &mut take),
        Framing::UntilEnd => {
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                match from.read(&mut piece)? {
                    0 => return Ok(()),
                    count => take(&piece[..count])?,
                }
            }
        }
        Framing::Chunked => loop {
            let size = line(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
            if length == 0 {
                // Trailers, then an empty line.
                while line(from)?.is_some_and(|trailer| !trailer.is_empty()) {}
                return Ok(());
            }
            exactly(from, length, &mut take)?;
            line(from)?;
        },
    }
}

/// A whole body.
pub fn body(from: &mut impl BufRead, framing: Framing) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    each_piece(from, framing, |piece| {
        whole.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(whole)
}

fn exactly(from: &mut impl BufRead, length: u64, take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut rest = usize::try_from(length).map_err(io::Error::other)?;
    let mut piece = vec![0; rest.min(PIECE_BYTES)];
    while rest > 0 {
        let wanted = rest.min(piece.len());
        let count = from.read(&mut piece[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(&piece[..count])?;
        rest -= count;
    }
    Ok(())
}

/// A line without its end; `None` if there is none.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    if from.read_line(&mut text)? == 0 {
        return Ok(None);
    }
    if !text.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(Some(text))
}

#[test]
fn bodies_of_every_framing_are_read_whole() {
    let read = |text: &str| {
        let mut from = text.as_bytes();
        let head = Head::read(&mut from).expect("a head").expect("a head");
        let framing = Framing::of_answer("GET", &head).expect("a framing");
        body(&mut from, framing).map(|body| String::from_utf8(body).expect("UTF-8"))
    };
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd").expect("a body"), "abc");
    assert_eq!(read("HTTP/1.0 200 OK\r\n\r\nabcd").expect("a body"), "abcd");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(read(&format!("{chunked}3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n")).expect("a body"), "abcde");
    for cut in ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd", &format!("{chunked}3\r\nab")] {
        assert!(read(cut).is_err(), "{cut}");
    }
}
