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
    worker = begin(launch, script, bisect=False)
    for answer in post(worker, ["a", "b"]):
        assert (answer.outcome, answer.message) == (RAISED, message)
    assert post(worker, ["next"], 3)[0].json() == "next"


ONLY_GOOD = """
def run_batch(items):
    print(",".join(items))
    if "bad" in items:
        raise ValueError(f"bad is one of {len(items)}")
    return [[item, len(items)] for item in items]
"""


def test_who_is_at_fault_fails_alone(launch: Launch) -> None:
    worker = begin(launch, ONLY_GOOD, max_batch=32)
    bodies = ["bad" if place == 21 else f"{place}" for place in range(32)]
    answers = post(worker, bodies)
    for place, answer in enumerate(answers):
        if place == 21:
            assert (answer.outcome, answer.message) == (RAISED, "ValueError: bad is one of 1")
            assert b"run_batch" in answer.rest
        else:
            assert (answer.outcome, answer.json()[0]) == (RETURNED, f"{place}")
    # Once for the whole, then two halves on each of five levels.
    sizes = sorted(len(worker.printed().split(",")) for _ in range(11))
    assert sizes == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32]
    assert [answer.json() for answer in post(worker, ["a", "b"], 33)] == [["a", 2], ["b", 2]]


def test_all_may_be_at_fault(launch: Launch) -> None:
    worker = begin(launch, ONLY_GOOD)
    answers = post(worker, ["bad", "bad", "good", "bad"])
    assert [answer.outcome for answer in answers] == [RAISED, RAISED, RETURNED, RAISED]
    assert {answer.message for answer in answers if answer.outcome == RAISED} == {"ValueError: bad is one of 1"}


def test_a_wrong_number_of_results_is_looked_into_too(launch: Launch) -> None:
    script = "def run_batch(items):\n    return [item for item in items if item != 'lost']\n"
    answers = post(begin(launch, script), ["a", "lost", "c"])
    assert [answer.outcome for answer in answers] == [RETURNED, RAISED, RETURNED]
    assert answers[1].message == "ValueError: run_batch() returned 0 results for 1 calls"


def test_a_batch_that_is_not_to_be_run_again(launch: Launch) -> None:
    worker = begin(launch, ONLY_GOOD, bisect=False)
    for answer in post(worker, ["a", "bad", "c"]):
        assert (answer.outcome, answer.message) == (RAISED, "ValueError: bad is one of 3")
    assert worker.printed() == "a,bad,c\n"


def test_who_has_left_is_not_run_again(launch: Launch) -> None:
    script = """
def run_batch(items):
    print(",".join(items))
    while len(items) == 4 and not ctx.cancelled:
        pass
    if "bad" in items:
        raise ValueError("bad")
    return items
"""
    worker = begin(launch, script)
    send(worker, ["a", "bad", "c", "d"])
    assert worker.printed() == "a,bad,c,d\n"
    for number in (1, 2, 3, 4):
        worker.cancel(number)
    # All have left: whatever it raised is the end of it.
    assert [worker.reply(number).outcome for number in (1, 2, 3, 4)] == [RAISED] * 4
    script = script.replace("len(items) == 4 and not ctx.cancelled", "len(items) == 4 and time.monotonic() < END")
    worker = begin(launch, "END = time.monotonic() + 1\n" + script)
    send(worker, ["a", "bad", "c", "d"])
    assert worker.printed() == "a,bad,c,d\n"
    worker.cancel(3)
    outcomes = {}
    for _ in range(4):
        answer = parse_reply(worker.receive())
        outcomes[answer.number] = answer.outcome
    assert outcomes == {1: RETURNED, 2: RAISED, 3: RAISED, 4: RETURNED}
    assert "c" not in "".join(worker.printed() for _ in range(3))


def test_the_deadline_is_not_put_off(launch: Launch) -> None:
    script = """
SEEN = []
def run_batch(items):
    SEEN.append(ctx.deadline)
    if len(items) > 1:
        raise ValueError("too many")
    return [len(set(SEEN))]
"""
    worker = begin(launch, script)
    send(worker, ["a", "b", "c"], limit=60 * 10**9)
    assert [worker.reply(number).json() for number in (1, 2, 3)] == [1, 1, 1]


def test_a_deadline_that_is_over_ends_with_its_own_call(launch: Launch) -> None:
    script = """
def run_batch(items):
    if ctx.remaining == 0:
        raise TimeoutError("over")
    return [len(items)] * len(items)
"""
    worker = begin(launch, script)
    for number, limit, flags in ((1, 1, MORE), (2, 60 * 10**9, 0)):
        worker.send_call(number, call_payload(POST, flags=flags, limit=limit))
    assert worker.reply(1).outcome == RAISED
    assert worker.reply(2).json() == 1


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
