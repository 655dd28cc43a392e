# SPDX-License-Identifier: MIT
"""Finds the engine's architectural state in memory, by experiment.

The engine (Unicorn 2.1.4) keeps the state of its CPU in one structure. Its public interface costs
2 microseconds a register and does not reach the fields that SVM guest mode needs, so svsmd works
on the structure itself. No offset is taken on trust: known values are written through the public
interface, one VMRUN is executed with known values in its VMCB, and each field is searched for
where it must be. A mismatch raises EngineMismatch and svsmd refuses to run.
"""

from __future__ import annotations

import ctypes
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Final

from unicorn import x86_const as x86


class EngineMismatch(RuntimeError):
    """The installed engine is not laid out as svsmd needs it."""


GPR_COUNT: Final = 16
SEGMENT_STRIDE: Final = 24
"""Selector u32, base u64 at 8, limit u32 at 16, flags u32 at 20."""
HF_CS32, HF_CS64 = 1 << 4, 1 << 15
"""Mode flags: code is 32-bit by default; it is 64-bit code, which has the other one set, too."""
_ENV_BYTES: Final = 0x1800
_HEAD_BYTES: Final = 0x1000
NEXT_FLAGS: Final = 0x18
NO_FLAGS: Final = 0xFFFF_FFFF
"""Flags of the next translation, in front of the interrupt request: none while nothing runs.

Their low bits are the number of instructions that its block may have.
"""
_CPU_BYTES: Final = 0x1_0000
"""The state begins within that many bytes of its CPU structure."""
BLOCK_HEADER: Final = 192
"""Bytes of a block record, rounded up to the translator's 64-byte alignment; its code follows."""
_BLOCK_CODE: Final = 32
"""Offset in a block record of the host address of its code."""
JUMP_CACHE_SLOTS: Final = 4096
_JUMP_CACHE_PAGE_SLOTS: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class EngineLayout:
    """Byte offsets of fields in the engine's CPU state; see the module's text.

    `env` and `cpu` are host addresses of the state and of the structure around it.
    """

    env: int
    cpu: int
    regs: int
    eip: int
    eflags: int
    cc_dst: int
    cc_src: int
    cc_op: int
    df: int
    hflags: int
    hflags2: int
    segs: int
    ldt: int
    tr: int
    gdt: int
    idt: int
    cr: int
    efer: int
    mxcsr: int
    xmm: int
    sysenter_cs: int
    sysenter_esp: int
    sysenter_eip: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    kernel_gs_base: int
    tsc_aux: int
    xcr0: int
    pat: int
    error_code: int
    exception_is_int: int
    dr: int
    vm_vmcb: int
    intercept: int
    intercept_exceptions: int
    nested_cr3: int
    nested_pg_mode: int
    interrupt_request: int
    """Offset in `cpu`, not in `env`."""
    no_exit_request: int
    """Host address of the engine's flag that leaves out exit checks within instructions."""
    jump_cache: int
    """Offset in `cpu` of the block records by jump_cache_slot()."""

    def segment(self, index: int) -> int:
        """Where a segment register is; its parts are those of `SEGMENT_STRIDE`."""
        return self.segs + SEGMENT_STRIDE * index


_GPRS: Final = (
    x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX,
    x86.UC_X86_REG_RSP, x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI,
    x86.UC_X86_REG_R8, x86.UC_X86_REG_R9, x86.UC_X86_REG_R10, x86.UC_X86_REG_R11,
    x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14, x86.UC_X86_REG_R15,
)  # fmt: skip


def jump_cache_slot(address: int) -> int:
    """Where the engine keeps the record of the block that it last looked up for an address."""
    mixed = address ^ address >> 6
    page = JUMP_CACHE_SLOTS - _JUMP_CACHE_PAGE_SLOTS
    return mixed >> 6 & page | mixed & _JUMP_CACHE_PAGE_SLOTS - 1


def _mapped_ranges() -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            span, mode = line.split()[:2]
            if mode.startswith("r"):
                start, _, end = span.partition("-")
                if ranges and ranges[-1][1] == int(start, 16):
                    ranges[-1] = (ranges[-1][0], int(end, 16))
                else:
                    ranges.append((int(start, 16), int(end, 16)))
    return ranges


def _mark_registers(uc: Any, base: int) -> bytes:
    """Gives each register a value of its own; returns them as they lie in memory."""
    marks = [base + 0x1111 * i for i in range(GPR_COUNT)]
    for reg, mark in zip(_GPRS, marks, strict=True):
        uc.reg_write(reg, mark)
    return struct.pack("<16Q", *marks)


def _find_state(uc: Any) -> tuple[int, int]:
    """Host addresses of (CPU structure, architectural state): the one that holds our registers.

    The state is a part of the structure. What another engine left behind in memory may look like
    it, but does not follow when the registers change.
    """
    pattern = _mark_registers(uc, 0x5EED_0000_C0DE_0000)
    ranges = _mapped_ranges()
    starts = [start for start, _ in ranges]

    def readable(address: int, n: int) -> bool:
        index = bisect_right(starts, address) - 1
        return index >= 0 and address + n <= ranges[index][1]

    base: int = ctypes.cast(uc._uch, ctypes.c_void_p).value or 0
    head = ctypes.string_at(base, _HEAD_BYTES)
    for (cpu,) in struct.iter_unpack("<Q", head):
        if cpu < 0x10000 or not readable(cpu, 0x400):
            continue
        if ctypes.c_uint32.from_address(cpu + NEXT_FLAGS).value != NO_FLAGS:
            continue
        for (env,) in struct.iter_unpack("<Q", ctypes.string_at(cpu, 0x400)):
            if not cpu < env < cpu + _CPU_BYTES or not readable(env, _ENV_BYTES):
                continue
            if ctypes.string_at(env, len(pattern)) != pattern:
                continue
            pattern = _mark_registers(uc, 0x5EED_0001_C0DE_0000)
            if ctypes.string_at(env, len(pattern)) == pattern:
                return cpu, env
    raise EngineMismatch("the engine's CPU state was not found")


def _only(haystack: bytes, needle: bytes, what: str, start: int = 0) -> int:
    first = haystack.find(needle, start)
    if first < 0 or haystack.find(needle, first + 1) >= 0:
        raise EngineMismatch(f"{what} was not found exactly once in the engine's state")
    return first


@dataclass(frozen=True, slots=True)
class VmrunMarks:
    """Values that the VMCB of the first VMRUN carried, to recognise them in the state."""

    vmcb: int
    intercept: int
    intercept_exceptions: int
    nested_cr3: int
    nested_pg_mode: int


class LayoutProbe:
    """Two steps: marks before the engine enters SVM guest mode, and the search after it."""

    def __init__(self, uc: Any) -> None:
        self._uc = uc
        self.cpu, self.env = _find_state(uc)
        self.marks = self._mark()

    def _snapshot(self) -> bytes:
        return ctypes.string_at(self.env, _ENV_BYTES)

    def _mark(self) -> dict[str, int]:
        """Writes each register that the public interface reaches and finds it again."""
        uc = self._uc

        def field(name: str, value: int, size: int = 8, write: Any = None) -> None:
            write(value)
            found[name] = _only(self._snapshot(), value.to_bytes(size, "little"), name)

        def msr(index: int) -> Any:
            return lambda value: uc.reg_write(x86.UC_X86_REG_MSR, (index, value))

        def reg(index: int) -> Any:
            return lambda value: uc.reg_write(index, value)

        found: dict[str, int] = {}
        canonical = 0x0000_5EED_1000_0000
        field("eip", canonical + 0x1000, write=reg(x86.UC_X86_REG_RIP))
        field("cr2", canonical + 0x2000, write=reg(x86.UC_X86_REG_CR2))
        field("fs_base", canonical + 0x3000, write=msr(0xC000_0100))
        field("gs_base", canonical + 0x4000, write=msr(0xC000_0101))
        field("kernel_gs_base", canonical + 0x5000, write=msr(0xC000_0102))
        field("star", canonical + 0x6000, write=msr(0xC000_0081))
        field("lstar", canonical + 0x7000, write=msr(0xC000_0082))
        field("cstar", canonical + 0x8000, write=msr(0xC000_0083))
        field("fmask", canonical + 0x9000, write=msr(0xC000_0084))
        field("sysenter_cs", 0x5EE1, 4, write=msr(0x174))
        field("sysenter_esp", canonical + 0xA000, write=msr(0x175))
        field("sysenter_eip", canonical + 0xB000, write=msr(0x176))
        field("pat", 0x0506_0401_0007_0106, write=msr(0x277))
        field("tsc_aux", 0x5EED_A0C5, write=msr(0xC000_0103))
        field("dr0", canonical + 0xC000, write=reg(x86.UC_X86_REG_DR0))
        field("mxcsr", 0x0000_BF81, 4, write=reg(x86.UC_X86_REG_MXCSR))
        field("xmm0", 0x5EED_0001_5EED_0002_5EED_0003_5EED_0004, 16,
              write=reg(x86.UC_X86_REG_XMM0))  # fmt: skip
        field("xmm1", 0x5EED_0005_5EED_0006_5EED_0007_5EED_0008, 16,
              write=reg(x86.UC_X86_REG_XMM1))  # fmt: skip
        field("hsave", 0x5EED_7000, write=msr(0xC001_0117))
        if found["xmm1"] - found["xmm0"] != 64:
            raise EngineMismatch("vector registers are not 64 bytes apart")
        return found

    def _jump_cache(self, address: int) -> int:
        """Finds the engine's table of block records by the only block that is in it."""
        ranges = _mapped_ranges()
        starts = [start for start, _ in ranges]
        found = []
        state = ctypes.string_at(self.cpu, self.env - self.cpu)
        for index, (record,) in enumerate(struct.iter_unpack("<Q", state[: len(state) & ~7])):
            span = bisect_right(starts, record) - 1
            if span < 0 or record + BLOCK_HEADER > ranges[span][1]:
                continue
            head = ctypes.string_at(record, _BLOCK_CODE + 8)
            code = int.from_bytes(head[_BLOCK_CODE:], "little")
            if int.from_bytes(head[:8], "little") == address and code == record + BLOCK_HEADER:
                found.append(index - jump_cache_slot(address))
        if len(found) != 1 or not 0 <= found[0] <= len(state) // 8 - JUMP_CACHE_SLOTS:
            raise EngineMismatch("the engine's block records were not found")
        return found[0] * 8

    def finish(
        self, marks: VmrunMarks, last_block: int, interrupt_request: int, no_exit_request: int
    ) -> EngineLayout:
        """Finds the SVM fields after the VMRUN, and checks how the rest is ordered.

        Args:
            last_block: linear address of the block that ended with the exit.
        """
        found, state = self.marks, self._snapshot()

        def svm(name: str, value: int, size: int) -> int:
            return _only(state, value.to_bytes(size, "little"), name, found["dr0"])

        eip = found["eip"]
        segs = found["fs_base"] - 4 * SEGMENT_STRIDE - 8
        cr = found["cr2"] - 2 * 8
        if (eip, found["gs_base"] - found["fs_base"]) != (GPR_COUNT * 8, SEGMENT_STRIDE):
            raise EngineMismatch("general registers or segments are not where they must be")
        # Between RIP and the segments: RFLAGS, three condition words, cc_op, df, hflags, hflags2.
        if segs != eip + 8 + 8 + 3 * 8 + 4 * 4:
            raise EngineMismatch("the flags are not between RIP and the segments")
        if cr != segs + 10 * SEGMENT_STRIDE:
            raise EngineMismatch("the control registers do not follow the segments")
        # cr[9], a20 mask, four bound registers, bound configuration, then EFER.
        efer = cr + 9 * 8 + 8 + 4 * 16 + 16 + 8
        xcr0 = found["tsc_aux"] + 8
        vm_vmcb = svm("vm_vmcb", marks.vmcb, 8)
        if vm_vmcb - found["dr0"] != 13 * 8:
            raise EngineMismatch("the VMCB address does not follow the debug registers")
        return EngineLayout(
            env=self.env, cpu=self.cpu, regs=0, eip=eip, eflags=eip + 8, cc_dst=eip + 16,
            cc_src=eip + 24, cc_op=eip + 40, df=eip + 44, hflags=eip + 48, hflags2=eip + 52,
            segs=segs, ldt=segs + 6 * SEGMENT_STRIDE, tr=segs + 7 * SEGMENT_STRIDE,
            gdt=segs + 8 * SEGMENT_STRIDE, idt=segs + 9 * SEGMENT_STRIDE, cr=cr, efer=efer,
            mxcsr=found["mxcsr"], xmm=found["xmm0"], sysenter_cs=found["sysenter_cs"],
            sysenter_esp=found["sysenter_esp"], sysenter_eip=found["sysenter_eip"],
            star=found["star"], lstar=found["lstar"], cstar=found["cstar"], fmask=found["fmask"],
            kernel_gs_base=found["kernel_gs_base"], tsc_aux=found["tsc_aux"], xcr0=xcr0,
            pat=found["pat"], error_code=found["dr0"] - 16, exception_is_int=found["dr0"] - 12,
            dr=found["dr0"], vm_vmcb=vm_vmcb,
            intercept=svm("intercept", marks.intercept, 8),
            intercept_exceptions=svm("exception intercepts", marks.intercept_exceptions, 4),
            nested_cr3=svm("nested CR3", marks.nested_cr3, 8),
            nested_pg_mode=svm("nested CR3", marks.nested_cr3, 8) + 8,
            interrupt_request=interrupt_request, no_exit_request=no_exit_request,
            jump_cache=self._jump_cache(last_block),
        )  # fmt: skip
