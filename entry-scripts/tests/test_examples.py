"""The examples in the form of AzureML's scripts, with models that are made here."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

import example_models
from conftest import Launch
from example_models import png
from harness import ENTRY_SCRIPTS, INPUT_REFUSED, POST, WHOLE_ANSWER, Answer, Worker, call_payload
from test_raw import headers_of
from test_schema import send

EXAMPLES = ENTRY_SCRIPTS / "examples"


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LogisticRegression, Any]:
    folder = tmp_path_factory.mktemp("iris")
    return folder, *example_models.iris(folder)


def begin(launch: Launch, example: str, script: str = "score.py", **environment: str) -> tuple[Worker, Any]:
    worker = launch(**environment)
    return worker, worker.start(entry_script=script, app_root=str(EXAMPLES / example))


def test_numpy_schema(launch: Launch, iris: tuple[Path, LogisticRegression, Any]) -> None:
    folder, model, rows = iris
    worker, ready = begin(launch, "numpy_schema", AZUREML_MODEL_DIR=str(folder))
    assert json.loads(ready["sample"]) == {"data": [[5.1, 3.5, 1.4, 0.2]]}
    assert send(worker, ready["sample"].encode()).json() == [0]
    assert send(worker, {"data": rows.tolist()}, number=2).json() == model.predict(rows).tolist()
    assert send(worker, {"data": [[1, 2, 3]]}, number=3).outcome == INPUT_REFUSED
    logged = [(number, name, text) for number, _, _, name, text in worker.logs]
    assert logged[:3] == [(0, "root", "loaded model.joblib"), (1, "", "rows: 1"), (2, "", "rows: 150")]


def test_data_frames(launch: Launch, iris: tuple[Path, LogisticRegression, Any]) -> None:
    folder, model, rows = iris
    worker, ready = begin(launch, "numpy_schema", "score_frame.py", AZUREML_MODEL_DIR=str(folder))
    assert send(worker, ready["sample"].encode()).json() == {"Results": [0]}
    inputs = {"data": example_models.frame(rows)}
    answer = send(worker, {"Inputs": inputs, "GlobalParameters": {"probabilities": True}}, number=2)
    assert np.allclose(answer.json()["Results"], model.predict_proba(rows), rtol=0, atol=1e-12)
    assert send(worker, {"Inputs": {"data": [{"sepal_length": 1}]}}, number=3).status == 400


def test_onnx(launch: Launch, tmp_path: Path) -> None:
    example_models.linear(tmp_path)
    worker, _ = begin(launch, "onnx", AZUREML_MODEL_DIR=str(tmp_path))
    rows = [[1.0, 0.0, 0.0], [0.5, 1.0, 2.0]]
    assert worker.post(json.dumps({"data": rows})).json() == {
        "result": (np.array(rows) @ example_models.WEIGHTS).tolist()
    }
    assert "data" in worker.post("{}", 2).json()["error"]


def post(
    worker: Worker, body: bytes, query: bytes = b"", content_type: str = "image/png", number: int = 1
) -> Answer:
    payload = call_payload(POST, body=body, query=query, headers=[("content-type", content_type)])
    worker.send_call(number, payload)
    return worker.reply(number)


def test_images(launch: Launch) -> None:
    worker, ready = begin(launch, "images")
    assert ready["mode"] == "raw"
    picture = png(40, 20, (10, 20, 30))
    described = {"width": 40, "height": 20, "mean": [10.0, 20.0, 30.0]}
    assert post(worker, picture).json() == described
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + picture
    answer = post(worker, form + b"\r\n--b--\r\n", content_type="multipart/form-data; boundary=b", number=2)
    assert answer.json() == described
    small = post(worker, picture, b"thumbnail=10", number=3)
    assert (small.outcome, small.status) == (WHOLE_ANSWER, 200)
    assert ("Content-Type", "image/png") in headers_of(small)
    assert Image.open(io.BytesIO(small.rest)).size == (10, 5)
    refused = post(worker, b"no picture", number=4)
    assert (refused.status, "cannot identify" in refused.json()["error"]) == (400, True)
    bomb = post(worker, png(9000, 9000, (0, 0, 0)), number=5)
    assert bomb.status == 400


def test_images_by_get(launch: Launch) -> None:
    worker, _ = begin(launch, "images")
    answer = worker.get()
    assert (answer.status, answer.rest) == (200, b"send a picture")
