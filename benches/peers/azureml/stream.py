import time
from collections.abc import Iterator

from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse


def init() -> None:
    pass


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    return AMLResponse(items(), 200)


def items() -> Iterator[str]:
    yield f"{time.clock_gettime_ns(time.CLOCK_MONOTONIC)}\n"
    time.sleep(0.01)
    yield "end\n"
