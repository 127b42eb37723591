"""The layout of frames (PROTOCOL.md): kinds, outcomes, structs compiled once. Integers are little-endian."""

import json
import struct
from typing import Any, Final

START: Final = 1
CALL: Final = 2
TENSORS: Final = 3
MODEL_INFO: Final = 4
MODEL_ERROR: Final = 5
CANCEL: Final = 6
CREDIT: Final = 7
RELEASE: Final = 8
FORGET: Final = 9
READY: Final = 16
FAILED: Final = 17
REPLY: Final = 18
INFER: Final = 19
MODEL: Final = 20
PHASE: Final = 21
LOG: Final = 22
CHUNK: Final = 23
END: Final = 24
LEAVE: Final = 25
CANCELLING: Final = 26

#: Reasons of a CANCEL.
CLIENT_LEFT: Final = 1
OUT_OF_TIME: Final = 2

#: Flag of a frame: its payload ends in a region.
TAIL: Final = 1

METHOD_GET: Final = 0
METHOD_POST: Final = 1
METHOD_OPTIONS: Final = 2
METHOD_HEAD: Final = 3

#: Flag of a CALL: more calls of the same batch follow at once.
MORE: Final = 1

RETURNED: Final = 0
RAISED: Final = 1
INPUT_REFUSED: Final = 2
NOT_SERIALISABLE: Final = 3
WHOLE_ANSWER: Final = 4
STREAM_BEGINS: Final = 5
CANCELLED: Final = 6

#: Flag of a REPLY: the run function failed.
RUN_FAILED: Final = 1

#: Frame header: length in bytes of what follows, kind, flags, id.
HEADER: Final = struct.Struct("<IBB2xQ")
HEADER_SIZE: Final = HEADER.size

#: Where the tail of a payload lies: region, offset and size in bytes.
REFERENCE: Final = struct.Struct("<I4xQQ")

#: What goes with a region's descriptor: its number and its size in bytes.
REGION: Final = struct.Struct("<I4xQ")

#: Start of a CALL's payload: method, flags, lengths in bytes of request id, query string and header block,
#: time limit of `run()` in nanoseconds.
CALL_HEAD: Final = struct.Struct("<BBHII4xQ")

#: Lengths in bytes of the name and of the value of one pair in a CALL's header block.
HEADER_PAIR: Final = struct.Struct("<HH")

#: Start of the payload of a REPLY or an END: outcome, flags, status, length of the message in bytes, time in
#: `run()` in nanoseconds.
REPLY_META: Final = struct.Struct("<BBHIQ")
REPLY_META_SIZE: Final = REPLY_META.size
#: The same with the frame header before it.
REPLY_HEAD: Final = struct.Struct("<IBB2xQBBHIQ")

#: Start of a LOG's payload: level, source, length of the logger's name in bytes.
LOG_HEAD: Final = struct.Struct("<BBH4x")
#: Longest text of a LOG, in bytes.
LOG_LIMIT: Final = 8 * 1024

#: A CREDIT's payload: so many more bytes of chunks.
CREDIT_AMOUNT: Final = struct.Struct("<Q")

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


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEADER.pack(len(payload), kind, 0, number) + payload


def json_frame(kind: int, number: int, value: Any) -> bytes:
    """A whole frame whose payload is `value` as JSON."""
    return frame(kind, number, json.dumps(value).encode())
