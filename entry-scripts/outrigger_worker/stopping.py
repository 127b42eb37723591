"""Signals: how a worker ends, and what it leaves in the log when it does.

The runtime ends a worker in order by closing the socket. It sends SIGTERM when a call is out of time; the
Python stack of all threads is then written to stderr and the process ends. That is done in C, inside the
signal handler, so it works while `run()` is in C code that holds the interpreter lock. What ignores even that
gets a SIGKILL.
"""

import faulthandler
import signal


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
