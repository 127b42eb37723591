"""Signals: how a worker ends, and what it leaves in the log when it does.

The runtime ends a worker in order by closing the socket. It sends SIGTERM when a call is out of time; the
Python stack of all threads is then written to stderr and the process ends. That is done in C, inside the
signal handler, so it works while `run()` is in C code that holds the interpreter lock. What ignores even that
gets a SIGKILL.
"""

import faulthandler
import signal
from typing import Any


def reset() -> None:
    """Handles signals as Python does when it starts, whatever this process was handed down.

    A parent's handlers come with a fork, and what a parent ignores or blocks (`nohup` ignores SIGHUP) even
    outlives an exec: a script's own children would never hear of it.
    """
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        ignored = number in (signal.SIGPIPE, signal.SIGXFSZ)
        wanted: Any = signal.SIG_IGN if ignored else signal.SIG_DFL
        if number == signal.SIGINT:
            wanted = signal.default_int_handler
        if signal.getsignal(number) != wanted:
            signal.signal(number, wanted)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def prepare() -> None:
    """Arms the process: stacks on crashes and on SIGTERM, no reaction to Ctrl-C."""
    faulthandler.enable(all_threads=True)
    _dump_on_sigterm()
    # A terminal sends Ctrl-C to the whole group; what happens to workers then is for the runtime to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prepare_again() -> None:
    """Puts the stack dump back in front of a SIGTERM handler that the script has installed in the meantime.

    Some packages install one to flush their data. It still runs, after the dump, as soon as Python can.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None or handler == signal.SIG_DFL:
        return
    faulthandler.unregister(signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    _dump_on_sigterm()


def _dump_on_sigterm() -> None:
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)
