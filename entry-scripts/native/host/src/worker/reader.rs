//! Frames out of the stream socket.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::channel::End;
use super::frame::{HEADER, Header};

/// Small frames are read into one buffer of this size, several at a time.
const BUFFER: usize = 64 * 1024;

/// What has been read and not yet been taken.
pub(super) struct Reader {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// A frame that is not there in full: its header, its payload, and how much of that is there.
    partial: Option<(Header, Vec<u8>, usize)>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER].into(), start: 0, end: 0, partial: None }
    }

    /// The next frame; `None` if it is not there in full and is not to be waited for.
    pub(super) fn next(
        &mut self,
        socket: BorrowedFd<'_>,
        wait: bool,
    ) -> Result<Option<(Header, Vec<u8>)>, End> {
        loop {
            if let Some((header, mut payload, filled)) = self.partial.take() {
                if filled == payload.len() {
                    return Ok(Some((header, payload)));
                }
                // Straight to where it stays.
                let received = receive(socket, &mut payload[filled..], wait);
                let filled = filled + *received.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0);
                self.partial = Some((header, payload, filled));
                if received?.is_none() {
                    return Ok(None);
                }
                continue;
            }
            if let Some(header) = self.buffer[self.start..self.end].first_chunk::<HEADER>() {
                let header = Header::decode(header)?;
                self.start += HEADER;
                let length = header.length as usize;
                let mut payload = Vec::new();
                payload
                    .try_reserve_exact(length)
                    .map_err(|_| End::protocol("a frame is longer than memory"))?;
                let there = length.min(self.end - self.start);
                payload.extend_from_slice(&self.buffer[self.start..self.start + there]);
                payload.resize(length, 0);
                self.start += there;
                self.partial = Some((header, payload, there));
                continue;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match receive(socket, &mut self.buffer[self.end..], wait)? {
                Some(received) => self.end += received,
                None => return Ok(None),
            }
        }
    }
}

/// Bytes received, at least 1; `None` if there are none and they are not to be waited for.
fn receive(socket: BorrowedFd<'_>, room: &mut [u8], wait: bool) -> Result<Option<usize>, End> {
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    loop {
        match recv(socket, &mut *room, flags) {
            Ok((0, _)) => return Err(End::Closed),
            Ok((received, _)) => return Ok(Some(received)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !wait => return Ok(None),
            // The runtime is gone: with it or without it, there is nobody to talk to.
            Err(_) => return Err(End::Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::frame::Kind;
    use super::*;

    fn frame(id: u64, payload: &[u8]) -> Vec<u8> {
        let header = Header { length: payload.len() as u32, kind: Kind::Call, flags: 0, id };
        [&header.encode()[..], payload].concat()
    }

    #[test]
    fn frames_arrive_in_pieces_of_any_size() {
        let large = vec![7; 3 * BUFFER];
        let frames = [frame(1, b""), frame(2, b"abc"), frame(3, &large), frame(4, b"d")].concat();
        for size in [1, 15, 16, 17, 1000, BUFFER, frames.len()] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let mut reader = Reader::new();
            let mut got = Vec::new();
            for piece in frames.chunks(size) {
                // Read at once, so that the socket is never full.
                for part in piece.chunks(BUFFER) {
                    ours.write_all(part).unwrap();
                    while let Some((header, payload)) = reader.next(theirs.as_fd(), false).unwrap() {
                        got.push((header.id, payload));
                    }
                }
            }
            let expected = [(1, b"".to_vec()), (2, b"abc".to_vec()), (3, large.clone()), (4, b"d".to_vec())];
            assert!(got == expected, "in pieces of {size}");
            drop(ours);
            assert_eq!(reader.next(theirs.as_fd(), true), Err(End::Closed));
        }
    }

    #[test]
    fn an_unknown_kind_is_the_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0; HEADER]).unwrap();
        let end = Reader::new().next(theirs.as_fd(), true).unwrap_err();
        assert_eq!(end, End::protocol("a frame of an unknown kind"));
    }
}
