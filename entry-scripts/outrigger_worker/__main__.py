"""`python -m outrigger_worker`: loads one entry script and serves it over the socket that it was handed.

Exit codes: 0 the runtime closed the socket, 1 the connection made no sense or a worker failed in some other
way, 2 not started by a runtime, 3 the script does not load (the reason went out as FAILED).
"""

import gc
import io
import json
import os
import socket
import sys
from typing import Any

from . import connection, frames, stopping
from .calls import serve
from .channel import Channel, Closed, ProtocolError
from .loading import Script, ScriptError, load

#: Names the descriptor of the worker's end of the socket pair.
DESCRIPTOR_VARIABLE = "OUTRIGGER_WORKER_FD"


def main() -> int:
    """Runs the worker; gives its exit code."""
    # Popped, for a process that the script starts has no business with it.
    descriptor = os.environ.pop(DESCRIPTOR_VARIABLE, None)
    try:
        channel = Channel(socket.socket(fileno=int(descriptor or "")))
    except (ValueError, OSError) as error:
        print(
            f"{DESCRIPTOR_VARIABLE} must name an open socket: the runtime starts this ({error})",
            file=sys.stderr,
        )
        return 2
    stopping.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line is in the log when it is printed, not when some buffer is full.
        sys.stdout.reconfigure(line_buffering=True)
    connection.open_to_all(channel)
    worker = os.getpid()
    try:
        return _work(channel)
    except (Closed, ProtocolError) as error:
        if os.getpid() != worker:
            print("a process forked by the entry script returned from run(); it ends here", file=sys.stderr)
            sys.stderr.flush()
            # Not in order: exit handlers are the worker's.
            os._exit(1)
        if isinstance(error, ProtocolError):
            print(f"the worker ends: {error}", file=sys.stderr)
            return 1
        return 0
    finally:
        channel.close()


def _work(channel: Channel) -> int:
    start = _parse_start(channel.receive_start())
    channel.max_payload = start.get("max_payload") or frames.MAX_PAYLOAD
    try:
        script = load(start)
        script.call_init()
    except ScriptError as error:
        failure = {"phase": error.phase, "message": error.message, "traceback": error.traceback}
        channel.announce(frames.json_frame(frames.FAILED, 0, failure))
        return 3
    stopping.prepare_again()
    # What init() has made lives as long as the process: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    channel.announce(frames.json_frame(frames.READY, 0, _ready(script)))
    serve(channel, script, start["strict"])
    return 0


def _parse_start(payload: memoryview) -> dict[str, Any]:
    try:
        start: dict[str, Any] = json.loads(bytes(payload))
        if not start.keys() >= {"app_root", "entry_script", "source_directory", "args", "strict"}:
            raise ValueError("a field is missing")
    except (ValueError, AttributeError) as error:
        raise ProtocolError(f"START does not parse: {error}") from error
    return start


def _ready(script: Script) -> dict[str, Any]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"mode": "plain", "request_headers": script.wants_headers, "python": python, "script": script.path}


if __name__ == "__main__":
    sys.exit(main())
