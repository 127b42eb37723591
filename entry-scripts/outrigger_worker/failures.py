"""Exceptions as text: one line for a caller's eyes or a list, and a traceback for the log."""

import os
import traceback
from types import TracebackType

#: Longest message that goes out, in characters. An exception may carry a whole request as its text.
MESSAGE_LIMIT = 16 * 1024
#: Longest traceback, in characters; the end of it, where the cause is, is what stays.
TRACEBACK_LIMIT = 256 * 1024

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))


def message_of(error: BaseException) -> str:
    """`Type: text`, or `Type` alone when the exception has no text or cannot tell it."""
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}"[:MESSAGE_LIMIT] if text else name


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it, from the first frame that is not the worker's own."""
    try:
        lines = traceback.format_exception(type(error), error, _users_part(error.__traceback__))
        return "".join(lines)[-TRACEBACK_LIMIT:]
    except Exception:
        # Formatting calls methods of the exception and of its causes; none of them may end the worker.
        return message_of(error) + "\n"


def to_bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate, which UTF-8 has no place for, is written as its escape."""
    return text.encode("utf-8", "backslashreplace")


def _users_part(frames: TracebackType | None) -> TracebackType | None:
    """Leaves out the leading frames of this package and of Python's import system."""
    first = frames
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    # A script that cannot be compiled has no frame of its own; its place is in the text of the SyntaxError.
    return first


def _is_ours(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or os.path.dirname(filename) == _OWN_FOLDER
