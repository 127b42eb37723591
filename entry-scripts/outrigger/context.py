"""`ctx`: the call that is being worked on."""

from outrigger_worker import context, tracing


class Context:
    """The call that the current thread, or in async scripts the current task, works on.

    In a sync script every thread sees the call that `run()` works on at that moment, and outside of calls
    there is none. In an async script a task sees its own call, and so does what `asyncio.create_task` and
    `asyncio.to_thread` start; a thread that is started in another way sees none. For `run_batch()` the
    deadline is the earliest of the batch, it is cancelled when all of its calls are, and `request_id` is
    empty unless it has one call, and so is `trace_context`.
    """

    __slots__ = ()

    @property
    def deadline(self) -> float | None:
        """When the call is out of time, in seconds of `time.monotonic()`; None when it has any time."""
        work = context.current()
        return work.deadline if work is not None else None

    @property
    def remaining(self) -> float | None:
        """Seconds up to the deadline, 0 when that is over; None when the call has any time."""
        work = context.current()
        return work.remaining if work is not None else None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: the client has gone, or the call is out of time."""
        work = context.current()
        return work is not None and work.is_cancelled()

    @property
    def request_id(self) -> str:
        """The id of the request, empty outside of calls."""
        work = context.current()
        return str(work.request_id.partition(b"\n")[0], "utf-8", "replace") if work is not None else ""

    @property
    def trace_context(self) -> dict[str, str]:
        """The trace to which the call belongs, as headers say it: `traceparent`, `tracestate` and `baggage`, as far
        as there are any. The parent is the runtime's own span, where that records one. To hand on as headers, or to
        `opentelemetry.propagate.extract`; a script that has OpenTelemetry loaded has it as its current context already.
        """
        work = context.current()
        return tracing.carrier(work.request_id) if work is not None else {}


ctx = Context()
