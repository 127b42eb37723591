"""What scripts print and log: one frame for each line, with the number of its call."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import INIT, Launch
from harness import PATIENCE, POST, Worker, call_payload

LOGGER, STDOUT, STDERR = 0, 1, 2
IMPORTS = "import asyncio, io, logging, os, subprocess, sys, threading, time, warnings\n"


def logged(worker: Worker, number: int = 7, body: str = "") -> list[tuple[int, int, int, str, str]]:
    """What comes in frames until the call is answered."""
    worker.logs.clear()
    answer = worker.post(body, number)
    assert answer.message == ""
    return worker.logs


@pytest.mark.parametrize(
    ("statement", "lines"),
    [
        ("print('a', 1)", ["a 1"]),
        ("print('a\\nb')", ["a", "b"]),
        ("print()", [""]),
        ("print('a', end=''); print('b')", ["ab"]),
        ("print('a', end='')", ["a"]),
        ("print('a', end='', flush=True); print('b')", ["a", "b"]),
        ("sys.stdout.write('a\\nb\\nc')", ["a", "b", "c"]),
        ("sys.stdout.writelines(['a\\n', 'b', 'c\\n'])", ["a", "bc"]),
        ("sys.stdout.buffer.write(b'h\\xc3\\xa9\\xff\\n')", ["h\xe9\\xff"]),
        ("print('\\r10%', end='\\r'); print('\\r20%')", ["10%\r\r20%"]),
        ("print('a\\r\\nb\\r\\n', end='')", ["a", "b"]),
        ("print('\\ud800')", ["\\ud800"]),
        ("print('x' * 20000)", ["x" * 8192, "x" * 8192, "x" * 3616]),
        ("print('\xe9' * 5000, end='')", ["\xe9" * 4096, "\xe9" * 904]),
        (
            "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); print('a'); sys.stdout.flush()",
            ["a"],
        ),
        ("sys.stdout.reconfigure(line_buffering=True); print('a')", ["a"]),
        ("print([sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.encoding])", ["[False, 1, 'utf-8']"]),
        ("sys.stdout.close(); print('a')", ["a"]),
    ],
)
def test_printing(serve: Launch, statement: str, lines: list[str]) -> None:
    worker = serve(IMPORTS + f"def run(data):\n    {statement}\n")
    assert logged(worker) == [(7, 20, STDOUT, "", line) for line in lines]


def test_stderr(serve: Launch) -> None:
    worker = serve(IMPORTS + "def run(data):\n    print('a', file=sys.stderr)\n    print('b')\n")
    assert logged(worker) == [(7, 20, STDERR, "", "a"), (7, 20, STDOUT, "", "b")]


def test_outside_of_calls(launch: Launch) -> None:
    worker = launch(
        "print('import')\ndef init():\n    print('init', end='')\n\ndef run(data):\n    print('run')\n"
    )
    worker.start()
    assert worker.logs == [(0, 20, STDOUT, "", "import"), (0, 20, STDOUT, "", "init")]
    assert logged(worker) == [(7, 20, STDOUT, "", "run")]


def test_two_threads_do_not_share_a_line(serve: Launch) -> None:
    worker = serve(IMPORTS + """
def other(begun, go):
    print("other begins", end="")
    begun.set()
    go.wait()
    print(" and ends")
def run(data):
    begun, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=other, args=(begun, go))
    thread.start()
    begun.wait()
    print("whole")
    go.set()
    thread.join()
""")
    assert [line[-1] for line in logged(worker)] == ["whole", "other begins and ends"]


def test_two_tasks_do_not_share_a_line(launch: Launch) -> None:
    worker = launch(INIT + IMPORTS + """
both = asyncio.Event()
begun = 0
async def run(data):
    global begun
    print(data, end="")
    begun += 1
    if begun == 2:
        both.set()
    await both.wait()
    print(data)
""")
    worker.start(concurrency=2)
    worker.send_call(1, call_payload(POST, body=b"a"))
    worker.send_call(2, call_payload(POST, body=b"b"))
    worker.receive()
    worker.receive()
    assert sorted((line[0], line[-1]) for line in worker.logs) == [(1, "aa"), (2, "bb")]


def test_child_processes_and_c_code_use_the_pipes(serve: Launch) -> None:
    worker = serve(IMPORTS + """
def run(data):
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    os.write(1, b"descriptor\\n")
    pid = os.fork()
    if pid == 0:
        print("fork")
        logging.getLogger("fork").warning("warned")
        os._exit(0)
    os.waitpid(pid, 0)
""")
    assert logged(worker) == []
    worker.hang_up()
    assert worker.wait() == 0
    out, err = worker.process.communicate(timeout=PATIENCE)
    assert (out, err) == ("child\ndescriptor\nfork\n", "warned\n")


def test_the_last_words_go_to_the_pipe(serve: Launch) -> None:
    worker = serve(IMPORTS + "import atexit\natexit.register(print, 'bye')\ndef run(data):\n    pass\n")
    worker.post()
    worker.hang_up()
    assert worker.wait() == 0
    assert worker.process.communicate(timeout=PATIENCE)[0] == "bye\n"


@pytest.mark.parametrize(
    ("statement", "frames"),
    [
        ("logging.getLogger('a.b').warning('w %s', 1)", [(30, LOGGER, "a.b", "w 1")]),
        ("logging.error('e')", [(40, LOGGER, "root", "e")]),
        ("logging.critical('two\\nlines')", [(50, LOGGER, "root", "two"), (50, LOGGER, "root", "lines")]),
        ("logging.info('below the level')", []),
        ("logging.getLogger('a').setLevel(10); logging.getLogger('a').debug('d')", [(10, LOGGER, "a", "d")]),
        ("logging.getLogger('a').log(35, 'between')", [(30, LOGGER, "a", "between")]),
        (
            "logging.basicConfig(level='INFO', format='%(levelname)s %(message)s'); logging.info('i')",
            [(20, STDERR, "", "INFO i")],
        ),
        ("logging.getLogger('a').warning('%d', 'x')", None),
        ("warnings.warn('old')", [(30, LOGGER, "py.warnings", "SCRIPT:8: UserWarning: old")]),
    ],
)
def test_logging(serve: Launch, tmp_path: Path, statement: str, frames: Any) -> None:
    script = IMPORTS + "def init():\n    pass\n\n\n\ndef run(data):\n    " + statement + "\n"
    received = logged(serve(script))
    if frames is None:
        assert received[0][2] == STDERR and received[0][-1] == "--- Logging error ---"
        return
    place = str(tmp_path / "score.py")
    assert received == [
        (7, level, source, name, text.replace("SCRIPT", place)) for level, source, name, text in frames
    ]


def test_exceptions_in_the_log(serve: Launch) -> None:
    worker = serve(
        IMPORTS
        + "def run(data):\n    try:\n        1 / 0\n    except ArithmeticError:\n        logging.exception('no')\n"
    )
    received = logged(worker)
    assert [line[-1] for line in received[:2]] == ["no", "Traceback (most recent call last):"]
    assert received[-1] == (7, 40, LOGGER, "root", "ZeroDivisionError: division by zero")


def test_a_thread_that_fails(serve: Launch) -> None:
    worker = serve(IMPORTS + """
def run(data):
    thread = threading.Thread(target=lambda: 1 / 0, name="bad")
    thread.start()
    thread.join()
""")
    received = logged(worker)
    assert received[0] == (7, 40, LOGGER, "threading", "Exception in thread bad:")
    assert received[-1] == (7, 40, LOGGER, "threading", "ZeroDivisionError: division by zero")


CONFIGURATION = {
    "version": 1,
    "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "aml"}},
    "formatters": {
        "aml": {"class": "azureml_inference_server_http.log_config.AMLLogFormatter", "format": "FORM"}
    },
    "root": {"level": "INFO", "handlers": ["out"]},
    "filters": {"f": {"()": "azureml_inference_server_http.log_config.RootAccessFilter"}},
}
LOGS = IMPORTS + "def run(data):\n    logging.info('i')\n"


def configuration(form: str) -> str:
    return json.dumps(CONFIGURATION).replace("FORM", form)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["logging.json"], "0 %(name)s"),
        (["src/logging.json"], "0 %(name)s"),
        (["logging.json", "src/logging.json"], "0 %(name)s"),
    ],
)
def test_logging_json(launch: Launch, tmp_path: Path, files: list[str], line: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "score.py").write_text(INIT + LOGS)
    for place, file in enumerate(files):
        (tmp_path / file).write_text(configuration(f"{place} %(name)s"))
    worker = launch()
    worker.start(entry_script="src/score.py")
    assert logged(worker) == [(7, 20, STDOUT, "", "0 root")]


def test_the_usual_log_line(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "logging.json").write_text(
        configuration("%(levelname).1s [%(process)d] %(name)s - %(message)s")
    )
    worker = launch(INIT + LOGS)
    worker.start()
    assert logged(worker) == [(7, 20, STDOUT, "", f"I [{worker.process.pid}] root - i")]


def test_a_logging_json_that_cannot_be_used(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "logging.json").write_text("{")
    failed = launch(INIT + LOGS).fail()
    assert (failed["phase"], failed["message"].partition(":")[0]) == ("import", "JSONDecodeError")
