"""The trace to which a call belongs, as the runtime hands it on behind the request's id.

A script that has OpenTelemetry loaded has the runtime's span as its current one while `run()` works on a call, so that
its own spans belong to it. Nothing of that package is loaded here otherwise, and nothing that it does wrong fails a call.
"""

import sys
from typing import Any

#: The parts in the order in which they come, each behind the end of a line.
_NAMES = ("traceparent", "tracestate", "baggage")


def carrier(request_id: bytes) -> dict[str, str]:
    """What headers would say of the trace; empty where the call belongs to none."""
    parts = request_id.split(b"\n")[1:]
    pairs = zip(_NAMES, (str(part, "latin-1") for part in parts), strict=False)
    return {name: value for name, value in pairs if value}


def attach(request_id: bytes) -> Any:
    """Makes the call's span the current one. Gives what `detach` takes; None where nothing was to be done."""
    if b"\n" not in request_id or "opentelemetry.context" not in sys.modules:
        return None
    try:
        from opentelemetry import context, propagate

        return context.attach(propagate.extract(carrier(request_id)))
    except Exception:
        return None


def detach(token: Any) -> None:
    """The call is over."""
    try:
        sys.modules["opentelemetry.context"].detach(token)
    except Exception:
        return
