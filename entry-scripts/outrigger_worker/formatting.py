"""Streamed answers: the items that a generator gives, as the bytes that go out.

To a caller that accepts `text/event-stream` each item is one server-sent event. To others the first item
decides: text and bytes go out as they are, anything else as one line of JSON each.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple

ToJson = Callable[[Any], str]
Bytes = bytes | bytearray | memoryview
Chunks = Iterator[Bytes] | AsyncIterator[Bytes]

EVENTS: Final = "text/event-stream"
#: A dict that has these keys alone is an event with its fields.
EVENT_FIELDS: Final = ("event", "id", "retry", "data")

_LINE_END = re.compile("\r\n|\r|\n")
_NOTHING = object()


class Begun(NamedTuple):
    """An iterator whose first item is there already. `first` is of no type of its own when there is none."""

    first: Any
    rest: Any


def begin(items: Any) -> Begun:
    """Gets the first item, for the form of the answer may hang on it. Raises what the script raises.

    Takes an iterator, or an asynchronous one from `begin_async`.
    """
    return items if isinstance(items, Begun) else Begun(next(items, _NOTHING), items)


async def begin_async(items: AsyncIterator[Any]) -> Begun:
    """As `begin`, for an asynchronous iterator."""
    return Begun(await anext(items, _NOTHING), items)


def formatted(begun: Begun, accept: str, to_json: ToJson) -> tuple[list[tuple[str, str]], Chunks]:
    """Headers of the answer, and its bytes."""
    headers, form = _form(begun.first, accept, to_json)
    chunks = _chunks_async if isinstance(begun.rest, AsyncIterator) else _chunks
    return headers, chunks(begun, form)


def of_body(response: Any) -> Chunks:
    """The bytes of the body of an AMLResponse, or of Flask's Response, which has a `close()` of its own."""
    body = response.response
    begun = Begun(_NOTHING, body)
    if isinstance(body, AsyncIterator):
        return _chunks_async(begun, as_bytes)
    return _chunks(begun, as_bytes, getattr(response, "close", None))


def as_bytes(item: Any) -> Bytes:
    """Text as UTF-8, bytes as they are. Raises TypeError for anything else."""
    if isinstance(item, str):
        return item.encode("utf-8", "replace")
    if isinstance(item, (bytes, bytearray, memoryview)):
        return item
    raise TypeError(f"an item of this stream has to be text or bytes, not {type(item).__name__}")


def _form(first: Any, accept: str, to_json: ToJson) -> tuple[list[tuple[str, str]], Callable[[Any], Bytes]]:
    if EVENTS in accept.lower():
        headers = [("Content-Type", EVENTS), ("Cache-Control", "no-cache")]
        return headers, lambda item: _event(item, to_json)
    if isinstance(first, str):
        return [("Content-Type", "text/plain; charset=utf-8")], as_bytes
    if isinstance(first, (bytes, bytearray, memoryview)):
        return [("Content-Type", "application/octet-stream")], as_bytes
    return [("Content-Type", "application/x-ndjson")], lambda item: to_json(item).encode("ascii") + b"\n"


def _event(item: Any, to_json: ToJson) -> bytes:
    """One server-sent event (HTML standard, section 9.2). Raises ValueError for a field that is no single line."""
    lines = []
    if isinstance(item, dict) and item and item.keys() <= set(EVENT_FIELDS):
        for name in EVENT_FIELDS[:-1]:
            if name in item:
                value = str(item[name])
                if _LINE_END.search(value) or "\0" in value:
                    raise ValueError(f"the {name} of an event has to be one line, not {value!r}")
                lines.append(f"{name}: {value}")
        if "data" not in item:
            return _ended(lines)
        item = item["data"]
    if isinstance(item, (bytes, bytearray, memoryview)):
        item = str(item, "utf-8", "replace")
    text = item if isinstance(item, str) else to_json(item)
    return _ended([*lines, *(f"data: {line}" for line in _LINE_END.split(text))])


def _ended(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in [*lines, ""]).encode("utf-8", "replace")


def _chunks(
    begun: Begun, form: Callable[[Any], Bytes], close: Callable[[], object] | None = None
) -> Iterator[Bytes]:
    try:
        if begun.first is not _NOTHING:
            yield form(begun.first)
        for item in begun.rest:
            yield form(item)
    finally:
        # A script's generator is told at once that nobody listens any more.
        for end in (getattr(begun.rest, "close", None), close):
            if end is not None:
                end()


async def _chunks_async(begun: Begun, form: Callable[[Any], Bytes]) -> AsyncIterator[Bytes]:
    try:
        if begun.first is not _NOTHING:
            yield form(begun.first)
        async for item in begun.rest:
            yield form(item)
    finally:
        end = getattr(begun.rest, "aclose", None)
        if end is not None:
            await end()
