# SPDX-License-Identifier: MIT
"""The host's side of the GHCB: one handler for each non-automatic exit event.

The page is shared memory that the guest fills as it likes. It has to be registered, and shared at
this moment; a field counts only if it is marked valid; what is malformed is answered with the
reason that the protocol has for it. Only a page that the host could not write its answer to ends
the guest.

Spec: 56421, 2.3 (GHCB), 4.1 (events, tables 6 and 7).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from svsmd.host.ap_creation import ApCreation
from svsmd.host.ghcb_msr_exits import HV_FEATURES
from svsmd.host.guest_request import GuestRequests
from svsmd.host.io_exits import Ports, handle_ioio
from svsmd.host.mmio_exits import Mmio, mmio_read, mmio_write
from svsmd.host.outcome import Crashed, End, Terminated
from svsmd.host.page_state_change import PageStateChange
from svsmd.host.silicon_port import HostSilicon
from svsmd.host.vcpu import Activity, Vcpu, World
from svsmd.snp.cpuid_policy import cpuid
from svsmd.snp.faults import Vector
from svsmd.snp.ghcb import (
    GHCB_USAGE_STANDARD,
    GHCB_VERSION_MAX,
    Ghcb,
    GhcbError,
    GhcbExit,
    GhcbInputError,
    GhcbResponse,
)
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT

log = logging.getLogger(__name__)

KVM_ENOSYS: Final = (1 << 64) - 1000
"""RAX of a hypercall that this hypervisor does not know, as the announced KVM answers it."""

CPUID_XSAVE: Final = 0xD
"""The CPUID function whose answer depends on XCR0 (56421, table 6)."""

_U32: Final = 0xFFFF_FFFF

# What every event has is read and written in one go: a console byte takes this way.
_REQUEST: Final = struct.Struct("<3Q")
"""SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2."""
_REQUEST_OFFSET: Final = Ghcb.sw_exit_code.offset
_REQUEST_VALID: Final = 0b111 << (_REQUEST_OFFSET // 8 - 64)
"""Their bits in the upper half of the valid bitmap."""
_ANSWER: Final = struct.Struct("<2Q")
"""SW_EXITINFO1, SW_EXITINFO2."""
_ANSWER_OFFSET: Final = Ghcb.sw_exit_info_1.offset
_ANSWER_VALID: Final = 0b11 << (_ANSWER_OFFSET // 8 - 64)
_BITMAP: Final = struct.Struct("<2Q")
_BITMAP_OFFSET: Final = Ghcb.valid_bitmap.offset
_FOOTER: Final = struct.Struct("<HI")
"""Protocol version and usage."""
_FOOTER_OFFSET: Final = Ghcb.protocol_version.offset
_FOOTER_EXPECTED: Final = (GHCB_VERSION_MAX, GHCB_USAGE_STANDARD)
_DR7_RESERVED_ONE: Final = 1 << 10


Handler = Callable[[Vcpu, World, Ghcb, int, int], End | None]
"""Serves one event: takes vCPU, world, page, SW_EXITINFO1 and SW_EXITINFO2; leaves its answer in
the page or returns how the machine ends. `GhcbInputError` is answered by the caller."""


@dataclass(frozen=True, slots=True)
class GhcbServices:
    """What the events act upon."""

    silicon: HostSilicon
    ports: Ports
    mmio: Mmio
    page_state: PageStateChange
    guest_requests: GuestRequests
    ap_creation: ApCreation
    ncpus: int


class GhcbExits:
    """Dispatches and serves the events."""

    def __init__(self, services: GhcbServices) -> None:
        # Runtime glue.
        self._services: Final = services
        self._rmp: Final = services.silicon.rmp
        self._handlers: Final[dict[int, Handler]] = {
            GhcbExit.SVM_EXIT_READ_DR7: self._read_dr7,
            GhcbExit.SVM_EXIT_WRITE_DR7: self._write_dr7,
            GhcbExit.SVM_EXIT_RDTSC: self._rdtsc,
            GhcbExit.SVM_EXIT_RDPMC: self._rdpmc,
            GhcbExit.SVM_EXIT_CPUID: self._cpuid,
            GhcbExit.SVM_EXIT_IOIO: self._ioio,
            GhcbExit.SVM_EXIT_MSR: self._msr,
            GhcbExit.SVM_EXIT_VMMCALL: self._vmmcall,
            GhcbExit.SVM_EXIT_RDTSCP: self._rdtscp,
            GhcbExit.SVM_EXIT_WBINVD: self._nothing_to_do,
            GhcbExit.SVM_EXIT_MONITOR: self._monitor,
            GhcbExit.SVM_EXIT_MWAIT: self._mwait,
            GhcbExit.MMIO_READ: self._mmio_read,
            GhcbExit.MMIO_WRITE: self._mmio_write,
            GhcbExit.NMI_COMPLETE: self._nothing_to_do,
            GhcbExit.AP_RESET_HOLD: self._ap_reset_hold,
            GhcbExit.AP_JUMP_TABLE: self._ap_jump_table,
            GhcbExit.SNP_PSC: self._page_state_change,
            GhcbExit.SNP_GUEST_REQUEST: self._guest_request,
            GhcbExit.SNP_EXT_GUEST_REQUEST: self._ext_guest_request,
            GhcbExit.SNP_AP_CREATION: self._ap_creation,
            GhcbExit.SNP_RUN_VMPL: self._run_vmpl,
            GhcbExit.HV_FEATURES: self._hv_features,
            GhcbExit.TERMINATE: self._terminate,
            GhcbExit.UNSUPPORTED: self._unsupported,
        }
        # Volatile state.
        self._ap_jump_table_gpa = 0

    def handle(self, vcpu: Vcpu, world: World) -> End | None:
        """Serve the event in the GHCB that the MSR of `world` names, or say how the machine ends.

        Events that are not in table 6, or that this host does not offer (#HV doorbell page, HV IPI,
        APIC ID list, secure AVIC, alternate injection), are answered with INVALID_EVENT.
        """
        gpa = world.vmcb.ghcb_msr
        ghcb = world.ghcb
        if gpa != world.ghcb_gpa or ghcb is None or self._rmp.assigned(gpa >> PAGE_SHIFT):
            page = self._services.silicon.host_page(gpa)
            if page is None:
                return Crashed(
                    f"vCPU {vcpu.index} at VMPL{world.vmpl}: "
                    f"the GHCB at {gpa:#x} is no shared page of RAM"
                )
            ghcb = Ghcb(page)
            if gpa != world.ghcb_gpa:
                ghcb.clear_valid()
                ghcb.set_malformed(GhcbError.NOT_REGISTERED)
                return None
            world.ghcb = ghcb
        memory = ghcb.memory
        try:
            if _FOOTER.unpack_from(memory, _FOOTER_OFFSET) != _FOOTER_EXPECTED:
                ghcb.check_header()
            if ~_BITMAP.unpack_from(memory, _BITMAP_OFFSET)[1] & _REQUEST_VALID:
                raise GhcbInputError(GhcbError.MISSING_INPUT, "the event is not marked valid")
            code, info_1, info_2 = _REQUEST.unpack_from(memory, _REQUEST_OFFSET)
            handler = self._handlers.get(code)
            if handler is None:
                raise GhcbInputError(GhcbError.INVALID_EVENT, f"event {code:#x}")
            return handler(vcpu, world, ghcb, info_1, info_2)
        except GhcbInputError as error:
            log.debug("vCPU %d at VMPL%d: GHCB: %s", vcpu.index, world.vmpl, error)
            ghcb.clear_valid()
            ghcb.set_malformed(error.reason)
            return None

    def end_reset_hold(self, world: World) -> None:
        """A SIPI came: tell who waits in AP Reset Hold, unless its page has become private."""
        gpa = world.ghcb_gpa
        page = None if gpa is None else self._services.silicon.host_page(gpa)
        if page is not None:
            ghcb = Ghcb(page)
            _answer(ghcb, 1)

    # Instructions --------------------------------------------------------------------------------

    def _ioio(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        value = handle_ioio(self._services.ports, ghcb, world.vmcb.ghcb_msr, info_1, info_2)
        _answer(ghcb)
        if value is not None:
            ghcb.rax = value

    def _msr(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        msr = ghcb.rcx & _U32
        if info_1 == 1:
            value = (ghcb.rdx & _U32) << 32 | ghcb.rax & _U32
            _answer(ghcb)
            if not world.plane.msrs.write(msr, value):
                log.debug("vCPU %d: #GP for WRMSR of %#x", vcpu.index, msr)
                ghcb.set_exception(Vector.GP, 0)
        elif info_1 == 0:
            _answer(ghcb)
            result = world.plane.msrs.read(msr)
            if result is None:
                log.debug("vCPU %d: #GP for RDMSR of %#x", vcpu.index, msr)
                ghcb.set_exception(Vector.GP, 0)
            else:
                ghcb.rax = result & _U32
                ghcb.rdx = result >> 32 & _U32
        else:
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"MSR access of kind {info_1:#x}")

    def _cpuid(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        function = ghcb.rax & _U32
        index = ghcb.rcx & _U32
        if function == CPUID_XSAVE:
            # Has to be there, though this CPU has no XSAVE that it would describe.
            _ = ghcb.xcr0
        _answer(ghcb)
        result = cpuid(function, index, vcpu.apic_id, self._services.ncpus)
        ghcb.rax, ghcb.rbx, ghcb.rcx, ghcb.rdx = result

    def _rdtsc(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _answer(ghcb)
        self._set_tsc(ghcb)

    def _rdtscp(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _answer(ghcb)
        self._set_tsc(ghcb)
        # TSC_AUX lies in the VMSA, where the host cannot see it; a guest that uses it does not
        # let RDTSCP exit.
        ghcb.rcx = 0

    def _set_tsc(self, ghcb: Ghcb) -> None:
        now = self._services.silicon.clock.now
        ghcb.rax = now & _U32
        ghcb.rdx = now >> 32 & _U32

    def _rdpmc(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _ = ghcb.rcx
        ghcb.clear_valid()
        # There are no performance counters.
        ghcb.set_exception(Vector.GP, 0)

    def _vmmcall(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _ = ghcb.rax, ghcb.cpl
        _answer(ghcb)
        ghcb.rax = KVM_ENOSYS

    def _read_dr7(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _answer(ghcb)
        ghcb.rax = world.dr7

    def _write_dr7(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        world.dr7 = ghcb.rax & _U32 | _DR7_RESERVED_ONE
        _answer(ghcb)

    def _monitor(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _ = ghcb.rax, ghcb.rcx, ghcb.rdx
        self._nothing_to_do(vcpu, world, ghcb, info_1, info_2)

    def _mwait(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        # Waking up at once is always right.
        _ = ghcb.rax, ghcb.rcx
        self._nothing_to_do(vcpu, world, ghcb, info_1, info_2)

    def _nothing_to_do(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        _answer(ghcb)

    # Events of the protocol ----------------------------------------------------------------------

    def _mmio_read(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        mmio_read(self._services.mmio, ghcb, world.vmcb.ghcb_msr, info_1, info_2)
        _answer(ghcb)

    def _mmio_write(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        mmio_write(self._services.mmio, ghcb, world.vmcb.ghcb_msr, info_1, info_2)
        _answer(ghcb)

    def _ap_reset_hold(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        _answer(ghcb)
        vcpu.wait(Activity.RESET_HOLD_BY_GHCB)

    def _ap_jump_table(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        if info_1 == 0:
            if info_2 & PAGE_MASK:
                raise GhcbInputError(GhcbError.INVALID_INPUT, f"AP jump table at {info_2:#x}")
            self._ap_jump_table_gpa = info_2
            result = 0
        elif info_1 == 1:
            result = self._ap_jump_table_gpa
        else:
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"AP jump table request {info_1:#x}")
        _answer(ghcb, result)

    def _page_state_change(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        _answer(ghcb, self._services.page_state.handle_list(ghcb, world.vmcb.ghcb_msr))

    def _guest_request(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        _answer(ghcb, self._services.guest_requests.handle(info_1, info_2))

    def _ext_guest_request(
        self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int
    ) -> None:
        result, pages_needed = self._services.guest_requests.handle_extended(
            info_1, info_2, ghcb.rax, ghcb.rbx
        )
        _answer(ghcb, result)
        if pages_needed is not None:
            ghcb.rbx = pages_needed

    def _ap_creation(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        self._services.ap_creation.handle(world, ghcb, info_1, info_2)
        _answer(ghcb)

    def _run_vmpl(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        if not vcpu.run_vmpl(info_1):
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"no VMSA for VMPL {info_1:#x}")
        _answer(ghcb)

    def _hv_features(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> None:
        _answer(ghcb, HV_FEATURES)

    def _terminate(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> End:
        return Terminated(info_1 & 0xF, info_1 >> 4 & 0xFF, vcpu.index, world.vmpl)

    def _unsupported(self, vcpu: Vcpu, world: World, ghcb: Ghcb, info_1: int, info_2: int) -> End:
        return Crashed(
            f"vCPU {vcpu.index} at VMPL{world.vmpl}: the guest gave up on "
            f"an event that it does not support: {info_1:#x}, {info_2:#x}"
        )


def _answer(ghcb: Ghcb, info_2: int = 0) -> None:
    """Say that the event was handled. Nothing else is valid then: results are set afterwards."""
    memory = ghcb.memory
    _ANSWER.pack_into(memory, _ANSWER_OFFSET, GhcbResponse.NO_ACTION, info_2)
    _BITMAP.pack_into(memory, _BITMAP_OFFSET, 0, _ANSWER_VALID)
