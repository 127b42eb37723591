"""A runtime for tests: starts a real worker over a real socket pair and speaks its half of PROTOCOL.md."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ENTRY_SCRIPTS = Path(__file__).resolve().parent.parent

START, CALL, TENSORS, MODEL_INFO, MODEL_ERROR = 1, 2, 3, 4, 5
READY, FAILED, REPLY, INFER, MODEL = 16, 17, 18, 19, 20
GET, POST = 0, 1
RETURNED, RAISED, INPUT_REFUSED, NOT_SERIALISABLE = 0, 1, 2, 3

#: Seconds until a test fails that waits for a worker. Nothing waits this long when all is well.
PATIENCE = 60

# Written out here too: a mistake in the worker's own structs must not cancel out.
HEADER = struct.Struct("<IBBHQ")


class Frame(NamedTuple):
    """One frame from the worker."""

    kind: int
    number: int
    payload: bytes

    def json(self) -> Any:
        return json.loads(self.payload)


class Answer(NamedTuple):
    """What a REPLY says."""

    number: int
    outcome: int
    message: str
    nanoseconds: int
    rest: bytes

    def json(self) -> Any:
        return json.loads(self.rest)


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, 0, 0, number) + payload


def call_payload(
    method: int, body: bytes = b"", query: bytes = b"", headers: list[tuple[str, str]] | None = None
) -> bytes:
    request_id = b"some-request-id"
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers or []]
    block = b"".join(struct.pack("<HH", len(name), len(value)) + name + value for name, value in pairs)
    head = struct.pack("<BBHIII", method, 0, len(request_id), len(query), len(block), 0)
    return head + request_id + query + block + body


def parse_reply(received: Frame) -> Answer:
    assert received.kind == REPLY, received
    outcome, zero, zeros, size, nanoseconds = struct.unpack_from("<BBHIQ", received.payload)
    assert (zero, zeros) == (0, 0)
    message = received.payload[16 : 16 + size].decode()
    return Answer(received.number, outcome, message, nanoseconds, received.payload[16 + size :])


class Worker:
    """A worker process with `script` as its entry script, `folder`/score.py. Ends with the `with` block."""

    def __init__(self, folder: str | Path, script: str | None = None, **environment: str) -> None:
        self.folder = Path(folder)
        if script is not None:
            (self.folder / "score.py").write_text(script)
        self.sock, other = socket.socketpair()
        self.sock.settimeout(PATIENCE)
        # As a runtime with an event loop hands it down.
        other.setblocking(False)
        known = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
        known |= {
            "PYTHONPATH": str(ENTRY_SCRIPTS),
            "OUTRIGGER_WORKER_FD": str(other.fileno()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AML_APP_ROOT": str(folder),
        }
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outrigger_worker"],
                pass_fds=[other.fileno()],
                env=known | environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        # Ends what waits for output that never comes.
        self._watchdog = threading.Timer(2 * PATIENCE, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        self.sock.close()
        if kind is not None:
            self.process.kill()
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print(out, err, sep="\n")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> Frame:
        length, kind, zero, zeros, number = HEADER.unpack(self._exactly(16))
        assert (zero, zeros) == (0, 0)
        return Frame(kind, number, self._exactly(length))

    def begin(self, entry_script: str | None = "score.py", **fields: Any) -> None:
        """Sends START."""
        defaults = {"app_root": str(self.folder), "source_directory": None, "args": [], "strict": True}
        start = defaults | {"entry_script": entry_script} | fields
        self.send(frame(START, 0, json.dumps(start).encode()))

    def start(self, **fields: Any) -> dict[str, Any]:
        """Sends START and gives what READY says."""
        self.begin(**fields)
        ready = self.receive()
        assert (ready.kind, ready.number) == (READY, 0), ready
        return ready.json()

    def fail(self, **fields: Any) -> dict[str, Any]:
        """Sends START and gives what FAILED says, after the worker has ended with code 3."""
        self.begin(**fields)
        failed = self.receive()
        assert (failed.kind, failed.number) == (FAILED, 0), failed
        assert self.wait() == 3
        return failed.json()

    def send_call(self, number: int, payload: bytes) -> None:
        self.send(frame(CALL, number, payload))

    def post(
        self, body: str | bytes = b"", number: int = 1, headers: list[tuple[str, str]] | None = None
    ) -> Answer:
        body = body.encode() if isinstance(body, str) else body
        self.send_call(number, call_payload(POST, body=body, headers=headers))
        return self._reply(number)

    def get(self, query: str = "", number: int = 1) -> Answer:
        self.send_call(number, call_payload(GET, query=query.encode("latin-1")))
        return self._reply(number)

    def hang_up(self) -> None:
        """Closes the runtime's end of the socket."""
        self.sock.close()

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=PATIENCE)

    def _reply(self, number: int) -> Answer:
        answer = parse_reply(self.receive())
        assert answer.number == number
        return answer

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            received = self.sock.recv_into(view)
            if not received:
                raise EOFError(f"the worker closed the socket; {self.process.communicate(timeout=PATIENCE)}")
            view = view[received:]
        return bytes(data)
