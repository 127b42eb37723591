"""A model for ONNX Runtime, loaded by the script itself."""

import json
import os

import numpy as np
import onnxruntime


def init():
    """Opens the model, once per worker."""
    global session, input_name
    path = os.path.join(os.getenv("AZUREML_MODEL_DIR"), "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name


def run(raw_data):
    """Takes `{"data": rows}`; what goes wrong is told in the answer, as many scripts do it."""
    try:
        data = np.array(json.loads(raw_data)["data"], dtype=np.float32)
        result = session.run(None, {input_name: data})
        return {"result": result[0].tolist()}
    except Exception as error:
        return {"error": str(error)}
