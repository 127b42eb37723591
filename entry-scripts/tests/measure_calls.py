"""How much processor time a worker spends on a call: `python tests/measure_calls.py [calls]`.

Prints, for bodies of several sizes, the worker's user and system time per call in microseconds, and the time
that passes per call as the other side sees it. The script returns its input's length. Start-up is taken off.
"""

import os
import resource
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import POST, Worker, call_payload

SCRIPT = """
def init():
    pass

def run(data):
    return {"size": len(data)}
"""


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'body':>10} {'calls':>8} {'user us':>9} {'system us':>10} {'wall us':>9}")
        for size in (16, 1024, 64 * 1024, 1024 * 1024, 16 * 1024 * 1024):
            turns = max(20, min(calls, calls * 16 * 1024 // size))
            idle, (user, system, wall) = measure(folder, size, 0), measure(folder, size, turns)
            user, system = user - idle[0], system - idle[1]
            per_call = [1e6 * seconds / turns for seconds in (user, system, wall)]
            print(f"{size:>10} {turns:>8} {per_call[0]:>9.2f} {per_call[1]:>10.2f} {per_call[2]:>9.2f}")


def measure(folder: str, size: int, turns: int) -> tuple[float, float, float]:
    """User and system seconds of a worker that serves `turns` calls, and the seconds that the calls took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Worker(folder, SCRIPT) as worker:
        worker.start()
        payload = call_payload(POST, body=b"x" * size)
        began = time.perf_counter()
        for number in range(turns):
            worker.send_call(number, payload)
            worker.receive()
        wall = time.perf_counter() - began
        worker.hang_up()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, wall


if __name__ == "__main__":
    main()
