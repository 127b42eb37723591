"""The fork-server, and the workers that it forks."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from harness import ENTRY_SCRIPTS, PATIENCE, POST, RETURNED, Exchange, Worker, call_payload, spawn

ECHO = "def init():\n    pass\n\ndef run(data):\n    return data\n"


class ForkServer:
    """A fork-server; `begin` sends it the first message."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        with other:
            sockets = {"OUTRIGGER_FORKSERVER_FD": other}
            self.process = spawn("outrigger_worker.forkserver", folder, sockets, environment)
        self.workers: list[Forked] = []
        self.exits: dict[int, dict[str, int]] = {}

    def begin(self, preload: list[str] | None = None, path: list[str] | None = None) -> dict[str, Any]:
        self.send({"preload": preload or [], "path": path or []})
        return self.receive()

    def send(self, message: Any, descriptors: list[int] | None = None) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.sock, [data], descriptors or [])

    def receive(self) -> dict[str, Any]:
        """The next message; a pidfd goes under `pidfd`."""
        data, descriptors, _, _ = socket.recv_fds(self.sock, 65536, 4)
        assert data, "the fork-server closed the socket"
        message = json.loads(data)
        if descriptors:
            (message["pidfd"],) = descriptors
        return message

    def spawn(self, number: int = 1, script: str | None = ECHO) -> "Forked":
        worker = Forked(self.folder, script, self, number)
        self.workers.append(worker)
        return worker

    def exit_of(self, pid: int) -> dict[str, int]:
        while pid not in self.exits:
            message = self.receive()
            self.exits[message.pop("exited")] = message
        return self.exits[pid]

    def end(self) -> int:
        """Closes the socket; gives the exit code."""
        self.sock.close()
        return self.process.wait(timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()
        self.sock.close()
        try:
            self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()


class Forked(Exchange):
    """A worker that a fork-server has forked."""

    def __init__(self, folder: Path, script: str | None, server: ForkServer, number: int) -> None:
        super().__init__(folder, script)
        self.server = server
        out, self.out = os.pipe(), None
        err = os.pipe()
        numbers = [*(other.fileno() for other in self._others), out[1], err[1]]
        server.send({"spawn": number}, numbers)
        for other in self._others:
            other.close()
        os.close(out[1])
        os.close(err[1])
        self.out, self.err = open(out[0]), open(err[0])
        spawned = server.receive()
        assert spawned["spawned"] == number, spawned
        self.pid: int = spawned["pid"]
        self.pidfd: int = spawned["pidfd"]

    def exit(self) -> dict[str, int]:
        return self.server.exit_of(self.pid)

    def close(self) -> None:
        super().close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.out.close()
            self.err.close()
            self.pidfd = -1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    with ForkServer(tmp_path) as started:
        yield started


def test_workers_one_after_the_other(server: ForkServer) -> None:
    ready = server.begin()
    assert ready == {"ready": True, "preloaded": [], "python": sys.version.split()[0]}
    for number in range(1, 4):
        worker = server.spawn(number)
        assert worker.start()["kind"] == "sync"
        assert worker.post("x").json() == "x"
        assert not select.select([worker.pidfd], [], [], 0)[0]
        worker.hang_up()
        assert worker.exit() == {"code": 0}
        assert select.select([worker.pidfd], [], [], PATIENCE)[0]


def test_workers_side_by_side(server: ForkServer) -> None:
    server.begin()
    script = "import os, random\ndef init():\n    pass\ndef run(data):\n    return [os.getpid(), os.getpgid(0), random.random()]\n"
    workers = [server.spawn(number, script) for number in range(4)]
    seen = set()
    for worker in workers:
        worker.start()
        pid, group, number = worker.post().json()
        assert (pid, group) == (worker.pid, worker.pid)
        seen.add(number)
    assert len(seen) == 4
    for worker in workers:
        worker.hang_up()
    assert [worker.exit() for worker in workers] == [{"code": 0}] * 4


def test_output(server: ForkServer) -> None:
    server.begin()
    script = "import os, sys\ndef init():\n    pass\ndef run(data):\n    os.write(1, b'out\\n')\n    os.write(2, b'err\\n')\n    return sys.stdin.read()\n"
    worker = server.spawn(1, script)
    worker.start()
    assert worker.post().json() == ""
    assert (worker.out.readline(), worker.err.readline()) == ("out\n", "err\n")
    worker.hang_up()
    # Nobody else holds the other ends.
    assert (worker.out.read(), worker.err.read()) == ("", "")


STATE = """
import os, signal, sys
def init():
    pass
def run(data):
    handlers = {int(number): str(signal.getsignal(number)) for number in sorted(signal.valid_signals())}
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    # The list itself is no longer open.
    kinds = sorted(os.readlink(link).split(":")[0] for link in links if os.path.lexists(link))
    status = [line for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
    flags = [sys.stdout.line_buffering, sys.stdout.encoding, sys.stderr.encoding, sys.argv]
    variables = sorted(name for name in os.environ if "OUTRIGGER" in name)
    return [handlers, kinds, status, flags, variables, sys.gettrace()]
"""


def test_a_forked_worker_is_as_a_fresh_one(server: ForkServer, tmp_path: Path) -> None:
    # As under `nohup`: neither kind of worker may go on with it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fresh = Worker(tmp_path, STATE)
    finally:
        signal.signal(signal.SIGHUP, before)
    with fresh:
        fresh.start()
        expected = fresh.post().json()
    server.begin()
    first = server.spawn(1, STATE)
    first.start()
    second = server.spawn(2, STATE)
    second.start()
    for worker in (first, second):
        found = worker.post().json()
        for part, wanted in zip(found, expected, strict=True):
            assert part == wanted


def test_ends_of_workers(server: ForkServer) -> None:
    server.begin()
    script = "import os\ndef init():\n    pass\ndef run(data):\n    os._exit(int(data))\n"
    one, two = server.spawn(1, script), server.spawn(2, script)
    for worker in (one, two):
        worker.start()
    one.send_call(1, call_payload(POST, body=b"7"))
    assert one.exit() == {"code": 7}
    signal.pidfd_send_signal(two.pidfd, signal.SIGKILL)
    assert two.exit() == {"signal": signal.SIGKILL}


def test_sigterm_dumps_the_stack(server: ForkServer) -> None:
    server.begin()
    worker = server.spawn(
        1, "def init():\n    pass\ndef run(data):\n    print('in run')\n    sum(range(10**12))\n"
    )
    worker.start()
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    signal.pidfd_send_signal(worker.pidfd, signal.SIGTERM)
    assert worker.exit() == {"signal": signal.SIGTERM}
    assert "in run\n" in worker.err.read()


def test_what_a_worker_leaves_behind_is_killed(server: ForkServer) -> None:
    server.begin()
    script = """
import os, subprocess, time
def init():
    pass
def run(data):
    read, write = os.pipe()
    if os.fork() == 0:
        # A grandchild of nobody's: its parent ends at once.
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(10**6)
        os._exit(0)
    return int(os.read(read, 100))
"""
    worker = server.spawn(1, script)
    worker.start()
    left = worker.post().json()
    handle = os.pidfd_open(left)
    worker.hang_up()
    assert worker.exit() == {"code": 0}
    assert select.select([handle], [], [], PATIENCE)[0]
    os.close(handle)
    # No zombie is left of it.
    second = server.spawn(2)
    second.start()
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    while children.read_text().split() != [str(second.pid)]:
        os.sched_yield()


def test_workers_end_with_the_fork_server(server: ForkServer) -> None:
    server.begin()
    worker = server.spawn()
    worker.start()
    server.process.kill()
    assert select.select([worker.pidfd], [], [], PATIENCE)[0]


def test_the_runtime_closes_the_socket(server: ForkServer) -> None:
    """Workers that end by themselves are waited for, others are killed."""
    server.begin()
    script = "def init():\n    pass\ndef run(data):\n    print('in run')\n    sum(range(10**12))\n"
    idle, busy = server.spawn(1), server.spawn(2, script)
    idle.start(), busy.start()
    busy.send_call(1, call_payload(POST))
    assert busy.printed() == "in run\n"
    idle.hang_up()
    assert server.end() == 0
    for worker in (idle, busy):
        assert select.select([worker.pidfd], [], [], 0)[0]


def test_closed_before_anything(server: ForkServer) -> None:
    assert server.end() == 0


def test_closed_without_workers(server: ForkServer) -> None:
    server.begin()
    assert server.end() == 0


def test_preload(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "heavy.py").write_text("import os\nMADE_BY = os.getpid()\n")
    assert server.begin(["heavy", "colorsys"], [str(tmp_path / "modules")])["preloaded"] == [
        "heavy",
        "colorsys",
    ]
    worker = server.spawn(
        1, "import heavy\ndef init():\n    pass\ndef run(data):\n    return heavy.MADE_BY\n"
    )
    worker.start()
    assert worker.post().json() == server.process.pid


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemExit(1)", "raise ValueError('\\x01é' * 100_000)"])
def test_preload_that_fails(server: ForkServer, tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    failed = server.begin(["broken"], [str(tmp_path)])["failed"]
    assert failed["module"] == "broken"
    assert failed["message"].startswith(("ZeroDivisionError", "SystemExit: 1", "ValueError"))
    assert failed["traceback"]
    assert server.process.wait(timeout=PATIENCE) == 3


def test_preload_that_starts_a_thread(server: ForkServer, tmp_path: Path) -> None:
    text = "import threading\ngate = threading.Event()\nthreading.Thread(target=gate.wait, daemon=True).start()\n"
    (tmp_path / "threads.py").write_text(text)
    server.begin(["threads"], [str(tmp_path)])
    with open(os.devnull, "w") as nothing, socket.socket() as one, socket.socket() as two:
        for number in (1, 2):
            server.send({"spawn": number}, [one.fileno(), two.fileno(), nothing.fileno(), nothing.fileno()])
            refused = server.receive()
            assert refused["refused"] == number
            assert "a preloaded module has started threads" in refused["message"]


NUMPY = """
import os, numpy
def init():
    pass
def run(data):
    if data == "product":
        a = numpy.ones((2000, 2000), numpy.float32)
        return float((a @ a)[0, 0]), len(os.listdir("/proc/self/task"))
    return float(numpy.random.random())
"""


def test_numpy_can_be_preloaded(server: ForkServer) -> None:
    """OpenBLAS starts threads when it is imported, ends them before a fork, and in a worker starts new ones."""
    server.begin(["numpy", "numpy.random"])
    first, second = server.spawn(1, NUMPY), server.spawn(2, NUMPY)
    first.start(), second.start()
    assert first.post().json() != second.post().json()
    fresh_threads = len(os.sched_getaffinity(0))
    for number, worker in enumerate((first, second), 2):
        product, threads = worker.post("product", number).json()
        assert product == 2000.0
        assert threads == fresh_threads


@pytest.mark.parametrize(
    "message", [b"no json", b"[]", b'{"spawn": 1}', b'{"spawn": "x"}', b"{}", b"\xff"], ids=repr
)
def test_what_makes_no_sense_ends_the_fork_server(server: ForkServer, message: bytes) -> None:
    server.begin()
    server.send(message)
    assert server.process.wait(timeout=PATIENCE) == 1
    assert "the fork-server ends: " in server.process.stderr.read()


@pytest.mark.parametrize("message", [b"no json", b"{}", b'{"preload": "x", "path": []}', b'{"preload": [1]}'])
def test_a_first_message_that_makes_no_sense(server: ForkServer, message: bytes) -> None:
    server.send(message)
    assert server.process.wait(timeout=PATIENCE) == 1


@pytest.mark.parametrize("descriptor", [None, "", "x", "999"])
def test_without_a_socket(descriptor: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OUTRIGGER_FORKSERVER_FD"}
    environment |= {"PYTHONPATH": str(ENTRY_SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    if descriptor is not None:
        environment["OUTRIGGER_FORKSERVER_FD"] = descriptor
    command = [sys.executable, "-m", "outrigger_worker.forkserver"]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 2


def test_regions_work_in_forked_workers(server: ForkServer) -> None:
    server.begin()
    worker = server.spawn()
    worker.start(region_threshold=1000)
    answer = worker.post("x" * 5000)
    assert (answer.outcome, answer.region, answer.json()) == (RETURNED, 1, "x" * 5000)


def test_descriptors_are_not_leaked(server: ForkServer) -> None:
    server.begin()
    folder = Path(f"/proc/{server.process.pid}/fd")
    counts = []
    for number in range(10):
        worker = server.spawn(number)
        worker.start()
        worker.hang_up()
        assert worker.exit() == {"code": 0}
        counts.append(len(list(folder.iterdir())))
    assert len(set(counts)) == 1
