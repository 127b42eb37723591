//! As much of HTTP/1.1 as tests need on plain sockets: heads, bodies as they are framed, and a question with its answer.
//!
//! Source: RFC 9112. Trailers of chunked bodies are read and left out.

use std::io::{self, BufRead, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest head, and longest line of a chunk's size.
const LONGEST: u64 = 64 << 10;
/// Largest piece of a body.
const PIECE: usize = 16 << 10;
/// Longer than any answer takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes before a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its first line, without the end.
    pub first: String,
    /// Names, in lower case, with their values.
    pub fields: Vec<(String, String)>,
    /// As it came, to be handed on.
    pub raw: Vec<u8>,
}

impl Head {
    /// Reads one; `None` where the connection ends before it.
    ///
    /// # Errors
    /// If the connection ends within it, or it is longer than 64 KiB or no head.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        let mut reader = reader.take(LONGEST);
        loop {
            let line = raw.len();
            if reader.read_until(b'\n', &mut raw)? == 0 && raw.is_empty() {
                return Ok(None);
            }
            match &raw[line..] {
                b"\r\n" | b"\n" => break,
                whole if whole.ends_with(b"\n") => {}
                _ => return Err(invalid("a head that does not end")),
            }
        }
        let text = str::from_utf8(&raw).map_err(|_| invalid("a head that is no UTF-8"))?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        let fields = lines.filter(|line| !line.is_empty()).map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| invalid("a field without a colon"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        });
        let fields = fields.collect::<io::Result<_>>()?;
        Ok(Some(Self { first, fields, raw }))
    }

    /// A field's value, by its name in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// An answer's status; 0 for what has none.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// Whether nothing comes after it on its connection.
    pub(crate) fn is_last(&self) -> bool {
        let connection = self.field("connection").unwrap_or_default().to_ascii_lowercase();
        let is_old = self.first.starts_with("HTTP/1.0") || self.first.ends_with("HTTP/1.0");
        connection.contains("close") || is_old && !connection.contains("keep-alive")
    }
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// Whatever comes until the connection ends.
    UntilTheEnd,
}

impl Framing {
    pub(crate) fn of_request(head: &Head) -> io::Result<Self> {
        Ok(Self::said(head)?.unwrap_or(Self::Length(0)))
    }

    pub(crate) fn of_answer(head: &Head, method: &str) -> io::Result<Self> {
        if method == "HEAD" || matches!(head.status(), 204 | 304) {
            return Ok(Self::Length(0));
        }
        Ok(Self::said(head)?.unwrap_or(Self::UntilTheEnd))
    }

    fn said(head: &Head) -> io::Result<Option<Self>> {
        if head.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Ok(Some(Self::Chunked));
        }
        let length = head.field("content-length").map(str::parse).transpose();
        Ok(length.map_err(|_| invalid("a length that is no number"))?.map(Self::Length))
    }

    /// A piece of a body, as it is sent.
    pub(crate) fn framed(self, piece: &[u8]) -> Vec<u8> {
        match self {
            Self::Chunked => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
            Self::Length(_) | Self::UntilTheEnd => piece.to_vec(),
        }
    }

    /// What is sent after the last piece.
    pub(crate) fn end(self) -> &'static [u8] {
        match self {
            Self::Chunked => b"0\r\n\r\n",
            Self::Length(_) | Self::UntilTheEnd => b"",
        }
    }
}

/// A body that is being read.
pub(crate) struct Body<'a, R> {
    reader: &'a mut R,
    framing: Framing,
    /// Of the body, or of its present chunk.
    left: u64,
    is_over: bool,
}

impl<'a, R: BufRead> Body<'a, R> {
    pub(crate) fn new(reader: &'a mut R, framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => length,
            Framing::Chunked => 0,
            Framing::UntilTheEnd => u64::MAX,
        };
        Self { reader, framing, left, is_over: false }
    }

    /// The next piece, never an empty one; `None` after the last.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.framing == Framing::Chunked && self.left == 0 && !self.is_over {
            self.left = self.size()?;
            self.is_over = self.left == 0;
        }
        if self.left == 0 {
            return Ok(None);
        }
        let there = self.reader.fill_buf()?;
        if there.is_empty() {
            return match self.framing {
                Framing::UntilTheEnd => Ok(None),
                _ => Err(invalid("a body that does not end")),
            };
        }
        let length = there.len().min(PIECE).min(self.left.try_into().unwrap_or(PIECE));
        let piece = there[..length].to_vec();
        self.reader.consume(length);
        self.left -= length as u64;
        if self.framing == Framing::Chunked && self.left == 0 {
            self.line()?;
        }
        Ok(Some(piece))
    }

    /// Reads all that is left.
    pub(crate) fn whole(mut self) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next()? {
            whole.extend(piece);
        }
        Ok(whole)
    }

    /// A chunk's size; after the last one, whose size is 0, trailers are read as well.
    fn size(&mut self) -> io::Result<u64> {
        let line = self.line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk without a size"))?;
        while size == 0 && !self.line()?.is_empty() {}
        Ok(size)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.by_ref().take(LONGEST).read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
            None => Err(invalid("a line that does not end")),
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status and fields.
    pub head: Head,
    /// Its whole body.
    pub body: Vec<u8>,
}

/// Asks on a connection of its own.
///
/// # Errors
/// If there is no whole answer.
pub fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    (&stream).write_all(&[head.as_bytes(), body].concat())?;
    let mut reader = BufReader::new(stream);
    let head = Head::read(&mut reader)?.ok_or(ErrorKind::UnexpectedEof)?;
    let framing = Framing::of_answer(&head, method)?;
    let body = Body::new(&mut reader, framing).whole()?;
    Ok(Answer { head, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let mut text: &[u8] = b"GET /a HTTP/1.1\r\nHost: x:1\r\nrange:bytes=1-2 \r\n\r\nbody";
        let head = Head::read(&mut text).unwrap().unwrap();
        assert_eq!((head.first.as_str(), head.field("host")), ("GET /a HTTP/1.1", Some("x:1")));
        assert_eq!((head.field("range"), text), (Some("bytes=1-2"), b"body".as_slice()));
        assert!(!head.is_last());
        assert_eq!(Head::read(&mut b"".as_slice()).unwrap(), None);
        for broken in ["GET / HTTP/1.1\r\nHo", "GET / HTTP/1.1\r\nno colon\r\n\r\n", "GET / HTTP/1.1\r\n"] {
            assert!(Head::read(&mut broken.as_bytes()).is_err(), "{broken}");
        }
        let endless = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(20_000));
        assert!(Head::read(&mut endless.as_bytes()).is_err());
    }

    #[test]
    fn bodies_by_their_framing() {
        let check = |framing, text: &str, expected: Option<&str>, rest: &str| {
            let mut reader = text.as_bytes();
            let whole = Body::new(&mut reader, framing).whole().ok();
            assert_eq!(whole.as_deref(), expected.map(str::as_bytes), "{text}");
            assert_eq!(reader, rest.as_bytes(), "{text}");
        };
        check(Framing::Length(3), "abcd", Some("abc"), "d");
        check(Framing::Length(0), "abcd", Some(""), "abcd");
        check(Framing::Length(5), "abcd", None, "");
        check(Framing::UntilTheEnd, "abcd", Some("abcd"), "");
        check(Framing::Chunked, "3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nt: u\r\n\r\nnext", Some("abcd"), "next");
        check(Framing::Chunked, "3\r\nabc\r\n", None, "");
        check(Framing::Chunked, "x\r\nabc\r\n", None, "abc\r\n");
    }

    #[test]
    fn a_body_that_is_framed_again_is_the_same() {
        let mut framed = Vec::new();
        for piece in ["ab", "c"] {
            framed.extend(Framing::Chunked.framed(piece.as_bytes()));
        }
        framed.extend(Framing::Chunked.end());
        assert_eq!(Body::new(&mut framed.as_slice(), Framing::Chunked).whole().unwrap(), b"abc");
    }
}
