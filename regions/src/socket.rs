//! Handing regions over: one message of a seqpacket socket for each, with the descriptor beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// u32 region, u32 0, u64 size; little-endian.
const MESSAGE: usize = 16;

/// Two connected sockets, closed upon `exec`, blocking.
///
/// # Errors
/// No descriptors left.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends the descriptor of region `number`, which has `size` bytes. Where the socket is full it waits, or, if the socket
/// is non-blocking, fails with [`io::ErrorKind::WouldBlock`] having sent nothing.
///
/// # Errors
/// The other side is gone, or the kernel refuses: too many descriptors are under way.
pub fn send_region(socket: BorrowedFd<'_>, number: u32, size: u64, file: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    message[..4].copy_from_slice(&number.to_le_bytes());
    message[8..].copy_from_slice(&size.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let files = [file];
    loop {
        let mut beside = SendAncillaryBuffer::new(&mut space);
        beside.push(SendAncillaryMessage::ScmRights(&files));
        match sendmsg(socket, &[IoSlice::new(&message)], &mut beside, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Takes the next message, if there is one: the region's number, its announced size, and a descriptor, closed upon
/// `exec`, of which nothing is known yet ([`Mapping::open`](crate::Mapping::open) checks it). Never waits.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the other side has closed the socket, [`io::ErrorKind::InvalidData`] for what is not
/// such a message; descriptors that came with it are closed.
pub fn receive_region(socket: BorrowedFd<'_>) -> io::Result<Option<(u32, u64, OwnedFd)>> {
    // One byte more than a message has, so that a longer one is noticed.
    let mut message = [0; MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut beside, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // It closed with messages of ours unread.
            Err(Errno::CONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => break received?,
        }
    };
    // Taken out first, so that they are closed whatever else is wrong.
    let files: Vec<OwnedFd> = beside
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [n0, n1, n2, n3, _, _, _, _, size @ .., _] = message;
    let one = <[OwnedFd; 1]>::try_from(files);
    match one {
        Ok([file]) if received.bytes == MESSAGE && !received.flags.contains(ReturnFlags::CTRUNC) => {
            Ok(Some((u32::from_le_bytes([n0, n1, n2, n3]), u64::from_le_bytes(size), file)))
        }
        _ => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not a region's number, size and one descriptor"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::{send, sendmsg};

    use super::*;
    use crate::{Mapping, Region};

    fn send_raw(socket: &OwnedFd, message: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        beside.push(SendAncillaryMessage::ScmRights(files));
        sendmsg(socket, &[IoSlice::new(message)], &mut beside, SendFlags::NOSIGNAL).unwrap();
    }

    #[test]
    fn a_region_crosses() {
        let (ours, theirs) = seqpacket_pair().unwrap();
        assert!(receive_region(theirs.as_fd()).unwrap().is_none());
        let mut region = Region::create(4096).unwrap();
        region.bytes_mut()[0] = 9;
        send_region(ours.as_fd(), u32::MAX, 4096, region.fd()).unwrap();
        let (number, size, file) = receive_region(theirs.as_fd()).unwrap().unwrap();
        assert_eq!((number, size), (u32::MAX, 4096));
        assert_eq!(fcntl_getfd(&file), Ok(FdFlags::CLOEXEC));
        assert!(Mapping::open(file, size).is_ok());
        assert!(receive_region(theirs.as_fd()).unwrap().is_none());
        drop(ours);
        let end = receive_region(theirs.as_fd()).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_such_message_is_refused_and_its_descriptors_closed() {
        let (ours, theirs) = seqpacket_pair().unwrap();
        // A pipe's reader sees its end when all descriptors of the writer's are closed.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let two = [writer.as_fd(), writer.as_fd()];
        let messages: [(&[u8], &[BorrowedFd<'_>]); 4] =
            [(&[0; 15], &two[..1]), (&[0; 17], &two[..1]), (&[0; 16], &two), (&[0; 16], &[])];
        for (message, files) in messages {
            send_raw(&ours, message, files);
            let error = receive_region(theirs.as_fd()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{} bytes", message.len());
        }
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn a_full_socket_and_a_closed_one() {
        let (ours, theirs) = seqpacket_pair().unwrap();
        fcntl_setfl(&ours, OFlags::NONBLOCK).unwrap();
        let file = File::open("/dev/null").unwrap();
        while send(&ours, &[0; 16], SendFlags::NOSIGNAL).is_ok() {}
        let full = send_region(ours.as_fd(), 1, 1, file.as_fd()).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        let end = receive_region(ours.as_fd()).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let closed = send_region(ours.as_fd(), 1, 1, file.as_fd()).unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe);
    }
}
