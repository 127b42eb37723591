"""Scripts decorated with the package `inference-schema`, as it is published."""

import json
from typing import Any

import pytest

from conftest import INIT, Launch
from harness import GET, INPUT_REFUSED, POST, RAISED, RETURNED, Answer, Worker, call_payload

IMPORTS = """
import base64, datetime, json
import numpy as np
import pandas as pd
from inference_schema.schema_decorators import input_schema, output_schema
from inference_schema.parameter_types.abstract_parameter_type import AbstractParameterType
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType

def show(value):
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.astype(str).tolist()]
    if isinstance(value, pd.DataFrame):
        return [[str(type) for type in value.dtypes], list(map(str, value.columns)), value.astype(str).values.tolist()]
    if isinstance(value, dict):
        return {key: show(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [show(inner) for inner in value]
    return [type(value).__name__, str(value)]
"""
#: One parameter `x` of the type that replaces `TYPE`.
ONE = IMPORTS + "@input_schema('x', TYPE)\ndef run(x):\n    return show(x)\n"
TWO = IMPORTS + """
@input_schema('a', NumpyParameterType(np.array([[1, 2]])))
@input_schema('b', StandardPythonParameterType(0.5))
@output_schema(StandardPythonParameterType([1]))
def run(a, b=0.25):
    if b == 3:
        raise ValueError("the script's own")
    return [a.tolist(), b]
"""
FRAME = "pd.DataFrame({'n': [1, 2], 's': ['a', 'b']})"


def send(
    worker: Worker, value: Any, content_type: str | None = "application/json", number: int = 1
) -> Answer:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    headers = [] if content_type is None else [("content-type", content_type)]
    worker.send_call(number, call_payload(POST, body=body, headers=headers))
    return worker.reply(number)


def test_ready(launch: Launch) -> None:
    ready = launch(INIT + TWO).start()
    assert (ready["mode"], ready["headers"], ready["methods"]) == ("schema", "some", ["GET", "POST"])
    assert json.loads(ready["sample"]) == {"a": [[1, 2]], "b": 0.5}
    a = {"type": "array", "items": {"type": "array", "items": {"type": "integer", "format": "int64"}}}
    schemas = {
        "input": {
            "type": "object",
            "properties": {"a": a | {"format": "numpy.ndarray"}, "b": {"type": "number", "format": "double"}},
            "example": {"a": [[1, 2]], "b": 0.5},
        },
        "output": {"type": "array", "items": {"type": "integer", "format": "int64"}, "example": [1]},
    }
    assert ready["swagger"] == {"2": schemas, "3": schemas, "3.1": schemas}


def test_swagger_without_the_version_that_cannot_express_it(launch: Launch) -> None:
    ready = launch(INIT + ONE.replace("TYPE", "StandardPythonParameterType([1, 'a'])")).start()
    assert ready["swagger"]["2"] is None
    assert ready["swagger"]["3"] == ready["swagger"]["3.1"]
    assert ready["swagger"]["3"]["input"]["example"] == {"x": [1, "a"]}


def test_a_sample_that_json_cannot_have(launch: Launch) -> None:
    ready = launch(INIT + ONE.replace("TYPE", "NumpyParameterType(np.array([np.nan, 1.5]))")).start()
    assert json.loads(ready["sample"]) == {"x": [None, 1.5]}


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (
            "NumpyParameterType(np.array([[1, 2]]))",
            [[3, 4], [5, 6]],
            ["int64", [2, 2], [["3", "4"], ["5", "6"]]],
        ),
        ("NumpyParameterType(np.array([[1.5]]))", [[1]], ["float64", [1, 1], [["1.0"]]]),
        ("NumpyParameterType(np.array([1], np.float32))", [2], ["float32", [1], ["2.0"]]),
        ("NumpyParameterType(np.array([1]), enforce_shape=False)", [[1, 2]], ["int64", [1, 2], [["1", "2"]]]),
        (
            "NumpyParameterType(np.array([1]), enforce_column_type=False)",
            ["a"],
            ["<U1", [1], ["a"]],
        ),
        (
            "NumpyParameterType(np.array(['2020-01-02'], 'datetime64[D]'))",
            ["2021-02-03"],
            ["datetime64[D]", [1], ["2021-02-03"]],
        ),
        (f"PandasParameterType({FRAME})", [{"n": 3, "s": "c"}], [["int64", "str"], ["n", "s"], [["3", "c"]]]),
        (
            f"PandasParameterType({FRAME}, orient='split')",
            {"columns": ["n", "s"], "index": [0], "data": [[3, "c"]]},
            [["int64", "str"], ["n", "s"], [["3", "c"]]],
        ),
        (
            f"PandasParameterType({FRAME}, orient='index')",
            {"0": {"n": 3, "s": "c"}},
            [["int64", "str"], ["n", "s"], [["3", "c"]]],
        ),
        (
            f"PandasParameterType({FRAME}, orient='columns')",
            {"n": {"0": 3}, "s": {"0": "c"}},
            [["int64", "str"], ["n", "s"], [["3", "c"]]],
        ),
        (
            "PandasParameterType(pd.DataFrame([[1, 2]]), orient='values')",
            [[3, 4]],
            [["int64", "int64"], ["0", "1"], [["3", "4"]]],
        ),
        (
            "PandasParameterType(pd.DataFrame({'n': [1]}), orient='table')",
            {
                "schema": {
                    "fields": [{"name": "index", "type": "integer"}, {"name": "n", "type": "integer"}],
                    "primaryKey": ["index"],
                },
                "data": [{"index": 0, "n": 3}],
            },
            [["int64"], ["n"], [["3"]]],
        ),
        (
            f"PandasParameterType({FRAME}, enforce_shape=False)",
            [{"n": 3}],
            [["int64"], ["n"], [["3"]]],
        ),
        ("StandardPythonParameterType(1)", 5, ["int", "5"]),
        ("StandardPythonParameterType(1.5)", 5, ["int", "5"]),
        ("StandardPythonParameterType('a')", "b", ["str", "b"]),
        ("StandardPythonParameterType(True)", False, ["bool", "False"]),
        ("StandardPythonParameterType(b'a')", "aGk=", ["bytes", "b'hi'"]),
        (
            "StandardPythonParameterType(datetime.datetime(2020, 1, 1))",
            "2021-02-03 04:05",
            ["datetime", "2021-02-03 04:05:00"],
        ),
        ("StandardPythonParameterType([1])", [1, "a"], [["int", "1"], ["str", "a"]]),
        ("StandardPythonParameterType({'a': 1, 'b': 2})", {"a": 5}, {"a": ["int", "5"]}),
        (
            "StandardPythonParameterType({'a': NumpyParameterType(np.array([1])), 'b': 1})",
            {"a": [2], "b": "any"},
            {"a": ["int64", [1], ["2"]], "b": ["str", "any"]},
        ),
        (
            "StandardPythonParameterType([StandardPythonParameterType({'a': NumpyParameterType(np.array([1]))})])",
            [{"a": [2]}, {"a": [3]}],
            [{"a": ["int64", [1], ["2"]]}, {"a": ["int64", [1], ["3"]]}],
        ),
        (
            "NumpyParameterType(np.array([1])), convert_to_provided_type=False",
            [1],
            [["int", "1"]],
        ),
        ("NumpyParameterType(np.array([1])), optional=True", [], []),
    ],
)
def test_types(serve: Launch, declared: str, value: Any, expected: Any) -> None:
    answer = send(serve(ONE.replace("TYPE", declared)), {"x": value})
    assert (answer.outcome, answer.message) == (RETURNED, "")
    assert answer.json() == expected


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (
            "NumpyParameterType(np.array([[1, 2]]))",
            [[1, 2, 3]],
            "'x' does not match the schema: "
            "Invalid input array: array has size 3 on dimension #1, while expected value is 2",
        ),
        (
            "NumpyParameterType(np.array([[1, 2]]))",
            [1],
            "'x' does not match the schema: Invalid input array: an array with 2 dimensions is expected",
        ),
        ("NumpyParameterType(np.array([1]))", 1, "'x' does not match the schema: Invalid input format"),
        (
            "NumpyParameterType(np.array([1]))",
            ["a"],
            "'x' does not match the schema: invalid literal for int()",
        ),
        (
            "NumpyParameterType(np.array([1]))",
            [None],
            "'x' does not match the schema: TypeError: int() argument",
        ),
        (
            f"PandasParameterType({FRAME})",
            1,
            "'x' does not match the schema: Exception: Error, unable to convert",
        ),
        (
            f"PandasParameterType({FRAME})",
            [{"n": "a", "s": "b"}],
            "'x' does not match the schema: invalid literal",
        ),
        (
            f"PandasParameterType({FRAME})",
            [{"n": 1}],
            "'x' does not match the schema: Invalid input data frame",
        ),
        (
            "StandardPythonParameterType(1)",
            "1",
            "'x' does not match the schema: Invalid input data type to parse",
        ),
        (
            "StandardPythonParameterType({'a': StandardPythonParameterType({'b': NumpyParameterType(np.array([1]))})})",
            {"a": {"b": "c"}},
            "'x.a.b' does not match the schema: Invalid input format: expected an array of items.",
        ),
        (
            "StandardPythonParameterType([StandardPythonParameterType({'a': NumpyParameterType(np.array([1]))})])",
            [{"a": [1]}, {"a": [1]}, {"a": 1}],
            "'x[2].a' does not match the schema: Invalid input format: expected an array of items.",
        ),
        (
            "StandardPythonParameterType({'a': 1})",
            5,
            "'x' does not match the schema: Invalid input data type",
        ),
    ],
)
def test_mismatches(serve: Launch, declared: str, value: Any, message: str) -> None:
    script = ONE.replace("TYPE", declared)
    worker = serve(script)
    answer = send(worker, {"x": value})
    assert (answer.outcome, answer.status, answer.rest) == (INPUT_REFUSED, 400, b"")
    assert answer.message.startswith(f"The value of {message}")
    compat = send(serve(script, compat=True), {"x": value})
    assert compat.outcome == RAISED
    assert b"inference_schema" in compat.rest


def test_an_async_script(serve: Launch) -> None:
    script = ONE.replace("TYPE", "NumpyParameterType(np.array([1]))").replace("def run", "async def run")
    worker = serve(script)
    assert send(worker, {"x": [1]}).json() == ["int64", [1], ["1"]]
    assert send(worker, {"x": 1}, number=2).outcome == INPUT_REFUSED


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"a": [[3, 4]], "b": 1}, [[[3, 4]], 1]),
        ({"a": [[3, 4]]}, [[[3, 4]], 0.25]),
        ({"b": 1, "more": {}, "a": [[3, 4]]}, [[[3, 4]], 1]),
        (json.dumps({"a": [[3, 4]]}).encode("utf-16"), [[[3, 4]], 0.25]),
        (b"\xef\xbb\xbf" + json.dumps({"a": [[3, 4]]}).encode(), [[[3, 4]], 0.25]),
    ],
)
def test_parameters(serve: Launch, body: Any, result: Any) -> None:
    assert send(serve(TWO), body).json() == result


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        ({"a": []}, None, 415, "Expects Content-Type to be application/json"),
        ({"a": []}, "text/plain", 415, "Expects Content-Type to be application/json"),
        (b"", "text/plain", 415, "Expects Content-Type to be application/json"),
        (b"", "application/json", 400, "POST body is empty. Expecting a JSON dictionary."),
        (b"{", "application/json", 400, "POST body could not be decoded as JSON: Expecting property name"),
        (b'{"a": "\xff"}', "application/json", 400, "POST body could not be decoded as JSON: 'utf-8' codec"),
        (b'{"a":' * 100_000, "application/json", 400, "POST body could not be decoded as JSON: maximum"),
        ([], "application/json", 400, "POST body should be a JSON dictionary."),
        (b"null", "application/json; charset=utf-8", 400, "POST body should be a JSON dictionary."),
        ({"b": 1}, "application/vnd.x+json", 400, "A value is not provided for the 'a' parameter."),
        ({"A": [[1, 2]]}, "Application/JSON", 400, "A value is not provided for the 'a' parameter."),
    ],
)
def test_requests_that_are_refused(
    serve: Launch, body: Any, content_type: str | None, status: int, message: str
) -> None:
    answer = send(serve(TWO), body, content_type)
    assert (answer.outcome, answer.status) == (INPUT_REFUSED, status)
    assert answer.message.startswith(message)


def test_get(serve: Launch) -> None:
    worker = serve(TWO)
    assert worker.get("a=[[1,2]]&b=2.5&c=x").json() == [[[1, 2]], 2.5]
    assert worker.get("a=[[1,2]]", 2).json() == [[[1, 2]], 0.25]
    assert worker.get("a=1", 3).status == 400
    worker.send_call(4, call_payload(GET))
    assert worker.reply(4).message == "A value is not provided for the 'a' parameter."


def test_a_failure_of_the_script_is_no_mismatch(serve: Launch) -> None:
    answer = send(serve(TWO), {"a": [[1, 2]], "b": 3})
    assert (answer.outcome, answer.message) == (RAISED, "ValueError: the script's own")


def test_a_mismatch_inside_of_the_script_is_its_failure(serve: Launch) -> None:
    script = IMPORTS + """
@input_schema('x', NumpyParameterType(np.array([1])))
def inner(x):
    return x

@input_schema('y', StandardPythonParameterType(1))
def run(y):
    return inner(x="not an array")
"""
    answer = send(serve(script), {"y": 1})
    assert (answer.outcome, answer.message) == (
        RAISED,
        "ValueError: Invalid input format: expected an array of items.",
    )


def test_a_type_of_the_scripts_own(serve: Launch) -> None:
    script = IMPORTS + """
class Upper(AbstractParameterType):
    def deserialize_input(self, value):
        return bytes(value.upper(), "ascii")
    def input_to_swagger(self):
        return {"type": "string", "example": self.sample_input.decode()}
@input_schema('x', Upper(b"A"))
def run(x):
    return show(x)
"""
    worker = serve(script)
    assert send(worker, {"x": "a"}).json() == ["bytes", "b'A'"]
    refused = send(worker, {"x": 1}, number=2)
    assert (refused.outcome, refused.status) == (INPUT_REFUSED, 400)
    assert refused.message == (
        "The value of 'x' does not match the schema: AttributeError: 'int' object has no attribute 'upper'"
    )
    # Which may be the type's own mistake.
    assert b"in deserialize_input" in refused.rest


def test_power_bi(serve: Launch) -> None:
    script = IMPORTS + """
@input_schema('Inputs', StandardPythonParameterType({'data': PandasParameterType(pd.DataFrame({'n': [1]}))}))
@input_schema('GlobalParameters', StandardPythonParameterType({'method': 'a'}), convert_to_provided_type=False)
@output_schema(StandardPythonParameterType({'Results': StandardPythonParameterType([1])}))
def run(Inputs, GlobalParameters={'method': 'none'}):
    return {'Results': (Inputs['data']['n'] * 2).tolist(), 'method': GlobalParameters['method']}
"""
    worker = serve(script)
    assert send(worker, {"Inputs": {"data": [{"n": 3}]}}).json() == {"Results": [6], "method": "none"}
    lower = send(worker, {"inputs": {"data": []}}, number=2)
    assert lower.message == "A value is not provided for the 'Inputs' parameter."


def test_headers_are_no_field(serve: Launch) -> None:
    script = IMPORTS + """
@input_schema('x', StandardPythonParameterType(1))
def run(x, request_headers):
    return [x, request_headers["Content-Type"]]
"""
    assert send(serve(script), {"x": 1, "request_headers": 2}).json() == [1, "application/json"]


def test_only_the_output_is_described(serve: Launch) -> None:
    script = IMPORTS + "@output_schema(StandardPythonParameterType(1))\ndef run(x, y=2):\n    return [x, y]\n"
    worker = serve(script)
    assert send(worker, {"x": [1]}).json() == [[1], 2]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (
            "from azureml.contrib.services.aml_request import rawhttp\n"
            "@rawhttp\n@input_schema('x', StandardPythonParameterType(1))\ndef run(x): pass\n",
            "run() cannot be decorated with both @rawhttp and @input_schema",
        ),
        (
            "@input_schema('x', StandardPythonParameterType([1]))\ndef run_batch(x): pass\n",
            "run_batch() cannot be decorated with @input_schema: it gets a list of calls. "
            "Decorate run() instead.",
        ),
    ],
)
def test_scripts_that_are_refused(launch: Launch, functions: str, message: str) -> None:
    failed = launch(INIT + IMPORTS + functions).fail()
    assert (failed["phase"], failed["message"]) == ("signature", message)


def test_a_driver_with_a_decorated_script(launch: Launch, tmp_path: Any) -> None:
    (tmp_path / "inner.py").write_text(TWO)
    worker = launch(INIT + "import inner as driver_module\ndef run(data):\n    return 'outer'\n")
    assert worker.start()["mode"] == "schema"
    assert send(worker, {"a": [[1, 2]]}).json() == [[[1, 2]], 0.25]
