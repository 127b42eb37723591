"""Finding, importing and checking the entry script.

The rules are those of AzureML's inference server, so that scripts written for it run unchanged.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from json import JSONEncoder
from types import AsyncGeneratorType, GeneratorType, ModuleType
from typing import Any, NamedTuple

from . import frames
from .failures import message_of, traceback_of
from .inputs import plain_parser

#: The name under which an entry script is imported.
ENTRY_MODULE = "entry_module"
#: The parameter of `run()` that receives the headers of the request.
HEADERS_PARAMETER = "request_headers"


class ScriptError(Exception):
    """The script cannot serve.

    `phase` is `import`, `signature` or `init`; `traceback` is empty when no code of the user's was at fault.
    """

    def __init__(self, phase: str, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.phase = phase
        self.message = message
        self.traceback = traceback

    @classmethod
    def raised(cls, phase: str, error: BaseException) -> "ScriptError":
        """For an exception that came out of the user's code."""
        return cls(phase, message_of(error), traceback_of(error))


class Script(NamedTuple):
    """An entry script that is loaded and fit to serve; `init()` has not been called."""

    path: str
    init: Callable[[], Any]
    run: Callable[..., Any]
    #: Name of the parameter of `run()` that gets the input.
    parameter: str
    wants_headers: bool
    warmup: Callable[[], Any] | None = None
    shutdown: Callable[[], Any] | None = None
    kind: str = "sync"
    mode: str = "plain"
    methods: list[str] = ["GET", "POST"]
    swagger: Any = None
    sample: Any = None

    @property
    def headers(self) -> str:
        return "all" if self.wants_headers else "none"

    def parser(self) -> Callable[..., Any]:
        """A function that makes a call of a CALL's payload."""
        return plain_parser(self.parameter, self.wants_headers, self.kind == "batch")

    def encoder(self, compat: bool, most: int) -> Callable[[Any, Any], tuple[int, int, int, bytes, Any]]:
        """A function that makes an answer of what `run()` returns."""
        encode = JSONEncoder(allow_nan=compat).encode

        def answer(result: Any, arguments: Any) -> tuple[int, int, int, bytes, Any]:
            if isinstance(result, (GeneratorType, AsyncGeneratorType)):
                return frames.STREAM_BEGINS, 0, 200, b"", result
            rest = b"{}" if result is None else encode(result).encode("ascii")
            if len(rest) > most:
                raise ValueError(f"the answer has {len(rest)} bytes, the most is {most}")
            return frames.RETURNED, 0, 0, b"", rest

        return answer


def load(start: dict[str, Any]) -> Script:
    """Loads the script that a START names. Sets `sys.argv` and extends `sys.path` for it.

    Raises ScriptError.
    """
    app_root, entry_script = start["app_root"], start["entry_script"]
    location = os.path.join(app_root, entry_script.replace("/", os.sep)) if entry_script else None
    sys.argv = [location or "main", *start["args"]]
    sys.path.append(app_root)
    if start["source_directory"]:
        sys.path.append(os.path.join(app_root, start["source_directory"]))
    try:
        module = _import_file(location) if location else importlib.import_module("main")
    except ScriptError:
        raise
    except BaseException as error:
        raise ScriptError.raised("import", error) from error
    return _examine(module)


def _import_file(location: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(ENTRY_MODULE, location)
    if spec is None or spec.loader is None:
        raise ScriptError("import", f"the entry script `{location}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look up the module of a class by name.
    sys.modules[ENTRY_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _examine(module: ModuleType) -> Script:
    path = getattr(module, "__file__", None) or module.__name__
    batch = getattr(module, "run_batch", None)
    for name in ("init", "run") if batch is None else ("init",):
        if not hasattr(module, name):
            raise ScriptError(
                "signature", f"User script at {path} does not have a {name}() function defined."
            )
    # A generated driver wraps the user's module. What it does in `init()` counts; its `run()` only hands on.
    inner = getattr(module, "driver_module", None)
    run = inner.run if isinstance(inner, ModuleType) and hasattr(inner, "run") else batch or module.run
    parameter, wants_headers = _input_parameter(run)
    is_async = inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)
    kind = "batch" if batch else "async" if is_async else "sync"
    warmup, shutdown = getattr(module, "warmup", None), getattr(module, "shutdown", None)
    return Script(path, module.init, run, parameter, wants_headers, warmup, shutdown, kind)


def _input_parameter(run: Callable[..., Any]) -> tuple[str, bool]:
    """The parameter that gets the input, which is the first, and whether there is one for headers."""
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError) as error:
        raise ScriptError("signature", f"run() has no signature: {error}") from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(parameter.kind not in named for parameter in parameters):
        raise ScriptError("signature", "run() cannot accept positional-only arguments, *args, or **kwargs.")
    names = [parameter.name for parameter in parameters]
    data = [name for name in names if name != HEADERS_PARAMETER]
    wants_headers = len(data) < len(names)
    if not data and wants_headers:
        raise ScriptError("signature", f'run() needs to accept an argument other than "{HEADERS_PARAMETER}".')
    if not data:
        raise ScriptError("signature", "run() needs to accept an argument for input data.")
    return data[0], wants_headers
