"""The life of a worker: START, `init()`, `warmup()`, READY, calls, `shutdown()`."""

import gc
import inspect
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from . import batches, calls, connection, context, debugging, frames, printing, stopping
from .channel import Channel
from .link import Closed, ProtocolError
from .loading import Script, ScriptError, load

#: Numbers in START, and the least that each may be.
NUMBERS = {
    "max_payload": 1,
    "window": 0,
    "region_threshold": 0,
    "regions": 0,
    "concurrency": 1,
    "max_batch": 1,
}
#: All that START says, but for `native`, which is for other workers.
FIELDS = {"app_root", "entry_script", "source_directory", "args", "compat", *NUMBERS}


class Server(Protocol):
    """What works on the calls of one kind of script."""

    def finish(self, result: Any) -> Any:
        """Waits for the end of a coroutine that a function of the script's other than `run()` has given."""

    def serve(self, script: Script, start: dict[str, Any]) -> None:
        """Serves calls until the channel raises Closed or ProtocolError."""

    def close(self) -> None:
        """Ends what `init()` may have used."""


def run(sock: socket.socket, regions: socket.socket) -> int:
    """Works for the runtime at the other ends of these sockets; gives the exit code."""
    channel = Channel(sock, regions)
    stopping.prepare()
    printing.capture(channel.log, context.number)
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
            # What is printed from here on goes to stderr itself, for nobody reads frames any more.
            channel.give_up(error)
            print(f"the worker ends: {error}", file=sys.stderr)
            return 1
        return 0
    finally:
        channel.close()


def _work(channel: Channel) -> int:
    start = _parse_start(channel.receive_start())
    channel.max_payload = start["max_payload"]
    channel.use_regions(start["region_threshold"], start["regions"])
    try:
        debugging.connect()
        script = load(start)
        server = _server(script, channel)
        # Who only wants to know what the script is says `init: false`.
        if start.get("init", True):
            _phase(channel, server, "init", script.init)
            if script.warmup is not None:
                _phase(channel, server, "warmup", script.warmup)
    except ScriptError as error:
        failure = {"phase": error.phase, "message": error.message, "traceback": error.traceback}
        channel.announce(frames.json_frame(frames.FAILED, 0, failure))
        return 3
    stopping.prepare_again()
    # What init() has made lives as long as the process: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    channel.announce(frames.json_frame(frames.READY, 0, _ready(script)))
    worker = os.getpid()
    try:
        server.serve(script, start)
    except Closed:
        if os.getpid() == worker:
            _shut_down(script, server)
        raise
    return 0


def _parse_start(payload: bytes) -> dict[str, Any]:
    try:
        start: dict[str, Any] = json.loads(payload)
        missing = FIELDS - start.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        for name, least in NUMBERS.items():
            if not isinstance(start[name], int) or start[name] < least:
                raise ValueError(f"`{name}` is {start[name]!r}")
    except (ValueError, AttributeError) as error:
        raise ProtocolError(f"START does not parse: {error}") from error
    return start


def _server(script: Script, channel: Channel) -> Server:
    if script.kind == "async":
        # Imports asyncio, which takes its time.
        from . import tasks

        return tasks.Loop(channel)
    return _OneAtATime(channel, batches.serve if script.kind == "batch" else calls.serve)


class _OneAtATime:
    """Server for scripts without a loop of their own."""

    def __init__(self, channel: Channel, serve: Callable[[Channel, Script, dict[str, Any]], None]) -> None:
        self._channel = channel
        self._serve = serve

    def finish(self, result: Any) -> Any:
        if not inspect.iscoroutine(result):
            return result
        import asyncio

        return asyncio.run(result)

    def serve(self, script: Script, start: dict[str, Any]) -> None:
        self._serve(self._channel, script, start)

    def close(self) -> None:
        pass


def _phase(channel: Channel, server: Server, name: str, act: Callable[[], Any]) -> None:
    """Calls a function of the script's. Raises ScriptError when that raises anything, SystemExit too."""
    channel.announce(frames.frame(frames.PHASE, 0, name.encode()))
    try:
        server.finish(act())
    except BaseException as error:
        raise ScriptError.raised(name, error) from error
    printing.end_call(0)
    channel.release_unused()


def _ready(script: Script) -> dict[str, Any]:
    return {
        "mode": script.mode,
        "kind": script.kind,
        "headers": script.headers,
        "methods": script.methods,
        "python": ".".join(map(str, sys.version_info[:3])),
        "script": script.path,
        "swagger": script.swagger,
        "sample": script.sample,
    }


def _shut_down(script: Script, server: Server) -> None:
    """Lets the script tidy up. That it fails to changes nothing any more."""
    try:
        if script.shutdown is not None:
            server.finish(script.shutdown())
        server.close()
    except BaseException:
        traceback.print_exc()
