"""Exceptions as text: one line for a caller's eyes or a list, and a traceback for the log."""

import os
import traceback
from collections.abc import Iterator
from itertools import islice
from types import TracebackType

#: Longest message that goes out, in characters. An exception may carry a whole request as its text.
MESSAGE_LIMIT = 16 * 1024
#: Longest traceback, in characters; the end of it, where the cause is, is what stays.
TRACEBACK_LIMIT = 256 * 1024

#: Most lines of the tree of a model directory.
TREE_LIMIT = 200

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


def model_directory() -> str:
    """What is in the folder that AZUREML_MODEL_DIR names, as a tree: the first thing to look at when `init()`
    fails. Empty when there is no such folder."""
    folder = os.environ.get("AZUREML_MODEL_DIR")
    if not folder or not os.path.isdir(folder):
        return ""
    lines = list(islice(_tree(os.path.normpath(folder), 0), TREE_LIMIT + 1))
    if len(lines) > TREE_LIMIT:
        lines[TREE_LIMIT:] = [f"Output Truncated. First {TREE_LIMIT} lines shown."]
    return "Model Directory Contents:\n" + "".join(line + "\n" for line in lines)


def _tree(path: str, depth: int) -> Iterator[str]:
    name = "    " * depth + os.path.basename(path)
    # A link may lead back to a folder above.
    if not os.path.isdir(path) or depth and os.path.islink(path):
        yield name
        return
    yield name + os.sep
    try:
        children = sorted(os.listdir(path))
    except OSError:
        return
    for child in children:
        yield from _tree(os.path.join(path, child), depth + 1)


def _users_part(frames: TracebackType | None) -> TracebackType | None:
    """Leaves out the leading frames of this package and of Python's import system."""
    first = frames
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    # A script that cannot be compiled has no frame of its own; its place is in the text of the SyntaxError.
    return first


def _is_ours(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or os.path.dirname(filename) == _OWN_FOLDER
