"""Handles in a real worker, against a runtime of the test's own that answers MODEL and INFER."""

import fcntl
import json
import os
import signal
import socket
import struct
import termios
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outrigger
from blocks import decode_infer, encode_block
from conftest import Launch
from harness import (
    CALL,
    INFER,
    MODEL,
    MODEL_ERROR,
    MODEL_INFO,
    POST,
    RAISED,
    READY,
    REPLY,
    RETURNED,
    TENSORS,
    Answer,
    Frame,
    Worker,
    call_payload,
    frame,
    parse_reply,
)

DOUBLE = {
    "name": "double",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
SUMS = {
    "name": "sums",
    "inputs": [
        {"name": "a", "datatype": "INT64", "shape": [-1]},
        {"name": "b", "datatype": "INT64", "shape": [-1]},
    ],
    "outputs": [
        {"name": "sum", "datatype": "INT64", "shape": [-1]},
        {"name": "more", "datatype": "BOOL", "shape": []},
    ],
}
PRELUDE = "import json, threading\nfrom outrigger import model, ModelError\n"
USES_DOUBLE = PRELUDE + "def init():\n    global double\n    double = model('double')\n"


def compute(name: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    if name == "double":
        return {"y": inputs["x"] * 2}
    return {"sum": inputs["a"] + inputs["b"], "more": np.array(len(inputs["a"]) > 1)}


def answer_model(worker: Worker, asked: Frame) -> None:
    """Answers a MODEL or an INFER."""
    if asked.kind == MODEL:
        known = {"double": DOUBLE, "sums": SUMS}.get(asked.payload.decode())
        if known is None:
            error = {"code": "not_found", "message": f"there is no model `{asked.payload.decode()}`"}
            worker.send(frame(MODEL_ERROR, asked.number, json.dumps(error).encode()))
        else:
            worker.send(frame(MODEL_INFO, asked.number, json.dumps(known).encode()))
    else:
        assert asked.kind == INFER
        worker.send(frame(TENSORS, asked.number, encode_block(compute(*decode_infer(asked.payload)))))


def until(worker: Worker, kind: int) -> Frame:
    """Answers requests until a frame of `kind` comes."""
    while (received := worker.receive()).kind != kind:
        answer_model(worker, received)
    return received


def start(worker: Worker) -> Worker:
    worker.begin()
    until(worker, READY)
    return worker


def call(worker: Worker, body: str = "", number: int = 1) -> Answer:
    worker.send_call(number, call_payload(POST, body=body.encode()))
    answer = parse_reply(until(worker, REPLY))
    assert answer.number == number
    return answer


def test_outside_of_a_worker() -> None:
    with pytest.raises(RuntimeError, match=r"outrigger.model\(\) works only in an entry script"):
        outrigger.model("digits")


def test_description(launch: Launch) -> None:
    script = (
        USES_DOUBLE
        + "def run(data):\n    return [double.name, double.inputs, double.outputs, repr(double)]\n"
    )
    name, inputs, outputs, text = call(start(launch(script))).json()
    assert name == "double"
    assert (inputs, outputs) == ([["x", "FP32", [-1, 2]]], [["y", "FP32", [-1, 2]]])
    assert text == "<model 'double' (x: FP32[-1, 2]) -> (y: FP32[-1, 2])>"


@pytest.mark.parametrize(
    "arguments", ["x=values", "values", "x=numpy.array(values)", "numpy.array(values, '>f8').T.T"]
)
def test_one_output_is_an_array(launch: Launch, arguments: str) -> None:
    script = f"""
import numpy
{USES_DOUBLE}
def run(data):
    values = json.loads(data)
    y = double.predict({arguments})
    return [y.tolist(), str(y.dtype), y.flags.writeable]
"""
    assert call(start(launch(script)), "[[1, 2.5]]").json() == [[[2.0, 5.0]], "float32", False]


def test_several_outputs_are_a_dict(launch: Launch) -> None:
    script = PRELUDE + """
def init():
    global sums
    sums = model("sums")
def run(data):
    return {name: value.tolist() for name, value in sums.predict(b=[10, 20], a=(1, 2)).items()}
"""
    assert call(start(launch(script))).json() == {"sum": [11, 22], "more": True}


def test_predict_in_init(launch: Launch) -> None:
    script = PRELUDE + """
def init():
    global warm
    warm = model("double").predict([[1, 1]]).tolist()
def run(data):
    return warm
"""
    assert call(start(launch(script))).json() == [[2.0, 2.0]]


def test_numpy_is_imported_by_the_first_predict_only(launch: Launch) -> None:
    script = (
        USES_DOUBLE
        + "import sys\ndef run(data):\n    return [name in sys.modules for name in ('outrigger', 'numpy')]\n"
    )
    assert call(start(launch(script))).json() == [True, False]


@pytest.mark.parametrize("size", [2, 30_000, 40_000, 4_000_000])
def test_large_tensors_and_results_that_stay(launch: Launch, size: int) -> None:
    script = USES_DOUBLE + """
import numpy
kept = []
def run(data):
    x = numpy.arange(int(data), dtype=numpy.float32).reshape(-1, 2)
    kept.append(double.predict(x))
    # A result is not written over by later ones.
    return all(numpy.array_equal(y, x * 2) for y in kept) and all(y.ctypes.data % 64 == 0 for y in kept)
"""
    worker = start(launch(script))
    for number in range(1, 4):
        answer = call(worker, str(size), number)
        assert (answer.outcome, answer.json()) == (RETURNED, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "TypeError: model `sums` takes `a`, `b`: `a`, `b` missing"),
        ("a=[1], c=[1]", "TypeError: model `sums` takes `a`, `b`: `b` missing, `c` unknown"),
        ("[1]", "TypeError: model `sums` takes `a`, `b`: only a single input can be given without its name"),
        ("a=[1.5], b=[1]", "TypeError: input `a` of model `sums` takes INT64, not float64"),
    ],
)
def test_wrong_inputs_are_not_sent(launch: Launch, arguments: str, message: str) -> None:
    init = "def init():\n    global sums\n    sums = model('sums')\n"
    script = PRELUDE + init + f"def run(data):\n    sums.predict({arguments})\n"
    worker = start(launch(script))
    worker.send_call(1, call_payload(POST))
    answer = parse_reply(worker.receive())
    assert (answer.outcome, answer.message) == (RAISED, message)


def test_inputs_that_are_too_long_are_not_sent(launch: Launch) -> None:
    script = USES_DOUBLE + "import numpy\ndef run(data):\n    double.predict(numpy.zeros((int(data), 2)))\n"
    worker = launch(script)
    worker.begin(max_payload=1024)
    until(worker, READY)
    assert call(worker, "112").outcome == RETURNED
    worker.send_call(2, call_payload(POST, body=b"113"))
    answer = parse_reply(worker.receive())
    message = "ValueError: the inputs of model `double` take 1032 bytes, the most is 1024"
    assert (answer.outcome, answer.message) == (RAISED, message)


def test_errors_of_the_runtime(launch: Launch) -> None:
    script = USES_DOUBLE + """
def run(data):
    try:
        double.predict(x=[[1, 2]])
    except ModelError as error:
        return [error.code, error.message, str(error)]
"""
    worker = start(launch(script))
    worker.send_call(1, call_payload(POST))
    asked = worker.receive()
    worker.send(frame(MODEL_ERROR, asked.number, b'{"code": "overloaded", "message": "too much to do"}'))
    answer = parse_reply(worker.receive())
    assert answer.json() == ["overloaded", "too much to do", "too much to do (overloaded)"]


def test_no_such_model(launch: Launch) -> None:
    worker = launch(PRELUDE + "def init():\n    model('other')\ndef run(data):\n    pass\n")
    worker.begin()
    answer_model(worker, worker.receive())
    failed = worker.receive().json()
    assert (failed["phase"], failed["message"]) == (
        "init",
        "ModelError: there is no model `other` (not_found)",
    )
    assert worker.wait() == 3


@pytest.mark.parametrize(
    ("name", "error"), [("''", "ValueError"), ("'x' * 65536", "ValueError"), ("7", "TypeError")]
)
def test_names_that_are_none(launch: Launch, name: str, error: str) -> None:
    failed = launch(PRELUDE + f"def init():\n    model({name})\ndef run(data):\n    pass\n").fail()
    assert failed["message"].startswith(error)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(TENSORS, b"nonsense"), (MODEL_INFO, b"{}"), (MODEL_ERROR, b"no json"), (MODEL_ERROR, b'{"code": "x"}')],
)
def test_answers_that_make_no_sense_end_the_worker(launch: Launch, kind: int, payload: bytes) -> None:
    worker = start(launch(USES_DOUBLE + "def run(data):\n    double.predict([[1, 2]])\n"))
    worker.send_call(1, call_payload(POST))
    worker.send(frame(kind, worker.receive().number, payload))
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 1


def test_the_runtime_hangs_up_during_predict(launch: Launch) -> None:
    script = USES_DOUBLE + """
def run(data):
    try:
        double.predict([[1, 2]])
    except ConnectionError as error:
        print(error)
        raise
"""
    worker = start(launch(script))
    worker.send_call(1, call_payload(POST))
    assert worker.receive().kind == INFER
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate()[0] == "the runtime has closed the connection\n"


def test_threads_within_a_call(launch: Launch) -> None:
    """Answers go to those who asked, in whatever order they come."""
    script = USES_DOUBLE + """
from concurrent.futures import ThreadPoolExecutor
def run(data):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda x: double.predict([[x, 0]]).tolist()[0][0], range(64)))
"""
    worker = start(launch(script))
    worker.send_call(1, call_payload(POST))
    asked: list[Frame] = []
    done = 0
    while done < 64:
        asked.append(worker.receive())
        # Eight ask at once; the last is answered first.
        if len(asked) == min(8, 64 - done):
            for request in reversed(asked):
                answer_model(worker, request)
            done += len(asked)
            asked.clear()
    assert parse_reply(worker.receive()).json() == [2.0 * x for x in range(64)]


def test_a_thread_that_works_beside_the_calls(launch: Launch) -> None:
    """Requests and answers cross with calls; neither side waits for the other."""
    script = USES_DOUBLE + """
results = []
def work():
    for x in range(300):
        results.append(double.predict([[x, x]]).tolist()[0][0])
def run(data):
    if data == "start":
        globals()["thread"] = threading.Thread(target=work)
        thread.start()
    elif data == "join":
        thread.join()
        return results == [2.0 * x for x in range(300)]
    elif data == "predict":
        return double.predict([[7, 7]]).tolist()[0][0]
    return data
"""
    worker = start(launch(script))
    bodies = ["start"] + ["predict", "echo"] * 100 + ["join"]
    for number, body in enumerate(bodies, 1):
        answer = call(worker, body, number)
        assert answer.json() == {"predict": 14.0, "join": True}.get(body, body)


def test_a_thread_takes_a_call_for_the_loop(launch: Launch) -> None:
    """A thread that waits for an answer may be who reads; calls that it reads must not wait for it."""
    worker = start(launch(USES_DOUBLE + PREDICTS_IN_A_THREAD))
    asked = start_thread(worker)
    for number in range(2, 50):
        assert worker.post("between", number=number).json() == "between"
    answer_model(worker, asked)
    assert worker.post("join", number=50).json() == [[2.0, 4.0]]


def test_requests_between_calls(launch: Launch) -> None:
    """A thread is served while no call is under way."""
    script = """
def work():
    for line in open("go"):
        print(double.predict([[int(line), 2]]).tolist())
threading.Thread(target=work, daemon=True).start()
def run(data):
    return data
"""
    worker = launch(USES_DOUBLE + script)
    os.mkfifo(worker.folder / "go")
    start(worker)
    with open(worker.folder / "go", "w") as go:
        for number in range(1, 20):
            print(number, file=go, flush=True)
            answer_model(worker, worker.receive())
            assert worker.printed() == f"[[{2.0 * number}, 4.0]]\n"
            if number % 3 == 0:
                assert worker.post("x", number=number).json() == "x"


def test_a_request_between_calls_hears_of_the_end(launch: Launch) -> None:
    script = """
def work():
    try:
        double.predict([[1, 2]])
    except ConnectionError as error:
        print(error)
def run(data):
    threading.Thread(target=work).start()
    return data
"""
    worker = start(launch(USES_DOUBLE + script))
    worker.send_call(1, call_payload(POST))
    # In whatever order they come.
    assert {worker.receive().kind, worker.receive().kind} == {INFER, REPLY}
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate() == ("the runtime has closed the connection\n", "")


def test_large_requests_of_several_threads(launch: Launch) -> None:
    script = USES_DOUBLE + """
import numpy
from concurrent.futures import ThreadPoolExecutor
def work(x):
    return bool((double.predict(numpy.full((200_000, 2), x)) == 2 * x).all())
def run(data):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, range(12)))
"""
    worker = start(launch(script))
    worker.send_call(1, call_payload(POST))
    answers: list[threading.Thread] = []
    asked = 0
    # Answered from threads, one at a time, as the worker may send and receive at the same time.
    turn = threading.Lock()

    def answer(request: Frame) -> None:
        with turn:
            answer_model(worker, request)

    while asked < 12:
        request = worker.receive()
        asked += 1
        answers.append(threading.Thread(target=answer, args=(request,)))
        answers[-1].start()
    for thread in answers:
        thread.join()
    assert parse_reply(worker.receive()).json() == [True] * 12


def test_in_a_forked_child(launch: Launch) -> None:
    script = USES_DOUBLE + """
import os
def run(data):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            double.predict([[1, 2]])
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    text = os.read(read, 1000).decode()
    os.close(read)
    return [text, double.predict([[1, 2]]).tolist()]
"""
    message = "RuntimeError: a model handle works in the worker process only, not in a process forked from it"
    worker = start(launch(script))
    assert call(worker).json() == [message, [[2.0, 4.0]]]
    assert call(worker, number=2).json() == [message, [[2.0, 4.0]]]


INTERRUPTED = USES_DOUBLE + """
import numpy, signal
def late(*_):
    raise TimeoutError("too late")
signal.signal(signal.SIGALRM, late)
def run(data):
    return double.predict([[1, 2]]).tolist()
"""


def test_a_signal_handler_that_ends_the_wait(launch: Launch) -> None:
    """The answer that nobody waits for any more is passed over."""
    worker = start(launch(INTERRUPTED))
    for number in range(1, 20):
        worker.send_call(number, call_payload(POST))
        asked = worker.receive()
        until_asleep(worker)
        worker.process.send_signal(signal.SIGALRM)
        answer = parse_reply(worker.receive())
        assert (answer.outcome, answer.message) == (RAISED, "TimeoutError: too late")
        answer_model(worker, asked)
    assert call(worker, number=20).json() == [[2.0, 4.0]]


@pytest.mark.parametrize("cut", [1, 5, 16, 17, 80])
def test_a_transfer_cut_short_ends_the_worker(launch: Launch, cut: int) -> None:
    """Part of an answer has come when a handler ends the wait; the rest must not be taken for a frame."""
    worker = start(launch(INTERRUPTED))
    worker.send_call(1, call_payload(POST))
    asked = worker.receive()
    data = frame(TENSORS, asked.number, encode_block({"y": np.zeros((1, 2), np.float32)}))
    worker.send(data[:cut])
    until_received(worker)
    worker.process.send_signal(signal.SIGALRM)
    if cut < 16:
        # Not even a header: the rest of it is waited for, and the answer is passed over.
        answer = parse_reply(worker.receive())
        assert (answer.outcome, answer.message) == (RAISED, "TimeoutError: too late")
        worker.send(data[cut:])
        assert call(worker, number=2).json() == [[2.0, 4.0]]
    else:
        assert worker.sock.recv(1) == b""
        assert worker.wait() == 1
        assert "receiving was cut short by TimeoutError('too late')" in worker.process.communicate()[1]


@pytest.mark.parametrize("size", [10, 100_000, 300_000])
def test_a_call_that_comes_in_the_same_piece_as_an_answer(launch: Launch, size: int) -> None:
    worker = start(launch(USES_DOUBLE + PREDICTS_IN_A_THREAD))
    asked = start_thread(worker)
    body = b"x" * size
    result = frame(TENSORS, asked.number, encode_block({"y": np.zeros((1, 2), np.float32)}))
    worker.send(frame(CALL, 2, call_payload(POST, body=body)) + result)
    assert parse_reply(worker.receive()).json() == body.decode()
    assert worker.post("join", number=3).json() == [[0.0, 0.0]]


PREDICTS_IN_A_THREAD = """
def work():
    global y
    y = double.predict([[1, 2]]).tolist()
def run(data):
    global thread
    if data == "start":
        thread = threading.Thread(target=work)
        thread.start()
        # Says that the request has arrived.
        open("go").read()
    elif data == "join":
        thread.join()
        return y
    return data
"""


def start_thread(worker: Worker) -> Frame:
    """Has PREDICTS_IN_A_THREAD start its thread, in call 1; gives the request that the thread has made."""
    os.mkfifo(worker.folder / "go")
    worker.send_call(1, call_payload(POST, body=b"start"))
    request = worker.receive()
    assert request.kind == INFER
    with open(worker.folder / "go", "w"):
        pass
    assert worker.receive().kind == REPLY
    return request


def until_received(worker: Worker) -> None:
    """Waits until the worker's process has taken all bytes that were sent to it, and sleeps for more."""
    while unread(worker.sock):
        os.sched_yield()
    until_asleep(worker)


def until_asleep(worker: Worker, thread: int | None = None) -> None:
    """Waits until a thread of the worker, by default the main thread, sleeps."""
    process = worker.process.pid
    stat = Path(f"/proc/{process}/task/{thread or process}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "S":
        os.sched_yield()


def unread(sock: socket.socket) -> int:
    """How much of what was sent through `sock` is still in the kernel."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
