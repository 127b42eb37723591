"""Scripts that answer bit by bit: what form the items take on the wire."""

import pytest

from conftest import INIT, Launch
from harness import RAISED, RETURNED, STREAM_BEGINS, WHOLE_ANSWER, parse_reply
from test_raw import headers_of

EVENTS = [("accept", "text/html, text/event-stream;q=0.9")]

TEXT = [("Content-Type", "text/plain; charset=utf-8")]
BYTES = [("Content-Type", "application/octet-stream")]
LINES = [("Content-Type", "application/x-ndjson")]
EVENT_HEADERS = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]

#: Each way to write a script that gives the items of `ITEMS` one by one.
FORMS = {
    "generator": "def run(data):\n    yield from ITEMS\n",
    "async generator": "async def run(data):\n    for item in ITEMS:\n        yield item\n",
    "returned": "def run(data):\n    return (item for item in ITEMS)\n",
    "iterator": "def run(data):\n    return iter(ITEMS)\n",
    "returned by async": "async def run(data):\n    return (item for item in ITEMS)\n",
    "async returned by async": (
        "async def items():\n    for item in ITEMS:\n        yield item\n\nasync def run(data):\n    return items()\n"
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("items", "headers", "chunks"),
    [
        ("['a', '\xe9', b'\\xff']", TEXT, [b"a", b"\xc3\xa9", b"\xff"]),
        ("[b'a', 'b', bytearray(b'c')]", BYTES, [b"a", b"b", b"c"]),
        (
            "[{'a': '\xe9'}, 'text', 1.5, None]",
            LINES,
            [b'{"a": "\\u00e9"}\n', b'"text"\n', b"1.5\n", b"null\n"],
        ),
        ("[]", LINES, []),
    ],
)
def test_items(
    serve: Launch, form: str, items: str, headers: list[tuple[str, str]], chunks: list[bytes]
) -> None:
    worker = serve(FORMS[form].replace("ITEMS", items))
    head = worker.post("x")
    assert (head.outcome, head.status, headers_of(head)) == (STREAM_BEGINS, 200, headers)
    received, end = worker.stream(1)
    assert b"".join(received) == b"".join(chunks)
    assert end.outcome == RETURNED


@pytest.mark.parametrize("form", ["generator", "async generator"])
@pytest.mark.parametrize(
    ("item", "event"),
    [
        ("'text'", b"data: text\n\n"),
        ("'a\\nb\\r\\nc\\rd'", b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        ("''", b"data: \n\n"),
        ("b'bytes'", b"data: bytes\n\n"),
        ("{'a': [1, '\xe9']}", b'data: {"a": [1, "\\u00e9"]}\n\n'),
        ("None", b"data: null\n\n"),
        ("{}", b"data: {}\n\n"),
        (
            "{'event': 'done', 'id': 7, 'retry': 100, 'data': {'a': 1}}",
            b'event: done\nid: 7\nretry: 100\ndata: {"a": 1}\n\n',
        ),
        ("{'data': 'x', 'more': 1}", b'data: {"data": "x", "more": 1}\n\n'),
        ("{'event': 'ping'}", b"event: ping\n\n"),
    ],
)
def test_events(serve: Launch, form: str, item: str, event: bytes) -> None:
    worker = serve(FORMS[form].replace("ITEMS", f"[{item}]"))
    head = worker.post("x", headers=EVENTS)
    assert (head.outcome, headers_of(head)) == (STREAM_BEGINS, EVENT_HEADERS)
    chunks, end = worker.stream(1)
    assert (b"".join(chunks), end.outcome) == (event, RETURNED)


@pytest.mark.parametrize(
    "script",
    [
        "def run(data, request_headers):\n    return iter('ab')\n",
        "from azureml.contrib.services.aml_request import rawhttp\n@rawhttp\ndef run(request):\n    yield 'a'\n    yield 'b'\n",
    ],
)
def test_events_where_headers_are_at_hand(serve: Launch, script: str) -> None:
    worker = serve(script)
    assert headers_of(worker.post(headers=EVENTS)) == EVENT_HEADERS
    assert b"".join(worker.stream(1)[0]) == b"data: a\n\ndata: b\n\n"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_raised_before_the_first_item(serve: Launch, form: str) -> None:
    script = "class Broken:\n    def __iter__(self):\n        raise ValueError('early')\nITEMS = Broken()\n"
    answer = serve(script + FORMS[form]).post("x")
    assert (answer.outcome, answer.message) == (RAISED, "ValueError: early")
    assert b"outrigger_worker" not in answer.rest


@pytest.mark.parametrize("form", ["generator", "async generator"])
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("(1 / (1 - x) for x in range(2))", "ZeroDivisionError: division by zero"),
        ("['a', 1]", "TypeError: an item of this stream has to be text or bytes, not int"),
        ("[1, object()]", "TypeError: Object of type object is not JSON serializable"),
        ("[1, float('nan')]", "ValueError: Out of range float values are not JSON compliant"),
    ],
)
def test_what_is_raised_later(serve: Launch, form: str, items: str, message: str) -> None:
    worker = serve(FORMS[form].replace("ITEMS", items))
    assert worker.post("x").outcome == STREAM_BEGINS
    chunks, end = worker.stream(1)
    assert len(b"".join(chunks)) > 0
    assert (end.outcome, end.message.startswith(message)) == (RAISED, True)


def test_an_event_field_of_two_lines(serve: Launch) -> None:
    worker = serve("def run(data):\n    yield 'a'\n    yield {'event': 'a\\ndata: b'}\n")
    worker.post("x", headers=EVENTS)
    chunks, end = worker.stream(1)
    assert b"".join(chunks) == b"data: a\n\n"
    assert end.message == "ValueError: the event of an event has to be one line, not 'a\\ndata: b'"


def test_nan_under_compat(serve: Launch) -> None:
    worker = serve("def run(data):\n    yield float('nan')\n", compat=True)
    worker.post("x")
    assert worker.stream(1)[0] == [b"NaN\n"]


def test_the_generator_is_closed(launch: Launch, tmp_path: object) -> None:
    worker = launch(INIT + """
closed = []
def run(data):
    if data == "closed":
        return closed
    return items()
def items():
    try:
        while True:
            yield "x" * 1000
    finally:
        closed.append(True)
""")
    worker.start(window=1000)
    worker.post("x")
    worker.receive()
    worker.cancel(1)
    while (received := worker.receive()).kind != 24:
        pass
    assert parse_reply(received, 24).outcome == RAISED
    assert worker.post("closed", 2).json() == [True]


def test_a_stream_of_flasks(serve: Launch) -> None:
    script = """
class Response:
    status_code, headers, is_streamed = 200, {"A": "b"}, True
    closed = 0
    def __init__(self):
        self.response = iter(["a", b"b"])
    def get_data(self):
        raise ValueError
    def close(self):
        Response.closed += 1
def run(data):
    return Response.closed if data else Response()
"""
    worker = serve(script)
    head = worker.post()
    assert (head.outcome, headers_of(head)) == (STREAM_BEGINS, [("A", "b")])
    assert worker.stream(1)[0] == [b"a", b"b"]
    assert worker.post("x", 2).json() == 1


def test_abort_before_the_first_item(serve: Launch) -> None:
    script = (
        "from azureml.contrib.services.aml_request import rawhttp\n"
        "@rawhttp\ndef run(request):\n    yield request.get_json()\n"
    )
    assert serve(script).post("{").status == 415


def test_a_whole_answer_of_an_async_script(serve: Launch) -> None:
    script = (
        "from azureml.contrib.services.aml_response import AMLResponse\n"
        "async def run(data):\n    return AMLResponse(data, 201)\n"
    )
    answer = serve(script).post("x")
    assert (answer.outcome, answer.status, answer.rest) == (WHOLE_ANSWER, 201, b"x")
