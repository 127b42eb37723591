"""Calls a replica with clients that are not ours, as their users would; an assertion that fails ends it.

    client.py CASE HOST:PORT KEY [ARGUMENT...]

The replica serves the identity of every datatype as `id-DATATYPE` (`x` to `y`, [-1, 2]).
"""

import queue
import sys

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

VALUES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504], [5.96e-08, 1]], np.float16),
    "BF16": np.array([[0.1, -3.0], [1e-38, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, -3.4e38], [1e-45, 1]], np.float32),
    "FP64": np.array([[0.1, -1.7e308]], np.float64),
    "BYTES": np.array([[b"", "länger".encode()], [b"\x00\xff", b"a" * 1000]], np.object_),
}


class Rest:
    module = http_client

    def __init__(self, address, key):
        self.client = http_client.InferenceServerClient(address)
        self.key = key

    @property
    def auth(self):
        # The client adds to it, so each call has its own.
        return {"headers": {"Authorization": f"Bearer {self.key}"}}

    def data(self, message):
        return message


class Grpc:
    module = grpc_client

    def __init__(self, address, key):
        self.client = grpc_client.InferenceServerClient(address)
        self.auth = {"headers": {"authorization": f"Bearer {key}"}}

    def data(self, message):
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(message, preserving_proto_field_name=True)


def same(got, want):
    assert got.shape == want.shape, (got.shape, want.shape)
    assert got.dtype == want.dtype, (got.dtype, want.dtype)
    assert got.tobytes() == want.tobytes() if got.dtype != np.object_ else (got == want).all(), (got, want)


def inputs(peer, datatype, values, **how):
    given = peer.module.InferInput("x", list(values.shape), datatype)
    given.set_data_from_numpy(values, **how)
    return [given]


def refused(call, *words):
    try:
        call()
    except InferenceServerException as error:
        text = str(error)
        assert all(word in text for word in words), text
        return error
    raise AssertionError("it was not refused")


def every_datatype(peer):
    """Values of every type come back as they went, in every form that the client has."""
    for datatype, values in VALUES.items():
        model = f"id-{datatype}"
        empty = np.empty((0, 2), values.dtype)
        for sent in (values, empty):
            result = peer.client.infer(model, inputs(peer, datatype, sent), request_id="Nr. 7", **peer.auth)
            same(result.as_numpy("y"), sent)
            response = peer.data(result.get_response())
            assert response["id"] == "Nr. 7" and response["model_name"] == model, response
        if peer.module is http_client:
            outputs = [http_client.InferRequestedOutput("y", binary_data=False)]
            if datatype != "BF16" and datatype != "BYTES":
                given = inputs(peer, datatype, values, binary_data=False)
                result = peer.client.infer(model, given, outputs=outputs, **peer.auth)
                same(result.as_numpy("y"), values)
            if datatype == "BYTES":
                text = np.array([[b"", "länger".encode()]], np.object_)
                given = inputs(peer, datatype, text, binary_data=False)
                result = peer.client.infer(model, given, outputs=outputs, **peer.auth)
                assert result.get_response()["outputs"][0]["data"] == ["", "länger"]
            for algorithm in ("gzip", "deflate"):
                given = inputs(peer, datatype, values)
                result = peer.client.infer(model, given, request_compression_algorithm=algorithm, **peer.auth)
                same(result.as_numpy("y"), values)
        else:
            for algorithm in ("gzip", "deflate"):
                given = inputs(peer, datatype, values)
                result = peer.client.infer(model, given, compression_algorithm=algorithm, **peer.auth)
                same(result.as_numpy("y"), values)


def outputs_and_errors(peer):
    values = VALUES["FP32"]
    outputs = [peer.module.InferRequestedOutput("y")]
    result = peer.client.infer("id-FP32", inputs(peer, "FP32", values), outputs=outputs, **peer.auth)
    same(result.as_numpy("y"), values)
    call = lambda **more: peer.client.infer("id-FP32", inputs(peer, "FP32", values), **{**peer.auth, **more})
    call(priority=1, timeout=60_000_000)
    call(model_version="1")
    refused(lambda: call(outputs=[peer.module.InferRequestedOutput("z")]), "no output `z`")
    refused(lambda: call(model_version="9"), "not served here")
    refused(lambda: peer.client.infer("nil", inputs(peer, "FP32", values), **peer.auth), "nil")
    refused(lambda: peer.client.infer("id-FP64", inputs(peer, "FP32", values), **peer.auth), "FP64")
    refused(lambda: call(headers={}), "Authorization")
    refused(lambda: call(headers={"authorization": "Bearer wrong-wrong-wrong-wrong"}), "not valid")
    refused(lambda: call(outputs=[peer.module.InferRequestedOutput("y", class_count=2)]), "classification")


def description(peer):
    client = peer.client
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("id-FP32", **peer.auth)
    assert client.is_model_ready("id-FP32", "1", **peer.auth)
    server = peer.data(client.get_server_metadata(**peer.auth))
    assert server["name"] == "outrigger" and "binary_tensor_data" in server["extensions"], server
    metadata = peer.data(client.get_model_metadata("id-FP32", **peer.auth))
    assert metadata["platform"] == "onnx_cpu" and metadata["versions"] == ["1"], metadata
    assert metadata["inputs"][0]["datatype"] == "FP32", metadata
    assert [int(extent) for extent in metadata["inputs"][0]["shape"]] == [-1, 2], metadata
    config = peer.data(client.get_model_config("id-BYTES", **peer.auth))
    config = config.get("config", config)
    assert config["backend"] == "cpu" and config["output"][0]["data_type"] == "TYPE_STRING", config
    index = peer.data(client.get_model_repository_index(**peer.auth))
    index = index["models"] if isinstance(index, dict) else index
    assert {model["name"] for model in index} >= {f"id-{datatype}" for datatype in VALUES}, index
    assert {model["state"] for model in index} == {"READY"}, index

    def counts():
        stats = peer.data(client.get_inference_statistics("id-UINT8", **peer.auth))["model_stats"][0]
        inference = stats["inference_stats"]
        number = lambda part: int(inference.get(part, {}).get("count", 0))
        return int(stats.get("inference_count", 0)), int(stats.get("execution_count", 0)), number("success"), number("compute_infer")

    before = counts()
    client.infer("id-UINT8", inputs(peer, "UINT8", VALUES["UINT8"]), **peer.auth)
    assert counts() == tuple(count + 1 for count in before), (before, counts())
    everything = peer.data(client.get_inference_statistics(**peer.auth))["model_stats"]
    assert len(everything) >= len(VALUES), everything
    refused(lambda: client.get_model_metadata("nil", **peer.auth), "nil")


def control(peer):
    """With `score.model_control`."""
    client = peer.client
    client.unload_model("id-FP32", **peer.auth)
    index = peer.data(client.get_model_repository_index(**peer.auth))
    index = index["models"] if isinstance(index, dict) else index
    assert [model["state"] for model in index if model["name"] == "id-FP32"] == ["UNAVAILABLE"], index
    client.load_model("id-FP32", **peer.auth)
    index = peer.data(client.get_model_repository_index(**peer.auth))
    index = index["models"] if isinstance(index, dict) else index
    assert [model["state"] for model in index if model["name"] == "id-FP32"] == ["READY"], index
    refused(lambda: client.load_model("id-FP32", config="{}", **peer.auth), "config")
    refused(lambda: client.load_model("nil", **peer.auth), "nil")


def no_control(peer):
    """Without it."""
    refused(lambda: peer.client.load_model("id-FP32", **peer.auth), "score.model_control")
    refused(lambda: peer.client.unload_model("id-FP32", **peer.auth), "score.model_control")
    refused(lambda: peer.client.get_system_shared_memory_status(**peer.auth), "score.shared_memory")


def memory(peer):
    """With `score.shared_memory = /dev/shm`: inputs are read from there, and outputs written to it."""
    from tritonclient.utils import shared_memory

    client = peer.client
    kind = peer.module.__name__.rsplit(".")[-1]
    values = np.arange(64, dtype=np.float32).reshape(32, 2)
    size = values.nbytes
    name, key = f"region-{kind}", f"/outrigger-test-{kind}-{sys.argv[4]}"
    region = shared_memory.create_shared_memory_region(name, key, 2 * size)
    try:
        shared_memory.set_shared_memory_region(region, [values])
        client.register_system_shared_memory(name, key, 2 * size, **peer.auth)
        regions = peer.data(client.get_system_shared_memory_status(**peer.auth))
        regions = list(regions["regions"].values()) if isinstance(regions, dict) else regions
        assert [(region["name"], int(region["byte_size"])) for region in regions] == [(name, 2 * size)], regions
        given = peer.module.InferInput("x", list(values.shape), "FP32")
        given.set_shared_memory(name, size)
        wanted = peer.module.InferRequestedOutput("y")
        wanted.set_shared_memory(name, size, offset=size)
        result = client.infer("id-FP32", [given], outputs=[wanted], **peer.auth)
        output = result.get_output("y")
        assert output is not None
        same(shared_memory.get_contents_as_numpy(region, np.float32, [32, 2], offset=size), values)
        # Also where the output is sent.
        same(client.infer("id-FP32", [given], **peer.auth).as_numpy("y"), values)
        given.set_shared_memory(name, size, offset=2 * size)
        refused(lambda: client.infer("id-FP32", [given], **peer.auth), "region")
        wanted.set_shared_memory(name, 4, offset=size)
        given = peer.module.InferInput("x", list(values.shape), "FP32")
        given.set_shared_memory(name, size)
        refused(lambda: client.infer("id-FP32", [given], outputs=[wanted], **peer.auth), "shared_memory_byte_size")
        refused(lambda: client.register_system_shared_memory(name, key, size, **peer.auth), "already")
        refused(lambda: client.register_system_shared_memory("more", "/../etc/passwd", 4, **peer.auth), "key")
        client.unregister_system_shared_memory(name, **peer.auth)
        refused(lambda: client.infer("id-FP32", [given], **peer.auth), name)
    finally:
        shared_memory.destroy_shared_memory_region(region)


def stream(peer):
    """Answers come in the order of the requests, each with its own; one that fails does not end the others."""
    answers = queue.Queue()
    client = peer.client
    client.start_stream(lambda result, error: answers.put((result, error)), headers=peer.auth["headers"])
    many = 200
    for number in range(many):
        values = np.full((1, 2), number, np.int32)
        model = "nil" if number % 10 == 3 else "id-INT32"
        client.async_stream_infer(model, inputs(peer, "INT32", values), request_id=str(number))
    for number in range(many):
        result, error = answers.get(timeout=60)
        if number % 10 == 3:
            assert "nil" in str(error), error
            continue
        assert error is None, error
        assert result.get_response().id == str(number)
        same(result.as_numpy("y"), np.full((1, 2), number, np.int32))
    client.stop_stream()
    # Who has no key has no stream.
    client.start_stream(lambda result, error: answers.put((result, error)))
    _, error = answers.get(timeout=60)
    assert "UNAUTHENTICATED" in str(error), error
    client.stop_stream()


def typed(peer):
    """Contents in the fields of their types."""
    import grpc
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc as services

    fields = {
        "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
        "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
        "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }
    metadata = [("authorization", f"Bearer {sys.argv[3]}")]
    with grpc.insecure_channel(sys.argv[2]) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        for datatype, field in fields.items():
            values = VALUES[datatype]
            request = pb.ModelInferRequest(model_name=f"id-{datatype}")
            tensor = request.inputs.add(name="x", datatype=datatype, shape=values.shape)
            getattr(tensor.contents, field).extend(values.flatten().tolist())
            response = stub.ModelInfer(request, metadata=metadata, timeout=60)
            raw = response.raw_output_contents[0]
            if datatype == "BYTES":
                want = b"".join(len(text).to_bytes(4, "little") + text for text in values.flatten())
                assert raw == want
            else:
                assert raw == values.tobytes(), (datatype, raw)


def tools(peer):
    """What a tool finds out that knows nothing beforehand, and how it asks whether all is well."""
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    class Keyed(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, call, details, requests):
            metadata = [("authorization", f"Bearer {sys.argv[3]}")]
            return call(details._replace(metadata=metadata), requests)

    with grpc.insecure_channel(sys.argv[2]) as channel:
        keyed = grpc.intercept_channel(channel, Keyed())
        database = ProtoReflectionDescriptorDatabase(keyed)
        services = set(database.get_services())
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services, services
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        method = service.FindMethodByName("ServerMetadata")
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        metadata = [("authorization", f"Bearer {sys.argv[3]}")]
        answer = call(GetMessageClass(method.input_type)(), metadata=metadata, timeout=60)
        assert answer.name == "outrigger"
        assert len(service.methods) == 15, [method.name for method in service.methods]
        try:
            list(ProtoReflectionDescriptorDatabase(channel).get_services())
            raise AssertionError("the services were told without a key")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error

        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status == 1
        try:
            health.Check(health_pb2.HealthCheckRequest(service="nil"), timeout=60)
            raise AssertionError("a service that is not there is well")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == 1
        watch.cancel()


CASES = {
    "datatypes": (every_datatype, [Rest, Grpc]),
    "outputs": (outputs_and_errors, [Rest, Grpc]),
    "description": (description, [Rest, Grpc]),
    "control": (control, [Rest, Grpc]),
    "no-control": (no_control, [Rest, Grpc]),
    "memory": (memory, [Rest, Grpc]),
    "stream": (stream, [Grpc]),
    "typed": (typed, [Grpc]),
    "tools": (tools, [Grpc]),
}

if __name__ == "__main__":
    case, peers = CASES[sys.argv[1]]
    for peer in peers:
        case(peer(sys.argv[2], sys.argv[3]))
        print(f"{sys.argv[1]} {peer.__name__}: as it should be")
