"""Tensor blocks for tests, written from PROTOCOL.md and without the code under test."""

import struct
from typing import Any

import numpy as np

CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def encode_block(tensors: dict[str, Any]) -> bytes:
    """A payload that is one block of these arrays."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    block = struct.pack("<HHI", len(arrays), 0, 0)
    for name, array in arrays.items():
        raw = name.encode()
        block += struct.pack(
            "<BBBBHH", CODES[array.dtype.kind], array.dtype.itemsize * 8, array.ndim, 0, len(raw), 0
        )
        block += b"".join(struct.pack("<q", extent) for extent in array.shape) + raw
    block = pad(block)
    for array in arrays.values():
        block = pad(block) + array.tobytes()
    return block


def decode_block(payload: bytes, at: int = 0) -> dict[str, np.ndarray]:
    """The arrays in the block that starts at `at`. Checks that padding is zeros and that nothing follows."""
    count, zero, zeros = struct.unpack_from("<HHI", payload, at)
    assert (zero, zeros) == (0, 0)
    at += 8
    described = []
    for _ in range(count):
        code, bits, rank, zero, size, zeros = struct.unpack_from("<BBBBHH", payload, at)
        assert (zero, zeros) == (0, 0)
        at += 8
        shape = struct.unpack_from(f"<{rank}q", payload, at)
        at += 8 * rank
        kind = {value: key for key, value in CODES.items()}[code]
        described.append((payload[at : at + size].decode(), np.dtype(f"{kind}{bits // 8}"), shape))
        at += size
    at = _skip_padding(payload, at)
    arrays = {}
    for name, dtype, shape in described:
        at = _skip_padding(payload, at)
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = np.frombuffer(payload[at : at + size], dtype).reshape(shape)
        at += size
    assert at == len(payload)
    return arrays


def decode_infer(payload: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """The model's name and the arrays in the payload of an INFER."""
    size, zero, zeros = struct.unpack_from("<HHI", payload)
    assert (zero, zeros) == (0, 0)
    end = 8 + size
    return payload[8:end].decode(), decode_block(payload, _skip_padding(payload, end))


def _skip_padding(payload: bytes, at: int) -> int:
    end = at + -at % 64
    assert payload[at:end] == bytes(end - at)
    return end
