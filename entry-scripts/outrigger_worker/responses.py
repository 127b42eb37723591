"""What `run()` returns, as a REPLY: JSON, a whole HTTP answer (AMLResponse, Flask's Response), or a stream."""

import json
import json.encoder
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from http.cookies import SimpleCookie
from typing import Any, Final, NamedTuple

from . import formatting, frames
from .failures import message_of, to_bytes, traceback_of
from .headers import Headers
from .inputs import Arguments, Refusal

#: Longest header block of an answer, in bytes.
HEADERS_LIMIT: Final = 64 * 1024
#: Tells whether the run function failed; a flag of the REPLY carries it.
FAILED_HEADER: Final = "x-ms-run-function-failed"

#: Outcome, flags, status, message, rest.
Reply = tuple[int, int, int, bytes, Any]
Encoder = Callable[[Any, dict[str, Any]], Reply]
#: Gives what goes out in place of an exception, if anything does.
Substitute = Callable[[BaseException], Any]

#: Whether JSON may have NaN and infinities, as Python writes them. Set once, when the script is loaded.
allow_nan = False

# These the runtime sets, or they are about a connection that the script does not have.
_NOT_THE_SCRIPTS = frozenset(
    """connection content-length keep-alive proxy-connection te trailer transfer-encoding upgrade
    x-request-id x-ms-request-id x-ms-client-request-id x-ms-run-fn-exec-ms""".split()
)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_JSON_TYPES = frozenset((dict, list, str, int, float, bool, tuple, type(None)))


class Refused(NamedTuple):
    """In place of a result: the input did not fit, which came out only while `run()` was called."""

    refusal: Refusal


class AMLResponse:
    """An HTTP answer of the script's.

    `message` is the body: None gives `{}`, with `json_str` anything is written as JSON, else it is text, bytes,
    or an iterable of those, which is sent item by item unless it is a list or a tuple. The values of
    `response_headers` are split at commas into headers that repeat.
    """

    def __init__(
        self,
        message: Any,
        status_code: int | str,
        response_headers: dict[str, str] | None = None,
        json_str: bool = False,
        run_function_failed: bool = False,
    ) -> None:
        self.status_code = _status_of(status_code)
        self.headers = Headers()
        if json_str or message is None:
            self.headers["Content-Type"] = "application/json"
            message = json.dumps({} if message is None else message, allow_nan=allow_nan)
        else:
            self.headers["Content-Type"] = "text/html; charset=utf-8"
        self.response = _body_of(message)
        self.headers[FAILED_HEADER] = str(bool(run_function_failed))
        for name, value in (response_headers or {}).items():
            if name.lower() == "content-type":
                self.headers.remove(name)
            for part in str(value).split(","):
                if _NOT_IN_VALUE.search(part):
                    raise ValueError(f"the header `{name}` has a control character in its value")
                self.headers.add(name, part.strip())

    @property
    def is_streamed(self) -> bool:
        """Whether the body is sent item by item."""
        return not isinstance(self.response, bytes)

    @property
    def data(self) -> bytes:
        """The body. A body that is streamed is used up by this and becomes a whole one."""
        if not isinstance(self.response, bytes):
            self.response = b"".join(map(formatting.as_bytes, self.response))
        return self.response

    @data.setter
    def data(self, value: str | bytes) -> None:
        self.response = _body_of(value)

    def get_data(self, as_text: bool = False) -> bytes | str:
        return self.data.decode("utf-8", "replace") if as_text else self.data

    def set_data(self, value: str | bytes) -> None:
        self.data = value

    def get_json(self, force: bool = False, silent: bool = False) -> Any:
        return json.loads(self.data)

    @property
    def json(self) -> Any:
        return self.get_json()

    @property
    def content_type(self) -> str | None:
        value: str | None = self.headers.get("Content-Type")
        return value

    @content_type.setter
    def content_type(self, value: str) -> None:
        self.headers["Content-Type"] = value

    @property
    def mimetype(self) -> str:
        return (self.content_type or "").partition(";")[0].strip().lower()

    @mimetype.setter
    def mimetype(self, value: str) -> None:
        self.headers["Content-Type"] = f"{value}; charset=utf-8" if value.startswith("text/") else value

    def set_cookie(self, key: str, value: str = "", **attributes: Any) -> None:
        """Adds a `Set-Cookie`; attributes are `max_age`, `expires`, `path`, `domain`, `secure`, `httponly`,
        `samesite`."""
        cookie: SimpleCookie = SimpleCookie()
        cookie[key] = value
        cookie[key]["path"] = "/"
        for name, attribute in attributes.items():
            if attribute is not None:
                cookie[key][name.replace("_", "-")] = attribute
        self.headers.add("Set-Cookie", cookie[key].OutputString())


def _status_of(code: int | str) -> int:
    """A status; as text it may have a reason behind it, which nobody is told."""
    return int(code.split(None, 1)[0]) if isinstance(code, str) else int(code)


def encoder(compat: bool, most: int, substitute: Substitute) -> Encoder:
    """A function from what `run()` returned, and its arguments, to a REPLY; the rest is at most `most` bytes.

    It raises what keeps the result from being serialised. Without `compat`, NaN and infinities do.
    """
    to_json, json_types = _json_writer(compat), _JSON_TYPES
    # Streams may be written while other answers are: they do not share what remembers where it is.
    item_to_json = json.JSONEncoder(allow_nan=compat).encode

    def encode(result: Any, arguments: dict[str, Any]) -> Reply:
        if type(result) not in json_types:
            other = _not_json(result, arguments, item_to_json, most, substitute)
            if other is not None:
                return other
        # The text is ASCII: all else is escaped.
        answer = b"{}" if result is None else to_json(result).encode("ascii")
        if len(answer) > most:
            raise ValueError(f"the answer has {len(answer)} bytes, the most is {most}")
        return frames.RETURNED, 0, 0, b"", answer

    return encode


def _json_writer(allow_nan: bool) -> formatting.ToJson:
    """As `JSONEncoder(allow_nan=allow_nan).encode`, which makes a new C encoder for each text, in half the time.

    For one thread.
    """
    encoder = json.JSONEncoder(allow_nan=allow_nan)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    #: What is being written, by id, so that circles are found.
    markers: dict[int, Any] = {}
    write = make(
        markers,
        encoder.default,
        json.encoder.encode_basestring_ascii,
        None,
        encoder.key_separator,
        encoder.item_separator,
        False,
        False,
        allow_nan,
    )

    def to_json(value: Any) -> str:
        try:
            return "".join(write(value, 0))
        except BaseException:
            # What was being written then is not any more.
            markers.clear()
            raise

    return to_json


def _not_json(
    result: Any, arguments: dict[str, Any], to_json: formatting.ToJson, most: int, substitute: Substitute
) -> Reply | None:
    if isinstance(result, Refused):
        status, message, log = result.refusal
        return frames.INPUT_REFUSED, 0, status, to_bytes(message), to_bytes(log)
    if isinstance(result, AMLResponse) or _is_flask_response(result):
        return _answer(result, most)
    if isinstance(result, (Iterator, AsyncIterator, formatting.Begun)):
        try:
            begun = formatting.begin(result)
        except BaseException as error:
            # The first item is the script's work still, not the writing of an answer.
            instead = substitute(error)
            if instead is not None:
                return _not_json(instead, arguments, to_json, most, substitute)
            return (
                frames.RAISED,
                frames.RUN_FAILED,
                0,
                to_bytes(message_of(error)),
                to_bytes(traceback_of(error)),
            )
        headers, chunks = formatting.formatted(begun, _accept(arguments), to_json)
        return frames.STREAM_BEGINS, 0, 200, header_block(headers), chunks
    return None


def header_block(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Header fields as they stand in a REPLY, without those that are not for the script to set.

    Raises ValueError for what HTTP has no place for; so no header can hide in the value of another.
    """
    block = bytearray()
    for name, value in pairs:
        value = str(value).strip(" \t")
        if not _NAME.fullmatch(name) or _NOT_IN_VALUE.search(value):
            raise ValueError(f"not a header: {name!r}: {value!r}")
        if name.lower() in _NOT_THE_SCRIPTS:
            continue
        name_bytes, value_bytes = name.encode("ascii"), value.encode("latin-1")
        if len(block) + len(name_bytes) + len(value_bytes) > HEADERS_LIMIT:
            raise ValueError(f"the headers of the answer have more than {HEADERS_LIMIT} bytes")
        block += frames.HEADER_PAIR.pack(len(name_bytes), len(value_bytes)) + name_bytes + value_bytes
    return bytes(block)


def _answer(response: Any, most: int) -> Reply:
    status = response.status_code
    if not 200 <= status <= 599:
        raise ValueError(f"an answer cannot have the status {status}")
    fields, failed = [], status >= 500
    for name, value in response.headers.items():
        if name.lower() == FAILED_HEADER:
            failed = failed or str(value).lower() == "true"
        else:
            fields.append((name, value))
    block, flags = header_block(fields), frames.RUN_FAILED if failed else 0
    if response.is_streamed:
        return frames.STREAM_BEGINS, flags, status, block, formatting.of_body(response)
    body = response.get_data()
    if len(block) + len(body) > most:
        raise ValueError(f"the answer has {len(block) + len(body)} bytes, the most is {most}")
    return frames.WHOLE_ANSWER, flags, status, block, body


def _is_flask_response(result: Any) -> bool:
    # Nothing is imported: if there is no Flask there is no such object.
    return all(hasattr(result, name) for name in ("status_code", "headers", "get_data", "is_streamed"))


def _body_of(message: Any) -> Any:
    if isinstance(message, (str, bytes, bytearray, memoryview)):
        return bytes(formatting.as_bytes(message))
    if isinstance(message, (list, tuple)):
        return b"".join(map(formatting.as_bytes, message))
    if isinstance(message, (Iterator, AsyncIterator)):
        return message
    if isinstance(message, Iterable) and not isinstance(message, dict):
        return iter(message)
    raise TypeError(
        f"AMLResponse takes text, bytes or an iterable of them, not {type(message).__name__}; "
        "with json_str=True it takes what can be written as JSON"
    )


def _accept(arguments: Any) -> str:
    """What the caller accepts, as far as the arguments, or the one item of a batch, tell."""
    if isinstance(arguments, Arguments):
        return arguments.accept
    for value in arguments.values() if isinstance(arguments, dict) else [arguments]:
        headers = value if isinstance(value, dict) else getattr(value, "headers", {})
        if isinstance(headers, (dict, Headers)) and isinstance(headers.get("Accept"), str):
            return str(headers.get("Accept"))
    return ""
