//! Our end of the conversation with a worker: frames read and written at the same time, without waiting for either.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::net::UnixStream;
use tokio_util::io::poll_read_buf;

use super::frame::{FrameError, HEADER, Header, Kind, REFERENCE, Reference};
use super::regions::Regions;

/// The least that is asked for at once.
const READ: usize = 16 * 1024;
/// Bodies up to this length are copied behind their heads, so that one piece is written.
const JOIN: usize = 4 * 1024;
/// A worker that leaves more bytes than this unread, or than one payload may have, is not listened to.
const UNREAD: usize = 64 << 20;
/// So many pieces are written in one call to the system.
const PIECES: usize = 64;

/// Why an exchange broke off. The worker is of no use after it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("the worker closed its socket")]
    Closed,
    #[error("the worker broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the worker's socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// A frame that a worker sent.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u64,
    /// What came over the socket.
    pub(super) payload: Bytes,
    /// The payload's last part, where it lies in a region.
    pub(super) tail: Option<Bytes>,
}

/// The two sockets of a worker.
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) regions: Regions,
    inbox: BytesMut,
    outbox: Outbox,
    /// The longest frame that the worker may send.
    limit: usize,
}

/// What is to be written: whole pieces first, then what has been gathered behind them.
#[derive(Default)]
struct Outbox {
    pieces: VecDeque<Bytes>,
    gathered: Vec<u8>,
    /// Bytes of `gathered` that have been written.
    written: usize,
    /// Bytes that wait in `pieces`.
    length: usize,
    /// Writing has failed: the worker is gone, which reading will tell, perhaps after what it still had to say.
    broken: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, regions: Regions, limit: usize) -> Self {
        Self { stream, regions, inbox: BytesMut::with_capacity(READ), outbox: Outbox::default(), limit }
    }

    /// Adds a frame's head, or a whole small frame, to what is to be written.
    pub(super) fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.outbox.gathered);
    }

    /// Adds a whole frame.
    pub(super) fn put_frame(&mut self, kind: Kind, id: u64, payload: &[u8]) {
        self.put(|out| {
            out.extend_from_slice(&Header::new(kind, id, payload.len()).encode());
            out.extend_from_slice(payload);
        });
    }

    /// Adds bytes that follow what has been added; long ones are not copied.
    pub(super) fn put_bytes(&mut self, bytes: Bytes) {
        if bytes.len() <= JOIN {
            self.outbox.gathered.extend_from_slice(&bytes);
        } else {
            self.outbox.seal();
            self.outbox.push(bytes);
        }
    }

    /// Writes what the socket takes without waiting.
    pub(super) fn flush(&mut self) {
        self.outbox.write(&self.stream);
    }

    /// Writes what waits to be written, and is ready when something has been read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        while !self.outbox.is_empty() {
            match self.stream.poll_write_ready(context) {
                Poll::Ready(Ok(())) => self.outbox.write(&self.stream),
                Poll::Ready(Err(_)) => self.outbox.give_up(),
                Poll::Pending => break,
            }
        }
        // Who asks and does not take the answers is not asked for more questions. A worker that reads, on any thread, comes on.
        if self.outbox.length + self.outbox.gathered.len() > self.limit.max(UNREAD) {
            return Poll::Pending;
        }
        let wanted = self.missing();
        if self.inbox.capacity() - self.inbox.len() < wanted.min(READ / 4) {
            self.inbox.reserve(wanted.max(READ));
        } else if wanted > READ {
            self.inbox.reserve(wanted);
        }
        // Not `try_read`: this one knows that a read which did not fill its room has emptied the socket, and does not ask again.
        match ready!(poll_read_buf(Pin::new(&mut self.stream), context, &mut self.inbox)) {
            Ok(0) => Poll::Ready(Err(ExchangeError::Closed)),
            Ok(_) => Poll::Ready(Ok(())),
            // What the worker sent before it died has been read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Poll::Ready(Err(ExchangeError::Closed))
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Bytes that the frame at the front of the inbox still lacks, at least.
    fn missing(&self) -> usize {
        match self.header() {
            Some(Ok(header)) => (HEADER + header.length).saturating_sub(self.inbox.len()),
            _ => HEADER,
        }
    }

    fn header(&self) -> Option<Result<Header, FrameError>> {
        let bytes = self.inbox.first_chunk::<HEADER>()?;
        Some(Header::decode(bytes, self.limit))
    }

    /// The next frame that has been read as a whole.
    ///
    /// # Errors
    /// It is none, or its tail is not where it says.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header().transpose()? else { return Ok(None) };
        if self.inbox.len() < HEADER + header.length {
            return Ok(None);
        }
        let mut frame = self.inbox.split_to(HEADER + header.length);
        let mut payload = frame.split_off(HEADER).freeze();
        let tail = if header.tail {
            let reference = Reference::split_off(&mut payload)?;
            let length = header.length - REFERENCE;
            if usize::try_from(reference.size).is_ok_and(|size| size <= self.limit - length) {
                Some(self.regions.tail(reference)?)
            } else {
                return Err(FrameError::Length { length: self.limit.saturating_add(1), limit: self.limit });
            }
        } else {
            None
        };
        Ok(Some(Frame { kind: header.kind, id: header.id, payload, tail }))
    }

    /// Tells the worker that we are done with what it has lent, and what of ours it is to forget.
    pub(super) fn release_done(&mut self) {
        for number in self.regions.take_done() {
            self.put_frame(Kind::Release, u64::from(number), &[]);
        }
        for number in self.regions.given_up() {
            self.put_frame(Kind::Forget, u64::from(number), &[]);
        }
    }

    /// Waits for a frame.
    pub(super) async fn frame(&mut self) -> Result<Frame, ExchangeError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            std::future::poll_fn(|context| self.poll(context)).await?;
        }
    }

    /// Tells the worker that nothing more comes.
    pub(super) async fn close(&mut self) {
        use tokio::io::AsyncWriteExt;
        let _ = self.stream.shutdown().await;
    }
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.written == self.gathered.len()
    }

    /// Makes a piece of what has been gathered.
    fn seal(&mut self) {
        if self.written < self.gathered.len() {
            let mut gathered = Bytes::from(std::mem::take(&mut self.gathered));
            let _ = gathered.split_to(self.written);
            self.push(gathered);
        } else {
            self.gathered.clear();
        }
        self.written = 0;
    }

    fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        self.pieces.push_back(piece);
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.pieces.clear();
        self.length = 0;
        self.gathered.clear();
        self.written = 0;
    }

    fn write(&mut self, stream: &UnixStream) {
        if self.broken {
            self.give_up();
        }
        while !self.is_empty() {
            let result = if self.pieces.is_empty() {
                stream.try_write(&self.gathered[self.written..])
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                if let Some(last) = slices.get_mut(used) {
                    *last = IoSlice::new(&self.gathered[self.written..]);
                    used += 1;
                }
                stream.try_write_vectored(&slices[..used])
            };
            match result {
                Ok(0) => self.give_up(),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "a worker does not take what is sent to it");
                    self.give_up();
                }
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                let _ = piece.split_to(count);
                self.length -= count;
                return;
            }
            count -= piece.len();
            self.length -= piece.len();
            self.pieces.pop_front();
        }
        self.written += count;
        if self.written == self.gathered.len() {
            self.gathered.clear();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_regions::seqpacket_pair;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair(limit: usize) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (socket, _) = seqpacket_pair().unwrap();
        (Connection::new(ours, Regions::new(socket, None, limit, Arc::default()), limit), theirs)
    }

    #[tokio::test]
    async fn frames_are_read_whole_however_they_come() {
        let (mut connection, mut worker) = pair(1 << 20);
        let payload: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
        let sender = tokio::spawn({
            let payload = payload.clone();
            async move {
                for id in 0..3 {
                    let bytes =
                        [&Header::new(Kind::Chunk, id, payload.len()).encode()[..], &payload].concat();
                    for piece in bytes.chunks(7_001) {
                        worker.write_all(piece).await.unwrap();
                    }
                }
                worker.write_all(&Header::new(Kind::Leave, 9, 0).encode()).await.unwrap();
            }
        });
        for id in 0..3 {
            let frame = connection.frame().await.unwrap();
            assert_eq!((frame.kind, frame.id), (Kind::Chunk, id));
            assert!(frame.payload == payload);
        }
        assert_eq!(connection.frame().await.unwrap().kind, Kind::Leave);
        sender.await.unwrap();
        assert!(matches!(connection.frame().await, Err(ExchangeError::Closed)));
    }

    #[tokio::test]
    async fn it_reads_while_it_writes() {
        let (mut connection, mut worker) = pair(1 << 20);
        // More than any socket buffer takes: the worker first sends as much itself, without reading.
        let large = Bytes::from(vec![7; 4 << 20]);
        connection.put_frame(Kind::Cancel, 1, b"x");
        connection.put_bytes(large.clone());
        connection.put_frame(Kind::Cancel, 2, b"y");
        let peer = tokio::spawn(async move {
            let answer = vec![1; 1 << 20];
            worker.write_all(&Header::new(Kind::Chunk, 5, answer.len()).encode()).await.unwrap();
            worker.write_all(&answer).await.unwrap();
            let mut all = Vec::new();
            worker.read_to_end(&mut all).await.unwrap();
            all
        });
        assert_eq!(connection.frame().await.unwrap().payload.len(), 1 << 20);
        while !connection.outbox.is_empty() {
            // Nothing more comes to be read, so this is only ever pending, and writes.
            tokio::select! {
                biased;
                _ = std::future::poll_fn(|context| connection.poll(context)) => {}
                () = tokio::task::yield_now() => {}
            }
        }
        drop(connection);
        let all = peer.await.unwrap();
        assert_eq!(all.len(), 2 * (HEADER + 1) + large.len());
        assert_eq!(all[HEADER], b'x');
        assert_eq!(all[all.len() - 1], b'y');
    }

    #[tokio::test]
    async fn what_a_worker_said_before_it_died_is_heard() {
        let (mut connection, mut worker) = pair(100);
        worker.write_all(&Header::new(Kind::Leave, 3, 0).encode()).await.unwrap();
        drop(worker);
        connection.put_bytes(Bytes::from(vec![0; 1 << 20]));
        connection.flush();
        assert_eq!(connection.frame().await.unwrap().id, 3);
        assert!(matches!(connection.frame().await, Err(ExchangeError::Closed)));
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        for bytes in [
            Header::new(Kind::Chunk, 1, 101).encode(),
            Header::new(Kind::Call, 1, 0).encode(),
            Header { tail: true, ..Header::new(Kind::Chunk, 1, 3) }.encode(),
        ] {
            let (mut connection, mut worker) = pair(100);
            worker.write_all(&bytes).await.unwrap();
            assert!(matches!(connection.frame().await, Err(ExchangeError::Frame(_))));
        }
        // A tail in a region that was never sent.
        let (mut connection, mut worker) = pair(100);
        let reference = Reference { region: 1, offset: 0, size: 4 };
        let header = Header { tail: true, ..Header::new(Kind::Chunk, 1, REFERENCE) };
        worker.write_all(&[&header.encode()[..], &reference.encode()].concat()).await.unwrap();
        assert!(matches!(connection.frame().await, Err(ExchangeError::Frame(_))));
    }
}
