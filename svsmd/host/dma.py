# SPDX-License-Identifier: MIT
"""Direct memory access of devices: shared pages only.

A device is a part of the host, and reaches what any hypervisor reaches with plaintext: RAM that is
not assigned in the RMP. An address that the guest gives to a device may be anything.

Spec: 24593, 15.36.10 (RMP checks of the host's and the devices' accesses).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from svsmd.host.guest_request import HostPage
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE


class DmaError(Exception):
    """A part of what the guest has named is private, or no RAM."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"no shared page at {gpa:#x}")
        self.gpa: Final = gpa


class Dma:
    """Copies to and from shared memory, across pages; `host_page` says where that is."""

    def __init__(self, host_page: HostPage) -> None:
        self._host_page: Final = host_page

    def read(self, gpa: int, nbytes: int) -> bytes:
        """Return `nbytes` from `gpa`; `DmaError` if not all of them are shared."""
        return b"".join(self._parts(gpa, nbytes))

    def write(self, gpa: int, data: bytes) -> None:
        """Write `data` at `gpa`; `DmaError`, with nothing written, if not all of it is shared."""
        start = 0
        for part in list(self._parts(gpa, len(data))):
            part[:] = data[start : start + len(part)]
            start += len(part)

    def _parts(self, gpa: int, nbytes: int) -> Iterator[memoryview]:
        """The live bytes, page by page."""
        end = gpa + nbytes
        while gpa < end:
            offset = gpa & PAGE_MASK
            size = min(end - gpa, PAGE_SIZE - offset)
            page = self._host_page(gpa - offset)
            if page is None:
                raise DmaError(gpa)
            yield page[offset : offset + size]
            gpa += size
