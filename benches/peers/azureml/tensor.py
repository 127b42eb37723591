import numpy as np
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp


def init() -> None:
    pass


@rawhttp
def run(request: AMLRequest) -> float:
    return float(np.frombuffer(request.get_data(), np.float32).mean())
