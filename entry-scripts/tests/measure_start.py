"""How long until a worker is READY: `python tests/measure_start.py [times]`, with a script that does nothing.

Fresh processes (`python -m outrigger_worker`) and forked ones take turns. Prints milliseconds from the start,
or from the spawn message, to READY: the least, the median, the most; for sync and async scripts.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import Worker
from test_forkserver import ForkServer

SCRIPTS = {kind: f"def init():\n    pass\n\n{word} run(data):\n    return data\n" for kind, word in
           (("sync", "def"), ("async", "async def"))}  # fmt: skip


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    print(f"{'script':>8} {'worker':>8} {'least':>8} {'median':>8} {'most':>8}")
    for kind, script in SCRIPTS.items():
        times: dict[str, list[float]] = {"fresh": [], "forked": []}
        with tempfile.TemporaryDirectory() as folder, ForkServer(Path(folder)) as server:
            server.begin()
            for turn in range(turns):
                began = time.perf_counter()
                with Worker(folder, script) as worker:
                    worker.start()
                    times["fresh"].append(time.perf_counter() - began)
                began = time.perf_counter()
                forked = server.spawn(turn, script)
                forked.start()
                times["forked"].append(time.perf_counter() - began)
                forked.hang_up()
                forked.exit()
        for name, taken in times.items():
            figures = [1e3 * seconds for seconds in (min(taken), statistics.median(taken), max(taken))]
            print(f"{kind:>8} {name:>8} " + " ".join(f"{figure:>8.1f}" for figure in figures))


if __name__ == "__main__":
    main()
