"""A user's script that says what it sees of its container and what it is refused, to `cargo xtask image smoke`."""

import json
import os
import signal
import socket
import tempfile
import time
from typing import Any, Callable

import onnxruntime

from outrigger import model

STATE = "/tmp/outrigger"
PLACES = ("/", "/opt/outrigger", "/var/azureml-app", "/home/outrigger", "/tmp", STATE, "/dev/shm")


def init() -> None:
    global double
    print("init was here", flush=True)
    match os.environ.get("SMOKE_INIT"):
        case "waits":
            signal.pause()
        case "fails":
            raise RuntimeError("no such weights")
        case "models":
            double = model("double")
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()


def run(data: str) -> Any:
    request = json.loads(data)
    return {"facts": facts, "double": doubled, "open": opened, "sleep": sleep}[request["do"]](request)


def doubled(request: dict[str, Any]) -> list[float]:
    return double.predict(x=request["x"]).tolist()


def opened(request: dict[str, Any]) -> int:
    with open(request["path"], "rb") as file:
        return len(file.read())


def sleep(request: dict[str, Any]) -> str:
    time.sleep(request["seconds"])
    return "slept"


def facts(_: dict[str, Any]) -> dict[str, Any]:
    shm = os.statvfs("/dev/shm")
    status = status_of(os.getpid())
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "directory": os.getcwd(),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": status["NoNewPrivs"] == "1",
        "environment": dict(os.environ),
        "shm_bytes": shm.f_frsize * shm.f_blocks,
        "writable": [place for place in PLACES if is_writable(place)],
        "scratch": is_writable(tempfile.gettempdir()),
        "attempts": {name: outcome(attempt) for name, attempt in ATTEMPTS.items()},
    }


def status_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def is_writable(place: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError:
        return False
    return True


def outcome(attempt: Callable[[], Any]) -> str:
    try:
        return f"done: {attempt()!r}"
    except OSError as error:
        return type(error).__name__


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def replica() -> int:
    """The process below process 1: a worker's parent is the replica, or a fork-server of the replica's."""
    pid = os.getpid()
    while (parent := int(status_of(pid)["PPid"])) != 1:
        pid = parent
    assert pid != os.getpid()
    return pid


def management() -> bytes:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"{STATE}/admin.sock")
        peer.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = peer.recv(1000)
    if not answer:
        raise ConnectionResetError("closed without an answer")
    return answer


#: What code in a script might try first.
ATTEMPTS: dict[str, Callable[[], Any]] = {
    "state directory": lambda: os.listdir(STATE),
    "environment of process 1": lambda: read("/proc/1/environ"),
    "environment of the replica": lambda: read(f"/proc/{replica()}/environ"),
    "memory of the replica": lambda: open(f"/proc/{replica()}/mem", "rb").close(),
    "signal to process 1": lambda: os.kill(1, 0),
    "signal to the replica": lambda: os.kill(replica(), 0),
    "metrics": lambda: socket.create_connection(("127.0.0.1", 5002), timeout=5).close(),
    "management": management,
}
