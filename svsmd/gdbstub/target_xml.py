# SPDX-License-Identifier: MIT
"""The registers that gdb sees, and the description that tells it so.

One table for every CPU mode and for ever: a `g` packet whose length changed with the mode would
break every session that crosses a mode switch. The `g` packet is exactly gdb's default
amd64-linux layout (`target.G_LAYOUT`), which gdb also uses where it has read no description; all
other registers follow in features of our own and are transferred one by one (packets p and P).

Spec: GDB manual, appendix G (target descriptions), G.5.12 i386 features; control and debug
register bits 24593, 3.1, 3.1.7 and 13.1.1. The document is one line: some clients stumble over
line ends in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.gdbstub.target import G_LAYOUT
from svsmd.snp.cpu_mode import CpuMode
from svsmd.snp.events import EventClass


@dataclass(frozen=True, slots=True)
class Register:
    """One register; its number is its place in `REGISTERS`."""

    name: str
    bitsize: int
    type: str = "int"
    group: str | None = None
    saved: bool = True
    """gdb puts it back after it has called a function of the guest: it can be written."""

    @property
    def nbytes(self) -> int:
        """Bytes of its value in packets, little-endian."""
        return self.bitsize // 8


def _registers(bitsize: int, names: str, type_: str, group: str | None = None) -> list[Register]:
    return [Register(name, bitsize, type_, group) for name in names.split()]


def _event_registers(bitsize: int, names: str) -> list[Register]:
    type_ = f"uint{bitsize}"
    return [Register(name, bitsize, type_, "system", saved=False) for name in names.split()]


_CORE: Final = [
    *_registers(64, "rax rbx rcx rdx rsi rdi", "int64"),
    *_registers(64, "rbp rsp", "data_ptr"),
    *_registers(64, "r8 r9 r10 r11 r12 r13 r14 r15", "int64"),
    Register("rip", 64, "code_ptr"),
    Register("eflags", 32, "i386_eflags"),
    *_registers(32, "cs ss ds es fs gs", "int32"),
    *_registers(80, "st0 st1 st2 st3 st4 st5 st6 st7", "i387_ext"),
    *_registers(32, "fctrl fstat ftag fiseg fioff foseg fooff fop", "int", "float"),
]
_SSE: Final = [
    *_registers(128, " ".join(f"xmm{n}" for n in range(16)), "vec128"),
    Register("mxcsr", 32, "i386_mxcsr", "vector"),
]
_LINUX: Final = [Register("orig_rax", 64, "int64", "system")]
_SEGMENTS: Final = _registers(64, "fs_base gs_base", "int64")
_SYSTEM: Final = [
    # gdb assigns to flags what has their size: 32 bits, and `set $cr0 = 1` works. The upper halves
    # of these are reserved.
    Register("cr0", 32, "svsmd_cr0", "system"),
    Register("cr2", 64, "data_ptr", "system"),
    Register("cr3", 64, "uint64", "system"),
    Register("cr4", 32, "svsmd_cr4", "system"),
    Register("cr8", 64, "uint64", "system"),
    Register("efer", 32, "svsmd_efer", "system"),
    # The bases of FS and GS are in the segments feature.
    *_registers(64, "cs_base ss_base ds_base es_base", "data_ptr", "system"),
    *_registers(32, "cs_limit ss_limit ds_limit es_limit fs_limit gs_limit", "uint32", "system"),
    *_registers(32, "ldtr tr", "int32", "system"),
    *_registers(64, "ldtr_base tr_base", "data_ptr", "system"),
    *_registers(32, "ldtr_limit tr_limit", "uint32", "system"),
    *_registers(64, "gdtr_base idtr_base", "data_ptr", "system"),
    *_registers(32, "gdtr_limit idtr_limit", "uint32", "system"),
    *_registers(64, "dr0 dr1 dr2 dr3", "data_ptr", "system"),
    *_registers(64, "dr6 dr7", "uint64", "system"),
    Register("k_gs_base", 64, "data_ptr", "system"),
    Register("star", 64, "uint64", "system"),
    *_registers(64, "lstar cstar", "code_ptr", "system"),
    Register("fmask", 64, "uint64", "system"),
    Register("sysenter_cs", 64, "uint64", "system"),
    Register("sysenter_esp", 64, "data_ptr", "system"),
    Register("sysenter_eip", 64, "code_ptr", "system"),
    *_registers(64, "pat tsc_aux", "uint64", "system"),
    Register("tsc", 64, "uint64", "system", saved=False),
    Register("cpu_mode", 32, "svsmd_cpu_mode", "system", saved=False),
    Register("pc_lin", 64, "code_ptr", "system", saved=False),
]
_SNP: Final = [
    Register("vmpl", 32, "uint32", "system", saved=False),
    Register("sev_status", 64, "uint64", "system", saved=False),
    # Of the current world.
    Register("ghcb", 64, "uint64", "system", saved=False),
    Register("ghcb_msr", 64, "uint64", "system"),
    # Of the event that was caught last (svsmd/gdbstub/catchpoints.py).
    Register("snp_event", 32, "svsmd_event", "system", saved=False),
    *_event_registers(32, "snp_vcpu snp_vmpl_from snp_vmpl_to snp_protocol snp_task"),
    *_event_registers(64, "snp_code snp_gpa snp_gva"),
    *_event_registers(64, "snp_size snp_info1 snp_info2 snp_result"),
    Register("snp_rip", 64, "code_ptr", "system", saved=False),
]

REGISTERS: Final[tuple[Register, ...]] = (*_CORE, *_SSE, *_LINUX, *_SEGMENTS, *_SYSTEM, *_SNP)
"""Every register, in the order of its number."""

REGISTER_NUMBERS: Final[Mapping[str, int]] = {
    register.name: number for number, register in enumerate(REGISTERS)
}
"""Register numbers by name."""

G_REGISTERS: Final = len(_CORE) + len(_SSE) + len(_LINUX) + len(_SEGMENTS)
"""So many registers, from number 0 on, make up the `g` packet."""

SYSTEM_REGISTERS: Final[tuple[str, ...]] = tuple(r.name for r in REGISTERS[G_REGISTERS:])
"""The names that `Target.read_register` is asked for."""


def _spans(registers: Iterable[Register]) -> Iterator[slice]:
    start = 0
    for register in registers:
        yield slice(start, start + register.nbytes)
        start += register.nbytes


G_SPANS: Final[tuple[slice, ...]] = tuple(_spans(REGISTERS[:G_REGISTERS]))
"""Where the bytes of a register are in the `g` packet, by register number."""

if G_SPANS[-1].stop != G_LAYOUT.size:
    raise AssertionError("the register table and G_LAYOUT differ")

_EFLAGS_BITS: Final = {
    "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11,
    "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
_MXCSR_BITS: Final = {
    "IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6,
    "IM": 7, "DM": 8, "ZM": 9, "OM": 10, "UM": 11, "PM": 12, "FZ": 15,
}  # fmt: skip
_CR0_BITS: Final = {
    "PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18,
    "NW": 29, "CD": 30, "PG": 31,
}  # fmt: skip
_CR4_BITS: Final = {
    "VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8,
    "OSFXSR": 9, "OSXMMEXCPT": 10, "UMIP": 11, "LA57": 12, "FSGSBASE": 16, "PCIDE": 17,
    "OSXSAVE": 18, "SMEP": 20, "SMAP": 21, "PKE": 22, "CET": 23,
}  # fmt: skip
_EFER_BITS: Final = {
    "SCE": 0, "LME": 8, "LMA": 10, "NXE": 11, "SVME": 12, "LMSLE": 13, "FFXSR": 14, "TCE": 15,
}  # fmt: skip


def _flags(name: str, nbytes: int, bits: Mapping[str, int]) -> str:
    fields = "".join(
        f'<field name="{field}" start="{bit}" end="{bit}" type="bool"/>'
        for field, bit in bits.items()
    )
    return f'<flags id="{name}" size="{nbytes}">{fields}</flags>'


def _enum(name: str, nbytes: int, values: Mapping[str, int]) -> str:
    elements = "".join(f'<evalue name="{each}" value="{n}"/>' for each, n in values.items())
    return f'<enum id="{name}" size="{nbytes}">{elements}</enum>'


_CPU_MODES: Final = {mode.name: int(mode) for mode in CpuMode}
_EVENTS: Final = {"NONE": 0} | {kind.name: int(kind) for kind in EventClass}

_VEC128_LANES: Final = {
    "v4_float": ("ieee_single", 4),
    "v2_double": ("ieee_double", 2),
    "v16_int8": ("int8", 16),
    "v8_int16": ("int16", 8),
    "v4_int32": ("int32", 4),
    "v2_int64": ("int64", 2),
}


def _vec128() -> str:
    vectors = "".join(
        f'<vector id="{name}" type="{lane}" count="{count}"/>'
        for name, (lane, count) in _VEC128_LANES.items()
    )
    fields = "".join(f'<field name="{name}" type="{name}"/>' for name in _VEC128_LANES)
    return f'{vectors}<union id="vec128">{fields}<field name="uint128" type="uint128"/></union>'


def _feature(name: str, registers: Sequence[Register], types: str = "") -> str:
    elements = "".join(
        f'<reg name="{register.name}" bitsize="{register.bitsize}" type="{register.type}"'
        + (f' group="{register.group}"' if register.group else "")
        + ("/>" if register.saved else ' save-restore="no"/>')
        for register in registers
    )
    return f'<feature name="{name}">{types}{elements}</feature>'


TARGET_XML: Final[bytes] = "".join(
    (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
        _feature("org.gnu.gdb.i386.core", _CORE, _flags("i386_eflags", 4, _EFLAGS_BITS)),
        _feature("org.gnu.gdb.i386.sse", _SSE, _vec128() + _flags("i386_mxcsr", 4, _MXCSR_BITS)),
        _feature("org.gnu.gdb.i386.linux", _LINUX),
        _feature("org.gnu.gdb.i386.segments", _SEGMENTS),
        _feature(
            "org.svsmd.system",
            _SYSTEM,
            _flags("svsmd_cr0", 4, _CR0_BITS)
            + _flags("svsmd_cr4", 4, _CR4_BITS)
            + _flags("svsmd_efer", 4, _EFER_BITS)
            + _enum("svsmd_cpu_mode", 4, _CPU_MODES),
        ),
        _feature("org.svsmd.snp", _SNP, _enum("svsmd_event", 4, _EVENTS)),
        "</target>",
    )
).encode("ascii")
"""The document `target.xml`."""
