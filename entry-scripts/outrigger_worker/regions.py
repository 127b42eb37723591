"""Shared memory regions (PROTOCOL.md): those of the runtime, which we read, and our own, which it reads.

A region of the runtime's is mapped when a frame first refers to it, and the mapping is kept. What a script gets
is a view of the mapping, and the mapping counts the views that are alive: NumPy arrays, slices and whatever
else was made of them. Only when that count is zero is the runtime told that it may write there again. So bytes
that a script holds never change, however long it holds them.
"""

import fcntl
import mmap
import os
import socket
import threading

from . import descriptors, frames

#: Most bytes in the living regions of a worker's own.
POOL_BYTES = 256 * 1024 * 1024
#: The smallest region, in bytes. Sizes are powers of two; memory that was never written takes no room.
SMALLEST = 64 * 1024


class RegionError(Exception):
    """The runtime refers to a region that there is not."""


class _Borrowed:
    """A region of the runtime's: its mapping, and how many frames referred to it and were not released."""

    __slots__ = ("mapping", "references")

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        self.references = 0

    def has_views(self) -> bool:
        """Whether any view of the mapping is alive."""
        try:
            # Never done: a mapping for reading has a fixed size. But views are looked for before that is.
            self.mapping.resize(1)
        except BufferError:
            return True
        except TypeError:
            return False
        raise AssertionError("a mapping for reading has been resized")


class Borrowed:
    """The regions of the runtime's. `view` and `forget` are for the thread that reads, `unused` for any."""

    __slots__ = ("sock", "_lock", "_known", "in_use")

    def __init__(self, sock: socket.socket) -> None:
        #: Where descriptors come and go.
        self.sock = sock
        self._lock = threading.RLock()
        self._known: dict[int, _Borrowed] = {}
        #: Those with references that were not released: nothing is to be done while this is empty.
        self.in_use: dict[int, _Borrowed] = {}

    def view(self, number: int, offset: int, size: int) -> memoryview:
        """The bytes that a frame refers to, read-only. Counts a reference. Raises RegionError."""
        region = self._known.get(number) or self._take_in(number)
        if offset + size > len(region.mapping):
            raise RegionError(f"{size} bytes at {offset} of region {number}, which has {len(region.mapping)}")
        with self._lock:
            view = memoryview(region.mapping)[offset : offset + size]
            region.references += 1
            self.in_use[number] = region
        return view

    def forget(self, number: int) -> None:
        """The runtime has retired a region; its memory lives on for as long as a view of it does."""
        if number not in self._known:
            self._take_in(number)
        with self._lock:
            del self._known[number]
            self.in_use.pop(number, None)

    def unused(self) -> list[int]:
        """The regions of which no view is left, once for each reference. Each is told of only once."""
        numbers: list[int] = []
        with self._lock:
            for number, region in list(self.in_use.items()):
                if not region.has_views():
                    numbers += [number] * region.references
                    region.references = 0
                    del self.in_use[number]
        return numbers

    def abandon(self) -> None:
        """For a forked process: lets go of all mappings. Views keep theirs."""
        self.sock.close()
        # Another thread may have held the lock when the process forked.
        self._lock = threading.RLock()
        self._known = {}
        self.in_use = {}

    def _take_in(self, wanted: int) -> _Borrowed:
        """Takes messages from the socket until region `wanted` comes."""
        while wanted not in self._known:
            try:
                message, received = descriptors.receive(self.sock, frames.REGION.size, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise RegionError(f"region {wanted} was not announced") from None
            try:
                if len(message) != frames.REGION.size or len(received) != 1:
                    raise RegionError(f"a message of {len(message)} bytes with {len(received)} descriptors")
                number, size = frames.REGION.unpack(message)
                if number in self._known:
                    raise RegionError(f"region {number} comes twice")
                try:
                    mapping = mmap.mmap(received[0], size, access=mmap.ACCESS_READ)
                except (OSError, ValueError, OverflowError) as error:
                    raise RegionError(f"region {number} of {size} bytes cannot be mapped: {error}") from error
                self._known[number] = _Borrowed(mapping)
            finally:
                for descriptor in received:
                    os.close(descriptor)
        return self._known[wanted]


class Own:
    """A region of the worker's own, taken from the pool."""

    __slots__ = ("number", "size", "sent", "doomed", "_mapping")

    def __init__(self, number: int, size: int, mapping: mmap.mmap) -> None:
        self.number = number
        #: In bytes.
        self.size = size
        #: Whether it is in the reader's hands, not being filled any more.
        self.sent = False
        #: Whether it is to be retired as soon as the frame that it is taken for is sent.
        self.doomed = False
        self._mapping = mapping

    def room(self, size: int) -> memoryview:
        """The first `size` bytes, to be written. The caller lets go of it before the frame is sent."""
        return memoryview(self._mapping)[:size]


class Pool:
    """The worker's own regions. Any thread may use it."""

    __slots__ = ("lock", "_sock", "_most", "_free", "_out", "_bytes", "_next", "_to_forget")

    def __init__(self, sock: socket.socket, most: int) -> None:
        #: Held by whoever changes the pool.
        self.lock = threading.RLock()
        self._sock = sock
        self._most = most if hasattr(os, "memfd_create") else 0
        self._free: list[Own] = []
        # Being filled, or in the reader's hands.
        self._out: dict[int, Own] = {}
        self._bytes = 0
        self._next = 1
        self._to_forget: list[int] = []

    def take(self, size: int) -> Own | None:
        """A region with room for `size` bytes. None when none is free and no more may be made."""
        with self.lock:
            fitting = [region for region in self._free if region.size >= size]
            if fitting:
                region = min(fitting, key=lambda region: region.size)
                self._free.remove(region)
            else:
                made = self._make(max(SMALLEST, 1 << (size - 1).bit_length()))
                if made is None:
                    return None
                region = made
            region.sent = False
            self._out[region.number] = region
            return region

    def put_back(self, number: int) -> None:
        """The reader has released a region, or never heard of it. One that is retired is passed over."""
        with self.lock:
            region = self._out.pop(number, None)
            if region is not None:
                self._free.append(region)

    def sent(self, region: Own) -> None:
        """The frame that refers to `region` is sent. The caller holds the channel's sending lock."""
        with self.lock:
            region.sent = True
            if region.doomed:
                self._retire(region)

    def retire_all(self) -> None:
        """For a process that has forked: a region that is still being filled is retired when it is sent."""
        with self.lock:
            for region in self._free + [region for region in self._out.values() if region.sent]:
                self._retire(region)
            self._free = []
            for region in self._out.values():
                region.doomed = True

    def forgotten(self) -> bytes:
        """FORGET frames for the regions retired since the last time."""
        if not self._to_forget:
            return b""
        with self.lock:
            numbers, self._to_forget = self._to_forget, []
        return b"".join(frames.frame(frames.FORGET, number) for number in numbers)

    def abandon(self) -> None:
        """For a forked process: lets go of all mappings."""
        self.lock = threading.RLock()
        self._most = 0
        self._free = []
        self._out = {}

    def _make(self, size: int) -> Own | None:
        if self._most == 0 or size > POOL_BYTES:
            return None
        self._free.sort(key=lambda region: region.size, reverse=True)
        while self._free and (self._living() >= self._most or self._bytes + size > POOL_BYTES):
            # Too small for what is asked, as all that are free.
            self._retire(self._free.pop())
        if self._living() >= self._most or self._bytes + size > POOL_BYTES:
            return None
        number = self._next
        try:
            descriptor = os.memfd_create("outrigger-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, size)
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
                mapping = mmap.mmap(descriptor, size)
                message = frames.REGION.pack(number, size)
                descriptors.send(self._sock, message, [descriptor], socket.MSG_DONTWAIT)
            finally:
                os.close(descriptor)
        except OSError:
            # Out of descriptors or memory, forbidden, or the runtime is gone. The frame goes without.
            return None
        self._next += 1
        self._bytes += size
        return Own(number, size, mapping)

    def _living(self) -> int:
        return len(self._free) + len(self._out)

    def _retire(self, region: Own) -> None:
        self._out.pop(region.number, None)
        self._bytes -= region.size
        self._to_forget.append(region.number)
