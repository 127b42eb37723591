"""The import paths of AzureML's inference server, with and without other packages of these names."""

from pathlib import Path

import pytest

from conftest import Launch

SAME = """
import importlib
import {first}, {second}
def run(data):
    a, b = importlib.import_module("{first}"), importlib.import_module("{second}")
    return [a.{name} is b.{name}, {first}.{name}.__module__]
"""


@pytest.mark.parametrize(("module", "name"), [("aml_request", "AMLRequest"), ("aml_response", "AMLResponse")])
def test_both_paths_lead_to_the_same(serve: Launch, module: str, name: str) -> None:
    paths = {
        "first": f"azureml.contrib.services.{module}",
        "second": f"azureml_inference_server_http.api.{module}",
    }
    same, where = serve(SAME.format(**paths, name=name)).post().json()
    assert same and where.startswith("outrigger_worker.")


@pytest.mark.parametrize(
    "statement",
    [
        "from azureml.contrib.services import aml_request, aml_response",
        "from azureml_inference_server_http.api import aml_request",
        "import azureml.contrib.services.aml_response as aml_response",
        "from azureml_inference_server_http.log_config import AMLLogFormatter, RootAccessFilter",
    ],
)
def test_ways_to_import(serve: Launch, statement: str) -> None:
    assert serve(statement + "\ndef run(data):\n    return 'fine'\n").post().json() == "fine"


@pytest.mark.parametrize(
    "package",
    [
        "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\nINSTALLED = True\n",
        "INSTALLED = True\n",
    ],
)
@pytest.mark.parametrize("contrib", [False, True])
def test_an_installed_azureml_keeps_working(
    serve: Launch, tmp_path: Path, package: str, contrib: bool
) -> None:
    core = tmp_path / "azureml" / "core"
    core.mkdir(parents=True)
    (tmp_path / "azureml" / "__init__.py").write_text(package)
    (core / "__init__.py").write_text("class Model: pass\n")
    if contrib:
        other = tmp_path / "azureml" / "contrib" / "other"
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("WHAT = 'other'\n")
    script = """
import azureml
from azureml.core import Model
from azureml.contrib.services.aml_response import AMLResponse
def run(data):
    if data == "other":
        from azureml.contrib.other import WHAT
        return WHAT
    return [azureml.INSTALLED, Model.__module__, AMLResponse.__module__]
"""
    worker = serve(script)
    assert worker.post().json() == [True, "azureml.core", "outrigger_worker.responses"]
    if contrib:
        assert worker.post("other", 2).json() == "other"


def test_a_namespace_package_keeps_working(serve: Launch, tmp_path: Path) -> None:
    (tmp_path / "azureml" / "data").mkdir(parents=True)
    (tmp_path / "azureml" / "data" / "__init__.py").write_text("WHAT = 'data'\n")
    script = (
        "from azureml.contrib.services.aml_request import rawhttp\nfrom azureml.data import WHAT\n"
        "def run(data):\n    return WHAT\n"
    )
    assert serve(script).post().json() == "data"


def test_an_installed_server_does_not_come_in_between(launch: Launch, tmp_path: Path) -> None:
    for package in ("azureml_inference_server_http/api", "azureml/contrib/services"):
        folder = tmp_path / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "aml_request.py").write_text("raise ImportError('no Flask here')\n")
    script = "from azureml.contrib.services.aml_request import rawhttp\n"
    script += "from azureml_inference_server_http.api.aml_request import AMLRequest\n"
    script += "def init(): pass\n@rawhttp\ndef run(request):\n    return type(request) is AMLRequest\n"
    worker = launch(script)
    assert worker.start()["mode"] == "raw"
    assert worker.post().json() is True


def test_what_nobody_has_is_missing(launch: Launch) -> None:
    failed = launch("import azureml.core\n").fail()
    assert failed["message"] == "ModuleNotFoundError: No module named 'azureml.core'"
