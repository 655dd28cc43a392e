# SPDX-License-Identifier: MIT
"""Both stages of the boot on the real engine, under hosts and launchers that are not honest."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd import core
from svsmd.config import MIB
from svsmd.core.hypervisor import SVSM_REASON_SET, SvsmReason
from svsmd.core.launch_info import LaunchInfo
from svsmd.core.port import IMAGE_MAP
from svsmd.elf_symbols import elf_symbols
from svsmd.errors import ExitCode
from svsmd.host.layout import SvsmRegion, ram_ranges
from svsmd.images import image_path
from svsmd.slice_end import Ended
from svsmd.snp import ghcb_msr
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.rmp import GUEST_ASID, RmpReturn, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, PageSize, Spa, Vmpl
from svsmd.snp.vmsa import SEV_STATUS_MSR
from tests.boot_machine import MEMORY, Boot

REGION = SvsmRegion.at_top_of(ram_ranges(MEMORY))
NATIVE = Path(core.__file__).parent / "native"
ADDRESS = C_BIT - PAGE_SIZE
"""Bits of an entry that are an address."""
LINE = re.compile(r"stage [12]: |panic: stage 2: ")


def test_honest_boot() -> None:
    boot = Boot()
    launch = boot.to_the_core()
    region = boot.region
    stages = [line for line in boot.log if LINE.match(line)]
    assert [line.split(":")[0] for line in stages] == ["stage 1"] + 4 * ["stage 2"]
    assert stages[0] == f"stage 1: started at {region.base:x}, C-bit 39, SEV status 7"
    assert "long mode, GHCB protocol 2" in stages[1]
    assert "1 pages of 2 MiB" in stages[2]
    assert f"mapped at {IMAGE_MAP:x}" in stages[3]
    assert stages[4].startswith("stage 2: memory: stages ")

    assert launch.launch_info == region.launch_info
    assert launch.ghcb == region.ghcb
    assert launch.region == (region.base, region.size)
    assert launch.launched + launch.validated + PAGE_SIZE == region.size
    image = boot.read(launch.kernel_file.base, launch.kernel_file.size)
    assert image[:4] == b"\x7fELF"
    names = boot.read(launch.strings.base, launch.strings.size)
    assert b"\0svsm_core_gate\0" in names
    assert launch.symbols.size % 24 == 0
    rmp = boot.machine.silicon.rmp
    for gpa in range(region.base, region.end, PAGE_SIZE):
        entry = rmp.lookup(gpa)
        assert entry is not None
        assert entry.assigned is entry.validated is (gpa != launch.ghcb), hex(gpa)
        assert not any(entry.permissions[1:])


def test_kernel_is_mapped_w_xor_x_and_private() -> None:
    boot = Boot()
    launch = boot.to_the_core()
    rights = set()
    state = boot.machine.silicon.processor.paging_state()
    assert state.cr3 == launch.page_table | C_BIT
    for page in range(0, launch.kernel.size, PAGE_SIZE):
        entry = leaf_entry(boot, launch.page_table, launch.kernel_virt + page)
        assert entry & (ADDRESS | C_BIT) == launch.kernel.base + page | C_BIT
        writable, executable = bool(entry & 2), not entry >> 63
        assert not (writable and executable)
        assert not entry & 4
        rights.add((writable, executable))
    assert rights == {(False, True), (False, False), (True, False)}
    # Nothing behind it, and no identity map any more.
    assert leaf_entry(boot, launch.page_table, launch.kernel_virt + launch.kernel.size) == 0
    assert leaf_entry(boot, launch.page_table, boot.region.base) == 0


def leaf_entry(boot: Boot, root: int, gva: int) -> int:
    """The entry of the last level that maps this address by 4 KiB; 0 if none does."""
    table, entry = root, 0
    for shift in (39, 30, 21, 12):
        entry = int.from_bytes(boot.read(table + (gva >> shift & 511) * 8, 8), "little")
        if not entry & 1:
            return 0
        if shift > 12:
            assert entry & C_BIT
            assert not entry & 1 << 7
        table = entry & ADDRESS
    return entry


def symbols_of(name: str) -> dict[str, int]:
    symbols = elf_symbols(image_path(name).read_bytes())
    return {symbol: place.start for symbol, place in symbols.items()}


@pytest.mark.parametrize("memory", [1024 * MIB + 2 * MIB, 32 * MIB, 3072 * MIB, 8192 * MIB])
def test_region_anywhere(memory: int) -> None:
    boot = Boot(memory=memory, cpus=2)
    launch = boot.to_the_core()
    assert launch.validated + launch.launched + PAGE_SIZE == boot.region.size


@pytest.mark.parametrize("size", [1, PAGE_SIZE, 3 * MIB + 17])
def test_archive_of_the_modules(size: int, tmp_path: Path) -> None:
    archive = bytes(range(1, 252)) * (size // 251 + 1)
    archive = archive[:size]
    without = Boot().machine.launch_digest
    path = tmp_path / "modules.tar"
    path.write_bytes(archive)
    boot = Boot(archive=path)
    assert boot.machine.launch_digest != without
    launch = boot.to_the_core()
    assert launch.archive == (boot.region.archive, size)
    assert boot.read(*launch.archive) == archive
    assert launch.heap.base == launch.archive.pages.stop
    assert launch.launched + launch.validated + PAGE_SIZE == boot.region.size


def test_pages_of_4_kib_are_validated_one_by_one() -> None:
    boot = Boot()
    assert (
        boot.machine.silicon.rmp.psmash(Spa(boot.region.base + HUGE_PAGE_SIZE)) is RmpReturn.SUCCESS
    )
    launch = boot.to_the_core()
    assert launch.validated + launch.launched + PAGE_SIZE == boot.region.size
    assert any("in 0 pages of 2 MiB and" in line for line in boot.log)


@pytest.mark.parametrize("offset", [0x10_0000, 0x1F_F000, 0x20_0000, 0x3F_F000])
def test_page_that_the_host_has_made_valid_already(offset: int) -> None:
    boot = Boot()
    gpa = boot.region.base + offset
    rmp = boot.machine.silicon.rmp
    if offset >= HUGE_PAGE_SIZE:
        rmp.psmash(Spa(boot.region.base + HUGE_PAGE_SIZE))
    rmp.firmware_update(Spa(gpa), validated=True)
    reason, log = boot.ends()
    assert reason is SvsmReason.VALIDATION
    assert log[-2] == f"panic: stage 2: page {gpa:x} is valid already, but was not launched"
    assert "wiped" in log[-1]
    secrets = SecretsPage.copy_of(boot.read(boot.region.secrets, PAGE_SIZE))
    assert all(secrets.vmpck(n) == bytes(32) for n in range(4))


def test_launched_page_that_the_host_took_away_is_an_exception() -> None:
    boot = Boot()
    info = LaunchInfo.from_page(boot.read(boot.region.launch_info, PAGE_SIZE))
    rmp = boot.machine.silicon.rmp
    for update in (
        RmpUpdate(),
        RmpUpdate(True, PageSize.SIZE_4K, False, info.svsm_kernel, GUEST_ASID),
    ):
        assert rmp.rmpupdate(Spa(info.svsm_kernel), update) is RmpReturn.SUCCESS
    reason, log = boot.ends()
    assert reason is SvsmReason.EXCEPTION
    # #VC with "page not validated"
    assert re.match(r"panic: stage 2: exception 29 at [0-9a-f]+, error code 404, CR2 ", log[-2])


def test_missing_page_ends_at_the_host_that_took_it() -> None:
    boot = Boot()
    archive = -(-image_path("modules").stat().st_size // PAGE_SIZE) * PAGE_SIZE
    boot.machine.silicon.rmp.rmpupdate(Spa(boot.region.archive + archive), RmpUpdate())
    for _ in range(100):
        end = boot.machine.run_slice()
        if isinstance(end, Ended):
            break
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert "nested page fault" in end.reason


@pytest.mark.parametrize("cbit", [38, 40, 47, 51, 32])
def test_launch_info_with_another_c_bit_is_refused_by_stage_1(cbit: int) -> None:
    boot = Boot()
    boot.launcher_writes(boot.region.launch_info + 0x10, struct.pack("<I", cbit))
    assert boot.ends() == (SvsmReason.LAUNCH, [])


@pytest.mark.parametrize("cbit", [0, 31, 40, 63])
def test_cpuid_page_with_another_c_bit_is_refused_by_stage_1(cbit: int) -> None:
    boot = Boot()
    page = CpuidPage.copy_of(boot.read(boot.region.cpuid, PAGE_SIZE))
    for index, entry in enumerate(page.functions()):
        if entry.eax_in == 0x8000_001F:
            page.set_function(index, entry._replace(ebx=entry.ebx & ~0x3F | cbit))
    boot.launcher_writes(boot.region.cpuid, page.tobytes())
    boot.launcher_writes(boot.region.launch_info + 0x10, struct.pack("<I", 39))
    assert boot.ends() == (SvsmReason.LAUNCH, [])


@pytest.mark.parametrize("status", [0, 1, 3, 5, 6])
def test_without_sev_snp_stage_1_refuses(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = Boot()
    processor = boot.machine.silicon.processor
    honest = processor.read_msr
    monkeypatch.setattr(
        processor, "read_msr", lambda msr: status if msr == SEV_STATUS_MSR else honest(msr)
    )
    assert boot.ends() == (SvsmReason.LAUNCH, [])


@pytest.mark.parametrize("count", [0, 1, 65, 0xFFFF_FFFF])
def test_cpuid_page_without_the_function_is_refused_by_stage_1(count: int) -> None:
    boot = Boot()
    boot.launcher_writes(boot.region.cpuid, struct.pack("<I", count))
    assert boot.ends() == (SvsmReason.LAUNCH, [])


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0x00, b"X"),
        (0x07, b"2"),
        (0x08, struct.pack("<I", 2)),
        (0x0C, struct.pack("<I", 0)),
        (0x20, struct.pack("<Q", REGION.base - HUGE_PAGE_SIZE)),
        (0x28, struct.pack("<Q", 0)),
        (0x28, struct.pack("<Q", PAGE_SIZE)),
        (0x28, struct.pack("<Q", 1 << 40)),
        (0x40, struct.pack("<Q", REGION.secrets + PAGE_SIZE)),
        (0x60, struct.pack("<Q", REGION.base)),
        (0x60, struct.pack("<Q", REGION.end)),
        (0x68, struct.pack("<Q", (1 << 64) - PAGE_SIZE)),
        (0x70, struct.pack("<Q", REGION.base)),
        (0x78, struct.pack("<Q", REGION.size)),
        (0x80, struct.pack("<Q", REGION.base + 1)),
        (0x88, struct.pack("<Q", REGION.launch_info)),
        (0x140, struct.pack("<I", 17)),
        (0x148, struct.pack("<Q", REGION.base - PAGE_SIZE)),
        (0x150, struct.pack("<I", 0xFFFF_FFFF)),
    ],
)
def test_launch_info_that_makes_no_sense_is_refused(offset: int, data: bytes) -> None:
    boot = Boot()
    boot.launcher_writes(boot.region.launch_info + offset, data)
    assert boot.ends() == (SvsmReason.LAUNCH, [])


@pytest.mark.parametrize(
    ("info", "answer"),
    [
        ("SEV_INFO_REQUEST", lambda _: 0),
        ("SEV_INFO_REQUEST", lambda _: ghcb_msr.sev_info_response(1, 1, 39)),
        ("SEV_INFO_REQUEST", lambda _: ghcb_msr.sev_info_response(3, 4, 39)),
        ("SEV_INFO_REQUEST", lambda _: ghcb_msr.sev_info_response(1, 2, 47)),
        ("HV_FEATURES_REQUEST", lambda _: 0),
        ("HV_FEATURES_REQUEST", lambda _: ghcb_msr.hv_features_response(ghcb_msr.HvFeature(2))),
        ("PSC_REQUEST", lambda _: 0),
        ("PSC_REQUEST", lambda answer: answer | 1 << 32),
        ("REGISTER_GPA_REQUEST", lambda answer: answer + PAGE_SIZE),
        (
            "REGISTER_GPA_REQUEST",
            lambda _: ghcb_msr.register_gpa_response(ghcb_msr.GHCB_GPA_REFUSED),
        ),
    ],
)
def test_host_that_breaks_the_ghcb_protocol(info: str, answer: Callable[[int], int]) -> None:
    boot = Boot()
    boot.answer(ghcb_msr.GhcbInfo[info], answer)
    assert boot.ends() == (SvsmReason.GHCB, [])


def test_host_without_what_the_core_needs_gets_as_far_as_the_core() -> None:
    boot = Boot()
    snp = ghcb_msr.HvFeature.SNP
    boot.answer(ghcb_msr.GhcbInfo.HV_FEATURES_REQUEST, lambda _: ghcb_msr.hv_features_response(snp))
    reason, log = boot.ends()
    assert reason is SvsmReason.PANIC
    assert any("lacks features" in line for line in log)


def test_damaged_kernel_is_a_panic_with_a_line() -> None:
    boot = Boot()
    info = LaunchInfo.from_page(boot.read(boot.region.launch_info, PAGE_SIZE))
    boot.launcher_writes(info.svsm_kernel + 4, b"\1")
    reason, log = boot.ends()
    assert reason is SvsmReason.STAGE2
    assert log[-2] == "panic: stage 2: the kernel's file has no ELF of 64 bits"


def test_stages_run_w_xor_x_with_their_identity_map() -> None:
    boot = Boot()
    symbols = symbols_of("stages")
    launch = boot.to_the_core()
    base = boot.region.base
    root = base + symbols["stage2_pml4"]
    for page in range(0, HUGE_PAGE_SIZE, PAGE_SIZE):
        entry = leaf_entry(boot, root, base + page)
        assert entry & ADDRESS == base + page
        assert bool(entry & C_BIT) is (base + page != launch.ghcb)
        assert not entry & 4
        writable, executable = bool(entry & 2), not entry >> 63
        assert executable is (page < symbols["stages_text_end"])
        assert writable is (page >= symbols["stages_rodata_end"])


def test_only_vmpl0_writes_to_the_svsms_console() -> None:
    boot = Boot()
    machine = boot.machine
    for vmpl, port, text in (
        (Vmpl.VMPL2, 0xE9, b"forged\n"),
        (None, 0xE9, b"early\n"),
        (Vmpl.VMPL0, 0xE9, b"genuine\n"),
        (Vmpl.VMPL0, 0x402, b"\n" + 1000 * b"x" + b"\xff\n"),
    ):
        machine.hypervisor.exiting = vmpl
        for byte in text:
            machine.platform.ports.write(port, 1, byte)
    assert boot.log == ["genuine", "", 400 * "x", 400 * "x", 200 * "x" + "\ufffd"]


def test_reason_codes_are_those_of_the_header() -> None:
    text = (NATIVE / "layout.h").read_text()
    codes = {n: int(v) for n, v in re.findall(r"#define SVSM_REASON_(\w+) (\d+)", text)}
    assert codes.pop("SET") == SVSM_REASON_SET
    assert codes == {reason.name: reason.value for reason in SvsmReason}


def test_offsets_are_those_of_the_header() -> None:
    text = (NATIVE / "layout.h").read_text() + (NATIVE / "launch_info.h").read_text()
    offsets = {n: int(v, 16) for n, v in re.findall(r"#define (\w+_OFFSET) (0x[0-9a-f]+)", text)}
    assert offsets == {
        "LAUNCH_INFO_OFFSET": SvsmRegion.LAUNCH_INFO_OFFSET,
        "SVSM_CPUID_OFFSET": SvsmRegion.CPUID_OFFSET,
        "SVSM_SECRETS_OFFSET": SvsmRegion.SECRETS_OFFSET,
        "SVSM_VMSA_OFFSET": SvsmRegion.VMSA_OFFSET,
        "SVSM_CAA_OFFSET": SvsmRegion.CAA_OFFSET,
        "SVSM_GHCB_OFFSET": SvsmRegion.GHCB_OFFSET,
        "SVSM_ARCHIVE_OFFSET": SvsmRegion.ARCHIVE_OFFSET,
    }
