# SPDX-License-Identifier: MIT
"""What a debugger's write of a register does, and which ones the processor would not take.

A write is what the instruction for it does: MOV to a control or debug register, WRMSR, LGDT. What
would be a fault there is refused, and changes nothing; so VMRUN finds nothing illegal afterwards.
Each register is its own: a write of the x87 status word, with another top of the stack, leaves ST0
to ST7 as they are, as in an FXSAVE image.

Spec: 24593, 3.1 (control registers), 3.1.7 (EFER), 7.8.2 (PAT), 6.1 (SYSCALL, SYSENTER), 13.1.1
(debug registers), 15.5.1 (what VMRUN checks), 11.4.4 (x87 in an FXSAVE image).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from unicorn import x86_const as x86

from svsmd.snp.cpu_mode import CpuMode, mode_of
from svsmd.snp.cpu_unicorn import CS
from svsmd.snp.faults import GuestFault
from svsmd.snp.page_walk import EFER_LMA
from svsmd.snp.register_names import FPU, FPU_POINTERS, GENERAL, MSRS, SEGMENTS
from svsmd.snp.segment_loads import load_segment, set_limit
from svsmd.snp.types import PHYSICAL_BITS
from svsmd.snp.vmsa_state import EFER_SVME, mode_flags

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_U64: Final = (1 << 64) - 1
_EFLAGS: Final = 0x3F_7FD7
"""Flags that POPF or IRET can set; others keep their value of 0 or 1."""
_EFLAGS_ONE: Final = 1 << 1
_EFLAGS_VM: Final = 1 << 17
_VECTOR_STRIDE: Final = 64
_FPU_STRIDE: Final = 16
_TOP: Final = 7 << 11
_PAT_TYPES: Final = frozenset((0, 1, 4, 5, 6, 7))
_CANONICAL: Final = frozenset(("lstar", "cstar", "k_gs_base", "sysenter_esp", "sysenter_eip"))
_32_BITS: Final = frozenset(("fmask", "tsc_aux"))
_SECTIONS: Final = {"cr0": "3.1.1", "cr4": "3.1.3", "efer": "3.1.7", "dr6": "13.1.1.3"}
"""Of 24593: what the bits are, and which combinations are legal."""


class ReadOnlyRegister(LookupError):
    """The register cannot be written; the text says why."""


class RegisterWrites:
    """Writes registers that are in the CPU now.

    Args:
        forget_translations: called when paging has changed, for who keeps some of his own.
    """

    def __init__(self, processor: Processor, forget_translations: Callable[[], None]) -> None:
        self._p = processor
        self._cpu = processor.cpu
        self._forget_translations = forget_translations
        self._writers: dict[str, Callable[[int], None]] = {
            "rip": self._rip,
            "eflags": self._eflags,
            "mxcsr": self._mxcsr,
            "fctrl": self._fctrl,
            "fstat": self._fstat,
            "ftag": self._ftag,
            "cr0": partial(self._paging, "cr0", processor.set_cr0),
            "cr3": self._cr3,
            "cr4": partial(self._paging, "cr4", processor.set_cr4),
            "efer": self._efer,
            "sysenter_cs": self._sysenter_cs,
            "pat": self._pat,
        }
        for number in range(16):
            self._writers[GENERAL[number]] = partial(self._general, number)
            self._writers[f"xmm{number}"] = partial(self._vector, number)
        for number in range(8):
            self._writers[f"st{number}"] = partial(self._st, number)
        self._writers["cr2"] = self._cr2
        for number in (0, 1, 2, 3, 6):
            set_dr = partial(processor.set_debug_register, number)
            self._writers[f"dr{number}"] = partial(self._instruction, f"dr{number}", set_dr)
        for name in MSRS:
            self._writers.setdefault(name, partial(self._msr, name))
        for name in SEGMENTS:
            if name not in ("gdtr", "idtr"):
                self._writers[name] = partial(load_segment, processor, name)
            self._writers[f"{name}_base"] = partial(self._base, name)
            self._writers[f"{name}_limit"] = partial(set_limit, processor, name)

    def write(self, name: str, value: int) -> None:
        """Sets a register to an unsigned value of its width.

        Raises:
            ReadOnlyRegister: there is none of that name that can be written.
            ValueError: the processor would not take the value; nothing has changed.
        """
        writer = self._writers.get(name)
        if writer is not None:
            writer(value)
        elif name in FPU_POINTERS:
            raise ReadOnlyRegister("the engine keeps no x87 instruction and data pointers")
        else:
            raise ReadOnlyRegister(f"{name} cannot be written")

    # -- general ----------------------------------------------------------------------------

    def _general(self, number: int, value: int) -> None:
        self._cpu.regs[number] = value

    def _rip(self, value: int) -> None:
        cpu = self._cpu
        offset = value - cpu.segment_base(CS) & _U64
        if mode_of(cpu) is CpuMode.LONG_64:
            _check_canonical("rip", offset)
        elif offset >> 32:
            raise ValueError(f"{value:#x} is not within 4 GiB from the base of CS")
        cpu.rip = offset

    def _eflags(self, value: int) -> None:
        cpu = self._cpu
        if (value ^ cpu.eflags_system) & _EFLAGS_VM:
            raise ValueError("VM changes by IRET and task switches only")
        cpu.rflags = value & _EFLAGS | _EFLAGS_ONE
        self._derive()

    # -- x87 and SSE ------------------------------------------------------------------------

    def _vector(self, number: int, value: int) -> None:
        at = self._cpu.layout.xmm + number * _VECTOR_STRIDE
        self._cpu.bytes_at(at, 16)[:] = list(value.to_bytes(16, "little"))

    def _mxcsr(self, value: int) -> None:
        check_width("mxcsr", value, 16)
        self._cpu.reg_write(x86.UC_X86_REG_MXCSR, value)

    def _fctrl(self, value: int) -> None:
        check_width("fctrl", value, 16)
        self._cpu.reg_write(x86.UC_X86_REG_FPCW, value)

    def _fstat(self, value: int) -> None:
        check_width("fstat", value, 16)
        cpu, fpu = self._cpu, self._fpu
        turn = (value >> 11 & 7) - cpu.half(fpu + FPU.top)
        registers = [bytes(self._fpu_register(n)) for n in range(8)]
        for number in range(8):
            self._fpu_register(number)[:] = list(registers[number - turn & 7])
        cpu.set_half(fpu + FPU.top, value >> 11 & 7)
        cpu.bytes_at(fpu + FPU.status, 2)[:] = list((value & ~_TOP).to_bytes(2, "little"))

    def _ftag(self, value: int) -> None:
        """Two bits a register, 3 if it is empty; the engine keeps no more of them than that."""
        check_width("ftag", value, 16)
        tags = bytes([value >> shift & 3 == 3 for shift in range(0, 16, 2)])
        self._cpu.bytes_at(self._fpu + FPU.tags, 8)[:] = list(tags)

    def _st(self, number: int, value: int) -> None:
        top = self._cpu.half(self._fpu + FPU.top)
        self._fpu_register(top + number & 7)[:] = list(value.to_bytes(10, "little"))

    @property
    def _fpu(self) -> int:
        return self._cpu.layout.efer

    def _fpu_register(self, number: int) -> ctypes.Array[ctypes.c_uint8]:
        return self._cpu.bytes_at(self._fpu + FPU.registers + number * _FPU_STRIDE, 10)

    # -- paging and modes -------------------------------------------------------------------

    def _cr2(self, value: int) -> None:
        self._cpu.cr[2] = value

    def _cr3(self, value: int) -> None:
        check_width("cr3", value, PHYSICAL_BITS)
        self._cpu.cr[3] = value
        self._cpu.flush_tlb()
        self._forget_translations()

    def _efer(self, value: int) -> None:
        if not value & EFER_SVME:
            raise ValueError("without SVME, VMRUN would not load this world")
        if (value ^ self._cpu.word(self._cpu.layout.efer)) & EFER_LMA:
            raise ValueError("LMA follows from LME and CR0.PG")
        self._paging("efer", self._p.set_efer, value)

    def _paging(self, name: str, instruction: Callable[[int], None], value: int) -> None:
        self._instruction(name, instruction, value)
        self._forget_translations()

    @staticmethod
    def _instruction(name: str, instruction: Callable[[int], None], value: int) -> None:
        try:
            instruction(value)
        except GuestFault:
            raise ValueError(
                f"{name} cannot become {value:#x} here: a general protection exception "
                f"(24593, {_SECTIONS[name]})"
            ) from None

    # -- MSRs -------------------------------------------------------------------------------

    def _msr(self, name: str, value: int) -> None:
        if name in _CANONICAL:
            _check_canonical(name, value)
        if name in _32_BITS:
            check_width(name, value, 32)
        self._cpu.set_word(getattr(self._cpu.layout, MSRS[name]), value)

    def _sysenter_cs(self, value: int) -> None:
        check_width("sysenter_cs", value, 32)
        self._cpu.set_half(self._cpu.layout.sysenter_cs, value)

    def _pat(self, value: int) -> None:
        for entry, kind in enumerate(value.to_bytes(8, "little")):
            if kind not in _PAT_TYPES:
                raise ValueError(f"PA{entry} has no memory type {kind:#x}")
        self._msr("pat", value)

    # -- segments ---------------------------------------------------------------------------

    def _base(self, name: str, value: int) -> None:
        if name in ("es", "cs", "ss", "ds"):
            check_width(f"{name}_base", value, 32)
            if name == "cs" and value and mode_of(self._cpu) is CpuMode.LONG_64:
                raise ValueError("64-bit code has no CS base")
        else:
            _check_canonical(f"{name}_base", value)
        self._cpu.set_word(self._cpu.layout.segment(SEGMENTS.index(name)) + 8, value)
        self._derive()

    def _derive(self) -> None:
        cpu = self._cpu
        cpu.hflags = mode_flags(cpu, cpu.cpl, shadow=cpu.interrupt_shadow)


def _check_canonical(name: str, value: int) -> None:
    if value >> 47 not in (0, 0x1FFFF):
        raise ValueError(f"{value:#x} is not a canonical address, as {name} has to be")


def check_width(name: str, value: int, bits: int) -> None:
    """Raises ValueError for a value of a register that has more than so many bits."""
    if value >> bits:
        raise ValueError(f"{name} has {bits} bits, {value:#x} has more")
