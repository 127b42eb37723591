"""Scripts decorated with the package `inference-schema`: typed arguments from JSON, and schemas for Swagger.

The package is the user's. Its decorators convert the arguments, inside of `run()`; here the parameters are
taken out of the request, and a conversion that fails is told apart from a failure of the script.
"""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any, Final

from . import frames, inputs
from .failures import MESSAGE_LIMIT, message_of, traceback_of

#: Versions of Swagger, each with the names that the package has for it.
VERSIONS: Final = {"2": {"2", "2.0"}, "3": {"3", "3.0"}, "3.1": {"3.1"}}
#: The schema of what is not described.
ANYTHING: Final = {"type": "object", "example": {}}


def is_decorated(function: Callable[..., Any]) -> bool:
    """Whether `function` carries `@input_schema` or `@output_schema`. Imports nothing."""
    util = sys.modules.get("inference_schema.schema_util")
    try:
        return util is not None and util.is_schema_decorated(function)
    except ValueError:
        # The package looks into closures, and some are still empty.
        return False


def describe(function: Callable[..., Any]) -> tuple[dict[str, Any], str | None]:
    """Per version of Swagger the schemas of input and output, None where it cannot express them; and, as JSON,
    a request that fits, if there is a schema to make it from."""
    if not is_decorated(function):
        return dict.fromkeys(VERSIONS, {"input": ANYTHING, "output": ANYTHING}), None
    util = sys.modules["inference_schema.schema_util"]
    known = set(util.get_supported_versions(function))
    schemas = _valid({"input": util.get_input_schema(function), "output": util.get_output_schema(function)})
    example = schemas["input"].get("example")
    return (
        {version: schemas if names & known else None for version, names in VERSIONS.items()},
        None if example is None else json.dumps(example),
    )


def schema_parser(parameters: Sequence[inspect.Parameter], wants_headers: bool) -> inputs.Parser:
    """For a script that gets the fields of a JSON object, or of the query, by the names of `parameters`."""
    defaults = [(parameter.name, parameter.default) for parameter in parameters]
    missing = inspect.Parameter.empty

    def parse(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> inputs.Call:
        parts = inputs.split(number, view, start, end, tail)
        refusal: inputs.Refusal | None = None
        arguments: dict[str, Any] = {}
        try:
            fields = _fields(number, parts)
        except _Refused as refused:
            refusal = refused.refusal
        else:
            for name, default in defaults:
                value = arguments[name] = fields.get(name, default)
                if value is missing:
                    refusal = 400, f"A value is not provided for the {name!r} parameter.", ""
                    break
        if wants_headers:
            arguments[inputs.HEADERS_PARAMETER] = inputs.headers_as_dict(parts.headers)
        return number, arguments, refusal, parts.limit, parts.request_id

    return parse


def mismatch(error: BaseException, run: Callable[..., Any]) -> inputs.Refusal | None:
    """The refusal, if `error` came out of the conversion of an argument by the decorators of `run`.

    The traceback tells: the conversion is on it, and the code of `run` itself is not above.
    """
    decorators = sys.modules.get("inference_schema.schema_decorators")
    if decorators is None or not isinstance(error, Exception) or isinstance(error, MemoryError):
        return None
    convert, own = decorators._deserialize_input_argument.__code__, _innermost_code(run)
    conversions = []
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code is not own:
        if frame.tb_frame.f_code is convert:
            conversions.append(frame.tb_frame)
        frame = frame.tb_next
    if not conversions:
        return None
    cause = message_of(error) if not isinstance(error, ValueError) else str(error)
    message = f"The value of {_path(conversions)!r} does not match the schema: {cause}"
    # What the package has to say is in the message. A type of the user's may have a mistake.
    own_type = type(conversions[-1].f_locals["param_type"]).__module__.startswith("inference_schema.")
    return 400, message[:MESSAGE_LIMIT], "" if own_type else traceback_of(error)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.refusal: inputs.Refusal = (status, message, "")


def _fields(number: int, parts: inputs.Parts) -> dict[str, Any]:
    if parts.method == frames.METHOD_GET:
        return inputs.query_as_dict(parts.query)
    if parts.method != frames.METHOD_POST:
        status, message, _ = inputs.method_refusal(number, parts.method)
        raise _Refused(status, message)
    if not inputs.is_json(inputs.media_type(parts.headers)):
        raise _Refused(415, "Expects Content-Type to be application/json")
    if not parts.body:
        raise _Refused(400, "POST body is empty. Expecting a JSON dictionary.")
    try:
        body = json.loads(bytes(parts.body))
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"POST body could not be decoded as JSON: {error}") from error
    if not isinstance(body, dict):
        raise _Refused(400, "POST body should be a JSON dictionary.")
    return body


def _valid(schema: Any) -> Any:
    """`schema` as JSON can have it: samples may hold NaN, and objects of any kind."""
    return json.loads(json.dumps(schema, default=str), parse_constant=lambda _: None)


def _innermost_code(run: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(run), "__code__", None)


def _path(conversions: Sequence[FrameType]) -> str:
    """Where in the request the value is that the last of these nested conversions failed on."""
    path = str(conversions[0].f_locals["param_name"])
    for outer, inner in zip(conversions, conversions[1:], strict=False):
        container, value = outer.f_locals["input_data"], inner.f_locals["input_data"]
        if isinstance(container, dict):
            path += f".{inner.f_locals['param_name']}"
        elif isinstance(container, (list, tuple)):
            # An equal object before the one that failed would have failed first.
            path += f"[{next((at for at, item in enumerate(container) if item is value), '')}]"
    return path
