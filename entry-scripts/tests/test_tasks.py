"""Async scripts: calls at the same time, in whatever order they end, cancelled one by one."""

import numpy as np
import pytest

from blocks import encode_block
from conftest import Launch
from harness import (
    CALL,
    CANCELLED,
    INFER,
    INPUT_REFUSED,
    NOT_SERIALISABLE,
    OUT_OF_TIME,
    POST,
    RAISED,
    READY,
    REPLY,
    RETURNED,
    TENSORS,
    Frame,
    Worker,
    call_payload,
    frame,
    parse_reply,
)
from test_handle import USES_DOUBLE, answer_model, until

INIT = "import asyncio, os, threading, time\nfrom outrigger import ctx\ndef init():\n    pass\n\n"
#: Calls wait until one with the body `go` comes.
GATE = """
gate = None
async def run(data):
    global gate
    gate = gate or asyncio.Event()
    if data == "go":
        gate.set()
    await gate.wait()
    return data
"""


def begin(launch: Launch, script: str, **fields: int) -> Worker:
    worker = launch(script if "def init" in script else INIT + script)
    worker.begin(**{"concurrency": 16} | fields)
    ready = until(worker, READY).json()
    assert ready["kind"] == "async"
    return worker


def test_one_after_the_other(launch: Launch) -> None:
    worker = begin(launch, "async def run(data):\n    return data\n")
    for number in range(1, 200):
        assert worker.post(str(number), number).json() == str(number)


@pytest.mark.parametrize("size", [10, 100_000, 300_000, 3_000_000])
def test_bodies_of_all_sizes(launch: Launch, size: int) -> None:
    worker = begin(launch, "async def run(data):\n    await asyncio.sleep(0)\n    return data\n")
    for number in range(1, 4):
        assert worker.post("x" * size, number).json() == "x" * size


def test_calls_at_the_same_time(launch: Launch) -> None:
    worker = begin(launch, GATE)
    for number in range(1, 16):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
    worker.send_call(16, call_payload(POST, body=b"go"))
    answers = {}
    for _ in range(16):
        answer = parse_reply(worker.receive())
        answers[answer.number] = answer.json()
    assert answers == {number: str(number) for number in range(1, 16)} | {16: "go"}


def test_no_more_than_concurrency(launch: Launch) -> None:
    script = """
active = most = 0
async def run(data):
    global active, most
    active += 1
    most = max(most, active)
    for _ in range(5):
        await asyncio.sleep(0)
    active -= 1
    return most
"""
    worker = begin(launch, script, concurrency=3)
    for number in range(1, 21):
        worker.send_call(number, call_payload(POST))
    answers = [parse_reply(worker.receive()) for _ in range(20)]
    assert {answer.number for answer in answers} == set(range(1, 21))
    assert max(answer.json() for answer in answers) == 3


def test_failures(launch: Launch) -> None:
    script = """
async def run(data):
    if data == "next":
        return data
    if data == "unfit":
        return object()
    if data == "own cancel":
        raise asyncio.CancelledError
    if data == "exit":
        raise SystemExit(3)
    raise ValueError(data)
"""
    worker = begin(launch, script)
    answer = worker.post("x")
    assert (answer.outcome, answer.message) == (RAISED, "ValueError: x")
    assert b"in run\n" in answer.rest and b"outrigger_worker" not in answer.rest
    assert worker.post("unfit", 2).outcome == NOT_SERIALISABLE
    assert worker.post(b"\xff", 3).outcome == INPUT_REFUSED
    assert worker.post("own cancel", 4)[1:3] == (RAISED, "CancelledError")
    assert worker.post("exit", 5)[1:3] == (RAISED, "SystemExit: 3")
    assert worker.post("next", 6).json() == "next"


def test_a_callback_that_exits(launch: Launch) -> None:
    """What is none of a call's does not end the worker."""
    script = """
def leave():
    raise SystemExit(3)
async def run(data):
    asyncio.get_running_loop().call_soon(leave)
    return data
"""
    worker = begin(launch, script)
    for number in range(1, 4):
        assert worker.post("x", number).json() == "x"
    worker.hang_up()
    assert worker.wait() == 0


@pytest.mark.parametrize("reason", [1, OUT_OF_TIME])
def test_cancel(launch: Launch, reason: int) -> None:
    script = """
async def run(data):
    try:
        print(data)
        await asyncio.sleep(0 if data == "short" else 10**6)
    except asyncio.CancelledError:
        print("cancelled", ctx.cancelled)
        raise
    return data
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST, body=b"one"))
    worker.send_call(2, call_payload(POST, body=b"two"))
    assert [worker.printed() for _ in range(2)] == ["one\n", "two\n"]
    worker.cancel(2, reason)
    answer = worker.reply(2)
    assert (answer.outcome, answer.message, answer.rest) == (CANCELLED, "", b"")
    assert worker.printed() == "cancelled True\n"
    assert worker.post("short", 3).json() == "short"
    worker.cancel(1, reason)
    assert worker.reply(1).outcome == CANCELLED
    # Where there is a time limit to be held, the runtime is told that the loop turns.
    assert worker.cancelling == ([2, 1] if reason == OUT_OF_TIME else [])


def test_cancel_in_the_same_piece_as_the_call(launch: Launch) -> None:
    worker = begin(launch, "async def run(data):\n    await asyncio.sleep(10**6)\n", concurrency=2)
    for number in range(1, 50):
        worker.send(frame(CALL, number, call_payload(POST)) + frame(6, number, b"\x01"))
        assert worker.reply(number).outcome == CANCELLED


def test_cancel_of_a_call_that_waits_for_its_turn(launch: Launch) -> None:
    worker = begin(launch, GATE, concurrency=1)
    for number, body in ((1, b"wait"), (2, b"x"), (3, b"x")):
        worker.send_call(number, call_payload(POST, body=body))
    worker.cancel(2)
    worker.cancel(1)
    assert worker.reply(1).outcome == CANCELLED
    assert worker.reply(2).outcome == CANCELLED
    worker.cancel(3)
    assert worker.reply(3).outcome == CANCELLED


def test_a_call_that_withstands_its_cancellation(launch: Launch) -> None:
    script = """
async def run(data):
    print("in run")
    try:
        await asyncio.sleep(10**6)
    except asyncio.CancelledError:
        pass
    return "still here"
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.cancel(1)
    assert worker.reply(1).outcome == CANCELLED


def test_ctx_of_each_task(launch: Launch) -> None:
    script = """
def look():
    return ctx.request_id
async def run(data):
    await asyncio.sleep(0)
    child = asyncio.create_task(asyncio.to_thread(look))
    await asyncio.sleep(0)
    plain = []
    thread = threading.Thread(target=lambda: plain.append(look()))
    thread.start()
    thread.join()
    return [look(), await child, plain[0], ctx.cancelled]
"""
    worker = begin(launch, script)
    for number in range(1, 10):
        worker.send_call(number, call_payload(POST, request_id=b"id-%d" % number))
    for _ in range(1, 10):
        answer = parse_reply(worker.receive())
        name = f"id-{answer.number}"
        assert answer.json() == [name, name, "", False]


def test_ctx_cancelled_in_a_loop_that_does_not_wait(launch: Launch) -> None:
    script = "async def run(data):\n    print('in run')\n    while not ctx.cancelled:\n        pass\n"
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.cancel(1)
    assert worker.reply(1).outcome == CANCELLED


def test_streams_side_by_side(launch: Launch) -> None:
    """One that waits for credit does not keep the others."""
    script = """
async def run(data):
    for number in range(100):
        yield data.encode()
"""
    worker = begin(launch, script, window=100)
    worker.send_call(1, call_payload(POST, body=b"xx"))
    worker.send_call(2, call_payload(POST, body=b"y"))
    received: dict[int, bytes] = {1: b"", 2: b""}
    while True:
        got = worker.receive()
        if got.kind == 23:
            received[got.number] += got.payload
        elif got.kind == 24:
            break
    assert got.number == 2 and received[2] == b"y" * 100
    while len(received[1]) < 100:
        received[1] += worker.receive().payload
    worker.credit(1, 100)
    chunks, end = worker.stream(1)
    assert received[1] + b"".join(chunks) == b"xx" * 100
    assert end.outcome == RETURNED


def test_predict_async(launch: Launch) -> None:
    """While models work for some, other calls are taken and answered."""
    script = USES_DOUBLE + """
async def run(data):
    if data == "echo":
        return data
    return (await double.predict_async([[int(data), 0]])).tolist()[0][0]
"""
    worker = begin(launch, script)
    asked: list[Frame] = []
    for number in range(1, 9):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
        asked.append(worker.receive())
    assert worker.post("echo", 99).json() == "echo"
    for request in reversed(asked):
        answer_model(worker, request)
    answers = [parse_reply(worker.receive()) for _ in range(8)]
    assert {answer.number: answer.json() for answer in answers} == {n: 2.0 * n for n in range(1, 9)}


def test_predict_async_that_is_cancelled(launch: Launch) -> None:
    script = (
        USES_DOUBLE + "async def run(data):\n    return (await double.predict_async([[1, 2]])).tolist()\n"
    )
    worker = begin(launch, script)
    for number in range(1, 10):
        worker.send_call(number, call_payload(POST))
        asked = worker.receive()
        worker.cancel(number)
        assert worker.reply(number).outcome == CANCELLED
        # Nobody waits for it.
        answer_model(worker, asked)


def test_predict_async_in_init_and_in_a_sync_script(launch: Launch) -> None:
    script = """
import asyncio
from outrigger import model
async def init():
    global double, warm
    double = model("double")
    warm = (await double.predict_async([[1, 1]])).tolist()
async def run(data):
    return [warm, (await double.predict_async([[2, 2]])).tolist()]
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    assert parse_reply(until(worker, REPLY)).json() == [[[2.0, 2.0]], [[4.0, 4.0]]]
    sync = launch(
        USES_DOUBLE
        + "import asyncio\ndef run(data):\n    return asyncio.run(double.predict_async([[3, 3]])).tolist()\n"
    )
    sync.begin()
    until(sync, READY)
    sync.send_call(1, call_payload(POST))
    assert parse_reply(until(sync, REPLY)).json() == [[6.0, 6.0]]


def test_predict_async_through_regions(launch: Launch) -> None:
    script = USES_DOUBLE + """
import numpy
async def run(data):
    x = numpy.arange(40_000, dtype=numpy.float32).reshape(-1, 2)
    return bool((await double.predict_async(x) == 2 * x).all())
"""
    worker = begin(launch, script, region_threshold=10_000, regions=2)
    region = worker.share(1, 1 << 20)
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST))
        asked = worker.receive()
        assert (asked.kind, asked.region is not None) == (INFER, True)
        worker.release(asked.region)
        x = np.arange(40_000, dtype=np.float32).reshape(-1, 2)
        block = encode_block({"y": x * 2})
        region.write(block[64:])
        worker.send_tailed(TENSORS, asked.number, block[:64], 1, len(block) - 64)
        assert worker.reply(number).json() is True
        worker.receive_note(8, 1)


def test_predict_blocks_and_nothing_is_lost(launch: Launch) -> None:
    """A blocking predict in the loop reads calls, which wait for it, and a thread reads beside the loop."""
    script = USES_DOUBLE + """
import asyncio
async def run(data):
    if data == "block":
        return double.predict([[1, 0]]).tolist()[0][0]
    if data == "thread":
        return (await asyncio.to_thread(double.predict, [[2, 0]])).tolist()[0][0]
    return data
"""
    worker = begin(launch, script)
    number = 0
    for _ in range(20):
        worker.send_call(number + 1, call_payload(POST, body=b"block"))
        asked = worker.receive()
        worker.send_call(number + 2, call_payload(POST, body=b"echo"))
        answer_model(worker, asked)
        answers = {
            answer.number: answer.json() for answer in (parse_reply(worker.receive()) for _ in range(2))
        }
        assert answers == {number + 1: 2.0, number + 2: "echo"}
        worker.send_call(number + 3, call_payload(POST, body=b"thread"))
        asked = worker.receive()
        assert worker.post("echo", number + 4).json() == "echo"
        answer_model(worker, asked)
        assert worker.reply(number + 3).json() == 4.0
        number += 4


def test_threads_of_init_may_predict(launch: Launch) -> None:
    """Before the loop runs, who waits reads."""
    script = USES_DOUBLE.replace("double = model('double')", "double = model('double'); warm()") + """
def warm():
    global y
    def work():
        global y
        y = double.predict([[1, 2]]).tolist()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
async def run(data):
    return y
"""
    assert begin(launch, script).post().json() == [[2.0, 4.0]]


def test_the_runtime_hangs_up(launch: Launch) -> None:
    script = """
import atexit
atexit.register(print, "at exit")
async def shutdown():
    await asyncio.sleep(0)
    print("shutdown")
async def run(data):
    print("in run")
    try:
        await asyncio.sleep(10**6)
    finally:
        print("cleaned up")
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate() == ("cleaned up\nshutdown\nat exit\n", "")


def test_what_makes_no_sense_ends_the_worker(launch: Launch) -> None:
    for data in (frame(99, 1, b"x"), frame(CALL, 1, b"short")):
        worker = begin(launch, "async def run(data):\n    return data\n")
        worker.send(data)
        assert worker.sock.recv(1) == b""
        assert worker.wait() == 1
        assert "the worker ends: " in worker.process.communicate()[1]


def test_a_forked_child_of_a_task(launch: Launch) -> None:
    script = """
async def run(data):
    child = os.fork()
    if child == 0:
        return "from the child"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    worker = begin(launch, "import atexit\natexit.register(print, 'at exit')\n" + INIT + script)
    assert worker.post().json() == 1
    assert worker.post(number=2).json() == 1
    worker.hang_up()
    out, err = worker.process.communicate()
    assert out == "at exit\n", "exit handlers are the worker's"
    message = "a process forked by the entry script returned from run(); it ends here\n"
    assert err == 2 * message
