"""From a CALL to the arguments of `run()`, in plain mode: the script gets text.

A POST hands over its body as it is, whatever its content type. A GET hands over its query string as JSON.
"""

import codecs
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote

from . import frames
from .channel import ProtocolError

#: One call: its number, the arguments of `run()`, and the reason why it cannot be run, else None. A plain
#: tuple, for making one with names takes seven times as long.
Call = tuple[int, Any, tuple[int, str, str] | None, int, bytes]


def plain_parser(
    parameter: str, wants_headers: bool, is_batch: bool
) -> Callable[[int, memoryview, int, int, memoryview | None], Call]:
    """A function that reads a CALL's payload, `view[start:end]`, and keeps no reference to it.

    The text is handed over under the name `parameter`; with `wants_headers` the headers are, as
    `request_headers`. The function raises ProtocolError when the payload does not parse.
    """
    unpack_head = frames.CALL_HEAD.unpack_from
    head_size = frames.CALL_HEAD.size
    get, post = frames.METHOD_GET, frames.METHOD_POST

    def parse(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Call:
        if end - start < head_size:
            raise ProtocolError(f"call {number} has a payload of {end - start} bytes")
        method, _, id_size, query_size, headers_size, limit = unpack_head(view, start)
        query_at = start + head_size + id_size
        headers_at = query_at + query_size
        body_at = headers_at + headers_size
        if body_at > end:
            raise ProtocolError(f"the parts of call {number} are longer than its payload")
        refusal = None
        arguments: dict[str, Any] = {}
        if method == post:
            try:
                # The only copy of the body: from the receive buffer into the string.
                arguments[parameter] = str(view[body_at:end] if tail is None else tail, "utf-8")
            except UnicodeDecodeError as error:
                refusal = (400, f"Input cannot be decoded as UTF-8: {error}", "")
        elif method == get:
            arguments[parameter] = query_as_json(view[query_at:headers_at])
        else:
            raise ProtocolError(f"call {number} has the unknown method {method}")
        if wants_headers:
            arguments["request_headers"] = headers_as_dict(view[headers_at:body_at])
        request_id = bytes(view[start + head_size : query_at])
        return number, arguments.get(parameter) if is_batch else arguments, refusal, limit, request_id

    return parse


def query_as_json(query: memoryview | bytes) -> str:
    """A query string as a JSON object, in text.

    A value that is JSON is taken as such, any other as a string; a key that comes more than once gives a
    list. Keys are case-sensitive and keep the order of their first appearance. Percent-escapes that are no
    UTF-8 stay escapes.
    """
    if not query:
        return "{}"
    values: dict[str, list[Any]] = {}
    text = str(query, "utf-8", "outrigger.escape")
    for key, value in parse_qsl(text, keep_blank_values=True, errors="outrigger.escape"):
        values.setdefault(key, []).append(_json_or_text(value))
    return json.dumps({key: found[0] if len(found) == 1 else found for key, found in values.items()})


def headers_as_dict(block: memoryview) -> dict[str, str]:
    """A header block as a dict, names in Title-Case; values of a name that repeats are joined with commas.

    Raises ProtocolError when the block does not parse.
    """
    headers: dict[str, str] = {}
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
        name = _title(bytes(block[name_at:value_at]))
        value = str(block[value_at:at], "latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


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
