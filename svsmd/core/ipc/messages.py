# SPDX-License-Identifier: MIT
"""Messages on their way: bytes in the SVSM's memory, and the handles that move with them.

Spec: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.core.access import load_own, store_own
from svsmd.core.ipc.objects import IpcObject
from svsmd.core.memory import PageAllocator, PageKind, SlabCache
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import PAGE_SIZE, Gpa

MESSAGE_MAX: Final = PAGE_SIZE
"""Bytes of a message."""
HANDLES_MAX: Final = 4
"""Handles that move with one."""
_SLABS: Final = (64, 256, 1024)
"""Sizes of the objects that messages lie in; larger ones have a page."""


def room_of(nbytes: int) -> int:
    """How much memory the bytes of a message take."""
    if not nbytes:
        return 0
    return next((size for size in _SLABS if nbytes <= size), PAGE_SIZE)


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """`nbytes` at GPA `where`, and what its handles refer to.

    `token` is that of the call which it is the request of; 0 for none.
    """

    where: Gpa
    nbytes: int
    handles: tuple[IpcObject, ...] = ()
    token: int = 0


class MessageStore:
    """Where the bytes of all messages lie."""

    def __init__(self, pages: PageAllocator) -> None:
        self._pages = pages
        self._caches = {size: SlabCache(pages, size, f"messages of {size}") for size in _SLABS}

    def put(
        self, cpu: PerCpu, data: bytes, handles: Sequence[IpcObject] = (), token: int = 0
    ) -> Message:
        """A message of at most `MESSAGE_MAX` bytes. Raises OutOfMemory."""
        room = room_of(len(data))
        where = Gpa(0)
        if room in self._caches:
            where = self._caches[room].allocate(cpu)
        elif room:
            where = self._pages.allocate(cpu, kind=PageKind.SLAB)
        if data:
            store_own(cpu, where, data)
        return Message(where, len(data), tuple(handles), token)

    @staticmethod
    def read(cpu: PerCpu, message: Message) -> bytes:
        """The bytes of a message."""
        return load_own(cpu, message.where, message.nbytes) if message.nbytes else b""

    def free(self, cpu: PerCpu, message: Message) -> None:
        """Give the memory of a message back. Its handles are somebody else's business."""
        room = room_of(message.nbytes)
        if room in self._caches:
            self._caches[room].free(cpu, message.where)
        elif room:
            self._pages.free(cpu, message.where)

    def drop(self, cpu: PerCpu, message: Message) -> None:
        """A message that nobody will receive: close its handles too."""
        self.free(cpu, message)
        for each in message.handles:
            each.closed(cpu)
