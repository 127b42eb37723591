"""Calls `Predict` of a replica with a client of TensorFlow Serving's that is not ours; an assertion that fails ends it.

    client.py HOST:PORT KEY

The replica serves the identity of some datatypes as `id-DATATYPE` (`x` to `y`, [-1, 2]), and `score.model` is `id-FP32`.
"""

import sys

import grpc
import numpy as np
from min_tfs_client.tensors import ndarray_to_tensor_proto, tensor_proto_to_ndarray
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

VALUES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504], [5.96e-08, 1]], np.float16),
    "FP32": np.array([[0.1, -3.4e38], [1e-45, 1]], np.float32),
    "FP64": np.array([[0.1, -1.7e308]], np.float64),
    "BYTES": np.array([[b"", b"text"], [b"\x00\xff", b"a" * 1000]], np.object_),
}


def same(got, want):
    assert got.shape == want.shape and got.tobytes() == want.tobytes(), (got, want)


def main():
    metadata = [("authorization", f"Bearer {sys.argv[2]}"), ("x-ms-aml-grpc-service-route", "/api/v1/service/s")]
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for datatype, values in VALUES.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = f"id-{datatype}"
            if datatype == "BYTES":
                request.inputs["x"].dtype = 7
                for extent in values.shape:
                    request.inputs["x"].tensor_shape.dim.add(size=extent)
                request.inputs["x"].string_val.extend(values.flatten().tolist())
            elif datatype == "FP16":
                request.inputs["x"].dtype = 19
                for extent in values.shape:
                    request.inputs["x"].tensor_shape.dim.add(size=extent)
                request.inputs["x"].half_val.extend(values.view(np.uint16).flatten().tolist())
            else:
                request.inputs["x"].CopyFrom(ndarray_to_tensor_proto(values))
            response = stub.Predict(request, timeout=60, metadata=metadata)
            if datatype == "BYTES":
                assert list(response.outputs["y"].string_val) == values.flatten().tolist()
            elif datatype == "FP16":
                # The client does not read these as they are sent.
                assert list(response.outputs["y"].half_val) == values.view(np.uint16).flatten().tolist()
            else:
                same(tensor_proto_to_ndarray(response.outputs["y"]), values)
            assert response.model_spec.name == f"id-{datatype}"
        # Without a name `score.model` is meant; raw content, and only the outputs that are asked for.
        request = predict_pb2.PredictRequest(output_filter=["y"])
        request.inputs["x"].dtype = 1
        for extent in VALUES["FP32"].shape:
            request.inputs["x"].tensor_shape.dim.add(size=extent)
        request.inputs["x"].tensor_content = VALUES["FP32"].tobytes()
        response = stub.Predict(request, timeout=60, metadata=metadata)
        same(tensor_proto_to_ndarray(response.outputs["y"]), VALUES["FP32"])
        for change, code in [
            (lambda request: request.output_filter.append("z"), grpc.StatusCode.INVALID_ARGUMENT),
            (lambda request: setattr(request.model_spec, "name", "nil"), grpc.StatusCode.NOT_FOUND),
            (lambda request: request.inputs["x"].tensor_shape.dim.add(size=2), grpc.StatusCode.INVALID_ARGUMENT),
        ]:
            wrong = predict_pb2.PredictRequest()
            wrong.CopyFrom(request)
            change(wrong)
            try:
                stub.Predict(wrong, timeout=60, metadata=metadata)
                raise AssertionError("it was not refused")
            except grpc.RpcError as error:
                assert error.code() == code, error
        try:
            stub.Predict(request, timeout=60)
            raise AssertionError("it was answered without a key")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error


if __name__ == "__main__":
    main()
