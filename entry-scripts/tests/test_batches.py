"""Batch scripts: calls that come together are handed over together, and answered one by one."""

import pytest

from conftest import Launch
from harness import (
    CANCELLED,
    INPUT_REFUSED,
    MORE,
    NOT_SERIALISABLE,
    POST,
    RAISED,
    RETURNED,
    Answer,
    Worker,
    call_payload,
    parse_reply,
)

INIT = "import time\nfrom outrigger import ctx\ndef init():\n    pass\n\n"


def begin(launch: Launch, script: str, **fields: int) -> Worker:
    worker = launch(INIT + script)
    assert worker.start(**{"max_batch": 16} | fields)["kind"] == "batch"
    return worker


def send(worker: Worker, bodies: list[str | bytes], first: int = 1, **more: int) -> None:
    """Sends a batch."""
    for place, body in enumerate(bodies):
        data = body.encode() if isinstance(body, str) else body
        flags = MORE if place < len(bodies) - 1 else 0
        worker.send_call(first + place, call_payload(POST, body=data, flags=flags, **more))


def post(worker: Worker, bodies: list[str | bytes], first: int = 1) -> list[Answer]:
    send(worker, bodies, first)
    return [worker.reply(first + place) for place in range(len(bodies))]


def test_batches(launch: Launch) -> None:
    worker = begin(launch, "def run_batch(items):\n    return [[item, len(items)] for item in items]\n")
    first = 1
    for size in (1, 2, 16, 3):
        bodies = [f"{first}-{place}" for place in range(size)]
        answers = post(worker, bodies, first)
        assert [answer.json() for answer in answers] == [[body, size] for body in bodies]
        first += size


def test_two_batches_in_one_piece(launch: Launch) -> None:
    worker = begin(launch, "def run_batch(items):\n    return [len(items)] * len(items)\n")
    send(worker, ["a", "b"])
    send(worker, ["c"], 3)
    assert [worker.reply(number).json() for number in (1, 2, 3)] == [2, 2, 1]


def test_nothing_begins_before_the_batch_is_complete(launch: Launch) -> None:
    worker = begin(launch, "def run_batch(items):\n    print(items)\n    return items\n")
    worker.send_call(1, call_payload(POST, body=b"a", flags=MORE))
    worker.send_call(2, call_payload(POST, body=b"b"))
    assert worker.reply(1).json() == "a"
    assert worker.printed() == "['a', 'b']\n"


def test_an_item_that_failed(launch: Launch) -> None:
    script = """
def run_batch(items):
    return [ValueError(item) if item == "bad" else object() if item == "unfit" else item for item in items]
"""
    answers = post(begin(launch, script), ["a", "bad", "unfit", "d"])
    assert [answer.outcome for answer in answers] == [RETURNED, RAISED, NOT_SERIALISABLE, RETURNED]
    assert (answers[1].message, answers[3].json()) == ("ValueError: bad", "d")


def test_an_item_that_is_refused(launch: Launch) -> None:
    worker = begin(launch, "def run_batch(items):\n    return [items] * len(items)\n")
    send(worker, ["a", b"\xff", "c"])
    # It is not waited for.
    assert worker.reply(2).outcome == INPUT_REFUSED
    assert [worker.reply(number).json() for number in (1, 3)] == [["a", "c"]] * 2
    assert [answer.outcome for answer in post(worker, [b"\xff", b"\xfe"], 4)] == [INPUT_REFUSED] * 2
    assert post(worker, ["x"], 6)[0].json() == ["x"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("items[:1]", "ValueError: run_batch() returned 1 results for 2 calls"),
        ("items + items", "ValueError: run_batch() returned 4 results for 2 calls"),
        ("None", "TypeError: run_batch() returned NoneType, not a sequence of results"),
        ("'ab'", "TypeError: run_batch() returned str, not a sequence of results"),
        ("{1: 2, 3: 4}", "TypeError: run_batch() returned dict, not a sequence of results"),
        ("(item for item in items)", "TypeError: run_batch() returned generator, not a sequence of results"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_batch_that_failed(launch: Launch, result: str, message: str) -> None:
    script = f"def run_batch(items):\n    return items if items == ['next'] else {result}\n"
    worker = begin(launch, script)
    for answer in post(worker, ["a", "b"]):
        assert (answer.outcome, answer.message) == (RAISED, message)
    assert post(worker, ["next"], 3)[0].json() == "next"


def test_a_tuple_and_an_array(launch: Launch) -> None:
    script = "import numpy\ndef run_batch(items):\n    return tuple(items) if items[0] else numpy.zeros(len(items))\n"
    worker = begin(launch, script)
    assert [answer.json() for answer in post(worker, ["a", "b"])] == ["a", "b"]
    assert [answer.json() for answer in post(worker, ["", "b"], 3)] == [0.0, 0.0]


def test_an_item_cannot_be_a_stream(launch: Launch) -> None:
    worker = begin(
        launch,
        "def run_batch(items):\n    return [iter_it() for _ in items]\ndef iter_it():\n    yield b'x'\n",
    )
    (answer,) = post(worker, ["a"])
    assert answer.outcome == NOT_SERIALISABLE
    assert answer.message.startswith("TypeError: run_batch() cannot stream")


def test_ctx(launch: Launch) -> None:
    script = "def run_batch(items):\n    return [[ctx.remaining and ctx.remaining <= 5, ctx.request_id]] * len(items)\n"
    worker = begin(launch, script)
    for number, limit, flags in ((1, 60, MORE), (2, 5, MORE), (3, 0, 0)):
        worker.send_call(number, call_payload(POST, flags=flags, limit=limit * 10**9))
    assert [worker.reply(number).json() for number in (1, 2, 3)] == [[True, ""]] * 3
    assert post(worker, ["alone"], 4)[0].json() == [None, "some-request-id"]


def test_cancel(launch: Launch) -> None:
    """A batch is cancelled when all of its calls are."""
    script = """
def run_batch(items):
    print("in run")
    while not ctx.cancelled:
        pass
    return items
"""
    worker = begin(launch, script)
    send(worker, ["a", "b"])
    assert worker.printed() == "in run\n"
    worker.cancel(1)
    worker.cancel(2)
    assert [worker.reply(number).outcome for number in (1, 2)] == [CANCELLED] * 2


def test_cancel_of_calls_that_wait(launch: Launch) -> None:
    script = """
def run_batch(items):
    print(items)
    if items == ["slow"]:
        while not ctx.cancelled:
            pass
    return items
"""
    worker = begin(launch, script)
    send(worker, ["slow"])
    assert worker.printed() == "['slow']\n"
    send(worker, ["a", "b", "c"], 2)
    send(worker, ["d"], 5)
    for number in (3, 4, 5, 1):
        worker.cancel(number)
    outcomes = {}
    for _ in range(5):
        answer = parse_reply(worker.receive())
        outcomes[answer.number] = answer.outcome
    assert outcomes == {1: CANCELLED, 2: RETURNED, 3: CANCELLED, 4: CANCELLED, 5: CANCELLED}
    assert worker.printed() == "['a']\n"


def test_more_than_max_batch_ends_the_worker(launch: Launch) -> None:
    worker = begin(launch, "def run_batch(items):\n    return items\n", max_batch=2)
    assert [answer.json() for answer in post(worker, ["a", "b"])] == ["a", "b"]
    send(worker, ["a", "b", "c"], 3)
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1
