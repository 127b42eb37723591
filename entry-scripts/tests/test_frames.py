"""Frames of all sizes, in pieces and in heaps, and those that make no sense."""

import json
import struct
import threading

import pytest

from conftest import Launch
from harness import CALL, CALL_HEAD, DEFAULTS, POST, READY, RETURNED, START, call_payload, frame, parse_reply

ECHO = "def run(data):\n    return data\n"
LENGTH = "def run(data):\n    return len(data)\n"
KIB = 1024
BUFFER = 256 * KIB


@pytest.mark.parametrize(
    "size", [0, 8 * KIB, BUFFER - 100, BUFFER, BUFFER + 1, 9 * KIB * KIB, 33 * KIB * KIB]
)
def test_bodies_of_all_sizes(serve: Launch, size: int) -> None:
    worker = serve(ECHO)
    body = ("0123456789" * (size // 10 + 1))[:size]
    number = 0
    # Twice each, and small ones between: the buffer grows, is used again, and is let go.
    for text in (body, body, "small", body, "small"):
        number += 1
        # From a thread, so that nothing here depends on what the worker reads before it answers.
        sender = threading.Thread(
            target=worker.send_call, args=(number, call_payload(POST, body=text.encode()))
        )
        sender.start()
        answer = parse_reply(worker.receive())
        sender.join()
        assert (answer.number, answer.outcome) == (number, RETURNED)
        assert answer.json() == text


def test_sizes_around_the_buffer(serve: Launch) -> None:
    worker = serve(LENGTH)
    overhead = len(frame(CALL, 0, call_payload(POST)))
    for number, extra in enumerate(range(-20, 21)):
        size = BUFFER - overhead + extra
        assert worker.post(b"x" * size, number=number).json() == size


def test_frames_in_pieces(serve: Launch) -> None:
    worker = serve(ECHO)
    data = frame(CALL, 1, call_payload(POST, body=b"in pieces"))
    for byte in data:
        worker.send(bytes([byte]))
    assert parse_reply(worker.receive()).json() == "in pieces"
    for cut in (1, 15, 16, 17, 31, 32, len(data) - 1):
        worker.send(data[:cut])
        worker.send(data[cut:])
        assert parse_reply(worker.receive()).json() == "in pieces"


def test_start_and_calls_in_one_piece(launch: Launch, tmp_path: object) -> None:
    worker = launch("def init(): pass\n" + ECHO)
    start = DEFAULTS | {"app_root": str(tmp_path)}
    calls = [frame(CALL, number, call_payload(POST, body=b"%d" % number)) for number in range(1, 100)]
    worker.send(frame(START, 0, json.dumps(start).encode()) + b"".join(calls))
    assert worker.receive().kind == READY
    for number in range(1, 100):
        answer = parse_reply(worker.receive())
        assert (answer.number, answer.json()) == (number, str(number))


def test_large_call_numbers(serve: Launch) -> None:
    worker = serve(ECHO)
    assert worker.post("x", number=2**64 - 1).json() == "x"


GOOD = call_payload(POST, body=b"x")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(99, 1, b"x"), id="unknown kind"),
        pytest.param(frame(18, 1, b"x"), id="a kind of the worker's"),
        pytest.param(frame(START, 0, b"{}"), id="a second START"),
        pytest.param(frame(CALL, 1, b"short"), id="no room for the head"),
        pytest.param(frame(CALL, 1, b"\x09" + GOOD[1:]), id="unknown method"),
        pytest.param(
            frame(CALL, 1, CALL_HEAD.pack(1, 0, 99, 0, 0, 0, 0)), id="request id longer than the payload"
        ),
        pytest.param(
            frame(CALL, 1, CALL_HEAD.pack(1, 0, 0, 0, 2**32 - 1, 0, 0)),
            id="headers longer than the payload",
        ),
    ],
)
def test_what_makes_no_sense_ends_the_worker(serve: Launch, data: bytes) -> None:
    worker = serve(ECHO)
    worker.send(data)
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1
    assert "the worker ends: " in worker.process.communicate()[1]


@pytest.mark.parametrize("block", [b"\x01", struct.pack("<HH", 1, 0), struct.pack("<HH", 1, 5) + b"abc"])
def test_header_block_that_makes_no_sense(serve: Launch, block: bytes) -> None:
    worker = serve("def run(data, request_headers):\n    return data\n")
    worker.send(frame(CALL, 1, CALL_HEAD.pack(1, 0, 0, 0, len(block), 0, 0) + block))
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1


WRONG = [{"concurrency": 0}, {"max_batch": 0}, {"max_payload": 0}, {"window": -1}, {"regions": "1"}]


@pytest.mark.parametrize(
    "payload",
    [b"", b"no json", b"[]", b'{"app_root": "/"}']
    + [json.dumps(DEFAULTS | {"app_root": "/"} | wrong).encode() for wrong in WRONG],
)
def test_start_that_makes_no_sense(launch: Launch, payload: bytes) -> None:
    worker = launch()
    worker.send(frame(START, 0, payload))
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1


def test_the_first_frame_is_start(launch: Launch) -> None:
    worker = launch()
    worker.send(frame(CALL, 1, GOOD))
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1
