"""The loop of sync scripts: takes calls one at a time, runs the script's `run()`, sends what came of it.

This is the path of every request, so it is written for few steps: names are bound once, outside of the loop,
and nothing is made per call but the text that goes in, the text that comes out, and a header.
"""

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from . import context, frames, streams, tracing
from .channel import Channel
from .link import Closed, ProtocolError
from .failures import message_of, to_bytes, traceback_of
from .loading import Script

#: After a `run()` of so many nanoseconds the loop looks whether calls that wait have been cancelled.
LONG = 1_000_000

#: What an encoder gives: outcome, flags, status, message, rest.
Encoded = tuple[int, int, int, bytes, Any]

#: The answer to a call that was cancelled and has ended.
CANCELLED: Encoded = (frames.CANCELLED, 0, 0, b"", b"")


def failed(outcome: int, error: BaseException) -> Encoded:
    """The answer to a call that `error` has ended."""
    flags = frames.RUN_FAILED if outcome == frames.RAISED else 0
    return outcome, flags, 0, to_bytes(message_of(error)), to_bytes(traceback_of(error))


def refused(refusal: tuple[int, str, str]) -> Encoded:
    """The answer to a call whose input could not be handed to the script."""
    status, message, log = refusal
    return frames.INPUT_REFUSED, 0, status, to_bytes(message), to_bytes(log)


def receiver(channel: Channel, mode: str) -> Callable[..., Any]:
    """How to receive calls of scripts of `mode`: a parser that runs code of the script's gets a copy."""
    return channel.receive_call if mode == "plain" else channel.receive_copy


def serve(channel: Channel, script: Script, start: dict[str, Any]) -> None:
    """Serves calls until the channel raises Closed or ProtocolError.

    Whatever `run()` raises is the answer to that call, SystemExit and KeyboardInterrupt too: the worker
    outlives it.
    """
    receive, reply, clock, borrowed = (
        receiver(channel, script.mode),
        channel.reply,
        monotonic_ns,
        channel.borrowed,
    )
    parse, run = script.parser(), script.run
    encode = script.encoder(start["compat"], channel.max_payload - frames.REPLY_META_SIZE)
    work = context.shared()
    channel.on_cancel = work.cancel
    while True:
        number, arguments, refusal, limit, request_id = receive(parse)
        if refusal is not None:
            outcome, flags, status, message, rest = refused(refusal)
            reply(number, outcome, flags, status, message, 0, rest)
            del arguments
            if borrowed.in_use:
                channel.release_unused()
            continue
        work.number, work.limit, work.request_id, work.reason = number, limit, request_id, 0
        # Most requests have an id alone.
        attached = tracing.attach(request_id) if b"\n" in request_id else None
        work.began = began = clock()
        result = None
        try:
            result = run(**arguments)
        except BaseException as error:
            took = clock() - began
            answer = failed(frames.RAISED, error)
        else:
            took = clock() - began
            try:
                answer = encode(result, arguments)
            except BaseException as error:
                answer = failed(frames.NOT_SERIALISABLE, error)
        outcome, flags, status, message, rest = answer
        if outcome == frames.STREAM_BEGINS:
            _stream(channel, work, start["window"], answer)
        elif work.reason and outcome != frames.RAISED:
            reply(number, frames.CANCELLED, 0, 0, b"", took, b"")
        else:
            reply(number, outcome, flags, status, message, took, rest)
        work.began = 0
        if attached is not None:
            tracing.detach(attached)
        # Bodies may be large; they are not kept while the worker waits for the next call.
        del arguments, result, answer, rest
        if borrowed.in_use:
            channel.release_unused()
        if took > LONG:
            channel.poll()


def _stream(channel: Channel, work: context.Work, window: int, answer: Encoded) -> None:
    """Sends a streamed answer; the whole of it counts as time in `run()`."""
    outcome, flags, status, message, chunks = answer

    def head() -> None:
        channel.reply(work.number, outcome, flags, status, message, monotonic_ns() - work.began, b"")

    try:
        if work.reason:
            streams.close(chunks)
            channel.reply(work.number, frames.CANCELLED, 0, 0, b"", monotonic_ns() - work.began, b"")
            return
        streams.send_all(channel, work, window, head, iter(chunks))
    except (Closed, ProtocolError):
        raise
    except BaseException as error:
        took = monotonic_ns() - work.began
        outcome, flags, status, message, trace = failed(frames.RAISED, error)
        channel.reply(work.number, outcome, flags, status, message, took, trace)
