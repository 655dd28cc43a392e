# SPDX-License-Identifier: MIT
"""Lists of pages that the guest hands to the core protocol, and how far they are done.

The list lies in one page: 2 bytes with the number of entries, 2 with the index of the next one to
do, 4 reserved, then entries of 8 bytes. The page is locked as long as the call lasts: the index is
written to it at the end, and by then another vCPU could have made it a VMSA.

Spec: 58019 (SVSM), tables 6 and 7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from svsmd.core import costs
from svsmd.core.access import load, mapped, store
from svsmd.core.gate import Handler
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.percpu import PerCpu
from svsmd.core.result_codes import SvsmError, SvsmResult
from svsmd.snp.faults import GuestFault
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa

LIST_HEADER: Final = struct.Struct("<HHI")
"""Number of entries, index of the next one to do, reserved. Entries of 8 bytes follow."""
LIST_NEXT_OFFSET: Final = 2
LIST_ALIGNMENT: Final = 8
LIST_ENTRY_SIZE: Final = 8


@contextmanager
def locked_list(cpu: PerCpu, memory: GuestMemory, where: int) -> Iterator[Gpa]:
    """Hold the page of a list at GPA `where` that a call may use; yields its address.

    INVALID_PARAMETER for one that is not aligned, INVALID_ADDRESS, or BUSY.
    """
    if where % LIST_ALIGNMENT:
        raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
    memory.check_usable(cpu, where)
    page = Gpa(where & ~PAGE_MASK)
    with memory.locked(cpu, page), mapped(cpu, page):
        yield page


def work_list(
    cpu: PerCpu,
    memory: GuestMemory,
    where: int,
    work: Callable[[int, Gpa], Handler[int]],
    finish: Callable[[], None],
) -> Handler[int]:
    """Do the entries of a list from `next` on, and write `next` back; returns the result code.

    `work` does one entry: it gets the entry and the page of the list, and returns about how many
    ticks it took. An `SvsmError` or `GuestFault` of it ends the call. `finish` is called when no
    entry is worked on any more. A call that has cost enough is INCOMPLETE.
    """
    with locked_list(cpu, memory, where) as page:
        header = yield from load(cpu, where, LIST_HEADER.size)
        count, start, _reserved = LIST_HEADER.unpack(header)
        room = PAGE_SIZE - (where & PAGE_MASK) - LIST_HEADER.size
        if start >= count or count * LIST_ENTRY_SIZE > room:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        # One copy of all entries: what another vCPU writes to the list from here on is too late.
        first = where + LIST_HEADER.size + start * LIST_ENTRY_SIZE
        raw = yield from load(cpu, first, (count - start) * LIST_ENTRY_SIZE)
        done, spent = start, 0
        result: int = SvsmResult.SVSM_SUCCESS
        for (entry,) in struct.iter_unpack("<Q", raw):
            if spent > costs.CALL_BUDGET:
                result = SvsmResult.SVSM_ERR_INCOMPLETE
                break
            try:
                spent += yield from work(entry, page)
            except SvsmError as error:
                result = error.code
                break
            except GuestFault:
                result = SvsmResult.SVSM_ERR_INVALID_ADDRESS
                break
            done += 1
        finish()
        yield from store(cpu, where + LIST_NEXT_OFFSET, done.to_bytes(2, "little"))
    return result
