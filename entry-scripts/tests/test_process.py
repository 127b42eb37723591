"""The process around the script: its end, signals, output, descriptors, forks."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from conftest import Launch
from harness import CALL, ENTRY_SCRIPTS, PATIENCE, POST, RAISED, call_payload, frame, parse_reply


def test_the_runtime_hangs_up(serve: Launch) -> None:
    worker = serve("import atexit\natexit.register(print, 'in order')\ndef run(data):\n    return data\n")
    assert worker.post("x").json() == "x"
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate() == ("in order\n", "")


def test_the_runtime_hangs_up_during_a_call(serve: Launch) -> None:
    worker = serve("import sys\ndef run(data):\n    print('in run')\n    return sys.stdin.read()\n")
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.hang_up()
    assert worker.wait() == 0


@pytest.mark.parametrize(
    "sent", [b"", b"\x00" * 5, frame(CALL, 1, b"x" * 100)[:50]], ids=lambda sent: f"{len(sent)}-bytes"
)
def test_the_runtime_hangs_up_in_the_middle(serve: Launch, sent: bytes) -> None:
    worker = serve("def run(data):\n    return data\n")
    worker.send(sent)
    worker.hang_up()
    assert worker.wait() == 0


def test_the_runtime_hangs_up_before_start(launch: Launch) -> None:
    worker = launch()
    worker.hang_up()
    assert worker.wait() == 0


@pytest.mark.parametrize("variable", ["OUTRIGGER_WORKER_FD", "OUTRIGGER_REGIONS_FD"])
@pytest.mark.parametrize("descriptor", [None, "", "x", "-1", "999", "wrong type"])
def test_without_a_socket(variable: str, descriptor: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= {"PYTHONPATH": str(ENTRY_SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    stream, regions = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    good = {"OUTRIGGER_WORKER_FD": stream, "OUTRIGGER_REGIONS_FD": regions}
    environment |= {name: str(sock.fileno()) for name, sock in good.items() if name != variable}
    if descriptor == "wrong type":
        (other,) = (sock for name, sock in good.items() if name != variable)
        environment[variable] = str(other.fileno())
    elif descriptor is not None:
        environment[variable] = descriptor
    command = [sys.executable, "-m", "outrigger_worker"]
    with stream, regions:
        ended = subprocess.run(
            command,
            env=environment,
            pass_fds=[stream.fileno(), regions.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{variable} must name an open socket")


def test_phases(launch: Launch) -> None:
    script = """
print("import")
def init():
    print("init")
def warmup():
    print("warmup")
def shutdown():
    print("shutdown")
def run(data):
    return data
"""
    worker = launch(script)
    worker.start()
    assert worker.phases == ["init", "warmup"]
    assert [worker.printed() for _ in range(3)] == ["import\n", "init\n", "warmup\n"]
    worker.hang_up()
    assert worker.wait() == 0
    # Nobody takes frames any more.
    assert worker.process.communicate() == ("shutdown\n", "")


@pytest.mark.parametrize("phase", ["init", "warmup"])
def test_a_phase_that_fails(launch: Launch, phase: str) -> None:
    functions = {"init": "pass", "warmup": "pass", "shutdown": "print('not called')"}
    functions[phase] = "raise ValueError('broken')"
    worker = launch("".join(f"def {name}():\n    {what}\n" for name, what in functions.items()) + RUN)
    failed = worker.fail()
    assert (failed["phase"], failed["message"]) == (phase, "ValueError: broken")
    assert f"in {phase}\n" in failed["traceback"]
    assert worker.phases[-1] == phase
    assert worker.process.communicate()[0] == ""


def test_coroutines_in_a_sync_script(launch: Launch) -> None:
    script = "async def init():\n    global x\n    x = 7\nasync def shutdown():\n    print('down')\n"
    worker = launch(script + "def run(data):\n    return x\n")
    worker.start()
    assert worker.post().json() == 7
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate()[0] == "down\n"


def test_a_shutdown_that_fails(launch: Launch) -> None:
    worker = launch("def init():\n    pass\ndef shutdown():\n    raise SystemExit('too late')\n" + RUN)
    worker.start()
    worker.hang_up()
    assert worker.wait() == 0
    assert "SystemExit: too late" in worker.process.communicate()[1]


def test_the_runtime_closes_its_half(launch: Launch) -> None:
    """What has come is still answered."""
    worker = launch("def init():\n    pass\ndef shutdown():\n    print('shutdown')\n" + RUN)
    worker.start()
    for number in range(1, 50):
        worker.send_call(number, call_payload(POST, body=b"x"))
    worker.sock.shutdown(socket.SHUT_WR)
    assert [worker.reply(number).json() for number in range(1, 50)] == ["x"] * 49
    assert worker.wait() == 0
    assert worker.process.communicate()[0] == "shutdown\n"


def test_log(launch: Launch) -> None:
    """Lines from every thread, from finalisers, and none from a forked child."""
    script = """
import os, threading
from outrigger_worker import connection, context
class Last:
    def __del__(self):
        log("last")
def log(text, name=b"n"):
    return connection.current().log(context.number(), 20, 0, name, text.encode())
def init():
    log("in init")
def run(data):
    log("x" * 10_000)
    thread = threading.Thread(target=log, args=("in a thread",))
    thread.start()
    thread.join()
    cycle = [Last()]
    cycle.append(cycle)
    child = os.fork()
    if child == 0:
        os._exit(log("in a child"))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    worker = launch(script)
    worker.start()
    assert worker.post(number=5).json() == 0
    assert worker.logs[0] == (0, 20, 0, "n", "in init")
    assert worker.logs[1] == (5, 20, 0, "n", "x" * 8192)
    assert worker.logs[2] == (5, 20, 0, "n", "in a thread")
    # Cycles are collected while frames are sent, too.
    for number in range(6, 100):
        worker.post("y" * 100_000, number)
    worker.hang_up()


RUN = "def run(data):\n    return data\n"
VARIABLES = ("OUTRIGGER_WORKER_FD", "OUTRIGGER_REGIONS_FD")

LOOPS = {
    "python": "while True: pass",
    "c": "sum(range(10**12))",
    "integer power": "7 ** (10 ** 8)",
    "regular expression": "import re; re.match('(a*)*b', 'a' * 60)",
    "sleep": "import time; time.sleep(10**6)",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_dumps_the_stack_and_ends(serve: Launch, loop: str) -> None:
    worker = serve(f"def deep():\n    {LOOPS[loop]}\n\ndef run(data):\n    print('in run')\n    deep()\n")
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM
    trace = worker.process.communicate()[1]
    assert "most recent call first" in trace
    assert "score.py" in trace and "in run\n" in trace


def test_sigterm_dumps_all_threads(serve: Launch) -> None:
    script = """
import threading
gate = threading.Barrier(2)
def helper():
    gate.wait()
    threading.Event().wait()
def run(data):
    threading.Thread(target=helper, daemon=True).start()
    gate.wait()
    print("in run")
    threading.Event().wait()
"""
    worker = serve(script)
    worker.send_call(1, call_payload(POST))
    assert worker.printed() == "in run\n"
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM
    trace = worker.process.communicate()[1]
    assert "in helper\n" in trace and "in run\n" in trace


def test_sigterm_when_idle(serve: Launch) -> None:
    worker = serve("def run(data):\n    return data\n")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM


def test_a_sigterm_handler_of_the_script_runs_after_the_dump(serve: Launch) -> None:
    script = """
import os, signal, sys
def init():
    signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"flushed\\n"), sys.exit(0)))
def run(data):
    return data
"""
    worker = serve(script)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    out, trace = worker.process.communicate()
    assert out == "flushed\n"
    assert "most recent call first" in trace


def test_a_crash_dumps_the_stack(serve: Launch) -> None:
    worker = serve("import ctypes\ndef run(data):\n    ctypes.string_at(0)\n")
    worker.send_call(1, call_payload(POST))
    assert worker.wait() == -signal.SIGSEGV
    trace = worker.process.communicate()[1]
    assert "Segmentation fault" in trace and "in run\n" in trace


def test_sigint_is_ignored(serve: Launch) -> None:
    worker = serve(
        "import os, signal\ndef run(data):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 'here'\n"
    )
    worker.process.send_signal(signal.SIGINT)
    assert worker.post().json() == "here"


def test_an_exception_from_a_signal_handler_of_the_script(serve: Launch) -> None:
    script = """
import signal
def late(*_):
    raise TimeoutError("too late")
def init():
    signal.signal(signal.SIGALRM, late)
def run(data):
    if data:
        return data
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while True:
        pass
"""
    worker = serve(script)
    answer = worker.post()
    assert (answer.outcome, answer.message) == (RAISED, "TimeoutError: too late")
    assert worker.post("next", number=2).json() == "next"


def test_a_worker_that_dies_closes_the_socket(serve: Launch) -> None:
    worker = serve("import os\ndef run(data):\n    os._exit(7)\n")
    worker.send_call(1, call_payload(POST))
    assert worker.sock.recv(1) == b""
    assert worker.wait() == 7


def test_the_sockets_are_not_inherited(serve: Launch) -> None:
    script = """
import os, subprocess, sys
LIST = "import os; print([os.path.realpath(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')])"
def run(data):
    command = [sys.executable, "-c", LIST]
    listed = subprocess.run(command, close_fds=False, stdout=subprocess.PIPE, text=True, check=True)
    return [listed.stdout, [name for name in os.environ if name.endswith("_FD")]]
"""
    listed, variables = serve(script).post().json()
    assert "socket" not in listed
    assert variables == []


def test_a_forked_child_does_not_keep_the_socket_open(serve: Launch) -> None:
    script = """
import os
def run(data):
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        # Ends when the worker has.
        os.read(read, 1)
        os._exit(0)
    globals()["kept"] = write
    return "forked"
"""
    worker = serve(script)
    assert worker.post().json() == "forked"
    # The child closes its copy of the socket when it starts, and with the worker dead there is no other.
    worker.process.kill()
    assert worker.sock.recv(1) == b""


def test_a_forked_child_that_returns_from_run(serve: Launch) -> None:
    script = """
import os
def run(data):
    child = os.fork()
    if child == 0:
        return "from the child"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    worker = serve(script)
    assert worker.post().json() == 1
    assert worker.post(number=2).json() == 1
    worker.hang_up()
    assert "a process forked by the entry script returned from run()" in worker.process.communicate()[1]


def test_multiprocessing(serve: Launch) -> None:
    script = """
import multiprocessing
def square(number):
    return number * number
def run(data):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(square, range(4))
"""
    worker = serve(script)
    assert worker.post().json() == [0, 1, 4, 9]
    assert worker.post(number=2).json() == [0, 1, 4, 9]


def test_replies_go_on_after_failures(serve: Launch) -> None:
    worker = serve("def run(data):\n    return 1 / int(data)\n")
    for number in range(1, 200):
        worker.send_call(number, call_payload(POST, body=b"%d" % (number % 3)))
        answer = parse_reply(worker.receive())
        assert answer.number == number
        assert answer.outcome == (RAISED if number % 3 == 0 else 0)
