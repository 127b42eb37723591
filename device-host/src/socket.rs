//! Frames over sockets, with descriptors beside them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::frame::{self, HEADER, Header, Kind, MOST_FILES};
use crate::patience::{Limit, Patience};
use crate::wire::WireError;

/// Two connected sockets, closed upon `exec`, blocking.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The other side is gone.
    #[error("the socket is closed")]
    Closed,
    /// Whoever waits has had enough.
    #[error("no answer within {0}")]
    Late(Limit),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the descriptors beside a frame are not as many as it says")]
    Files,
    /// The kernel had no room for them in this process. What came with them is over, and the next frame can be taken.
    #[error("descriptors were lost, for this process has too many open files")]
    Lost,
    #[error("{0}")]
    Socket(#[from] io::Error),
}

/// Whether it is this process, or its machine, that has no more of something: no fault of the other side's.
pub(crate) fn is_want(error: &io::Error) -> bool {
    let want = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::TOOMANYREFS];
    want.iter().any(|want| error.raw_os_error() == Some(want.raw_os_error()))
}

/// Sends a whole frame, whose header is complete. Blocks while the socket is full, unless it has no patience.
pub(crate) fn send(
    socket: impl AsFd,
    mut frame: &[u8],
    files: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut files = files;
    while !frame.is_empty() {
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(files));
        }
        match sendmsg(&socket, &[IoSlice::new(frame)], &mut beside, SendFlags::NOSIGNAL | flags) {
            Ok(sent) => {
                files = &[];
                frame = frame.get(sent..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes frames off a socket. There is one at a time: whoever sends waits for the answer.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    filled: usize,
    /// Of the frame that is in `bytes`, header and all.
    end: usize,
    /// Those of the frames in `bytes`, in their order: one reading may take more than one frame.
    waiting: VecDeque<OwnedFd>,
    /// Some of the last frame that had any did not come.
    lost: bool,
    /// Those of the frame that is in `bytes` first.
    files: Vec<OwnedFd>,
    spin: Spin,
}

/// Looks for a frame for a few microseconds before it sleeps: to be woken takes longer than what a small model takes. Where frames do not
/// come that fast it sleeps at once, so that neither a slow model nor an idle process costs a core anything.
#[derive(Default)]
struct Spin {
    limit: Duration,
    /// How long frames were waited for of late: a running mean.
    usual: Duration,
}

impl Spin {
    fn is_worth_it(&self) -> bool {
        self.usual <= self.limit
    }

    fn learn(&mut self, waited: Duration) {
        // One long wait is no reason to stop, and a few short ones are one to begin.
        self.usual = (self.usual * 3 + waited.min(self.limit * 4)) / 4;
    }
}

/// Room for one frame at first; it grows up to the limit of a frame.
const ROOM: usize = 16 << 10;

impl Inbox {
    /// One that looks for so long before it sleeps.
    pub(crate) fn spinning(limit: Duration) -> Self {
        Self { spin: Spin { limit, usual: Duration::ZERO }, ..Self::default() }
    }

    /// Takes the next frame: its kind and number. What is in it is in [`Inbox::payload`] until the next one.
    pub(crate) fn receive(
        &mut self,
        socket: impl AsFd,
        patience: &impl Patience,
    ) -> Result<(Kind, u64), ReceiveError> {
        let socket = socket.as_fd();
        self.files.clear();
        self.bytes.copy_within(self.end..self.filled, 0);
        self.filled -= self.end;
        self.end = 0;
        loop {
            if let Some(start) = self.bytes.get(..self.filled).and_then(|bytes| bytes.first_chunk::<HEADER>())
            {
                let Header { length, kind, files, number } = frame::header(start)?;
                let end = HEADER + length;
                if self.filled >= end {
                    self.end = end;
                    if files > self.waiting.len() {
                        self.waiting.clear();
                        let lost = std::mem::take(&mut self.lost);
                        return Err(if lost { ReceiveError::Lost } else { ReceiveError::Files });
                    }
                    self.files.extend(self.waiting.drain(..files));
                    return Ok((kind, number));
                }
                self.room(end);
            }
            self.room(ROOM);
            if self.filled == 0 && !self.spin.limit.is_zero() {
                self.first(socket, patience)?;
            } else {
                patience.wait(socket)?;
                self.fill(socket, RecvFlags::empty())?;
            }
        }
    }

    fn room(&mut self, room: usize) {
        if self.bytes.len() < room {
            self.bytes.resize(room, 0);
        }
    }

    /// Waits for the beginning of a frame.
    fn first(&mut self, socket: BorrowedFd<'_>, patience: &impl Patience) -> Result<(), ReceiveError> {
        let began = Instant::now();
        if self.spin.is_worth_it() {
            while began.elapsed() < self.spin.limit {
                if self.fill(socket, RecvFlags::DONTWAIT)? {
                    self.spin.learn(began.elapsed());
                    return Ok(());
                }
                // Whoever is to send it may be waiting for this core.
                std::thread::yield_now();
            }
        }
        patience.wait(socket)?;
        self.fill(socket, RecvFlags::empty())?;
        self.spin.learn(began.elapsed());
        Ok(())
    }

    /// Takes what has come; `false` if that is nothing.
    fn fill(&mut self, socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<bool, ReceiveError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let room = self.bytes.get_mut(self.filled..).unwrap_or_default();
        let received = loop {
            let mut parts = [IoSliceMut::new(room)];
            match recvmsg(socket, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC | flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(ReceiveError::Closed),
                received => break received.map_err(io::Error::from)?,
            }
        };
        let (was_lost, before) = (self.lost, self.waiting.len());
        for part in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = part {
                self.waiting.extend(files);
            }
        }
        self.lost |= received.flags.contains(ReturnFlags::CTRUNC);
        // Where more come before that frame is whole it cannot be told whose they are.
        if self.waiting.len() > 2 * MOST_FILES || (was_lost && self.waiting.len() > before) {
            return Err(ReceiveError::Files);
        }
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        self.filled += received.bytes;
        Ok(true)
    }

    /// What follows the header of the last frame.
    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..self.end).unwrap_or_default()
    }

    /// The descriptors that came beside it.
    pub(crate) fn files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::Forever;

    #[test]
    fn descriptors_stay_with_their_frames_however_many_frames_come_at_once() {
        let (ours, theirs) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let files = [0, 1, 0, 2, 1, 0];
        for (number, &count) in files.iter().enumerate() {
            let mut out = Vec::new();
            frame::begin(&mut out, Kind::Cancel, number as u64);
            frame::finish(&mut out, count).unwrap();
            send(&ours, &out, &vec![file.as_fd(); count], SendFlags::empty()).unwrap();
        }
        let mut inbox = Inbox::default();
        for (number, count) in files.into_iter().enumerate() {
            assert_eq!(inbox.receive(&theirs, &Forever).unwrap(), (Kind::Cancel, number as u64));
            assert_eq!(inbox.files().len(), count, "frame {number}");
        }
        drop(ours);
        assert!(matches!(inbox.receive(&theirs, &Forever), Err(ReceiveError::Closed)));
    }
}
