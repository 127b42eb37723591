//! Accepting connections, with TLS or without: bounded in number, in header size and in time, and drained at the end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::head::Heads;
use super::idle::Requests;
use super::passing::Peer;
use super::stall::Watch;
use crate::config::{Endpoint, LimitsConfig};
use crate::telemetry::{self, Ending, Passage, Telemetry};
use crate::tls::{Accepted, Acceptor, Shown};

/// How long a listener waits after an error of the system's, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait in the kernel.
const BACKLOG: i32 = 1024;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {endpoint} ({key}){}", hint(.source))]
pub struct BindError {
    /// The address.
    pub endpoint: Endpoint,
    /// The configuration key.
    pub key: &'static str,
    /// Why.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ": another process has it",
        io::ErrorKind::PermissionDenied => ": not permitted",
        _ => "",
    }
}

/// A listener that is bound and not yet served.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// The path is removed again when dropped.
    Unix(UnixListener, SocketPath),
}

/// Where a listener is bound.
pub type Bound = Endpoint;

pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(crate) fn bind(endpoint: &Endpoint, key: &'static str) -> Result<Self, BindError> {
        let bound = match endpoint {
            Endpoint::Tcp(address) => bind_tcp(*address),
            Endpoint::Unix(path) => bind_unix(path),
        };
        bound.map_err(|source| BindError { endpoint: endpoint.clone(), key, source })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    pub(crate) fn bound(&self) -> Option<Endpoint> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Endpoint::Tcp),
            Self::Unix(_, path) => Some(Endpoint::Unix(path.0.clone())),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
}

/// Binds a socket that only this user can reach. A path that a dead replica has left is taken over; a living one's is not.
fn bind_unix(path: &std::path::Path) -> io::Result<Listener> {
    use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        // A file that is no socket refuses connections too, and is not ours to remove.
        Err(error)
            if error.kind() == io::ErrorKind::ConnectionRefused
                && std::fs::symlink_metadata(path)?.file_type().is_socket() =>
        {
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener, SocketPath(path.to_owned())))
}

/// What a listener serves, and how.
pub(crate) struct Site {
    pub(crate) router: Router,
    pub(crate) limits: LimitsConfig,
    pub(crate) peers: Peers,
    pub(crate) tls: Option<Acceptor>,
    /// Tells of requests, where they are calls.
    pub(crate) telemetry: Option<Arc<Telemetry>>,
}

impl Site {
    /// One whose requests are no calls, without TLS.
    pub(crate) fn new(router: Router, limits: LimitsConfig) -> Self {
        Self { router, limits, peers: Peers::Unknown, tls: None, telemetry: None }
    }
}

/// What ends a listener and its connections.
#[derive(Clone)]
pub(crate) struct Ends {
    /// No new ones are accepted, and those that are open finish what they are at.
    pub(crate) stop: CancellationToken,
    /// Those that are open are closed.
    pub(crate) cut: CancellationToken,
}

/// Accepts connections until it is to stop. `tracker` knows all of them. Those of a Unix socket never speak TLS.
pub(crate) async fn serve(listener: Listener, site: Site, tracker: TaskTracker, ends: Ends) {
    let stop = ends.stop.clone();
    let permits = Arc::new(Semaphore::new(site.limits.connections));
    let server = Arc::new(Server { builder: builder(&site.limits), site, ends });
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit,
            () = stop.cancelled() => return,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(stream) => {
                let server = Arc::clone(&server);
                tracker.spawn(async move {
                    match stream {
                        Stream::Tcp(stream) => server.tcp(stream).await,
                        Stream::Unix(stream) => {
                            server.connection(server.timed(stream), Whose::default()).await
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether requests say who sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// Nobody asks.
    Unknown,
    /// What is passed on tells it.
    Known,
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &Listener) -> io::Result<Stream> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        Listener::Unix(listener, _) => {
            let (stream, _) = listener.accept().await?;
            // The mode of the socket keeps other users out; this also holds where a file system ignores modes.
            let peer = stream.peer_cred()?.uid();
            if peer != own_uid() && peer != 0 {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // A script runs as the same user; that it is confined is how it is told from whoever manages the replica.
            if outrigger_sandbox::is_confined(stream.as_fd())? {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(Stream::Unix(stream))
        }
    }
}

#[expect(unsafe_code, reason = "asks for the user's number")]
fn own_uid() -> u32 {
    // SAFETY: `geteuid` takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// HTTP/1.1 and HTTP/2, by what a client begins with. Hyper's own limits stand well above `limits.header`, so that a request that is over ours
/// is answered in words, and one that is far over is cut off.
fn builder(limits: &LimitsConfig) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Hyper's own time for a head is also that in which a connection may be kept, on which the next one has not begun: see `head.rs`.
        .header_read_timeout(None)
        .max_buf_size((limits.header * 4).max(256 * 1024));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        // What one request may send ahead, and what all of a connection may: so that an upload that waits for its turn does not keep others
        // from sending.
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(u32::try_from(limits.header.saturating_mul(4)).unwrap_or(u32::MAX))
        // A client that is gone without a word is found out, and its calls end.
        .keep_alive_interval(Some(limits.silence))
        .keep_alive_timeout(limits.silence);
    builder
}

struct Server {
    builder: Builder<TokioExecutor>,
    site: Site,
    ends: Ends,
}

/// Whose a connection is, as far as it says so.
#[derive(Default)]
struct Whose {
    peer: Option<Peer>,
    certificate: Option<Shown>,
}

/// A socket that has to take something of what is written within a time. It lies below TLS, so that what counts is what the client takes.
type Timed<S> = Pin<Box<TimeoutStream<S>>>;

impl Server {
    async fn tcp(&self, stream: tokio::net::TcpStream) {
        let address = stream.peer_addr().ok().filter(|_| self.site.peers == Peers::Known);
        let address = address.map(|address| address.ip().to_canonical());
        let peer = address.map(|address| Peer { address, is_encrypted: self.site.tls.is_some() });
        let stream = self.timed(stream);
        match &self.site.tls {
            None => self.connection(stream, Whose { peer, certificate: None }).await,
            // One on which nothing has been asked is closed when the replica ends, and this one has got no further.
            Some(tls) => {
                if let Some(Accepted { stream, certificate }) =
                    tls.accept(stream, self.ends.stop.cancelled()).await
                {
                    self.connection(stream, Whose { peer, certificate }).await;
                }
            }
        }
    }

    fn timed<S: AsyncRead + AsyncWrite>(&self, stream: S) -> Timed<S> {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.site.limits.write_timeout));
        Box::pin(stream)
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, whose: Whose) {
        let answers = Watch::new(self.site.limits.write_timeout);
        let requests = Arc::<Requests>::default();
        let Whose { peer, certificate } = whose;
        let service = service_fn(|mut request: http::Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            if let Some(shown) = &certificate {
                request.extensions_mut().insert(Arc::clone(&shown.certificate));
            }
            let (answers, open) = (Arc::clone(&answers), requests.begin());
            let answer = self.site.router.clone().oneshot(request);
            let passage = self.site.telemetry.as_ref().map(Passage::new);
            async move {
                let Some(passage) = passage else {
                    return answer.await.map(|answer| answer.map(|body| answers.body(body, open, None)));
                };
                let ending = Some(Ending::of(&passage));
                let answer = telemetry::within(passage, answer).await;
                answer.map(|answer| answer.map(|body| answers.body(body, open, ending)))
            }
        });
        let heads =
            Heads::new(stream, Arc::clone(&requests), Arc::clone(&answers), self.site.limits.header_timeout);
        let connection = self.builder.serve_connection(TokioIo::new(heads), service);
        let (stalled, idle) = (answers.stalled(), requests.idle(&answers, self.site.limits.idle));
        let over = async {
            match &certificate {
                Some(shown) => shown.over().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(connection, stalled, idle, over);
        let (mut stopping, mut is_idle, mut is_over) = (false, false, false);
        let result = loop {
            tokio::select! {
                result = connection.as_mut() => break result,
                () = self.ends.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.ends.cut.cancelled() => break Err("the replica ends".into()),
                () = &mut idle, if !is_idle => {
                    // What is asked before the client has heard of it is still answered. Of one over HTTP/2 that does not say that it has, no other
                    // ping is asked either, so that it has `limits.silence`.
                    is_idle = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut over, if !is_over => {
                    // What has begun is answered; who is still there shows on a new connection that its certificate holds.
                    is_over = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut stalled => {
                    // Other answers on the connection have as long again; other calls come on a new one.
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        rest = tokio::time::timeout(self.site.limits.write_timeout, connection) => {
                            break rest.unwrap_or_else(|_| Err("its answers are not taken".into()));
                        }
                        () = self.ends.cut.cancelled() => break Err("the replica ends".into()),
                    }
                }
            }
        };
        // Clients that go away are no event of ours.
        if let Err(error) = result {
            tracing::debug!(error, "connection ended");
        }
    }
}
