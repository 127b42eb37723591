"""The call loop: takes calls one at a time, runs the script's `run()`, sends what came of it.

This is the path of every request, so it is written for few steps: names are bound once, outside of the loop,
and nothing is made per call but the text that goes in, the text that comes out, and a header.
"""

from json import JSONEncoder
from time import perf_counter_ns

from . import frames
from .channel import Channel
from .failures import message_of, to_bytes, traceback_of
from .inputs import plain_parser
from .loading import Script


def serve(channel: Channel, script: Script, strict: bool) -> None:
    """Serves calls until the channel raises Closed or ProtocolError.

    With `strict`, NaN and infinities in an answer are an error, otherwise they go out as Python writes them,
    which is not JSON. Whatever `run()` raises is the answer to that call, SystemExit and KeyboardInterrupt
    too: the worker outlives it.
    """
    receive, reply, clock = channel.receive_call, channel.reply, perf_counter_ns
    parse = plain_parser(script.parameter, script.wants_headers)
    run = script.run
    encode = JSONEncoder(allow_nan=not strict).encode
    most = channel.max_payload - frames.REPLY_META_SIZE

    while True:
        number, arguments, refusal = receive(parse)
        if refusal is not None:
            reply(number, frames.INPUT_REFUSED, to_bytes(refusal), 0, b"")
            continue
        began = clock()
        try:
            result = run(**arguments)
        except BaseException as error:
            took = clock() - began
            reply(number, frames.RAISED, to_bytes(message_of(error)), took, to_bytes(traceback_of(error)))
            continue
        took = clock() - began
        try:
            # The text is ASCII: all else is escaped.
            answer = b"{}" if result is None else encode(result).encode("ascii")
            if len(answer) > most:
                raise ValueError(f"the answer has {len(answer)} bytes, the most is {most}")
        except BaseException as error:
            reply(
                number,
                frames.NOT_SERIALISABLE,
                to_bytes(message_of(error)),
                took,
                to_bytes(traceback_of(error)),
            )
            continue
        reply(number, frames.RETURNED, b"", took, answer)
        # Bodies may be large; they are not kept while the worker waits for the next call.
        del arguments, result, answer
