"""Trains a small classifier of handwritten digits and saves it in the two forms that the example serves.

    python train.py [--out DIR]

The 1797 scans come with scikit-learn: 8 x 8 pixels, each from 0 (paper) to 16 (ink). 360 of them, the same in
every run, are held out. Writes into DIR (default `.outrigger/digits`):

model.joblib   the scikit-learn pipeline, for `score.py`
digits.onnx    the same as ONNX, for `score_handle.py`: `image` float32 [batch, 64] in, `label` int64 [batch]
               and `probabilities` float32 [batch, 10] out
held_out.json  the held-out scans: `ids` (row in scikit-learn's data set), `images` (64 pixels each), `truth`,
               and what each form of the model says in this process: `joblib_labels`, `onnx_labels`
"""

import argparse
import json
from pathlib import Path

import joblib
import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler

HELD_OUT = 360
SEED = 20


def main() -> None:
    """Trains, saves, and prints how often each form of the model is right about the held-out scans."""
    parser = argparse.ArgumentParser(description="Trains a classifier of handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path(".outrigger/digits"), help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    scans = load_digits()
    train, held_out = train_test_split(
        np.arange(len(scans.data)), test_size=HELD_OUT, stratify=scans.target, random_state=SEED
    )
    images, truth = scans.data[held_out], scans.target[held_out]

    model = make_pipeline(MinMaxScaler(), MLPClassifier((128,), alpha=0.01, max_iter=500, random_state=SEED))
    model.fit(scans.data[train], scans.target[train])

    joblib.dump(model, out / "model.joblib")
    (out / "digits.onnx").write_bytes(export(model))

    by_joblib = joblib.load(out / "model.joblib").predict(images)
    session = onnxruntime.InferenceSession(out / "digits.onnx", providers=["CPUExecutionProvider"])
    by_onnx, _ = session.run(["label", "probabilities"], {"image": images.astype(np.float32)})
    described = {
        "ids": held_out.tolist(),
        "images": images.tolist(),
        "truth": truth.tolist(),
        "joblib_labels": by_joblib.tolist(),
        "onnx_labels": by_onnx.tolist(),
    }
    (out / "held_out.json").write_text(json.dumps(described) + "\n")

    for name, labels in (("joblib", by_joblib), ("ONNX", by_onnx)):
        right = int((labels == truth).sum())
        print(f"{name:>6}: {right} of {len(truth)} held-out scans right ({right / len(truth):.1%})")
    print(f"both say the same of {int((by_joblib == by_onnx).sum())} scans")
    print(f"saved in {out}")


def export(model: Pipeline) -> bytes:
    """`model` as ONNX, with plain tensors as outputs and a free axis named `batch`."""
    onnx_model = to_onnx(
        model,
        initial_types=[("image", FloatTensorType([None, 64]))],
        options={id(model): {"zipmap": False}},
        target_opset=18,
    )
    # The converter leaves free axes without a name, and runtimes cannot tell then that they are the same.
    for tensor in (*onnx_model.graph.input, *onnx_model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    return onnx_model.SerializeToString()


if __name__ == "__main__":
    main()
