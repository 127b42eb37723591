"""The loop of batch scripts: hands the calls of a batch to `run_batch()` at once, answers each by itself."""

from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from . import context, frames, printing
from .calls import CANCELLED, Encoded, failed, receiver, refused
from .channel import Channel
from .link import ProtocolError
from .loading import Script


def serve(channel: Channel, script: Script, start: dict[str, Any]) -> None:
    """Serves batches until the channel raises Closed or ProtocolError."""
    loop = _Loop(channel, script, start)
    while True:
        loop.work_on(loop.receive())
        channel.release_unused()
        # Calls of the next batch may be cancelled by now.
        channel.poll()


class _Loop:
    def __init__(self, channel: Channel, script: Script, start: dict[str, Any]) -> None:
        self._channel = channel
        self._receive = receiver(channel, script.mode)
        self._run = script.run
        self._parse = script.parser()
        self._encode = script.encoder(start["compat"], channel.max_payload - frames.REPLY_META_SIZE)
        self._most = start["max_batch"]
        self._bisect = start.get("bisect", True)
        self._work = context.shared()
        # The calls of the batch that is worked on, those that are run at the moment, and those that have been cancelled.
        self._numbers: set[int] = set()
        self._group: set[int] = set()
        self._cancelled: set[int] = set()
        channel.on_cancel = self._cancel
        # A call that is dropped may be the last of its batch.
        channel.drops_cancelled = False

    def receive(self) -> list[Any]:
        """The next batch. Its calls that cannot be run, or need not be, are answered and left out."""
        calls, count, more = [], 0, True
        while more:
            number, more, call = self._receive(self._parse_one)
            count += 1
            if count > self._most:
                raise ProtocolError(f"a batch has more than {self._most} calls")
            if self._channel.was_cancelled(number):
                self._reply(number, CANCELLED, 0)
            elif call[2] is not None:
                self._reply(number, refused(call[2]), 0)
            else:
                calls.append(call)
        return calls

    def work_on(self, calls: list[Any]) -> None:
        """Runs a batch and answers its calls.

        If that raises, its halves are run, and so on, so that only those that are at fault fail.
        """
        if not calls:
            return
        work = self._work
        self._numbers, self._cancelled = {call[0] for call in calls}, set()
        work.began = monotonic_ns()
        groups = [calls]
        while groups:
            group = groups.pop()
            if len(group) < len(calls):
                group = self._still_wanted(group)
            if group:
                groups += self._run_group(group)
        work.began = 0
        self._numbers = set()

    def _run_group(self, calls: list[Any]) -> list[list[Any]]:
        """Runs calls together and answers them, but for those that are to be run again: in these groups, the last one first."""
        work = self._work
        self._group = {call[0] for call in calls}
        # The earliest deadline of those that are run together; one that is too short ends with its own call.
        work.limit = min((call[3] for call in calls if call[3]), default=0)
        work.number = calls[0][0] if len(calls) == 1 else 0
        work.request_id = calls[0][4] if len(calls) == 1 else b""
        work.reason = 0
        results: list[Any] = []
        answer: Encoded | None = None
        again: list[Any] = []
        try:
            results = _checked(self._run([call[1] for call in calls]), len(calls))
        except BaseException as error:
            answer = failed(frames.RAISED, error)
        took = monotonic_ns() - work.began
        printing.end_call(work.number)
        if answer is not None and self._bisect and len(calls) > 1:
            self._channel.poll()
            # That nobody waits for the others any more may be what made it raise.
            again = [call for call in calls if call[0] not in self._cancelled]
        left = {call[0] for call in again}
        for place, call in enumerate(calls):
            if call[0] in left:
                continue
            if answer is None and call[0] in self._cancelled:
                self._reply(call[0], CANCELLED, took)
            else:
                self._reply(call[0], answer or self._encoded(results[place], call[1]), took)
        half = len(again) // 2
        return [again[half:], again[:half]]

    def _still_wanted(self, calls: list[Any]) -> list[Any]:
        """Those that have not been cancelled; the others are answered."""
        self._channel.poll()
        wanted = []
        for call in calls:
            if call[0] in self._cancelled:
                self._reply(call[0], CANCELLED, monotonic_ns() - self._work.began)
            else:
                wanted.append(call)
        return wanted

    def _parse_one(
        self, number: int, view: memoryview, start: int, end: int, tail: memoryview | None
    ) -> tuple[int, bool, Any]:
        """A call, and whether more of its batch follow."""
        call = self._parse(number, view, start, end, tail)
        _, flags, *_ = frames.CALL_HEAD.unpack_from(view, start)
        return number, bool(flags & frames.MORE), call

    def _encoded(self, result: Any, item: Any) -> Encoded:
        if isinstance(result, BaseException):
            return failed(frames.RAISED, result)
        try:
            answer: Encoded = self._encode(result, item)
            if answer[0] == frames.STREAM_BEGINS:
                raise TypeError("run_batch() cannot stream: an item of its result is a generator")
        except BaseException as error:
            return failed(frames.NOT_SERIALISABLE, error)
        return answer

    def _reply(self, number: int, answer: Encoded, took: int) -> None:
        outcome, flags, status, message, rest = answer
        self._channel.reply(number, outcome, flags, status, message, took, rest)

    def _cancel(self, number: int, reason: int) -> None:
        """The batch goes on for the others; it is cancelled when all of its calls are."""
        if number in self._numbers:
            self._cancelled.add(number)
            if self._group <= self._cancelled:
                self._work.reason = reason


def _checked(results: Any, size: int) -> list[Any]:
    """What `run_batch()` has returned, as a list. Raises TypeError or ValueError when it is unfit."""
    if not isinstance(results, Sequence) or isinstance(results, (str, bytes, bytearray, memoryview)):
        # Arrays and the like are no `Sequence`, and yet have a length and an order.
        if isinstance(results, (dict, set, str, bytes)) or not hasattr(results, "__len__"):
            raise TypeError(f"run_batch() returned {type(results).__name__}, not a sequence of results")
    if len(results) != size:
        raise ValueError(f"run_batch() returned {len(results)} results for {size} calls")
    return list(results)
