# SPDX-License-Identifier: MIT
"""The direct boot: what is placed where, the entry state, and what cannot be booted."""

import gzip
import struct
from collections.abc import Sequence

import pytest

from svsmd.host.boot_params import E820Entry, E820Type, e820_map
from svsmd.host.direct_boot import DirectBoot, build_direct_boot, page_ranges
from svsmd.host.layout import DIRECT_BOOT_LAYOUT as LAYOUT
from svsmd.host.layout import GIB, MIB, SvsmRegion, ram_ranges
from svsmd.host.loader_error import LoaderError
from svsmd.snp.types import C_BIT

RAM = ram_ranges(512 * MIB)
SVSM = SvsmRegion.at_top_of(RAM)


def elf(paddr: int = 0x100_0000, size: int = 0x1800, memsz: int = 0x5000) -> bytes:
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, paddr, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 7, 120, paddr, paddr, size, memsz, 0x1000)
    return header + load + b"\x90" * size


PREF_ADDRESS = 0x100_0000
INIT_SIZE = 0x30_0000


def bzimage(
    kernel: bytes,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 2047,
    pref_address: int = PREF_ADDRESS,
) -> bytes:
    payload = gzip.compress(kernel)
    data = bytearray(5 * 512)
    data[0x1F1] = 4
    struct.pack_into("<H", data, 0x1FE, 0xAA55)
    data[0x201] = 0x66
    data[0x202:0x208] = b"HdrS\x0f\x02"
    struct.pack_into("<I", data, 0x22C, initrd_addr_max)
    struct.pack_into("<HI", data, 0x236, 1, cmdline_size)
    struct.pack_into("<II", data, 0x248, 0, len(payload))
    struct.pack_into("<QI", data, 0x258, pref_address, INIT_SIZE)
    return bytes(data) + payload


def boot(
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    cmdline: str = "console=ttyS0",
    memory: Sequence[range] = RAM,
    ncpus: int = 1,
    svsm: SvsmRegion | None = SVSM,
) -> DirectBoot:
    return build_direct_boot(kernel or elf(), initrd, cmdline, memory, ncpus, svsm)


def read(result: DirectBoot, gpa: int, size: int) -> bytes:
    for launched in result.ranges:
        if launched.gpa <= gpa and gpa + size <= launched.end:
            return launched.data[gpa - launched.gpa :][:size]
    raise AssertionError(f"{gpa:#x} is not part of the launch")


def u32(result: DirectBoot, gpa: int) -> int:
    return int.from_bytes(read(result, gpa, 4), "little")


def u64(result: DirectBoot, gpa: int) -> int:
    return int.from_bytes(read(result, gpa, 8), "little")


def test_entry_state():
    entry = boot().entry
    assert entry.rip == 0x100_0000
    assert entry.rsi == 0x1_0000
    assert entry.rsp == 0x3_8000
    assert entry.cr3 == 0x2_0000 | C_BIT
    assert (entry.cs.selector, entry.ds.selector) == (0x10, 0x18)
    assert (entry.gdt_base, entry.gdt_limit) == (0x1_5000, 31)
    assert entry.efer & 0x500 == 0x500
    assert entry.cr0 & 0x8000_0001 == 0x8000_0001


def test_gdt_matches_the_segments():
    result = boot()
    assert u64(result, 0x1_5010) == 0x00AF_9B00_0000_FFFF
    assert u64(result, 0x1_5018) == 0x00CF_9300_0000_FFFF


@pytest.mark.parametrize("address", [0, 0x1_0000, 0x100_0000, 0x2000_0000 - 1, 0xFFFF_FFFF])
def test_page_tables_map_four_gib_privately(address):
    result = boot()
    table = result.entry.cr3
    for shift in (39, 30, 21):
        assert table & C_BIT
        entry = u64(result, (table & 0x7F_FFFF_F000) + 8 * (address >> shift & 511))
        assert entry & 3 == 3
        table = entry
    assert table & 0x80
    assert (table & 0x7F_FFE0_0000) + (address & 0x1F_FFFF) == address


def test_boot_params_of_a_plain_elf():
    result = boot(initrd=b"initrd" * 1000, cmdline="quiet")
    base = LAYOUT.boot_params
    assert read(result, base + 0x202, 4) == b"HdrS"
    assert read(result, base + 0x1FE, 2) == b"\x55\xaa"
    assert u64(result, base + 0x70) == LAYOUT.acpi
    assert u32(result, base + 0x13C) == 0  # the kernel fills cc_blob_address in itself
    assert read(result, base + 0x210, 2) == b"\xff\x01"
    assert read(result, u32(result, base + 0x228), 6) == b"quiet\0"
    start, size = u32(result, base + 0x218), u32(result, base + 0x21C)
    assert read(result, start, size) == b"initrd" * 1000
    assert start % 4096 == 0
    assert start + size <= SVSM.base
    assert read(result, LAYOUT.acpi, 8) == b"RSD PTR "


def test_header_of_a_bzimage_is_kept():
    result = boot(bzimage(elf()))
    base = LAYOUT.boot_params
    assert read(result, base + 0x206, 2) == b"\x0f\x02"
    assert u32(result, base + 0x22C) == 0x7FFF_FFFF
    assert result.entry.rip == 0x100_0000
    assert read(result, 0x100_0000, 0x1800) == b"\x90" * 0x1800


def test_setup_data_leads_to_the_cc_blob():
    result = boot()
    node = u64(result, LAYOUT.boot_params + 0x250)
    following, kind, length = struct.unpack("<QII", read(result, node, 16))
    assert (following, kind) == (0, 7)
    blob = u32(result, node + 16)
    assert node < blob
    assert blob + 40 <= node + 16 + length
    assert struct.unpack("<IHHQIIQII", read(result, blob, 40)) == (
        0x45444D41, 1, 0, result.secrets_gpa, 4096, 0, result.cpuid_gpa, 4096, 0,
    )  # fmt: skip


def test_memory_map_with_an_svsm():
    result = boot()
    assert result.e820 == (
        E820Entry(0, 0x1_0000, E820Type.RESERVED),
        E820Entry(0x1_0000, 0x3000, E820Type.RAM),
        E820Entry(0x1_3000, 0x2000, E820Type.RESERVED),
        E820Entry(0x1_5000, 0x1000, E820Type.RAM),
        E820Entry(0x1_6000, 0x2000, E820Type.ACPI),
        E820Entry(0x1_8000, 0x1000, E820Type.NVS),
        E820Entry(0x1_9000, 0x8_7000, E820Type.RAM),
        E820Entry(0xA_0000, 0x6_0000, E820Type.RESERVED),
        E820Entry(0x10_0000, 0x1FB0_0000, E820Type.RAM),
        E820Entry(0x1FC0_0000, 0x40_0000, E820Type.RESERVED),
    )
    base = LAYOUT.boot_params
    assert read(result, base + 0x1E8, 1) == b"\x0a"
    assert struct.unpack("<QQI", read(result, base + 0x2D0 + 9 * 20, 20)) == (
        0x1FC0_0000, 0x40_0000, 2,
    )  # fmt: skip


def test_memory_map_without_an_svsm_and_above_4_gib():
    result = boot(memory=ram_ranges(5 * GIB), svsm=None)
    assert result.e820[-2] == E820Entry(0x10_0000, 3 * GIB - 0x10_0000, E820Type.RAM)
    assert result.e820[-1] == E820Entry(4 * GIB, 2 * GIB, E820Type.RAM)


def test_ranges_are_whole_disjoint_pages_and_leave_the_special_pages_alone():
    result = boot(initrd=b"x" * 5000)
    end = 0
    for launched in result.ranges:
        assert launched.gpa % 4096 == 0
        assert len(launched.data) % 4096 == 0
        assert launched.gpa >= end
        end = launched.end
        for page in (result.cpuid_gpa, result.secrets_gpa):
            assert not launched.gpa <= page < launched.end
    assert end <= SVSM.base
    assert result.zero_ranges == (range(0x100_2000, 0x100_5000),)


def test_initrd_stays_below_the_limit_of_the_kernel():
    result = boot(bzimage(elf(), initrd_addr_max=0x17F_FFFF), initrd=b"x" * 5000)
    start = u32(result, LAYOUT.boot_params + 0x218)
    assert start == 0x180_0000 - 0x2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": b"junk"}, "neither a bzImage nor an ELF"),
        ({"cmdline": "x" * 2048}, "command line has 2048 bytes; this kernel takes 2047"),
        ({"kernel": bzimage(elf(), cmdline_size=10)}, "has 13 bytes; this kernel takes 10"),
        (
            {"kernel": bzimage(elf(), cmdline_size=1 << 20), "cmdline": "x" * 4096},
            "this kernel takes 4095",
        ),
        ({"cmdline": "a\0b"}, "NUL"),
        ({"cmdline": "\udc80"}, "UTF-8"),
        ({"kernel": elf(paddr=SVSM.base - 0x2000)}, "too little memory: the kernel needs 509 MiB"),
        ({"kernel": elf(paddr=0x1_0000)}, "0x10000 lies below all memory for kernels"),
        ({"kernel": elf(memsz=1 << 30)}, "too little memory: .* there are 508 MiB"),
        ({"kernel": elf(memsz=4 << 30)}, "does not fit into memory"),
        ({"kernel": elf(paddr=SVSM.base - 0x8000), "initrd": b"x" * 0x4000}, "initrd another 1"),
        ({"memory": ram_ranges(2 * MIB), "svsm": None}, "too little memory"),
        ({"memory": (range(MIB),), "svsm": None}, "too little memory"),
        (
            {"kernel": bzimage(elf(), initrd_addr_max=0x1FF_FFFF), "initrd": bytes(31 * MIB)},
            "does not fit above the kernel and below 32 MiB",
        ),
        ({"memory": (range(4 * GIB, 5 * GIB),), "svsm": None}, "no memory at address 0"),
        ({"ncpus": 0}, "at least one CPU"),
        ({"ncpus": 5000}, "5000 CPUs are too many"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(LoaderError, match=message) as caught:
        boot(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, MIB, 3 * MIB + 1])
def test_memory_sizes_that_make_no_sense(size):
    with pytest.raises(LoaderError, match="multiple of 2 MiB"):
        ram_ranges(size)


def test_ram_ranges_leave_the_hole():
    assert ram_ranges(3 * GIB) == (range(3 * GIB),)
    assert ram_ranges(4 * GIB) == (range(3 * GIB), range(4 * GIB, 5 * GIB))


def test_svsm_region_has_room_for_the_archive():
    small = SvsmRegion.at_top_of(ram_ranges(512 * MIB))
    large = SvsmRegion.at_top_of(ram_ranges(512 * MIB), archive_size=5 * MIB)
    assert large.size == small.size + 4 * MIB
    assert large.end - large.archive - 5 * MIB > MIB


def test_svsm_region_is_the_aligned_top_of_low_memory():
    assert SVSM.base == 508 * MIB
    assert SvsmRegion.at_top_of(ram_ranges(8 * GIB)).base == 3 * GIB - 4 * MIB
    offsets = (
        SVSM.launch_info, SVSM.cpuid, SVSM.secrets, SVSM.vmsa, SVSM.caa, SVSM.ghcb, SVSM.archive,
    )  # fmt: skip
    assert [offset - SVSM.base for offset in offsets] == [
        0x8_0000, 0x8_1000, 0x8_2000, 0x8_3000, 0x8_4000, 0x8_5000, 0x8_6000,
    ]  # fmt: skip
    for ram, ncpus, mib in ((512 * MIB, 255, 12), (256 * GIB, 1, 10), (256 * GIB, 255, 20)):
        region = SvsmRegion.at_top_of(ram_ranges(ram), ncpus)
        assert region.size == mib * MIB
        assert region.end == min(ram, 3 * GIB)
        assert region.end - region.archive > 10 * ncpus * 4096 + ram // 4096 // 8
    assert SVSM.end == 512 * MIB
    with pytest.raises(LoaderError, match="too little memory"):
        SvsmRegion.at_top_of(ram_ranges(4 * MIB))


@pytest.mark.parametrize(
    ("kernel", "initrd", "svsm", "hint"),
    [
        (elf(memsz=1 << 30), None, SVSM, "--memory 2G"),
        (elf(), bytes(500 * MIB), SVSM, "--memory 1G"),
        (elf(paddr=0x3000_0000), None, None, "--memory 1G"),
        (b"not a kernel", None, SVSM, "vmlinuz"),
        (bzimage(elf())[:-1], None, SVSM, "complete"),
    ],
)
def test_hints(kernel, initrd, svsm, hint):
    with pytest.raises(LoaderError) as caught:
        boot(kernel, initrd, svsm=svsm)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_no_memory_helps_a_kernel_that_is_too_large():
    with pytest.raises(LoaderError, match="have to lie below 3072 MiB") as caught:
        boot(elf(memsz=3055 * MIB))
    assert caught.value.hint is None


OLD_LINUX = b"Linux version 5.10.0 (x)\0Kernel command line: %s\0"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("itself", [False, True])
def test_a_linux_that_cannot_run_is_refused(packed, itself):
    kernel = elf() + OLD_LINUX
    if packed or itself:
        kernel = bzimage(kernel)
    with pytest.raises(LoaderError, match=r"Linux 5\.10\.0.* cannot run as an SEV-SNP guest"):
        build_direct_boot(kernel, None, "", RAM, 1, None, self_decompressing=itself)


def test_what_only_the_kernel_can_unpack_is_not_looked_into():
    image = bzimage(elf()).replace(gzip.compress(elf())[:4], b"\x89LZO")
    assert build_direct_boot(image, None, "", RAM, 1, None, self_decompressing=True).ranges


def test_pieces_that_share_a_page_are_merged():
    first, second = page_ranges([(0x5000, b"later"), (0x1F00, b"a" * 0x200), (0x2800, b"b")])
    assert (first.gpa, len(first.data)) == (0x1000, 0x2000)
    assert first.data[0xF00:0x1100] == b"a" * 0x200
    assert first.data[0x1800:0x1802] == b"b\0"
    assert (second.gpa, len(second.data)) == (0x5000, 0x1000)


def test_e820_merges_neighbours_and_keeps_holes():
    carved = [
        E820Entry(0x3000, 0x1000, E820Type.RESERVED),
        E820Entry(0x2000, 0x1000, E820Type.RESERVED),
    ]
    assert e820_map([range(0x8000)], carved) == (
        E820Entry(0, 0x2000, E820Type.RAM),
        E820Entry(0x2000, 0x2000, E820Type.RESERVED),
        E820Entry(0x4000, 0x4000, E820Type.RAM),
    )


def test_a_bzimage_that_unpacks_itself_is_loaded_as_it_is() -> None:
    image = bzimage(elf())
    result = build_direct_boot(image, None, "", RAM, 1, SVSM, self_decompressing=True)
    assert result.entry.rip == PREF_ADDRESS + 0x200
    protected_mode = image[5 * 512 :]
    assert read(result, PREF_ADDRESS, len(protected_mode)) == protected_mode
    # What it unpacks into is there, and zero.
    assert result.zero_ranges == (range(PREF_ADDRESS + 0x1000, PREF_ADDRESS + INIT_SIZE),)


def test_an_initrd_lies_above_what_a_bzimage_unpacks_into() -> None:
    memory = ram_ranges(32 * MIB)
    with pytest.raises(LoaderError, match="the kernel needs 19 MiB of memory and the initrd"):
        build_direct_boot(
            bzimage(elf()), bytes(14 * MIB), "", memory, 1, None, self_decompressing=True
        )


@pytest.mark.parametrize(
    ("kernel", "memory", "message"),
    [
        (elf(), 512 * MIB, "no bzImage"),
        (bzimage(elf()), 18 * MIB, "the kernel needs 19 MiB of memory, there are 18 MiB"),
        (bzimage(elf(), pref_address=0x8_0000), 512 * MIB, "wants 3 MiB at 0x80000"),
    ],
)
def test_what_cannot_unpack_itself(kernel: bytes, memory: int, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        build_direct_boot(kernel, None, "", ram_ranges(memory), 1, None, self_decompressing=True)
