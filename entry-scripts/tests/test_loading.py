"""Finding, importing and checking the entry script: every failure is reported and ends with exit code 3."""

import json
import sys
from pathlib import Path

import pytest

from conftest import INIT, Launch
from harness import GET, INPUT_REFUSED, MORE, POST, call_payload, parse_reply

ECHO = INIT + "def run(data):\n    return data\n"


def test_ready_says_what_was_loaded(launch: Launch, tmp_path: Path) -> None:
    ready = launch(ECHO).start()
    python = ".".join(map(str, sys.version_info[:3]))
    script = str(tmp_path / "score.py")
    anything = {"type": "object", "example": {}}
    assert ready == {
        "mode": "plain",
        "kind": "sync",
        "headers": "none",
        "methods": ["GET", "POST"],
        "python": python,
        "script": script,
        "swagger": dict.fromkeys(["2", "3", "3.1"], {"input": anything, "output": anything}),
        "sample": None,
    }


def test_module_name_arguments_and_path(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "beside.py").write_text("WHERE = 'beside'\n")
    (tmp_path / "src" / "score.py").write_text("""
import json, sys, beside
def init():
    global at_init
    found = sys.modules[__name__].__name__
    at_init = {"argv": sys.argv, "tail": sys.path[-2:], "name": __name__, "found": found}
def run(data):
    return at_init | {"beside": beside.WHERE}
""")
    worker = launch()
    worker.start(entry_script="src/score.py", source_directory="src", args=["--level", "3"])
    assert worker.post().json() == {
        "argv": [str(tmp_path / "src" / "score.py"), "--level", "3"],
        "tail": [str(tmp_path), str(tmp_path / "src")],
        "name": "entry_module",
        "found": "entry_module",
        "beside": "beside",
    }


def test_absolute_entry_script_wins(launch: Launch, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.py").write_text(ECHO)
    ready = launch().start(entry_script=str(elsewhere / "other.py"), app_root=str(tmp_path))
    assert ready["script"] == str(elsewhere / "other.py")


@pytest.mark.parametrize("entry_script", [None, ""])
def test_without_entry_script_main_is_imported(
    launch: Launch, tmp_path: Path, entry_script: str | None
) -> None:
    (tmp_path / "main.py").write_text(INIT + "def run(data):\n    return __name__\n")
    worker = launch()
    assert worker.start(entry_script=entry_script)["script"] == str(tmp_path / "main.py")
    assert worker.post().json() == "main"


def test_main_is_found_in_the_source_directory(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text(ECHO)
    ready = launch().start(entry_script=None, source_directory="src")
    assert ready["script"] == str(tmp_path / "src" / "main.py")


def test_driver_module_lends_its_run(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(
        "def run(data, request_headers):\n    return ['inner', calls]\n\ncalls = []\n"
    )
    driver = """
import inner as driver_module
def init():
    driver_module.calls.append("outer init")
def run(data):
    return "outer"
"""
    worker = launch(driver)
    assert worker.start()["headers"] == "all"
    assert worker.post().json() == ["inner", ["outer init"]]


@pytest.mark.parametrize("driver", ["driver_module = 'text'", "import json as driver_module"])
def test_what_is_no_driver_module_is_left_alone(launch: Launch, driver: str) -> None:
    worker = launch(ECHO + driver)
    worker.start()
    assert worker.post("x").json() == "x"


@pytest.mark.parametrize(
    ("script", "missing"), [("def run(data): pass\n", "init"), ("def init(): pass\n", "run"), ("", "init")]
)
def test_missing_functions(launch: Launch, tmp_path: Path, script: str, missing: str) -> None:
    failed = launch(script).fail()
    path = tmp_path / "score.py"
    message = f"User script at {path} does not have a {missing}() function defined."
    assert failed == {"phase": "signature", "message": message, "traceback": ""}


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("", "run() needs to accept an argument for input data."),
        ("request_headers", 'run() needs to accept an argument other than "request_headers".'),
        ("*args", "run() cannot accept positional-only arguments, *args, or **kwargs."),
        ("**kwargs", "run() cannot accept positional-only arguments, *args, or **kwargs."),
        ("data, *args", "run() cannot accept positional-only arguments, *args, or **kwargs."),
        ("data, /", "run() cannot accept positional-only arguments, *args, or **kwargs."),
    ],
)
def test_signatures_that_are_refused(launch: Launch, signature: str, message: str) -> None:
    failed = launch(INIT + f"def run({signature}):\n    pass\n").fail()
    assert (failed["phase"], failed["message"]) == ("signature", message)


@pytest.mark.parametrize(
    ("signature", "result"),
    [
        ("data", "data"),
        ("data, more=1", "[data, more]"),
        ("*, data", "data"),
        ("request_headers, data", "[data, type(request_headers).__name__]"),
        ("data, *, request_headers", "[data, type(request_headers).__name__]"),
    ],
)
def test_signatures_that_are_taken(launch: Launch, signature: str, result: str) -> None:
    worker = launch(INIT + f"def run({signature}):\n    return {result}\n")
    wants_headers = "request_headers" in signature
    assert worker.start()["headers"] == ("all" if wants_headers else "none")
    answer = worker.post("x").json()
    assert answer == ["x", "dict"] if wants_headers else answer in ("x", ["x", 1])


def test_a_second_parameter_without_default_fails_the_call(launch: Launch) -> None:
    worker = launch(INIT + "def run(data, more):\n    return data\n")
    worker.start()
    answer = worker.post()
    assert answer.outcome == 1
    assert answer.message.startswith("TypeError: run() missing 1 required positional argument: 'more'")


@pytest.mark.parametrize(
    ("functions", "fields", "kind"),
    [
        ("def run(data): return data", {}, "sync"),
        ("async def run(data): return data", {"concurrency": 4}, "async"),
        ("async def run(data): yield data", {}, "async"),
        ("class Run:\n    async def __call__(self, data): return data\nrun = Run()", {}, "async"),
        ("def run_batch(items): return items", {}, "batch"),
        ("def run(data): return data\ndef run_batch(items): return items", {"max_batch": 8}, "batch"),
        ("def run(data): return data\ndef run_batch(items): return items", {"max_batch": 1}, "sync"),
        ("def run(data): return data", {"max_batch": 8}, "sync"),
    ],
)
def test_kinds(launch: Launch, functions: str, fields: dict[str, int], kind: str) -> None:
    worker = launch(INIT + functions)
    assert worker.start(**fields)["kind"] == kind


@pytest.mark.parametrize(
    ("functions", "fields", "message"),
    [
        (
            "def run(data): return data",
            {"concurrency": 4},
            "run() takes one call at a time, but a concurrency of 4 is configured: "
            "make it `async def run`, or configure more workers instead.",
        ),
        (
            "async def run_batch(items): return items",
            {},
            "run_batch() cannot be `async def` or a generator: it takes a list and returns one.",
        ),
        (
            "def run_batch(items, request_headers): return items",
            {},
            'run_batch() gets no "request_headers": it has one list, of the calls.',
        ),
    ],
)
def test_kinds_that_are_refused(launch: Launch, functions: str, fields: dict[str, int], message: str) -> None:
    failed = launch(INIT + functions).fail(**fields)
    assert failed == {"phase": "signature", "message": message, "traceback": ""}


def test_a_batch(launch: Launch) -> None:
    worker = launch(INIT + "def run_batch(items):\n    return [[len(items), item] for item in items]\n")
    worker.start(max_batch=4)
    worker.send_call(1, call_payload(POST, body=b"a", flags=MORE))
    worker.send_call(2, call_payload(POST, body=b"\xff", flags=MORE))
    worker.send_call(3, call_payload(GET, query=b"b=1"))
    answers = {answer.number: answer for answer in (parse_reply(worker.receive()) for _ in range(3))}
    assert answers[2].outcome == INPUT_REFUSED
    assert [answers[number].json() for number in (1, 3)] == [[2, "a"], [2, '{"b": 1}']]


def test_warmup_and_shutdown(launch: Launch, tmp_path: Path) -> None:
    worker = launch("""
import os
def init():
    global seen
    seen = ["init"]
def warmup():
    seen.append("warmup")
def run(data):
    return seen
def shutdown():
    with open("ended", "w") as file:
        file.write("in order")
""")
    worker.start()
    assert worker.post().json() == ["init", "warmup"]
    worker.hang_up()
    assert worker.wait() == 0
    assert (tmp_path / "ended").read_text() == "in order"


def test_a_helper_called_warmup_is_left_alone(launch: Launch) -> None:
    worker = launch(ECHO + "def warmup(model):\n    raise ValueError\nshutdown = 3\n")
    worker.start()
    assert worker.post("x").json() == "x"


def test_warmup_that_raises(launch: Launch) -> None:
    failed = launch(ECHO + "def warmup():\n    raise ValueError('cold')\n").fail()
    assert (failed["phase"], failed["message"]) == ("warmup", "ValueError: cold")


def test_what_is_in_the_model_directory_when_init_fails(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "models" / "b").mkdir(parents=True)
    (tmp_path / "models" / "b" / "weights").touch()
    (tmp_path / "models" / "a.txt").touch()
    (tmp_path / "models" / "loop").symlink_to("..")
    script = "def init():\n    raise ValueError('no model')\n\ndef run(data):\n    pass\n"
    failed = launch(script, AZUREML_MODEL_DIR=str(tmp_path / "models")).fail()
    tree = "models/\n    a.txt\n    b/\n        weights\n    loop\n"
    assert failed["message"] == "ValueError: no model"
    assert failed["traceback"].endswith(f"ValueError: no model\nModel Directory Contents:\n{tree}")


def test_a_long_tree_is_cut(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for number in range(200):
        (tmp_path / "models" / f"{number:03}").touch()
    script = "def init():\n    raise ValueError('no model')\n\ndef run(data):\n    pass\n"
    failed = launch(script, AZUREML_MODEL_DIR=str(tmp_path / "models")).fail()
    assert failed["traceback"].endswith("    198\nOutput Truncated. First 200 lines shown.\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        (
            "import a_module_that_is_not_there",
            "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        ),
    ],
)
@pytest.mark.parametrize("phase", ["import", "init"])
def test_code_that_raises(launch: Launch, phase: str, code: str, message: str) -> None:
    script = ECHO + code if phase == "import" else f"def init():\n    {code}\n\ndef run(data):\n    pass\n"
    failed = launch(script).fail()
    assert (failed["phase"], failed["message"]) == (phase, message)
    assert code in failed["traceback"] and "score.py" in failed["traceback"]
    assert "outrigger_worker" not in failed["traceback"]


def test_bad_syntax(launch: Launch) -> None:
    failed = launch(INIT + "def run(data)\n    pass\n").fail()
    assert failed["phase"] == "import"
    assert failed["message"].startswith("SyntaxError: expected ':'")
    assert "def run(data)\n" in failed["traceback"]


def test_no_such_file(launch: Launch, tmp_path: Path) -> None:
    failed = launch().fail()
    assert failed["phase"] == "import"
    assert (
        failed["message"] == f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/score.py'"
    )


def test_not_a_python_file(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "score.txt").write_text(ECHO)
    failed = launch().fail(entry_script="score.txt")
    message = f"the entry script `{tmp_path}/score.txt` is not a Python file"
    assert (failed["phase"], failed["message"]) == ("import", message)


def test_no_main(launch: Launch) -> None:
    failed = launch().fail(entry_script=None)
    assert (failed["phase"], failed["message"]) == ("import", "ModuleNotFoundError: No module named 'main'")


def test_init_runs_once_and_before_ready(launch: Launch) -> None:
    worker = launch(
        "count = 0\ndef init():\n    global count\n    count += 1\ndef run(data):\n    return count\n"
    )
    worker.start()
    assert [worker.post(number=number).json() for number in range(3)] == [1, 1, 1]


def test_classes_of_the_script_can_be_pickled(launch: Launch) -> None:
    script = """
from __future__ import annotations
import pickle
from dataclasses import dataclass
@dataclass
class Point:
    x: int
def run(data):
    return pickle.loads(pickle.dumps(Point(json.loads(data)))).x
import json
"""
    worker = launch(script + INIT)
    worker.start()
    assert worker.post(json.dumps(7)).json() == 7
