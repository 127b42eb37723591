"""The two sockets to the runtime, shared by the call loop and by every thread that asks for a model.

There is no reading thread: it would cost each call two switches. Instead whoever waits for a frame reads. One
thread holds the reading lock; it hands frames meant for others to them, and when it has its own it lets the
lock go and wakes one of those who still wait, who then tries to become the reader. A thread that fails to get
the lock sleeps on a queue of its own until it is handed its frame or is woken to try again. An asyncio loop
does not sleep on a queue: it watches the socket, and is told when a thread leaves something for it.

The runtime reads at all times, so whoever has something to send sends it.
"""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from . import frames, printing
from .inbox import Inbox
from .link import Closed, Link, ProtocolError
from .outbox import Outbox
from .regions import Borrowed, Own, Pool, RegionError

Parsed = TypeVar("Parsed")
#: A CALL: its number, a view, where in the view the payload starts and ends, and the payload's tail if it has
#: one: a read-only view of a region.
RawCall = tuple[int, memoryview, int, int, memoryview | None]
#: Takes the parts of a RawCall. The view, not the tail, is valid for no longer than this function runs.
CallParser = Callable[[int, memoryview, int, int, memoryview | None], Parsed]
#: Gives a writable buffer of so many bytes.
Allocator = Callable[[int], Any]

#: Up to this size, in bytes, joining the parts of a frame costs less than handing the kernel a list.
JOIN_LIMIT = 8 * 1024
#: Longest payload of CANCEL, CREDIT, RELEASE and FORGET, in bytes.
SMALL = 64

_ANSWERS = (frames.TENSORS, frames.MODEL_INFO, frames.MODEL_ERROR)
# Who waits under this number is the call loop; requests count from 1.
_CALL_LOOP = 0
_NEVER = 1 << 62


class Answer(NamedTuple):
    """An answer to a request. A payload has a tail, which is read-only, when that lies in a region."""

    kind: int
    payload: memoryview
    tail: memoryview | None

    def whole(self) -> bytes:
        """The payload in one piece."""
        return bytes(self.payload) + (bytes(self.tail) if self.tail is not None else b"")


class Tail(Protocol):
    """The last part of a payload, which goes into a region when it is large enough."""

    size: int

    def write(self, room: memoryview) -> None:
        """Writes it to `room`, which has `size` bytes."""

    def parts(self) -> list[Any]:
        """The same, as bytes-like parts to be sent one after the other."""


class Waiter(Protocol):
    """Somebody who waits for an answer."""

    allocate: Allocator

    def deliver(self, answer: Answer) -> None:
        """Hands over the answer. Called by the thread that reads."""

    def break_off(self) -> None:
        """The connection cannot be used any more."""


class _Sleeper:
    """A thread that waits. `news` gets its answer, or None for "look again, or try to read yourself"."""

    __slots__ = ("allocate", "news")

    def __init__(self, allocate: Allocator) -> None:
        self.allocate = allocate
        self.news: SimpleQueue[Answer | None] = SimpleQueue()

    def deliver(self, answer: Answer) -> None:
        self.news.put(answer)

    def break_off(self) -> None:
        self.news.put(None)


class Channel:
    """The worker's ends of the sockets.

    `request`, `log`, `poll` and `release_unused` may be called from any thread of this process, the rest from
    the call loop. All of them raise Closed when the runtime is gone and ProtocolError when the stream of
    frames makes no sense any more. None of them works in a signal handler that interrupts another.
    """

    __slots__ = (
        "max_payload",
        "on_cancel",
        "on_credit",
        "wake_loop",
        "drops_cancelled",
        "borrowed",
        "_link",
        "_inbox",
        "_outbox",
        "_pid",
        "_pool",
        "_threshold",
        "_reading",
        "_waiters",
        "_asleep",
        "_calls",
        "_cancelled",
        "_numbers",
        "__weakref__",
    )

    def __init__(self, sock: socket.socket, regions: socket.socket) -> None:
        # The other ends may have been made for an event loop; blocking is a property of these alone.
        for each in (sock, regions):
            each.setblocking(True)
            each.set_inheritable(False)
        #: The longest payload, in bytes, that the runtime takes. Who sends sees to it.
        self.max_payload = frames.MAX_PAYLOAD
        #: Called, by the thread that reads, with the number of a call and a reason when it is cancelled, unless
        #: it still waits to be received.
        self.on_cancel: Callable[[int, int], None] = _pass_over
        #: Called, by the thread that reads, with the number of a call and the bytes of a CREDIT.
        self.on_credit: Callable[[int, int], None] = _pass_over
        #: Tells an event loop, from any thread, that it should `poll`. None when the call loop is none.
        self.wake_loop: Callable[[], None] | None = None
        #: Whether a call that is cancelled while it waits to be received is answered right away and not given
        #: to the loop. If not, the loop asks with `was_cancelled`.
        self.drops_cancelled = True
        #: The regions of the runtime's.
        self.borrowed = Borrowed(regions)
        self._link = Link(sock, self._break_off)
        self._inbox = Inbox(self._link)
        self._outbox = Outbox(self._link)
        self._pid = os.getpid()
        self._pool = Pool(regions, 0)
        # Tails of at least so many bytes go into regions.
        self._threshold = _NEVER
        # Its holder uses the inbox.
        self._reading = threading.Lock()
        # Whose answers have not come, and who sleeps or is about to, which a thread that still sends is not.
        self._waiters: dict[int, Waiter] = {}
        self._asleep: dict[int, _Sleeper] = {}
        # Calls read ahead, and those of them that have been cancelled since.
        self._calls: deque[RawCall] = deque()
        self._cancelled: set[int] = set()
        self._numbers = count(_CALL_LOOP + 1)
        os.register_at_fork(after_in_parent=self._after_fork, after_in_child=self._abandon)

    def close(self) -> None:
        """Closes the sockets."""
        self._link.sock.close()
        self.borrowed.abandon()

    def fileno(self) -> int:
        """The descriptor that an event loop watches."""
        return self._link.sock.fileno()

    def use_regions(self, threshold: int, most: int) -> None:
        """From now on tails of at least `threshold` bytes go into regions, of which at most `most` live."""
        self._pool = Pool(self.borrowed.sock, most)
        self._threshold = threshold if threshold > 0 and most > 0 else _NEVER

    def receive_start(self) -> bytes:
        """The payload of START, the first frame."""
        try:
            length, kind, flags, _ = self._inbox.begin_frame()
            if kind != frames.START:
                raise ProtocolError(f"the first frame is of kind {kind}, not START")
            length, tail = self._tail(length, flags)
            payload = self._inbox.receive(memoryview(bytearray(length)))
            self._inbox.end_frame()
            return Answer(kind, payload, tail).whole()
        except BaseException as error:
            self._inbox.examine(error)
            raise

    def receive_call(self, parse: CallParser[Parsed]) -> Parsed:
        """Waits for the next CALL and gives what `parse` makes of it, out of the receive buffer.

        Nobody can read while `parse` runs, so it must not wait for anything.
        """
        if self._reading.acquire(False):
            try:
                return self._read_call(parse)
            finally:
                # As `_stop_reading`, with a step less: there is no event loop here.
                self._reading.release()
                if self._asleep:
                    self._wake_another()
        return self._wait_for_call(parse)

    def receive_copy(self, parse: CallParser[Parsed]) -> Parsed:
        """Like `receive_call`, for a `parse` that may do anything: it works on a copy, and others can read."""
        return parse(*self.receive_call(_copied))

    def take_call(self) -> RawCall | None:
        """The next of the calls that `poll` has read; None when there is none."""
        while self._calls:
            if not self.drops_cancelled or self._calls[0][0] not in self._cancelled:
                return self._calls.popleft()
            self._drop_call()
        return None

    def was_cancelled(self, number: int) -> bool:
        """Whether a call that has been received was cancelled before that. Asked once for each call."""
        if number not in self._cancelled:
            return False
        self._cancelled.discard(number)
        return True

    def poll(self) -> None:
        """Reads the frames that are there, without waiting for more. Calls are kept for the loop.

        Does nothing when another thread is reading. A frame that is longer than the buffer and has begun to
        come is read to its end.
        """
        if self._reading.acquire(False):
            try:
                more = True
                while True:
                    while self._inbox.has_frame():
                        self._read_frame(by_call_loop=False)
                    if self._link.broken is not None:
                        raise self._link.broken
                    if not more:
                        return
                    more = self._inbox.receive_what_is_there()
            except BaseException as error:
                self._inbox.examine(error)
                raise
            finally:
                self._reading.release()
                if self._asleep:
                    self._wake_another()

    def read_until(self, done: Callable[[], bool]) -> None:
        """For the call loop: waits until frames that have come make `done` true."""
        sleeper = self._asleep[_CALL_LOOP] = _Sleeper(bytearray)
        try:
            while not done():
                if self._reading.acquire(False):
                    try:
                        while not done():
                            self._read_frame(by_call_loop=False)
                    except BaseException as error:
                        self._inbox.examine(error)
                        raise
                    finally:
                        self._stop_reading()
                else:
                    sleeper.news.get()
        finally:
            self._leave(_CALL_LOOP)

    def reply(
        self,
        number: int,
        outcome: int,
        flags: int,
        status: int,
        message: bytes,
        nanoseconds: int,
        rest: Any,
        kind: int = frames.REPLY,
    ) -> None:
        """Answers call `number`, or ends its stream.

        `message` and `rest`, which is bytes-like, are together at most `max_payload` less 16 bytes long.
        """
        if printing.begun:
            printing.end_call(number)
        size = frames.REPLY_META_SIZE + len(message) + len(rest)
        if len(rest) >= self._threshold:
            meta = frames.REPLY_META.pack(outcome, flags, status, len(message), nanoseconds)
            if self._send_with_region(kind, number, meta + message, len(rest), _Bytes(rest)):
                return
        head = frames.REPLY_HEAD.pack(
            size, kind, 0, number, outcome, flags, status, len(message), nanoseconds
        )
        with self._outbox.lock:
            if size <= JOIN_LIMIT:
                self._outbox.send((head + message + rest,))
            else:
                self._outbox.send((head, message, rest))

    def chunk(self, number: int, part: memoryview) -> None:
        """Sends a part of the answer to call `number`, whose credit covers it."""
        size = len(part)
        if size >= self._threshold and self._send_with_region(frames.CHUNK, number, b"", size, _Bytes(part)):
            return
        head = frames.HEADER.pack(size, frames.CHUNK, 0, number)
        with self._outbox.lock:
            self._outbox.send((head + part,) if size <= JOIN_LIMIT else (head, part))

    def announce(self, frame: bytes) -> None:
        """Sends READY, FAILED, PHASE or CANCELLING."""
        with self._outbox.lock:
            self._outbox.send((frame,))

    def log(self, call: int, level: int, source: int, name: bytes, text: bytes) -> bool:
        """Sends a line of the log, cut at 8 KiB. Gives False when it cannot be sent, in a forked process too.

        A line that comes out of a finaliser while its own thread is sending is sent right after.
        """
        if self._link.broken is not None or not self.is_ours():
            return False
        name = name[: frames.LOG_LIMIT]
        payload = frames.LOG_HEAD.pack(level, source, len(name)) + name + text[: frames.LOG_LIMIT]
        try:
            self._outbox.send_when_possible(frames.frame(frames.LOG, call, payload))
        except (Closed, ProtocolError):
            return False
        return True

    def request(self, kind: int, head: bytes, tail: Tail | None, allocate: Allocator) -> Answer:
        """Sends a request, its payload `head` and `tail`, and waits for the answer.

        An answer that does not lie in a region is received into a buffer that comes from `allocate`. Raises
        RuntimeError in a process that was forked from the worker.
        """
        sleeper = _Sleeper(allocate)
        number = self.post(kind, head, tail, sleeper)
        try:
            return self._wait_for_answer(number, sleeper)
        finally:
            self._waiters.pop(number, None)

    def post(self, kind: int, head: bytes, tail: Tail | None, waiter: Waiter) -> int:
        """Like `request`, but does not wait: `waiter` gets the answer. Gives the number of the request."""
        if not self.is_ours():
            raise RuntimeError(
                "a model handle works in the worker process only, not in a process forked from it"
            )
        if self._outbox.is_interrupted:
            raise RuntimeError("a model cannot be used where code has interrupted the sending of a frame")
        self.release_unused()
        number = next(self._numbers)
        self._waiters[number] = waiter
        try:
            size = tail.size if tail is not None else 0
            if tail is not None and size >= self._threshold:
                if self._send_with_region(kind, number, head, size, tail):
                    return number
            parts = [frames.HEADER.pack(len(head) + size, kind, 0, number), head]
            if tail is not None:
                parts += tail.parts()
            if len(head) + size <= JOIN_LIMIT:
                parts = [b"".join(parts)]
            with self._outbox.lock:
                self._outbox.send(parts)
        except BaseException:
            self._waiters.pop(number, None)
            raise
        return number

    def withdraw(self, number: int) -> None:
        """Nobody waits any more for the answer to request `number`."""
        self._waiters.pop(number, None)

    def release_unused(self) -> None:
        """Tells the runtime of its regions of which no view is left."""
        if self.borrowed.in_use:
            numbers = self.borrowed.unused()
            if numbers:
                released = [frames.frame(frames.RELEASE, number) for number in numbers]
                self._outbox.send_when_possible(b"".join(released))

    def give_up(self, reason: Exception) -> Exception:
        """Ends all use of the connection, wakes all who wait, gives the reason that holds from now on."""
        return self._link.give_up(reason)

    def is_ours(self) -> bool:
        """Whether this is the process that the channel is for, not one forked from it."""
        return os.getpid() == self._pid

    @property
    def broken(self) -> Exception | None:
        """Why the connection cannot be used any more; None while it can."""
        return self._link.broken

    def _send_with_region(self, kind: int, number: int, head: bytes, size: int, tail: Tail) -> bool:
        """Sends a frame whose tail of `size` bytes lies in a region; gives False when there is none for it."""
        region = self._pool.take(size)
        if region is None:
            # Perhaps one has been released, and nobody has read that yet.
            self.poll()
            region = self._pool.take(size)
            if region is None:
                return False
        try:
            self._fill_region(region, size, tail)
        except BaseException:
            self._pool.put_back(region.number)
            raise
        reference = frames.REFERENCE.pack(region.number, 0, size)
        header = frames.HEADER.pack(len(reference) + len(head), kind, frames.TAIL, number)
        with self._outbox.lock:
            self._outbox.send((self._pool.forgotten() + header + reference + head,))
            self._pool.sent(region)
            if region.doomed:
                self._outbox.send((self._pool.forgotten(),))
        return True

    @staticmethod
    def _fill_region(region: Own, size: int, tail: Tail) -> None:
        with region.room(size) as room:
            tail.write(room)

    def _break_off(self) -> None:
        """Wakes all who wait: the connection cannot be used any more."""
        for waiter in [*self._waiters.values(), *self._asleep.values()]:
            waiter.break_off()
        if self.wake_loop is not None:
            self.wake_loop()

    def _read_call(self, parse: CallParser[Parsed]) -> Parsed:
        """Reads up to the next CALL. The caller holds the reading lock."""
        try:
            if not self._calls and self._link.broken is None and self._inbox.is_empty:
                whole = self._inbox.receive_call()
                if whole is not None:
                    return parse(whole[0], self._inbox.view, frames.HEADER_SIZE, whole[1], None)
            while True:
                while not self._calls:
                    self._read_frame(by_call_loop=True)
                call = self.take_call()
                if call is not None:
                    return parse(*call)
        except BaseException as error:
            self._inbox.examine(error)
            raise

    def _wait_for_call(self, parse: CallParser[Parsed]) -> Parsed:
        """For the call loop, when another thread is reading."""
        sleeper = self._asleep[_CALL_LOOP] = _Sleeper(bytearray)
        try:
            while True:
                call = self.take_call()
                if call is not None:
                    return parse(*call)
                if self._reading.acquire(False):
                    try:
                        return self._read_call(parse)
                    finally:
                        self._stop_reading()
                sleeper.news.get()
        finally:
            self._leave(_CALL_LOOP)

    def _drop_call(self) -> None:
        """The next of the calls that were read ahead has been cancelled before it began."""
        number = self._calls.popleft()[0]
        self._cancelled.discard(number)
        self.reply(number, frames.CANCELLED, 0, 0, b"", 0, b"")
        self.release_unused()

    def _wait_for_answer(self, number: int, sleeper: _Sleeper) -> Answer:
        self._asleep[number] = sleeper
        try:
            while True:
                if self._reading.acquire(False):
                    try:
                        return self._read_answer(sleeper.news)
                    finally:
                        self._stop_reading()
                answer = sleeper.news.get()
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
            self._inbox.examine(error)
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
        if self.wake_loop is not None:
            # What is left in the buffer does not show in the socket.
            self.wake_loop()

    def _wake_another(self) -> None:
        # Whoever is in `_asleep` by now is woken; whoever comes later tries the lock first and finds it free.
        for sleeper in list(self._asleep.values())[:1]:
            sleeper.news.put(None)

    def _tell_loop(self) -> None:
        """There is something for the call loop that another thread may have read."""
        sleeper = self._asleep.get(_CALL_LOOP)
        if sleeper is not None:
            sleeper.news.put(None)
        if self.wake_loop is not None:
            self.wake_loop()

    def _read_frame(self, by_call_loop: bool) -> None:
        """Reads one frame and hands it to whom it is for. The caller holds the reading lock.

        The call loop uses a CALL before it reads on, so it gets it in the buffer; others leave it a copy.
        """
        length, kind, flags, number = self._inbox.begin_frame()
        length, tail = self._tail(length, flags)
        if kind == frames.CALL and by_call_loop:
            self._calls.append((number, *self._inbox.payload(length), tail))
        elif kind == frames.CALL:
            payload = self._inbox.receive(memoryview(bytearray(length)))
            self._calls.append((number, payload, 0, length, tail))
            self._tell_loop()
        elif kind in _ANSWERS:
            # Nobody waits any more when a handler of some signal has thrown the thread out of its wait.
            waiter = self._waiters.pop(number, None)
            allocate = waiter.allocate if waiter is not None and kind == frames.TENSORS else bytearray
            payload = self._inbox.receive(memoryview(allocate(length)))
            if waiter is not None:
                waiter.deliver(Answer(kind, payload, tail))
        else:
            self._handle_small(kind, number, length, tail)
        self._inbox.end_frame()

    def _handle_small(self, kind: int, number: int, length: int, tail: memoryview | None) -> None:
        """Handles a frame that concerns the channel itself or a call that is under way."""
        sizes = {
            frames.CANCEL: 1,
            frames.CREDIT: frames.CREDIT_AMOUNT.size,
            frames.RELEASE: 0,
            frames.FORGET: 0,
        }
        if kind not in sizes:
            raise ProtocolError(f"the runtime sent a frame of the unknown kind {kind}")
        if length > SMALL:
            raise ProtocolError(f"a frame of kind {kind} has {length} bytes")
        payload = Answer(kind, self._inbox.receive(memoryview(bytearray(length))), tail).whole()
        if len(payload) != sizes[kind]:
            raise ProtocolError(f"a frame of kind {kind} has {len(payload)} bytes")
        if kind == frames.CANCEL:
            if any(call[0] == number for call in self._calls):
                self._cancelled.add(number)
            else:
                self.on_cancel(number, payload[0])
            self._tell_loop()
        elif kind == frames.CREDIT:
            self.on_credit(number, *frames.CREDIT_AMOUNT.unpack(payload))
            self._tell_loop()
        elif kind == frames.RELEASE:
            self._pool.put_back(number)
        else:
            self._of_region(self.borrowed.forget, number)

    def _tail(self, length: int, flags: int) -> tuple[int, memoryview | None]:
        """Takes the reference to a region off a frame. Gives the length of what follows, and the tail."""
        if not flags & frames.TAIL:
            return length, None
        if length < frames.REFERENCE.size:
            raise ProtocolError(f"a frame with a tail has {length} bytes")
        number, offset, size = self._inbox.reference()
        return length - frames.REFERENCE.size, self._of_region(self.borrowed.view, number, offset, size)

    @staticmethod
    def _of_region(act: Callable[..., Parsed], *arguments: int) -> Parsed:
        try:
            return act(*arguments)
        except RegionError as error:
            raise ProtocolError(f"the runtime refers to a region in vain: {error}") from error

    def _after_fork(self) -> None:
        """In the process that has forked: the child may hold views of regions, and nobody can count them."""
        if self._link.broken is not None or not self.is_ours():
            return
        try:
            if self._outbox.is_interrupted or self._pool.lock._is_owned():  # type: ignore[attr-defined]
                # A finaliser has forked.
                self._outbox.send_next(self._leaving)
            else:
                with self._outbox.lock:
                    self._outbox.send((self._leaving(),))
        except (Closed, ProtocolError):
            # Whoever uses the channel next hears of it.
            pass

    def _leaving(self) -> bytes:
        self._pool.retire_all()
        return self._pool.forgotten() + frames.frame(frames.LEAVE, 0)

    def _abandon(self) -> None:
        """In a forked child: a socket that it kept open would hide the worker's death from the runtime."""
        self._link.sock.close()
        # Other threads, which the child does not have, may have held it.
        self._reading = threading.Lock()
        self._outbox.abandon()
        self.borrowed.abandon()
        self._pool.abandon()


class _Bytes:
    """A Tail that is one bytes-like thing."""

    __slots__ = ("size", "_data")

    def __init__(self, data: Any) -> None:
        self.size = len(data)
        self._data = data

    def write(self, room: memoryview) -> None:
        room[:] = self._data

    def parts(self) -> list[Any]:
        return [self._data]


def _copied(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> RawCall:
    return number, memoryview(bytes(view[start:end])), 0, end - start, tail


def _pass_over(number: int, what: int) -> None:
    """For frames about calls that nobody knows, or knows no more."""
