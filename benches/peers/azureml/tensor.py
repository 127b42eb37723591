import numpy as np
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse


def init() -> None:
    pass


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    return AMLResponse(float(np.frombuffer(request.get_data(), np.float32).mean()), 200, json_str=True)
