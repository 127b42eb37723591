"""`python -m outrigger_worker.forkserver`: forks workers that are ready to take START (PROTOCOL.md).

It imports the worker, and of the user's only what the operator names. It is one thread, and refuses to fork
when that is not so any more: a thread that holds a lock does not exist in the child, and the lock stays held.

Exit codes: 0 the runtime closed the socket, 1 it sent what makes no sense, 2 not started by a runtime, 3 a
module does not import (the reason went out).
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

# `tasks` and `outrigger` are not used here: the workers shall have them ready.
import outrigger  # noqa: F401

from . import aliases, descriptors, stopping, tasks, work  # noqa: F401
from .failures import message_of, traceback_of

#: Names the descriptor of the socket.
SOCKET_VARIABLE = "OUTRIGGER_FORKSERVER_FD"
#: Longest message, in bytes.
MESSAGE_SIZE = 64 * 1024
#: Longest parts of `failed`, in characters: however they are escaped, the message is not too long.
FAILURE_LIMIT, TRACEBACK_LIMIT = 2_000, 8_000
#: Seconds that workers have to end when the runtime has closed the socket.
GRACE = 2.0

# prctl(2).
_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36

#: A worker's sockets: stream, regions.
Sockets = tuple[socket.socket, socket.socket]


class Nonsense(Exception):
    """A message of the runtime's does not parse."""


def main() -> int:
    """Runs the fork-server, and in its children the worker; gives the exit code."""
    descriptor = os.environ.pop(SOCKET_VARIABLE, None)
    try:
        sock = socket.socket(fileno=int(descriptor or ""))
    except (ValueError, OSError) as error:
        print(
            f"{SOCKET_VARIABLE} must name an open socket: the runtime starts this ({error})", file=sys.stderr
        )
        return 2
    sock.setblocking(True)
    sock.set_inheritable(False)
    # A terminal sends Ctrl-C to the whole group; what happens then is for the runtime to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _control(_SET_CHILD_SUBREAPER, 1)
    server = ForkServer(sock)
    try:
        if not server.prepare():
            return 3
        sockets = server.serve()
    except Nonsense as error:
        print(f"the fork-server ends: {error}", file=sys.stderr)
        server.end()
        return 1
    if sockets is None:
        server.end()
        return 0
    # From here on this is a worker.
    del server, sock
    return work.run(*sockets)


class ForkServer:
    """The fork-server at work."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        # A child's end wakes the loop through a pipe.
        self._ended, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._workers: set[int] = set()

    def prepare(self) -> bool:
        """Takes the first message and imports what it names. Gives False when that fails."""
        message, _ = self._receive()
        if message is None:
            return True
        modules, path = _texts(message, "preload"), _texts(message, "path")
        sys.path.extend(path)
        # Before anything of the user's: it may import what an installed AzureML server has under the same names.
        aliases.install()
        for module in modules:
            try:
                importlib.import_module(module)
            except BaseException as error:
                failure = {
                    "module": module,
                    "message": message_of(error)[:FAILURE_LIMIT],
                    "traceback": traceback_of(error)[-TRACEBACK_LIMIT:],
                }
                self._send({"failed": failure})
                return False
        if len(_threads()) > 1:
            _stop_threads_that_can_be()
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        # What is here now stays, and the collector does not write to its pages, which all workers share.
        gc.disable()
        gc.collect()
        gc.freeze()
        python = ".".join(map(str, sys.version_info[:3]))
        self._send({"ready": True, "preloaded": modules, "python": python})
        return True

    def serve(self) -> Sockets | None:
        """Forks workers until the runtime closes the socket: gives None. Gives a worker its sockets."""
        stream = self._sock.fileno()
        while True:
            readable, _, _ = select.select([stream, self._ended], [], [])
            if self._ended in readable:
                self._reap()
            if stream in readable:
                message, received = self._receive()
                if message is None:
                    return None
                number = message.get("spawn")
                if not isinstance(number, int) or len(received) != 4:
                    raise Nonsense(f"it got {message!r} with {len(received)} descriptors")
                sockets = self._spawn(number, received)
                if sockets is not None:
                    return sockets

    def end(self) -> None:
        """Waits for the workers, which end by themselves when the runtime is gone, and kills the slow."""
        deadline = monotonic() + GRACE
        while self._workers:
            remaining = deadline - monotonic()
            if remaining > 0:
                select.select([self._ended], [], [], remaining)
            else:
                for pid in self._workers:
                    _kill_group(pid)
                select.select([self._ended], [], [])
            self._reap()

    def _spawn(self, number: int, received: list[int]) -> Sockets | None:
        """Forks a worker. Gives its sockets in the worker, and None here."""
        try:
            threads = _threads()
            if len(threads) > 1:
                self._send(
                    {"refused": number, "message": f"a preloaded module has started threads: {threads}"}
                )
                return None
            sys.stdout.flush()
            sys.stderr.flush()
            try:
                pid = os.fork()
            except OSError as error:
                self._send({"refused": number, "message": f"cannot fork: {error}"})
                return None
            if pid == 0:
                return self._become_worker(received)
            self._adopt(number, pid)
            return None
        finally:
            if os.getpid() == self._pid:
                for descriptor in received:
                    os.close(descriptor)

    def _adopt(self, number: int, pid: int) -> None:
        """Tells the runtime of a new child."""
        try:
            # The child does the same; whoever comes first.
            os.setpgid(pid, pid)
        except OSError:
            pass
        self._workers.add(pid)
        try:
            handle = os.pidfd_open(pid)
        except OSError as error:
            self._workers.discard(pid)
            os.kill(pid, signal.SIGKILL)
            self._send({"refused": number, "message": f"cannot open a pidfd: {error}"})
            return
        try:
            self._send({"spawned": number, "pid": pid}, handle)
        finally:
            os.close(handle)

    def _become_worker(self, received: list[int]) -> Sockets:
        """In the child: makes it what a fresh worker would be."""
        os.setpgid(0, 0)
        _control(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            # The fork-server ended before it could be told to take us along.
            os._exit(1)
        signal.set_wakeup_fd(-1)
        stopping.reset()
        self._sock.close()
        os.close(self._ended)
        os.close(self._wakeup)
        stream, regions, out, err = received
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
            if source > 2:
                os.close(source)
        gc.enable()
        _reseed()
        return socket.socket(fileno=stream), socket.socket(fileno=regions)

    def _reap(self) -> None:
        """Buries all children that have ended, and tells the runtime of workers."""
        try:
            os.read(self._ended, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                # Looked at, not yet reaped: until then nobody else can get its number, which is its group's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._workers:
                _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            if pid in self._workers:
                self._workers.discard(pid)
                if os.WIFSIGNALED(status):
                    self._send({"exited": pid, "signal": os.WTERMSIG(status)})
                else:
                    self._send({"exited": pid, "code": os.WEXITSTATUS(status)})

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """A message and its descriptors; None when the runtime has closed the socket."""
        try:
            data, received = descriptors.receive(self._sock, MESSAGE_SIZE, 4)
        except ConnectionError:
            return None, []
        if not data:
            return None, []
        try:
            message = json.loads(data)
            if not isinstance(message, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise Nonsense(f"a message does not parse: {error}") from error
        return message, received

    def _send(self, message: dict[str, Any], *handles: int) -> None:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            descriptors.send(self._sock, data, handles)
        except ConnectionError:
            # The runtime is gone, which the next look at the socket tells.
            pass


def _threads() -> list[str]:
    """The names of all threads of this process, also of those that Python does not know of."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            # It has ended.
            pass
    return names if len(names) >= threading.active_count() else [each.name for each in threading.enumerate()]


def _stop_threads_that_can_be() -> None:
    """Forks once, for the sake of libraries that end their threads before a fork, as OpenBLAS does.

    They start them again when they need them, here never, in a worker with its first large product.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _control(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")


def _reseed() -> None:
    """Workers must not all draw the same random numbers. Python's own `random` sees to itself."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nobody left, or nobody that may be killed.
        pass


def _wake(number: int, frame: Any) -> None:
    """The pipe does it; a handler must be there for it."""


def _texts(message: dict[str, Any], field: str) -> list[str]:
    """A field of the first message."""
    value = message.get(field)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Nonsense(f"`{field}` of the first message is {value!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
