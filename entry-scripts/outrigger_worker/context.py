"""What is being worked on: the call, its time limit, whether it has been cancelled.

A sync worker works on one call, a batch worker on one batch at a time, and every thread of the process sees
that. In an async worker each task, and what is started with a copy of its context (`asyncio.to_thread`,
`asyncio.create_task`), sees its own call.
"""

from contextvars import ContextVar
from time import monotonic_ns

from . import connection
from .link import Closed, ProtocolError


class Work:
    """A call, or a batch of them."""

    __slots__ = ("number", "request_id", "limit", "began", "reason")

    def __init__(self, number: int = 0, request_id: bytes = b"", limit: int = 0, began: int = 0) -> None:
        #: The number of the call; 0 for a batch of several.
        self.number = number
        self.request_id = request_id
        #: Nanoseconds that it may take; 0 for any time.
        self.limit = limit
        #: When it began, in nanoseconds of the monotonic clock; 0 while there is no work.
        self.began = began
        #: Why it has been cancelled: 1 the client has gone, 2 out of time; 0 when it has not been.
        self.reason = 0

    @property
    def deadline(self) -> float | None:
        """In seconds of `time.monotonic()`; None when there is none."""
        return (self.began + self.limit) / 1e9 if self.limit else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 when that is over; None when there is none."""
        if not self.limit:
            return None
        return max(0, self.began + self.limit - monotonic_ns()) / 1e9

    def cancel(self, number: int, reason: int) -> None:
        """Call `number` is cancelled, which may be another."""
        if self.began and number == self.number:
            self.reason = reason

    def is_cancelled(self) -> bool:
        """Looks for news of the runtime's, without waiting. True as well when the runtime is gone."""
        if not self.reason:
            channel = connection.current()
            if channel is not None and channel.is_ours():
                try:
                    channel.poll()
                except (Closed, ProtocolError):
                    return True
        return self.reason != 0


#: The work of the whole process, if it has a loop that does one thing at a time.
_shared = Work()
#: The work of the current task.
_own: ContextVar[Work | None] = ContextVar("outrigger_work", default=None)


def shared() -> Work:
    """For a loop that does one thing at a time: what it is to keep up to date."""
    return _shared


def enter(work: Work) -> None:
    """The current task works on `work`."""
    _own.set(work)


def current() -> Work | None:
    """What the current thread or task works on; None outside of calls."""
    work = _own.get() or _shared
    return work if work.began else None


def number() -> int:
    """The number of the call that the current thread or task works on, 0 outside of calls."""
    work = _own.get() or _shared
    return work.number if work.began else 0
