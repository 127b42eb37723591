"""The same classifier for data frames; the names of the request are those of Power BI."""

import os

import joblib
import pandas as pd
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema

sample = pd.DataFrame(
    {"sepal_length": [5.1], "sepal_width": [3.5], "petal_length": [1.4], "petal_width": [0.2]}
)
inputs = StandardPythonParameterType({"data": PandasParameterType(sample)})
parameters = StandardPythonParameterType({"probabilities": False})
outputs = StandardPythonParameterType({"Results": StandardPythonParameterType([0])})


def init():
    """Loads the model, once per worker."""
    global model
    model = joblib.load(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.joblib"))


@input_schema("GlobalParameters", parameters, convert_to_provided_type=False)
@input_schema("Inputs", inputs)
@output_schema(outputs)
def run(Inputs, GlobalParameters={"probabilities": False}):
    """Gives a class, or the probabilities of all classes, for each row."""
    # In the model's order, whatever that of the request.
    values = Inputs["data"][sample.columns].to_numpy()
    predict = model.predict_proba if GlobalParameters["probabilities"] else model.predict
    return {"Results": predict(values).tolist()}
