"""The layout of frames (PROTOCOL.md): kinds, outcomes, structs compiled once. Integers are little-endian."""

import json
import struct
from typing import Any, Final

START: Final = 1
CALL: Final = 2
TENSORS: Final = 3
MODEL_INFO: Final = 4
MODEL_ERROR: Final = 5
READY: Final = 16
FAILED: Final = 17
REPLY: Final = 18
INFER: Final = 19
MODEL: Final = 20

METHOD_GET: Final = 0
METHOD_POST: Final = 1

RETURNED: Final = 0
RAISED: Final = 1
INPUT_REFUSED: Final = 2
NOT_SERIALISABLE: Final = 3

#: Frame header: payload length in bytes, kind, id.
HEADER: Final = struct.Struct("<IB3xQ")
HEADER_SIZE: Final = HEADER.size

#: Start of a CALL's payload: method, then the lengths in bytes of request id, query string and header block.
CALL_HEAD: Final = struct.Struct("<BxHII4x")

#: Lengths in bytes of the name and of the value of one pair in a CALL's header block.
HEADER_PAIR: Final = struct.Struct("<HH")

#: A REPLY's frame header and the start of its payload in one: payload length, kind, id, outcome, length of
#: the message in bytes, time in `run()` in nanoseconds.
REPLY_HEAD: Final = struct.Struct("<IB3xQB3xIQ")
REPLY_META_SIZE: Final = REPLY_HEAD.size - HEADER_SIZE

#: Start of an INFER's payload: length in bytes of the model's name.
INFER_HEAD: Final = struct.Struct("<H6x")

#: Start of a tensor block: how many tensors.
BLOCK_HEAD: Final = struct.Struct("<H6x")

#: One tensor in a block: DLPack type code, bits, rank, length of the name in bytes; extents and name follow.
TENSOR_HEAD: Final = struct.Struct("<BBBxH2x")

#: Tensor bytes start at multiples of this, counted from the start of the payload.
ALIGNMENT: Final = 64
MAX_RANK: Final = 32
MAX_TENSORS: Final = 1024

#: The longest payload that a worker sends, in bytes, when START does not say.
MAX_PAYLOAD: Final = 1 << 30


def json_frame(kind: int, number: int, value: Any) -> bytes:
    """A whole frame whose payload is `value` as JSON."""
    payload = json.dumps(value).encode()
    return HEADER.pack(len(payload), kind, number) + payload
