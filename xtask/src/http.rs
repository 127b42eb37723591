//! As much of an HTTP/1.1 client as loopback needs: one connection, kept alive, no redirects, no encryption.

use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest wait for an answer: above the scoring time limit of the example, so that its own error arrives.
const PATIENCE: Duration = Duration::from_secs(90);
/// Answers of the example are a few kilobytes; more than this is not one of them.
const LARGEST: u64 = 64 << 20;

/// A client of one server.
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    closes: bool,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address), b"")
    }

    /// Sends JSON with a key.
    pub(crate) fn post(&mut self, path: &str, key: &str, body: &[u8]) -> Result<Answer> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.send(&head, body)
    }

    fn send(&mut self, head: &str, body: &[u8]) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
                let stream = stream.with_context(|| format!("could not connect to {}", self.address))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        // In one piece: two would be two packets, and the second would wait for nothing but be counted as latency.
        connection.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let answer =
            read(&mut connection).with_context(|| format!("no HTTP answer from {}", self.address))?;
        if !answer.closes {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

fn read(reader: &mut impl BufRead) -> Result<Answer> {
    let first = head_line(reader)?;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("`{first}` is no HTTP status line"))?;
    let (mut length, mut chunked, mut closes) = (None, false, first.starts_with("HTTP/1.0"));
    loop {
        let line = head_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("`{line}` is no header"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                length = Some(value.parse().with_context(|| format!("`{value}` is no length"))?)
            }
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => closes = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match length {
        _ if chunked => read_chunks(reader, &mut body)?,
        Some(length) => read_exactly(reader, length, &mut body)?,
        None => {
            closes = true;
            reader.take(LARGEST).read_to_end(&mut body)?;
        }
    }
    Ok(Answer { status, body, closes })
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let line = head_line(reader)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size =
            u64::from_str_radix(size, 16).with_context(|| format!("`{line}` is no size of a chunk"))?;
        if size == 0 {
            while !head_line(reader)?.is_empty() {}
            return Ok(());
        }
        read_exactly(reader, size, body)?;
        head_line(reader)?;
    }
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    if length + body.len() as u64 > LARGEST {
        bail!("the answer is larger than {LARGEST} bytes");
    }
    let read = reader.take(length).read_to_end(body)?;
    if read as u64 != length {
        bail!("the answer ends after {read} of {length} bytes");
    }
    Ok(())
}

fn head_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    if reader.take(1 << 16).read_until(b'\n', &mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(u16, &str, bool), &str>) {
        let found = read(&mut text.as_bytes()).map_err(|error| error.to_string());
        let expected = expected
            .map(|(status, body, closes)| Answer { status, body: body.into(), closes })
            .map_err(str::to_owned);
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn answers_with_a_length() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP", Ok((200, "ok", false)));
        check("HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n", Ok((503, "", true)));
        check("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", Err("the answer ends after 2 of 9 bytes"));
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            Err("the answer is larger than 67108864 bytes"),
        );
    }

    #[test]
    fn answers_in_chunks_and_to_the_end() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(
            &format!("{head}2\r\nok\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"),
            Ok((200, "ok0123456789", false)),
        );
        check("HTTP/1.0 200 OK\r\n\r\nall of it", Ok((200, "all of it", true)));
    }

    #[test]
    fn what_is_no_http() {
        check("SSH-2.0-x\r\n", Err("`SSH-2.0-x` is no HTTP status line"));
        check("", Err("unexpected end of file"));
    }
}
