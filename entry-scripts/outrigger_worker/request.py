"""`@rawhttp` and AMLRequest: scripts that take the HTTP request as it is.

The request has that part of Flask's surface which scripts use, and needs no Flask.
"""

import io
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from . import inputs
from .forms import FormError, multipart, urlencoded
from .headers import Headers, MultiDict, Typed

Function = TypeVar("Function", bound=Callable[..., Any])

#: What the script is reached under, whatever route the replica serves it on.
PATH: Final = "/score"
METHODS: Final = ("GET", "POST", "OPTIONS", "HEAD")

#: Whether anything has been decorated with `rawhttp`, in any module: the whole process is in raw mode then.
raw_requested = False
#: Whether `AMLRequest.data` is empty for a form, as it is in Flask.
compat = False


def rawhttp(function: Function) -> Function:
    """Decorator: `run()` gets an AMLRequest."""
    global raw_requested
    raw_requested = True
    return function


class RequestError(Exception):
    """The request is not what the script took it for: no JSON, no form. `code` is 400 or 415."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


class AMLRequest(Typed):
    """An HTTP request. `method` is one of GET, POST, OPTIONS, HEAD; `view` is the body, read-only, not copied."""

    path = PATH
    root_path = script_root = ""
    scheme = "http"
    is_secure = False
    charset = encoding_errors = "utf-8"
    #: Who speaks to the replica is, as a rule, a router; it says in `X-Forwarded-For` for whom.
    remote_addr = None
    authorization = None

    def __init__(
        self,
        method: str = "GET",
        query_string: bytes = b"",
        headers: Headers | None = None,
        body: bytes | memoryview = b"",
    ) -> None:
        self.method = method
        #: As it stands in the URL.
        self.query_string = query_string
        self.headers = Headers() if headers is None else headers
        self.view = memoryview(body).toreadonly()

    @cached_property
    def args(self) -> MultiDict:
        """The fields of the query string."""
        return _form(lambda: urlencoded(self.query_string))

    @cached_property
    def form(self) -> MultiDict:
        """The fields of a form, without files."""
        return self._fields_and_files[0]

    @cached_property
    def files(self) -> MultiDict:
        """The files of a multipart form: FileStorage by name of the field."""
        return self._fields_and_files[1]

    @cached_property
    def values(self) -> MultiDict:
        """The fields of the query string, then those of the form."""
        form = self.form.items(multi=True) if self.method == "POST" else []
        return MultiDict([*self.args.items(multi=True), *form])

    @cached_property
    def cookies(self) -> MultiDict:
        pairs = (part.partition("=") for part in self.headers.get("Cookie", "").split(";"))
        return MultiDict(
            (name.strip(), unquote(value.strip().strip('"'))) for name, _, value in pairs if name.strip()
        )

    @cached_property
    def _body(self) -> bytes:
        whole = self.view.obj
        return whole if isinstance(whole, bytes) and len(whole) == len(self.view) else bytes(self.view)

    @property
    def data(self) -> bytes:
        """The body."""
        return b"" if compat and self.mimetype in inputs.FORMS else self._body

    @cached_property
    def stream(self) -> io.BytesIO:
        """The body as a file, at the position to which it has been read."""
        return io.BytesIO(self.view)

    def get_data(
        self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False
    ) -> bytes | str:
        """The body, as bytes or as text. `cache` makes no difference."""
        body = self.data if parse_form_data else self._body
        return body.decode("utf-8", "replace") if as_text else body

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body, parsed.

        When it is not JSON, or not said to be and `force` does not make up for it: None with `silent`, else
        RequestError, which the caller sees as 400 or 415.
        """
        try:
            if not (force or self.is_json):
                raise RequestError(415, "Expects Content-Type to be application/json")
            return self._json
        except RequestError:
            if silent:
                return None
            raise

    @cached_property
    def _json(self) -> Any:
        try:
            return json.loads(self._body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"POST body could not be decoded as JSON: {error}") from error

    @property
    def json(self) -> Any:
        """As `get_json()`."""
        return self.get_json()

    @property
    def is_json(self) -> bool:
        return inputs.is_json(self.mimetype)

    @property
    def content_length(self) -> int:
        """Size of the body in bytes."""
        return len(self.view)

    @property
    def host(self) -> str:
        return str(self.headers.get("Host", "localhost"))

    @property
    def host_url(self) -> str:
        return f"{self.scheme}://{self.host}/"

    url_root = host_url

    @property
    def base_url(self) -> str:
        """The URL without its query."""
        return self.host_url + self.path[1:]

    @property
    def full_path(self) -> str:
        return f"{self.path}?{self._query_text}"

    @property
    def url(self) -> str:
        return f"{self.base_url}?{self._query_text}" if self.query_string else self.base_url

    @cached_property
    def environ(self) -> dict[str, Any]:
        """The request as WSGI has it, in short."""
        host, _, port = self.host.rpartition(":") if ":" in self.host else (self.host, "", "80")
        of_request = {
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": self.path,
            "QUERY_STRING": self._query_text,
            "CONTENT_TYPE": self.content_type or "",
            "CONTENT_LENGTH": str(len(self.view)),
            "SERVER_NAME": host,
            "SERVER_PORT": port,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": self.scheme,
            "wsgi.input": self.stream,
        }
        return of_request | {"HTTP_" + name.upper().replace("-", "_"): value for name, value in self.headers}

    @property
    def _query_text(self) -> str:
        return self.query_string.decode("latin-1")

    @cached_property
    def _fields_and_files(self) -> tuple[MultiDict, MultiDict]:
        if self.mimetype == "multipart/form-data":
            return _form(lambda: multipart(self.view, self.content_type or ""))
        if self.mimetype == "application/x-www-form-urlencoded":
            return _form(lambda: urlencoded(self.view)), MultiDict()
        return MultiDict(), MultiDict()

    def __repr__(self) -> str:
        return f"<AMLRequest {self.full_path!r} [{self.method}]>"


def raw_parser(parameter: str, wants_headers: bool) -> inputs.Parser:
    """For a script that gets the request, under the name `parameter`; with `wants_headers`, its headers too."""

    def parse(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> inputs.Call:
        parts = inputs.split(number, view, start, end, tail)
        if parts.method >= len(METHODS):
            inputs.method_refusal(number, parts.method)
        headers = inputs.headers_as_dict(parts.headers)
        body = parts.body if parts.lasting else bytes(parts.body)
        request = AMLRequest(METHODS[parts.method], bytes(parts.query), Headers(headers.items()), body)
        arguments: dict[str, Any] = {parameter: request}
        if wants_headers:
            arguments[inputs.HEADERS_PARAMETER] = headers
        return number, arguments, None, parts.limit, parts.request_id

    return parse


Result = TypeVar("Result")


def _form(parse: Callable[[], Result]) -> Result:
    try:
        return parse()
    except FormError as error:
        raise RequestError(400, f"The form cannot be read: {error}") from error
