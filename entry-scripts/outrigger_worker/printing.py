"""What a script prints and logs, as LOG frames: a line each, with the number of the call that it belongs to.

`sys.stdout` and `sys.stderr` are replaced; their descriptors are not, so what C code and child processes write
goes to the pipes as before. `logging` sends frames as long as the script configures nothing; what it then
configures mostly ends in `sys.stderr`, and so here.
"""

import functools
import io
import json
import logging
import logging.config
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import Any, Final, TextIO

from . import frames
from .failures import to_bytes

#: `log(call, level, source, name, text)`; source is 0 for a logger, 1 for stdout, 2 for stderr. False when
#: frames can no longer be sent.
Log = Callable[[int, int, int, bytes, bytes], bool]
#: Number of the call that the running thread or task works on, 0 outside of calls.
CallNumber = Callable[[], int]

#: Longest text of a frame, in bytes. A longer line is cut in pieces.
LINE_LIMIT: Final = frames.LOG_LIMIT
#: Most lines that have begun and not ended.
BEGUN_LIMIT: Final = 256

_LOGGER, _STDOUT, _STDERR = 0, 1, 2


class LineWriter(io.TextIOBase):
    """A text file whose lines are LOG frames. A line that has begun is kept for its call and thread.

    After a fork, and when frames can no longer be sent, it writes to the descriptor.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = True
    write_through = False

    def __init__(self, original: TextIO, source: int, log: Log, number: CallNumber) -> None:
        self._original = original
        self._source = source
        self._log: Log | None = log
        self._number = number
        self.name = original.name
        self.mode = "w"
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        number = self._number()
        key = (self, number, get_ident())
        whole = begun.pop(key, "") + text
        if "\n" in whole:
            *lines, whole = whole.split("\n")
            for line in lines:
                self.send(number, line)
        if len(whole) > LINE_LIMIT:
            *pieces, last = _pieces(whole)
            for piece in pieces:
                self.send(number, str(piece, "utf-8"))
            whole = str(last, "utf-8")
        if whole:
            begun[key] = whole
            if len(begun) > BEGUN_LIMIT:
                _send_begun(lambda key: True)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Sends the line that this thread has begun."""
        number = self._number()
        line = begun.pop((self, number, get_ident()), "")
        if line:
            self.send(number, line)

    def write_through_to_descriptor(self) -> None:
        """Sends no more frames: this is another process now."""
        self._log = None

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        # Some code closes what it did not open. What is printed after that is still wanted.
        _send_begun(lambda key: key[0] is self)

    def reconfigure(self, **options: Any) -> None:
        """Takes what `TextIOWrapper` takes, and leaves all as it is."""

    def send(self, number: int, line: str) -> None:
        """Sends a line for the call `number`."""
        # What moves the cursor back is a new line here: progress bars do it.
        line = line.strip("\r")
        log = self._log
        if log is not None and all(log(number, logging.INFO, self._source, b"", p) for p in _pieces(line)):
            return
        self._original.write(line + "\n")
        self._original.flush()


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes become text, one that is no UTF-8 becomes its escape."""

    def __init__(self, text: LineWriter) -> None:
        self._text = text
        self.raw = self
        self.name = text.name
        self.mode = "wb"

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._text.write(str(view, "utf-8", "backslashreplace"))
        return view.nbytes

    def flush(self) -> None:
        self._text.flush()

    def fileno(self) -> int:
        return self._text.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        # A wrapper that a script has put around this closes it when it is collected.
        self._text.flush()


class FrameHandler(logging.Handler):
    """Sends records as LOG frames, one for each line."""

    def __init__(self, log: Log, number: CallNumber) -> None:
        super().__init__()
        self._log: Log | None = log
        self._number = number

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if self._log is None:
                sys.stderr.write(text + "\n")
            else:
                send_lines(self._log, self._number(), record.levelno, record.name, text)
        except Exception:
            self.handleError(record)

    def write_through_to_descriptor(self) -> None:
        """Sends no more frames: this is another process now."""
        self._log = None


#: Lines that have begun and not ended, by writer, number of the call, and thread. While it is empty, a call that
#: ends has nothing to send.
begun: dict[tuple[LineWriter, int, int], str] = {}


def capture(log: Log, number: CallNumber) -> None:
    """Turns what is printed and logged from now on, in any thread, into LOG frames. To be called once."""
    writers = (LineWriter(sys.stdout, _STDOUT, log, number), LineWriter(sys.stderr, _STDERR, log, number))
    handler = FrameHandler(log, number)
    sys.stdout, sys.stderr = writers
    # The handler of last resort serves while there is no other; what a script configures works as always.
    logging.lastResort = handler
    logging.basicConfig = _configures_when_told(logging.basicConfig)
    warnings.showwarning = _shows_warnings(log, number, warnings.showwarning)
    threading.excepthook = _reports_threads(log, number)

    def leave() -> None:
        begun.clear()
        for part in (handler, *writers):
            part.write_through_to_descriptor()

    os.register_at_fork(after_in_child=leave)


def end_call(number: int) -> None:
    """Sends the lines that a call, or with 0 what is no call, has begun and not ended."""
    if begun:
        _send_begun(lambda key: key[1] == number)


def configure_logging(app_root: str, script_folder: str) -> None:
    """Applies the first `logging.json` in these folders, if there is one (`logging.config.dictConfig`)."""
    for folder in (app_root, script_folder):
        path = os.path.join(folder, "logging.json")
        if folder and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                logging.config.dictConfig(json.load(file))
            return


def send_lines(log: Log, number: int, level: int, name: str, text: str) -> None:
    """Sends `text` as a logger's, one frame for each line and each piece of a line that is too long."""
    level = min(max(level // 10 * 10, logging.DEBUG), logging.CRITICAL)
    logger = to_bytes(name)[:255]
    for line in text.split("\n"):
        for piece in _pieces(line.rstrip("\r")):
            log(number, level, _LOGGER, logger, piece)


def _send_begun(wanted: Callable[[tuple[LineWriter, int, int]], bool]) -> None:
    for key in [key for key in list(begun) if wanted(key)]:
        line = begun.pop(key, "")
        if line:
            key[0].send(key[1], line)


def _pieces(line: str) -> Iterator[bytes]:
    """A line as UTF-8, in pieces that end between characters."""
    data = to_bytes(line)
    if len(data) <= LINE_LIMIT:
        yield data
        return
    at = 0
    while at < len(data):
        end = at + LINE_LIMIT
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end]
        at = end


def _configures_when_told(configure: Callable[..., None]) -> Callable[..., None]:
    """`logging.basicConfig`, but nothing happens when it is called with nothing, as `logging.error()` and the
    like call it: what would be lost are the level and the name of the logger."""

    @functools.wraps(configure)
    def basic_config(**options: Any) -> None:
        if options:
            configure(**options)

    return basic_config


def _shows_warnings(log: Log, number: CallNumber, show: Callable[..., None]) -> Callable[..., None]:
    process = os.getpid()

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None or os.getpid() != process:
            show(message, category, filename, lineno, file, line)
        else:
            text = f"{filename}:{lineno}: {category.__name__}: {message}"
            send_lines(log, number(), logging.WARNING, "py.warnings", text)

    return show_warning


def _reports_threads(log: Log, number: CallNumber) -> Callable[[threading.ExceptHookArgs], None]:
    process, show = os.getpid(), threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        if issubclass(failed.exc_type, SystemExit):
            return
        if os.getpid() != process:
            show(failed)
            return
        name = failed.thread.name if failed.thread is not None else "?"
        lines = traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        text = f"Exception in thread {name}:\n" + "".join(lines).rstrip("\n")
        send_lines(log, number(), logging.ERROR, "threading", text)

    return report
