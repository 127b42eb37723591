"""Descriptors over Unix sockets. `socket.send_fds` and `recv_fds` do not pass their flags on (as of 3.13)."""

import array
import socket
from collections.abc import Sequence

_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


def send(sock: socket.socket, message: bytes, descriptors: Sequence[int], flags: int = 0) -> None:
    """Sends a message with descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([message], rights, flags | _NO_SIGNAL)


def receive(sock: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A message of at most `size` bytes, and its descriptors, of which there are at most `most`.

    What is beyond that is lost. The descriptors are not inherited.
    """
    numbers = array.array("i")
    space = socket.CMSG_LEN(most * numbers.itemsize)
    message, ancillary, _, _ = sock.recvmsg(size, space, flags | _CLOSE_ON_EXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)
