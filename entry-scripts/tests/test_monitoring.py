"""ModelDataCollector of `azureml.monitoring`: what reaches the replica, by a server that takes the rows in its place."""

import json
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conftest import Launch
from harness import POST, Worker, call_payload

CORRELATION = [
    "$aml_dc_correlation_id",
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
]


class Replica(ThreadingHTTPServer):
    """Takes rows; `status` is what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[dict[str, Any]] = []
        self.clients: set[Any] = set()
        self.status = 202
        #: Closes each connection after its answer, as a replica does that ends.
        self.closes = False

    @property
    def variables(self) -> dict[str, str]:
        return {"AML_MODEL_DC_STORAGE_ENABLED": "true", "AZUREML_MDC_PORT": str(self.server_port)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert (self.path, self.headers["Content-Type"]) == ("/modeldata/csv", "application/json")
        self.server.taken.append(json.loads(body))
        self.server.clients.add(self.client_address)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "4")
        if self.server.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"said")
        self.close_connection = self.server.closes

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def replica() -> Iterator[Replica]:
    server = Replica()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


IMPORTS = "from azureml.monitoring import ModelDataCollector\nimport numpy, pandas\n"


def collected(serve: Launch, replica: Replica, made: str, statement: str, **variables: str) -> list[Any]:
    """What is taken when a script that has made `dc` runs `statement`."""
    script = f"{IMPORTS}def init():\n    global dc\n    dc = ModelDataCollector({made})\n"
    script += f"def run(data):\n    {statement}\n    return 'fine'\n"
    worker = serve(script, **{**replica.variables, **variables})
    assert worker.post().json() == "fine"
    return replica.taken


def test_inputs_have_what_joins_them(serve: Launch, replica: Replica) -> None:
    made = "'best', designation='inputs', feature_names=['a', 'b'], workspace='Sub/RG/WS'"
    script = f"{IMPORTS}dc = ModelDataCollector({made}, model_version=3)\n"
    script += "def run(data):\n    return dc.collect([1.5, None], 'mine')\n"
    worker = serve(script, SERVICE_NAME="svc", **replica.variables)
    correlations = worker.post().json()
    assert list(correlations) == CORRELATION
    own = correlations["$aml_dc_correlation_id"]
    assert own.startswith("mine-") and uuid.UUID(own.removeprefix("mine-")).version == 4
    [body] = replica.taken
    assert (body["columns"], body["rows"], body["correlated"]) == (["a", "b"], [["1.5", ""]], True)
    where = [body[name] for name in ("designation", "file", "workspace", "service", "model", "version")]
    assert where == ["inputs", "inputs", "sub/rg/ws", "svc", "best", "3"]
    time = correlations["$aml_dc_scoring_timestamp"]
    assert len(time) == len("2026-01-02T03:04:05.123456")
    assert body["time"] == round(datetime.fromisoformat(time + "+00:00").timestamp() * 1e6)
    assert (body["correlation_id"], body["request_id"]) == (own, correlations["$aml_request_id"])
    assert correlations["$aml_dc_boundary"] == 1440


@pytest.mark.parametrize(
    ("data", "columns", "rows"),
    [
        ("[1, 'x, \"y\"', 2.0, None, True]", None, [["1", 'x, "y"', "2.0", "", "True"]]),
        ("numpy.array([1.5, 2])", None, [["1.5", "2.0"]]),
        ("numpy.array([[1, 2], [3, 4]])", None, [["1", "2"], ["3", "4"]]),
        (
            "pandas.DataFrame({'x': [1, 2], 'y\\n': ['a\\r\\nb', None]})",
            ["x", "y\n"],
            [["1", "a\r\nb"], ["2", ""]],
        ),
        ("pandas.DataFrame({'x': []})", ["x"], None),
    ],
)
def test_tables(serve: Launch, replica: Replica, data: str, columns: Any, rows: Any) -> None:
    taken = collected(serve, replica, "'best'", f"dc.collect({data})")
    if rows is None:
        assert taken == []
        return
    [body] = taken
    assert (body["designation"], body["file"]) == ("general", "default")
    assert (body["columns"], body["rows"], body["time"], body["correlated"]) == (columns, rows, None, False)


def test_predictions_go_where_their_inputs_went(serve: Launch, replica: Replica) -> None:
    script = f"""{IMPORTS}
inputs = ModelDataCollector("best", "inputs", ["a"], model_version="7", webservice_name="svc")
predictions = ModelDataCollector("other", "predictions", ["p"])
def run(data):
    said = inputs.collect(numpy.array([1, 2]) if data == "array" else pandas.DataFrame({{"a": [1, 2]}}))
    said["$aml_dc_scoring_timestamp"] = "2020-02-03T04:05:06.000001"
    more = [5, 6] if data == "array" else pandas.DataFrame({{"p": [5, 6]}})
    predictions.collect(predictions.add_correlations(numpy.array(more) if data == "array" else more, said))
    return said
"""
    worker = serve(script, **replica.variables)
    for number, data in enumerate(("array", "frame"), 1):
        replica.taken.clear()
        said = worker.post(data, number).json()
        inputs, predictions = replica.taken
        assert inputs["correlation_id"] == predictions["correlation_id"] == said["$aml_dc_correlation_id"]
        assert (predictions["model"], predictions["version"], predictions["service"]) == ("best", "7", "svc")
        assert (predictions["designation"], predictions["file"]) == ("predictions", "predictions")
        assert predictions["time"] == 1_580_702_706_000_001
        assert (predictions["columns"], predictions["correlated"]) == (["p"], True)
        array = [["1", "2"]], [["5", "6"]]
        wanted = array if data == "array" else ([["1"], ["2"]], [["5"], ["6"]])
        assert (inputs["rows"], predictions["rows"]) == wanted


def test_rows_of_several_days_part(serve: Launch, replica: Replica) -> None:
    frame = "pandas.DataFrame({'p': [1, 2, 3], '$aml_dc_scoring_timestamp': "
    frame += "['2020-01-01T00:00:00', '2020-01-01T00:00:00', '2020-01-02T00:00:00']})"
    taken = collected(serve, replica, "'best', 'labels'", f"dc.collect({frame})")
    day = 86_400_000_000
    times = [(body["time"] - 18262 * day, len(body["rows"]), body["correlated"]) for body in taken]
    assert times == [(0, 2, False), (day, 1, False)]


def test_names_come_from_azuremls_list(serve: Launch, replica: Replica, tmp_path: Any) -> None:
    config = {
        "accountContext": {"subscriptionId": "SUB", "resourceGroupName": "Rg", "accountName": "Ws"},
        "modelsInfo": {"best": {"9": {}, "10": {}}},
    }
    (tmp_path / "model_config_map.json").write_text(json.dumps(config))
    made = "'best', 'signals', collection_name='mine'"
    [body] = collected(serve, replica, made, "dc.collect([1])", AML_APP_ROOT=str(tmp_path))
    where = [body[name] for name in ("workspace", "model", "version", "file")]
    assert where == ["sub/rg/ws", "best", "10", "mine"]


@pytest.mark.parametrize("config", ["{", "[]", '{"modelsInfo": {"best": {"x": 1, "y": 2}}}', '{"modelsInfo": 3}'])
def test_a_broken_list_is_no_hindrance(serve: Launch, replica: Replica, tmp_path: Any, config: str) -> None:
    (tmp_path / "model_config_map.json").write_text(config)
    [body] = collected(serve, replica, "'best'", "dc.collect([1])", AML_APP_ROOT=str(tmp_path))
    assert (body["workspace"], body["version"]) == ("default/default/default", "default")


@pytest.mark.parametrize(
    ("made", "switch"), [("'best', 'wrong'", "true"), ("'best'", "false"), ("'best', 'inputs'", "no")]
)
def test_what_is_off_collects_nothing(serve: Launch, replica: Replica, made: str, switch: str) -> None:
    taken = collected(serve, replica, made, "dc.collect([1])", AML_MODEL_DC_STORAGE_ENABLED=switch)
    assert taken == []


def test_debugging_prints(serve: Launch, replica: Replica) -> None:
    variables = {**replica.variables, "AML_MODEL_DC_STORAGE_ENABLED": "false", "AML_MODEL_DC_DEBUG": "true"}
    script = f"{IMPORTS}def run(data):\n    ModelDataCollector('m', feature_names=['a']).collect(['x,y'])\n"
    worker = serve(script, **variables)
    worker.post()
    assert [line[-1] for line in worker.logs] == ["a", '"x,y"']
    assert replica.taken == []


def warnings(worker: Worker) -> list[str]:
    return [line[-1] for line in worker.logs if line[3] == "azureml.monitoring"]


def test_what_is_no_table_is_told(serve: Launch, replica: Replica) -> None:
    script = f"{IMPORTS}dc = ModelDataCollector('m')\ndef run(data):\n    return dc.collect({{'a': 1}})\n"
    worker = serve(script, **replica.variables)
    assert worker.post().message == ""
    assert "a dict is not collected" in warnings(worker)[0]
    assert replica.taken == []


def test_a_replica_that_refuses_fails_no_call_and_is_told_of_once(serve: Launch, replica: Replica) -> None:
    replica.status = 503
    script = f"{IMPORTS}dc = ModelDataCollector('m')\ndef run(data):\n    dc.collect([1])\n    return 'fine'\n"
    worker = serve(script, **replica.variables)
    for number in (1, 2, 3):
        assert worker.post(number=number).json() == "fine"
    assert len(replica.taken) == 3
    assert len(warnings(worker)) == 1 and warnings(worker)[0].endswith("said")


def test_nobody_who_listens_fails_no_call(serve: Launch) -> None:
    variables = {"AML_MODEL_DC_STORAGE_ENABLED": "true", "AZUREML_MDC_PORT": "1"}
    script = f"{IMPORTS}dc = ModelDataCollector('m')\ndef run(data):\n    dc.collect([1])\n    return 'fine'\n"
    worker = serve(script, **variables)
    assert worker.post().json() == "fine"
    assert "Connection refused" in warnings(worker)[0]


def test_a_connection_is_kept_and_replaced(serve: Launch, replica: Replica) -> None:
    script = f"{IMPORTS}from outrigger_worker import monitoring\ndc = ModelDataCollector('m')\n"
    script += "def run(data):\n    if data == 'late':\n        monitoring._sender._local.used -= 60\n"
    script += "    dc.collect([data])\n    return 'fine'\n"
    worker = serve(script, **replica.variables)
    for number in (1, 2, 3):
        worker.post(number=number)
    assert len(replica.clients) == 1
    assert worker.post("late", number=4).json() == "fine"
    assert len(replica.clients) == 2, "it may be about to be closed"
    replica.closes = True
    for number in (5, 6, 7):
        assert worker.post(number=number).json() == "fine"
    assert warnings(worker) == [] and len(replica.taken) == 7, "none twice, none lost"


@pytest.mark.parametrize(
    "data",
    ["numpy.zeros((2, 2, 2))", "[Bad()]", "pandas.DataFrame({'a': [Bad()]})", "['\\ud800']"],
)
def test_nothing_that_is_collected_fails_a_call(serve: Launch, replica: Replica, data: str) -> None:
    script = f"{IMPORTS}class Bad:\n    def __str__(self):\n        raise ValueError('bad')\n    __repr__ = __str__\n"
    script += "dc = ModelDataCollector('m', 'inputs')\n"
    script += f"def run(data):\n    dc.collect(dc.add_correlations({data}, None))\n    return 'fine'\n"
    worker = serve(script, **replica.variables)
    assert worker.post().json() == "fine"


def test_the_request_is_named(launch: Launch, replica: Replica) -> None:
    script = f"{IMPORTS}dc = ModelDataCollector('m', 'inputs')\ndef init():\n    dc.collect([0])\n"
    script += "def run(data):\n    return dc.collect([1])['$aml_request_id']\n"
    worker = launch(script, **replica.variables)
    worker.start()
    worker.send_call(1, call_payload(POST, request_id=b"req-7"))
    assert worker.reply(1).json() == "req-7"
    assert [body["request_id"] for body in replica.taken] == ["00000000-0000-0000-0000-000000000000", "req-7"]
    # Outside of calls there is none, which the original says by zeros.
    assert all(body["rows"] == [[str(number)]] for number, body in enumerate(replica.taken))
