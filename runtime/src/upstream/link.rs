//! A connection to an upstream, with one call on it at a time. Whoever has the call drives it, so that letting go of it closes it: the upstream
//! learns of a caller that has left before the slot is free.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::sent::Sent;
use crate::config::UpstreamAddress;

type Socket = TokioIo<Either<TcpStream, UnixStream>>;

/// A connection.
pub(super) struct Link {
    sender: SendRequest<Sent>,
    /// Nothing once it has ended: who waits for something of it learns that from its being let go of.
    connection: Option<Pin<Box<Connection<Socket, Sent>>>>,
    _counted: Counted,
}

/// A connection that is counted as long as it is there, if it is.
struct Counted(Option<IntGauge>);

impl Counted {
    fn new(count: Option<IntGauge>) -> Self {
        count.iter().for_each(IntGauge::inc);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.iter().for_each(IntGauge::dec);
    }
}

/// Why no answer came.
pub(super) enum LinkError {
    /// The connection had ended before any of the request was sent.
    NotSent(Box<Request<Sent>>),
    /// It ended, or what came is no answer.
    Broken(hyper::Error),
}

impl Link {
    /// Connects. Of an answer no more than `window` bytes are read before they are asked for; its head has to fit in.
    ///
    /// # Errors
    /// Nobody listens there, or does not take the connection in `limit`.
    pub(super) async fn connect(
        address: &UpstreamAddress,
        limit: Duration,
        window: usize,
        count: Option<IntGauge>,
    ) -> io::Result<Self> {
        let connected = async {
            let socket = match address {
                UpstreamAddress::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Either::Left(stream)
                }
                UpstreamAddress::Unix(path) => Either::Right(UnixStream::connect(path).await?),
            };
            let handshake = Builder::new().max_buf_size(window.max(8192)).handshake(TokioIo::new(socket));
            handshake.await.map_err(io::Error::other)
        };
        let timeout = || io::Error::new(io::ErrorKind::TimedOut, "it takes no connection");
        let (sender, connection) =
            tokio::time::timeout(limit, connected).await.unwrap_or_else(|_| Err(timeout()))?;
        let connection = Some(Box::pin(connection));
        Ok(Self { sender, connection, _counted: Counted::new(count) })
    }

    /// Has it read and write as much as it can without waiting.
    fn drive(&mut self, context: &mut Context<'_>) {
        drive(&mut self.connection, context);
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn ask(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, LinkError> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let connection = &mut self.connection;
        let answer = poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            drive(connection, context);
            answer.as_mut().poll(context)
        });
        answer.await.map_err(|mut error| match error.take_message() {
            Some(request) => LinkError::NotSent(Box::new(request)),
            None => LinkError::Broken(error.into_error()),
        })
    }

    /// The next piece of an answer; nothing after the last.
    pub(super) async fn frame(
        &mut self,
        answer: &mut Incoming,
    ) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        poll_fn(|context| {
            // First: that is what has the connection read on.
            if let Poll::Ready(frame) = Pin::new(&mut *answer).poll_frame(context) {
                return Poll::Ready(frame);
            }
            self.drive(context);
            Pin::new(&mut *answer).poll_frame(context)
        })
        .await
    }

    /// Whether it can take another request: both ends are through with the one before, and the upstream has not closed it.
    pub(super) async fn is_free(&mut self) -> bool {
        poll_fn(|context| {
            self.drive(context);
            let is_ready = matches!(self.sender.poll_ready(context), Poll::Ready(Ok(())));
            Poll::Ready(self.connection.is_some() && is_ready)
        })
        .await
    }
}

fn drive(connection: &mut Option<Pin<Box<Connection<Socket, Sent>>>>, context: &mut Context<'_>) {
    // How it ended is told by whatever waits for an answer.
    if connection.as_mut().is_some_and(|connection| connection.as_mut().poll(context).is_ready()) {
        *connection = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_no_connection_is_given_up() {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let limit = Duration::from_millis(200);
        let at = UpstreamAddress::Tcp(address.ip().to_string(), address.port());
        // The kernel keeps a few that nobody accepts.
        let mut kept = Vec::new();
        let error = loop {
            match Link::connect(&at, limit, 8192, None).await {
                Ok(link) => kept.push(link),
                Err(error) => break error,
            }
            assert!(kept.len() < 100, "it is never full");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn one_that_is_closed_while_it_is_asked_says_so_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = UpstreamAddress::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
        let limit = Duration::from_secs(60);
        for _ in 0..20 {
            let mut link = Link::connect(&at, limit, 8192, None).await.unwrap();
            assert!(link.is_free().await);
            drop(listener.accept().unwrap());
            let asked = link.ask(Request::new(Sent::empty()));
            let asked = tokio::time::timeout(limit, asked).await.expect("it hangs");
            // Which of the two depends on whether the system has told of the end.
            assert!(matches!(asked, Err(LinkError::NotSent(_) | LinkError::Broken(_))));
            assert!(!link.is_free().await);
        }
    }
}
