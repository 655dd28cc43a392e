# SPDX-License-Identifier: MIT
"""GHCB page: layout, valid bitmap, port accesses, page state changes."""

from __future__ import annotations

import struct

import pytest

from svsmd.snp.ghcb import (
    PSC_MAX_ENTRIES,
    SHARED_BUFFER_OFFSET,
    SHARED_BUFFER_SIZE,
    Ghcb,
    GhcbError,
    GhcbExit,
    GhcbInputError,
    GhcbMissingInput,
    GhcbResponse,
    IoioInfo,
    PscDescriptor,
    PscEntry,
    PscError,
    PscInputError,
    PscOperation,
)
from svsmd.snp.types import PAGE_SIZE, PageSize

# 56421, table 3; the same offsets as Linux' struct ghcb.
OFFSETS = {
    "cpl": (0x0CB, 1),
    "xss": (0x140, 8),
    "dr7": (0x160, 8),
    "rip": (0x178, 8),
    "rsp": (0x1D8, 8),
    "rax": (0x1F8, 8),
    "rcx": (0x308, 8),
    "rdx": (0x310, 8),
    "rbx": (0x318, 8),
    "rbp": (0x328, 8),
    "rsi": (0x330, 8),
    "rdi": (0x338, 8),
    "r8": (0x340, 8),
    "r9": (0x348, 8),
    "r10": (0x350, 8),
    "r11": (0x358, 8),
    "r12": (0x360, 8),
    "r13": (0x368, 8),
    "r14": (0x370, 8),
    "r15": (0x378, 8),
    "sw_exit_code": (0x390, 8),
    "sw_exit_info_1": (0x398, 8),
    "sw_exit_info_2": (0x3A0, 8),
    "sw_scratch": (0x3A8, 8),
    "xcr0": (0x3E8, 8),
    "valid_bitmap": (0x3F0, 16),
    "x87_state_gpa": (0x400, 8),
    "shared_buffer": (0x800, 0x7F0),
    "protocol_version": (0xFFA, 2),
    "ghcb_usage": (0xFFC, 4),
}
COVERED = [name for name, (offset, _size) in OFFSETS.items() if offset < 0x3F0]


def test_layout():
    assert Ghcb.SIZE == PAGE_SIZE
    assert Ghcb.FIELDS == OFFSETS


@pytest.mark.parametrize("name", COVERED)
def test_valid_bit_is_the_offset_in_quadwords(name: str):
    ghcb = Ghcb()
    field = getattr(Ghcb, name)
    with pytest.raises(GhcbMissingInput, match=name) as missing:
        getattr(ghcb, name)
    assert missing.value.reason is GhcbError.MISSING_INPUT
    assert ghcb.get(field) is None
    setattr(ghcb, name, 0x5A)
    bit = OFFSETS[name][0] // 8
    assert int.from_bytes(ghcb.valid_bitmap, "little") == 1 << bit
    assert getattr(ghcb, name) == ghcb.get(field) == 0x5A
    ghcb.clear_valid()
    assert ghcb.get(field) is None


def test_answers():
    ghcb = Ghcb()
    ghcb.set_request(GhcbExit.SVM_EXIT_CPUID)
    ghcb.check_header()
    ghcb.protocol_version = 0
    ghcb.check_header()
    ghcb.set_answer(5)
    assert (ghcb.sw_exit_info_1, ghcb.sw_exit_info_2) == (GhcbResponse.NO_ACTION, 5)
    ghcb.set_malformed(GhcbError.INVALID_EVENT)
    assert (ghcb.sw_exit_info_1, ghcb.sw_exit_info_2) == (GhcbResponse.MALFORMED_INPUT, 6)
    ghcb.set_exception(13, 0)
    # Vector 13, type 3, error code valid, valid: what Linux expects for #GP(0).
    assert (ghcb.sw_exit_info_1, ghcb.sw_exit_info_2) == (1, 13 | 3 << 8 | 1 << 11 | 1 << 31)
    ghcb.set_exception(6)
    assert ghcb.sw_exit_info_2 == 6 | 3 << 8 | 1 << 31


@pytest.mark.parametrize(
    ("usage", "version", "reason"),
    [
        (1, 2, GhcbError.INVALID_USAGE),
        (0, 3, GhcbError.INVALID_INPUT),
    ],
)
def test_header_that_this_machine_does_not_speak(usage: int, version: int, reason: GhcbError):
    ghcb = Ghcb()
    ghcb.ghcb_usage = usage
    ghcb.protocol_version = version
    with pytest.raises(GhcbInputError) as error:
        ghcb.check_header()
    assert error.value.reason is reason


def test_scratch_is_live():
    ghcb = Ghcb()
    ghcb.sw_scratch = 0x7000 + SHARED_BUFFER_OFFSET + 8
    area = ghcb.scratch(0x7000, 4)
    area[:] = b"abcd"
    assert ghcb.shared_buffer[8:12] == b"abcd"


@pytest.mark.parametrize(
    ("scratch", "size"),
    [
        (0x7000 + SHARED_BUFFER_OFFSET - 1, 4),
        (0x7000 + SHARED_BUFFER_OFFSET + SHARED_BUFFER_SIZE - 3, 4),
        (0x7000 + SHARED_BUFFER_OFFSET, SHARED_BUFFER_SIZE + 1),
        (0x8000 + SHARED_BUFFER_OFFSET, 4),
        (0, 4),
        ((1 << 64) - 1, 4),
        (0x7000 + SHARED_BUFFER_OFFSET, -1),
        (0x7000 + SHARED_BUFFER_OFFSET, 1 << 64),
    ],
)
def test_scratch_outside_the_shared_buffer(scratch: int, size: int):
    ghcb = Ghcb()
    ghcb.sw_scratch = scratch
    with pytest.raises(GhcbInputError) as error:
        ghcb.scratch(0x7000, size)
    assert error.value.reason is GhcbError.INVALID_SCRATCH_AREA


def test_scratch_may_fill_the_buffer():
    ghcb = Ghcb()
    ghcb.sw_scratch = SHARED_BUFFER_OFFSET
    assert len(ghcb.scratch(0, SHARED_BUFFER_SIZE)) == SHARED_BUFFER_SIZE


@pytest.mark.parametrize(
    ("info_1", "expected"),
    [
        # in al, dx with DX = 3FD as Linux encodes it.
        (0x3FD << 16 | 1 << 9 | 1 << 4 | 1, IoioInfo(0x3FD, True, False, False, 1, 8, 0)),
        (0x3F8 << 16 | 1 << 4, IoioInfo(0x3F8, False, False, False, 1, 0, 0)),
        # rep outsd, 32-bit addresses, DS.
        (
            0xCF8 << 16 | 3 << 10 | 1 << 8 | 1 << 6 | 1 << 3 | 1 << 2,
            IoioInfo(0xCF8, False, True, True, 4, 4, 3),
        ),
    ],
)
def test_ioio(info_1: int, expected: IoioInfo):
    assert IoioInfo.decode(info_1) == expected
    assert expected.encode() == info_1


@pytest.mark.parametrize(
    "info_1", [0, 1 << 4 | 1 << 5, 1 << 4 | 1 << 7 | 1 << 8, 1 << 4 | 1 << 2, (1 << 64) - 1]
)
def test_ioio_without_one_size(info_1: int):
    with pytest.raises(GhcbInputError) as error:
        IoioInfo.decode(info_1)
    assert error.value.reason is GhcbError.INVALID_INPUT


def psc(header: tuple[int, int], *entries: int) -> bytearray:
    buffer = bytearray(SHARED_BUFFER_SIZE)
    struct.pack_into(f"<HHI{len(entries)}Q", buffer, 0, *header, 0, *entries)
    return buffer


def test_psc_entry_is_encoded_as_linux_does():
    entry = PscEntry(0x1234_5000, PscOperation.SHARED, PageSize.SIZE_4K)
    assert entry.encode() == 0x12345 << 12 | 2 << 52
    huge = PscEntry(0x20_0000, PscOperation.PRIVATE, PageSize.SIZE_2M, cur_page=3)
    assert huge.encode() == 3 | 0x200 << 12 | 1 << 52 | 1 << 56
    assert PscEntry.decode(huge.encode()) == huge


def test_psc_runs_through_its_entries():
    entries = [
        PscEntry(0x1000, PscOperation.SHARED, PageSize.SIZE_4K),
        PscEntry(0x20_0000, PscOperation.PRIVATE, PageSize.SIZE_2M),
    ]
    memory = bytearray(PscDescriptor.build(entries))
    descriptor = PscDescriptor(memory)
    assert list(descriptor.pending()) == entries
    assert descriptor.cur_entry == 2
    assert struct.unpack_from("<2Q", memory, 8)[1] & 0xFFF == 512


def test_psc_stops_at_the_entry_that_failed():
    memory = psc((0, 2), 1 << 52, 2 << 52 | 1 << 12, 9 << 52)
    descriptor = PscDescriptor(memory)
    pending = descriptor.pending()
    assert [next(pending).gpa, next(pending).gpa] == [0, 0x1000]
    with pytest.raises(PscInputError) as error:
        next(pending)
    assert descriptor.cur_entry == 2
    assert error.value.error is PscError.INVALID_ENTRY


def test_psc_goes_on_where_it_was():
    descriptor = PscDescriptor(psc((1, 1), 9 << 52, 1 << 52 | 1 << 12))
    assert [entry.gpa for entry in descriptor.pending()] == [0x1000]


@pytest.mark.parametrize("header", [(0, PSC_MAX_ENTRIES), (2, 1), (0, 0xFFFF), (0xFFFF, 0xFFFF)])
def test_psc_header_out_of_bounds(header: tuple[int, int]):
    with pytest.raises(PscInputError) as error:
        PscDescriptor(psc(header))
    assert error.value.error is PscError.INVALID_HEADER


def test_psc_list_ends_with_the_shared_buffer():
    memory = psc((0, 252))
    assert PscDescriptor(memory).end_entry == 252
    with pytest.raises(PscInputError, match="of 252"):
        PscDescriptor(memory[:-8])
    with pytest.raises(PscInputError, match="no room"):
        PscDescriptor(memory[:7])


@pytest.mark.parametrize(
    "raw",
    [
        0,
        5 << 52,
        3 << 52,  # PSMASH of a 4 KiB page
        1 << 52 | 2,  # the second of one page
        1 << 52 | 1 << 56 | 1 << 12,  # 2 MiB, not aligned
        1 << 52 | 1 << 56 | 513,
    ],
)
def test_psc_entry_that_is_malformed(raw: int):
    with pytest.raises(PscInputError) as error:
        PscEntry.decode(raw)
    assert error.value.error is PscError.INVALID_ENTRY


@pytest.mark.parametrize("count", [0, PSC_MAX_ENTRIES + 1])
def test_psc_list_has_1_to_253_entries(count: int):
    entry = PscEntry(0, PscOperation.PRIVATE, PageSize.SIZE_4K)
    with pytest.raises(ValueError, match="entries"):
        PscDescriptor.build([entry] * count)
