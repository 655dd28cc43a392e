# SPDX-License-Identifier: MIT
"""Handles: small numbers by which a process names kernel objects.

Spec: none; 0, 1 and 2 are standard input, output and error, as in POSIX.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol, TypeVar

from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.errno import CallFailed, Errno

HANDLES_MAX: Final = 64
"""Of a process."""


class KernelObject(Protocol):
    """Something that handles refer to; it counts them."""

    def opened(self) -> None:
        """One handle more."""
        ...

    def closed(self, cpu: PerCpu, /) -> None:
        """One handle less."""
        ...


T = TypeVar("T")


class HandleTable:
    """The handles of one process."""

    def __init__(self) -> None:
        self._objects: dict[int, KernelObject] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[tuple[int, KernelObject]]:
        return iter(sorted(self._objects.items()))

    def check_room(self, count: int) -> None:
        """Fails with EMFILE unless so many handles are free."""
        if len(self._objects) + count > HANDLES_MAX:
            raise CallFailed(Errno.EMFILE)

    def add(self, target: KernelObject) -> int:
        """The lowest free handle, which refers to `target` now. Fails with EMFILE."""
        self.check_room(1)
        target.opened()
        return self.give(target)

    def give(self, target: KernelObject) -> int:
        """As `add`, for a handle that was `take`n somewhere and counts already."""
        self.check_room(1)
        handle = next(n for n in range(HANDLES_MAX) if n not in self._objects)
        self._objects[handle] = target
        return handle

    def take(self, handle: int) -> KernelObject:
        """The object behind a handle, which is free then but still counts. Fails with EBADF."""
        found = self._objects.pop(handle, None)
        if found is None:
            raise CallFailed(Errno.EBADF)
        return found

    def get(self, handle: int, kind: type[T]) -> T:
        """The object behind a handle. Fails with EBADF, also if it is of another kind."""
        found = self._objects.get(handle)
        if not isinstance(found, kind):
            raise CallFailed(Errno.EBADF)
        return found

    def close(self, cpu: PerCpu, handle: int) -> None:
        """The handle is free again. Fails with EBADF."""
        self.take(handle).closed(cpu)

    def close_all(self, cpu: PerCpu) -> None:
        """The process ends."""
        for handle in sorted(self._objects):
            self.close(cpu, handle)
