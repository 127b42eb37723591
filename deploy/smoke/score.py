"""A user's script that tells what it sees of its container: `cargo xtask image smoke` asks it."""

import json
import os
import tempfile
import time
from typing import Any

import onnxruntime

from outrigger import model


def init() -> None:
    global double
    double = model("double")
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
    print("init was here", flush=True)


def run(data: str) -> Any:
    request = json.loads(data)
    return {"facts": facts, "double": doubled, "sleep": sleep}[request["do"]](request)


def doubled(request: dict[str, Any]) -> list[float]:
    return double.predict(x=request["x"]).tolist()


def sleep(request: dict[str, Any]) -> str:
    time.sleep(request["seconds"])
    return "slept"


def facts(_: dict[str, Any]) -> dict[str, Any]:
    shm = os.statvfs("/dev/shm")
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "directory": os.getcwd(),
        "capabilities": int(status["CapEff"], 16),
        "no_new_privileges": status["NoNewPrivs"] == "1",
        "keys": sorted(name for name in os.environ if name.startswith("OUTRIGGER_AUTH")),
        "shm_bytes": shm.f_frsize * shm.f_blocks,
        "writable": [place for place in ("/", "/opt/outrigger", "/dev/shm", "/tmp") if is_writable(place)],
    }


def is_writable(place: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError:
        return False
    return True
