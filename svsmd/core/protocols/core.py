# SPDX-License-Identifier: MIT
"""Core protocol (number 0): calling areas, page validation, vCPUs, which protocols there are.

Spec: 58019 (SVSM), section 6. What is served, and where this differs from other SVSMs, is listed in
docs/protocols/core.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from enum import IntEnum
from typing import Final

from svsmd.core import costs
from svsmd.core.access import (
    flush_tlb,
    grant,
    load,
    mapped,
    pvalidate,
    revoke,
    rmpadjust,
    store,
    zero,
)
from svsmd.core.calls import Reply, Request, Versioned
from svsmd.core.gate import Handler
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.paging.kernel_maps import KernelMaps
from svsmd.core.percpu import GuestWorld, PerCpu
from svsmd.core.protocols.deposits import Deposits
from svsmd.core.protocols.page_list import work_list
from svsmd.core.request_loop import set_svme
from svsmd.core.result_codes import (
    SvsmCoreResult,
    SvsmError,
    SvsmResult,
    instruction_failed,
)
from svsmd.snp.bits import AddressBits, Bit, Bits, Register64
from svsmd.snp.faults import GuestFault
from svsmd.snp.rmp import Perm, RmpAttributes, RmpReturn
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Vmpl
from svsmd.snp.vmsa import Efer, Vmsa

_LOW_32: Final = 0xFFFF_FFFF


class SvsmCoreCall(IntEnum):
    """Calls of the core protocol, RAX[31:0]."""

    SVSM_CORE_REMAP_CA = 0
    SVSM_CORE_PVALIDATE = 1
    SVSM_CORE_CREATE_VCPU = 2
    SVSM_CORE_DELETE_VCPU = 3
    SVSM_CORE_DEPOSIT_MEM = 4
    SVSM_CORE_WITHDRAW_MEM = 5
    SVSM_CORE_QUERY_PROTOCOL = 6
    SVSM_CORE_CONFIGURE_VTOM = 7


CAA_CLEARED: Final = bytes(8)
"""What SVSM_CORE_REMAP_CA writes to a new calling area: the part that the specification defines."""


CONFIGURE_VTOM_QUERY: Final = 1 << 0
"""RCX[0] of SVSM_CORE_CONFIGURE_VTOM: the guest only asks whether it could. All else is 0 then."""
CONFIGURE_VTOM_RESERVED: Final = 0xFE0
"""RCX[11:5], which must be 0 in the other form."""


class PvalidateEntry(Register64):
    """One entry of the list of SVSM_CORE_PVALIDATE."""

    PAGE_SIZE = Bits(1, 0)
    """A `PageSize`; 2 and 3 are reserved."""
    VALIDATE = Bit(2)
    """Validate, or else rescind."""
    IGNORE_CF = Bit(3)
    """It is all right if the page had that state already."""
    RESERVED = Bits(11, 4)
    GPA = AddressBits(63, 12)


class CoreProtocol:
    """The core protocol, version 1.

    `cpus` are the vCPUs by APIC id, `protocols` all protocols by number, this one among them, and
    `maps` is where deposited memory goes.
    """

    number = 0
    versions = range(1, 2)

    def __init__(
        self,
        memory: GuestMemory,
        cpus: Mapping[int, PerCpu],
        protocols: Mapping[int, Versioned],
        guest_vmpl: Vmpl,
        maps: KernelMaps,
    ) -> None:
        self._memory = memory
        self._cpus = cpus
        self._protocols = protocols
        self._guest_vmpl = guest_vmpl
        self._deposits = Deposits(memory, maps, guest_vmpl)

    def handle(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """Serve one call; see `CallProtocol.handle`."""
        match request.call:
            case SvsmCoreCall.SVSM_CORE_REMAP_CA:
                return (yield from self._remap_ca(cpu, request))
            case SvsmCoreCall.SVSM_CORE_PVALIDATE:
                return (yield from self._pvalidate(cpu, request))
            case SvsmCoreCall.SVSM_CORE_CREATE_VCPU:
                return (yield from self._create_vcpu(cpu, request))
            case SvsmCoreCall.SVSM_CORE_DELETE_VCPU:
                return (yield from self._delete_vcpu(cpu, request))
            case SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM:
                return (yield from self._deposits.deposit(cpu, request))
            case SvsmCoreCall.SVSM_CORE_WITHDRAW_MEM:
                return (yield from self._deposits.withdraw(cpu, request))
            case SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL:
                return self._query_protocol(request)
            case SvsmCoreCall.SVSM_CORE_CONFIGURE_VTOM:
                return self._configure_vtom(request)
            case _:
                raise SvsmError(SvsmResult.SVSM_ERR_UNSUPPORTED_CALL)

    # Calling area ----------------------------------------------------------------------------

    def _remap_ca(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of the new calling area of this vCPU."""
        caa = request.rcx
        if caa & PAGE_MASK:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        self._check_caa(cpu, caa, cpu.apic_id)
        with self._memory.locked(cpu, caa):
            yield from store(cpu, caa, CAA_CLEARED)
            if cpu.world is not None:
                cpu.world.caa = Gpa(caa)
                cpu.world.mem_available = None
        return Reply.to(request)

    def _check_caa(self, cpu: PerCpu, caa: int, apic_id: int) -> None:
        """INVALID_ADDRESS unless `caa` may be the calling area of the vCPU `apic_id`."""
        self._memory.check_usable(cpu, caa)
        if self._memory.caa_owner(caa) not in (None, apic_id):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)

    # Page validation -------------------------------------------------------------------------

    def _pvalidate(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of a list of pages; `next` in it advances with every entry that is done."""

        def work(raw: int, _list_page: Gpa) -> Handler[int]:
            return self._pvalidate_entry(cpu, PvalidateEntry(raw))

        def finish() -> None:
            flush_tlb(cpu)

        result = yield from work_list(cpu, self._memory, request.rcx, work, finish)
        return Reply.to(request, result)

    def _pvalidate_entry(self, cpu: PerCpu, entry: PvalidateEntry) -> Handler[int]:
        """One entry; returns about how many ticks it took."""
        if entry.RESERVED or entry.PAGE_SIZE not in (PageSize.SIZE_4K, PageSize.SIZE_2M):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        size = PageSize(entry.PAGE_SIZE)
        gpa = entry.GPA
        if gpa % size.nbytes:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        memory = self._memory
        # The map ends below the C-bit, so this also refuses it, and addresses that are none.
        if not memory.owns(gpa, size.nbytes) or memory.has_registered(gpa, size.nbytes):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
        with memory.locked(cpu, gpa, size.nbytes):
            if not self._needs_change(cpu, gpa, size, entry.VALIDATE, entry.IGNORE_CF):
                return costs.MEMORY_ACCESS
            with mapped(cpu, gpa, size):
                return (yield from self._change(cpu, gpa, entry))

    def _change(self, cpu: PerCpu, gpa: int, entry: PvalidateEntry) -> Handler[int]:
        size = PageSize(entry.PAGE_SIZE)
        if entry.VALIDATE:
            yield from self._validate(cpu, gpa, size, entry.IGNORE_CF)
            return costs.PVALIDATE + costs.RMPADJUST + size.npages * costs.COPY_PAGE
        yield from self._rescind(cpu, gpa, size, entry.IGNORE_CF)
        return costs.PVALIDATE + costs.RMPADJUST

    def _needs_change(
        self, cpu: PerCpu, gpa: int, size: PageSize, validate: bool, ignore_cf: bool
    ) -> bool:
        """Whether a page does not have that state yet, as far as the SVSM remembers.

        PVALIDATE is not asked about one that has it: a page that the host has put in the place of
        a validated one would be validated a second time. 2 MiB with pages of both kinds are no
        2 MiB page.
        """
        bits = self._memory.validated.bits(cpu, gpa >> PAGE_SHIFT, size.npages)
        if bits not in (0, (1 << size.npages) - 1):
            raise SvsmError(SvsmCoreResult.FAIL_SIZEMISMATCH)
        if bool(bits) != validate:
            return True
        if not ignore_cf:
            raise SvsmError(SvsmCoreResult.PVALIDATE_NO_CHANGE)
        return False

    def _validate(self, cpu: PerCpu, gpa: int, size: PageSize, ignore_cf: bool) -> Handler[None]:
        """PVALIDATE, zero, grant, in this order.

        The page may be one that the host took from the SVSM and put here: its old contents must be
        gone before the guest can look.
        """
        code, unchanged = yield from pvalidate(cpu, gpa, size, True)
        if code != RmpReturn.SUCCESS:
            raise instruction_failed(code)
        if unchanged and not ignore_cf:
            raise SvsmError(SvsmCoreResult.PVALIDATE_NO_CHANGE)
        yield from zero(cpu, gpa, size)
        code = yield from grant(cpu, gpa, size, self._guest_vmpl)
        if code != RmpReturn.SUCCESS:
            yield from pvalidate(cpu, gpa, size, False)
            raise instruction_failed(code)
        self._memory.validated.set(cpu, gpa, size.npages, True)

    def _rescind(self, cpu: PerCpu, gpa: int, size: PageSize, ignore_cf: bool) -> Handler[None]:
        """Revoke, then PVALIDATE: no VMPL may keep a right to a page that is not validated."""
        code = yield from revoke(cpu, gpa, size, self._guest_vmpl)
        if code != RmpReturn.SUCCESS:
            raise instruction_failed(code)
        code, unchanged = yield from pvalidate(cpu, gpa, size, False)
        if code != RmpReturn.SUCCESS:
            yield from grant(cpu, gpa, size, self._guest_vmpl)
            raise instruction_failed(code)
        self._memory.validated.set(cpu, gpa, size.npages, False)
        if unchanged and not ignore_cf:
            raise SvsmError(SvsmCoreResult.PVALIDATE_NO_CHANGE)

    # vCPUs -----------------------------------------------------------------------------------

    def _create_vcpu(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of a VMSA page, RDX: GPA of a calling area, R8[31:0]: APIC id."""
        memory = self._memory
        vmsa, caa, apic_id = request.rcx, request.rdx, request.r8 & _LOW_32
        if (vmsa | caa) & PAGE_MASK or vmsa == caa:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
        memory.check_usable(cpu, vmsa)
        if not memory.owns(vmsa) or memory.has_registered(vmsa, PAGE_SIZE):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
        self._check_caa(cpu, caa, apic_id)
        target = self._cpus.get(apic_id)
        if target is None:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        with ExitStack() as held:
            held.enter_context(memory.locked(cpu, vmsa))
            held.enter_context(memory.locked(cpu, caa))
            if target.world is not None:
                # Its vCPU may be about to let the guest run with that VMSA: there must not be two.
                held.enter_context(memory.locked(cpu, target.world.vmsa))
            held.enter_context(mapped(cpu, vmsa))
            try:
                yield from self._make_vmsa(cpu, vmsa)
            except (SvsmError, GuestFault):
                yield from grant(cpu, vmsa, PageSize.SIZE_4K, self._guest_vmpl)
                raise
            world = GuestWorld(apic_id, Gpa(vmsa), Gpa(caa))
            memory.register(world)
            replaced, target.world = target.world, world
            if replaced is not None:
                # One vCPU, one VMSA that VMRUN accepts. The page stays a VMSA until DELETE_VCPU.
                yield from set_svme(cpu, replaced.vmsa, False)
        return Reply.to(request)

    def _make_vmsa(self, cpu: PerCpu, vmsa: int) -> Handler[None]:
        """Check a page of the guest, out of its reach, and mark it a VMSA."""
        code = yield from revoke(cpu, vmsa, PageSize.SIZE_4K, self._guest_vmpl)
        if code != RmpReturn.SUCCESS:
            raise instruction_failed(code)
        # From here on no vCPU of the guest can write to it any more.
        flush_tlb(cpu)
        state = Vmsa.copy_of((yield from load(cpu, vmsa, PAGE_SIZE)))
        if (
            state.vmpl != self._guest_vmpl
            or not state.efer & Efer.SVME
            or state.sev_features != (yield from self._sev_features(cpu))
        ):
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        # Readable: Linux looks up SEV_FEATURES there when it asks the host to start the vCPU.
        readable = Perm.READ << RmpAttributes.PERM_SHIFT
        attributes = RmpAttributes.VMSA | readable | self._guest_vmpl
        code = yield from rmpadjust(cpu, vmsa, PageSize.SIZE_4K, attributes)
        if code != RmpReturn.SUCCESS:
            raise instruction_failed(code)

    @staticmethod
    def _sev_features(cpu: PerCpu) -> Handler[int]:
        """SEV_FEATURES of the caller: a new vCPU gets no other ones."""
        if cpu.world is None:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_REQUEST)
        field = Vmsa.sev_features
        return int.from_bytes(
            (yield from load(cpu, cpu.world.vmsa + field.offset, field.size)), "little"
        )

    def _delete_vcpu(self, cpu: PerCpu, request: Request) -> Handler[Reply]:
        """RCX: GPA of a VMSA page, which becomes ordinary memory of the guest again."""
        memory = self._memory
        world = memory.world_of(request.rcx)
        if world is None or world.svsm_owned:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        with memory.locked(cpu, world.vmsa), mapped(cpu, world.vmsa):
            was_enabled = yield from set_svme(cpu, world.vmsa, False)
            code = yield from grant(cpu, world.vmsa, PageSize.SIZE_4K, self._guest_vmpl)
            if code == RmpReturn.FAIL_INUSE:
                yield from set_svme(cpu, world.vmsa, was_enabled)
                raise SvsmError(SvsmCoreResult.FAIL_INUSE)
            if code != RmpReturn.SUCCESS:
                raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
            flush_tlb(cpu)
            memory.unregister(world)
            target = self._cpus[world.apic_id]
            if target.world is world:
                target.world = None
        return Reply.to(request)

    # Queries ---------------------------------------------------------------------------------

    def _query_protocol(self, request: Request) -> Reply:
        """RCX: protocol << 32 | version; out: highest version << 32 | lowest, or 0."""
        protocol = self._protocols.get(request.rcx >> 32)
        if protocol is None or request.rcx & _LOW_32 not in protocol.versions:
            return Reply.to(request, rcx=0)
        versions = protocol.versions
        return Reply.to(request, rcx=versions[-1] << 32 | versions[0])

    @staticmethod
    def _configure_vtom(request: Request) -> Reply:
        """RCX[0]: query; out: RCX = 0, a vTOM cannot be configured, and RDX and R8 mean nothing."""
        rcx = request.rcx
        query = rcx & CONFIGURE_VTOM_QUERY
        if rcx != CONFIGURE_VTOM_QUERY if query else rcx & CONFIGURE_VTOM_RESERVED:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_PARAMETER)
        if not query:
            raise SvsmError(SvsmResult.SVSM_ERR_INVALID_REQUEST)
        return Reply.to(request, rcx=0)
