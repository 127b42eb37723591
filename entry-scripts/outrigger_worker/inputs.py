"""From a CALL to the arguments of `run()`: the parts of a payload, and plain mode, where the script gets text.

In plain mode a POST hands over its body as it is, whatever its content type. A GET hands over its query string
as JSON.
"""

import codecs
import json
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote

from . import frames
from .link import ProtocolError

#: The parameter of `run()` that receives the headers of the request.
HEADERS_PARAMETER: Final = "request_headers"
#: The media types of HTML forms.
FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")

#: Status, what the caller is told, what goes to the log.
Refusal = tuple[int, str, str]
#: One call: its number, the arguments of `run()`, the reason why it cannot be run, else None, the time limit of
#: `run()` in nanoseconds (0: none), the request id. A plain tuple, for making one with names takes seven times
#: as long.
Call = tuple[int, dict[str, Any], Refusal | None, int, bytes]
#: Reads a CALL's payload: its number, a view, where in the view the payload starts and ends, and the part of
#: the payload that lies in shared memory. The view is valid for no longer than the call of this function, the
#: tail for as long as somebody holds it. Raises ProtocolError when the payload does not parse.
Parser = Callable[[int, memoryview, int, int, memoryview | None], Call]

# With a request id as long as those that the replica makes up: most calls are read in one step.
_USUAL_ID_SIZE = 36
_HEAD_AND_ID = struct.Struct(f"{frames.CALL_HEAD.format}{_USUAL_ID_SIZE}s")


class Arguments(dict[str, Any]):
    """Arguments of a `run()` whose answer takes the form that the caller accepts."""

    accept: str = ""


class Parts(NamedTuple):
    """The parts of a CALL's payload."""

    method: int
    query: memoryview
    #: The header block.
    headers: memoryview
    body: memoryview
    #: Whether `body` may be kept: it lies in shared memory.
    lasting: bool
    limit: int
    request_id: bytes


def split(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Parts:
    """Takes a CALL's payload apart. Raises ProtocolError when it does not parse."""
    if end - start < frames.CALL_HEAD.size:
        raise ProtocolError(f"call {number} has a payload of {end - start} bytes")
    method, _, id_size, query_size, headers_size, limit = frames.CALL_HEAD.unpack_from(view, start)
    query_at = start + frames.CALL_HEAD.size + id_size
    headers_at = query_at + query_size
    body_at = headers_at + headers_size
    if body_at > end:
        raise ProtocolError(f"the parts of call {number} are longer than its payload")
    if tail is None:
        body, lasting = view[body_at:end], False
    else:
        body, lasting = tail if body_at == end else memoryview(bytes(view[body_at:end]) + tail), True
    request_id = bytes(view[start + frames.CALL_HEAD.size : query_at])
    return Parts(
        method, view[query_at:headers_at], view[headers_at:body_at], body, lasting, limit, request_id
    )


def plain_parser(parameter: str, wants_headers: bool) -> Parser:
    """For a script that gets text, under the name `parameter`; with `wants_headers` it gets the headers too.

    This is the path of every small call, so it does by itself what `split` does in more steps.
    """
    unpack, unpack_with_id = frames.CALL_HEAD.unpack_from, _HEAD_AND_ID.unpack_from
    head_size, with_id_size = frames.CALL_HEAD.size, _HEAD_AND_ID.size
    get, post = frames.METHOD_GET, frames.METHOD_POST

    def parse(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Call:
        if end - start >= with_id_size:
            method, _, id_size, query_size, headers_size, limit, request_id = unpack_with_id(view, start)
        elif end - start >= head_size:
            method, _, id_size, query_size, headers_size, limit = unpack(view, start)
        else:
            raise ProtocolError(f"call {number} has a payload of {end - start} bytes")
        query_at = start + head_size + id_size
        body_at = query_at + query_size + headers_size
        if body_at > end:
            raise ProtocolError(f"the parts of call {number} are longer than its payload")
        if id_size != _USUAL_ID_SIZE:
            request_id = bytes(view[query_at - id_size : query_at])
        refusal = None
        arguments: dict[str, Any] = {}
        if method == post:
            try:
                # The only copy of the body: from the receive buffer, or from shared memory, into the string.
                if tail is None:
                    arguments[parameter] = str(view[body_at:end], "utf-8")
                else:
                    arguments[parameter] = str(split(number, view, start, end, tail).body, "utf-8")
            except UnicodeDecodeError as error:
                refusal = (400, f"Input cannot be decoded as UTF-8: {error}", "")
        elif method == get:
            arguments[parameter] = query_as_json(view[query_at : query_at + query_size])
        else:
            refusal = method_refusal(number, method)
        if wants_headers:
            arguments[HEADERS_PARAMETER] = headers_as_dict(view[query_at + query_size : body_at])
        return number, arguments, refusal, limit, request_id

    return parse


def view_parser(parameter: str, wants_headers: bool) -> Parser:
    """For a script that gets the body, or the query as JSON, as a read-only view of bytes.

    A body that lies in shared memory is not copied.
    """

    def parse(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Call:
        parts = split(number, view, start, end, tail)
        refusal = None
        arguments: dict[str, Any] = {}
        if parts.method == frames.METHOD_POST:
            arguments[parameter] = parts.body if parts.lasting else memoryview(bytes(parts.body))
        elif parts.method == frames.METHOD_GET:
            arguments[parameter] = memoryview(query_as_json(parts.query).encode("ascii"))
        else:
            refusal = method_refusal(number, parts.method)
        if wants_headers:
            arguments[HEADERS_PARAMETER] = headers_as_dict(parts.headers)
        return number, arguments, refusal, parts.limit, parts.request_id

    return parse


def emptying_forms(parse: Parser, parameter: str) -> Parser:
    """`parse`, but the body of a form is an empty text, as it is in AzureML's inference server."""

    def parse_all(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Call:
        call = parse(number, view, start, end, tail)
        parts = split(number, view, start, end, tail)
        if parts.method == frames.METHOD_POST and media_type(parts.headers) in FORMS:
            arguments = call[1] | {parameter: ""}
            return number, arguments, None, call[3], call[4]
        return call

    return parse_all


def accepting(parse: Parser) -> Parser:
    """`parse`, with the caller's `accept` beside the arguments."""

    def parse_all(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Call:
        number, arguments, refusal, limit, request_id = parse(number, view, start, end, tail)
        arguments = Arguments(arguments)
        arguments.accept = headers_as_dict(split(number, view, start, end, tail).headers).get("Accept", "")
        return number, arguments, refusal, limit, request_id

    return parse_all


def method_refusal(number: int, method: int) -> Refusal:
    """For a method that does not reach the script. Raises ProtocolError for one that there is not."""
    if method not in (frames.METHOD_OPTIONS, frames.METHOD_HEAD):
        raise ProtocolError(f"call {number} has the unknown method {method}")
    return 405, "Method not allowed", ""


def query_as_json(query: memoryview | bytes) -> str:
    """A query string as a JSON object, in text."""
    return json.dumps(query_as_dict(query)) if query else "{}"


def query_as_dict(query: memoryview | bytes) -> dict[str, Any]:
    """A query string as the object that a JSON body would be.

    A value that is JSON is taken as such, any other as a string; a key that comes more than once gives a
    list. Keys are case-sensitive and keep the order of their first appearance. Percent-escapes that are no
    UTF-8 stay escapes.
    """
    values: dict[str, list[Any]] = {}
    text = str(query, "utf-8", "outrigger.escape")
    for key, value in parse_qsl(text, keep_blank_values=True, errors="outrigger.escape"):
        values.setdefault(key, []).append(_json_or_text(value))
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


def header_pairs(block: memoryview) -> Iterator[tuple[str, str]]:
    """Names, in Title-Case, and values of a header block. Raises ProtocolError when it does not parse."""
    at, end = 0, len(block)
    while at < end:
        if end - at < frames.HEADER_PAIR.size:
            raise ProtocolError("a header block ends inside of a pair")
        name_size, value_size = frames.HEADER_PAIR.unpack_from(block, at)
        name_at = at + frames.HEADER_PAIR.size
        value_at = name_at + name_size
        at = value_at + value_size
        if at > end:
            raise ProtocolError("a header is longer than its block")
        yield _title(bytes(block[name_at:value_at])), str(block[value_at:at], "latin-1")


def headers_as_dict(block: memoryview) -> dict[str, str]:
    """A header block as a dict; the values of a name that repeats are joined with commas."""
    headers: dict[str, str] = {}
    for name, value in header_pairs(block):
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def media_type(block: memoryview) -> str:
    """The media type that a header block names, in lower case and without parameters; empty when none."""
    for name, value in header_pairs(block):
        if name == "Content-Type":
            return value.partition(";")[0].strip().lower()
    return ""


def is_json(media: str) -> bool:
    """Whether a media type, in lower case and without parameters, is one of JSON."""
    return media == "application/json" or media.startswith("application/") and media.endswith("+json")


@lru_cache(maxsize=256)
def _title(name: bytes) -> str:
    return name.decode("latin-1").title()


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _escape(error: UnicodeError) -> tuple[str, int]:
    """For bytes that are no UTF-8: their percent-escapes."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return quote(error.object[error.start : error.end], safe=""), error.end


codecs.register_error("outrigger.escape", _escape)
