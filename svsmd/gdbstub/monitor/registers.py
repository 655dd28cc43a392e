# SPDX-License-Identifier: MIT
"""`info registers` as QEMU prints it: 64-bit and other code, segments, x87 and SSE.

Format: QEMU, target/i386/cpu-dump.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from svsmd.snp.register_file import RegisterFile
from svsmd.snp.register_names import GENERAL

_ORDER: Final = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_FLAGS: Final = ((10, "D"), (11, "O"), (7, "S"), (6, "Z"), (4, "A"), (2, "P"), (0, "C"))
_SYSTEM_32: Final = (
    "Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CallGate16", "TaskGate", "IntGate16",
    "TrapGate16", "Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CallGate32", "Reserved",
    "IntGate32", "TrapGate32",
)  # fmt: skip
_SYSTEM_64: Final = (
    "<hiword>", "Reserved", "LDT", "Reserved", "Reserved", "Reserved", "Reserved", "Reserved",
    "Reserved", "TSS64-avl", "Reserved", "TSS64-busy", "CallGate64", "Reserved", "IntGate64",
    "TrapGate64",
)  # fmt: skip
_LMA: Final = 1 << 10
_PE: Final = 1 << 0
_LOW_32: Final = 0xFFFF_FFFF
# Bits of a segment's attributes where a descriptor's second word has them.
_A, _RW, _CE, _CODE, _S, _PRESENT, _L, _B = 8, 9, 10, 11, 12, 15, 21, 22


def register_dump(registers: RegisterFile, cpu: int, *, dr7: int, halted: bool) -> str:
    """All registers of the loaded world, headed by the number of its vCPU.

    `dr7` is what the host keeps as that of the world.
    """
    lines = ["", f"CPU#{cpu}", *_lines(registers, dr7=dr7, halted=halted)]
    return "".join(line + "\n" for line in lines)


def _lines(registers: RegisterFile, *, dr7: int, halted: bool) -> Iterator[str]:
    long_mode = bool(registers.read("efer") & _LMA)
    code64 = registers.code_bits == 64
    values = dict(zip(GENERAL, registers.general(), strict=True))
    for names in _ORDER if code64 else _ORDER[:2]:
        if code64:
            yield " ".join(f"{name.upper():3}={values[name]:016x}" for name in names)
        else:
            yield " ".join(f"E{name[1:].upper()}={values[name] & _LOW_32:08x}" for name in names)
    rflags, rip = registers.rflags, registers.linear_rip - registers.read("cs_base")
    letters = "".join(name if rflags >> bit & 1 else "-" for bit, name in _FLAGS)
    where = (
        f"RIP={rip & (1 << 64) - 1:016x} RFL={rflags:08x}"
        if code64
        else f"EIP={rip & _LOW_32:08x} EFL={rflags & _LOW_32:08x}"
    )
    shadow = int(registers.interrupt_shadow)
    yield f"{where} [{letters}] CPL={registers.cpl} II={shadow} A20=1 SMM=0 HLT={int(halted)}"
    for name, title in (
        ("es", "ES"), ("cs", "CS"), ("ss", "SS"), ("ds", "DS"), ("fs", "FS"), ("gs", "GS"),
        ("ldtr", "LDT"), ("tr", "TR"),
    ):  # fmt: skip
        yield _segment(registers, name, title, code64=code64, long_mode=long_mode)
    width = 16 if long_mode else 8
    for name, title in (("gdtr", "GDT"), ("idtr", "IDT")):
        base, limit = registers.read(f"{name}_base"), registers.read(f"{name}_limit")
        yield f"{title}=     {base & (1 << 4 * width) - 1:0{width}x} {limit:08x}"
    cr = {n: registers.read(f"cr{n}") for n in (0, 2, 3, 4)}
    yield f"CR0={cr[0]:08x} CR2={cr[2]:0{width}x} CR3={cr[3]:0{width}x} CR4={cr[4]:08x}"
    yield "".join(f"DR{n}={registers.read(f'dr{n}'):016x} " for n in range(4))
    yield f"DR6={registers.read('dr6'):016x} DR7={dr7:016x}"
    yield f"EFER={registers.read('efer'):016x}"
    yield from _floating_point(registers, vectors=16 if code64 else 8)


def _segment(
    registers: RegisterFile, name: str, title: str, *, code64: bool, long_mode: bool
) -> str:
    base, limit = registers.read(f"{name}_base"), registers.read(f"{name}_limit")
    flags = registers.attributes(name)
    base_text = f"{base:016x}" if code64 else f"{base & _LOW_32:08x}"
    text = f"{title:3}={registers.read(name):04x} {base_text} {limit:08x} {flags & 0xFFFF00:08x}"
    if not registers.read("cr0") & _PE or not flags >> _PRESENT & 1:
        return text
    text += f" DPL={flags >> 13 & 3} "
    if not flags >> _S & 1:
        return text + (_SYSTEM_64 if long_mode else _SYSTEM_32)[flags >> 8 & 15]
    if flags >> _CODE & 1:
        kind = "CS64" if flags >> _L & 1 else "CS32" if flags >> _B & 1 else "CS16"
        first, second = "C", "R"
    else:
        kind = "DS  " if flags >> _B & 1 or long_mode else "DS16"
        first, second = "E", "W"
    bits = "".join(
        letter if flags >> bit & 1 else "-"
        for bit, letter in ((_CE, first), (_RW, second), (_A, "A"))
    )
    return f"{text}{kind} [{bits}]"


def _floating_point(registers: RegisterFile, *, vectors: int) -> Iterator[str]:
    x87 = registers.x87()
    top = x87.fsw >> 11 & 7
    tags = sum(1 << n for n in range(8) if x87.ftw >> 2 * n & 3 != 3)
    yield (
        f"FCW={x87.fcw:04x} FSW={x87.fsw:04x} [ST={top}] FTW={tags:02x} MXCSR={registers.mxcsr:08x}"
    )
    # ST0 comes first there, and FPR0 is the register of that number.
    stack = [x87.stack[10 * n : 10 * n + 10] for n in range(8)]
    physical = [struct.unpack("<QH", stack[(n - top) & 7]) for n in range(8)]
    shown = [f"FPR{n}={value[0]:016x} {value[1]:04x}" for n, value in enumerate(physical)]
    yield from (" ".join(shown[n : n + 2]) for n in range(0, 8, 2))
    data = registers.vectors()
    quads = [struct.unpack_from("<QQ", data, 16 * n) for n in range(vectors)]
    shown = [f"XMM{n:02}={high:016x} {low:016x}" for n, (low, high) in enumerate(quads)]
    yield from (" ".join(shown[n : n + 2]) for n in range(0, vectors, 2))
