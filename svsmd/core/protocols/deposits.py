# SPDX-License-Identifier: MIT
"""SVSM_CORE_DEPOSIT_MEM and SVSM_CORE_WITHDRAW_MEM: memory that the guest lends to the SVSM.

A deposited page leaves the guest: no VMPL but VMPL0 has a right to it, no TLB has a translation of
it, it is zero, and it counts as a page of the SVSM in every call. It goes back the other way round.

Spec: 58019 (SVSM), 6.5 and 6.6.
"""

from __future__ import annotations

import struct
from typing import Final

from svsmd.core import costs
from svsmd.core.access import flush_tlb, grant, revoke, store, zero
from svsmd.core.calls import Reply, Request
from svsmd.core.gate import Handler, Preempt
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.memory import OutOfMemory
from svsmd.core.paging.kernel_maps import KernelMaps
from svsmd.core.percpu import PerCpu
from svsmd.core.protocols.page_list import LIST_ENTRY_SIZE, LIST_HEADER, locked_list, work_list
from svsmd.core.result_codes import SvsmError, SvsmResult, instruction_failed
from svsmd.snp.bits import AddressBits, Bits, Register64
from svsmd.snp.faults import GuestFault
from svsmd.snp.rmp import RmpReturn
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa, PageSize, Vmpl

_PAGES_A_STEP: Final = 32
"""Pages of a large entry that become the allocator's before the host gets the CPU."""
_PAGE_COST: Final = 2 * costs.RMPADJUST + costs.COPY_PAGE + 16 * costs.MEMORY_ACCESS
"""About what moving one page costs, in ticks."""


class DepositEntry(Register64):
    """One entry of the list of SVSM_CORE_DEPOSIT_MEM."""

    PAGE_SIZE = Bits(1, 0)
    """A `PageSize`; 2 and 3 are reserved."""
    RESERVED = Bits(11, 2)
    GPA = AddressBits(63, 12)


class Deposits:
    """Both calls."""

    def __init__(self, memory: GuestMemory, maps: KernelMaps, guest_vmpl: Vmpl) -> None:
        self._memory = memory
        self._maps = maps
        self._pages = maps.pages
        self._guest_vmpl = guest_vmpl

    def deposit(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of a list of pages; `next` in it advances with every entry that is done."""

        def work(raw: int, list_page: Gpa) -> Handler[int]:
            return self._deposit_entry(cpu, DepositEntry(raw), list_page)

        result = yield from work_list(cpu, self._memory, request.rcx, work, lambda: None)
        return Reply.to(request, result)

    def _deposit_entry(self, cpu: PerCpu, entry: DepositEntry, list_page: Gpa) -> Handler[int]:
        if entry.RESERVED or entry.PAGE_SIZE not in (PageSize.SIZE_4K, PageSize.SIZE_2M):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        size, gpa = PageSize(entry.PAGE_SIZE), Gpa(entry.GPA)
        if gpa % size.nbytes:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        memory = self._memory
        if (
            not memory.owns(gpa, size.nbytes)
            or memory.has_registered(gpa, size.nbytes)
            or not memory.validated.all_validated(cpu, gpa, size.npages)
            # The call writes to its list when it is done.
            or gpa <= list_page < gpa + size.nbytes
        ):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
        with memory.locked(cpu, gpa, size.nbytes):
            yield from self._take(cpu, gpa, size)
            try:
                self._maps.map_own(cpu, gpa, size.npages)
            except OutOfMemory:
                yield from self._return(cpu, gpa, size)
                raise
            memory.validated.set(cpu, gpa, size.npages, False)
            for number in range(size.npages):
                self._pages.deposit(cpu, Gpa(gpa + number * PAGE_SIZE))
                if number % _PAGES_A_STEP == _PAGES_A_STEP - 1:
                    yield Preempt()
        return costs.FLUSH_TLB + size.npages * _PAGE_COST

    def _take(self, cpu: PerCpu, gpa: Gpa, size: PageSize) -> Handler[None]:
        """Take a page from the guest, and make it zero; or leave it all to the guest."""
        code = yield from revoke(cpu, gpa, size, self._guest_vmpl)
        if code == RmpReturn.FAIL_SIZEMISMATCH:
            yield from self._take_small(cpu, gpa)
            return
        try:
            if code != RmpReturn.SUCCESS:
                raise instruction_failed(code)
            # From here on no vCPU of the guest can look at it, or write to it.
            flush_tlb(cpu)
            yield from zero(cpu, gpa, size)
        except (SvsmError, GuestFault):
            yield from grant(cpu, gpa, size, self._guest_vmpl)
            raise

    def _return(self, cpu: PerCpu, gpa: Gpa, size: PageSize) -> Handler[None]:
        """The guest has a page again that was taken, whatever the size of its RMP entries."""
        code = yield from grant(cpu, gpa, size, self._guest_vmpl)
        if code == RmpReturn.FAIL_SIZEMISMATCH:
            for number in range(size.npages):
                page = Gpa(gpa + number * PAGE_SIZE)
                yield from grant(cpu, page, PageSize.SIZE_4K, self._guest_vmpl)

    def _take_small(self, cpu: PerCpu, gpa: Gpa) -> Handler[None]:
        """The pages of 2 MiB whose RMP entries are of 4 KiB."""
        taken: list[Gpa] = []
        try:
            for number in range(PageSize.SIZE_2M.npages):
                page = Gpa(gpa + number * PAGE_SIZE)
                code = yield from revoke(cpu, page, PageSize.SIZE_4K, self._guest_vmpl)
                taken.append(page)
                if code != RmpReturn.SUCCESS:
                    raise instruction_failed(code)
            flush_tlb(cpu)
            for page in taken:
                yield from zero(cpu, page, PageSize.SIZE_4K)
        except (SvsmError, GuestFault):
            for page in taken:
                yield from grant(cpu, page, PageSize.SIZE_4K, self._guest_vmpl)
            raise

    def withdraw(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: where the SVSM writes a list: 2 bytes with the number of pages, 6 unused, GPAs."""
        where = request.rcx
        with locked_list(cpu, self._memory, where):
            room = (PAGE_SIZE - (where & PAGE_MASK) - LIST_HEADER.size) // LIST_ENTRY_SIZE
            if not room:
                raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
            given: list[int] = []
            # Never INCOMPLETE: what is left over shows in the calling area.
            while len(given) < min(room, costs.CALL_BUDGET // _PAGE_COST):
                gpa = yield from self._give_back(cpu)
                if gpa is None:
                    break
                given.append(gpa)
            if given:
                flush_tlb(cpu)
                raw = struct.pack(f"<{len(given)}Q", *given)
                yield from store(cpu, where + LIST_HEADER.size, raw)
            yield from store(cpu, where, len(given).to_bytes(2, "little"))
        return Reply.to(request)

    def _give_back(self, cpu: PerCpu) -> Handler[Gpa | None]:
        """Give the guest a zero page that the SVSM does not use; None if there is none."""
        gpa = self._pages.withdraw(cpu)
        if gpa is None:
            return None
        if self._memory.is_locked(cpu, gpa):
            # Another vCPU is still depositing the rest of its 2 MiB.
            self._pages.deposit(cpu, gpa)
            return None
        with self._memory.locked(cpu, gpa):
            code = yield from grant(cpu, gpa, PageSize.SIZE_4K, self._guest_vmpl)
            if code != RmpReturn.SUCCESS:
                self._pages.deposit(cpu, gpa)
                return None
            self._maps.unmap_own(cpu, gpa, 1)
            self._memory.validated.set(cpu, gpa, 1, True)
        return gpa
