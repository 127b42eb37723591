"""Tensor blocks (PROTOCOL.md) from and to NumPy. Imported by the first `predict`, for it imports NumPy."""

import math
import struct
from functools import cache
from typing import Any

import numpy as np

from outrigger_worker import frames
from outrigger_worker.channel import ProtocolError

from .handle import TensorInfo

# DLPack type codes.
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6

#: Open Inference Protocol datatype → DLPack type code and bits. BYTES has no place in a tensor block.
_DATATYPES = {
    "BOOL": (_BOOL, 8),
    "INT8": (_INT, 8),
    "INT16": (_INT, 16),
    "INT32": (_INT, 32),
    "INT64": (_INT, 64),
    "UINT8": (_UINT, 8),
    "UINT16": (_UINT, 16),
    "UINT32": (_UINT, 32),
    "UINT64": (_UINT, 64),
    "FP16": (_FLOAT, 16),
    "FP32": (_FLOAT, 32),
    "FP64": (_FLOAT, 64),
    "BF16": (_BFLOAT, 16),
}


def conform(value: Any, model: str, info: TensorInfo) -> np.ndarray:
    """`value` as a dense, row-major array of the type that `info`, an input of `model`, asks for.

    A suitable array is given back as it is. Raises TypeError when the conversion would lose more than
    precision.
    """
    where = f"input `{info.name}` of model `{model}` takes {info.datatype}"
    if info.datatype not in _DATATYPES:
        raise TypeError(f"{where}, which has no equal in NumPy")
    wanted = _dtype_of(*_DATATYPES[info.datatype])
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{where}, and this is no array: {error}") from error
    if array.ndim > frames.MAX_RANK:
        raise TypeError(f"{where} in at most {frames.MAX_RANK} dimensions, not {array.ndim}")
    if array.dtype == wanted:
        return np.asarray(array, order="C")
    # The type of an empty array is often a guess of NumPy's: that of `[]` is float64.
    reason = _reason_to_refuse(array, wanted) if array.size else None
    if reason is not None:
        raise TypeError(f"{where}, {reason}")
    # float64 to float32 may give infinities; the model sees them as such.
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=wanted, order="C")


def _reason_to_refuse(array: np.ndarray, wanted: np.dtype) -> str | None:
    """Why converting `array`, which is not empty, would lose more than precision; None when it would not."""
    accepted = {"b": "b", "i": "biu", "u": "biu"}.get(wanted.kind, "biuf")
    if array.dtype.kind not in accepted and not (accepted == "biuf" and array.dtype.name == "bfloat16"):
        return f"not {array.dtype}"
    if wanted.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(wanted)
        for number in (int(array.min()), int(array.max())):
            if not limits.min <= number <= limits.max:
                return f"which {number} does not fit"
    return None


def encode(prefix: bytes, arrays: list[tuple[str, np.ndarray]]) -> tuple[list[Any], int]:
    """A payload: `prefix`, then a block of `arrays`, which are dense, row-major and little-endian.

    Gives its parts and their length in bytes. The parts refer to the arrays' own memory. Raises ValueError
    for more tensors than a block may have.
    """
    if len(arrays) > frames.MAX_TENSORS:
        raise ValueError(f"{len(arrays)} tensors, the most is {frames.MAX_TENSORS}")
    head = bytearray(prefix)
    if head:
        head += bytes(-len(head) % frames.ALIGNMENT)
    head += frames.BLOCK_HEAD.pack(len(arrays))
    for name, array in arrays:
        raw_name = name.encode()
        code, bits = _code_of(array.dtype)
        head += frames.TENSOR_HEAD.pack(code, bits, array.ndim, len(raw_name))
        head += struct.pack(f"<{array.ndim}q", *array.shape) + raw_name
    parts: list[Any] = [head]
    length = len(head)
    for _, array in arrays:
        padding = -length % frames.ALIGNMENT
        parts.append(bytes(padding))
        # A view as bytes, because not every type (bfloat16) can be seen through the buffer protocol.
        parts.append(array.reshape(-1).view(np.uint8).data)
        length += padding + array.nbytes
    if not arrays:
        padding = -length % frames.ALIGNMENT
        parts.append(bytes(padding))
        length += padding
    return parts, length


def allocate(size: int) -> np.ndarray:
    """A buffer for a payload: aligned like its tensors, and not cleared, since it is about to be filled."""
    room = np.empty(size + frames.ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % frames.ALIGNMENT
    return room[start : start + size]


def decode(payload: memoryview) -> dict[str, np.ndarray]:
    """The arrays in a payload that is one tensor block, by name: read-only views of `payload`.

    Raises ProtocolError when it does not parse.
    """
    try:
        return _decode(payload.toreadonly())
    except (ValueError, IndexError, struct.error) as error:
        raise ProtocolError(f"a tensor block does not parse: {error}") from error


def _decode(payload: memoryview) -> dict[str, np.ndarray]:
    (number,) = frames.BLOCK_HEAD.unpack_from(payload)
    if number > frames.MAX_TENSORS:
        raise ValueError(f"{number} tensors")
    at = frames.BLOCK_HEAD.size
    found = []
    for _ in range(number):
        code, bits, rank, name_size = frames.TENSOR_HEAD.unpack_from(payload, at)
        at += frames.TENSOR_HEAD.size
        if rank > frames.MAX_RANK:
            raise ValueError(f"{rank} dimensions")
        shape = struct.unpack_from(f"<{rank}q", payload, at)
        name_at = at + 8 * rank
        at = name_at + name_size
        if at > len(payload) or any(extent < 0 for extent in shape):
            raise ValueError("a description makes no sense")
        found.append((str(payload[name_at:at], "utf-8"), _dtype_of(code, bits), shape))
    arrays = {}
    for name, dtype, shape in found:
        at += -at % frames.ALIGNMENT
        size = math.prod(shape)
        if name in arrays:
            raise ValueError(f"output `{name}` comes twice")
        if at + size * dtype.itemsize > len(payload) and size:
            raise ValueError(f"output `{name}` is longer than the block")
        arrays[name] = np.frombuffer(payload, dtype, size, at if size else 0).reshape(shape)
        at += size * dtype.itemsize
    return arrays


@cache
def _dtype_of(code: int, bits: int) -> np.dtype:
    """Raises ValueError for a type that NumPy has no equal of."""
    if code in (_INT, _UINT, _FLOAT) and bits in (8, 16, 32, 64) and (code, bits) != (_FLOAT, 8):
        return np.dtype(f"<{'iuf'[code]}{bits // 8}")
    if (code, bits) == (_BOOL, 8):
        return np.dtype(np.bool_)
    if (code, bits) == (_BFLOAT, 16):
        try:
            import ml_dtypes
        except ImportError as error:
            raise TypeError("bfloat16 in NumPy needs the package `ml_dtypes`") from error
        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    raise ValueError(f"unknown type: DLPack code {code}, {bits} bits")


def _code_of(dtype: np.dtype) -> tuple[int, int]:
    code = {"i": _INT, "u": _UINT, "f": _FLOAT, "b": _BOOL}.get(dtype.kind, _BFLOAT)
    return code, dtype.itemsize * 8
