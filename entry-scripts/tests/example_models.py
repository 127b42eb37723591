"""Models and inputs for the examples: `python example_models.py FOLDER` writes them for tests in other languages.

FOLDER gets model directories, a picture, and `asked.json`: bodies, and the answers that the models themselves give.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression

COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
WEIGHTS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


def iris(folder: Path) -> tuple[LogisticRegression, Any]:
    """Writes a classifier to `folder/model.joblib`; gives it and its 150 rows of 4."""
    rows, classes = load_iris(return_X_y=True)
    return fitted(rows, classes, folder), rows


def digits(folder: Path) -> tuple[LogisticRegression, Any]:
    """The same for scans: 64 pixels each."""
    rows, classes = load_digits(return_X_y=True)
    return fitted(rows / 16, classes, folder), rows / 16


def fitted(rows: Any, classes: Any, folder: Path) -> LogisticRegression:
    model = LogisticRegression(max_iter=500).fit(rows, classes)
    joblib.dump(model, folder / "model.joblib")
    return model


def linear(folder: Path) -> None:
    """Writes `rows @ WEIGHTS` to `folder/model.onnx`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def frame(rows: Any) -> list[dict[str, float]]:
    """Rows of irises as records."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows.tolist()]


def main(folder: Path) -> None:
    for name in ("iris", "digits", "linear"):
        (folder / name).mkdir()
    linear(folder / "linear")
    (folder / "picture.png").write_bytes(png(40, 20, (10, 20, 30)))
    model, rows = iris(folder / "iris")
    scanned, scans = digits(folder / "digits")
    scans = scans[:20]
    points = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, 2.0]])
    asked = {
        "numpy": {"body": {"data": rows.tolist()}, "classes": model.predict(rows).tolist()},
        "frame": {
            "body": {"Inputs": {"data": frame(rows)}, "GlobalParameters": {"probabilities": False}},
            "classes": model.predict(rows).tolist(),
        },
        "digits": {"body": {"data": scans.tolist()}, "labels": scanned.predict(scans).tolist()},
        "onnx": {"body": {"data": points.tolist()}, "result": (points @ WEIGHTS).tolist()},
    }
    (folder / "asked.json").write_text(json.dumps(asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
