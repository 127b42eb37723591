"""The socket to the runtime, shared by the call loop and by every thread that asks for a model.

There is no reading thread: it would cost each call two switches. Instead whoever waits for a frame reads. One
thread holds the reading lock; it hands frames meant for others to them, and when it has its own it lets the
lock go and wakes one of those who still wait, who then tries to become the reader. A thread that fails to get
the lock sleeps on a queue of its own until it is handed its frame or is woken to try again.

The runtime takes requests only while it waits for the answer to a call, or for READY. A request that a thread
makes between two calls is held back, and the call loop sends it when the next call has come.
"""

import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from queue import SimpleQueue
from typing import Any, TypeVar

from . import frames

Parsed = TypeVar("Parsed")
#: Parses a CALL: its number, a view, and where in the view the payload starts and ends. The view is valid for
#: no longer than the call of this function.
CallParser = Callable[[int, memoryview, int, int], Parsed]
#: Kind and payload of an answer to a request.
Answer = tuple[int, memoryview]
#: Gives a writable buffer of so many bytes.
Allocator = Callable[[int], Any]

#: Frames up to this size, in bytes, are received into one buffer that is made once.
BUFFER_SIZE = 256 * 1024
#: A buffer made for a longer frame is kept, up to this size, until a frame comes that does without.
SPARE_LIMIT = 16 * 1024 * 1024
#: Up to this size, in bytes, joining the parts of a frame costs less than handing the kernel a list.
JOIN_LIMIT = 8 * 1024

_ANSWERS = (frames.TENSORS, frames.MODEL_INFO, frames.MODEL_ERROR)
# Who waits under this number waits for a CALL; requests count from 1.
_NEXT_CALL = 0
_GONE = (errno.ECONNRESET, errno.EPIPE, errno.EBADF, errno.ENOTCONN)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_PARTS_AT_ONCE = max(16, os.sysconf("SC_IOV_MAX"))


class Closed(ConnectionError):
    """The runtime has closed the connection."""

    def __init__(self) -> None:
        super().__init__("the runtime has closed the connection")


class ProtocolError(Exception):
    """The runtime sent what PROTOCOL.md does not allow, or a transfer was cut short."""


class _Waiter:
    """Somebody who waits for a frame. `news` gets the frame, or None for "try to read yourself"."""

    __slots__ = ("allocate", "news")

    def __init__(self, allocate: Allocator) -> None:
        self.allocate = allocate
        self.news: SimpleQueue[Answer | None] = SimpleQueue()


class Channel:
    """The worker's end of the socket.

    `request` may be called from any thread of this process, the rest from the call loop. All of them raise
    Closed when the runtime is gone and ProtocolError when the stream of frames makes no sense any more.
    """

    __slots__ = (
        "max_payload",
        "_sock",
        "_pid",
        "_sending",
        "_working",
        "_held_back",
        "_reading",
        "_waiters",
        "_asleep",
        "_calls",
        "_numbers",
        "_buffer",
        "_view",
        "_start",
        "_end",
        "_spare",
        "_inside_frame",
        "_broken",
        "__weakref__",
    )

    def __init__(self, sock: socket.socket) -> None:
        # The other end may have been made for an event loop; blocking is a property of this end alone.
        sock.setblocking(True)
        sock.set_inheritable(False)
        #: The longest payload, in bytes, that the runtime takes. Who sends sees to it.
        self.max_payload = frames.MAX_PAYLOAD
        self._sock = sock
        self._pid = os.getpid()
        self._sending = threading.Lock()
        # Whether requests are welcome, which turns true without the lock, and those that wait until they are.
        self._working = True
        self._held_back: deque[tuple[Any, ...]] = deque()
        self._reading = threading.Lock()
        # Whose answers have not come, and who sleeps or is about to, which a thread that still sends is not.
        self._waiters: dict[int, _Waiter] = {}
        self._asleep: dict[int, _Waiter] = {}
        self._calls: deque[tuple[int, memoryview, int, int]] = deque()
        self._numbers = count(_NEXT_CALL + 1)
        # What has been received and not yet been taken is `_buffer[_start:_end]`. These, `_spare` and
        # `_inside_frame` belong to the holder of the reading lock.
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._spare: bytearray | None = None
        self._inside_frame = False
        self._broken: Exception | None = None
        # A forked child that kept the socket open would hide the worker's death from the runtime.
        os.register_at_fork(after_in_child=sock.close)

    def close(self) -> None:
        """Closes the socket."""
        self._sock.close()

    def receive_start(self) -> memoryview:
        """The payload of START, the first frame."""
        length, kind, _ = self._next_header()
        if kind != frames.START:
            raise ProtocolError(f"the first frame is of kind {kind}, not START")
        payload = self._receive(memoryview(bytearray(length)))
        self._inside_frame = False
        return payload

    def receive_call(self, parse: CallParser[Parsed]) -> Parsed:
        """Waits for the next CALL and gives what `parse` makes of it. From then on requests are welcome."""
        if self._reading.acquire(False):
            try:
                call = self._read_call(parse)
            finally:
                self._stop_reading()
        else:
            call = self._wait_for_call(parse)
        self._working = True
        # A thread leaves its request, then looks at `_working`: it sees what we set, or we see the request.
        if self._held_back:
            with self._sending:
                self._send_held_back()
        return call

    def reply(self, number: int, outcome: int, message: bytes, nanoseconds: int, rest: bytes) -> None:
        """Answers call `number`; from then on requests are held back.

        `message` and `rest` together are at most `max_payload` less 16 bytes long.
        """
        size = frames.REPLY_META_SIZE + len(message) + len(rest)
        head = frames.REPLY_HEAD.pack(size, frames.REPLY, number, outcome, len(message), nanoseconds)
        with self._sending:
            self._working = False
            if size <= JOIN_LIMIT:
                self._send((head + message + rest,))
            else:
                self._send((head, message, rest))

    def announce(self, frame: bytes) -> None:
        """Sends READY or FAILED; from then on requests are held back."""
        with self._sending:
            self._working = False
            self._send((frame,))

    def request(self, kind: int, parts: Sequence[Any], length: int, allocate: Allocator) -> Answer:
        """Sends a request, its payload `parts` of `length` bytes in all, and waits for the answer.

        Gives the kind of the answer and its payload, in a buffer of its own that came from `allocate`. Raises
        RuntimeError in a process that was forked from the worker.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "a model handle works in the worker process only, not in a process forked from it"
            )
        number = next(self._numbers)
        waiter = self._waiters[number] = _Waiter(allocate)
        try:
            frame = (frames.HEADER.pack(length, kind, number), *parts)
            if length <= JOIN_LIMIT:
                frame = (b"".join(frame),)
            with self._sending:
                self._held_back.append(frame)
                if self._working:
                    self._send_held_back()
            return self._wait_for_answer(number, waiter)
        finally:
            self._waiters.pop(number, None)

    def give_up(self, reason: Exception) -> Exception:
        """Ends all use of the connection, wakes all who wait, gives the reason that holds from now on."""
        if self._broken is None:
            self._broken = reason
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            for waiter in list(self._asleep.values()):
                waiter.news.put(None)
        return self._broken

    def _send_held_back(self) -> None:
        while self._held_back:
            self._send(self._held_back.popleft())

    def _send(self, parts: Sequence[Any]) -> None:
        """Sends `parts`, bytes-like and contiguous, in one piece. The caller holds the sending lock."""
        if self._broken is not None:
            raise self._broken
        try:
            if len(parts) == 1:
                # Nearly always: a small frame, which the kernel takes whole.
                sent = self._sock.send(parts[0], _NO_SIGNAL)
                if sent == len(parts[0]):
                    return
                parts = (memoryview(parts[0])[sent:],)
            waiting = deque(memoryview(part) for part in parts if len(part))
            while waiting:
                some = [waiting[place] for place in range(min(len(waiting), _PARTS_AT_ONCE))]
                sent = self._sock.sendmsg(some, (), _NO_SIGNAL)
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.popleft())
                if sent:
                    waiting[0] = waiting[0][sent:]
        except BaseException as error:
            if _says_gone(error):
                raise self.give_up(Closed()) from error
            # A handler of some signal raised. How much is sent is not known, and cannot be taken back.
            self.give_up(ProtocolError(f"sending was cut short by {error!r}"))
            raise

    def _read_call(self, parse: CallParser[Parsed]) -> Parsed:
        """Reads up to the next CALL. The caller holds the reading lock."""
        try:
            if self._start == self._end and not self._calls and self._broken is None:
                # Nearly always: one whole frame, and nothing else, in one go.
                size = self._sock.recv_into(self._view)
                if size >= frames.HEADER_SIZE:
                    length, kind, number = frames.HEADER.unpack_from(self._buffer)
                    if kind == frames.CALL and length == size - frames.HEADER_SIZE:
                        self._spare = None
                        return parse(number, self._view, frames.HEADER_SIZE, size)
                self._start, self._end = 0, size
            while not self._calls:
                self._read_frame(by_call_loop=True)
            return parse(*self._calls.popleft())
        except BaseException as error:
            self._examine(error)
            raise

    def _wait_for_call(self, parse: CallParser[Parsed]) -> Parsed:
        """For the call loop, when another thread is reading."""
        waiter = self._asleep[_NEXT_CALL] = _Waiter(bytearray)
        try:
            while True:
                if self._calls:
                    return parse(*self._calls.popleft())
                if self._reading.acquire(False):
                    try:
                        return self._read_call(parse)
                    finally:
                        self._stop_reading()
                waiter.news.get()
        finally:
            self._leave(_NEXT_CALL)

    def _wait_for_answer(self, number: int, waiter: _Waiter) -> Answer:
        self._asleep[number] = waiter
        try:
            while True:
                if self._reading.acquire(False):
                    try:
                        return self._read_answer(waiter.news)
                    finally:
                        self._stop_reading()
                answer = waiter.news.get()
                if answer is not None:
                    return answer
        finally:
            self._leave(number)

    def _read_answer(self, news: SimpleQueue[Answer | None]) -> Answer:
        """Reads up to the answer that comes to `news`. The caller holds the reading lock."""
        try:
            while True:
                # The answer may have come while the lock changed hands. Wake-ups have served their purpose.
                while not news.empty():
                    answer = news.get()
                    if answer is not None:
                        return answer
                self._read_frame(by_call_loop=False)
        except BaseException as error:
            self._examine(error)
            raise

    def _leave(self, number: int) -> None:
        """Takes `number` out of those who sleep; a wake-up that it no longer needs goes to somebody else."""
        self._asleep.pop(number, None)
        if self._asleep:
            self._wake_another()

    def _stop_reading(self) -> None:
        self._reading.release()
        if self._asleep:
            self._wake_another()

    def _wake_another(self) -> None:
        # Whoever is in `_asleep` by now is woken; whoever comes later tries the lock first and finds it free.
        for waiter in list(self._asleep.values())[:1]:
            waiter.news.put(None)

    def _read_frame(self, by_call_loop: bool) -> None:
        """Reads one frame and hands it to whom it is for. The caller holds the reading lock.

        The call loop uses a CALL before it reads on, so it gets it in the buffer; others leave it a copy.
        """
        length, kind, number = self._next_header()
        if kind == frames.CALL and by_call_loop:
            self._calls.append((number, *self._payload(length)))
        elif kind == frames.CALL:
            self._calls.append((number, self._receive(memoryview(bytearray(length))), 0, length))
            waiter = self._asleep.get(_NEXT_CALL)
            if waiter is not None:
                waiter.news.put(None)
        elif kind in _ANSWERS:
            # Nobody waits any more when a handler of some signal has thrown the thread out of its wait.
            waiter = self._waiters.pop(number, None)
            allocate = waiter.allocate if waiter is not None and kind == frames.TENSORS else bytearray
            payload = self._receive(memoryview(allocate(length)))
            if waiter is not None:
                waiter.news.put((kind, payload))
        else:
            raise ProtocolError(f"the runtime sent a frame of the unknown kind {kind}")
        self._inside_frame = False

    def _next_header(self) -> tuple[int, int, int]:
        """Length of the payload, kind and id of the next frame."""
        if self._broken is not None:
            raise self._broken
        if self._end - self._start < frames.HEADER_SIZE:
            self._move_to_front()
            # Cleared, so that `_examine` can see whether anything came.
            self._view[self._end : frames.HEADER_SIZE] = bytes(frames.HEADER_SIZE - self._end)
            self._fill(frames.HEADER_SIZE)
        header = frames.HEADER.unpack_from(self._buffer, self._start)
        self._start += frames.HEADER_SIZE
        self._inside_frame = True
        return header

    def _payload(self, length: int) -> tuple[memoryview, int, int]:
        """A payload that is used before the next frame is read: a view, and where in it the payload is."""
        if length <= BUFFER_SIZE:
            self._spare = None
            self._fill(length)
            start = self._start
            self._start += length
            return self._view, start, self._start
        room = self._spare
        if room is None or len(room) < length:
            room = bytearray(length)
            self._spare = room if length <= SPARE_LIMIT else None
        return self._receive(memoryview(room)[:length]), 0, length

    def _fill(self, size: int) -> None:
        """Receives until at least `size` bytes, which the buffer has room for, wait in it."""
        if self._start + size > BUFFER_SIZE:
            self._move_to_front()
        while self._end - self._start < size:
            received = self._sock.recv_into(self._view[self._end :])
            if not received:
                raise Closed
            self._end += received

    def _move_to_front(self) -> None:
        waiting = bytes(self._view[self._start : self._end])
        self._start, self._end = 0, len(waiting)
        self._view[: self._end] = waiting

    def _receive(self, target: memoryview) -> memoryview:
        """Fills `target`, first with what waits in the buffer."""
        done = min(self._end - self._start, len(target))
        target[:done] = self._view[self._start : self._start + done]
        self._start += done
        while done < len(target):
            received = self._sock.recv_into(target[done:], 0, socket.MSG_WAITALL)
            if not received:
                raise Closed
            done += received
        return target

    def _examine(self, error: BaseException) -> None:
        """Decides whether reading can go on after `error`. The caller holds the reading lock."""
        if isinstance(error, (Closed, ProtocolError)):
            self.give_up(error)
        elif _says_gone(error):
            raise self.give_up(Closed()) from error
        elif self._inside_frame or any(self._view[self._end : frames.HEADER_SIZE]):
            # A handler of some signal raised, or memory is short: nobody knows where the next frame begins.
            # The second case is that of a handler that ran after bytes had arrived and before they were
            # counted.
            self.give_up(ProtocolError(f"receiving was cut short by {error!r}"))


def _says_gone(error: BaseException) -> bool:
    # Not every OSError is the socket's: TimeoutError is one too, and handlers of SIGALRM like to raise it.
    return isinstance(error, OSError) and error.errno in _GONE
