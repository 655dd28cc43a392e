# SPDX-License-Identifier: MIT
"""Page state protocol (0xC0000000): the guest asks which of its pages are validated.

A kernel that another one has started (kexec, kdump) has no notes of what its predecessor validated
or shared; the SVSM has. The answer goes to a buffer in the guest's memory, as bits or as runs. How
far it has come stands in the request, which lies in the guest's memory too: the same call goes on
there, after INCOMPLETE and after a full buffer alike.

Spec: none of AMD's; docs/protocols/svsmd.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from svsmd.core import costs
from svsmd.core.access import load, store
from svsmd.core.calls import PRIVATE_PROTOCOLS, Reply, Request
from svsmd.core.gate import Handler, Preempt
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.percpu import PerCpu
from svsmd.core.protocols.page_list import locked_list
from svsmd.core.result_codes import SvsmError, SvsmResult
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa


class PageStateCall(IntEnum):
    """Calls of the protocol, RAX[31:0]."""

    QUERY = 0
    BITS = 1
    RUNS = 2


class PageStateFormat(IntEnum):
    """Bits of RDX that QUERY gives: which formats there are."""

    BITS = 1 << 0
    RUNS = 1 << 1


class PageStateRequest(NamedTuple):
    """What RCX points to, 48 bytes in one page.

    `first` is the frame number of the first page asked for, `pages` how many are, `next` how many
    of them are answered. `buffer` is a GPA, `size` its bytes, `filled` those that are written.
    """

    first: int
    pages: int
    next: int
    buffer: Gpa
    size: int
    filled: int


REQUEST_LAYOUT: Final = struct.Struct("<6Q")
_PROGRESS: Final = struct.Struct("<Q")
_NEXT_OFFSET: Final = 0x10
_FILLED_OFFSET: Final = 0x28
RUN_LAYOUT: Final = struct.Struct("<QQ")
"""A run: GPA of its first page, number of pages; all of them validated."""
BUFFER_ALIGNMENT: Final = RUN_LAYOUT.size
_FRAMES: Final = 1 << (64 - PAGE_SHIFT)
_RUN_COST: Final = 5 * costs.COPY_PAGE
_MAX_BUFFER: Final = 1 << 40


_Fill: TypeAlias = Callable[[PerCpu, PageStateRequest, int], tuple[bytes, int, int]]
"""Makes at most so many bytes for the buffer; how many pages they answer for, and the cost."""


class PageStateProtocol:
    """The protocol, version 1."""

    number = PRIVATE_PROTOCOLS.start
    versions = range(1, 2)

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def handle(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """Serve one call; see `CallProtocol.handle`."""
        match request.call:
            case PageStateCall.QUERY:
                formats = PageStateFormat.BITS | PageStateFormat.RUNS
                return Reply.to(request, rcx=self._memory.validated.stop, rdx=formats)
            case PageStateCall.BITS | PageStateCall.RUNS:
                return (yield from self._answer(cpu, request))
            case _:
                raise SvsmError(SvsmResult.SVSM_ERR_UNSUPPORTED_CALL)

    def _answer(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of a request, whose `next` and `filled` advance."""
        where = request.rcx
        with locked_list(cpu, self._memory, where):
            if (where & PAGE_MASK) + REQUEST_LAYOUT.size > PAGE_SIZE:
                raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
            raw = yield from load(cpu, where, REQUEST_LAYOUT.size)
            first, pages, done, buffer, size, filled = REQUEST_LAYOUT.unpack(raw)
            wanted = PageStateRequest(first, pages, done, Gpa(buffer), size, filled)
            _check(wanted)
            fill = self._runs if request.call == PageStateCall.RUNS else self._bits
            result: int = SvsmResult.SVSM_SUCCESS
            spent = 0
            while wanted.next < wanted.pages and wanted.filled < wanted.size:
                if spent > costs.CALL_BUDGET:
                    result = SvsmResult.SVSM_ERR_INCOMPLETE
                    break
                try:
                    wanted, cost = yield from self._fill_page(cpu, wanted, fill)
                except SvsmError as error:
                    result = error.code
                    break
                spent += cost
                yield Preempt()
            yield from store(cpu, where + _NEXT_OFFSET, _PROGRESS.pack(wanted.next))
            yield from store(cpu, where + _FILLED_OFFSET, _PROGRESS.pack(wanted.filled))
        return Reply.to(request, result)

    def _fill_page(
        self, cpu: PerCpu, wanted: PageStateRequest, fill: _Fill
    ) -> Handler[tuple[PageStateRequest, int]]:
        """Write to the page of the buffer that is next; returns how far it is, and the cost."""
        gpa = wanted.buffer + wanted.filled
        room = min(PAGE_SIZE - (gpa & PAGE_MASK), wanted.size - wanted.filled)
        self._memory.check_usable(cpu, gpa)
        with self._memory.locked(cpu, gpa & ~PAGE_MASK):
            data, done, cost = fill(cpu, wanted, room)
            if data:
                yield from store(cpu, gpa, data)
        progress = wanted._replace(next=wanted.next + done, filled=wanted.filled + len(data))
        return progress, cost

    def _bits(self, cpu: PerCpu, wanted: PageStateRequest, room: int) -> tuple[bytes, int, int]:
        """Bit i of byte j belongs to page `first` + `next` + 8 * j + i."""
        npages = min(wanted.pages - wanted.next, 8 * room)
        bits = self._memory.validated.bits(cpu, wanted.first + wanted.next, npages)
        return bits.to_bytes(-(-npages // 8), "little"), npages, costs.COPY_PAGE

    def _runs(self, cpu: PerCpu, wanted: PageStateRequest, room: int) -> tuple[bytes, int, int]:
        """All runs of validated pages that there is room for."""
        validated = self._memory.validated
        runs: list[bytes] = []
        done, cost = wanted.next, costs.COPY_PAGE
        while done < wanted.pages and len(runs) < room // RUN_LAYOUT.size:
            frame = wanted.first + done
            left = min(wanted.pages - done, validated.stop - frame)
            if left <= 0:
                # Nothing is validated behind the end of RAM.
                done = wanted.pages
                break
            state, length = validated.run(cpu, frame, left)
            cost += _RUN_COST
            if state:
                runs.append(RUN_LAYOUT.pack(frame << PAGE_SHIFT, length))
            done += length
        return b"".join(runs), done - wanted.next, cost


def _check(wanted: PageStateRequest) -> None:
    """INVALID_PARAMETER for a request that makes no sense; the buffer's pages are checked later."""
    if (
        wanted.first + wanted.pages > _FRAMES
        or wanted.next >= wanted.pages
        or wanted.buffer % BUFFER_ALIGNMENT
        or wanted.size % BUFFER_ALIGNMENT
        or wanted.size > _MAX_BUFFER
        or wanted.filled >= wanted.size
        or wanted.filled % BUFFER_ALIGNMENT
    ):
        raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
