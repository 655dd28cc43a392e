# SPDX-License-Identifier: MIT
"""One SNP processor: what each event of the CPU engine means inside a guest.

Whatever a guest may see is decided here: #VC for the instructions that an SEV-ES guest must not
execute itself, the RMP instructions, nested page faults, exceptions. What the host may see leaves
as one of svsmd.snp.exits.

Spec: 24593, 15.35.4 and 15.35.5 (automatic and non-automatic exits, #VC), 15.36 (SEV-SNP); 24594
for the instructions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from svsmd.snp.access import AccessKind
from svsmd.snp.cpu_unicorn import CS, HOST_BASE, RCX, UnicornCpu
from svsmd.snp.debug_support import DebugSupport, Watch
from svsmd.snp.engine_callbacks import EngineExit, Trap
from svsmd.snp.engine_layout import HF_CS32
from svsmd.snp.entropy import EntropySource
from svsmd.snp.exits import (
    Cr8WriteTrap,
    DebugReason,
    DebugStop,
    Exit,
    Hlt,
    Npf,
    Paused,
    Shutdown,
    Vmgexit,
)
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, Vector
from svsmd.snp.interrupt_delivery import (
    ERROR_CODE_VECTORS,
    NMI,
    InterruptDelivery,
    TripleFault,
)
from svsmd.snp.memory import GuestMemory
from svsmd.snp.page_walk import (
    CR0_PG,
    CR4_PAE,
    KnownTables,
    PageWalker,
    PagingState,
    Translation,
)
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.rmp import Perm, Rmp
from svsmd.snp.rmp_instructions import RmpInstructions
from svsmd.snp.secure_tsc import TSC_SCALE_ONE, guest_tsc, guest_tsc_mhz, usable_scale
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PageSize
from svsmd.snp.vmcb import LastNpf, Vmcb
from svsmd.snp.vmsa import SEV_STATUS_FEATURES_SHIFT, SEV_STATUS_MSR, SevFeatures, Vmsa
from svsmd.snp.vmsa_state import CR4_OFFERED, EFER_SVME, legal_cr0, mode_flags
from svsmd.snp.walk_trace import WalkTrace, trace_walk

log = logging.getLogger(__name__)

MSR_EFER: Final = 0xC000_0080
MSR_TSC: Final = 0x10
MSR_GHCB: Final = 0xC001_0130
MSR_GUEST_TSC_FREQ: Final = 0xC001_0134
_EFER_SCE, _EFER_LME, _EFER_LMA, _EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
_EFER_FFXSR, _EFER_LMSLE = 1 << 14, 1 << 13
_EFER_WRITABLE: Final = _EFER_SCE | _EFER_LME | _EFER_NXE | _EFER_FFXSR | EFER_SVME
_CR0_PE, _CR0_TS, _CR0_ET = 1 << 0, 1 << 3, 1 << 4
_OP_CLTS, _OP_INVD, _OP_MOV_CR = 0x06, 0x08, 0x22
_IF: Final = 1 << 9
_TF: Final = 1 << 8
_DR6, _DR7 = 6, 7
_DR6_BS: Final = 1 << 14
_DR6_WRITABLE: Final = 0xE00F
_DR6_ONES: Final = 0xFFFF_0FF0
_CR4_DE: Final = 1 << 3
_CODE_L: Final = 1 << 21
"""Bit L of a code segment in the engine's descriptor layout."""
_CF: Final = 1 << 0
_ZF: Final = 1 << 6
_STRING_OPCODES: Final = frozenset((*range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_STRING_COMPARES: Final = frozenset((0xA6, 0xA7, 0xAE, 0xAF))
_ARITHMETIC: Final = 0x8D5
_DB: Final = 1

_NPF_W, _NPF_ID = 1 << 1, 1 << 4
_PF_ID: Final = 1 << 4
_VC_MSR: Final = 0x7C
_SEV_ENABLED: Final = 0b11
"""SEV_STATUS: SEV and SEV-ES."""

VC_CODES: Final[dict[int, int]] = {
    EngineExit.RDPMC: 0x6F, EngineExit.CPUID: 0x72, EngineExit.MONITOR: 0x8A,
    EngineExit.MWAIT: 0x8B,
}  # fmt: skip
"""Instructions that always end as #VC, by their exit code (24593, table 15-36)."""

_NOT_OFFERED: Final = (
    EngineExit.VMRUN, EngineExit.VMLOAD, EngineExit.VMSAVE, EngineExit.STGI, EngineExit.CLGI,
    EngineExit.SKINIT, EngineExit.INVLPGA,
)  # fmt: skip
"""SVM's instructions: #UD. The engine's VMSAVE would write physical memory as it is asked to."""

_FULL_EXECUTE: Final = int(Perm.EXECUTE_USER | Perm.EXECUTE_SUPERVISOR)
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_MAX_INSTRUCTION: Final = 15
_NOT_RDRAND: Final = frozenset(b"\xf0\xf2\xf3")
"""Prefixes with which RDRAND's opcode is another instruction, or none."""


@dataclass(slots=True)
class TransientLeaf:
    """A nested leaf that stands for one instruction."""

    page: int
    watch: Watch | None = None


class Processor:
    """The exit handler of the CPU engine, for one loaded context at a time."""

    def __init__(
        self,
        cpu: UnicornCpu,
        memory: GuestMemory,
        rmp: Rmp,
        physical: PhysicalAccess,
        entropy: EntropySource,
    ) -> None:
        self.cpu = cpu
        self.memory = memory
        self.rmp = rmp
        self.physical = physical
        self.events = rmp.events
        self.debug = DebugSupport(self)
        self.delivery = InterruptDelivery(self)
        self.instructions = RmpInstructions(self)
        self._entropy = entropy.stream("rdrand")
        self._walkers = [PageWalker(physical, vmpl) for vmpl in range(4)]
        self._debug_walkers = [PageWalker(physical, vmpl, debug=True) for vmpl in range(4)]
        self.vmcb = Vmcb(0)
        self.vmpl = 0
        self.sev_status = 0
        self.secure_tsc = False
        self.exit: Exit | None = None
        self.gates: dict[int, Callable[[], None]] = {}
        self.write_memory_hook: Callable[[int, int], None] = lambda spa, n: None
        self._transient: list[TransientLeaf] = []
        self._alone = False
        self._watch: Watch | None = None
        self._scratch = HOST_BASE + 0xC000
        cpu.exit_handler = self.on_exit
        self._handlers: dict[int, Callable[[], bool]] = {
            EngineExit.NPF: self._nested_page_fault,
            EngineExit.PF: self._page_fault,
            EngineExit.DB: self._debug_exception,
            EngineExit.UD: self._undefined_opcode,
            EngineExit.VC: self._communication,
            EngineExit.MSR: self._msr,
            EngineExit.VMMCALL: self._vmmcall,
            EngineExit.HLT: self._halt,
            EngineExit.RDTSC: self._rdtsc,
            EngineExit.VINTR: self._interrupt_window,
            EngineExit.SHUTDOWN: self._shutdown,
            EngineExit.WBINVD: self._wbinvd,
            EngineExit.WRITE_CR0: self._write_cr0,
            EngineExit.WRITE_CR4: self._write_cr4,
            EngineExit.READ_CR8: self._read_cr8,
            EngineExit.WRITE_CR8: self._write_cr8,
        }
        for code, vc_code in VC_CODES.items():
            self._handlers[code] = partial(self.vc, vc_code)
        for code in _NOT_OFFERED:
            self._handlers[code] = self._undefined

    # -- dispatch ---------------------------------------------------------------------------

    def on_exit(self, code: int) -> None:
        """One event of the engine; leaves the CPU with `exit` set if the host has to know."""
        if self._alone and code not in (EngineExit.DB, EngineExit.NPF):
            self._end_alone()
        try:
            handler = self._handlers.get(code)
            if handler is not None:
                completed = handler()
            elif code < 0x100:
                completed = self._software_interrupt(code)
            elif EngineExit.EXCEPTION <= code < EngineExit.EXCEPTION + 32:
                completed = self._exception(code - EngineExit.EXCEPTION)
            elif EngineExit.READ_DR0 <= code < EngineExit.WRITE_DR0 + 16:
                completed = self._debug_register(code)
            else:
                raise AssertionError(f"the engine reported an unknown exit {code:#x}")
        except GuestFault as fault:
            self._guarded_exception(fault)
            completed = True
        except NestedFault as fault:
            self._leave_npf(fault)
            return
        except TripleFault as fault:
            self.leave(Shutdown(str(fault)))
            return
        if completed and self.exit is None:
            self.cpu.shared.skip_breakpoint = (1 << 64) - 1
            if self.events.pending:
                self.leave(DebugStop(DebugReason.EVENT, self.cpu.linear_rip))
            elif self.debug.stepping and not (code == EngineExit.DB and self._in_range()):
                self.leave(DebugStop(DebugReason.STEP, self.cpu.linear_rip))

    def leave(self, exit_: Exit) -> None:
        """Ends the run; the host or the owner of the machine gets `exit_`."""
        self.exit = exit_
        self.cpu.leave()

    def _leave_npf(self, fault: NestedFault) -> None:
        if self._alone:
            self._end_alone()
        self._note_npf(fault)
        self.leave(Npf(fault.gpa, fault.error_code, fault.row))

    def _note_npf(self, fault: NestedFault) -> None:
        self.vmcb.last_npf = LastNpf(
            fault.gpa, fault.error_code, fault.row, self.cpu.linear_rip, self.cpu.shared.ticks
        )

    def _guarded_exception(self, fault: GuestFault) -> None:
        if self._alone:
            self._end_alone()
        try:
            self.note_page_fault(fault)
            self.delivery.raise_exception(fault.vector, fault.error_code)
        except NestedFault as nested:
            self._leave_npf(nested)
        except TripleFault as triple:
            self.leave(Shutdown(str(triple)))

    def note_page_fault(self, fault: GuestFault) -> None:
        """CR2 of #PF, and of #VC 0x404 (24593, 15.36.10)."""
        if fault.address is not None and (
            fault.vector == Vector.PF
            or (fault.vector == Vector.VC and fault.error_code == PAGE_NOT_VALIDATED)
        ):
            self.cpu.cr[2] = fault.address

    def vc(self, error_code: int) -> bool:
        """#VC: the guest's own handler decides what the host gets to know."""
        self.delivery.raise_exception(Vector.VC, error_code)
        return True

    def retire(self, nbytes: int) -> bool:
        """The instruction at RIP was served here: go behind it and count it."""
        cpu = self.cpu
        rip = cpu.rip + nbytes
        cpu.rip = rip if self.paging_is_long() else rip & 0xFFFF_FFFF
        cpu.shared.ticks += 1
        cpu.interrupt_shadow = False
        if cpu.eflags_system & _TF:
            cpu.dr[6] |= _DR6_BS
            self.delivery.raise_exception(_DB, None)
        return True

    def paging_is_long(self) -> bool:
        """Whether the code is 64-bit code."""
        return bool(self.cpu.hflags & 1 << 15)

    # -- memory -----------------------------------------------------------------------------

    def paging_state(self) -> PagingState:
        """The loaded context's translation registers."""
        cpu = self.cpu
        return PagingState(
            cpu.cr[0], cpu.cr[3], cpu.cr[4], cpu.word(cpu.layout.efer), cpu.eflags_system
        )

    def translate(self, address: int, kind: AccessKind, cpl: int) -> int:
        """Linear to guest-physical (with C-bit), with all effects and faults of an access."""
        return self._walkers[self.vmpl].translate(self.paging_state(), address, kind, cpl).gpa

    def translate_leaf(
        self,
        address: int,
        kind: AccessKind,
        cpl: int,
        known: KnownTables | None = None,
    ) -> Translation:
        """translate(), with the size of the page that the address is in; `known` as there."""
        return self._walkers[self.vmpl].translate(self.paging_state(), address, kind, cpl, known)

    def translate_for_debugger(self, address: int) -> int:
        """Linear to guest-physical (with C-bit) without effects; GuestFault if not mapped."""
        return self.translate_leaf_for_debugger(address).gpa

    def translate_leaf_for_debugger(self, address: int) -> Translation:
        """translate_for_debugger(), with the size of the page that the address is in."""
        state = self.paging_state()
        return self._debug_walkers[self.vmpl].translate(state, address, AccessKind.READ, 0)

    def trace(
        self, address: int, kind: AccessKind = AccessKind.READ, *, debug: bool = False
    ) -> WalkTrace:
        """The walk of an access at the current CPL, or of a debugger's, without effects."""
        state, cpl = self.paging_state(), self.cpu.cpl
        return trace_walk(self.physical, self.vmpl, state, address, kind, cpl, debug=debug)

    def read(self, address: int, n: int, cpl: int, kind: AccessKind = AccessKind.READ) -> bytes:
        """Reads linear memory, page by page."""
        parts = []
        while n:
            chunk = min(n, PAGE_SIZE - (address & PAGE_MASK))
            gpa = self.translate(address, kind, cpl)
            try:
                parts.append(self.physical.read(self.vmpl, gpa, chunk, kind, cpl))
            except GuestFault as fault:
                fault.address = address
                raise
            address += chunk
            n -= chunk
        return b"".join(parts)

    def read_system(self, address: int, n: int) -> bytes:
        """Reads a descriptor table: as CPL 0, in whatever mode."""
        return self.read(address, n, 0)

    def write_system(self, address: int, data: bytes, cpl: int) -> None:
        """Writes an exception frame; nothing is written if any of its pages faults."""
        spans = []
        done = 0
        while done < len(data):
            at = address + done
            chunk = min(len(data) - done, PAGE_SIZE - (at & PAGE_MASK))
            gpa = self.translate(at, AccessKind.WRITE, cpl)
            try:
                self.physical.resolve(self.vmpl, gpa, AccessKind.WRITE)
            except GuestFault as fault:
                fault.address = at
                raise
            spans.append((gpa, data[done : done + chunk]))
            done += chunk
        for gpa, part in spans:
            spa = self.physical.write(self.vmpl, gpa, part)
            self.write_memory_hook(spa, len(part))

    def code_bytes(self) -> bytes:
        """Up to 15 bytes of the instruction at RIP; fewer at the end of what is mapped."""
        address = self.cpu.linear_rip
        first = min(_MAX_INSTRUCTION, PAGE_SIZE - (address & PAGE_MASK))
        cpl, fetch = self.cpu.cpl, AccessKind.FETCH
        code = self.read(address, first, cpl, fetch)
        if first < _MAX_INSTRUCTION:
            try:
                code += self.read(address + first, _MAX_INSTRUCTION - first, cpl, fetch)
            except (GuestFault, NestedFault):
                return code
        return code

    def opcode(self) -> tuple[bytes, int]:
        """The instruction's bytes, and where its opcode starts behind prefixes and REX."""
        code = self.code_bytes()
        start = 0
        while start < len(code) and code[start] in _PREFIXES:
            start += 1
        if self.paging_is_long() and start < len(code) and code[start] & 0xF0 == 0x40:
            start += 1
        return code, start

    # -- nested page faults -----------------------------------------------------------------

    def _nested_page_fault(self) -> bool:
        """The engine found no leaf: make one, or say why there must be none."""
        cpu = self.cpu
        gpa = cpu.exit_info_2
        if not (cpu.cr[0] & CR0_PG and cpu.cr[4] & CR4_PAE):
            gpa |= C_BIT
        error = cpu.error_code
        plain = gpa & ~C_BIT
        if error & _NPF_ID:
            kind = AccessKind.FETCH
        elif error & _NPF_W:
            kind = AccessKind.WRITE
        else:
            kind = AccessKind.READ
        if not gpa & C_BIT and kind is not AccessKind.FETCH and not self.memory.contains(plain):
            # An MMIO address; the hypervisor marks those reserved, so it is a #VC (15.35.5).
            raise GuestFault(Vector.VC, 0x400)
        if not gpa & C_BIT and kind is AccessKind.WRITE and self._fix_table_address(plain):
            return False
        page = plain >> PAGE_SHIFT
        permissions = self.rmp.permissions(page, self.vmpl) if gpa & C_BIT else 0
        usual = (
            permissions & _FULL_EXECUTE == _FULL_EXECUTE and permissions & int(Perm.READ)
            if gpa & C_BIT
            else kind is not AccessKind.FETCH and not self.rmp.assigned(page)
        )
        watched = self.debug.watches_page(page)
        if usual and (not watched or cpu.watches_accesses):
            writable = not gpa & C_BIT or bool(permissions & int(Perm.WRITE))
            if kind is not AccessKind.WRITE or writable:
                self._map(gpa, plain, writable=writable, watched=watched)
                return False
        try:
            _, encrypted = self.physical.resolve(self.vmpl, gpa, kind, cpu.cpl)
        except GuestFault as fault:
            fault.address = self._faulting_address(gpa)
            raise
        self._begin_transient(gpa, plain, kind, encrypted=encrypted)
        return False

    def _map(self, gpa: int, plain: int, *, writable: bool, watched: bool) -> None:
        nested = self.cpu.nested
        entry = self.rmp.lookup(plain)
        huge = entry is not None and entry.page_size is PageSize.SIZE_2M
        if gpa & C_BIT and huge and not self.debug.watches_region(plain):
            nested.map_huge_page(self.vmpl, gpa, plain, writable=writable)
        else:
            page = plain & ~PAGE_MASK
            nested.map_page(self.vmpl, gpa, page, writable=writable, watched=watched)

    def _faulting_address(self, gpa: int) -> int:
        """The linear address behind a nested fault: an operand, or the instruction itself."""
        rip = self.cpu.linear_rip
        candidates = [rip, rip + _MAX_INSTRUCTION - 1]
        for first, last in self.debug.operand_spans():
            candidates += [first, last]
        for address in candidates:
            try:
                if self.translate_for_debugger(address) ^ gpa < PAGE_SIZE:
                    return address & ~PAGE_MASK | gpa & PAGE_MASK
            except GuestFault as fault:
                if fault.vector == Vector.VC:  # a page table on the way to it
                    return address
            except NestedFault:
                continue
        return rip

    def _fix_table_address(self, plain: int) -> bool:
        """The walker's own accesses are private whatever the C-bit of the table's address is."""
        cpu = self.cpu
        if cpu.cr[3] & C_BIT or not cpu.cr[0] >> 31:
            return False
        if cpu.cr[3] & ~PAGE_MASK & (C_BIT - 1) != plain & ~PAGE_MASK:
            return False
        cpu.cr[3] |= C_BIT
        return True

    # -- one instruction on leaves of its own -----------------------------------------------

    def _begin_transient(self, gpa: int, plain: int, kind: AccessKind, *, encrypted: bool) -> None:
        """Lets one instruction see a page that must have no lasting leaf."""
        cpu = self.cpu
        page = plain & ~PAGE_MASK
        watch = self.debug.watch_hit(plain, kind)
        target = page
        if encrypted:
            cpu.put_host_page(self._scratch, self.physical.ciphertext(page))
            target = self._scratch
        writable = kind is AccessKind.WRITE and not encrypted
        cpu.nested.map_page(self.vmpl, gpa & ~PAGE_MASK, target, writable=writable)
        self._transient.append(TransientLeaf(page, watch))
        self._begin_alone()

    def _begin_alone(self) -> None:
        """The instruction at RIP is executed, and then Python is asked again."""
        cpu = self.cpu
        cpu.shared.first = 1  # nobody gets the machine back before the instruction has run
        if not self._alone:
            self._alone = True
            # It starts here, not where run() did.
            cpu.shared.first_pc = cpu.linear_rip
            cpu.shared.first_rcx = cpu.regs[RCX]
            cpu.shared.first_shadow = cpu.interrupt_shadow
            self.debug.hidden_step(True)

    def _begin_watched(self) -> bool:
        """The instruction at RIP is about to access what seems to be watched: lets it do so."""
        self._watch = self.debug.accessed() or self._watch
        self.cpu.shared.watch_off = 1
        self._begin_alone()
        return False

    def _end_alone(self) -> Watch | None:
        """Takes the leaves away; returns the watchpoint that the instruction hit."""
        hit, self._watch = self._watch, None
        self.cpu.shared.watch_off = 0
        for leaf in self._transient:
            hit = hit or leaf.watch
            self.cpu.nested.unmap(leaf.page >> PAGE_SHIFT, 1)
        self._alone = False
        self.debug.hidden_step(False)
        if self._transient:
            self._transient.clear()
            self.cpu.flush_tlb()
        return hit

    # -- exceptions -------------------------------------------------------------------------

    def _page_fault(self) -> bool:
        cpu = self.cpu
        if cpu.error_code & _PF_ID and self._breaks_at_fetch(cpu.linear_rip):
            self.leave(DebugStop(DebugReason.BREAKPOINT, cpu.linear_rip))
            return False
        cpu.cr[2] = cpu.exit_info_2
        self.delivery.raise_exception(Vector.PF, cpu.error_code)
        return True

    def _breaks_at_fetch(self, rip: int) -> bool:
        """Whether a breakpoint stops before an instruction that cannot be fetched.

        It comes first (24593, 8.5), but the engine sees it only where there is code. A
        debugger that calls a function has it return to a breakpoint on the stack.
        """
        asked = self.cpu.shared.skip_breakpoint == rip or self.debug.stepping
        return not asked and self.debug.hit(rip)

    def _exception(self, vector: int) -> bool:
        code = self.cpu.error_code if vector in ERROR_CODE_VECTORS else None
        self.delivery.raise_exception(vector, code)
        return True

    def _software_interrupt(self, vector: int) -> bool:
        cpu = self.cpu
        behind = cpu.rip
        try:
            self.delivery.software_interrupt(vector)
        except (GuestFault, NestedFault):
            cpu.rip = behind - self._software_interrupt_length(vector)
            raise
        return True

    def _software_interrupt_length(self, vector: int) -> int:
        """INT3 and INTO have one byte, INT n has two."""
        short = {3: b"\xcc", 4: b"\xce"}.get(vector)
        last = self.read(self.cpu.linear_rip - 1, 1, self.cpu.cpl, AccessKind.FETCH)
        return 1 if last == short else 2

    def _debug_exception(self) -> bool:
        cpu, shared = self.cpu, self.cpu.shared
        trap = shared.trap
        shared.trap = Trap.NONE
        if trap == Trap.BREAKPOINT:
            if self.debug.hit(cpu.linear_rip):
                self.leave(DebugStop(DebugReason.BREAKPOINT, cpu.linear_rip))
            else:
                shared.skip_breakpoint = shared.passed_breakpoint = cpu.linear_rip
                if self.debug.forget_breakpoint(cpu.linear_rip) and shared.ticks < shared.deadline:
                    # Gone since it was armed: without it the run is as fast as before.
                    self.leave(Paused())
            return False
        if trap == Trap.WATCH:
            return self._begin_watched()
        if trap == Trap.CODE_PAGE:
            self.debug.code_page(cpu.linear_rip)
            return False
        if trap == Trap.SHARED_FETCH:
            rip = cpu.linear_rip
            # A block ends on the page that it starts on, or with an instruction across its end.
            for address in (rip, (rip | PAGE_MASK) + 1):
                gpa = self.translate(address, AccessKind.FETCH, cpu.cpl)
                cpu.forget_code(self.memory.offset_of(gpa & ~C_BIT & ~PAGE_MASK), PAGE_SIZE)
                self.physical.resolve(self.vmpl, gpa, AccessKind.FETCH, cpu.cpl)
            raise AssertionError("the engine refused a fetch that the RMP allows")
        guests_own = bool(cpu.eflags_system & _TF) or not self.debug.hidden
        if not guests_own:
            self._repeat_last_pass()
        hit = self._end_alone() if self._alone else None
        if guests_own:
            self.delivery.raise_exception(_DB, None)
        else:
            cpu.dr[6] &= ~_DR6_BS
        if hit is not None:
            self.leave(DebugStop(hit.reason, hit.address))
        return True

    def _in_range(self) -> bool:
        """Whether the step that has just been completed goes on (DebugSupport.set_stepping)."""
        cpu, shared = self.cpu, self.cpu.shared
        if (
            not shared.range_left
            or not 0 <= cpu.linear_rip - shared.range_start < shared.range_size
            or cpu.cpl != shared.range_cpl
            or cpu.cr[3] != shared.range_cr3
            or shared.stop
        ):
            return False
        shared.range_left -= 1
        shared.range_steps += 1
        shared.first = 1
        shared.next_check = 0
        return True

    def _repeat_last_pass(self) -> None:
        """Makes a stepped REP take the pass in which it finds RCX to be 0, as a free run does.

        With the single-step flag the translator tests RCX after an iteration too, and so saves
        that pass, which counts as an instruction.
        """
        cpu, shared = self.cpu, self.cpu.shared
        # Whatever the width of the counter is: most steps end here, without a look at the code.
        if shared.first_rcx & 0xFFFF != 1 or cpu.regs[RCX] & 0xFFFF:
            return
        length = cpu.linear_rip - shared.first_pc
        if not 2 <= length <= _MAX_INSTRUCTION or shared.first_shadow:
            return
        code = self.read(shared.first_pc, length, cpu.cpl, AccessKind.FETCH)
        opcode = code[-1]
        repeated = 0xF3 in code[:-1] or 0xF2 in code[:-1]
        if opcode not in _STRING_OPCODES or not repeated:
            return
        mask = self._address_mask(other=0x67 in code[:-1])
        if shared.first_rcx & mask != 1 or cpu.regs[RCX] & mask:
            return
        if opcode in _STRING_COMPARES and bool(cpu.rflags & _ZF) != (0xF3 in code[:-1]):
            return
        cpu.rip -= length

    def _address_mask(self, *, other: bool) -> int:
        """Of the bits of an address; `other`: the instruction has an address-size prefix."""
        if self.paging_is_long():
            return 0xFFFF_FFFF if other else (1 << 64) - 1
        return 0xFFFF_FFFF if bool(self.cpu.hflags & HF_CS32) != other else 0xFFFF

    def _undefined(self) -> bool:
        self.delivery.raise_exception(Vector.UD, None)
        return True

    def _undefined_opcode(self) -> bool:
        cpu = self.cpu
        if self.vmpl == 0 and cpu.cpl == 0:
            gate = self.gates.get(cpu.linear_rip)
            if gate is not None:
                gate()
                return self.retire(2)
        code, start = self.opcode()
        operation = code[start : start + 3]
        if operation[:2] == b"\x0f\x01" and self.instructions.execute(code[:start], operation):
            return True
        if operation[:2] == b"\x0f\xc7" and len(operation) == 3 and operation[2] >= 0xF0:
            if _NOT_RDRAND & set(code[:start]):
                return self._undefined()
            return self._rdrand(code, start)
        return self._undefined()

    def _rdrand(self, code: bytes, start: int) -> bool:
        """RDRAND (0F C7 /6) and RDSEED (/7), from the machine's one source of entropy."""
        rex = code[start - 1] if start and code[start - 1] & 0xF0 == 0x40 else 0
        register = code[start + 2] & 7 | (8 if rex & 1 else 0)
        size = 8 if rex & 8 else 2 if b"\x66" in code[:start] else 4
        value = self.random(size)
        if size == 2:
            value |= self.cpu.regs[register] & ~0xFFFF
        self.cpu.regs[register] = value
        self.set_arithmetic_flags(_CF)
        return self.retire(start + 3)

    def random(self, nbytes: int) -> int:
        """What RDRAND and RDSEED give."""
        return int.from_bytes(self._entropy.read(nbytes), "little")

    def set_arithmetic_flags(self, value: int) -> None:
        """CF, PF, AF, ZF, SF and OF become exactly `value`."""
        self.cpu.rflags = self.cpu.rflags & ~_ARITHMETIC | value

    # -- instructions -----------------------------------------------------------------------

    def _communication(self) -> bool:
        """IN, OUT, INS, OUTS: allowed by IOPL and the TSS bitmap, then #VC 0x7B."""
        shared = self.cpu.shared
        self._check_io_permission(shared.io_port, shared.io_size)
        return self.vc(0x7B)

    def _check_io_permission(self, port: int, size: int) -> None:
        """24593, 12.2.4: #GP(0) unless IOPL or the bitmap of the TSS allows the port."""
        cpu, lay = self.cpu, self.cpu.layout
        flags = cpu.eflags_system
        if not cpu.cr[0] & 1 or (cpu.cpl <= (flags >> 12) & 3 and not flags & 1 << 17):
            return
        base, limit = cpu.word(lay.tr + 8), cpu.half(lay.tr + 16)
        if limit < 0x67:
            raise GuestFault(Vector.GP, 0)
        bitmap = int.from_bytes(self.read_system(base + 0x66, 2), "little")
        offset = bitmap + port // 8
        if offset + 1 > limit:
            raise GuestFault(Vector.GP, 0)
        bits = int.from_bytes(self.read_system(base + offset, 2), "little") >> (port % 8)
        if bits & ((1 << size) - 1):
            raise GuestFault(Vector.GP, 0)

    def _msr(self) -> bool:
        cpu = self.cpu
        index = cpu.regs[1] & 0xFFFF_FFFF
        if cpu.error_code & 1:
            value = (cpu.regs[0] & 0xFFFF_FFFF) | (cpu.regs[2] & 0xFFFF_FFFF) << 32
            self._write_msr(index, value)
        else:
            self._return_msr(self.read_msr(index))
        return self.retire(cpu.shared.insn_length)

    def read_msr(self, index: int) -> int:
        """RDMSR at CPL 0 of an MSR that the engine does not have itself.

        Raises:
            GuestFault: #VC, as the host intercepts it.
        """
        cpu = self.cpu
        if index == MSR_GHCB:
            return cpu.shared.ghcb_msr
        if index == SEV_STATUS_MSR:
            return self.sev_status
        if index == MSR_EFER:
            return cpu.word(cpu.layout.efer)
        if index == MSR_TSC and self.secure_tsc:
            return self.tsc
        if index == MSR_GUEST_TSC_FREQ and self.secure_tsc:
            return guest_tsc_mhz(cpu.shared.tsc_scale)
        raise GuestFault(Vector.VC, _VC_MSR)

    def _write_msr(self, index: int, value: int) -> None:
        """WRMSR, likewise.

        The host intercepts a write to the TSC even with Secure TSC, as what is read afterwards is
        undefined (24593, 15.36.18).
        """
        if index == MSR_GHCB:
            self.cpu.shared.ghcb_msr = value
        elif index == MSR_EFER:
            self.set_efer(value)
        elif index == SEV_STATUS_MSR or (index == MSR_GUEST_TSC_FREQ and self.secure_tsc):
            raise GuestFault(Vector.GP, 0)
        else:
            raise GuestFault(Vector.VC, _VC_MSR)

    def load_sev_features(self, vmsa: Vmsa) -> None:
        """VMRUN: SEV_STATUS, and whose the TSC is: the guest's (24593, 15.36.18), or the clock."""
        features = vmsa.sev_features
        self.sev_status = features << SEV_STATUS_FEATURES_SHIFT | _SEV_ENABLED
        self.secure_tsc = bool(features & SevFeatures.SECURE_TSC)
        shared = self.cpu.shared
        shared.tsc_scale, shared.tsc_offset = TSC_SCALE_ONE, 0
        if self.secure_tsc:
            shared.tsc_scale = usable_scale(vmsa.guest_tsc_scale)
            shared.tsc_offset = vmsa.guest_tsc_offset

    @property
    def tsc(self) -> int:
        """What RDTSC gives."""
        shared = self.cpu.shared
        return guest_tsc(shared.ticks, shared.tsc_scale, shared.tsc_offset)

    def _return_msr(self, value: int) -> None:
        self.cpu.regs[0] = value & 0xFFFF_FFFF
        self.cpu.regs[2] = value >> 32

    def set_efer(self, value: int) -> None:
        """WRMSR of EFER (24593, 3.1.7). Raises GuestFault, with nothing changed."""
        cpu, lay = self.cpu, self.cpu.layout
        old = cpu.word(lay.efer)
        if value & ~(_EFER_WRITABLE | _EFER_LMA):
            raise GuestFault(Vector.GP, 0)
        if (value ^ old) & _EFER_LME and cpu.cr[0] >> 31:
            raise GuestFault(Vector.GP, 0)
        cpu.set_word(lay.efer, value & _EFER_WRITABLE | old & _EFER_LMA | EFER_SVME)
        cpu.flush_tlb()

    def _write_cr0(self) -> bool:
        """MOV to CR0, CLTS, LMSW (24593, 3.1.1 and 14.6): paging decides about the C-bit."""
        cpu = self.cpu
        code, start = self.opcode()
        operation = code[start + 1]
        value = cpu.cr[0]
        if operation == _OP_CLTS:
            value &= ~_CR0_TS
        elif operation == _OP_MOV_CR:
            value = cpu.regs[_general_register(code, start)]
        else:
            value = value & ~0xE | self._lmsw_operand(code[start + 2]) & 0xF | value & _CR0_PE
        self.set_cr0(value)
        return self.retire(cpu.shared.insn_length)

    def _read_cr8(self) -> bool:
        operand, start = self.opcode()
        self.cpu.regs[_general_register(operand, start)] = self.vmcb.v_tpr
        return self.retire(start + 3)

    def _write_cr8(self) -> bool:
        """MOV to CR8 traps: its host may have an interrupt that was held back (15.35.4)."""
        operand, start = self.opcode()
        value = self.cpu.regs[_general_register(operand, start)]
        if value & ~0xF:
            raise GuestFault(Vector.GP, 0)
        self.vmcb.v_tpr = value
        self.retire(start + 3)
        self.leave(Cr8WriteTrap())
        return True

    def _lmsw_operand(self, modrm: int) -> int:
        if modrm >= 0xC0:
            return self.cpu.regs[modrm & 7] & 0xFFFF
        ((address, _),) = self.debug.operand_spans()[:1] or ((0, 0),)
        return int.from_bytes(self.read(address, 2, self.cpu.cpl), "little")

    def set_cr0(self, value: int) -> None:
        """MOV to CR0 (24593, 3.1.1). Raises GuestFault, with nothing changed."""
        cpu, lay = self.cpu, self.cpu.layout
        if value >> 32 or not legal_cr0(value):
            raise GuestFault(Vector.GP, 0)
        efer = cpu.word(lay.efer)
        turned = (value ^ cpu.cr[0]) & CR0_PG
        if turned and value & CR0_PG and efer & _EFER_LME:
            if not cpu.cr[4] & CR4_PAE or cpu.half(lay.segment(CS) + 20) & _CODE_L:
                raise GuestFault(Vector.GP, 0)
            efer |= _EFER_LMA
        elif turned and not value & CR0_PG:
            if self.paging_is_long():
                raise GuestFault(Vector.GP, 0)
            efer &= ~_EFER_LMA
        cpu.set_word(lay.efer, efer)
        cpu.cr[0] = value | _CR0_ET
        cpl = cpu.cpl if value & _CR0_PE else 0
        cpu.hflags = mode_flags(cpu, cpl, shadow=cpu.interrupt_shadow)
        if turned:
            cpu.select_nested_tables(self.vmpl)
        else:
            cpu.flush_tlb()

    def _write_cr4(self) -> bool:
        cpu = self.cpu
        code, start = self.opcode()
        rex = code[start - 1] if start and code[start - 1] & 0xF0 == 0x40 else 0
        value = cpu.regs[code[start + 2] & 7 | (8 if rex & 1 else 0)]
        if not self.paging_is_long():
            value &= 0xFFFF_FFFF
        self.set_cr4(value)
        return self.retire(cpu.shared.insn_length)

    def set_cr4(self, value: int) -> None:
        """MOV to CR4 (24593, 3.1.3): only what CPUID offers can be set.

        Raises GuestFault, with nothing changed.
        """
        cpu = self.cpu
        if value & ~CR4_OFFERED:
            raise GuestFault(Vector.GP, 0)
        if cpu.word(cpu.layout.efer) & _EFER_LMA and not value & CR4_PAE:
            raise GuestFault(Vector.GP, 0)
        cpu.cr[4] = value
        cpu.hflags = mode_flags(cpu, cpu.cpl, shadow=cpu.interrupt_shadow)
        cpu.select_nested_tables(self.vmpl)

    def _vmmcall(self) -> bool:
        code, start = self.opcode()
        if b"\xf3" not in code[:start] and b"\xf2" not in code[:start]:
            return self.vc(0x81)
        self.retire(start + 3)
        self.leave(Vmgexit())
        return True

    def _wbinvd(self) -> bool:
        """WBINVD, and INVD, which the engine reports as the same."""
        code, start = self.opcode()
        return self.vc(0x76 if code[start + 1] == _OP_INVD else 0x89)

    def _halt(self) -> bool:
        trapped = bool(self.cpu.eflags_system & _TF)
        self.retire(self.cpu.shared.insn_length)
        if trapped:
            return True  # its #DB woke the CPU up
        if self.vmcb.v_irq is not None and self.cpu.eflags_system & _IF:
            return self._interrupt_window()
        self.leave(Hlt())
        return True

    def _rdtsc(self) -> bool:
        """RDTSC, and RDTSCP, which the engine reports as the same."""
        code, start = self.opcode()
        rdtscp = code[start : start + 2] == b"\x0f\x01"
        if self.vmcb.intercept_rdtsc:
            return self.vc(0x87 if rdtscp else 0x6E)
        self._return_msr(self.tsc)
        if rdtscp:
            self.cpu.regs[1] = self.cpu.word(self.cpu.layout.tsc_aux) & 0xFFFF_FFFF
        return self.retire(self.cpu.shared.insn_length)

    def _debug_register(self, code: int) -> bool:
        """MOV to and from DR0 to DR6: the guest's own registers, without debug swap (15.35.4)."""
        operand, start = self.opcode()
        register = _general_register(operand, start)
        number = code & 0xF
        write = code >= EngineExit.WRITE_DR0
        if number in (4, 5):
            if self.cpu.cr[4] & _CR4_DE:
                return self._undefined()
            number += 2
        if number == _DR7:
            return self.vc(0x37 if write else 0x27)
        if write:
            self.set_debug_register(number, self.cpu.regs[register])
        else:
            self.cpu.regs[register] = self.cpu.dr[number]
        return self.retire(start + 3)

    def set_debug_register(self, number: int, value: int) -> None:
        """MOV to DR0 to DR3 or DR6 (24593, 13.1.1). Raises GuestFault, with nothing changed."""
        if number == _DR6:
            if value >> 32:
                raise GuestFault(Vector.GP, 0)
            value = value & _DR6_WRITABLE | _DR6_ONES
        self.cpu.dr[number] = value

    # -- interrupts -------------------------------------------------------------------------

    def arm_interrupts(self) -> Exit | None:
        """At VMRUN: what the host asks for is taken as soon as the guest allows it.

        Returns:
            An exit, if the delivery of an NMI ended as one.
        """
        cpu, vmcb = self.cpu, self.vmcb
        cpu.shared.v_irq = -1 if vmcb.v_irq is None else vmcb.v_irq
        cpu.set_interrupt_window(vmcb.v_irq is not None)
        if vmcb.v_nmi:
            try:
                self.delivery.interrupt(NMI)
                vmcb.v_nmi = False
            except NestedFault as fault:
                self._note_npf(fault)
                return Npf(fault.gpa, fault.error_code, fault.row)
            except TripleFault as fault:
                return Shutdown(str(fault))
        return None

    def take_exit(self) -> Exit:
        """What leave() was called with."""
        exit_ = self.exit
        assert exit_ is not None
        self.exit = None
        return exit_

    def _interrupt_window(self) -> bool:
        """RFLAGS.IF is set and no interrupt shadow is there."""
        # Whatever comes of it: the engine would report the open window for ever.
        self.cpu.set_interrupt_window(False)
        vector = self.vmcb.v_irq
        if vector is not None:
            # If the delivery ends as a nested fault, the interrupt is still there.
            self.delivery.interrupt(vector)
            self.vmcb.v_irq = None
        self.cpu.shared.v_irq = -1
        return True

    def _shutdown(self) -> bool:
        self.leave(Shutdown("the CPU shut down"))
        return True


def _general_register(code: bytes, start: int) -> int:
    """Number of the register in ModRM.rm of a MOV to or from a control or debug register.

    `start` is where its 0F is; a REX prefix stands right before that.
    """
    rex = code[start - 1] if start and code[start - 1] & 0xF0 == 0x40 else 0
    return code[start + 2] & 7 | (8 if rex & 1 else 0)
