"""The stream socket to the runtime, and what becomes of it."""

import errno
import socket
from collections.abc import Callable

_GONE = (errno.ECONNRESET, errno.EPIPE, errno.EBADF, errno.ENOTCONN)


class Closed(ConnectionError):
    """The runtime has closed the connection."""

    def __init__(self) -> None:
        super().__init__("the runtime has closed the connection")


class ProtocolError(Exception):
    """The runtime sent what PROTOCOL.md does not allow, or a transfer was cut short."""


class Link:
    """A socket, for as long as the stream of frames makes sense."""

    __slots__ = ("sock", "broken", "on_broken")

    def __init__(self, sock: socket.socket, on_broken: Callable[[], None]) -> None:
        self.sock = sock
        #: Why it cannot be used any more; None while it can.
        self.broken: Exception | None = None
        #: Called once when it breaks.
        self.on_broken = on_broken

    def give_up(self, reason: Exception) -> Exception:
        """Ends all use of the socket and gives the reason that holds from now on."""
        if self.broken is None:
            self.broken = reason
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self.on_broken()
        return self.broken


def says_gone(error: BaseException) -> bool:
    """Whether an error of the socket's says that the runtime has closed it."""
    # Not every OSError is the socket's: TimeoutError is one too, and handlers of SIGALRM like to raise it.
    return isinstance(error, OSError) and error.errno in _GONE
