//! A client that takes any answer for what it is, over one connection that is kept: to a port, or to a Unix socket.
//!
//! [`load`](crate::load) ends at the first answer that is not 200; here refusals are part of what is measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::answer::{self, Framing};

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// At a port.
    Port(SocketAddr),
    /// At a socket of the file system.
    Socket(PathBuf),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// `outrigger-code`, where it has one.
    pub code: Option<String>,
    /// Whether it has `Retry-After`.
    pub says_when: bool,
    /// Its body.
    pub body: Vec<u8>,
}

/// A client of one server, with one connection.
pub struct Client {
    address: Address,
    patience: Duration,
    open: Option<Box<dyn Stream>>,
    buffer: Vec<u8>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Client {
    /// A client that is not connected yet, and waits so long for an answer.
    pub fn new(address: Address, patience: Duration) -> Self {
        Self { address, patience, open: None, buffer: Vec::with_capacity(16 * 1024) }
    }

    /// Sends a request, as bytes, and reads the answer.
    ///
    /// # Errors
    /// If there is no server, no whole answer in time, or one that does not say how its body ends. The next request has a connection of its own.
    pub async fn send(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        let patience = self.patience;
        tokio::time::timeout(patience, self.exchange(request))
            .await
            .with_context(|| format!("no answer within {patience:?}"))?
    }

    async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => connect(&self.address).await?,
        };
        stream.write_all(request).await?;
        let buffer = &mut self.buffer;
        buffer.clear();
        let (head, mut answer) = loop {
            ensure!(stream.read_buf(buffer).await? > 0, "connection closed");
            if let Some((head, text)) = answer::any(buffer)? {
                let field = |name| answer::field(text, name);
                let answer = Answer {
                    status: answer::status(text),
                    code: field("outrigger-code").map(str::to_owned),
                    says_when: field("retry-after").is_some(),
                    body: Vec::new(),
                };
                break (head, answer);
            }
        };
        while !head.framing.is_complete(&buffer[head.size..])? {
            ensure!(stream.read_buf(buffer).await? > 0, "connection closed");
        }
        answer.body = match head.framing {
            Framing::Length(_) => buffer[head.size..].to_vec(),
            Framing::Chunked => answer::chunks(&buffer[head.size..])?.body,
        };
        if !head.closes {
            self.open = Some(stream);
        }
        Ok(answer)
    }
}

async fn connect(address: &Address) -> anyhow::Result<Box<dyn Stream>> {
    Ok(match address {
        Address::Port(address) => {
            let stream = TcpStream::connect(address).await.context("connect")?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Address::Socket(path) => {
            Box::new(UnixStream::connect(path).await.with_context(|| path.display().to_string())?)
        }
    })
}

/// A request, as bytes.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn serve(mut stream: impl Stream, answers: &[&str]) {
        for answer in answers {
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn any_answer_is_one_and_the_connection_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = Client::new(Address::Port(listener.local_addr().unwrap()), PATIENCE);
        let refused =
            "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\noutrigger-code: busy\r\ncontent-length: 4\r\n\r\nfull";
        let kept = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let server = async { serve(listener.accept().await.unwrap().0, &[refused, kept]).await };
        let request = request("GET", "/", &[("x-a", "b")], b"{}");
        let asked = async { [client.send(&request).await.unwrap(), client.send(&request).await.unwrap()] };
        let ([refused, ok], ()) = tokio::join!(asked, server);
        let expected =
            Answer { status: 503, code: Some("busy".into()), says_when: true, body: b"full".into() };
        assert_eq!(refused, expected);
        assert_eq!(ok, Answer { status: 200, code: None, says_when: false, body: b"ok".into() });
        // The server is gone with its connection; nobody takes the next.
        assert!(client.send(&request).await.is_err());
    }

    #[tokio::test]
    async fn a_socket_of_the_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::new(Address::Socket(path), PATIENCE);
        let answer = "HTTP/1.1 204 None\r\ncontent-length: 0\r\n\r\n";
        let server = async { serve(listener.accept().await.unwrap().0, &[answer]).await };
        let request = request("POST", "/x", &[], b"");
        let (answer, ()) = tokio::join!(client.send(&request), server);
        assert_eq!(answer.unwrap().status, 204);
    }
}
