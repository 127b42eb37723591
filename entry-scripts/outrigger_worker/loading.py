"""Finding, importing and checking the entry script.

The rules are those of AzureML's inference server, so that scripts written for it run unchanged.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

from . import aliases, formatting, inputs, printing, request, responses, schema
from .failures import message_of, model_directory, traceback_of
from .inputs import HEADERS_PARAMETER

#: The name under which an entry script is imported.
ENTRY_MODULE: Final = "entry_module"


class ScriptError(Exception):
    """The script cannot serve.

    `phase` is `import`, `signature`, `init` or `warmup`; `traceback` is empty when no code of the user's was at
    fault.
    """

    def __init__(self, phase: str, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.phase = phase
        self.message = message
        self.traceback = traceback

    @classmethod
    def raised(cls, phase: str, error: BaseException) -> "ScriptError":
        """For an exception that came out of the user's code."""
        traceback = traceback_of(error)
        return cls(phase, message_of(error), traceback + model_directory() if phase == "init" else traceback)


class Script:
    """An entry script that is loaded and fit to serve; `init()` has not been called."""

    def __init__(self, module: ModuleType, start: dict[str, Any]) -> None:
        self._compat: bool = start.get("compat", False)
        # A generated driver wraps the user's module. What it does in `init()` counts; its `run()` only hands on.
        inner = getattr(module, "driver_module", None)
        users = inner if isinstance(inner, ModuleType) and _has_run(inner) else module
        self.path: str = getattr(module, "__file__", None) or module.__name__
        self.init: Callable[[], Any] = module.init
        self._run, self.kind = _choose_run(users, start)
        signature = _examine_signature(self._run)
        self.mode = _mode(self._run, self.kind)
        self._parameter, self._others, self._wants_headers = signature
        if self.kind == "batch" and self._wants_headers:
            raise ScriptError(
                "signature", f'run_batch() gets no "{HEADERS_PARAMETER}": it has one list, of the calls.'
            )
        self._streams = inspect.isgeneratorfunction(self._run) or inspect.isasyncgenfunction(self._run)
        self._wants_view = not self._compat and _wants_view(self._run, self._parameter.name, self.kind)
        self.swagger, self.sample = schema.describe(self._run)
        self.warmup = _hook(module, users, "warmup")
        self.shutdown = _hook(module, users, "shutdown")

    @property
    def run(self) -> Callable[..., Any]:
        """The function to call, once `init()` has been called: what the script has imported until then decides
        what is put around it, so that scripts that do not need it do not pay for it."""
        if self.kind == "async":
            return _async_run(self._run, self._substitute)
        raises_answers = self.mode != "plain" or "werkzeug.exceptions" in sys.modules
        if raises_answers and self.kind == "sync" and not self._compat:
            return _guarded_run(self._run, self._substitute)
        return self._run

    @property
    def headers(self) -> str:
        """What the header block of a call has to hold: `none`, `some` or `all`."""
        if self.mode == "raw" or self._wants_headers:
            return "all"
        return "some" if self.mode == "schema" or self._streams or self._compat else "none"

    @property
    def methods(self) -> list[str]:
        """The HTTP methods that reach the script."""
        return list(request.METHODS) if self.mode == "raw" else ["GET", "POST"]

    def parser(self) -> inputs.Parser:
        """A function that reads a CALL. For a script that takes batches it gives the one item, not the list."""
        parse = self._parser_of_mode()
        if self.mode == "plain" and self._compat:
            parse = inputs.emptying_forms(parse, self._parameter.name)
        if self._streams and self.mode != "raw":
            parse = inputs.accepting(parse)
        return _single(parse, self._parameter.name) if self.kind == "batch" else parse

    def encoder(self, compat: bool, most: int) -> responses.Encoder:
        """A function that writes a REPLY, the rest of at most `most` bytes, from what `run()` has returned."""
        return responses.encoder(compat, most, self._substitute)

    def _parser_of_mode(self) -> inputs.Parser:
        name, wants_headers = self._parameter.name, self._wants_headers
        if self.mode == "raw":
            return request.raw_parser(name, wants_headers)
        if self.mode == "schema":
            return schema.schema_parser([self._parameter, *self._others], wants_headers)
        if self._wants_view:
            return inputs.view_parser(name, wants_headers)
        return inputs.plain_parser(name, wants_headers)

    def _substitute(self, error: BaseException) -> Any:
        """What goes out in place of an exception of `run()`, None when that is what it is."""
        if self._compat:
            return None
        if isinstance(error, request.RequestError):
            return responses.Refused((error.code, error.description, ""))
        if self.mode == "schema":
            refusal = schema.mismatch(error, self._run)
            if refusal is not None:
                return responses.Refused(refusal)
        return _answer_of(error)


class _Signature(NamedTuple):
    #: Gets the input.
    parameter: inspect.Parameter
    #: The further parameters, without the one for headers.
    others: list[inspect.Parameter]
    wants_headers: bool


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
    aliases.install()
    request.compat = responses.allow_nan = start.get("compat", False)
    try:
        printing.configure_logging(app_root, os.path.dirname(location or ""))
        module = _import_file(location) if location else importlib.import_module("main")
    except ScriptError:
        raise
    except BaseException as error:
        raise ScriptError.raised("import", error) from error
    for name, found in (("init", hasattr(module, "init")), ("run", _has_run(module))):
        if not found:
            path = getattr(module, "__file__", None) or module.__name__
            raise ScriptError(
                "signature", f"User script at {path} does not have a {name}() function defined."
            )
    return Script(module, start)


def _import_file(location: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(ENTRY_MODULE, location)
    if spec is None or spec.loader is None:
        raise ScriptError("import", f"the entry script `{location}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look up the module of a class by name.
    sys.modules[ENTRY_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _has_run(module: ModuleType) -> bool:
    return hasattr(module, "run") or hasattr(module, "run_batch")


def _choose_run(module: ModuleType, start: dict[str, Any]) -> tuple[Callable[..., Any], str]:
    """The function that takes calls, and its kind: `sync`, `async` or `batch`."""
    batch = hasattr(module, "run_batch") and (start.get("max_batch", 1) > 1 or not hasattr(module, "run"))
    run = module.run_batch if batch else module.run
    is_async = _is_async(run)
    if batch and (is_async or inspect.isgeneratorfunction(run)):
        raise ScriptError(
            "signature", "run_batch() cannot be `async def` or a generator: it takes a list and returns one."
        )
    kind = "batch" if batch else "async" if is_async else "sync"
    concurrency = start.get("concurrency", 1)
    if concurrency > 1 and kind != "async":
        raise ScriptError(
            "signature",
            f"run() takes one call at a time, but a concurrency of {concurrency} is configured: "
            "make it `async def run`, or configure more workers instead.",
        )
    return run, kind


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004
    checks = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(check(function) or check(call) for check in checks)


def _examine_signature(run: Callable[..., Any]) -> _Signature:
    """The parameter that gets the input, which is the first, the others, and whether there is one for headers."""
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError) as error:
        raise ScriptError("signature", f"run() has no signature: {error}") from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if any(parameter.kind not in named for parameter in parameters):
        raise ScriptError("signature", "run() cannot accept positional-only arguments, *args, or **kwargs.")
    data = [parameter for parameter in parameters if parameter.name != HEADERS_PARAMETER]
    wants_headers = len(data) < len(parameters)
    if not data and wants_headers:
        raise ScriptError("signature", f'run() needs to accept an argument other than "{HEADERS_PARAMETER}".')
    if not data:
        raise ScriptError("signature", "run() needs to accept an argument for input data.")
    return _Signature(data[0], data[1:], wants_headers)


def _mode(run: Callable[..., Any], kind: str) -> str:
    decorated = schema.is_decorated(run)
    if request.raw_requested and decorated:
        raise ScriptError("signature", "run() cannot be decorated with both @rawhttp and @input_schema")
    if decorated and kind == "batch":
        raise ScriptError(
            "signature",
            "run_batch() cannot be decorated with @input_schema: it gets a list of calls. Decorate run() instead.",
        )
    return "raw" if request.raw_requested else "schema" if decorated else "plain"


def _wants_view(run: Callable[..., Any], name: str, kind: str) -> bool:
    """Whether the input is annotated `memoryview`; for a batch, `list[memoryview]`."""
    annotation = getattr(inspect.unwrap(run), "__annotations__", {}).get(name)
    if kind == "batch":
        return annotation in (list[memoryview], "list[memoryview]")
    return annotation in (memoryview, "memoryview")


def _hook(module: ModuleType, users: ModuleType, name: str) -> Callable[[], Any] | None:
    """The function `name` of the script, if it has one that can be called with nothing."""
    function = getattr(module, name, None) or getattr(users, name, None)
    if not inspect.isroutine(function):
        return None
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        # Some helper of the script's own that happens to have this name.
        return None
    return function


def _single(parse: inputs.Parser, name: str) -> inputs.Parser:
    """`parse`, with the value of the argument `name` in place of the arguments."""

    def parse_item(number: int, view: memoryview, start: int, end: int, tail: memoryview | None) -> Any:
        number, arguments, refusal, limit, request_id = parse(number, view, start, end, tail)
        return number, arguments.get(name), refusal, limit, request_id

    return parse_item


def _guarded_run(run: Callable[..., Any], substitute: responses.Substitute) -> Callable[..., Any]:
    def guarded(**arguments: Any) -> Any:
        try:
            return run(**arguments)
        except Exception as error:
            instead = substitute(error)
            if instead is None:
                raise
            return instead

    return guarded


def _async_run(run: Callable[..., Any], substitute: responses.Substitute) -> Callable[..., Any]:
    """`run` as one coroutine function, whatever it is made of. Of a stream it waits for the first item."""

    async def guarded(**arguments: Any) -> Any:
        try:
            result = run(**arguments)
            if inspect.isawaitable(result):
                result = await result
            return await formatting.begin_async(result) if isinstance(result, AsyncIterator) else result
        except Exception as error:
            instead = substitute(error)
            if instead is None:
                raise
            return instead

    return guarded


def _answer_of(error: BaseException) -> Any:
    """The answer that `flask.abort()` and its like ask for by raising an exception of Werkzeug's."""
    exceptions = sys.modules.get("werkzeug.exceptions")
    if exceptions is None or not isinstance(error, exceptions.HTTPException):
        return None
    if error.response is not None:
        return error.response
    code = error.code if error.code is not None else 500
    return responses.AMLResponse({"message": error.description}, code, json_str=True)
