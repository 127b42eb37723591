"""The example of the handwritten digits, from training to answers of both of its scripts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
import pytest

from blocks import decode_infer, encode_block
from conftest import Launch
from harness import (
    ENTRY_SCRIPTS,
    INFER,
    MODEL,
    MODEL_INFO,
    PATIENCE,
    POST,
    READY,
    REPLY,
    TENSORS,
    Frame,
    Worker,
    call_payload,
    frame,
    parse_reply,
)

EXAMPLE = ENTRY_SCRIPTS / "examples" / "digits"
DATATYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits")
    command = [sys.executable, "-B", str(EXAMPLE / "train.py"), "--out", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * PATIENCE).stdout
    assert "both say the same of 360 scans" in printed
    return out


@pytest.fixture(scope="module")
def held_out(trained: Path) -> dict[str, list[Any]]:
    return json.loads((trained / "held_out.json").read_text())


def test_training(trained: Path, held_out: dict[str, list[Any]]) -> None:
    ids, images, truth = (held_out[key] for key in ("ids", "images", "truth"))
    assert len(set(ids)) == len(images) == len(truth) == 360
    assert np.shape(images) == (360, 64)
    # Stratified: each digit has its tenth.
    assert np.bincount(truth).min() >= 34 and np.bincount(truth).max() <= 38
    labels = joblib.load(trained / "model.joblib").predict(images)
    assert (labels == truth).mean() >= 0.97
    assert held_out["joblib_labels"] == held_out["onnx_labels"] == labels.tolist()


def test_onnx_form(trained: Path) -> None:
    session = onnxruntime.InferenceSession(trained / "digits.onnx", providers=["CPUExecutionProvider"])
    takes = [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_inputs()]
    gives = [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_outputs()]
    assert takes == [("image", "tensor(float)", ["batch", 64])]
    assert gives == [("label", "tensor(int64)", ["batch"]), ("probabilities", "tensor(float)", ["batch", 10])]


def test_classic_script(launch: Launch, trained: Path, held_out: dict[str, list[Any]]) -> None:
    worker = launch(AZUREML_MODEL_DIR=str(trained))
    worker.start(app_root=str(EXAMPLE))
    answer = worker.post(json.dumps({"data": held_out["images"]})).json()
    model = joblib.load(trained / "model.joblib")
    assert answer["labels"] == model.predict(held_out["images"]).tolist()
    assert answer["probabilities"] == model.predict_proba(held_out["images"]).tolist()


def test_script_with_a_handle(launch: Launch, trained: Path, held_out: dict[str, list[Any]]) -> None:
    session = onnxruntime.InferenceSession(trained / "digits.onnx", providers=["CPUExecutionProvider"])
    worker = launch()
    worker.begin(entry_script="score_handle.py", app_root=str(EXAMPLE))
    until(worker, READY, session)
    worker.send_call(1, call_payload(POST, body=json.dumps({"data": held_out["images"]}).encode()))
    answer = parse_reply(until(worker, REPLY, session)).json()
    model = joblib.load(trained / "model.joblib")
    assert answer["labels"] == model.predict(held_out["images"]).tolist()
    assert np.allclose(answer["probabilities"], model.predict_proba(held_out["images"]), rtol=0, atol=1e-5)


def until(worker: Worker, kind: int, session: onnxruntime.InferenceSession) -> Frame:
    """Plays a replica with one model, until a frame of `kind` comes."""
    while (received := worker.receive()).kind != kind:
        if received.kind == MODEL:
            assert received.payload == b"digits"
            described = {"inputs": describe(session.get_inputs()), "outputs": describe(session.get_outputs())}
            worker.send(
                frame(MODEL_INFO, received.number, json.dumps({"name": "digits"} | described).encode())
            )
        else:
            assert received.kind == INFER
            name, inputs = decode_infer(received.payload)
            assert name == "digits"
            outputs = [output.name for output in session.get_outputs()]
            results = dict(zip(outputs, session.run(outputs, inputs), strict=True))
            worker.send(frame(TENSORS, received.number, encode_block(results)))
    return received


def describe(tensors: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "datatype": DATATYPES[tensor.type],
            "shape": [extent if isinstance(extent, int) else -1 for extent in tensor.shape],
        }
        for tensor in tensors
    ]
