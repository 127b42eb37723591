"""How much processor time a worker spends on a call: `python tests/measure_calls.py [calls]`.

Prints, for bodies of several sizes, the worker's user and system time per call in microseconds, and the time
that passes per call as the other side sees it, for sync and async scripts, with bodies in the socket and in
regions. The script returns its input's length. Start-up is taken off.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import CALL, POST, Worker, call_payload

SCRIPT = """
def init():
    pass

def run(data):
    return {"size": len(data)}
"""
SCRIPTS = {"sync": SCRIPT, "async": SCRIPT.replace("def run", "async def run")}
KIB = 1024
SIZES = (16, KIB, 64 * KIB, KIB * KIB, 16 * KIB * KIB)


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'script':>8} {'through':>8} {'body':>10} {'calls':>8} {'user us':>9} {'system us':>10} {'wall us':>9}"
        )
        for kind, script in SCRIPTS.items():
            for through in ("socket", "region"):
                idle = measure(folder, script, through, SIZES[0], 0)
                for size in SIZES:
                    turns = max(20, min(calls, calls * 16 * KIB // size))
                    user, system, wall = measure(folder, script, through, size, turns)
                    times = [user - idle[0], system - idle[1], wall]
                    row = f"{kind:>8} {through:>8} {size:>10} {turns:>8}"
                    print(row + "".join(f" {1e6 * seconds / turns:>9.2f}" for seconds in times))


def measure(folder: str, script: str, through: str, size: int, turns: int) -> tuple[float, float, float]:
    """User and system seconds of a worker that serves `turns` calls, and the seconds that the calls took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Worker(folder, script) as worker:
        worker.start()
        payload = call_payload(POST, body=b"x" * size if through == "socket" else b"")
        if through == "region":
            worker.share(1, size).write(b"x" * size)
        began = time.perf_counter()
        for number in range(turns):
            if through == "socket":
                worker.send_call(number, payload)
            else:
                worker.send_tailed(CALL, number, payload, 1, size)
            worker.receive()
        wall = time.perf_counter() - began
        worker.hang_up()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, wall


if __name__ == "__main__":
    main()
