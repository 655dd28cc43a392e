# SPDX-License-Identifier: MIT
"""Moves the register state between a VMSA and the CPU engine, as VMRUN and #VMEXIT do.

Spec: 24593, 15.35.8 (state of an SEV-ES guest), appendix B, table B-4.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

from unicorn import x86_const as x86

from svsmd.snp.cpu_unicorn import CS, DS, ES, SS, UnicornCpu
from svsmd.snp.engine_layout import HF_CS32, HF_CS64, EngineLayout
from svsmd.snp.page_walk import EFER_LMA
from svsmd.snp.register_names import CONTROL, FPU, GENERAL, SEGMENTS
from svsmd.snp.types import PHYSICAL_BITS
from svsmd.snp.vmsa import DR7_RESET, XMM_COUNT, XMM_SIZE, Cr0, Cr4, Efer, Vmsa

EFER_SVME: Final = 1 << 12
_MSRS: Final = (
    ("star", "star"), ("lstar", "lstar"), ("cstar", "cstar"), ("sfmask", "fmask"),
    ("kernel_gs_base", "kernel_gs_base"), ("sysenter_esp", "sysenter_esp"),
    ("sysenter_eip", "sysenter_eip"), ("g_pat", "pat"), ("xcr0", "xcr0"),
)  # fmt: skip
"""The VMSA's name and the engine's of those that are copied as they are."""
_XMM_STRIDE: Final = 64
_VMSA_XMM: Final = struct.Struct(f"{XMM_SIZE}s" * XMM_COUNT)
_ENGINE_XMM: Final = struct.Struct(f"{XMM_SIZE}s{_XMM_STRIDE - XMM_SIZE}x" * XMM_COUNT)
"""Nobody uses what the engine keeps behind the 16 bytes of each."""
_VMSA_X87: Final = struct.Struct("10s" * 8)
_ENGINE_X87: Final = struct.Struct("10s6x" * 8)

# hflags of the engine, as far as they follow from the architectural state.
_HF_SS32, _HF_ADDSEG, _HF_PE = 1 << 5, 1 << 6, 1 << 7
_HF_TF, _HF_LMA, _HF_SVME, _HF_GUEST = 1 << 8, 1 << 14, 1 << 20, 1 << 21
_HF_OSFXSR, _HF_SMAP = 1 << 22, 1 << 23
_HF_INHIBIT_IRQ: Final = 1 << 3
_VINTR_SHADOW: Final = 1 << 10
_VINTR_TPR: Final = 0xF
# As plain numbers, since every VMRUN tests them: a test of a flag makes another flag first.
_EFER_LME: Final = int(Efer.LME)
_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = (int(bit) for bit in (Cr0.PE, Cr0.NW, Cr0.CD, Cr0.PG))
_CR4_PAE: Final = int(Cr4.PAE)
_MXCSR: Final = 0xFFFF
_ATTRIB_L, _ATTRIB_B = 1 << 9, 1 << 10
_EFLAGS_VM: Final = 1 << 17

_TOP_AND_STATUS: Final = struct.Struct("<IH")
_CONTROL: Final = struct.Struct("<H")
_FSW_TOP_SHIFT: Final = 11
_FSW_TOP: Final = 7 << _FSW_TOP_SHIFT


CR4_OFFERED: Final = int(
    Cr4.VME | Cr4.PVI | Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE
    | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.FSGSBASE | Cr4.SMEP | Cr4.SMAP
)  # fmt: skip
"""Bits of CR4 that can be set: what CPUID announces (svsmd/snp/cpuid_policy.py)."""
_EFER_DEFINED: Final = int(
    Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | Efer.SVME | Efer.LMSLE | Efer.FFXSR
)


def legal_cr0(value: int) -> bool:
    """Whether CR0 may have this value (24593, 3.1.1)."""
    return bool(
        (value & _CR0_PE or not value & _CR0_PG) and (value & _CR0_CD or not value & _CR0_NW)
    )


def illegal_state(vmsa: Vmsa) -> str | None:
    """What VMRUN finds wrong with the state, or None (24593, 15.5.1)."""
    cr0, cr4, efer = vmsa.cr0, vmsa.cr4, vmsa.efer
    if not efer & EFER_SVME or efer & ~_EFER_DEFINED:
        return f"EFER {efer:#x}"
    if cr0 >> 32 or not legal_cr0(cr0):
        return f"CR0 {cr0:#x}"
    if cr4 & ~CR4_OFFERED:
        return f"CR4 {cr4:#x}"
    if vmsa.cr3 >> PHYSICAL_BITS:
        return f"CR3 {vmsa.cr3:#x}"
    if vmsa.dr6 >> 32 or vmsa.dr7 >> 32:
        return f"DR6 {vmsa.dr6:#x}, DR7 {vmsa.dr7:#x}"
    if cr0 & _CR0_PG and efer & _EFER_LME:
        if not cr4 & _CR4_PAE:
            return "long mode without CR4.PAE"
        code = vmsa.cs.attrib
        if code & _ATTRIB_L and code & _ATTRIB_B:
            return "long mode with CS.L and CS.D"
        if vmsa.rflags & _EFLAGS_VM:
            return "long mode with RFLAGS.VM"
    if vmsa.cpl > 3:
        return f"CPL {vmsa.cpl}"
    return None


def engine_flags(attributes: int) -> int:
    """Segment attributes of a VMSA (12 bits) in the engine's descriptor layout."""
    return (attributes & 0xFF) << 8 | (attributes & 0xF00) << 12


def vmsa_attributes(flags: int) -> int:
    """The inverse of engine_flags()."""
    return (flags >> 8) & 0xFF | (flags >> 12) & 0xF00


def mode_flags(cpu: UnicornCpu, cpl: int, *, shadow: bool) -> int:
    """The engine's hflags for the state that is loaded."""
    lay = cpu.layout
    cr0, cr4, efer = cpu.cr[0], cpu.cr[4], cpu.word(lay.efer)
    cs = vmsa_attributes(cpu.half(lay.segment(CS) + 20))
    ss = vmsa_attributes(cpu.half(lay.segment(SS) + 20))
    flags = cpl | _HF_SVME | _HF_GUEST | (cr0 & 0xE) << 8 | (cr0 & 1) << 7
    if efer & EFER_LMA:
        flags |= _HF_LMA
    if efer & EFER_LMA and cs & _ATTRIB_L:
        flags |= HF_CS64 | HF_CS32 | _HF_SS32
    else:
        if cs & _ATTRIB_B:
            flags |= HF_CS32
        if ss & _ATTRIB_B:
            flags |= _HF_SS32
        bases = [cpu.segment_base(index) for index in (ES, SS, DS)]
        if not cr0 & 1 or cpu.eflags_system & _EFLAGS_VM or not cs & _ATTRIB_B or any(bases):
            flags |= _HF_ADDSEG
    if cr4 & 1 << 9:
        flags |= _HF_OSFXSR
    if cr4 & 1 << 21:
        flags |= _HF_SMAP
    if shadow:
        flags |= _HF_INHIBIT_IRQ
    if cpu.shared.stepping:
        flags |= _HF_TF
    return flags


@cache
def _copied(lay: EngineLayout) -> tuple[tuple[int, int], ...]:
    """Which quadword of a VMSA is which one of the engine's state, where nothing else is to do."""
    places = [("rip", lay.eip)]
    places += [(name, lay.regs + 8 * index) for index, name in enumerate(GENERAL)]
    places += [(name, lay.cr + 8 * index) for name, index in CONTROL.items()]
    # DR7 is intercepted and stays in the VMSA: the engine's own breakpoints are never armed by it.
    places += [(f"dr{index}", lay.dr + 8 * index) for index in (0, 1, 2, 3, 6)]
    places += [(name, getattr(lay, there)) for name, there in _MSRS]
    return tuple((Vmsa.FIELDS[name].offset // 8, there // 8) for name, there in places)


@cache
def _segments(lay: EngineLayout) -> tuple[tuple[int, int], ...]:
    """First quadword of each segment in a VMSA, and in the engine's state."""
    return tuple(
        (Vmsa.FIELDS[name].offset // 8, lay.segment(index) // 8)
        for index, name in enumerate(SEGMENTS)
    )


def _quadwords(vmsa: Vmsa) -> memoryview:
    return memoryview(vmsa.memory).cast("B").cast("Q")


def load(cpu: UnicornCpu, vmsa: Vmsa) -> None:
    """VMRUN: the state of the VMSA becomes that of the CPU."""
    lay = cpu.layout
    quadwords, words = _quadwords(vmsa), cpu.words
    for at, there in _copied(lay):
        words[there] = quadwords[at]
    for at, there in _segments(lay):
        first = quadwords[at]
        words[there] = first & 0xFFFF
        words[there + 1] = quadwords[at + 1]
        words[there + 2] = first >> 32 | engine_flags(first >> 16) << 32
    cpu.rflags = vmsa.rflags
    cr0 = cpu.cr[0]
    efer = vmsa.efer & ~EFER_LMA | EFER_SVME
    if efer & _EFER_LME and cr0 & _CR0_PG:
        efer |= EFER_LMA
    cpu.set_word(lay.efer, efer)
    cpu.dr[7] = DR7_RESET
    cpu.set_half(lay.sysenter_cs, vmsa.sysenter_cs & 0xFFFF_FFFF)
    cpu.set_word(lay.tsc_aux, vmsa.tsc_aux)
    _load_fpu(cpu, vmsa)
    shadow = bool(vmsa.vintr_ctrl & _VINTR_SHADOW)
    cpl = vmsa.cpl & 3 if cr0 & _CR0_PE else 0
    cpu.hflags = mode_flags(cpu, cpl, shadow=shadow)


def save(cpu: UnicornCpu, vmsa: Vmsa) -> None:
    """#VMEXIT: the state of the CPU goes into the VMSA."""
    lay = cpu.layout
    quadwords, words = _quadwords(vmsa), cpu.words
    for at, there in _copied(lay):
        quadwords[at] = words[there]
    for at, there in _segments(lay):
        last = words[there + 2]
        attributes = vmsa_attributes(last >> 32)
        quadwords[at] = words[there] & 0xFFFF | attributes << 16 | (last & 0xFFFF_FFFF) << 32
        quadwords[at + 1] = words[there + 1]
    vmsa.rflags = cpu.rflags
    vmsa.efer = cpu.word(lay.efer) | EFER_SVME
    vmsa.sysenter_cs = cpu.half(lay.sysenter_cs)
    vmsa.tsc_aux = cpu.word(lay.tsc_aux) & 0xFFFF_FFFF
    vmsa.cpl = cpu.cpl
    control = vmsa.vintr_ctrl & ~_VINTR_SHADOW
    vmsa.vintr_ctrl = control | (_VINTR_SHADOW if cpu.interrupt_shadow else 0)
    _save_fpu(cpu, vmsa)


def _load_fpu(cpu: UnicornCpu, vmsa: Vmsa) -> None:
    lay, state, memory = cpu.layout, cpu.state, vmsa.memory
    base = lay.efer
    status, control, mxcsr = vmsa.x87_fsw, vmsa.x87_fcw, vmsa.mxcsr & _MXCSR
    top = (status & _FSW_TOP) >> _FSW_TOP_SHIFT
    _TOP_AND_STATUS.pack_into(state, base + FPU.top, top, status & ~_FSW_TOP)
    tags = vmsa.x87_ftw
    state[base + FPU.tags : base + FPU.tags + 8] = bytes(
        [tags >> shift & 3 == 3 for shift in range(0, 16, 2)]
    )
    stack = _VMSA_X87.unpack_from(memory, Vmsa.fpreg_x87.offset)
    # Register 0 of the stack is the one that TOP names.
    _ENGINE_X87.pack_into(state, base + FPU.registers, *stack[8 - top :], *stack[: 8 - top])
    xmm = _VMSA_XMM.unpack_from(memory, Vmsa.fpreg_xmm.offset)
    _ENGINE_XMM.pack_into(state, lay.xmm, *xmm)
    # The rounding modes that follow from the control words live elsewhere in the engine, and are
    # right as long as the control words are the same.
    if control != _CONTROL.unpack_from(state, base + FPU.control)[0]:
        cpu.reg_write(x86.UC_X86_REG_FPCW, control)
    if mxcsr != cpu.half(lay.mxcsr):
        cpu.reg_write(x86.UC_X86_REG_MXCSR, mxcsr)


def _save_fpu(cpu: UnicornCpu, vmsa: Vmsa) -> None:
    lay, state, memory = cpu.layout, cpu.state, vmsa.memory
    base = lay.efer
    top, status = _TOP_AND_STATUS.unpack_from(state, base + FPU.top)
    (control,) = _CONTROL.unpack_from(state, base + FPU.control)
    top &= 7
    tags = 0
    for register, empty in enumerate(state[base + FPU.tags : base + FPU.tags + 8]):
        if empty:
            tags |= 3 << (2 * register)
    registers = _ENGINE_X87.unpack_from(state, base + FPU.registers)
    _VMSA_X87.pack_into(memory, Vmsa.fpreg_x87.offset, *registers[top:], *registers[:top])
    vmsa.x87_fsw = status & ~_FSW_TOP | top << _FSW_TOP_SHIFT
    vmsa.x87_fcw = control
    vmsa.x87_ftw = tags
    vmsa.mxcsr = cpu.half(lay.mxcsr)
    xmm = _ENGINE_XMM.unpack_from(state, lay.xmm)
    _VMSA_XMM.pack_into(memory, Vmsa.fpreg_xmm.offset, *xmm)
