"""Bodies, answers and tensors in shared memory. One thing must hold: what a script holds never changes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from blocks import encode_block
from conftest import Launch
from harness import (
    CALL,
    CANCELLED,
    FORGET,
    HEADER,
    INFER,
    LEAVE,
    MODEL_INFO,
    POST,
    READY,
    REFERENCE,
    REGION,
    RELEASE,
    RETURNED,
    TAIL,
    TENSORS,
    Frame,
    Worker,
    call_payload,
    frame,
    parse_reply,
)
from test_handle import USES_DOUBLE, answer_model, until

KIB = 1024
INIT = "def init():\n    pass\n\n"
ECHO = INIT + "def run(data):\n    return data\n"


def begin(launch: Launch, script: str, threshold: int = 64 * KIB, regions: int = 4, **more: int) -> Worker:
    worker = launch(script)
    worker.begin(region_threshold=threshold, regions=regions, **more)
    until(worker, READY)
    return worker


def text(letter: str, size: int = 100 * KIB) -> str:
    return letter * size


# From the runtime to the script.


def test_a_body_in_a_region(launch: Launch) -> None:
    worker = begin(launch, INIT + "def run(data):\n    return [len(data), data[0], data[-1]]\n")
    region = worker.share(7, 256 * KIB)
    for number, letter in enumerate("abc", 1):
        worker.send_body(number, text(letter).encode(), region)
        assert worker.reply(number).json() == [100 * KIB, letter, letter]
        # The string is a copy: the region is free as soon as the call is over.
        worker.receive_note(RELEASE, 7)


def test_a_body_at_an_offset_and_an_empty_one(launch: Launch) -> None:
    worker = begin(launch, ECHO)
    region = worker.share(1, 4096)
    region.write(b"xxxhello")
    worker.send_tailed(CALL, 1, call_payload(POST), 1, 5, offset=3)
    assert worker.reply(1).json() == "hello"
    worker.send_tailed(CALL, 2, call_payload(POST), 1, 0, offset=4096)
    assert worker.reply(2).json() == ""


def test_each_reference_is_released(launch: Launch) -> None:
    """Three calls lie in one region; it is released three times, and not before all of them are over."""
    worker = begin(launch, ECHO)
    region = worker.share(1, 4096)
    region.write(b"abc")
    for number in range(3):
        worker.send_tailed(CALL, number + 1, call_payload(POST), 1, 1, offset=number)
    assert [worker.reply(number + 1).json() for number in range(3)] == ["a", "b", "c"]
    for _ in range(3):
        worker.receive_note(RELEASE, 1)
    assert worker.notes == []


def test_start_in_a_region(launch: Launch, tmp_path: Path) -> None:
    from harness import DEFAULTS, START

    worker = launch(ECHO)
    data = json.dumps(DEFAULTS | {"app_root": str(tmp_path)}).encode()
    worker.share(3, 64 * KIB).write(data)
    worker.send_tailed(START, 0, data[:10], 3, len(data) - 10, offset=10)
    assert worker.receive().kind == READY


def test_model_info_in_a_region(launch: Launch) -> None:
    from test_handle import DOUBLE

    worker = launch(USES_DOUBLE + "def run(data):\n    return double.name\n")
    worker.begin()
    asked = worker.receive()
    data = json.dumps(DOUBLE).encode()
    worker.share(3, 64 * KIB).write(data)
    worker.send_tailed(MODEL_INFO, asked.number, b"", 3, len(data))
    until(worker, READY)
    assert worker.post().json() == "double"


KEEPERS = {
    "in a global": "kept.append(result)",
    "as a slice": "kept.append(result[1:, ::2])",
    "as a memoryview": "kept.append(memoryview(result))",
    "in another type": "kept.append(result.view(numpy.int32))",
    "in a cycle": "loop = [result]; loop.append(loop); kept.append(weak(result)); gc.disable()",
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_view_that_is_kept_never_changes(launch: Launch, keeper: str) -> None:
    """The runtime overwrites every region that is released, and no other, at once."""
    script = USES_DOUBLE + f"""
import gc, numpy, weakref
kept, copies = [], []
class weak:
    def __init__(self, result):
        self.reference = weakref.ref(result)
    def tobytes(self):
        return self.reference().tobytes()
def run(data):
    if data == "check":
        return [view.tobytes() for view in kept] == copies
    result = double.predict(numpy.full((100, 2), float(data)))
    {KEEPERS[keeper]}
    copies.append(kept[-1].tobytes())
"""
    worker = begin(launch, script)
    free = []
    for number in range(1, 20):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
        answer_in_region(worker, worker.receive(), free)
        assert worker.reply(number).outcome == RETURNED
        scribble(worker, free)
    assert worker.post("check", number=99).json() is True
    assert free == [], "all results are held"


def test_views_that_are_dropped_are_released(launch: Launch) -> None:
    script = USES_DOUBLE + """
import numpy
kept = []
def run(data):
    if data == "drop":
        kept.clear()
    else:
        kept.append(double.predict(numpy.ones((100, 2))))
"""
    worker = begin(launch, script)
    free: list[int] = []
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST))
        answer_in_region(worker, worker.receive(), free)
        assert worker.reply(number).outcome == RETURNED
    assert worker.post("drop", number=4).outcome == RETURNED
    for region in (1, 2, 3):
        worker.receive_note(RELEASE, region)


def test_results_are_released_before_the_next_predict(launch: Launch) -> None:
    """A loop of predictions in one call needs no more than one region."""
    script = USES_DOUBLE + """
import numpy
def run(data):
    total = 0
    for turn in range(10):
        total += float(double.predict(numpy.full((100, 2), turn)).sum())
    return total
"""
    worker = begin(launch, script)
    free: list[int] = []
    worker.send_call(1, call_payload(POST))
    for turn in range(10):
        asked = worker.receive()
        # What lies in front of the question: the result before the last one is no longer held.
        scribble(worker, free)
        assert len(worker._own) <= 2
        answer_in_region(worker, asked, free)
    assert worker.reply(1).json() == sum(400.0 * turn for turn in range(10))


def test_a_view_in_a_background_thread(launch: Launch) -> None:
    script = USES_DOUBLE + """
import numpy
go, views, same = threading.Event(), [], []
def watch(view, before):
    while not go.is_set():
        same.append(view.tobytes() == before)
    same.append(view.tobytes() == before)
def run(data):
    if data == "check":
        go.set()
        for thread in threads:
            thread.join()
        return all(same)
    result = double.predict(numpy.full((100, 2), float(data)))
    threads.append(threading.Thread(target=watch, args=(result, result.tobytes())))
    threads[-1].start()
threads = []
"""
    worker = begin(launch, script)
    free: list[int] = []
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
        answer_in_region(worker, worker.receive(), free)
        worker.reply(number)
        scribble(worker, free)
    assert worker.post("check", number=99).json() is True


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_view_in_a_forked_child(launch: Launch, size: int) -> None:
    """The parent lets go of its view; the child, which nobody counts, does not. LEAVE comes before RELEASE."""
    script = USES_DOUBLE + f"""
import numpy, os
def run(data):
    global ends
    if data == "check":
        os.write(ends[1], b"x")
        return os.read(ends[2], 100).decode()
    if data == "other":
        return double.predict(numpy.full(({size}, 2), 9)).tolist()[0]
    result = double.predict(numpy.full(({size}, 2), 1))
    go, said = os.pipe(), os.pipe()
    if os.fork() == 0:
        before = result.tobytes()
        os.write(said[1], b"y")
        os.read(go[0], 1)
        os.write(said[1], b"same" if result.tobytes() == before else b"changed")
        os._exit(0)
    os.read(said[0], 1)
    ends = go[0], go[1], said[0]
"""
    worker = begin(launch, script)
    free: list[int] = []
    worker.send_call(1, call_payload(POST))
    answer_in_region(worker, worker.receive(), free)
    assert worker.reply(1).outcome == RETURNED
    worker.receive_note(LEAVE, 0)
    # As the runtime does: no region of before is written to again.
    for number in list(worker._own):
        worker.send(frame(FORGET, number))
        worker._own.pop(number).close()
    worker.send_call(2, call_payload(POST, body=b"other"))
    answer_in_region(worker, worker.receive(), free)
    assert worker.reply(2).json() == [18.0, 18.0]
    assert worker.post("check", number=3).json() == "same"


def test_leave_comes_before_the_release_of_what_a_child_sees(launch: Launch) -> None:
    script = USES_DOUBLE + """
import numpy, os
def run(data):
    result = double.predict(numpy.ones((100, 2)))
    child = os.fork()
    if child == 0:
        os._exit(0)
    del result
    os.waitpid(child, 0)
"""
    worker = begin(launch, script)
    free: list[int] = []
    worker.send_call(1, call_payload(POST))
    answer_in_region(worker, worker.receive(), free)
    worker.reply(1)
    worker.receive_note(RELEASE, 1)
    assert (LEAVE, 0) in worker.notes


def test_forget(launch: Launch) -> None:
    """A region that is retired while a view of it is held; its number may come again."""
    script = USES_DOUBLE + """
import numpy
kept = []
def run(data):
    if data == "check":
        return [view.tolist()[0] for view in kept]
    kept.append(double.predict(numpy.full((100, 2), float(data))))
"""
    worker = begin(launch, script)
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
        asked = worker.receive()
        block = encode_block({"y": np.full((100, 2), float(number), np.float32)})
        worker.share(1, 64 * KIB).write(block[64:])
        worker.send_tailed(TENSORS, asked.number, block[:64], 1, len(block) - 64)
        worker.reply(number)
        worker.send(frame(FORGET, 1))
        worker._own.pop(1).close()
    assert worker.post("check", number=9).json() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert worker.notes == []


def test_forget_of_a_region_that_was_never_used(launch: Launch) -> None:
    worker = begin(launch, ECHO)
    worker.share(5, 4096)
    worker.send(frame(FORGET, 5))
    worker.share(5, 4096).write(b"again")
    worker.send_tailed(CALL, 1, call_payload(POST), 5, 5)
    assert worker.reply(1).json() == "again"


def test_a_cancelled_call_that_waits_releases_its_body(launch: Launch) -> None:
    script = INIT + "from outrigger import ctx\ndef run(data):\n    while not ctx.cancelled: pass\n"
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    worker.send_body(2, b"body", worker.share(1, 4096))
    worker.cancel(2)
    worker.cancel(1)
    assert [worker.reply(1).outcome, worker.reply(2).outcome] == [CANCELLED, CANCELLED]
    worker.receive_note(RELEASE, 1)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4097), (4096, 1), (2**63, 2**63), (2**64 - 1, 1), (0, 2**64 - 1)]
)
def test_references_beyond_a_region_end_the_worker(launch: Launch, offset: int, size: int) -> None:
    worker = begin(launch, ECHO)
    worker.share(1, 4096)
    worker.send_tailed(CALL, 1, call_payload(POST), 1, size, offset=offset)
    ends(worker)


def test_a_region_that_was_not_announced_ends_the_worker(launch: Launch) -> None:
    worker = begin(launch, ECHO)
    worker.send_tailed(CALL, 1, call_payload(POST), 1, 1)
    ends(worker)


def test_a_region_that_is_shorter_than_announced_ends_the_worker(launch: Launch) -> None:
    import socket

    worker = begin(launch, ECHO)
    descriptor = os.memfd_create("short")
    os.ftruncate(descriptor, 4096)
    socket.send_fds(worker.regions, [REGION.pack(1, 0, 8192)], [descriptor])
    os.close(descriptor)
    worker.send_tailed(CALL, 1, call_payload(POST), 1, 1)
    ends(worker)


@pytest.mark.parametrize("message", [b"", b"short", REGION.pack(1, 0, 4096)])
def test_an_announcement_that_makes_no_sense_ends_the_worker(launch: Launch, message: bytes) -> None:
    worker = begin(launch, ECHO)
    worker.regions.send(message)
    worker.send_tailed(CALL, 1, call_payload(POST), 1, 1)
    ends(worker)


def test_a_reference_that_is_cut_short_ends_the_worker(launch: Launch) -> None:
    worker = begin(launch, ECHO)
    worker.send(HEADER.pack(23, CALL, TAIL, 0, 1) + bytes(23))
    ends(worker, "a frame with a tail has 23 bytes")


# From the script to the runtime.


def test_an_answer_in_a_region(launch: Launch) -> None:
    worker = begin(launch, ECHO)
    for number in range(1, 5):
        answer = worker.post(text("x"), number)
        assert (answer.outcome, answer.json(), answer.region) == (RETURNED, text("x"), 1)
        worker.release(1)
    assert worker.post("small", 9).region is None


def test_sizes_around_the_threshold(launch: Launch) -> None:
    worker = begin(launch, ECHO, threshold=1000)
    for size in (997, 998, 999):
        answer = worker.post(text("x", size), size)
        assert answer.json() == text("x", size)
        # The quotes take two bytes.
        assert (answer.region is not None) == (size + 2 >= 1000)


def test_no_region_is_written_before_it_is_released(launch: Launch) -> None:
    """Without a free region, an answer goes inline, at once."""
    worker = begin(launch, ECHO, regions=3)
    held = {}
    for number, letter in enumerate("abcdef", 1):
        answer = worker.post(text(letter), number)
        assert answer.json() == text(letter)
        if answer.region is not None:
            held[answer.region] = letter
    assert sorted(held) == [1, 2, 3]
    for region, letter in held.items():
        assert worker.seen[region][1 : 100 * KIB + 1] == text(letter).encode()
    worker.release(2)
    answer = worker.post(text("g"), 10)
    assert (answer.json(), answer.region) == (text("g"), 2)


def test_a_release_that_lies_unread_is_found(launch: Launch) -> None:
    """The call came first, then the RELEASE that it could do with."""
    script = INIT + "def run(data):\n    print('in run')\n    open('go').read()\n    return 'x' * 100_000\n"
    worker = launch(script)
    os.mkfifo(worker.folder / "go")
    worker.start(region_threshold=1000, regions=1)
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST))
        assert worker.printed() == "in run\n"
        if number > 1:
            worker.release(1)
        with open(worker.folder / "go", "w"):
            pass
        assert worker.reply(number).region == 1


def test_a_larger_region_replaces_a_smaller_one(launch: Launch) -> None:
    worker = begin(launch, ECHO, regions=1)
    for number, (size, region) in enumerate([(100, 1), (100, 1), (400, 2), (100, 2), (2000, 3)], 1):
        answer = worker.post(text("x", size * KIB), number)
        assert (len(answer.json()), answer.region) == (size * KIB, region)
        worker.release(region)
    assert worker.notes == [(FORGET, 1), (FORGET, 2)]


def test_what_is_larger_than_all_regions_goes_inline(launch: Launch) -> None:
    worker = begin(launch, INIT + "def run(data):\n    return 'x' * int(data)\n")
    answer = worker.post(str(257 * 1024 * KIB))
    assert (len(answer.rest), answer.region) == (257 * 1024 * KIB + 2, None)


@pytest.mark.parametrize(
    "layout", ["x", "x.T.copy().T", "x.astype('f8')", "x.repeat(2, 0)[::2]", "x.tolist()"]
)
def test_inputs_in_a_region(launch: Launch, layout: str) -> None:
    script = USES_DOUBLE + f"""
import numpy
def run(data):
    x = numpy.arange(20_000, dtype=numpy.float32).reshape(-1, 2)
    return bool((double.predict({layout}) == 2 * x).all())
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    asked = worker.receive()
    assert (asked.kind, asked.region) == (INFER, 1)
    answer_model(worker, asked)
    assert worker.reply(1).json() is True


def test_a_fork_retires_the_workers_own_regions(launch: Launch) -> None:
    script = INIT + """
import os
def run(data):
    if data == "fork":
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return 'x' * 100_000
"""
    worker = begin(launch, script)
    assert worker.post("", 1).region == 1
    assert worker.post("", 2).region == 2
    worker.release(2)
    answer = worker.post("fork", 3)
    assert (answer.json(), answer.region) == (text("x", 100_000), 3)
    assert sorted(worker.notes) == [(FORGET, 1), (FORGET, 2), (LEAVE, 0)]
    # It is passed over.
    worker.release(1)
    assert worker.post("", 4).region == 4


def test_descriptors_are_not_leaked(launch: Launch) -> None:
    script = INIT + """
import os
def run(data):
    return len(os.listdir("/proc/self/fd")) if len(data) < 10 else 'x' * int(data.strip())
"""
    worker = begin(launch, script, regions=2)
    counts = []
    for turn in range(1, 40):
        worker.share(turn, 64 * KIB)
        worker.send_body(2 * turn, b"100000".ljust(1000), worker._own[turn])
        answer = worker.reply(2 * turn)
        assert answer.region is not None
        worker.release(answer.region)
        worker.send(frame(FORGET, turn))
        worker._own.pop(turn).close()
        counts.append(worker.post("count", 2 * turn + 1).json())
    assert max(counts[3:]) == min(counts[3:])


def answer_in_region(worker: Worker, asked: Frame, free: list[int]) -> None:
    """Answers an INFER of `double` through a region that is free, or a new one."""
    from blocks import decode_infer

    assert asked.kind == INFER
    if asked.region is not None:
        worker.release(asked.region)
    block = encode_block({"y": decode_infer(asked.payload)[1]["x"] * 2})
    number = free.pop() if free else max(worker._own, default=0) + 1
    region = worker._own.get(number) or worker.share(number, 1024 * KIB)
    region.write(block[64:])
    worker.send_tailed(TENSORS, asked.number, block[:64], number, len(block) - 64)


def scribble(worker: Worker, free: list[int]) -> None:
    """Overwrites the regions that the worker has released; from now on they are free."""
    for kind, number in worker.notes:
        if kind == RELEASE:
            worker._own[number].write(b"\xee" * (1024 * KIB))
            free.append(number)
    worker.notes.clear()


def ends(worker: Worker, reason: str = "the runtime refers to a region in vain") -> None:
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1
    assert reason in worker.process.communicate()[1]
