//! How long the first item of a streamed answer is under way.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::answer::{self, Framing};
use crate::clock;

/// No server here is silent for so long in the middle of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client of a server whose streamed answer begins with what the monotonic clock showed at its first `yield`, in nanoseconds.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    open: Option<TcpStream>,
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, open: None }
    }

    /// Sends the request, and returns the seconds from the first `yield` to the first byte of the body.
    ///
    /// # Errors
    /// If the answer is not a 200 in chunks, or does not begin with a time.
    pub fn first_byte(&mut self, request: &[u8]) -> anyhow::Result<f64> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        stream.write_all(request)?;
        let (mut bytes, mut begun) = (Vec::new(), None);
        let mut block = [0; 16 * 1024];
        loop {
            let size = stream.read(&mut block)?;
            let now = clock::monotonic_ns();
            ensure!(size > 0, "connection closed");
            bytes.extend_from_slice(&block[..size]);
            let Some(head) = answer::head(&bytes)? else { continue };
            ensure!(head.framing == Framing::Chunked, "the answer is not streamed");
            let chunks = answer::chunks(&bytes[head.size..])?;
            if !chunks.body.is_empty() {
                begun.get_or_insert(now);
            }
            if chunks.complete {
                if !head.closes {
                    self.open = Some(stream);
                }
                let yielded = first_number(&chunks.body)?;
                let received = begun.context("an answer without a body")?;
                return Ok((received as f64 - yielded as f64) / 1e9);
            }
        }
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// The first number of a text, whatever stands around it: servers frame what a script yields in their own ways.
fn first_number(body: &[u8]) -> anyhow::Result<u64> {
    let digits =
        body.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
    let digits: String = digits.map(|digit| char::from(*digit)).collect();
    digits.parse().with_context(|| format!("no time in {:?}", String::from_utf8_lossy(body)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn numbers_in_their_frames() {
        assert_eq!(first_number(b"1234\nend\n").unwrap(), 1234);
        assert_eq!(first_number(b"data: 1234\n\ndata: 5\n\n").unwrap(), 1234);
        assert!(first_number(b"end\n").is_err());
    }

    #[test]
    fn a_server_that_streams_is_told_from_one_that_holds_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let held_back = 50_000_000;
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for late in [0, held_back] {
                let mut block = [0; 1024];
                assert!(stream.read(&mut block).unwrap() > 0);
                let text = (clock::monotonic_ns() - late).to_string();
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                let first = format!("{head}{:x}\r\n{text}\r\n", text.len());
                stream.write_all(first.as_bytes()).unwrap();
                stream.write_all(b"3\r\nend\r\n0\r\n\r\n").unwrap();
            }
        });
        let mut client = Client::new(address);
        let request = crate::load::post("/score", None, "application/json", b"{}");
        assert!(client.first_byte(&request).unwrap() >= 0.0);
        assert!(client.first_byte(&request).unwrap() >= held_back as f64 / 1e9);
        server.join().unwrap();
    }
}
