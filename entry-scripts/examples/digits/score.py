"""Entry script in the classic AzureML form: it loads its model itself. Every worker has a copy of it."""

import json
import os

import joblib
import numpy as np


def init():
    """Loads the model, once per worker."""
    global model
    model_path = os.path.join(os.getenv("AZUREML_MODEL_DIR"), "model.joblib")
    model = joblib.load(model_path)


def run(raw_data):
    """Takes `{"data": [[64 pixels], ...]}`, each 0 to 16; gives a label and ten probabilities per scan."""
    data = np.array(json.loads(raw_data)["data"])
    probabilities = model.predict_proba(data)
    labels = model.classes_[probabilities.argmax(axis=1)]
    return {"labels": labels.tolist(), "probabilities": probabilities.tolist()}
