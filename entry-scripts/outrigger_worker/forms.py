"""Bodies of HTML forms: urlencoded fields, and multipart with files. What they may hold is bounded."""

import io
import os
import re
import shutil
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from typing import Any, Final
from urllib.parse import parse_qsl

from .headers import Headers, MultiDict, Typed

#: Most fields, and most parts of a multipart body.
FIELD_LIMIT: Final = 1000
#: Longest header of a part, in bytes.
PART_HEADER_LIMIT: Final = 16 * 1024
#: Longest boundary, in characters (RFC 2046, 5.1.1).
BOUNDARY_LIMIT: Final = 70

_HEADER_END = re.compile(rb"\r?\n\r?\n")


class FormError(ValueError):
    """The body is not the form that its type says, or holds too much."""


class FileStorage(Typed):
    """A file that came with a form."""

    def __init__(self, content: memoryview, name: str, filename: str, headers: Headers) -> None:
        #: The content, without a copy.
        self.view = content
        #: Name of the field.
        self.name = name
        #: As the caller gave it. It is not fit to be a path.
        self.filename = filename
        self.headers = headers
        self._stream: io.BytesIO | None = None

    @property
    def stream(self) -> io.BytesIO:
        """The content as a file, at the position to which it has been read."""
        if self._stream is None:
            self._stream = io.BytesIO(self.view)
        return self._stream

    @property
    def content_length(self) -> int:
        return len(self.view)

    def save(self, dst: Any, buffer_size: int = 16 * 1024) -> None:
        """Writes the rest of the content to a path or to a file that is open for writing."""
        if isinstance(dst, (str, os.PathLike)):
            with open(dst, "wb") as file:
                shutil.copyfileobj(self.stream, file, buffer_size)
        else:
            shutil.copyfileobj(self.stream, dst, buffer_size)

    def close(self) -> None:
        self.stream.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.stream)

    def __bool__(self) -> bool:
        return bool(self.filename)

    def __getattr__(self, name: str) -> Any:
        # `read`, `seek` and the rest of what a file can.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.stream, name)

    def __repr__(self) -> str:
        return f"<FileStorage: {self.filename!r} ({self.content_type!r})>"


def urlencoded(body: bytes | memoryview) -> MultiDict:
    """The fields of a urlencoded body, or of a query string. Raises FormError."""
    try:
        text = str(body, "utf-8", "replace")
        return MultiDict(
            parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=FIELD_LIMIT)
        )
    except ValueError as error:
        raise FormError(f"there are more than {FIELD_LIMIT} fields") from error


def multipart(body: memoryview, content_type: str) -> tuple[MultiDict, MultiDict]:
    """Fields and files of a multipart body. Files are views of it. Raises FormError."""
    fields: list[tuple[str, str]] = []
    files: list[tuple[str, FileStorage]] = []
    for header, content in _parts(body, _boundary(content_type)):
        name, filename = _parameter(header, "name"), header.get_filename()
        if name is None:
            raise FormError("a part has no name")
        if filename is None:
            charset = header.get_content_charset("utf-8")
            fields.append((name, _text(content, charset)))
        else:
            files.append((name, FileStorage(content, name, filename, Headers(header.items()))))
    return MultiDict(fields), MultiDict(files)


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if not boundary or len(boundary) > BOUNDARY_LIMIT:
        raise FormError("the content type has no boundary, or one that is too long")
    return boundary.encode("latin-1", "replace")


def _parts(body: memoryview, boundary: bytes) -> Iterator[tuple[Message, memoryview]]:
    delimiter = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r?\n|\Z)")
    begin, count = None, 0
    for found in delimiter.finditer(body):
        if begin is not None:
            count += 1
            if count > FIELD_LIMIT:
                raise FormError(f"there are more than {FIELD_LIMIT} parts")
            yield _part(body[begin : found.start()])
        begin = found.end()
        if found[1]:
            return
    raise FormError("the last boundary is missing")


def _part(part: memoryview) -> tuple[Message, memoryview]:
    end = _HEADER_END.search(part[:PART_HEADER_LIMIT])
    if end is None:
        raise FormError(f"a part has no header, or one of more than {PART_HEADER_LIMIT} bytes")
    # Surrogates would make the parser take a value apart by the rules of mail.
    header = HeaderParser().parsestr(str(part[: end.start()], "utf-8", "replace"))
    return header, part[end.end() :]


def _parameter(header: Message, name: str) -> str | None:
    value = header.get_param(name, None, "content-disposition")
    return value[2] if isinstance(value, tuple) else value


def _text(content: memoryview, charset: str) -> str:
    try:
        return str(content, charset, "replace")
    except LookupError:
        return str(content, "utf-8", "replace")
