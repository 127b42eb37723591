"""Sending: whole frames, from any thread, one after the other."""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .link import Closed, Link, ProtocolError, says_gone

_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_PARTS_AT_ONCE = max(16, os.sysconf("SC_IOV_MAX"))


class Outbox:
    """Sends what it is given. Who uses `send` holds `lock`."""

    __slots__ = ("lock", "_link", "_sock", "_aside")

    def __init__(self, link: Link) -> None:
        # Reentrant only so that what a finaliser sends while its own thread is sending can be told apart: it
        # waits in `_aside`, as whole frames or as functions that give them.
        self.lock = threading.RLock()
        self._link = link
        self._sock = link.sock
        self._aside: deque[bytes | Callable[[], bytes]] = deque()

    @property
    def is_interrupted(self) -> bool:
        """Whether this thread is in the middle of sending: the caller runs in a finaliser or a signal handler."""
        return self.lock._is_owned()  # type: ignore[attr-defined,no-any-return]

    def send(self, parts: Sequence[Any]) -> None:
        """Sends `parts`, bytes-like and contiguous, in one piece. The caller holds the lock."""
        if self._link.broken is not None:
            raise self._link.broken
        try:
            if self._aside:
                self._send_aside()
            if len(parts) == 1:
                # Nearly always: a small frame, which the kernel takes whole.
                sent = self._sock.send(parts[0], _NO_SIGNAL)
                if sent != len(parts[0]):
                    self._send_parts((memoryview(parts[0])[sent:],))
            else:
                self._send_parts(parts)
            if self._aside:
                self._send_aside()
        except BaseException as error:
            if says_gone(error):
                raise self._link.give_up(Closed()) from error
            # A handler of some signal raised. How much is sent is not known, and cannot be taken back.
            self._link.give_up(ProtocolError(f"sending was cut short by {error!r}"))
            raise

    def send_when_possible(self, data: bytes) -> None:
        """Sends whole frames now, or right after what this thread is sending."""
        if self.is_interrupted:
            self._aside.append(data)
        else:
            with self.lock:
                self.send((data,))

    def send_next(self, data: Callable[[], bytes]) -> None:
        """Has `data` made and sent before anything else goes out."""
        self._aside.append(data)

    def abandon(self) -> None:
        """In a forked child: other threads, which it does not have, may have held the lock."""
        self.lock = threading.RLock()

    def _send_parts(self, parts: Sequence[Any]) -> None:
        waiting = deque(memoryview(part) for part in parts if len(part))
        while waiting:
            some = [waiting[place] for place in range(min(len(waiting), _PARTS_AT_ONCE))]
            sent = self._sock.sendmsg(some, (), _NO_SIGNAL)
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if sent:
                waiting[0] = waiting[0][sent:]

    def _send_aside(self) -> None:
        while self._aside:
            data = self._aside.popleft()
            if callable(data):
                data = data()
            self._send_parts((data,))
