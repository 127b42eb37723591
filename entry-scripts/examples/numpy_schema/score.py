"""A scikit-learn classifier whose input and output have a schema."""

import logging
import os

import joblib
import numpy as np
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.schema_decorators import input_schema, output_schema

input_sample = np.array([[5.1, 3.5, 1.4, 0.2]])
output_sample = np.array([0])


def init():
    """Loads the model, once per worker."""
    global model
    path = os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.joblib")
    model = joblib.load(path)
    logging.warning("loaded %s", os.path.basename(path))


@input_schema("data", NumpyParameterType(input_sample))
@output_schema(NumpyParameterType(output_sample))
def run(data):
    """Gives a class for each row of `data`."""
    print(f"rows: {len(data)}")
    return model.predict(data).tolist()
