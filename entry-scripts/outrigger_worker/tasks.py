"""The loop of async scripts: an asyncio loop that watches the socket and works on each call in a task.

The loop reads the socket itself, when it shows something to read. Sends block, but the runtime reads at all
times. A thread of the script's that waits for a model may read as well; what it finds for the loop it tells
the loop.
"""

import asyncio
import inspect
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from threading import get_ident
from time import monotonic_ns
from typing import Any

from . import context, frames, tracing
from .calls import CANCELLED, Encoded, failed, refused
from .channel import Channel, RawCall
from .link import Closed, ProtocolError
from .loading import Script
from .streams import NOTHING, Stream, as_bytes, close

#: Seconds that tasks may take to end when the runtime is gone.
GRACE = 2.0


class _Task:
    """A call that is worked on."""

    __slots__ = ("task", "work", "stream", "credit")

    def __init__(self, number: int) -> None:
        self.task: asyncio.Task[None] | None = None
        self.work = context.Work(number)
        self.stream: Stream | None = None
        #: Waits for credit.
        self.credit: asyncio.Event | None = None


class Loop:
    """The asyncio loop of an async worker. Made before `init()`, which may use it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tasks: dict[int, _Task] = {}
        self._most = 0
        self._thread = get_ident()
        self._polling = False
        self._end: BaseException | None = None
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.add_reader(channel.fileno(), self._readable)
        channel.wake_loop = self._wake
        channel.on_cancel = self._on_cancel
        channel.on_credit = self._on_credit

    def finish(self, result: Any) -> Any:
        """Waits for the end of a coroutine that `init()`, `warmup()` or `shutdown()` has given."""
        return self.loop.run_until_complete(result) if inspect.isawaitable(result) else result

    def serve(self, script: Script, start: dict[str, Any]) -> None:
        """Serves calls until the channel raises Closed or ProtocolError."""
        self._run = script.run
        self._parse = script.parser()
        self._encode = script.encoder(start["compat"], self._channel.max_payload - frames.REPLY_META_SIZE)
        self._window = start["window"]
        self._most = start["concurrency"]
        self.loop.call_soon(self._readable)
        while self._end is None:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # Of a task or a callback of the script's own; those of calls are caught.
                traceback.print_exc()
        if self._channel.is_ours():
            self.loop.remove_reader(self._channel.fileno())
            self._end_tasks()
        raise self._end

    def close(self) -> None:
        """Ends the loop."""
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self._channel.wake_loop = None
        self.loop.close()

    def _wake(self) -> None:
        """Called by whoever has read something for the loop, or left something unread."""
        if not (self._polling and get_ident() == self._thread):
            try:
                self.loop.call_soon_threadsafe(self._readable)
            except RuntimeError:
                # The loop has ended.
                pass

    def _readable(self) -> None:
        if self._end is not None:
            return
        try:
            self._polling = True
            try:
                self._channel.poll()
            finally:
                self._polling = False
            if self._channel.broken is not None:
                raise self._channel.broken
            self._begin_some()
        except (Closed, ProtocolError) as error:
            self._stop(error)

    def _begin_some(self) -> None:
        """Begins with calls that have been read, as many as may run."""
        while len(self._tasks) < self._most:
            call = self._channel.take_call()
            if call is None:
                break
            self._begin(call)

    def _begin(self, call: RawCall) -> None:
        known = self._tasks[call[0]] = _Task(call[0])
        known.task = self.loop.create_task(self._work_on(call, known))
        known.task.add_done_callback(partial(self._ended, call[0]))

    def _ended(self, number: int, task: "asyncio.Task[None]") -> None:
        del self._tasks[number]
        # Closed or ProtocolError.
        failure = task.exception() if not task.cancelled() else None
        if failure is not None:
            self._stop(failure)
        if self._end is not None:
            return
        try:
            self._channel.release_unused()
            # Calls may wait for this one's place.
            self._begin_some()
        except (Closed, ProtocolError) as error:
            self._stop(error)

    async def _work_on(self, call: RawCall, known: _Task) -> None:
        """Answers a call. Raises Closed and ProtocolError only."""
        work = known.work
        context.enter(work)
        try:
            number, arguments, refusal, work.limit, work.request_id = self._parse(*call)
            # It is the task's own, and ends with it.
            tracing.attach(work.request_id)
            # A view of a region is not held for longer than the script holds it.
            del call
            if refusal is not None:
                self._reply(number, refused(refusal), 0)
                return
            answer, took = await self._run_it(work, arguments)
            if answer[0] == frames.STREAM_BEGINS:
                await self._stream(known, answer)
            elif work.reason and answer[0] != frames.RAISED:
                self._reply(number, CANCELLED, took)
            else:
                self._reply(number, answer, took)
        except (Closed, ProtocolError):
            raise
        except BaseException as error:
            self._reply(work.number, failed(frames.RAISED, error), 0)

    async def _run_it(self, work: context.Work, arguments: dict[str, Any]) -> tuple[Encoded, int]:
        """Runs the script. Gives the answer and the nanoseconds that `run()` took."""
        if work.reason:
            return CANCELLED, 0
        work.began = monotonic_ns()
        try:
            result = self._run(**arguments)
            # An async generator has nothing to wait for yet.
            if hasattr(result, "__await__"):
                result = await result
        except BaseException as error:
            took = monotonic_ns() - work.began
            if work.reason and isinstance(error, asyncio.CancelledError):
                return CANCELLED, took
            return failed(frames.RAISED, error), took
        took = monotonic_ns() - work.began
        try:
            return self._encode(result, arguments), took
        except BaseException as error:
            return failed(frames.NOT_SERIALISABLE, error), took

    async def _stream(self, known: _Task, answer: Encoded) -> None:
        """Sends a streamed answer, a chunk when it is there."""
        outcome, flags, status, message, chunks = answer
        work = known.work
        advance = _advance(chunks)
        try:
            chunk = await advance()
        except BaseException as error:
            took = monotonic_ns() - work.began
            if work.reason and isinstance(error, asyncio.CancelledError):
                await _close(chunks)
                self._reply(work.number, CANCELLED, took)
            else:
                self._reply(work.number, failed(frames.RAISED, error), took)
            return
        self._reply(work.number, (outcome, flags, status, message, b""), monotonic_ns() - work.began)
        stream = known.stream = Stream(self._channel, work.number, self._window)
        known.credit = asyncio.Event()
        failure: BaseException | None = None
        try:
            while chunk is not NOTHING:
                data = as_bytes(chunk)
                while data:
                    data = stream.send_some(data)
                    if data and stream.left <= 0:
                        known.credit.clear()
                        await known.credit.wait()
                del data
                # Not held while the next is made. A generator that waits for nothing must not keep the loop.
                chunk = None
                await asyncio.sleep(0)
                chunk = await advance()
        except (Closed, ProtocolError):
            raise
        except BaseException as error:
            if not (work.reason and isinstance(error, asyncio.CancelledError)):
                failure = error
            failure = await _close(chunks) or failure
        stream.end(work.began, failure, work.reason != 0)

    def _reply(self, number: int, answer: Encoded, took: int) -> None:
        outcome, flags, status, message, rest = answer
        self._channel.reply(number, outcome, flags, status, message, took, rest)

    def _end_tasks(self) -> None:
        """Cancels what still runs, and waits a little for it."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE))

    def _stop(self, error: BaseException) -> None:
        if self._end is None:
            self._end = error
            self.loop.stop()

    def _on_cancel(self, number: int, reason: int) -> None:
        if get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self._on_cancel, number, reason)
            return
        known = self._tasks.get(number)
        if known is None:
            return
        if reason == frames.OUT_OF_TIME:
            # The loop turns, so that the others need not end with this one.
            self.loop.call_soon(self._say_ending, number)
        if not known.work.reason:
            known.work.reason = reason
            # A task that has not begun sees the reason when it does.
            if known.work.began and known.task is not None:
                known.task.cancel()

    def _say_ending(self, number: int) -> None:
        if number in self._tasks and self._end is None:
            try:
                self._channel.announce(frames.frame(frames.CANCELLING, number))
            except (Closed, ProtocolError) as error:
                self._stop(error)

    def _on_credit(self, number: int, amount: int) -> None:
        if get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self._on_credit, number, amount)
            return
        known = self._tasks.get(number)
        if known is not None and known.stream is not None:
            known.stream.left += amount
            if known.credit is not None:
                known.credit.set()


def _advance(chunks: Any) -> Callable[[], Awaitable[Any]]:
    """A function that waits for the next chunk, and gives NOTHING when there is none."""
    if isinstance(chunks, AsyncIterator):

        async def advance() -> Any:
            return await anext(chunks, NOTHING)

    else:
        iterator = iter(chunks)

        async def advance() -> Any:
            return next(iterator, NOTHING)

    return advance


async def _close(chunks: Any) -> BaseException | None:
    """Closes a generator of either kind. Gives what that raises."""
    act = getattr(chunks, "aclose", None)
    if act is None:
        return close(chunks)
    try:
        await act()
    except BaseException as error:
        return error
    return None
