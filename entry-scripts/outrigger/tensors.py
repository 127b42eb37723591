"""Tensor blocks (PROTOCOL.md) from and to NumPy. Imported by the first `predict`, for it imports NumPy."""

import math
import struct
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from outrigger_worker import frames
from outrigger_worker.link import ProtocolError

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


class Input(NamedTuple):
    """An input of a model: an array, of whatever layout and type, and the type that it is sent as."""

    name: str
    array: np.ndarray
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes are sent."""
        return self.array.size * self.dtype.itemsize


def accept(value: Any, model: str, info: TensorInfo) -> Input:
    """`value` for `info`, an input of `model`. The array is `value` itself when that is one.

    Raises TypeError when the conversion to the model's type would lose more than precision.
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
        return Input(info.name, array, wanted)
    # The type of an empty array is often a guess of NumPy's: that of `[]` is float64.
    reason = _reason_to_refuse(array, wanted) if array.size else None
    if reason is not None:
        raise TypeError(f"{where}, {reason}")
    return Input(info.name, array, wanted)


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


class Data:
    """The bytes of the inputs: the tail of an INFER. Every input starts at a multiple of 64."""

    __slots__ = ("size", "_inputs")

    def __init__(self, inputs: list[Input]) -> None:
        self._inputs = inputs
        #: In bytes.
        self.size = 0
        for each in inputs:
            self.size += -self.size % frames.ALIGNMENT + each.nbytes

    def write(self, room: memoryview) -> None:
        """Copies the arrays into `room`, straight from where they lie, converting them on the way."""
        at = 0
        # float64 to float32 may give infinities; the model sees them as such.
        with np.errstate(over="ignore"):
            for _, array, dtype in self._inputs:
                padding = -at % frames.ALIGNMENT
                room[at : at + padding] = bytes(padding)
                at += padding
                target = np.ndarray(array.shape, dtype, room, at)
                np.copyto(target, array, casting="unsafe")
                at += target.nbytes

    def parts(self) -> list[Any]:
        """The same as parts to be sent. They refer to the arrays' own memory where that is suitable."""
        parts: list[Any] = []
        at = 0
        with np.errstate(over="ignore"):
            for _, array, dtype in self._inputs:
                padding = -at % frames.ALIGNMENT
                dense = np.asarray(array, dtype=dtype, order="C")
                # A view as bytes, because not every type (bfloat16) can be seen through the buffer protocol.
                parts += [bytes(padding), dense.reshape(-1).view(np.uint8).data]
                at += padding + dense.nbytes
        return parts


def encode(prefix: bytes, inputs: list[Input]) -> tuple[bytes, Data]:
    """A payload: `prefix`, then a block of tensors. Gives all up to the first tensor's bytes, and those.

    Raises ValueError for more tensors than a block may have.
    """
    if len(inputs) > frames.MAX_TENSORS:
        raise ValueError(f"{len(inputs)} tensors, the most is {frames.MAX_TENSORS}")
    head = bytearray(prefix)
    if head:
        head += bytes(-len(head) % frames.ALIGNMENT)
    head += frames.BLOCK_HEAD.pack(len(inputs))
    for name, array, dtype in inputs:
        raw_name = name.encode()
        code, bits = _code_of(dtype)
        head += frames.TENSOR_HEAD.pack(code, bits, array.ndim, len(raw_name))
        head += struct.pack(f"<{array.ndim}q", *array.shape) + raw_name
    head += bytes(-len(head) % frames.ALIGNMENT)
    return bytes(head), Data(inputs)


def allocate(size: int) -> np.ndarray:
    """A buffer for a payload: aligned like its tensors, and not cleared, since it is about to be filled."""
    room = np.empty(size + frames.ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % frames.ALIGNMENT
    return room[start : start + size]


def decode(payload: memoryview, tail: memoryview | None = None) -> dict[str, np.ndarray]:
    """The arrays in a payload that is one tensor block, by name: read-only views of `payload` or `tail`.

    A `tail` holds the bytes of all tensors, and `payload` what is before them. Raises ProtocolError when it
    does not parse.
    """
    try:
        return _decode(payload.toreadonly(), tail)
    except (ValueError, IndexError, struct.error) as error:
        raise ProtocolError(f"a tensor block does not parse: {error}") from error


def _decode(payload: memoryview, tail: memoryview | None) -> dict[str, np.ndarray]:
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
    at += -at % frames.ALIGNMENT
    if tail is not None:
        if at != len(payload):
            raise ValueError(f"{len(payload)} bytes before the tail, where {at} belong")
        payload, at = tail, 0
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
