# SPDX-License-Identifier: MIT
"""Delivery of exceptions and interrupts through the guest's IDT.

The engine reports events and leaves their delivery to the silicon. 64-bit and 32-bit protected
mode are here, with stack switches by TSS and IST.

Spec: 24593, 8.7 (legacy protected mode), 8.9 (long mode), 8.2 (vectors and their error codes).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from svsmd.snp.cpu_unicorn import CS, SS
from svsmd.snp.events import EventClass
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, Vector
from svsmd.snp.page_walk import EFER_LMA
from svsmd.snp.segment_descriptor import segment_base, segment_flags, segment_limit
from svsmd.snp.vmsa_state import engine_flags, mode_flags

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

ERROR_CODE_VECTORS: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
"""Vectors that push an error code (24593, table 8-1)."""
CONTRIBUTORY: Final = frozenset((0, 10, 11, 12, 13, 29))
"""Exceptions of which two in a row make #DF (24593, table 8-3); #VC counts as contributory."""
DOUBLE_FAULT: Final = 8
_SELECTOR_ERRORS: Final = (10, 11, 12, 13)
_EXT: Final = 1 << 0
"""Bit of a selector error code: the event came from outside (24593, 8.4.1)."""
NMI: Final = 2
DEBUG: Final = 1

_VC_EVENT: Final = EventClass.VC.bit

_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_FLAT_CODE_64: Final = 0x00A0_9B00
_L_BIT, _D_BIT = 1 << 9, 1 << 10


class TripleFault(Exception):
    """A fault while #DF was being delivered."""


class InterruptDelivery:
    """Pushes frames and switches to handlers, for the state that is loaded in the CPU."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._cpu = processor.cpu

    def raise_exception(self, vector: int, error_code: int | None) -> None:
        """Delivers an exception, or what becomes of it when its delivery faults.

        Raises:
            TripleFault: also #DF could not be delivered.
            NestedFault: delivery touched memory that the RMP refuses.
        """
        if vector == Vector.VC and self._p.events.armed & _VC_EVENT:
            self._tell_vc(error_code or 0)
        try:
            self._deliver(vector, error_code, fault=vector != DEBUG)
        except GuestFault as fault:
            self._second_fault(vector, fault)

    def _tell_vc(self, code: int) -> None:
        gva = self._cpu.cr[2] if code == PAGE_NOT_VALIDATED else 0
        self._p.events.note(EventClass.VC, {"code": code, "gva": gva, "cpl": self._cpu.cpl})

    def _second_fault(self, first: int, fault: GuestFault) -> None:
        if first == DOUBLE_FAULT:
            raise TripleFault(f"{fault} while #DF was delivered") from fault
        self._p.note_page_fault(fault)
        second = fault.vector
        double = (first in CONTRIBUTORY and second in CONTRIBUTORY) or (
            first == Vector.PF and (second in CONTRIBUTORY or second == Vector.PF)
        )
        if double:
            self.raise_exception(DOUBLE_FAULT, 0)
        else:
            self.raise_exception(second, fault.error_code)

    def interrupt(self, vector: int) -> None:
        """Delivers an external interrupt or an NMI."""
        try:
            self._deliver(vector, None)
        except GuestFault as fault:
            self._p.note_page_fault(fault)
            code = fault.error_code
            if fault.vector in _SELECTOR_ERRORS and code is not None:
                code |= _EXT
            self.raise_exception(fault.vector, code)

    def software_interrupt(self, vector: int) -> None:
        """INT n, INT3, INTO: RIP is behind the instruction already."""
        self._deliver(vector, None, software=True)

    def _deliver(
        self, vector: int, error_code: int | None, *, software: bool = False, fault: bool = False
    ) -> None:
        if self._cpu.word(self._cpu.layout.efer) & EFER_LMA:
            self._deliver_long(vector, error_code, software=software, fault=fault)
        elif self._cpu.cr[0] & 1:
            self._deliver_protected(vector, error_code, software=software)
        else:
            self._deliver_real(vector)

    def _gate_error(self, vector: int) -> GuestFault:
        return GuestFault(Vector.GP, vector * 8 + 2)

    def _deliver_long(
        self, vector: int, error_code: int | None, *, software: bool, fault: bool
    ) -> None:
        cpu, p = self._cpu, self._p
        lay = cpu.layout
        idt_base, idt_limit = cpu.word(lay.idt + 8), cpu.half(lay.idt + 16)
        if vector * 16 + 15 > idt_limit:
            raise self._gate_error(vector)
        low, high = struct.unpack("<QQ", p.read_system(idt_base + vector * 16, 16))
        kind = (low >> 40) & 0x1F
        if kind not in (_INTERRUPT_GATE, _TRAP_GATE):
            raise self._gate_error(vector)
        cpl = cpu.cpl
        if software and (low >> 45) & 3 < cpl:
            raise self._gate_error(vector)
        if not low & 1 << 47:
            raise GuestFault(11, vector * 8 + 2)
        target = (low & 0xFFFF) | (low >> 32) & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        selector, ist = (low >> 16) & 0xFFFF, (low >> 32) & 7
        code = self._code_descriptor(selector)
        if not code & _L_BIT << 44 or code & _D_BIT << 44:
            raise GuestFault(Vector.GP, selector & 0xFFFC)
        dpl = (code >> 45) & 3
        conforming = code >> 42 & 1
        if dpl > cpl:
            raise GuestFault(Vector.GP, selector & 0xFFFC)
        new_cpl = cpl if conforming else dpl
        rsp = old_rsp = cpu.regs[4]
        if ist:
            rsp = self._tss_word(0x24 + 8 * (ist - 1))
        elif new_cpl != cpl:
            rsp = self._tss_word(4 + 8 * new_cpl)
        if (rsp >> 47) not in (0, 0x1FFFF):
            raise GuestFault(12, 0)
        if (target >> 47) not in (0, 0x1FFFF):
            raise GuestFault(Vector.GP, 0)
        rsp &= ~15
        cs, ss = cpu.selector(CS), cpu.selector(SS)
        flags = cpu.rflags
        pushed = flags | _RF if fault else flags
        frame = struct.pack("<5Q", cpu.rip, cs, pushed, old_rsp, ss)
        if error_code is not None:
            frame = struct.pack("<Q", error_code & 0xFFFF_FFFF) + frame
        rsp -= len(frame)
        p.write_system(rsp, frame, new_cpl)
        cpu.regs[4] = rsp
        cpu.rip = target
        self._new_flags(kind)
        cpu.set_segment(CS, selector & ~3 | new_cpl, 0, 0xFFFF_FFFF, segment_flags(code))
        if new_cpl != cpl:
            cpu.set_segment(SS, new_cpl, 0, 0, 0)
        cpu.hflags = mode_flags(cpu, new_cpl, shadow=False)

    def _new_flags(self, kind: int) -> None:
        clear = _TF | _NT | _RF | _VM | (_IF if kind == _INTERRUPT_GATE else 0)
        self._cpu.eflags_system &= ~clear

    def _descriptor(self, selector: int, vector: int = Vector.GP) -> int:
        cpu, lay = self._cpu, self._cpu.layout
        table = lay.ldt if selector & 4 else lay.gdt
        base, limit = cpu.word(table + 8), cpu.half(table + 16)
        if selector & 0xFFFC == 0 or (selector | 7) > limit:
            raise GuestFault(vector, selector & 0xFFFC)
        (descriptor,) = struct.unpack("<Q", self._p.read_system(base + (selector & 0xFFF8), 8))
        return int(descriptor)

    def _code_descriptor(self, selector: int) -> int:
        code = self._descriptor(selector)
        if (code >> 43) & 3 != 3:  # S and the code bit
            raise GuestFault(Vector.GP, selector & 0xFFFC)
        if not code & 1 << 47:
            raise GuestFault(11, selector & 0xFFFC)
        return code

    def _tss_word(self, offset: int) -> int:
        cpu, lay = self._cpu, self._cpu.layout
        base, limit = cpu.word(lay.tr + 8), cpu.half(lay.tr + 16)
        if offset + 7 > limit:
            raise GuestFault(10, cpu.half(lay.tr) & 0xFFFC)
        return int.from_bytes(self._p.read_system(base + offset, 8), "little")

    def _deliver_protected(self, vector: int, error_code: int | None, *, software: bool) -> None:
        cpu, p, lay = self._cpu, self._p, self._cpu.layout
        idt_base, idt_limit = cpu.word(lay.idt + 8), cpu.half(lay.idt + 16)
        if vector * 8 + 7 > idt_limit:
            raise self._gate_error(vector)
        (gate,) = struct.unpack("<Q", p.read_system(idt_base + vector * 8, 8))
        kind = (gate >> 40) & 0x1F
        if kind not in (_INTERRUPT_GATE, _TRAP_GATE):  # no task gates, no 16-bit gates
            raise self._gate_error(vector)
        cpl = cpu.cpl
        if software and (gate >> 45) & 3 < cpl:
            raise self._gate_error(vector)
        if not gate & 1 << 47:
            raise GuestFault(11, vector * 8 + 2)
        target = (gate & 0xFFFF) | (gate >> 32) & 0xFFFF_0000
        selector = (gate >> 16) & 0xFFFF
        code = self._code_descriptor(selector)
        dpl = (code >> 45) & 3
        new_cpl = cpl if code >> 42 & 1 else dpl
        if new_cpl > cpl:
            raise GuestFault(Vector.GP, selector & 0xFFFC)
        ss_base, esp = cpu.segment_base(SS), cpu.regs[4] & 0xFFFF_FFFF
        words = [cpu.rip, cpu.selector(CS), cpu.rflags]
        new_ss = None
        if new_cpl != cpl:
            tss = cpu.word(lay.tr + 8)
            esp_ss = p.read_system(tss + 4 + 8 * new_cpl, 8)
            stack, selector_ss = struct.unpack("<II", esp_ss)
            words += [esp, cpu.selector(SS)]
            descriptor = self._descriptor(selector_ss & 0xFFFF, 10)
            new_ss = (selector_ss & 0xFFFF, descriptor)
            esp, ss_base = stack, segment_base(descriptor)
        if error_code is not None:
            words.insert(0, error_code)
        frame = struct.pack(f"<{len(words)}I", *(w & 0xFFFF_FFFF for w in words))
        esp = (esp - len(frame)) & 0xFFFF_FFFF
        p.write_system((ss_base + esp) & 0xFFFF_FFFF, frame, new_cpl)
        cpu.regs[4] = esp
        cpu.rip = target
        self._new_flags(kind)
        flags = segment_flags(code)
        cpu.set_segment(CS, selector & ~3 | new_cpl, segment_base(code), segment_limit(code), flags)
        if new_ss is not None:
            ss_selector, descriptor = new_ss
            ss_flags = segment_flags(descriptor)
            cpu.set_segment(
                SS, ss_selector, segment_base(descriptor), segment_limit(descriptor), ss_flags
            )
        cpu.hflags = mode_flags(cpu, new_cpl, shadow=False)

    def _deliver_real(self, vector: int) -> None:
        cpu, p, lay = self._cpu, self._p, self._cpu.layout
        if vector * 4 + 3 > cpu.half(lay.idt + 16):
            raise GuestFault(Vector.GP, None)
        base = cpu.word(lay.idt + 8)
        ip, cs = struct.unpack("<HH", p.read_system(base + vector * 4, 4))
        sp = (cpu.regs[4] - 6) & 0xFFFF
        frame = struct.pack("<3H", cpu.rip & 0xFFFF, cpu.selector(CS), cpu.rflags & 0xFFFF)
        p.write_system(cpu.segment_base(SS) + sp, frame, 0)
        cpu.regs[4] = cpu.regs[4] & ~0xFFFF | sp
        cpu.rip = ip
        cpu.eflags_system &= ~(_TF | _IF | _RF)
        cpu.set_segment(CS, cs, cs << 4, 0xFFFF, engine_flags(0x9B))
        cpu.hflags = mode_flags(cpu, 0, shadow=False)
