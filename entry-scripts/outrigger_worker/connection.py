"""Where code in this process, `outrigger.model` above all, finds the channel to the runtime."""

from .channel import Channel

_channel: Channel | None = None


def open_to_all(channel: Channel) -> None:
    """Makes `channel` the one of this process."""
    global _channel
    _channel = channel


def current() -> Channel | None:
    """The channel of this process, None outside of a worker."""
    return _channel
