//! Just enough of HTTP/1.1 to read what the servers under test answer.

use anyhow::{Context as _, bail, ensure};

/// What matters of an answer's head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head itself, with the empty line.
    pub size: usize,
    /// How the body ends.
    pub framing: Framing,
    /// The server closes the connection after the body.
    pub closes: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// With a chunk of no bytes.
    Chunked,
}

impl Framing {
    /// Whether these bytes are the whole body.
    ///
    /// # Errors
    /// As [`chunks`].
    pub fn is_complete(self, bytes: &[u8]) -> anyhow::Result<bool> {
        match self {
            Self::Length(length) => Ok(bytes.len() >= length),
            Self::Chunked => Ok(chunks(bytes)?.complete),
        }
    }
}

/// Parses the head, once it is there in full.
///
/// # Errors
/// If the answer is not a 200, or does not say how its body ends.
pub fn head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let Some((head, text)) = any(bytes)? else { return Ok(None) };
    if !text.starts_with("HTTP/1.1 200") {
        bail!("{text}\n{}", String::from_utf8_lossy(&bytes[text.len()..]));
    }
    Ok(Some(head))
}

/// Parses the head of an answer with any status, once it is there in full; its text comes with it, for [`status`] and [`field`].
///
/// # Errors
/// If the answer does not say how its body ends.
pub fn any(bytes: &[u8]) -> anyhow::Result<Option<(Head, &str)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).context("head")?;
    let field = |name| field(text, name);
    let framing = match (field("content-length"), field("transfer-encoding")) {
        (Some(length), None) => Framing::Length(length.parse().context("content-length")?),
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        _ => bail!("neither a length nor chunks:\n{text}"),
    };
    let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some((Head { size: end + 4, framing, closes }, text)))
}

/// The status in the text of a head; 0 for what has none.
pub fn status(text: &str) -> u16 {
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// A field in the text of a head.
pub fn field<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// What has come so far of a body in chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// The body's bytes, those of an unfinished chunk among them.
    pub body: Vec<u8>,
    /// The last chunk has come.
    pub complete: bool,
}

/// Takes the chunks apart.
///
/// # Errors
/// If a chunk does not begin with its size.
pub fn chunks(mut bytes: &[u8]) -> anyhow::Result<Chunks> {
    let mut chunks = Chunks::default();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let line = std::str::from_utf8(&bytes[..end]).context("size of a chunk")?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("size of a chunk: {line:?}"))?;
        let data = &bytes[end + 2..];
        if size == 0 {
            // No server here sends trailers.
            chunks.complete = data.starts_with(b"\r\n");
            break;
        }
        chunks.body.extend_from_slice(&data[..size.min(data.len())]);
        let Some(rest) = data.get(size..).filter(|rest| rest.len() >= 2) else { break };
        ensure!(rest.starts_with(b"\r\n"), "a chunk is longer than it said");
        bytes = &rest[2..];
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let check = |text: &str, framing, closes| {
            let size = text.find("\r\n\r\n").unwrap() + 4;
            assert_eq!(head(text.as_bytes()).unwrap(), Some(Head { size, framing, closes }), "{text}");
        };
        check("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nbody", Framing::Length(12), false);
        check("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", Framing::Length(0), true);
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Framing::Chunked, false);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n").unwrap(), None);
    }

    #[test]
    fn answers_that_end_a_measurement() {
        let check = |text: &str, expected: &str| {
            let error = head(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull",
            "503 Busy\r\ncontent-length: 4\n\r\n\r\nfull",
        );
        let busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\ncontent-length: 4\r\n\r\nfull";
        let (head, text) = any(busy).unwrap().unwrap();
        assert_eq!(
            (status(text), field(text, "retry-after"), head.framing),
            (503, Some("1"), Framing::Length(4))
        );
        check("HTTP/1.1 200 OK\r\n\r\n", "neither a length nor chunks");
        check("HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "content-length");
    }

    #[test]
    fn chunks_as_they_arrive() {
        let whole = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        let bodies = ["", "abc", "abc0123456789"];
        for end in 0..=whole.len() {
            let Chunks { body, complete } = chunks(&whole[..end]).unwrap();
            assert!(bodies[2].as_bytes().starts_with(&body), "{end}");
            assert_eq!(complete, end == whole.len(), "{end}");
        }
        assert_eq!(chunks(&whole[..6]).unwrap().body, bodies[1].as_bytes());
        assert_eq!(chunks(whole).unwrap().body, bodies[2].as_bytes());
        assert!(chunks(b"zz\r\n").is_err());
        assert!(chunks(b"1\r\nabc\r\n").is_err());
    }
}
