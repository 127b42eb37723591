"""Receiving: bytes from the socket into a buffer that is made once, and frames out of it."""

import socket

from . import frames
from .link import Closed, Link, ProtocolError, says_gone

#: Frames up to this size, in bytes, are received into one buffer that is made once.
BUFFER_SIZE = 256 * 1024
#: A buffer made for a longer frame is kept, up to this size, until a frame comes that does without.
SPARE_LIMIT = 16 * 1024 * 1024


class Inbox:
    """What has come over the socket. Used by one thread at a time, the holder of the channel's reading lock."""

    __slots__ = ("view", "_link", "_sock", "_buffer", "_start", "_end", "_spare", "_inside_frame")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sock = link.sock
        # What has been received and not yet been taken is `_buffer[_start:_end]`.
        self._buffer = bytearray(BUFFER_SIZE)
        #: The buffer. What lies in it is valid until the next frame is received.
        self.view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._spare: bytearray | None = None
        self._inside_frame = False

    @property
    def is_empty(self) -> bool:
        """Whether everything that has been received has been taken."""
        return self._start == self._end

    def receive_call(self) -> tuple[int, int] | None:
        """Receives, into an empty buffer, and gives number and end of a CALL that has come alone and whole.

        That is nearly always so. If it is not, what has come waits to be taken as frames.
        """
        size = self._sock.recv_into(self.view)
        if size >= frames.HEADER_SIZE:
            length, kind, flags, number = frames.HEADER.unpack_from(self._buffer)
            if kind == frames.CALL and not flags and length == size - frames.HEADER_SIZE:
                self._spare = None
                return number, size
        elif not size:
            raise Closed
        self._start, self._end = 0, size
        return None

    def has_frame(self) -> bool:
        """Whether the next frame has come in full, or is longer than the buffer and has begun to come."""
        waiting = self._end - self._start
        if waiting < frames.HEADER_SIZE:
            return False
        wanted = self._wanted()
        return waiting >= wanted or wanted > BUFFER_SIZE

    def receive_what_is_there(self) -> bool:
        """Receives without waiting; gives whether there may be more."""
        wanted = self._wanted() if self._end - self._start >= frames.HEADER_SIZE else frames.HEADER_SIZE
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + wanted > BUFFER_SIZE:
            self._move_to_front()
        # What lies here is of earlier frames; `examine` must not take it for news.
        self.view[self._end : frames.HEADER_SIZE] = bytes(max(0, frames.HEADER_SIZE - self._end))
        room = self.view[self._end :]
        # Should a handler of some signal raise between receiving and counting, nobody knows what came.
        self._inside_frame = True
        try:
            received = self._sock.recv_into(room, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            received = -1
        if received > 0:
            self._end += received
        self._inside_frame = False
        if not received:
            raise Closed
        return received == len(room)

    def begin_frame(self) -> tuple[int, int, int, int]:
        """Length of what follows, kind, flags and id of the next frame. `end_frame` when all of it is taken."""
        if self._link.broken is not None:
            raise self._link.broken
        if self._end - self._start < frames.HEADER_SIZE:
            self._move_to_front()
            # Cleared, so that `examine` can see whether anything came.
            self.view[self._end : frames.HEADER_SIZE] = bytes(frames.HEADER_SIZE - self._end)
            self._fill(frames.HEADER_SIZE)
        header = frames.HEADER.unpack_from(self._buffer, self._start)
        self._start += frames.HEADER_SIZE
        self._inside_frame = True
        return header

    def end_frame(self) -> None:
        """The frame has been taken."""
        self._inside_frame = False

    def reference(self) -> tuple[int, int, int]:
        """Takes the reference to a region off the frame: number, offset, size."""
        self._fill(frames.REFERENCE.size)
        found = frames.REFERENCE.unpack_from(self._buffer, self._start)
        self._start += frames.REFERENCE.size
        return found

    def payload(self, length: int) -> tuple[memoryview, int, int]:
        """A payload that is used before the next frame is read: a view, and where in it the payload is."""
        if length <= BUFFER_SIZE:
            self._spare = None
            self._fill(length)
            start = self._start
            self._start += length
            return self.view, start, self._start
        room = self._spare
        if room is None or len(room) < length:
            room = bytearray(length)
            self._spare = room if length <= SPARE_LIMIT else None
        return self.receive(memoryview(room)[:length]), 0, length

    def receive(self, target: memoryview) -> memoryview:
        """Fills `target`, first with what waits in the buffer."""
        done = min(self._end - self._start, len(target))
        target[:done] = self.view[self._start : self._start + done]
        self._start += done
        while done < len(target):
            received = self._sock.recv_into(target[done:], 0, socket.MSG_WAITALL)
            if not received:
                raise Closed
            done += received
        return target

    def examine(self, error: BaseException) -> None:
        """Decides whether reading can go on after `error`, which is raised as what it means."""
        if isinstance(error, (Closed, ProtocolError)):
            self._link.give_up(error)
        elif says_gone(error):
            raise self._link.give_up(Closed()) from error
        elif self._inside_frame or any(self.view[self._end : frames.HEADER_SIZE]):
            # A handler of some signal raised, or memory is short: nobody knows where the next frame begins.
            # The second case is that of a handler that ran after bytes had arrived and before they were
            # counted.
            self._link.give_up(ProtocolError(f"receiving was cut short by {error!r}"))

    def _wanted(self) -> int:
        """Bytes of the next frame, whose header has come."""
        length: int = frames.HEADER.unpack_from(self._buffer, self._start)[0]
        return frames.HEADER_SIZE + length

    def _fill(self, size: int) -> None:
        """Receives until at least `size` bytes, which the buffer has room for, wait in it."""
        if self._start + size > BUFFER_SIZE:
            self._move_to_front()
        while self._end - self._start < size:
            received = self._sock.recv_into(self.view[self._end :])
            if not received:
                raise Closed
            self._end += received

    def _move_to_front(self) -> None:
        waiting = bytes(self.view[self._start : self._end])
        self._start, self._end = 0, len(waiting)
        self.view[: self._end] = waiting
