"""`python -m outrigger_worker`: loads one entry script and serves it over the sockets that it was handed.

Exit codes: 0 the runtime closed the socket, 1 the connection made no sense or a worker failed in some other
way, 2 not started by a runtime, 3 the script does not load (the reason went out as FAILED).
"""

import os
import socket
import sys

from . import stopping, work

#: Name the descriptors of the worker's ends of the sockets.
STREAM_VARIABLE = "OUTRIGGER_WORKER_FD"
REGIONS_VARIABLE = "OUTRIGGER_REGIONS_FD"


def main() -> int:
    """Runs the worker; gives its exit code."""
    stopping.reset()
    sockets = []
    for variable, kind in ((STREAM_VARIABLE, socket.SOCK_STREAM), (REGIONS_VARIABLE, socket.SOCK_SEQPACKET)):
        # Popped, for a process that the script starts has no business with it.
        descriptor = os.environ.pop(variable, None)
        try:
            sock = socket.socket(fileno=int(descriptor or ""))
            if sock.type != kind:
                raise ValueError(f"it is of type {sock.type}")
        except (ValueError, OSError) as error:
            print(f"{variable} must name an open socket: the runtime starts this ({error})", file=sys.stderr)
            return 2
        sockets.append(sock)
    return work.run(*sockets)


if __name__ == "__main__":
    sys.exit(main())
