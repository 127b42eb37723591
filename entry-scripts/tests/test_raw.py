"""Scripts that take the HTTP request itself: what they find in it, and what they may answer."""

import json
import struct
from typing import Any

import pytest

from conftest import INIT, Launch
from harness import (
    GET,
    HEAD,
    INPUT_REFUSED,
    NOT_SERIALISABLE,
    OPTIONS,
    POST,
    RAISED,
    RETURNED,
    STREAM_BEGINS,
    WHOLE_ANSWER,
    Answer,
    Worker,
    call_payload,
)

IMPORTS = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
import datetime, io, json
"""
#: Evaluates the query's field `value`.
SHOW = IMPORTS + "@rawhttp\ndef run(request):\n    return eval(request.args['value'])\n"

JSON = [("content-type", "application/json; charset=utf-8")]
FORM = [("content-type", "application/x-www-form-urlencoded")]
MULTIPART = [("content-type", 'multipart/form-data; boundary="a b"')]

TWO_PARTS = (
    b"preamble\r\n--a b\r\n"
    b'Content-Disposition: form-data; name="text"\r\n\r\nh\xc3\xa9\r\n'
    b"--a b\r\n"
    b'Content-Disposition: form-data; name="image"; filename="a b.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x89PNG\r\n\r\n--a\r\n"
    b"--a b--\r\nepilogue"
)


def call(
    worker: Worker,
    value: str = "",
    body: bytes = b"",
    headers: list[tuple[str, str]] | None = None,
    method: int = POST,
    number: int = 1,
) -> Answer:
    """Has the script evaluate `value`."""
    query = b"value=" + "".join(f"%{byte:02X}" for byte in value.encode()).encode()
    worker.send_call(number, call_payload(method, body=body, query=query, headers=headers))
    return worker.reply(number)


def headers_of(answer: Answer) -> list[tuple[str, str]]:
    """The header block of an answer."""
    block, pairs = answer.message.encode("utf-8", "surrogateescape"), []
    while block:
        name_size, value_size = struct.unpack_from("<HH", block)
        name, value = block[4 : 4 + name_size], block[4 + name_size : 4 + name_size + value_size]
        pairs.append((name.decode(), value.decode("latin-1")))
        block = block[4 + name_size + value_size :]
    return pairs


def test_ready(launch: Launch) -> None:
    ready = launch(INIT + SHOW).start()
    assert (ready["mode"], ready["headers"]) == ("raw", "all")
    assert ready["methods"] == ["GET", "POST", "OPTIONS", "HEAD"]


@pytest.mark.parametrize(
    ("value", "headers", "body", "expected"),
    [
        ("request.method", [], b"", "POST"),
        ("[type(request) is AMLRequest, request.path]", [], b"", [True, "/score"]),
        ("request.data.decode()", [], b"abc", "abc"),
        ("request.get_data().decode()", FORM, b"a=1", "a=1"),
        ("request.data.decode()", FORM, b"a=1", "a=1"),
        ("request.get_data(cache=False, as_text=True)", [], b"h\xc3\xa9\xff", "h\xe9\ufffd"),
        ("request.stream.read(2).decode()", [], b"abc", "ab"),
        ("[request.view.readonly, len(request.view)]", [], b"abc", [True, 3]),
        ("request.get_json()", JSON, b'{"a": 1}', {"a": 1}),
        ("request.json", [("Content-Type", "application/vnd.x+json")], b"[1]", [1]),
        ("request.get_json(force=True)", [], b"[1]", [1]),
        ("request.get_json(silent=True)", JSON, b"[1", None),
        ("request.get_json(silent=True)", [], b"[1]", None),
        ("request.is_json", JSON, b"", True),
        ("request.is_json", [("content-type", "text/json")], b"", False),
        (
            "[request.content_type, request.mimetype]",
            JSON,
            b"",
            ["application/json; charset=utf-8", "application/json"],
        ),
        ("[request.content_type, request.mimetype]", [], b"", [None, ""]),
        ("[request.content_length, request.charset]", [], b"abc", [3, "utf-8"]),
        ("request.headers['x-a']", [("X-A", "1")], b"", "1"),
        ("request.headers.get('X-Missing', 'none')", [], b"", "none"),
        ("request.headers.get('x-a', type=int)", [("X-A", "1")], b"", 1),
        ("'X-A' in request.headers", [("x-a", "1")], b"", True),
        ("dict(request.headers)", [("x-a", "1"), ("X-A", "2")], b"", {"X-A": "1,2"}),
        ("[list(pair) for pair in request.headers]", [("x-a", "1")], b"", [["X-A", "1"]]),
        ("request.form", FORM, b"a=1&b=%C3%A9+&a=2", {"a": "1", "b": "\xe9 "}),
        ("request.form.getlist('a', type=int)", FORM, b"a=1&a=x&a=2", [1, 2]),
        ("request.form.to_dict(flat=False)", FORM, b"a=1&a=2", {"a": ["1", "2"]}),
        ("request.form", JSON, b"a=1", {}),
        ("request.values['a']", FORM, b"a=1", "1"),
        ("request.form", MULTIPART, TWO_PARTS, {"text": "h\xe9"}),
        ("list(request.files)", MULTIPART, TWO_PARTS, ["image"]),
        ("request.files['image'].filename", MULTIPART, TWO_PARTS, "a b.png"),
        ("request.files['image'].content_type", MULTIPART, TWO_PARTS, "image/png"),
        ("request.files['image'].read().decode('latin-1')", MULTIPART, TWO_PARTS, "\x89PNG\r\n\r\n--a"),
        ("request.files['image'].stream.read(4).decode('latin-1')", MULTIPART, TWO_PARTS, "\x89PNG"),
        ("request.files['image'].save('saved') or len(open('saved', 'rb').read())", MULTIPART, TWO_PARTS, 11),
        ("io.BytesIO() and request.files.get('missing')", MULTIPART, TWO_PARTS, None),
        ("request.cookies", [("cookie", 'a=1; b="x%20y"')], b"", {"a": "1", "b": "x y"}),
        ("[request.host, request.base_url]", [("host", "h:80")], b"", ["h:80", "http://h:80/score"]),
        ("request.url.partition('?')[0]", [], b"", "http://localhost/score"),
        ("request.environ['HTTP_X_A'] + request.environ['REQUEST_METHOD']", [("x-a", "1")], b"", "1POST"),
        ("request.remote_addr", [], b"", {}),
    ],
)
def test_what_is_in_a_request(
    serve: Launch, value: str, headers: list[tuple[str, str]], body: bytes, expected: Any
) -> None:
    answer = call(serve(SHOW), value, body, headers)
    assert (answer.outcome, answer.message) == (RETURNED, "")
    assert answer.json() == ({} if expected is None else expected)


@pytest.mark.parametrize(
    ("value", "headers", "body", "status", "message"),
    [
        ("request.get_json()", [], b"{}", 415, "Expects Content-Type to be application/json"),
        ("request.json", JSON, b"[1", 400, "POST body could not be decoded as JSON: Expecting ',' delimiter"),
        ("request.json", JSON, b"\xff", 400, "POST body could not be decoded as JSON: 'utf-8' codec"),
        (
            "request.json",
            JSON,
            b"[" * 100_000,
            400,
            "POST body could not be decoded as JSON: maximum recursion",
        ),
        (
            "request.form",
            FORM,
            b"a=1&" * 1001,
            400,
            "The form cannot be read: there are more than 1000 fields",
        ),
        (
            "request.files",
            [("content-type", "multipart/form-data")],
            b"",
            400,
            "The form cannot be read: the content type has no boundary",
        ),
        (
            "request.files",
            MULTIPART,
            b"--a b\r\n\r\n",
            400,
            "The form cannot be read: the last boundary is missing",
        ),
        (
            "request.files",
            MULTIPART,
            b"--a b\r\nContent-Type: x/y\r\n\r\n\r\n--a b--",
            400,
            "The form cannot be read: a part has no name",
        ),
        (
            "request.files",
            MULTIPART,
            b"--a b\r\nX: " + b"x" * 16384 + b"\r\n\r\n\r\n--a b--",
            400,
            "The form cannot be read: a part has no header, or one of more than 16384 bytes",
        ),
        (
            "request.files",
            MULTIPART,
            b'--a b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 1001 + b"--a b--",
            400,
            "The form cannot be read: there are more than 1000 parts",
        ),
    ],
)
def test_requests_that_are_not_what_the_script_expects(
    serve: Launch, value: str, headers: list[tuple[str, str]], body: bytes, status: int, message: str
) -> None:
    answer = call(serve(SHOW), value, body, headers)
    assert (answer.outcome, answer.status) == (INPUT_REFUSED, status)
    assert answer.message.startswith(message)
    compat = call(serve(SHOW, compat=True), value, body, headers)
    assert compat.outcome == RAISED


def test_data_of_a_form_under_compat(serve: Launch) -> None:
    worker = serve(SHOW, compat=True)
    assert call(worker, "request.data.decode()", b"a=1", FORM).json() == ""
    assert call(worker, "request.get_data().decode()", b"a=1", FORM).json() == "a=1"


@pytest.mark.parametrize(
    ("method", "name"), [(GET, "GET"), (POST, "POST"), (OPTIONS, "OPTIONS"), (HEAD, "HEAD")]
)
def test_every_method_reaches_the_script(serve: Launch, method: int, name: str) -> None:
    assert call(serve(SHOW), "request.method", method=method).json() == name


def test_a_body_in_shared_memory_is_not_copied(serve: Launch) -> None:
    worker = serve(
        IMPORTS + "@rawhttp\ndef run(request):\n    global kept\n    kept = request.view\n"
        "    return bytes(kept).decode() + request.get_data(as_text=True)\n"
    )
    region = worker.share(7, 100)
    worker.send_body(1, b"before", region)
    assert worker.reply(1).json() == "beforebefore"


HTML, AS_JSON = ("Content-Type", "text/html; charset=utf-8"), ("Content-Type", "application/json")


@pytest.mark.parametrize(
    ("response", "status", "headers", "body", "failed"),
    [
        ("'h\xe9', 200", 200, [HTML], "h\xe9".encode(), False),
        ("b'\\xff', 201", 201, [HTML], b"\xff", False),
        ("memoryview(b'ab'), 200", 200, [HTML], b"ab", False),
        ("['a', b'b'], 200", 200, [HTML], b"ab", False),
        ("None, 202", 202, [AS_JSON], b"{}", False),
        ("{'a': '\xe9'}, 200, {}, True", 200, [AS_JSON], b'{"a": "\\u00e9"}', False),
        ("{'a': 1}, 200, json_str=True", 200, [AS_JSON], b'{"a": 1}', False),
        ("'', 404", 404, [HTML], b"", False),
        ("'x', 200, {'Content-Type': 'text/plain'}", 200, [("Content-Type", "text/plain")], b"x", False),
        ("'x', 200, {'content-type': 'text/plain'}", 200, [("content-type", "text/plain")], b"x", False),
        ("'x', 200, {'A': 'b, c'}", 200, [HTML, ("A", "b"), ("A", "c")], b"x", False),
        ("'x', 200, {'X-Request-Id': 'mine', 'Content-Length': '7'}", 200, [HTML], b"x", False),
        ("'x', 200, {'A': '\xe9'}", 200, [HTML, ("A", "\xe9")], b"x", False),
        ("'x', 400, {}, False, True", 400, [HTML], b"x", True),
        ("'x', 400, run_function_failed=True", 400, [HTML], b"x", True),
        ("'x', 500", 500, [HTML], b"x", True),
        ("'x', 200, {'x-ms-run-function-failed': 'True'}", 200, [HTML], b"x", True),
    ],
)
def test_aml_response(
    serve: Launch, response: str, status: int, headers: list[tuple[str, str]], body: bytes, failed: bool
) -> None:
    answer = call(serve(SHOW), f"AMLResponse({response})")
    assert (answer.outcome, answer.status, answer.flags) == (WHOLE_ANSWER, status, int(failed))
    assert headers_of(answer) == headers
    assert answer.rest == body


@pytest.mark.parametrize(
    ("change", "headers", "body"),
    [
        ("answer.headers['A'] = 'b, c'", [HTML, ("A", "b, c")], b"x"),
        ("answer.headers.add('A', 1); answer.headers.add('A', 2)", [HTML, ("A", "1"), ("A", "2")], b"x"),
        ("answer.content_type = 'a/b'", [("Content-Type", "a/b")], b"x"),
        ("answer.mimetype = 'text/csv'", [("Content-Type", "text/csv; charset=utf-8")], b"x"),
        ("answer.data = 'y'", [HTML], b"y"),
        ("answer.set_data(answer.get_data(as_text=True) * 2)", [HTML], b"xx"),
        ("answer.set_cookie('a', 'b', httponly=True)", [HTML, ("Set-Cookie", "a=b; HttpOnly; Path=/")], b"x"),
    ],
)
def test_changing_a_response(serve: Launch, change: str, headers: list[tuple[str, str]], body: bytes) -> None:
    run = (
        f"@rawhttp\ndef run(request):\n    answer = AMLResponse('x', 200)\n    {change}\n    return answer\n"
    )
    answer = serve(IMPORTS + run).post()
    assert (answer.outcome, headers_of(answer), answer.rest) == (WHOLE_ANSWER, headers, body)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("'x', 200, {'A\\n': 'b'}", "ValueError: not a header: 'A\\n': 'b'"),
        ("'x', 200, {'A': '\u20ac'}", "UnicodeEncodeError: "),
        ("'x', 200, {'A': 'b' * 70000}", "ValueError: the headers of the answer have more than 65536 bytes"),
        ("'x', 99", "ValueError: an answer cannot have the status 99"),
        ("'x' * 2000, 200", "ValueError: the answer has 2040 bytes, the most is 1008"),
    ],
)
def test_responses_that_cannot_be_sent(launch: Launch, response: str, message: str) -> None:
    worker = launch(INIT + SHOW)
    worker.start(max_payload=1024)
    answer = call(worker, f"AMLResponse({response})")
    assert answer.outcome == NOT_SERIALISABLE
    assert answer.message.startswith(message)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("{'a': 1}, 200", "TypeError: AMLResponse takes text, bytes or an iterable of them, not dict"),
        ("1, 200", "TypeError: AMLResponse takes text, bytes or an iterable of them, not int"),
        ("float('nan'), 200, {}, True", "ValueError: Out of range float values are not JSON compliant"),
        ("datetime.date(2020, 1, 1), 200, {}, True", "TypeError: Object of type date is not JSON"),
    ],
)
def test_responses_that_cannot_be_made(serve: Launch, response: str, message: str) -> None:
    answer = call(serve(SHOW), f"AMLResponse({response})")
    assert answer.outcome == RAISED
    assert answer.message.startswith(message)


def test_nan_in_a_response_under_compat(serve: Launch) -> None:
    answer = call(serve(SHOW, compat=True), "AMLResponse(float('nan'), 200, {}, True)")
    assert (answer.outcome, answer.rest) == (WHOLE_ANSWER, b"NaN")


def test_a_response_that_streams(serve: Launch) -> None:
    worker = serve(SHOW)
    head = call(worker, "AMLResponse((text for text in ['a', b'b', 'c']), 203, {'Content-Type': 'a/b'})")
    assert (head.outcome, head.status, headers_of(head)) == (STREAM_BEGINS, 203, [("Content-Type", "a/b")])
    chunks, end = worker.stream(1)
    assert (chunks, end.outcome) == ([b"a", b"b", b"c"], RETURNED)


def test_a_response_without_raw_mode(serve: Launch) -> None:
    script = IMPORTS + "def run(data):\n    return AMLResponse(data, 201)\n"
    worker = serve(script)
    answer = worker.post("x")
    assert (answer.outcome, answer.status, answer.rest) == (WHOLE_ANSWER, 201, b"x")


@pytest.mark.parametrize(
    "decorator",
    ["run = rawhttp(run)", "rawhttp(lambda: None)", "import other"],
)
def test_the_whole_process_is_raw(launch: Launch, tmp_path: Any, decorator: str) -> None:
    (tmp_path / "other.py").write_text(
        "from azureml_inference_server_http.api.aml_request import rawhttp\n@rawhttp\ndef f(): pass\n"
    )
    worker = launch(INIT + IMPORTS + f"def run(data):\n    return type(data).__name__\n{decorator}\n")
    assert worker.start()["mode"] == "raw"
    assert worker.post().json() == "AMLRequest"


def test_headers_beside_the_request(serve: Launch) -> None:
    worker = serve(IMPORTS + "@rawhttp\ndef run(request, request_headers):\n    return request_headers\n")
    assert worker.post(headers=[("x-a", "1")]).json() == {"X-A": "1"}


def test_a_raw_batch(launch: Launch) -> None:
    worker = launch(
        INIT
        + IMPORTS
        + "@rawhttp\ndef run_batch(items):\n    return [r.get_data(as_text=True) for r in items]\n"
    )
    worker.start(max_batch=4)
    assert worker.post("x").json() == "x"


WERKZEUG = """
class HTTPException(Exception):
    description = "short and stout"
    response = None
    code = 418

class Unavailable(HTTPException):
    code = 503
"""
ABORTING = "def run(data):\n    import werkzeug.exceptions\n    raise werkzeug.exceptions.{name}\n"


@pytest.mark.parametrize(
    "imported", ["import werkzeug.exceptions\n", "def init():\n    import werkzeug.exceptions\n\n"]
)
@pytest.mark.parametrize(("name", "status", "failed"), [("HTTPException", 418, 0), ("Unavailable", 503, 1)])
def test_abort(serve: Launch, tmp_path: Any, imported: str, name: str, status: int, failed: int) -> None:
    (tmp_path / "werkzeug").mkdir()
    (tmp_path / "werkzeug" / "exceptions.py").write_text(WERKZEUG)
    (tmp_path / "werkzeug" / "__init__.py").touch()
    script = imported + ABORTING.format(name=name)
    answer = serve(script).post()
    assert (answer.outcome, answer.status, answer.flags) == (WHOLE_ANSWER, status, failed)
    assert json.loads(answer.rest) == {"message": "short and stout"}
    assert headers_of(answer) == [AS_JSON]
    assert serve(script, compat=True).post().outcome == RAISED


def test_a_response_of_flasks(serve: Launch) -> None:
    script = """
class Response:
    status_code, headers, is_streamed = 201, {"A": "b"}, False
    def get_data(self):
        return b"body"
def run(data):
    return Response()
"""
    answer = serve(script).post()
    assert (answer.outcome, answer.status, answer.rest) == (WHOLE_ANSWER, 201, b"body")
    assert headers_of(answer) == [("A", "b")]
