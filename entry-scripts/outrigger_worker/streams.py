"""Streamed answers: chunks are sent as the script gives them, as far as the runtime's credit goes."""

from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any, Final

from . import frames
from .channel import Channel
from .context import Work
from .failures import message_of, to_bytes, traceback_of

#: What an iterator gives when it gives no more.
NOTHING: Final = object()

_WAS_CANCELLED = b"cancelled"


class Stream:
    """The answer to one call: what may still be sent of it."""

    __slots__ = ("left", "_channel", "_number")

    def __init__(self, channel: Channel, number: int, window: int) -> None:
        #: Bytes of chunks that the runtime still takes.
        self.left = window
        self._channel = channel
        self._number = number

    def add(self, number: int, amount: int) -> None:
        """The runtime takes `amount` more bytes of call `number`."""
        if number == self._number:
            self.left += amount

    def send_some(self, data: memoryview) -> memoryview:
        """Sends as much of `data` as may be sent; gives the remainder."""
        size = min(len(data), self.left, self._channel.max_payload)
        if size:
            self._channel.chunk(self._number, data[:size])
            self.left -= size
        return data[size:]

    def end(self, began: int, error: BaseException | None, cancelled: bool) -> None:
        """Says that the answer is complete, or how it broke off."""
        took = monotonic_ns() - began
        outcome, message, trace = frames.RETURNED, b"", b""
        if error is not None:
            outcome, message = frames.RAISED, to_bytes(message_of(error))
            trace = to_bytes(traceback_of(error))
        elif cancelled:
            outcome, message = frames.RAISED, _WAS_CANCELLED
        flags = frames.RUN_FAILED if error is not None else 0
        self._channel.reply(self._number, outcome, flags, 0, message, took, trace, frames.END)


def as_bytes(chunk: Any) -> memoryview:
    """A chunk as a view of bytes. Raises TypeError when it is not bytes-like."""
    return memoryview(chunk).cast("B")


def send_all(
    channel: Channel, work: Work, window: int, head: Callable[[], None], chunks: Iterator[Any]
) -> None:
    """Sends all chunks, and END. `head` is called, to send the head of the answer, before the first of them.

    What `chunks` raises before its first chunk is raised; later it is told in END.
    """
    chunk = next(chunks, NOTHING)
    data = as_bytes(chunk) if chunk is not NOTHING else memoryview(b"")
    head()
    stream = Stream(channel, work.number, window)
    channel.on_credit = stream.add
    error: BaseException | None = None
    while chunk is not NOTHING and not work.reason:
        data = stream.send_some(data)
        if data:
            channel.read_until(lambda: stream.left > 0 or work.reason != 0)
            continue
        channel.poll()
        if work.reason:
            break
        try:
            # Not held while the next is made.
            chunk = None
            chunk = next(chunks, NOTHING)
            data = as_bytes(chunk) if chunk is not NOTHING else data
        except BaseException as raised:
            error = raised
            break
    if work.reason and error is None:
        error = close(chunks)
    stream.end(work.began, error, work.reason != 0)


def close(chunks: Any) -> BaseException | None:
    """Closes a generator. Gives what that raises."""
    act = getattr(chunks, "close", None)
    try:
        if act is not None:
            act()
    except BaseException as error:
        return error
    return None
