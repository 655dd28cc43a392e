# SPDX-License-Identifier: MIT
"""The registers of the loaded context by their names, for a debugger.

Spec: names as in 24593; widths in svsmd/gdbstub/target_xml.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from svsmd.snp.cpu_mode import mode_of
from svsmd.snp.engine_layout import HF_CS32, HF_CS64
from svsmd.snp.register_names import CONTROL, GENERAL, MSRS, SEGMENTS
from svsmd.snp.register_writes import RegisterWrites

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_XMM: Final = struct.Struct("16s48x" * 16)
_FPU: Final = struct.Struct("<12xIHH8s4x" + "10s6x" * 8)
"""From EFER on: top of stack, status and control word, empty tags, eight registers."""


class UnknownRegister(LookupError):
    """There is no such register."""


class X87(NamedTuple):
    """x87 state as FXSAVE has it; `stack` is ST0 to ST7, 10 bytes each."""

    stack: bytes
    fcw: int
    fsw: int
    ftw: int


class RegisterFile:
    """Reads and writes the registers that are in the CPU now.

    Args:
        forget_translations: see RegisterWrites.
    """

    def __init__(self, processor: Processor, forget_translations: Callable[[], None]) -> None:
        self._processor = processor
        self._cpu = cpu = processor.cpu
        self._writes = RegisterWrites(processor, forget_translations)
        self._xmm = cpu.bytes_at(cpu.layout.xmm, _XMM.size)
        self._fpu = cpu.bytes_at(cpu.layout.efer, _FPU.size)

    # -- in bulk ----------------------------------------------------------------------------

    def general(self) -> list[int]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15."""
        return self._cpu.regs[:]

    def selectors(self) -> list[int]:
        """Of ES, CS, SS, DS, FS, GS, LDTR, TR."""
        return [self._cpu.selector(index) for index in range(8)]

    @property
    def linear_rip(self) -> int:
        """RIP plus the base of CS."""
        return self._cpu.linear_rip

    @property
    def rflags(self) -> int:
        """RFLAGS."""
        return self._cpu.rflags

    @property
    def mxcsr(self) -> int:
        """MXCSR."""
        return self._cpu.half(self._cpu.layout.mxcsr)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self._cpu.cpl

    @property
    def interrupt_shadow(self) -> bool:
        """Whether the next instruction runs in the shadow of STI or MOV SS."""
        return self._cpu.interrupt_shadow

    @property
    def code_bits(self) -> int:
        """Of the code that runs: 64, 32 or 16."""
        flags = self._cpu.hflags
        return 64 if flags & HF_CS64 else 32 if flags & HF_CS32 else 16

    def attributes(self, segment: str) -> int:
        """Of a segment, where the second word of a descriptor has them (24593, 4.7)."""
        return self._cpu.half(self._cpu.layout.segment(SEGMENTS.index(segment)) + 20)

    def vectors(self) -> bytes:
        """XMM0 to XMM15, 16 bytes each."""
        return b"".join(_XMM.unpack_from(self._xmm))

    def x87(self) -> X87:
        """The x87 registers."""
        top, status, control, empty, *registers = _FPU.unpack_from(self._fpu)
        top &= 7
        stack = b"".join(registers[top:] + registers[:top])
        tags = 0
        if any(empty):
            tags = sum(3 << (2 * i) for i in range(8) if empty[i])
        return X87(stack, control, status & ~0x3800 | top << 11, tags)

    # -- by name ----------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """Value of a register. DR7 is none of those that are here: the host keeps a guest's.

        Raises:
            UnknownRegister: there is none of that name.
        """
        cpu, lay = self._cpu, self._cpu.layout
        if name in MSRS:
            return cpu.word(getattr(lay, MSRS[name]))
        if name == "cr8":
            return self._processor.vmcb.v_tpr
        if name in CONTROL:
            return cpu.cr[CONTROL[name]]
        if name.startswith("dr") and name[2:] in ("0", "1", "2", "3", "6"):
            return cpu.dr[int(name[2:])]
        match name:
            case "efer":
                return cpu.word(lay.efer)
            case "vmpl":
                return cpu.vmpl
            case "cpu_mode":
                return mode_of(cpu)
            case "pc_lin":
                return cpu.linear_rip
            case "sysenter_cs":
                return cpu.half(lay.sysenter_cs)
            case "sev_status":
                return self._processor.sev_status
            case "tsc":
                return self._processor.tsc
        segment, _, part = name.partition("_")
        if segment in SEGMENTS:
            index = SEGMENTS.index(segment)
            if part == "base":
                return cpu.segment_base(index)
            if part == "limit":
                return cpu.half(lay.segment(index) + 16)
            if not part:
                return cpu.selector(index)
        raise UnknownRegister(f"there is no register {name}")

    def value(self, name: str) -> int:
        """Any register of up to 64 bits that the `g` packet or `read` has.

        Raises:
            UnknownRegister: there is none of that name.
        """
        if name in GENERAL:
            return self._cpu.regs[GENERAL.index(name)]
        match name:
            case "rip":
                return self.linear_rip
            case "eflags":
                return self.rflags
            case "mxcsr":
                return self.mxcsr
            case "fctrl":
                return self.x87().fcw
            case "fstat":
                return self.x87().fsw
            case "ftag":
                return self.x87().ftw
            case _:
                return self.read(name)

    def write(self, name: str, value: int) -> None:
        """See RegisterWrites.write()."""
        self._writes.write(name, value)
