"""Threads, calls, forks and shared memory all at once: whatever is held stays what it was."""

import threading


from blocks import decode_infer, encode_block
from conftest import Launch
from harness import (
    CALL,
    FORGET,
    INFER,
    LEAVE,
    LOG,
    MODEL,
    POST,
    READY,
    RELEASE,
    REPLY,
    RETURNED,
    TENSORS,
    Frame,
    Region,
    Worker,
    call_payload,
    frame,
    parse_reply,
)
from test_handle import USES_DOUBLE, answer_model, until

CALLS = 300
SIZE = 64 * 1024

SCRIPT = USES_DOUBLE + """
import numpy, os, random
from outrigger import ctx
problems, stop = [], threading.Event()
class Kept:
    def __init__(self, result):
        self.view, self.copy = result, result.copy()
    def check(self):
        if not numpy.array_equal(self.view, self.copy):
            problems.append(f"changed from {self.copy[0]} to {self.view[0]}")
def predict(value):
    kept = Kept(double.predict(numpy.full((1000, 2), value)))
    if kept.copy[0, 0] != 2 * value:
        problems.append(f"{value} gave {kept.copy[0]}")
    return kept
def work(seed):
    choice, held = random.Random(seed), []
    try:
        while not stop.is_set():
            held.append(predict(choice.randrange(1000)))
            for kept in held:
                kept.check()
            while held and choice.random() < 0.5:
                held.pop(choice.randrange(len(held)))
            del held[20:]
    except Exception as error:
        problems.append(repr(error))
KIND run(data):
    number = int(data[:9])
    if number == 1:
        for seed in range(3):
            threads.append(threading.Thread(target=work, args=(seed,)))
            threads[-1].start()
    if number == LAST:
        stop.set()
        for thread in threads:
            thread.join()
        return problems
    kept = predict(number)
    if number % 50 == 0:
        child = os.fork()
        if child == 0:
            for _ in range(200):
                kept.check()
            os._exit(len(problems) > 0)
        children.append(child)
    ctx.cancelled
    kept.check()
    if number % 50 == 25:
        for child in children:
            if os.waitpid(child, 0)[1]:
                problems.append("a child has seen a change")
        children.clear()
    return data
threads, children = [], []
"""


class Runtime:
    """Answers through regions that it writes to again as soon as it may, and fills with rubbish before."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.lock = threading.Lock()
        self.free: list[Region] = []
        self.living: dict[int, Region] = {}
        self.made = 0
        self.bodies: dict[int, int] = {}

    def handle(self, got: Frame) -> Frame | None:
        """Deals with a frame; gives it back when it is a REPLY."""
        if got.region is not None:
            self.worker.release(got.region)
        if got.kind == RELEASE and got.number in self.living:
            region = self.living[got.number]
            region.write(b"\xee" * SIZE)
            self.free.append(region)
        elif got.kind == LEAVE:
            for number, region in self.living.items():
                self.worker.send(frame(FORGET, number))
                region.close()
            self.living, self.free = {}, []
        elif got.kind == FORGET:
            self.worker.take_in(got.number)
            del self.worker.seen[got.number]
        elif got.kind == INFER:
            block = encode_block({"y": decode_infer(got.payload)[1]["x"] * 2})
            region = self.take()
            region.write(block[64:])
            self.worker.send_tailed(TENSORS, got.number, block[:64], region.number, len(block) - 64)
        elif got.kind == MODEL:
            answer_model(self.worker, got)
        elif got.kind == REPLY:
            return got
        else:
            assert got.kind in (RELEASE, LOG), got
        return None

    def call(self, number: int) -> None:
        body = (b"%09d" % number).ljust(5000, b"x")
        region = self.take()
        region.write(body)
        self.worker.send_tailed(CALL, number, call_payload(POST), region.number, len(body))

    def take(self) -> Region:
        if self.free:
            return self.free.pop(0)
        self.made += 1
        # The test lets go of them, not the worker's harness.
        region = self.living[self.made] = self.worker.share(self.made, SIZE)
        del self.worker._own[self.made]
        return region


def run(launch: Launch, kind: str, concurrency: int) -> None:
    script = SCRIPT.replace("KIND", kind).replace("LAST", str(CALLS))
    worker = launch(script)
    worker.begin(region_threshold=4000, regions=3, concurrency=concurrency)
    until(worker, READY)
    runtime = Runtime(worker)
    sent = done = 0
    last = None
    while done < CALLS:
        # Some ahead, but the last call alone.
        while sent < min(done + 3, CALLS - 1) or (sent == done == CALLS - 1):
            sent += 1
            runtime.call(sent)
        last = runtime.handle(worker.receive_any())
        if last is not None:
            answer = parse_reply(last)
            assert answer.outcome == RETURNED, answer
            done += 1
    assert last is not None and parse_reply(last).json() == []
    for region in runtime.living.values():
        region.close()


def test_a_sync_script(launch: Launch) -> None:
    run(launch, "def", 1)


def test_an_async_script(launch: Launch) -> None:
    run(launch, "async def", 4)
