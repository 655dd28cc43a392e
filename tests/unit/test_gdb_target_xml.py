# SPDX-License-Identifier: MIT
"""The register description against gdb's default amd64-linux layout."""

import struct
from xml.etree import ElementTree

from svsmd.gdbstub.target import G_LAYOUT
from svsmd.gdbstub.target_xml import (
    G_REGISTERS,
    G_SPANS,
    REGISTER_NUMBERS,
    REGISTERS,
    SYSTEM_REGISTERS,
    TARGET_XML,
)
from svsmd.snp.cpuid_policy import cpuid

# Register numbers, sizes and offsets that `maint print remote-registers` of gdb 13.1 shows for its
# default amd64-linux layout (no target description).
GDB_DEFAULT_LAYOUT = {
    "rax": (0, 8, 0),
    "rbx": (1, 8, 8),
    "rcx": (2, 8, 16),
    "rdx": (3, 8, 24),
    "rsi": (4, 8, 32),
    "rdi": (5, 8, 40),
    "rbp": (6, 8, 48),
    "rsp": (7, 8, 56),
    "r8": (8, 8, 64),
    "r15": (15, 8, 120),
    "rip": (16, 8, 128),
    "eflags": (17, 4, 136),
    "cs": (18, 4, 140),
    "ss": (19, 4, 144),
    "ds": (20, 4, 148),
    "es": (21, 4, 152),
    "fs": (22, 4, 156),
    "gs": (23, 4, 160),
    "st0": (24, 10, 164),
    "st7": (31, 10, 234),
    "fctrl": (32, 4, 244),
    "fop": (39, 4, 272),
    "xmm0": (40, 16, 276),
    "xmm15": (55, 16, 516),
    "mxcsr": (56, 4, 532),
    "orig_rax": (57, 8, 536),
    "fs_base": (58, 8, 544),
    "gs_base": (59, 8, 552),
}


def test_g_packet_is_gdbs_default_layout() -> None:
    for name, (number, nbytes, offset) in GDB_DEFAULT_LAYOUT.items():
        assert REGISTER_NUMBERS[name] == number
        assert G_SPANS[number] == slice(offset, offset + nbytes), name
    assert G_REGISTERS == 60
    assert G_SPANS[-1].stop == G_LAYOUT.size == 560


def test_g_layout_packs_where_the_table_says() -> None:
    packed = G_LAYOUT.pack(
        *range(100, 116), 116, 117, *range(118, 124), bytes(80), *range(132, 140), bytes(256),
        0x1F80, -1, 158, 159,
    )  # fmt: skip
    values = {"rax": 100, "r15": 115, "rip": 116, "eflags": 117, "cs": 118, "gs": 123}
    values |= {"fctrl": 132, "fop": 139, "mxcsr": 0x1F80, "gs_base": 159}
    for name, value in values.items():
        assert int.from_bytes(packed[G_SPANS[REGISTER_NUMBERS[name]]], "little") == value
    assert struct.unpack_from("<q", packed, 536) == (-1,)


def test_document_lists_the_table_in_order() -> None:
    root = ElementTree.fromstring(TARGET_XML)
    listed = [(reg.get("name"), reg.get("bitsize")) for reg in root.iter("reg")]
    assert listed == [(register.name, str(register.bitsize)) for register in REGISTERS]
    assert [feature.get("name") for feature in root.iter("feature")] == [
        "org.gnu.gdb.i386.core",
        "org.gnu.gdb.i386.sse",
        "org.gnu.gdb.i386.linux",
        "org.gnu.gdb.i386.segments",
        "org.svsmd.system",
        "org.svsmd.snp",
    ]


def test_types_are_defined_in_the_feature_that_uses_them() -> None:
    predefined = {
        "int", "int8", "int16", "int32", "int64", "uint32", "uint64", "uint128", "bool",
        "ieee_single", "ieee_double", "code_ptr", "data_ptr", "i387_ext",
    }  # fmt: skip
    for feature in ElementTree.fromstring(TARGET_XML).iter("feature"):
        defined = {element.get("id") for element in feature if element.get("id")}
        used = {element.get("type") for element in feature.iter() if element.get("type")}
        assert used <= predefined | defined


def test_flags_fit_their_size() -> None:
    for flags in ElementTree.fromstring(TARGET_XML).iter("flags"):
        bits = [int(field.attrib["start"]) for field in flags]
        assert sorted(set(bits)) == bits
        assert bits[-1] < 8 * int(flags.attrib["size"])


def test_document_is_one_line() -> None:
    assert b"\n" not in TARGET_XML


def test_names_are_unique() -> None:
    assert len(REGISTER_NUMBERS) == len(REGISTERS)


def test_registers_beyond_the_g_packet() -> None:
    expected = "cr0 cr2 cr3 cr4 cr8 efer cs_base gs_limit tr ldtr_limit gdtr_base idtr_limit"
    expected += " dr0 dr3 dr6 dr7 k_gs_base star lstar cstar fmask vmpl cpu_mode pc_lin tsc"
    expected += " sysenter_cs sysenter_esp sysenter_eip pat tsc_aux sev_status ghcb ghcb_msr"
    assert set(expected.split()) <= set(SYSTEM_REGISTERS)


def test_what_cannot_be_written_is_not_restored() -> None:
    root = ElementTree.fromstring(TARGET_XML)
    kept = {reg.get("name") for reg in root.iter("reg") if reg.get("save-restore") != "no"}
    read_only = {"vmpl", "ghcb", "sev_status", "cpu_mode", "pc_lin", "tsc"}
    assert kept == {
        r.name for r in REGISTERS if r.name not in read_only and not r.name.startswith("snp_")
    }


def test_modes_by_name() -> None:
    root = ElementTree.fromstring(TARGET_XML)
    (modes,) = (enum for enum in root.iter("enum") if enum.get("id") == "svsmd_cpu_mode")
    assert {each.get("name"): each.get("value") for each in modes} == {
        "REAL": "0", "VIRTUAL_8086": "1", "PROTECTED_16": "2", "PROTECTED_32": "3",
        "COMPATIBILITY_16": "4", "COMPATIBILITY_32": "5", "LONG_64": "6",
    }  # fmt: skip


def test_vector_registers_are_those_that_cpuid_announces() -> None:
    """No YMM, ZMM or mask registers, nor XCR0, as long as there is no XSAVE and no AVX."""
    xsave, osxsave, avx = 1 << 26, 1 << 27, 1 << 28
    assert not cpuid(1).ecx & (xsave | osxsave | avx)
    assert not cpuid(7).ebx & (1 << 5 | 1 << 16), "AVX2, AVX512F"
    assert not any(name.startswith(("ymm", "zmm", "k0", "xcr")) for name in REGISTER_NUMBERS)
