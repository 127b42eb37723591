"""What `run()` gets, and what becomes of what it returns or raises."""

import json

import pytest

from conftest import Launch
from harness import HEAD, INPUT_REFUSED, NOT_SERIALISABLE, OPTIONS, RAISED, RETURNED, call_payload

ECHO = "def run(data):\n    return data\n"
IMPORTS = "import math, os, sys, numpy, collections, datetime\n"


@pytest.mark.parametrize("body", ["", "{}", "not json", '{"a": "é€😀"}', "\x00\n", "\ufeffbom"])
def test_post_gives_the_body_as_text(serve: Launch, body: str) -> None:
    answer = serve(ECHO).post(body)
    assert (answer.outcome, answer.message, answer.json()) == (RETURNED, "", body)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"abc\xc3", "'utf-8' codec can't decode byte 0xc3 in position 3: unexpected end of data"),
    ],
)
def test_body_that_is_no_utf8(serve: Launch, body: bytes, detail: str) -> None:
    worker = serve(ECHO)
    answer = worker.post(body)
    assert (answer.outcome, answer.status, answer.rest) == (INPUT_REFUSED, 400, b"")
    assert answer.message == f"Input cannot be decoded as UTF-8: {detail}"
    assert worker.post("next", number=2).json() == "next"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "{}"),
        ("a=1&b=[1,2]&c=a&d=null", '{"a": 1, "b": [1, 2], "c": "a", "d": null}'),
        ("foo=bar1&x=y&foo=2", '{"foo": ["bar1", 2], "x": "y"}'),
        ("A=1&a=2", '{"A": 1, "a": 2}'),
        ("a=&b", '{"a": "", "b": ""}'),
        ("a=1+2&b=%2B&c=%7B%22k%22%3A%201.50%7D", '{"a": "1 2", "b": "+", "c": {"k": 1.5}}'),
        ("name=%C3%A9", '{"name": "\\u00e9"}'),
        ("name=%FF!", '{"name": "%FF!"}'),
        ("name=\xff", '{"name": "%FF"}'),
        ("a=1;b=2&&c=true", '{"a": "1;b=2", "c": true}'),
        ("a=NaN", '{"a": NaN}'),
        ("a=" + "9" * 5000, json.dumps({"a": "9" * 5000})),
        ("a=" + "[" * 100_000, json.dumps({"a": "[" * 100_000})),
    ],
)
def test_get_gives_the_query_as_json_text(serve: Launch, query: str, expected: str) -> None:
    answer = serve(ECHO).get(query)
    assert answer.outcome == RETURNED
    assert answer.json() == expected


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("compat", [False, True])
def test_forms_are_text_unless_compat(serve: Launch, kind: str, compat: bool) -> None:
    worker = serve(ECHO, compat=compat)
    assert worker.post("a=1", headers=[("content-type", kind)]).json() == ("" if compat else "a=1")
    assert worker.post(b"\xff", 2, headers=[("content-type", kind)]).outcome == (
        RETURNED if compat else INPUT_REFUSED
    )
    assert worker.post("a=1", 3, headers=[("content-type", "text/plain")]).json() == "a=1"


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_body_in_shared_memory(serve: Launch, size: int) -> None:
    worker = serve(ECHO)
    region = worker.share(7, 400_000)
    worker.send_body(1, b"x" * size, region)
    assert worker.reply(1).json() == "x" * size


VIEW = "def run(data: {annotation}):\n    return [type(data).__name__, len(data), bytes(data[:3]).decode()]\n"


@pytest.mark.parametrize("annotation", ["memoryview", "'memoryview'"])
def test_a_view_of_the_body(serve: Launch, annotation: str) -> None:
    worker = serve(VIEW.format(annotation=annotation))
    assert worker.post(b"abc\xff").json() == ["memoryview", 4, "abc"]
    assert worker.get("a=1", 2).json() == ["memoryview", 8, '{"a']


def test_a_view_of_a_body_in_shared_memory_is_no_copy(serve: Launch) -> None:
    worker = serve("""
kept = []
def run(data: memoryview):
    kept.append(data)
    return [data.readonly, [bytes(view).decode() for view in kept]]
""")
    region = worker.share(7, 100)
    worker.send_body(1, b"before", region)
    assert worker.reply(1).json() == [True, ["before"]]
    region.write(b"after!")
    assert worker.post("x", 2).json() == [True, ["after!", "x"]]


def test_a_view_is_text_under_compat(serve: Launch) -> None:
    worker = serve("def run(data: memoryview):\n    return data\n", compat=True)
    assert worker.post("abc").json() == "abc"


@pytest.mark.parametrize("method", [OPTIONS, HEAD])
def test_methods_that_do_not_reach_the_script(serve: Launch, method: int) -> None:
    worker = serve(ECHO)
    worker.send_call(1, call_payload(method))
    answer = worker.reply(1)
    assert (answer.outcome, answer.status, answer.message) == (INPUT_REFUSED, 405, "Method not allowed")


def test_request_headers(serve: Launch) -> None:
    worker = serve(
        "def run(data, request_headers):\n    return [data, str(type(request_headers)), request_headers]\n"
    )
    headers = [
        ("test-header", "a"),
        ("X-MS-request-ID", "b"),
        ("accept", "x"),
        ("Accept", "y"),
        ("e", "\xe9"),
        ("n", ""),
    ]
    expected = {"Test-Header": "a", "X-Ms-Request-Id": "b", "Accept": "x,y", "E": "é", "N": ""}
    assert worker.post("body", headers=headers).json() == ["body", "<class 'dict'>", expected]
    assert worker.post("body", number=2).json() == ["body", "<class 'dict'>", {}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("None", "{}"),
        ("'text'", '"text"'),
        ("'{\"a\": 1}'", '"{\\"a\\": 1}"'),
        ("{'a': 1, 'b': [1, 2.5, None, True]}", '{"a": 1, "b": [1, 2.5, null, true]}'),
        ("(1, 2)", "[1, 2]"),
        ("'\\u00e9\\ud800'", '"\\u00e9\\ud800"'),
        ("{1: 'a'}", '{"1": "a"}'),
        ("0", "0"),
        ("''", '""'),
        ("[]", "[]"),
        ("False", "false"),
        ("1e100", "1e+100"),
        ("numpy.float64(0.5)", "0.5"),
        ("collections.OrderedDict(b=1, a=2)", '{"b": 1, "a": 2}'),
    ],
)
def test_what_run_returns(serve: Launch, value: str, text: str) -> None:
    answer = serve(IMPORTS + f"def run(data):\n    return {value}\n").post()
    assert (answer.outcome, answer.message, answer.rest.decode()) == (RETURNED, "", text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("b'bytes'", "TypeError: Object of type bytes is not JSON serializable"),
        ("object()", "TypeError: Object of type object is not JSON serializable"),
        ("numpy.zeros(2)", "TypeError: Object of type ndarray is not JSON serializable"),
        ("numpy.float32(1)", "TypeError: Object of type float32 is not JSON serializable"),
        ("[{'when': datetime.date(2020, 1, 1)}]", "TypeError: Object of type date is not JSON serializable"),
        ("{(1, 2): 3}", "TypeError: keys must be str, int, float, bool or None, not tuple"),
        ("math.nan", "ValueError: Out of range float values are not JSON compliant"),
        ("{'a': [math.inf]}", "ValueError: Out of range float values are not JSON compliant"),
        ("[-math.inf]", "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_what_cannot_be_serialised(serve: Launch, value: str, message: str) -> None:
    worker = serve(IMPORTS + f"def run(data):\n    return 'fine' if data else {value}\n")
    answer = worker.post()
    assert answer.outcome == NOT_SERIALISABLE
    assert answer.message.startswith(message)
    assert answer.message.encode() in answer.rest
    assert worker.post("x", number=2).json() == "fine"


def test_a_circle_cannot_be_serialised(serve: Launch) -> None:
    answer = serve("def run(data):\n    a = []\n    a.append(a)\n    return a\n").post()
    assert (answer.outcome, answer.message) == (NOT_SERIALISABLE, "ValueError: Circular reference detected")


@pytest.mark.parametrize(
    ("value", "text"), [("math.nan", "NaN"), ("[math.inf, -math.inf]", "[Infinity, -Infinity]")]
)
def test_nan_under_compat(serve: Launch, value: str, text: str) -> None:
    answer = serve(IMPORTS + f"def run(data):\n    return {value}\n", compat=True).post()
    assert (answer.outcome, answer.rest.decode()) == (RETURNED, text)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise ValueError('bad: é')", "ValueError: bad: é"),
        ("raise KeyError('k')", "KeyError: 'k'"),
        ("assert data", "AssertionError"),
        ("sys.exit(2)", "SystemExit: 2"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('\\ud800')", "ValueError: \\ud800"),
        ("raise Unspeakable", "Unspeakable"),
        ("run(data)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_what_run_raises(serve: Launch, statement: str, message: str) -> None:
    script = IMPORTS + f"""
class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")
def run(data):
    if data == "next":
        return data
    {statement}
"""
    worker = serve(script)
    answer = worker.post()
    assert answer.outcome == RAISED
    assert answer.message.startswith(message)
    trace = answer.rest.decode()
    assert trace.startswith("Traceback (most recent call last):\n") and "in run\n" in trace
    assert "outrigger_worker" not in trace
    assert worker.post("next", number=2).json() == "next"


def test_long_messages_are_cut(serve: Launch) -> None:
    answer = serve("def run(data):\n    raise ValueError(data)\n").post("x" * 1_000_000)
    assert len(answer.message) == 16 * 1024
    assert len(answer.rest) == 256 * 1024


def test_answers_that_are_too_long(launch: Launch) -> None:
    worker = launch("def init():\n    pass\n\n" + ECHO)
    worker.start(max_payload=1024)
    # The head of the reply takes 16 bytes, the quotes take 2.
    assert worker.post("x" * 1006).outcome == RETURNED
    answer = worker.post("x" * 1007, number=2)
    message = "ValueError: the answer has 1009 bytes, the most is 1008"
    assert (answer.outcome, answer.message) == (NOT_SERIALISABLE, message)


def test_time_is_that_of_run(serve: Launch) -> None:
    script = """
import time
def run(data):
    began = time.perf_counter_ns()
    while time.perf_counter_ns() - began < 2_000_000:
        pass
    return time.perf_counter_ns() - began
"""
    answer = serve(script).post()
    assert 2_000_000 <= answer.json() <= answer.nanoseconds
