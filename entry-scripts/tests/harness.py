"""A runtime for tests: starts a real worker over real sockets and speaks its half of PROTOCOL.md."""

import fcntl
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ENTRY_SCRIPTS = Path(__file__).resolve().parent.parent

START, CALL, TENSORS, MODEL_INFO, MODEL_ERROR, CANCEL, CREDIT, RELEASE, FORGET = range(1, 10)
READY, FAILED, REPLY, INFER, MODEL, PHASE, LOG, CHUNK, END, LEAVE, CANCELLING = range(16, 27)
GET, POST, OPTIONS, HEAD = 0, 1, 2, 3
RETURNED, RAISED, INPUT_REFUSED, NOT_SERIALISABLE, WHOLE_ANSWER, STREAM_BEGINS, CANCELLED = range(7)
GONE, OUT_OF_TIME = 1, 2
TAIL = 1
MORE = 1

#: Seconds until a test fails that waits for a worker. Nothing waits this long when all is well.
PATIENCE = 60

# Written out here too: a mistake in the worker's own structs must not cancel out.
HEADER = struct.Struct("<IBBHQ")
REFERENCE = struct.Struct("<IIQQ")
REGION = struct.Struct("<IIQ")
CALL_HEAD = struct.Struct("<BBHIIIQ")
REPLY_META = struct.Struct("<BBHIQ")

#: What START says when a test does not say otherwise. Regions are off.
DEFAULTS: dict[str, Any] = {
    "entry_script": "score.py",
    "source_directory": None,
    "args": [],
    "compat": False,
    "max_payload": 1 << 30,
    "window": 64 * 1024,
    "region_threshold": 0,
    "regions": 8,
    "concurrency": 1,
    "max_batch": 1,
}

#: Seals of every region, and the one more of the runtime's.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
FUTURE_WRITE = 0x10


class Frame(NamedTuple):
    """One frame from the worker. `region` is that which its tail lay in, if any."""

    kind: int
    number: int
    payload: bytes
    region: int | None = None

    def json(self) -> Any:
        return json.loads(self.payload)


class Answer(NamedTuple):
    """What a REPLY or an END says."""

    number: int
    outcome: int
    message: str
    nanoseconds: int
    rest: bytes
    flags: int
    status: int
    region: int | None

    def json(self) -> Any:
        return json.loads(self.rest)


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), kind, 0, 0, number) + payload


def call_payload(
    method: int,
    body: bytes = b"",
    query: bytes = b"",
    headers: list[tuple[str, str]] | None = None,
    *,
    flags: int = 0,
    limit: int = 0,
    request_id: bytes = b"some-request-id",
) -> bytes:
    """`limit` is in nanoseconds."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers or []]
    block = b"".join(struct.pack("<HH", len(name), len(value)) + name + value for name, value in pairs)
    head = CALL_HEAD.pack(method, flags, len(request_id), len(query), len(block), 0, limit)
    return head + request_id + query + block + body


def parse_reply(received: Frame, kind: int = REPLY) -> Answer:
    assert received.kind == kind, received
    outcome, flags, status, size, nanoseconds = REPLY_META.unpack_from(received.payload)
    message = received.payload[16 : 16 + size].decode("utf-8", "surrogateescape")
    rest = received.payload[16 + size :]
    return Answer(received.number, outcome, message, nanoseconds, rest, flags, status, received.region)


class Region:
    """A region of the test's, as the runtime's are: nobody else can map it for writing."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, size)
        self.mapping = mmap.mmap(self.descriptor, size)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS | FUTURE_WRITE)

    def write(self, data: bytes, offset: int = 0) -> None:
        self.mapping[offset : offset + len(data)] = data

    def close(self) -> None:
        self.mapping.close()
        os.close(self.descriptor)


class Exchange:
    """The runtime's ends of the sockets of a worker that works in `folder`."""

    def __init__(self, folder: str | Path, script: str | None = None) -> None:
        self.folder = Path(folder)
        if script is not None:
            (self.folder / "score.py").write_text(script)
        self.sock, stream = socket.socketpair()
        self.regions, regions = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._others = (stream, regions)
        self.sock.settimeout(PATIENCE)
        self.regions.settimeout(PATIENCE)
        # As a runtime with an event loop hands them down.
        for other in self._others:
            other.setblocking(False)
        #: The worker's living regions, mapped, and how often each has been announced.
        self.seen: dict[int, mmap.mmap] = {}
        #: What the worker says about regions, in order: (RELEASE or FORGET or LEAVE, number).
        self.notes: list[tuple[int, int]] = []
        #: Calls whose CANCELLING has come.
        self.cancelling: list[int] = []
        #: PHASE and LOG frames, in order.
        self.phases: list[str] = []
        self.logs: list[tuple[int, int, int, str, str]] = []
        # Lines of stdout that `printed` has not given, and frames that came before them.
        self._lines: list[str] = []
        self._kept: list[Frame] = []
        self._own: dict[int, Region] = {}

    def close(self) -> None:
        """Closes the sockets and lets go of the regions."""
        self.sock.close()
        self.regions.close()
        for region in self._own.values():
            region.close()
        self._own.clear()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> Frame:
        """The next frame, but for those that are noted down: PHASE, LOG, CANCELLING, RELEASE, FORGET, LEAVE."""
        while True:
            received = self._kept.pop(0) if self._kept else self.receive_any()
            if received.kind == PHASE:
                self.phases.append(received.payload.decode())
            elif received.kind == LOG:
                self._note_log(received)
            elif received.kind == CANCELLING:
                self.cancelling.append(received.number)
            elif received.kind in (RELEASE, FORGET, LEAVE):
                assert received.payload == b""
                self.notes.append((received.kind, received.number))
                if received.kind == FORGET:
                    self.take_in(received.number)
                    del self.seen[received.number]
            else:
                return received

    def printed(self) -> str:
        """The next line that the script has printed, with its end."""
        while not self._lines:
            received = self.receive_any()
            if received.kind == LOG:
                self._note_log(received)
            else:
                self._kept.append(received)
        return self._lines.pop(0) + "\n"

    def _note_log(self, received: Frame) -> None:
        level, source, size, _ = struct.unpack_from("<BBHI", received.payload)
        name, text = received.payload[8 : 8 + size].decode(), received.payload[8 + size :].decode()
        self.logs.append((received.number, level, source, name, text))
        if source == 1:
            self._lines.append(text)

    def receive_any(self) -> Frame:
        """The next frame. Its tail is copied out of its region, which is not released."""
        length, kind, flags, zeros, number = HEADER.unpack(self._exactly(16))
        assert zeros == 0
        data = self._exactly(length)
        if not flags:
            return Frame(kind, number, data)
        assert flags == TAIL
        region, zeros, offset, size = REFERENCE.unpack_from(data)
        assert zeros == 0
        tail = self.take_in(region)[offset : offset + size]
        assert len(tail) == size
        return Frame(kind, number, data[REFERENCE.size :] + tail, region)

    def receive_note(self, kind: int, number: int) -> None:
        """Waits until the worker says this about a region. Nothing else may come but notes and logs."""
        while (kind, number) not in self.notes:
            received = self.receive_any()
            assert received.kind in (RELEASE, FORGET, LEAVE, LOG), received
            self.notes.append((received.kind, received.number))
        self.notes.remove((kind, number))

    def begin(self, entry_script: str | None = "score.py", **fields: Any) -> None:
        """Sends START."""
        start = DEFAULTS | {"app_root": str(self.folder), "entry_script": entry_script} | fields
        self.send(frame(START, 0, json.dumps(start).encode()))

    def start(self, **fields: Any) -> dict[str, Any]:
        """Sends START and gives what READY says."""
        self.begin(**fields)
        ready = self.receive()
        assert (ready.kind, ready.number) == (READY, 0), ready
        return ready.json()

    def share(self, number: int, size: int) -> Region:
        """Makes a region and announces it."""
        region = self._own[number] = Region(number, size)
        socket.send_fds(self.regions, [REGION.pack(number, 0, size)], [region.descriptor])
        return region

    def send_tailed(
        self, kind: int, number: int, payload: bytes, region: int, size: int, offset: int = 0
    ) -> None:
        """Sends a frame whose payload ends with `size` bytes of a region."""
        data = REFERENCE.pack(region, 0, offset, size) + payload
        self.send(HEADER.pack(len(data), kind, TAIL, 0, number) + data)

    def send_call(self, number: int, payload: bytes) -> None:
        self.send(frame(CALL, number, payload))

    def send_body(self, number: int, body: bytes, region: Region) -> None:
        """Sends a POST with its body in a region."""
        region.write(body)
        self.send_tailed(CALL, number, call_payload(POST), region.number, len(body))

    def cancel(self, number: int, reason: int = GONE) -> None:
        self.send(frame(CANCEL, number, bytes([reason])))

    def credit(self, number: int, amount: int) -> None:
        self.send(frame(CREDIT, number, struct.pack("<Q", amount)))

    def release(self, number: int) -> None:
        self.send(frame(RELEASE, number))

    def post(
        self, body: str | bytes = b"", number: int = 1, headers: list[tuple[str, str]] | None = None
    ) -> Answer:
        body = body.encode() if isinstance(body, str) else body
        self.send_call(number, call_payload(POST, body=body, headers=headers))
        return self.reply(number)

    def get(self, query: str = "", number: int = 1) -> Answer:
        self.send_call(number, call_payload(GET, query=query.encode("latin-1")))
        return self.reply(number)

    def reply(self, number: int) -> Answer:
        """The next frame, which is the REPLY to this call."""
        answer = parse_reply(self.receive())
        assert answer.number == number
        return answer

    def stream(self, number: int, credit: Callable[[int], int] | None = None) -> tuple[list[bytes], Answer]:
        """The chunks and the END of a call whose head has come; `credit` says what to give for a chunk."""
        chunks = []
        while (received := self.receive()).kind == CHUNK:
            assert received.number == number
            chunks.append(received.payload)
            if received.region is not None:
                self.release(received.region)
            if credit is not None:
                self.credit(number, credit(len(received.payload)))
        assert received.number == number
        return chunks, parse_reply(received, END)

    def is_silent(self) -> bool:
        """Whether nothing of the worker's waits to be received."""
        return not select.select([self.sock], [], [], 0)[0]

    def hang_up(self) -> None:
        """Closes the runtime's ends of the sockets."""
        self.sock.close()
        self.regions.close()

    def take_in(self, wanted: int) -> mmap.mmap:
        """The mapping of a region of the worker's, as the runtime gets it: messages up to the one for it."""
        self.regions.setblocking(False)
        while wanted not in self.seen:
            message, descriptors, _, _ = socket.recv_fds(self.regions, 64, 4)
            number, zeros, size = REGION.unpack(message)
            (descriptor,) = descriptors
            try:
                assert number not in self.seen and zeros == 0
                assert os.fstat(descriptor).st_size == size
                seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
                assert seals & SEALS == SEALS
                self.seen[number] = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        return self.seen[wanted]

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            received = self.sock.recv_into(view)
            if not received:
                raise EOFError(f"the worker closed the socket; {self._last_words()}")
            view = view[received:]
        return bytes(data)

    def _last_words(self) -> Any:
        return None


def spawn(
    module: str, folder: str | Path, sockets: dict[str, socket.socket], environment: dict[str, str]
) -> subprocess.Popen[str]:
    """Starts a module of the worker's as the runtime does; `sockets` are handed over by these variables."""
    known = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    known |= {
        "PYTHONPATH": str(ENTRY_SCRIPTS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AML_APP_ROOT": str(folder),
    }
    known |= {variable: str(sock.fileno()) for variable, sock in sockets.items()}
    return subprocess.Popen(
        [sys.executable, "-m", module],
        pass_fds=[sock.fileno() for sock in sockets.values()],
        env=known | environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Worker(Exchange):
    """A worker process with `script` as its entry script, `folder`/score.py. Ends with the `with` block."""

    def __init__(self, folder: str | Path, script: str | None = None, **environment: str) -> None:
        super().__init__(folder, script)
        sockets = {
            "OUTRIGGER_WORKER_FD": self._others[0],
            "OUTRIGGER_REGIONS_FD": self._others[1],
        }
        try:
            self.process = spawn("outrigger_worker", folder, sockets, environment)
        finally:
            for other in self._others:
                other.close()
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
        self.close()
        if kind is not None:
            self.process.kill()
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print(out, err, sep="\n")

    def fail(self, **fields: Any) -> dict[str, Any]:
        """Sends START and gives what FAILED says, after the worker has ended with code 3."""
        self.begin(**fields)
        failed = self.receive()
        assert (failed.kind, failed.number) == (FAILED, 0), failed
        assert self.wait() == 3
        return failed.json()

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=PATIENCE)

    def _last_words(self) -> Any:
        return self.process.communicate(timeout=PATIENCE)
