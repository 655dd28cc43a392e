# SPDX-License-Identifier: MIT
"""The registers of the loaded context by their names, for a debugger.

Spec: names as in 24593; widths in svsmd/gdbstub/target_xml.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from unicorn import x86_const as x86

from svsmd.snp.cpu_unicorn import UnicornCpu
from svsmd.snp.register_names import CONTROL, GENERAL, MSRS, SEGMENTS
from svsmd.snp.vmsa_state import mode_flags

_SEGMENT_STRIDE: Final = 24
_VECTOR_STRIDE: Final = 64
_HF_CS32: Final = 1 << 4
_HF_CS64: Final = 1 << 15
_XMM: Final = struct.Struct("16s48x" * 16)
_FPU: Final = struct.Struct("<12xIHH8s4x" + "10s6x" * 8)
"""From EFER on: top of stack, status and control word, empty tags, eight registers."""


class UnknownRegister(LookupError):
    """There is no such register, or it cannot be written."""


class X87(NamedTuple):
    """x87 state as FXSAVE has it; `stack` is ST0 to ST7, 10 bytes each."""

    stack: bytes
    fcw: int
    fsw: int
    ftw: int


class RegisterFile:
    """Reads and writes the registers that are in the CPU now.

    CR8 is not in the CPU: `task_priority` tells what it is.
    """

    def __init__(self, cpu: UnicornCpu, task_priority: Callable[[], int]) -> None:
        self._cpu = cpu
        self._task_priority = task_priority
        self._xmm = cpu.bytes_at(cpu.layout.xmm, _XMM.size)
        self._fpu = cpu.bytes_at(cpu.layout.efer, _FPU.size)
        self._selector_offsets = [
            (cpu.layout.segs + _SEGMENT_STRIDE * index) for index in range(len(SEGMENTS))
        ]

    # -- in bulk ----------------------------------------------------------------------------

    def general(self) -> list[int]:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15."""
        return self._cpu.regs[:]

    def selectors(self) -> list[int]:
        """Of ES, CS, SS, DS, FS, GS, LDTR, TR."""
        cpu = self._cpu
        return [cpu.half(offset) & 0xFFFF for offset in self._selector_offsets[:8]]

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
        return 64 if flags & _HF_CS64 else 32 if flags & _HF_CS32 else 16

    def attributes(self, segment: str) -> int:
        """Of a segment, where the second word of a descriptor has them (24593, 4.7)."""
        return self._cpu.half(self._selector_offsets[SEGMENTS.index(segment)] + 20)

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
        """Value of a register.

        Raises:
            UnknownRegister: there is none of that name.
        """
        cpu, lay = self._cpu, self._cpu.layout
        if name in MSRS:
            return cpu.word(getattr(lay, MSRS[name]))
        if name == "cr8":
            return self._task_priority()
        if name in CONTROL:
            return cpu.cr[CONTROL[name]]
        if name.startswith("dr") and name[2:] in ("0", "1", "2", "3", "6", "7"):
            return cpu.dr[int(name[2:])]
        if name == "efer":
            return cpu.word(lay.efer)
        if name == "vmpl":
            return cpu.vmpl
        segment, _, part = name.partition("_")
        if segment in SEGMENTS:
            offset = self._selector_offsets[SEGMENTS.index(segment)]
            if part == "base":
                return cpu.word(offset + 8)
            if part == "limit":
                return cpu.half(offset + 16)
            if not part:
                return cpu.half(offset) & 0xFFFF
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
        """Sets a register.

        Raises:
            UnknownRegister: there is none of that name, or it is read-only.
            ValueError: the processor would not take the value.
        """
        cpu, lay = self._cpu, self._cpu.layout
        if name in GENERAL:
            cpu.regs[GENERAL.index(name)] = value
        elif name == "rip":
            cpu.rip = (value - cpu.word(lay.segs + _SEGMENT_STRIDE + 8)) & (1 << 64) - 1
        elif name == "eflags":
            cpu.rflags = value & 0x3F_7FD7 | 2
            self._recompute()
        elif name.startswith("xmm"):
            at = lay.xmm + int(name[3:]) * _VECTOR_STRIDE
            cpu.bytes_at(at, 16)[:] = list(value.to_bytes(16, "little"))
        elif name == "mxcsr":
            if value & ~0xFFFF:
                raise ValueError("MXCSR has 16 bits")
            cpu.reg_write(x86.UC_X86_REG_MXCSR, value)
        elif name in MSRS:
            if name in ("lstar", "cstar", "k_gs_base"):
                _check_canonical(name, value)
            cpu.set_word(getattr(lay, MSRS[name]), value)
        elif name in ("cr2", "dr0", "dr1", "dr2", "dr3"):
            (cpu.cr if name[0] == "c" else cpu.dr)[int(name[2:])] = value
        elif name == "cr3":
            cpu.cr[3] = value
            cpu.flush_tlb()
        elif name.endswith("_base") and name[:-5] in SEGMENTS:
            _check_canonical(name, value)
            cpu.set_word(self._selector_offsets[SEGMENTS.index(name[:-5])] + 8, value)
            self._recompute()
        else:
            raise UnknownRegister(f"{name} cannot be written")

    def _recompute(self) -> None:
        cpu = self._cpu
        cpu.hflags = mode_flags(cpu, cpu.cpl, shadow=cpu.interrupt_shadow)


def _check_canonical(name: str, value: int) -> None:
    if value >> 47 not in (0, 0x1FFFF):
        raise ValueError(f"{value:#x} is not a canonical address, as {name} has to be")
