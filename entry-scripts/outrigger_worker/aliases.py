"""The import paths of AzureML's inference server, served by this package.

Scripts import `rawhttp`, AMLRequest and AMLResponse from `azureml.contrib.services` or from
`azureml_inference_server_http.api`. Both lead here, also where that server is installed: its `rawhttp` would
set a flag that nobody looks at. ModelDataCollector of `azureml.monitoring` is ours too: the original's library
loads on no system of today. Of an installed `azureml` all else stays as it is.
"""

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from . import request, responses


class AMLLogFormatter(logging.Formatter):
    """The log lines of AzureML's inference server; `logging.json` files name it. Times are UTC."""

    converter = staticmethod(time.gmtime)

    def __init__(
        self,
        fmt: str = "%(asctime)s %(levelname).1s [%(process)d] %(name)s - %(message)s",
        datefmt: str | None = None,
        style: Any = "%",
    ) -> None:
        super().__init__(fmt, datefmt, style)


class RootAccessFilter(logging.Filter):
    """Drops the log lines of health probes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "GET / HTTP/1.1" not in record.getMessage()


_REQUEST = {"rawhttp": request.rawhttp, "AMLRequest": request.AMLRequest}
_RESPONSE = {"AMLResponse": responses.AMLResponse}
_SERVER = "azureml_inference_server_http"

#: Modules that are ours, with what is in them.
MODULES: Final[Mapping[str, Mapping[str, Any]]] = {
    f"{_SERVER}.api.aml_request": _REQUEST,
    f"{_SERVER}.api.aml_response": _RESPONSE,
    f"{_SERVER}.log_config": {"AMLLogFormatter": AMLLogFormatter, "RootAccessFilter": RootAccessFilter},
    "azureml.contrib.services.aml_request": _REQUEST,
    "azureml.contrib.services.aml_response": _RESPONSE,
}
#: What is in them is imported when they are, as few scripts collect.
_LATER: Final[Mapping[str, tuple[str, str]]] = {
    "azureml.monitoring": ("monitoring", "ModelDataCollector"),
    "azureml.monitoring.modeldatacollector": ("monitoring", "ModelDataCollector"),
}
#: Packages that are ours.
PACKAGES: Final = (_SERVER, f"{_SERVER}.api")
#: Packages that are ours when nobody else has them.
SHARED_PACKAGES: Final = ("azureml", "azureml.contrib", "azureml.contrib.services")


def install() -> None:
    """Puts the import paths up, before anything of the user's is imported. Once is enough, twice does no harm."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in MODULES:
            return importlib.machinery.ModuleSpec(fullname, _Loader(MODULES[fullname]))
        if fullname in _LATER:
            is_package = any(name.startswith(f"{fullname}.") for name in _LATER)
            return importlib.machinery.ModuleSpec(fullname, _Later(*_LATER[fullname]), is_package=is_package)
        if fullname in PACKAGES or fullname in SHARED_PACKAGES:
            return self._find_package(fullname, path, target)
        return None

    def _find_package(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec:
        if fullname in SHARED_PACKAGES:
            for finder in sys.meta_path:
                found = None if finder is self else finder.find_spec(fullname, path, target)
                if found is not None:
                    return found
        return importlib.machinery.ModuleSpec(fullname, _Loader({}), is_package=True)


class _Loader(importlib.abc.Loader):
    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._content)


class _Later(importlib.abc.Loader):
    def __init__(self, source: str, name: str) -> None:
        self._source, self._name = source, name

    def exec_module(self, module: ModuleType) -> None:
        source = importlib.import_module(f".{self._source}", __package__)
        setattr(module, self._name, getattr(source, self._name))
