"""Cancelling, time limits and streamed answers, in scripts of every kind that has them."""

import os
import threading

import pytest

from conftest import Launch
from harness import (
    CALL,
    CANCELLED,
    CHUNK,
    POST,
    RAISED,
    RETURNED,
    STREAM_BEGINS,
    Worker,
    call_payload,
    frame,
)

INIT = "import asyncio, os, threading, time\nfrom outrigger import ctx\ndef init():\n    pass\n\n"
KINDS = {"sync": "def", "async": "async def"}


def begin(launch: Launch, script: str, **fields: int) -> Worker:
    worker = launch(INIT + script)
    worker.start(**fields)
    return worker


def head_of(worker: Worker, number: int = 1) -> None:
    answer = worker.reply(number)
    assert (answer.outcome, answer.status, answer.rest) == (STREAM_BEGINS, 200, b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_is_streamed(launch: Launch, kind: str) -> None:
    script = f"{KINDS[kind]} run(data):\n    for part in data.split():\n        yield part.encode()\n"
    worker = begin(launch, script)
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST, body=b"some words here"))
        head_of(worker, number)
        chunks, end = worker.stream(number)
        assert chunks == [b"some", b"words", b"here"]
        assert (end.outcome, end.message, end.rest) == (RETURNED, "", b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_sent_when_it_is_there(launch: Launch, kind: str) -> None:
    script = f"""
{KINDS[kind]} run(data):
    for number in range(3):
        yield b"%d" % number
        open("go").read()
"""
    worker = launch(INIT + script)
    os.mkfifo(worker.folder / "go")
    worker.start()
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    for number in range(3):
        assert worker.receive()[:3] == (CHUNK, 1, b"%d" % number)
        with open(worker.folder / "go", "w"):
            pass
    assert worker.stream(1)[0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_stream_and_empty_chunks(launch: Launch, kind: str) -> None:
    worker = begin(
        launch, f"{KINDS[kind]} run(data):\n    for part in data.split('.'):\n        yield part.encode()\n"
    )
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    assert worker.stream(1)[0] == []
    worker.send_call(2, call_payload(POST, body=b"a..b."))
    head_of(worker, 2)
    assert worker.stream(2)[0] == [b"a", b"b"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_raises(launch: Launch, kind: str) -> None:
    script = f"""
{KINDS[kind]} run(data):
    for number in range(int(data)):
        yield b"x"
    raise ValueError("no more")
"""
    worker = begin(launch, script)
    answer = worker.post("0")
    assert (answer.outcome, answer.message) == (RAISED, "ValueError: no more")
    assert b"in run\n" in answer.rest
    worker.send_call(2, call_payload(POST, body=b"2"))
    head_of(worker, 2)
    chunks, end = worker.stream(2)
    assert chunks == [b"x", b"x"]
    assert (end.outcome, end.message) == (RAISED, "ValueError: no more")
    assert b"in run\n" in end.rest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[3] * 20, [1000], [10, 10, 1], [100, 7]])
def test_credit(launch: Launch, kind: str, sizes: list[int]) -> None:
    """Never more than the window is under way."""
    worker = begin(
        launch, f"{KINDS[kind]} run(data):\n    for size in {sizes}:\n        yield b'x' * size\n", window=10
    )
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    left, total = 10, 0
    while (received := worker.receive()).kind == CHUNK:
        left -= len(received.payload)
        total += len(received.payload)
        assert left >= 0
        if not left and total < sum(sizes):
            # All that may be sent has been; with the credit more comes.
            assert worker.is_silent()
            worker.credit(1, 10)
            left += 10
    assert total == sum(sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_in_regions(launch: Launch, kind: str) -> None:
    script = f"{KINDS[kind]} run(data):\n    for letter in b'abcdef':\n        yield bytes([letter]) * 1000\n"
    worker = begin(launch, script, region_threshold=1000, regions=2, window=1500)
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    chunks, end = worker.stream(1, credit=lambda size: size)
    assert b"".join(chunks) == b"".join(bytes([letter]) * 1000 for letter in b"abcdef")
    assert end.outcome == RETURNED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 1000])
def test_cancel_closes_the_generator(launch: Launch, kind: str, window: int) -> None:
    """While it waits for credit, and while it has enough."""
    script = f"""
{KINDS[kind]} run(data):
    try:
        while True:
            yield b"xx"
            {"time" if kind == "sync" else "await asyncio"}.sleep(0.001)
    finally:
        print("closed")
"""
    worker = begin(launch, script, window=window)
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    assert worker.receive().kind == CHUNK
    worker.cancel(1)
    _, end = worker.stream(1)
    assert (end.outcome, end.message, end.rest) == (RAISED, "cancelled", b"")
    assert worker.printed() == "closed\n"
    worker.send_call(2, call_payload(POST))
    head_of(worker, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_that_does_not_close(launch: Launch, kind: str) -> None:
    script = f"""
{KINDS[kind]} run(data):
    try:
        yield b"x"
        yield b"x"
    except GeneratorExit:
        raise KeyError("stays")
"""
    worker = begin(launch, script, window=1)
    worker.send_call(1, call_payload(POST))
    head_of(worker)
    assert worker.receive().kind == CHUNK
    worker.cancel(1)
    _, end = worker.stream(1)
    assert (end.outcome, end.message) == (RAISED, "KeyError: 'stays'")


def test_ctx_cancelled(launch: Launch) -> None:
    script = (
        "def run(data):\n    print('in run')\n    while not ctx.cancelled:\n        pass\n    return 'late'\n"
    )
    worker = begin(launch, script)
    for number in range(1, 4):
        worker.send_call(number, call_payload(POST))
        assert worker.printed() == "in run\n"
        worker.cancel(99)
        worker.cancel(number)
        answer = worker.reply(number)
        assert (answer.outcome, answer.message, answer.rest) == (CANCELLED, "", b"")


def test_ctx_cancelled_in_threads(launch: Launch) -> None:
    script = """
def watch():
    while not ctx.cancelled:
        pass
def run(data):
    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done")
    raise ValueError("cancelled")
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    worker.cancel(1)
    answer = worker.reply(1)
    assert (answer.outcome, answer.message) == (RAISED, "ValueError: cancelled")


def test_calls_that_wait_while_run_looks_for_cancellation(launch: Launch) -> None:
    """Looking reads the calls that have come; none is lost, and all keep their order."""
    script = "def run(data):\n    return [data, [ctx.cancelled for _ in range(3)], ctx.request_id]\n"
    worker = begin(launch, script)
    bodies = ["a", "b" * 300_000, "c", "d" * 200_000, "e" * 200_000, "f"]
    calls = b"".join(
        frame(CALL, number, call_payload(POST, body=body.encode(), request_id=b"id-%d" % number))
        for number, body in enumerate(bodies, 1)
    )
    sender = threading.Thread(target=worker.send, args=(calls,))
    sender.start()
    for number, body in enumerate(bodies, 1):
        assert worker.reply(number).json() == [body, [False] * 3, f"id-{number}"]
    sender.join()


def test_cancel_of_calls_that_wait(launch: Launch) -> None:
    """They do not begin, if the one before them takes its time."""
    script = """
def run(data):
    print(data)
    if data == "slow":
        open("go").read()
        # Longer than what the loop takes for a short call.
        time.sleep(0.002)
    return data
"""
    worker = launch(INIT + script)
    os.mkfifo(worker.folder / "go")
    worker.start()
    worker.send_call(1, call_payload(POST, body=b"slow"))
    for number in range(2, 6):
        worker.send_call(number, call_payload(POST, body=b"%d" % number))
    assert worker.printed() == "slow\n"
    worker.cancel(2)
    worker.cancel(4)
    with open(worker.folder / "go", "w"):
        pass
    outcomes = {number: worker.reply(number).outcome for number in range(1, 6)}
    assert outcomes == {1: RETURNED, 2: CANCELLED, 3: RETURNED, 4: CANCELLED, 5: RETURNED}
    assert [worker.printed() for _ in range(2)] == ["3\n", "5\n"]


def test_ctx_cancelled_when_the_runtime_has_gone(launch: Launch) -> None:
    script = "def run(data):\n    print('in run')\n    while not ctx.cancelled:\n        pass\n"
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.hang_up()
    assert worker.wait() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_deadline(launch: Launch, kind: str) -> None:
    script = f"""
{KINDS[kind]} run(data):
    now = time.monotonic()
    if ctx.deadline is None:
        return [ctx.deadline, ctx.remaining]
    return [0 < ctx.deadline - now <= 5, 0 < ctx.remaining <= 5, ctx.request_id]
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST, limit=5 * 10**9, request_id=b"one"))
    assert worker.reply(1).json() == [True, True, "one"]
    worker.send_call(2, call_payload(POST))
    assert worker.reply(2).json() == [None, None]
    worker.send_call(3, call_payload(POST, limit=1, request_id=b"three"))
    assert worker.reply(3).json() == [False, False, "three"]


def test_ctx_outside_of_calls(launch: Launch) -> None:
    script = """
def look():
    return [ctx.deadline, ctx.remaining, ctx.cancelled, ctx.request_id]
def run(data):
    return seen
seen = look()
"""
    worker = begin(launch, script)
    worker.send_call(1, call_payload(POST, limit=10**9))
    assert worker.reply(1).json() == [None, None, False, ""]


def test_ctx_in_a_forked_child(launch: Launch) -> None:
    script = """
def run(data):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, f"{ctx.cancelled} {ctx.request_id}".encode())
        os._exit(0)
    return os.read(read, 100).decode()
"""
    assert begin(launch, script).post().json() == "False some-request-id"


def test_frames_for_nobody(launch: Launch) -> None:
    """CANCEL, CREDIT and RELEASE of what is over or never was."""
    worker = begin(launch, "def run(data):\n    return data\n")
    for number in range(1, 20):
        worker.cancel(number)
        worker.credit(number + 1, 5)
        worker.release(number)
        answer = worker.post("x", number)
        assert (answer.outcome, answer.json()) == (RETURNED, "x")
        worker.cancel(number)
