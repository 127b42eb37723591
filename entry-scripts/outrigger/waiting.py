"""Waiting for the replica's answer in a coroutine. Imported by the first `predict_async`."""

import asyncio
from typing import Any

from outrigger_worker.channel import Answer, Channel, Tail

from . import tensors


class _Waiter:
    """A coroutine that waits for an answer."""

    __slots__ = ("allocate", "future", "_channel", "_loop")

    def __init__(self, channel: Channel) -> None:
        self.allocate: Any = tensors.allocate
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Answer] = self._loop.create_future()

    def deliver(self, answer: Answer) -> None:
        self._tell(answer)

    def break_off(self) -> None:
        self._tell(None)

    def _tell(self, answer: Answer | None) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._set(answer)
            return
        try:
            self._loop.call_soon_threadsafe(self._set, answer)
        except RuntimeError:
            # The loop has ended, and the coroutine with it.
            pass

    def _set(self, answer: Answer | None) -> None:
        if self.future.done():
            return
        if answer is not None:
            self.future.set_result(answer)
        elif self._channel.broken is not None:
            self.future.set_exception(self._channel.broken)


async def request(channel: Channel, kind: int, head: bytes, tail: Tail) -> Answer:
    """Like `Channel.request`, without blocking the running loop."""
    if channel.wake_loop is None:
        # A sync script that has started a loop of its own: nobody watches the socket for it.
        return await asyncio.to_thread(channel.request, kind, head, tail, tensors.allocate)
    waiter = _Waiter(channel)
    number = channel.post(kind, head, tail, waiter)
    try:
        return await waiter.future
    finally:
        channel.withdraw(number)
