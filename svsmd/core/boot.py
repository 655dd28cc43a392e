# SPDX-License-Identifier: MIT
"""From the first gate call of the boot CPU to a guest that is ready to run.

The SVSM's own region is valid by then, and this vCPU has a GHCB: that is stage 2's work, and the
kernel-launch page says what it has left where. In this order: read that page and the launch info;
make page tables and go on in them; validate the rest of the memory and grant it to the guest; give
the guest its copies of the secrets and the CPUID page; write the VMSA of its boot CPU.

The host decides what it puts at each address, so every page is either one that LAUNCH_UPDATE has
put there (measured, validated already), or one that PVALIDATE changes from invalid to valid here
and that is zeroed before the guest may look. A page that is neither is a panic: the host maps one
page twice, or took a measured one away.

Spec: 24593, 15.36.6 (page validation); 58019 (SVSM), section 3 (secrets page), section 4;
56860, "Secrets page format".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from svsmd.core.access import (
    flush_tlb,
    grant,
    load_own,
    mapped,
    pvalidate,
    rmpadjust,
    store,
    zero,
    zero_own,
)
from svsmd.core.gate import Handler, Preempt, StartCpu, SvsmPanic
from svsmd.core.guest_memory import GuestMemory, subtract
from svsmd.core.hypervisor import ApCreationRequest, ap_creation, check_features
from svsmd.core.kernel_launch import KernelLaunch, KernelLaunchError
from svsmd.core.launch_info import LaunchInfo, LaunchInfoError, LaunchRangeFlags
from svsmd.core.log import CoreLog
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.paging.cpu_area import CpuArea
from svsmd.core.paging.kernel_maps import ImageLayout, KernelMaps
from svsmd.core.percpu import GuestWorld, PerCpu, Window
from svsmd.core.port import PRIVATE_MAP
from svsmd.core.validation_bitmap import ValidationBitmap
from svsmd.core.vmsa_setup import (
    SUPPORTED_SEV_FEATURES,
    SevState,
    guest_boot_vmsa,
    svsm_ap_vmsa,
)
from svsmd.snp.cpuid_page import CpuidFunction, CpuidPage
from svsmd.snp.rmp import RmpAttributes, RmpReturn
from svsmd.snp.secrets_page import SVSM_MAX_VERSION, SecretsPage
from svsmd.snp.types import (
    C_BIT_POSITION,
    HUGE_PAGE_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    Gpa,
    PageSize,
    Vmpl,
)
from svsmd.snp.vmsa import SEV_STATUS_FEATURES_SHIFT, SEV_STATUS_MSR, Cr4, SevFeatures, Vmsa

CPUID_ENCRYPTION_FUNCTION: Final = 0x8000_001F
CPUID_STRUCTURED_FEATURES: Final = 7
CPUID_SMEP: Final = 1 << 7
CPUID_SMAP: Final = 1 << 20
"""Bits of its EBX."""
CPUID_SVSM_PRESENT: Final = 1 << 28
"""Bit of its EAX that says that the guest runs under an SVSM (58019, section 3)."""

TOO_SMALL: Final = "the SVSM region is too small for this machine"

VMSA_OF_SVSM: Final = int(RmpAttributes.VMSA) | Vmpl.VMPL1
"""RDX of RMPADJUST for a VMSA that is a page of the SVSM. The instruction wants a VMPL below VMPL0;
none gets a right."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What boot found out and set up."""

    launch: LaunchInfo
    kernel: KernelLaunch
    memory: GuestMemory
    pages: PageAllocator
    maps: KernelMaps
    cr4: int
    """Of all CPUs at VMPL0."""
    guest_vmpl: Vmpl
    sev: SevState
    guest_vmsa: Gpa
    """The guest's boot CPU: a page of the SVSM."""


class GuestSequenceNumbers(NamedTuple):
    """How many messages the guest has exchanged with the security processor, by VMPCK.

    They lie in its secrets page, and outlive it: a key is never used twice with one number.
    """

    vmpck0: int = 0
    vmpck1: int = 0
    vmpck2: int = 0
    vmpck3: int = 0

    @classmethod
    def of(cls, secrets: SecretsPage) -> GuestSequenceNumbers:
        """Those of a secrets page."""
        return cls(
            secrets.msg_seqno_0, secrets.msg_seqno_1, secrets.msg_seqno_2, secrets.msg_seqno_3
        )

    def store(self, secrets: SecretsPage) -> None:
        """Put them into a secrets page."""
        secrets.msg_seqno_0, secrets.msg_seqno_1 = self.vmpck0, self.vmpck1
        secrets.msg_seqno_2, secrets.msg_seqno_3 = self.vmpck2, self.vmpck3


def read_kernel_launch(cpu: PerCpu, gpa: int) -> KernelLaunch:
    """The kernel-launch page; panics if stage 2 and this core do not belong together."""
    try:
        return KernelLaunch.from_page(load_own(cpu, gpa, PAGE_SIZE))
    except KernelLaunchError as error:
        raise SvsmPanic(f"the kernel launch is wrong: {error}") from error


def read_launch_info(cpu: PerCpu, gpa: int) -> LaunchInfo:
    """The launch-info page; panics if it holds what no launcher may write."""
    try:
        launch = LaunchInfo.from_page(load_own(cpu, gpa, PAGE_SIZE))
    except LaunchInfoError as error:
        raise SvsmPanic(f"the launch info is wrong: {error}") from error
    if launch.cbit != C_BIT_POSITION:
        raise SvsmPanic(f"the launch info has the C-bit at {launch.cbit}")
    return launch


def read_sev_state(cpu: PerCpu, launch: LaunchInfo) -> SevState:
    """What this vCPU runs with, for the VMSAs of others; panics if that is nothing for us.

    The features are those of SEV_STATUS. With Secure TSC the security processor has written scale
    and offset to the VMSA of this vCPU, behind the launcher's back.
    """
    status = cpu.port.rdmsr(SEV_STATUS_MSR)
    features = SevFeatures(status >> SEV_STATUS_FEATURES_SHIFT)
    if features & ~int(SUPPORTED_SEV_FEATURES):
        raise SvsmPanic(f"SEV features {features:#x} are more than this SVSM supports")
    if not features & SevFeatures.SECURE_TSC:
        return SevState(features)
    own = Vmsa.copy_of(load_own(cpu, launch.svsm_vmsa, PAGE_SIZE))
    if own.sev_features != features:
        raise SvsmPanic(f"the VMSA at {launch.svsm_vmsa:#x} is not the one that runs")
    return SevState(features, own.guest_tsc_scale, own.guest_tsc_offset)


def make_allocator(
    cpu: PerCpu, launch: LaunchInfo, kernel: KernelLaunch, *, poison: bool
) -> PageAllocator:
    """The allocator of all pages of the region that nobody has.

    What stage 2 alone has used is free again, but for its page tables, which are in use.
    """
    region = range(launch.svsm_base, launch.svsm_base + launch.svsm_size)
    info, nbytes = Gpa(kernel.free.start), PageAllocator.info_nbytes(region)
    if info + nbytes > region.stop:
        raise SvsmPanic(TOO_SMALL)
    zero_own(cpu, info, nbytes)
    pages = (
        launch.svsm_vmsa, launch.svsm_cpuid, launch.svsm_secrets, launch.guest_caa,
        kernel.launch_info, kernel.ghcb, kernel.core_digest,
    )  # fmt: skip
    parts = (kernel.kernel_file, kernel.archive, kernel.page_tables, kernel.kernel)
    reserved = [range(gpa, gpa + PAGE_SIZE) for gpa in pages]
    reserved += [part.pages for part in parts if part.size]
    return PageAllocator(
        cpu, region, [r for r in reserved if r.start in region], info, poison=poison
    )


def memory_report(pages: PageAllocator) -> str:
    """One line about the SVSM's memory: KiB free of all, and what the rest is used for."""
    statistics = pages.statistics()
    kib = PAGE_SIZE >> 10
    used = ", ".join(
        f"{kind.name.lower().replace('_', ' ')} {count * kib}"
        for kind, count in statistics.by_kind.items()
        if kind is not PageKind.FREE
    )
    return f"memory: {statistics.free * kib} of {statistics.total * kib} KiB free; {used}"


def cpuid_functions(cpu: PerCpu, launch: LaunchInfo) -> list[CpuidFunction]:
    """What the security processor has let through of the CPUID page."""
    return list(CpuidPage.copy_of(load_own(cpu, launch.svsm_cpuid, PAGE_SIZE)).functions())


def choose_cr4(cpu: PerCpu, launch: LaunchInfo) -> int:
    """CR4 for VMPL0: with SMEP and SMAP if the CPUID page has them."""
    cr4 = Cr4.PAE | Cr4.OSFXSR
    for entry in cpuid_functions(cpu, launch):
        if (entry.eax_in, entry.ecx_in) == (CPUID_STRUCTURED_FEATURES, 0):
            cr4 |= Cr4.SMEP if entry.ebx & CPUID_SMEP else 0
            cr4 |= Cr4.SMAP if entry.ebx & CPUID_SMAP else 0
    return int(cr4)


def _make_tables(
    cpu: PerCpu,
    launch: LaunchInfo,
    kernel: KernelLaunch,
    pages: PageAllocator,
    image: ImageLayout,
    cr4: int,
) -> Handler[KernelMaps]:
    """Make the core's page tables, and run on in them on the boot CPU."""
    region = range(launch.svsm_base, launch.svsm_base + launch.svsm_size)
    apart = [launch.svsm_vmsa, launch.guest_caa, kernel.ghcb]
    holes = [range(gpa, gpa + PAGE_SIZE) for gpa in apart] + [kernel.kernel.pages]
    maps = KernelMaps(cpu, pages, subtract([region], holes), image, kernel.kernel.base)
    area = CpuArea(cpu, maps)
    yield StartCpu(area.cr3, cr4)
    area.enter(cpu)
    area.map_ghcb(cpu, kernel.ghcb)
    area.set_user_ghcb(cpu, kernel.ghcb)
    cpu.ghcb = kernel.ghcb
    pages.release(cpu, kernel.page_tables.pages)
    return maps


def boot(
    cpu: PerCpu,
    launch: LaunchInfo,
    kernel: KernelLaunch,
    image: ImageLayout,
    log: CoreLog,
    *,
    poison: bool = False,
) -> Handler[Machine]:
    """Set the machine up on the boot CPU, whose `world` is the guest's when this returns.

    `poison` is the page allocator's debug option.
    """
    try:
        return (yield from _boot(cpu, launch, kernel, image, log, poison))
    except OutOfMemory as error:
        raise SvsmPanic(TOO_SMALL) from error


def _boot(
    cpu: PerCpu,
    launch: LaunchInfo,
    kernel: KernelLaunch,
    image: ImageLayout,
    log: CoreLog,
    poison: bool,
) -> Handler[Machine]:
    sev = read_sev_state(cpu, launch)
    if kernel.region != (launch.svsm_base, launch.svsm_size):
        raise SvsmPanic("the kernel launch and the launch info speak of different regions")
    check_features(kernel.hv_features)
    vmpl = Vmpl(launch.guest_vmpl)
    ram = [range(r.base, r.base + r.size) for r in launch.ram]
    region = range(launch.svsm_base, launch.svsm_base + launch.svsm_size)
    launched = [range(v.gpa, v.gpa + v.npages * PAGE_SIZE) for v in launch.validated]
    svsm_launched = [
        pages
        for pages, v in zip(launched, launch.validated, strict=True)
        if v.flags & LaunchRangeFlags.SVSM
    ]
    # The tables that stage 2 has made map the region as its own map later does, whole.
    cpu.windows.append(Window(region.start, region.stop, PRIVATE_MAP + region.start))
    cr4 = choose_cr4(cpu, launch)
    pages = make_allocator(cpu, launch, kernel, poison=poison)
    maps = yield from _make_tables(cpu, launch, kernel, pages, image, cr4)
    bitmap = ValidationBitmap(cpu, ram, pages)
    owned = subtract(ram, [region, *svsm_launched])
    memory = GuestMemory(owned, launch.guest_caa, bitmap, pages)
    for fresh in subtract(owned, launched):
        yield from _give(cpu, memory, fresh, vmpl, validated=False)
    for measured in subtract(owned, subtract(ram, launched)):
        yield from _give(cpu, memory, measured, vmpl, validated=True)
    total = sum(len(r) for r in owned)
    log.write(f"{total >> 20} MiB of {sum(len(r) for r in ram) >> 20} MiB granted to VMPL{vmpl}")

    guest_vmsa = maps.allocate_apart(cpu, PageKind.VMSA)
    machine = Machine(launch, kernel, memory, pages, maps, cr4, vmpl, sev, guest_vmsa)
    yield from copy_pages(cpu, machine, GuestSequenceNumbers())
    yield from make_guest(cpu, machine)
    log.write(f"guest starts at {launch.entry.rip:#x}")
    return machine


def start_ap(cpu: PerCpu, machine: Machine, target: PerCpu, ap_start: int) -> Handler[None]:
    """Start the SVSM on another vCPU; `ap_start` is its GVA there."""
    apic_id = target.apic_id
    try:
        area = CpuArea(cpu, machine.maps)
        vmsa = machine.maps.allocate_apart(cpu, PageKind.VMSA)
    except OutOfMemory as error:
        raise SvsmPanic(TOO_SMALL) from error
    area.enter(target)
    contents = svsm_ap_vmsa(ap_start, area.cr3, machine.cr4, apic_id, machine.sev)
    with mapped(cpu, vmsa):
        yield from store(cpu, vmsa, contents)
        yield from _mark_vmsa(cpu, vmsa)
    done = yield from ap_creation(
        cpu, ApCreationRequest.CREATE, apic_id, Vmpl.VMPL0, vmsa, machine.sev.features
    )
    if not done:
        raise SvsmPanic(f"the hypervisor does not start the SVSM on vCPU {apic_id}")


def pieces(pages: range) -> Iterator[tuple[int, PageSize]]:
    """Cut a range into pages, 2 MiB ones where they fit."""
    gpa = pages.start
    while gpa < pages.stop:
        huge = gpa % HUGE_PAGE_SIZE == 0 and gpa + HUGE_PAGE_SIZE <= pages.stop
        size = PageSize.SIZE_2M if huge else PageSize.SIZE_4K
        yield gpa, size
        gpa += size.nbytes


def small_pages(gpa: int) -> Iterator[int]:
    return iter(range(gpa, gpa + HUGE_PAGE_SIZE, PAGE_SIZE))


def validate(cpu: PerCpu, gpa: int, size: PageSize) -> Handler[None]:
    """Make a page that the host has just assigned valid and zero; panics if it was valid."""
    code, unchanged = yield from pvalidate(cpu, gpa, size, True)
    if code == RmpReturn.FAIL_SIZEMISMATCH:
        # The host has assigned it in pages of 4 KiB.
        for page in small_pages(gpa):
            yield from validate(cpu, page, PageSize.SIZE_4K)
        return
    if code != RmpReturn.SUCCESS:
        raise SvsmPanic(f"PVALIDATE of page {gpa:#x} fails with {code}")
    if unchanged:
        raise SvsmPanic(f"page {gpa:#x} is valid already, but was not launched")
    yield from zero(cpu, gpa, size)


def give_access(cpu: PerCpu, gpa: int, size: PageSize, vmpl: Vmpl) -> Handler[None]:
    """Let `vmpl` use a valid page; panics if the host has taken it away."""
    code = yield from grant(cpu, gpa, size, vmpl)
    if code == RmpReturn.FAIL_SIZEMISMATCH:
        for page in small_pages(gpa):
            yield from give_access(cpu, page, PageSize.SIZE_4K, vmpl)
    elif code != RmpReturn.SUCCESS:
        raise SvsmPanic(f"RMPADJUST of page {gpa:#x} fails with {code}")


def _give(
    cpu: PerCpu, memory: GuestMemory, pages: range, vmpl: Vmpl, *, validated: bool
) -> Handler[None]:
    """Give pages to the guest, after validating those that the launch has not."""
    for gpa, size in pieces(pages):
        with mapped(cpu, gpa, size):
            if not validated:
                yield from validate(cpu, gpa, size)
            yield from give_access(cpu, gpa, size, vmpl)
        if size is PageSize.SIZE_2M:
            yield Preempt()
    memory.validated.set(cpu, pages.start, len(pages) >> PAGE_SHIFT, True)


def copy_pages(cpu: PerCpu, machine: Machine, numbers: GuestSequenceNumbers) -> Handler[None]:
    """The guest's copies of the secrets and the CPUID page."""
    launch = machine.launch
    for gpa in (launch.guest_secrets, launch.guest_cpuid):
        if not machine.memory.owns(gpa):
            raise SvsmPanic(f"the guest's page {gpa:#x} is not its own")
    secrets = SecretsPage.copy_of(load_own(cpu, launch.svsm_secrets, PAGE_SIZE))
    secrets.clear_vmpcks_below(machine.guest_vmpl)
    secrets.svsm_base = launch.svsm_base
    secrets.svsm_size = launch.svsm_size
    secrets.svsm_caa = launch.guest_caa
    secrets.svsm_max_version = SVSM_MAX_VERSION
    secrets.svsm_guest_vmpl = machine.guest_vmpl
    numbers.store(secrets)
    yield from store(cpu, launch.guest_secrets, secrets.tobytes())

    cpuid = CpuidPage.copy_of(load_own(cpu, launch.svsm_cpuid, PAGE_SIZE))
    for index, entry in enumerate(cpuid.functions()):
        if entry.eax_in == CPUID_ENCRYPTION_FUNCTION:
            cpuid.set_function(index, entry._replace(eax=entry.eax | CPUID_SVSM_PRESENT))
    yield from store(cpu, launch.guest_cpuid, cpuid.tobytes())
    yield Preempt()


def _give_calling_area(cpu: PerCpu, caa: Gpa, vmpl: Vmpl) -> Handler[None]:
    """The one page of the SVSM's region that the guest may use."""
    with mapped(cpu, caa):
        yield from zero(cpu, caa, PageSize.SIZE_4K)
        yield from give_access(cpu, caa, PageSize.SIZE_4K, vmpl)


def _mark_vmsa(cpu: PerCpu, gpa: Gpa) -> Handler[None]:
    """Make a page of the SVSM a VMSA."""
    code = yield from rmpadjust(cpu, gpa, PageSize.SIZE_4K, VMSA_OF_SVSM)
    if code != RmpReturn.SUCCESS:
        raise SvsmPanic(f"RMPADJUST cannot make page {gpa:#x} a VMSA: {code}")


def make_guest(cpu: PerCpu, machine: Machine) -> Handler[None]:
    """Write calling area and VMSA of the guest's boot CPU, and name the VMSA to the host."""
    launch, vmsa = machine.launch, machine.guest_vmsa
    yield from _give_calling_area(cpu, launch.guest_caa, machine.guest_vmpl)
    with mapped(cpu, vmsa):
        contents = guest_boot_vmsa(launch.entry, machine.guest_vmpl, machine.sev)
        yield from store(cpu, vmsa, contents)
        yield from _mark_vmsa(cpu, vmsa)
    flush_tlb(cpu)
    done = yield from ap_creation(
        cpu,
        ApCreationRequest.CREATE_ON_INIT,
        cpu.apic_id,
        machine.guest_vmpl,
        vmsa,
        machine.sev.features,
    )
    if not done:
        raise SvsmPanic("the hypervisor does not take the guest's VMSA")
    world = GuestWorld(cpu.apic_id, vmsa, launch.guest_caa, svsm_owned=True)
    machine.memory.register(world)
    cpu.world = world
