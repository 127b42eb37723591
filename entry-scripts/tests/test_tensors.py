"""Conversions of inputs, and tensor blocks in both directions, without a worker."""

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blocks import decode_block, decode_infer, encode_block
from outrigger import tensors
from outrigger.handle import TensorInfo
from outrigger_worker.link import ProtocolError


def conform(value: Any, datatype: str) -> np.ndarray:
    """`value` as it arrives, which is the same whether it goes through a region or not."""
    accepted = tensors.accept(value, "m", TensorInfo("x", datatype, (-1,)))
    data = tensors.Data([accepted])
    room = bytearray(data.size)
    data.write(memoryview(room))
    assert room == b"".join(data.parts())
    return np.frombuffer(room, accepted.dtype).reshape(accepted.array.shape)


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ([1, 2], "FP32", np.float32),
        ([1.5, 2], "FP32", np.float32),
        (np.array([1e300, 0.1]), "FP32", np.float32),
        (np.array([1.5], np.float32), "FP64", np.float64),
        (np.array([1.5], np.float64), "FP16", np.float16),
        (np.array([1.5], ">f4"), "FP32", np.float32),
        (np.array([7], np.uint8), "FP32", np.float32),
        (np.array([True, False]), "FP32", np.float32),
        ([True, False], "BOOL", np.bool_),
        ([True, False], "INT32", np.int32),
        ([1, 2], "UINT8", np.uint8),
        (np.array([1, 2**63], np.uint64), "UINT64", np.uint64),
        (np.array([-128, 127]), "INT8", np.int8),
        (np.array([5], np.uint64), "INT64", np.int64),
        ([], "INT64", np.int64),
        (np.zeros((0, 3)), "BOOL", np.bool_),
        (3, "INT64", np.int64),
        (np.array([1.5], ml_dtypes.bfloat16), "FP32", np.float32),
        ([1.5, 2], "BF16", ml_dtypes.bfloat16),
    ],
)
def test_what_is_converted(value: Any, datatype: str, dtype: Any) -> None:
    array = conform(value, datatype)
    assert array.dtype == dtype
    assert array.flags.c_contiguous and array.shape == np.shape(value)
    with np.errstate(over="ignore"):
        assert np.array_equal(array, np.asarray(value).astype(dtype))


@pytest.mark.parametrize(
    ("value", "datatype", "reason"),
    [
        ([1.5], "INT64", "INT64, not float64"),
        (np.array([1.0], np.float32), "INT32", "INT32, not float32"),
        ([1], "BOOL", "BOOL, not int64"),
        ([1.0], "BOOL", "BOOL, not float64"),
        ([1j], "FP32", "FP32, not complex128"),
        (["a"], "FP32", "FP32, not <U1"),
        ([None], "FP32", "FP32, not object"),
        (np.array([1], ml_dtypes.bfloat16), "INT8", "INT8, not bfloat16"),
        ([300], "UINT8", "UINT8, which 300 does not fit"),
        ([-1, 5], "UINT64", "UINT64, which -1 does not fit"),
        ([2**63], "INT64", f"INT64, which {2**63} does not fit"),
        ([2**64], "UINT64", "UINT64, not object"),
        ([[1], [1, 2]], "FP32", "FP32, and this is no array: "),
        (np.zeros((1,) * 33, np.float32), "FP32", "FP32 in at most 32 dimensions, not 33"),
        (["a"], "BYTES", "BYTES, which has no equal in NumPy"),
    ],
)
def test_what_is_refused(value: Any, datatype: str, reason: str) -> None:
    with pytest.raises(TypeError) as caught:
        conform(value, datatype)
    assert str(caught.value).startswith(f"input `x` of model `m` takes {reason}")


@pytest.mark.parametrize("array", [np.ones((3, 4), np.float32), np.ones((3, 4)).T, np.ones(24)[::2]])
def test_an_array_is_accepted_as_it_is(array: np.ndarray) -> None:
    assert tensors.accept(array, "m", TensorInfo("x", "FP32", (-1,))).array is array


def inputs(arrays: dict[str, np.ndarray]) -> list[tensors.Input]:
    return [tensors.Input(name, array, array.dtype) for name, array in arrays.items()]


SAMPLES = {
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 5), np.float32),
    "one": np.array([True]),
    "ünï": np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
    "half": np.array([[1.5]], np.float16),
    "large": np.arange(100_000, dtype=np.float64),
    "last": np.zeros((3, 0), np.int8),
}


@pytest.mark.parametrize("names", [[], ["scalar"], ["empty"], ["large"], list(SAMPLES), ["one"]])
@pytest.mark.parametrize("prefix", [b"", b"digits", b"x" * 56, b"x" * 57])
def test_encode(names: list[str], prefix: bytes) -> None:
    arrays = {name: SAMPLES[name] for name in names}
    start = struct.pack("<HHI", len(prefix), 0, 0) + prefix if prefix else b""
    head, data = tensors.encode(start, inputs(arrays))
    assert len(head) % 64 == 0
    tail = bytearray(data.size)
    data.write(memoryview(tail))
    payload = head + tail
    assert payload == b"".join([head, *data.parts()])
    if prefix:
        name, found = decode_infer(payload)
        assert name == prefix.decode()
    else:
        found = decode_block(payload)
        assert payload == encode_block(arrays)
    check_equal(found, arrays)


def test_encode_does_not_copy() -> None:
    array = np.zeros(1000, np.float32)
    _, data = tensors.encode(b"", inputs({"x": array}))
    parts = data.parts()
    array[0] = 1
    assert bytes(parts[-1][:4]) == struct.pack("<f", 1)


def test_encode_bfloat16() -> None:
    head, data = tensors.encode(b"", inputs({"x": np.array([1], ml_dtypes.bfloat16)}))
    assert head[8:16] == struct.pack("<BBBBHH", 4, 16, 1, 0, 1, 0)
    assert tensors.decode(memoryview(b"".join([head, *data.parts()])))["x"].dtype == ml_dtypes.bfloat16


def test_encode_keeps_the_limit() -> None:
    with pytest.raises(ValueError, match="1025 tensors, the most is 1024"):
        tensors.encode(b"", inputs({"x": np.zeros(1)}) * 1025)


def test_decode_gives_views() -> None:
    payload = tensors.allocate(len(encode_block(SAMPLES)))
    payload[:] = np.frombuffer(encode_block(SAMPLES), np.uint8)
    arrays = tensors.decode(memoryview(payload))
    check_equal(arrays, SAMPLES)
    for name, array in arrays.items():
        assert not array.flags.writeable and array.flags.aligned
        if array.size:
            assert np.shares_memory(array, payload) and array.ctypes.data % 64 == 0, name
    with pytest.raises(ValueError, match="read-only"):
        arrays["large"][0] = 1


@pytest.mark.parametrize("names", [["scalar"], ["empty"], ["large"], list(SAMPLES)])
def test_decode_of_a_tail(names: list[str]) -> None:
    expected = {name: SAMPLES[name] for name in names}
    head, data = tensors.encode(b"", inputs(expected))
    tail = b"".join(data.parts())
    check_equal(tensors.decode(memoryview(head), memoryview(tail)), expected)
    for wrong in (head[:-1], head + bytes(64)):
        with pytest.raises(ProtocolError):
            tensors.decode(memoryview(wrong), memoryview(tail))
    if tail:
        with pytest.raises(ProtocolError):
            tensors.decode(memoryview(head), memoryview(tail[:-1]))


def one(
    code: int = 2, bits: int = 32, rank: int = 1, name: bytes = b"x", extents: bytes = struct.pack("<q", 1)
) -> bytes:
    head = struct.pack("<HHI", 1, 0, 0) + struct.pack("<BBBBHH", code, bits, rank, 0, len(name), 0)
    return (head + extents + name).ljust(64, b"\0") + bytes(4)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01\x00",
        struct.pack("<HHI", 1, 0, 0),
        struct.pack("<HHI", 1025, 0, 0),
        one()[:-1],
        one(bits=8),
        one(code=9),
        one(code=6, bits=1),
        one(name=b"\xff"),
        one(rank=33, extents=struct.pack("<q", 1) * 33),
        one(extents=struct.pack("<q", 2)),
        one(extents=struct.pack("<q", -1)),
        one(extents=struct.pack("<q", 2**62)),
        one(rank=2, extents=struct.pack("<qq", 2**62, 4)),
        one(rank=2, extents=struct.pack("<qq", 0, -1)),
        encode_block({"a": 1}).replace(b"\x01\x00", b"\x02\x00", 1),
    ],
    ids=lambda payload: f"{len(payload)}-bytes",
)
def test_decode_refuses_nonsense(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        tensors.decode(memoryview(payload))


def test_decode_of_the_sample_that_nonsense_is_made_of() -> None:
    check_equal(tensors.decode(memoryview(one())), {"x": np.zeros(1, np.float32)})


def check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert np.array_equal(found[name], array), name
