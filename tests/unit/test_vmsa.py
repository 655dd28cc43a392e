# SPDX-License-Identifier: MIT
"""VMSA layout, against the definition in sev-snp-measure, and the start states."""

from __future__ import annotations

import struct

import pytest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA, SevEsSaveArea

from svsmd.snp.page_view import FieldLocation
from svsmd.snp.types import PAGE_SIZE, Vmpl
from svsmd.snp.vmsa import (
    Cr0,
    Cr4,
    Efer,
    EventInj,
    EventType,
    Segment,
    SegmentAttrib,
    SevFeatures,
    Vmsa,
)

# Names of sev-snp-measure (those of Linux) that are not the manual's.
OTHER_NAMES = {
    "vmpl0_ssp": "pl0_ssp",
    "vmpl1_ssp": "pl1_ssp",
    "vmpl2_ssp": "pl2_ssp",
    "vmpl3_ssp": "pl3_ssp",
    "dbgctrl": "dbgctl",
    "guest_exit_info_1": "guest_exitinfo1",
    "guest_exit_info_2": "guest_exitinfo2",
    "guest_exit_int_info": "guest_exitintinfo",
    "guest_exit_code": "guest_exitcode",
    "event_inj": "eventinj",
}
# Fields of 24593, table B-4, that sev-snp-measure has as reserved or padding.
FROM_THE_MANUAL = {
    "guest_tsc_scale": (0x2F0, 8),
    "guest_tsc_offset": (0x2F8, 8),
    "reg_prot_nonce": (0x300, 8),
    "lbr_stack": (0x670, 256),
    "lbr_select": (0x770, 8),
    "ibs_fetch_ctl": (0x778, 8),
    "ibs_fetch_linaddr": (0x780, 8),
    "ibs_op_ctl": (0x788, 8),
    "ibs_op_rip": (0x790, 8),
    "ibs_op_data": (0x798, 8),
    "ibs_op_data2": (0x7A0, 8),
    "ibs_op_data3": (0x7A8, 8),
    "ibs_dc_linaddr": (0x7B0, 8),
    "bp_ibstgt_rip": (0x7B8, 8),
    "ic_ibs_extd_ctl": (0x7C0, 8),
}


def reference_fields() -> dict[str, tuple[int, int]]:
    fields = {}
    for name, _type in SevEsSaveArea._fields_:
        if name.startswith(("reserved", "manual")):
            continue
        descriptor = getattr(SevEsSaveArea, name)
        fields[OTHER_NAMES.get(name, name)] = (descriptor.offset, descriptor.size)
    return fields


EXPECTED = reference_fields() | FROM_THE_MANUAL


def test_size():
    assert Vmsa.SIZE == PAGE_SIZE


def test_has_every_field_and_no_other():
    assert set(Vmsa.FIELDS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_offset(name: str):
    assert Vmsa.FIELDS[name] == FieldLocation(*EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_every_field_reads_and_writes_its_own_bytes(name: str):
    offset, size = EXPECTED[name]
    vmsa = Vmsa()
    pattern = bytes((i * 7 + 1) & 0xFF for i in range(size))
    vmsa.memory[offset : offset + size] = pattern
    value = getattr(vmsa, name)
    if isinstance(value, Segment):
        assert value == Segment._make(struct.unpack("<HHIQ", pattern))
    elif isinstance(value, int):
        assert value == int.from_bytes(pattern, "little")
    else:
        assert value == pattern
    vmsa.clear()
    setattr(vmsa, name, value)
    assert vmsa.tobytes() == bytes(offset) + pattern + bytes(PAGE_SIZE - offset - size)


def test_is_a_live_view():
    memory = bytearray(3 * PAGE_SIZE)
    vmsa = Vmsa(memoryview(memory)[PAGE_SIZE : 2 * PAGE_SIZE])
    vmsa.rip = 0x1234
    assert memory[PAGE_SIZE + 0x178] == 0x34
    memory[PAGE_SIZE + 0x1F8] = 7
    assert vmsa.rax == 7


@pytest.mark.parametrize("size", [0, PAGE_SIZE - 1, PAGE_SIZE + 1])
def test_needs_a_page(size: int):
    with pytest.raises(ValueError, match="4096 bytes"):
        Vmsa(bytearray(size))


def test_xmm():
    vmsa = Vmsa()
    vmsa.set_xmm(15, bytes(range(16)))
    assert vmsa.xmm(15) == bytes(range(16))
    assert vmsa.memory[0x470 + 240 : 0x470 + 256] == bytes(range(16))
    with pytest.raises(IndexError):
        vmsa.xmm(16)
    with pytest.raises(ValueError, match="16 bytes"):
        vmsa.set_xmm(0, bytes(15))


def test_reset_state_is_what_kvm_and_qemu_measure():
    """Same bytes as the independent definition, but for what KVM changes on top of the reset."""
    reference = next(VMSA(SevMode.SEV_SNP, 0, 0xA00F11, 1, VMMType.QEMU).pages(1))
    vmsa = Vmsa.reset_state(cpuid_signature=0xA00F11)
    assert (vmsa.cr0, vmsa.cr4, vmsa.x87_fcw, vmsa.x87_ftw) == (0x6000_0010, 0, 0x40, 0x5555)
    vmsa.cr0 = 0x10
    vmsa.cr4 = Cr4.MCE
    vmsa.x87_fcw = 0x37F
    vmsa.x87_ftw = 0
    assert vmsa.tobytes() == reference


def test_reset_state_clears_the_page():
    page = bytearray(b"\xff" * PAGE_SIZE)
    vmsa = Vmsa.reset_state(page, vmpl=Vmpl.VMPL2, reset_vector=0x0009_A000)
    assert vmsa.memory is page
    assert (vmsa.vmpl, vmsa.rip, vmsa.cs.base) == (2, 0xA000, 0x9_0000)
    assert vmsa.rsp == vmsa.rbx == vmsa.cpl == 0


def test_long_mode_start():
    vmsa = Vmsa.long_mode_start(
        0x100_0000, 0x3_8000, 0x80_0002_0000, 0x1_0000, gdt_base=0x1_5000, gdt_limit=0x1F
    )
    assert vmsa.efer == Efer.SVME | Efer.LME | Efer.LMA
    assert vmsa.cr0 & (Cr0.PG | Cr0.PE) == Cr0.PG | Cr0.PE
    assert vmsa.cr4 & Cr4.PAE
    assert (vmsa.rip, vmsa.rsp, vmsa.cr3, vmsa.rsi) == (
        0x100_0000,
        0x3_8000,
        0x80_0002_0000,
        0x1_0000,
    )
    assert (vmsa.cs.selector, vmsa.ss.selector) == (0x10, 0x18)
    attributes = vmsa.cs.attributes
    assert (attributes.L, attributes.DB, attributes.P, attributes.S) == (True, False, True, True)
    assert vmsa.gdtr == Segment(0, 0, 0x1F, 0x1_5000)
    assert vmsa.rflags == 2


def test_protected_mode_start():
    vmsa = Vmsa.protected_mode_start(0x1F80_0000, 0x1F81_0000)
    assert vmsa.efer == Efer.SVME
    assert vmsa.cr0 == Cr0.PE | Cr0.ET | Cr0.NE
    assert (vmsa.rip, vmsa.rsp) == (0x1F80_0000, 0x1F81_0000)
    assert (vmsa.cs.limit, vmsa.cs.base, vmsa.ds.limit) == (0xFFFF_FFFF, 0, 0xFFFF_FFFF)
    assert (vmsa.cs.attributes.DB, vmsa.cs.attributes.L) == (True, False)


def test_segment_attributes_are_the_packed_descriptor_bits():
    # Descriptor 00AF_9B00_0000_FFFF: bits 47:40 are 9B, 55:52 are A.
    assert SegmentAttrib.of(TYPE=0xB, S=1, P=1, L=1, G=1) == 0xA9B


def test_event_injection():
    event = EventInj.of(V=1, TYPE=EventType.EXCEPTION, VECTOR=13, EV=1, ERRORCODE=0)
    assert event == 0x8000_0B0D


def test_sev_features_are_sev_status_shifted_by_two():
    # MSR C001_0131 as Linux names it: bit 3 vTOM, 5 restricted injection, 11 Secure TSC, 18 SAVIC.
    status = {3: SevFeatures.VTOM, 5: SevFeatures.RESTRICTED_INJECTION, 7: 1 << 5, 11: 1 << 9}
    for bit, feature in (status | {18: SevFeatures.SECURE_AVIC, 23: 1 << 21}).items():
        assert SevFeatures(1 << (bit - 2)) == feature
