# SPDX-License-Identifier: MIT
"""A machine for the core's tests: the real RMP over a little sparse memory, and no CPU.

The boot's stages are a few lines here (`_boot_stages`), the native kernel is a loop (`run`), the
host answers the GHCB requests of a boot and solves size mismatches by PSMASH, and the guest is the
test: it fills a VMSA and a calling area and looks at what comes back.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from svsmd.core.core import Core, CoreConfig
from svsmd.core.gate import GateAction, GateReason, Handler, Vmgexit
from svsmd.core.guest_memory import subtract
from svsmd.core.kernel_launch import KernelLaunch, MemoryRange
from svsmd.core.launch_info import (
    EntryState,
    LaunchInfo,
    LaunchRangeFlags,
    RamRange,
    ValidatedRange,
)
from svsmd.core.paging.kernel_maps import ImageLayout
from svsmd.core.port import IMAGE_MAP, PERCPU_MAP, PRIVATE_MAP
from svsmd.host.dma import Dma
from svsmd.host.fw_cfg import FwCfg
from svsmd.host.io_exits import handle_ioio
from svsmd.host.local_apic import ApicBus
from svsmd.host.plane import Plane
from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TimerQueue
from svsmd.snp import ghcb_msr
from svsmd.snp.access import AccessKind
from svsmd.snp.cpuid_page import CpuidFunction, CpuidPage
from svsmd.snp.faults import GuestFault, NestedFault, NpfError, Vector
from svsmd.snp.ghcb import Ghcb, GhcbExit
from svsmd.snp.ghcb_msr import HvFeature, MsrPscOperation
from svsmd.snp.page_walk import KnownTables, PageWalker, PagingState
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import (
    C_BIT,
    C_BIT_POSITION,
    HUGE_PAGE_SIZE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Gpa,
    PageSize,
    Spa,
    Vmpl,
)
from svsmd.snp.vmpl0_port import Tlb
from svsmd.snp.vmsa import (
    SEV_STATUS_FEATURES_SHIFT,
    SEV_STATUS_MSR,
    Cr0,
    Cr4,
    Efer,
    SevFeatures,
    VmexitCode,
    Vmsa,
)

T = TypeVar("T")

MIB = 1 << 20
RAM_SIZE = 16 * MIB
SVSM_BASE = RAM_SIZE - 4 * MIB
LAUNCH_INFO = SVSM_BASE + 0x8_0000
SVSM_CPUID = SVSM_BASE + 0x8_1000
SVSM_SECRETS = SVSM_BASE + 0x8_2000
SVSM_VMSA = SVSM_BASE + 0x8_3000
GUEST_CAA = SVSM_BASE + 0x8_4000
SVSM_GHCB = SVSM_BASE + 0x8_5000
SVSM_HEAP = SVSM_BASE + 0x8_6000
"""What stage 2 has given out: the kernel-launch page, page tables, the loaded kernel."""
KERNEL_LAUNCH = SVSM_HEAP
PAGE_TABLES = SVSM_HEAP + 0x1000
SVSM_FREE = SVSM_HEAP + 0x1_0000
GUEST_CPUID = 0x1_3000
GUEST_SECRETS = 0x1_4000
KERNEL = 2 * MIB
KERNEL_PAGES = 0x240
"""More than 2 MiB, so that one region is measured as a whole and one in part."""
GUEST_VMPL = Vmpl.VMPL2

CORE_GATE = IMAGE_MAP + 0x1000
CPU_START = IMAGE_MAP + 0x2345
IMAGE = ImageLayout(IMAGE_MAP + 0x3000, IMAGE_MAP + 0x4000, IMAGE_MAP + 0x8000)
_CR0 = int(Cr0.PG | Cr0.WP | Cr0.PE)
_EFER = int(Efer.LME | Efer.LMA | Efer.NXE)
ENTRY = EntryState(KERNEL + 0x100, 0x3_8000, 0x1_0000, 0x2_0000 | C_BIT, 0x1_5000, 0x1F)
KEYS = bytes(range(1, 129))
KERNEL_BYTE = b"\x90"
TSC_SCALE, TSC_OFFSET = 3 << 31, 0x1234_5678
"""What the security processor has left in the SVSM's own VMSA."""

LOW_DATA = bytes(3 * PAGE_SIZE)
KERNEL_DATA = (KERNEL_BYTE * PAGE_SIZE).ljust(KERNEL_PAGES * PAGE_SIZE, b"\0")

LAUNCHED = (
    ValidatedRange(Gpa(0x1_0000), 3, sha256=hashlib.sha256(LOW_DATA).digest()),
    ValidatedRange(Gpa(KERNEL), KERNEL_PAGES, sha256=hashlib.sha256(KERNEL_DATA).digest()),
    ValidatedRange(Gpa(SVSM_BASE), 0x84, LaunchRangeFlags.SVSM),
)

INFO = LaunchInfo(
    cbit=C_BIT_POSITION,
    guest_vmpl=GUEST_VMPL,
    cpu_count=2,
    svsm_base=Gpa(SVSM_BASE),
    svsm_size=4 * MIB,
    svsm_vmsa=Gpa(SVSM_VMSA),
    svsm_cpuid=Gpa(SVSM_CPUID),
    svsm_secrets=Gpa(SVSM_SECRETS),
    guest_cpuid=Gpa(GUEST_CPUID),
    guest_secrets=Gpa(GUEST_SECRETS),
    guest_caa=Gpa(GUEST_CAA),
    svsm_kernel=Gpa(SVSM_BASE + 0x1_0000),
    svsm_kernel_size=0x1234,
    svsm_archive=Gpa(SVSM_HEAP),
    svsm_archive_size=0,
    svsm_core_digest=Gpa(SVSM_BASE + 0x2_0000),
    svsm_ghcb=Gpa(SVSM_GHCB),
    entry=ENTRY,
    ram=(RamRange(Gpa(0), RAM_SIZE),),
    validated=LAUNCHED,
)


@dataclass
class FakeGateCall:
    """The registers of one gate instruction."""

    port: FakePort
    vcpu: int
    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rdi: int = 0
    rbp: int = 0
    rsp: int = 0
    rip: int = CORE_GATE


class _TableMemory:
    """The fake machine's memory, for the silicon's page walker."""

    def __init__(self, machine: FakeVmpl0) -> None:
        self._machine = machine

    def read_u64(self, vmpl: int, gpa: int, kind: AccessKind) -> int:
        entry = self._machine.rmp.lookup(gpa & ~C_BIT)
        assert entry is not None and entry.validated, f"a page table at {gpa:#x}"  # noqa: PT018
        assert not any(entry.permissions[1:]), f"a page table at {gpa:#x} is the guest's too"
        return int.from_bytes(self._machine.get(gpa & ~C_BIT, 8), "little")

    def write(self, vmpl: int, gpa: int, data: bytes, kind: AccessKind) -> None:
        raise AssertionError("the core's entries have Accessed and Dirty set from the start")


class FakePort:
    """VMPL0's port: 4-level page tables, a TLB, the RMP's checks, a log of what was done."""

    def __init__(self, machine: FakeVmpl0) -> None:
        self.machine = machine
        self.ticks = 0
        self.cr2 = 0
        self.log: list[tuple[str, int]] = []
        self.cr3 = PAGE_TABLES | C_BIT
        self.cr4 = int(Cr4.PAE)
        self._walker = PageWalker(cast("PhysicalAccess", _TableMemory(machine)), 0)
        self._tlb = Tlb()
        """Whoever forgets an INVLPG uses what was there before."""

    def translate(self, gva: int, kind: AccessKind = AccessKind.READ) -> int:
        """GPA with C-bit; GuestFault as the CPU has it."""
        write = kind is AccessKind.WRITE
        found = self._tlb.find(gva, write=write)
        if found is not None:
            return found[0]
        state = PagingState(_CR0, self.cr3, self.cr4, _EFER)
        leaf = self._walker.translate(state, gva, kind, 0, self.machine.known)
        self._tlb.add(gva, leaf)
        return leaf.gpa

    def _gpa(self, gva: int, kind: AccessKind) -> int:
        translated = self.translate(gva, kind)
        shared, gpa = not translated & C_BIT, translated & ~C_BIT
        entry = self.machine.rmp.lookup(gpa) if gpa < RAM_SIZE else None
        if entry is None or entry.assigned == shared:
            raise NestedFault(gpa, int(NpfError.U | NpfError.RMP), "not that alias")
        if not shared and not entry.validated:
            raise GuestFault(Vector.VC, 0x404, gva)
        return gpa

    def _spans(self, gva: int, n: int, kind: AccessKind) -> list[tuple[int, int]]:
        spans = []
        while n > 0:
            part = min(n, PAGE_SIZE - (gva & PAGE_MASK))
            spans.append((self._gpa(gva, kind), part))
            gva, n = gva + part, n - part
        return spans

    def read(self, gva: int, n: int, /) -> bytes:
        assert n > 0
        spans = self._spans(gva, n, AccessKind.READ)
        return b"".join(self.machine.get(gpa, part) for gpa, part in spans)

    def write(self, gva: int, data: bytes, /) -> None:
        done = 0
        for gpa, part in self._spans(gva, len(data), AccessKind.WRITE):
            self.machine.put(gpa, data[done : done + part])
            done += part

    def zero(self, gva: int, n: int, /) -> None:
        first = self._gpa(gva, AccessKind.WRITE)
        if gva >= PERCPU_MAP:
            # Not what the SVSM does with memory of its own.
            self.log.append(("zero", first))
        assert self._gpa(gva + n - 1, AccessKind.WRITE) == first + n - 1
        for page in range(first >> PAGE_SHIFT, (first + n) >> PAGE_SHIFT):
            self.machine.pages.pop(page, None)
        self.machine.known.memory_written(first, n)

    def _operand(self, gva: int) -> int:
        translated = self.translate(gva)
        assert translated & C_BIT, "an operand of PVALIDATE or RMPADJUST is private"
        return translated & ~C_BIT

    def pvalidate(self, gva: int, size: PageSize, validate: bool, /) -> tuple[int, bool]:
        gpa = self._operand(gva)
        self.log.append(("validate" if validate else "rescind", gpa))
        return self.machine.rmp.pvalidate(Spa(gpa), Gpa(gpa), Vmpl.VMPL0, size, validate)

    def rmpadjust(self, gva: int, size: PageSize, attributes: int, /) -> int:
        gpa = self._operand(gva)
        self.log.append(("grant" if attributes & 0xF00 else "revoke", gpa))
        return self.machine.rmp.rmpadjust(Spa(gpa), Gpa(gpa), Vmpl.VMPL0, size, attributes)

    def write_cr3(self, value: int, /) -> None:
        self.cr3 = value
        self._tlb = Tlb()

    def invlpg(self, gva: int, /) -> None:
        self._tlb.forget(gva)

    def forget(self) -> None:
        """A CPU flushes all TLBs."""
        self._tlb = Tlb()

    def rdmsr(self, index: int, /) -> int:
        assert index == SEV_STATUS_MSR
        return self.machine.sev_features << SEV_STATUS_FEATURES_SHIFT | 0b11

    def read_cr2(self) -> int:
        return self.cr2

    def rdtsc(self) -> int:
        return self.ticks

    def rdrand(self) -> int:
        return 4

    def flush_tlb(self) -> None:
        self.log.append(("flush", 0))
        for port in self.machine.ports:
            port.forget()

    def charge(self, ticks: int, /) -> None:
        assert ticks >= 0
        self.ticks += ticks


@dataclass
class FakeVmpl0:
    """The machine. `run` drives one vCPU at VMPL0 until it enters the guest, halts or ends."""

    info: LaunchInfo = INFO
    features: HvFeature = HvFeature.SNP | HvFeature.SNP_AP_CREATION | HvFeature.SNP_MULTI_VMPL
    sev_features: SevFeatures = SevFeatures.SNP_ACTIVE
    poison: bool = False
    solve_faults: bool = True
    """Whether the host answers a size mismatch with PSMASH."""
    answer: Callable[[int], int | None] = lambda request: None
    """A hostile host: the MSR value to answer with, or None for the honest one."""
    pages: dict[int, bytearray] = field(
        default_factory=lambda: defaultdict(lambda: bytearray(4096))
    )
    terminated: ghcb_msr.Terminate | None = None
    faults: list[NestedFault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = KnownTables()
        self.rmp = Rmp([range(RAM_SIZE)], self.known.rmp_changed)
        self.core = Core(CoreConfig(CPU_START, IMAGE, poison=self.poison))
        self.ports = [FakePort(self) for _ in range(self.info.cpu_count)]
        self.calls: dict[int, FakeGateCall] = {}
        self.vmsas: dict[tuple[int, int], int] = {}
        """What SNP_AP_CREATION named, by APIC id and VMPL."""
        self.pending: dict[int, NestedFault] = {}
        """Faults that the host has not solved yet, by vCPU."""
        self.ghcbs: dict[int, int] = {}
        """The GHCB page of the SVSM on each vCPU."""
        self.features_named: list[int] = []
        """SEV_FEATURES that it said the VMSAs have."""
        self.checks: list[Callable[[], None]] = []
        """Called whenever VMPL0 has let go of the CPU."""
        self.devices = PortBus()
        self.timers = TimerQueue()
        bus = ApicBus()
        self.planes = [
            Plane(n, lambda: self.now, self.timers, bus) for n in range(self.info.cpu_count)
        ]
        """The local APIC that each vCPU has for VMPL0."""
        for base in range(0, RAM_SIZE, HUGE_PAGE_SIZE):
            self.rmp.rmpupdate(
                Spa(base), RmpUpdate(True, PageSize.SIZE_2M, False, Gpa(base), GUEST_ASID)
            )
        for launched in self.info.validated:
            for gpa in range(launched.gpa, launched.gpa + launched.npages * PAGE_SIZE, PAGE_SIZE):
                self.rmp.psmash(Spa(gpa & -HUGE_PAGE_SIZE))
                self.rmp.firmware_update(Spa(gpa), validated=True)
        self.put(KERNEL, KERNEL_BYTE * PAGE_SIZE)
        self.put(LAUNCH_INFO, self.info.to_page())
        secrets = SecretsPage()
        secrets.memory[0x20:0xA0] = KEYS
        self.put(SVSM_SECRETS, secrets.tobytes())
        own = Vmsa.reset_state(sev_features=self.sev_features)
        own.guest_tsc_scale, own.guest_tsc_offset = TSC_SCALE, TSC_OFFSET
        self.put(SVSM_VMSA, own.tobytes())
        cpuid = CpuidPage()
        cpuid.set_functions([CpuidFunction(0x8000_001F, 0, 0, 0, 0x1A, 0x27, 0, 0)])
        self.put(SVSM_CPUID, cpuid.tobytes())
        self._boot_stages()

    def _boot_stages(self) -> None:
        """The SVSM's region as stage 2 leaves it: validated, a GHCB page, a kernel-launch page."""
        launched = [v for v in self.info.validated if v.flags & LaunchRangeFlags.SVSM]
        fresh = subtract(
            [range(SVSM_BASE, RAM_SIZE)],
            [range(v.gpa, v.gpa + v.npages * PAGE_SIZE) for v in launched],
        )
        for pages in fresh:
            for gpa in range(pages.start, pages.stop, PAGE_SIZE):
                self.rmp.firmware_update(Spa(gpa), validated=True)
                # Nobody has cleared it.
                self.put(gpa, b"\xcc" * PAGE_SIZE)
        self.rmp.rmpupdate(Spa(SVSM_GHCB), RmpUpdate())
        self.put(SVSM_GHCB, bytes(PAGE_SIZE))
        self.ghcbs[0] = SVSM_GHCB
        # The tables that the kernel starts with: the first GiB at PRIVATE_MAP.
        self.put(PAGE_TABLES, bytes(2 * PAGE_SIZE))
        pointers = PAGE_TABLES + PAGE_SIZE
        slot = PAGE_TABLES + (PRIVATE_MAP >> 39 & 0x1FF) * 8
        self.put(slot, (pointers | C_BIT | 0x63).to_bytes(8, "little"))
        self.put(pointers, (C_BIT | 0xE3 | 1 << 63).to_bytes(8, "little"))
        self.put(KERNEL_LAUNCH, self.kernel_launch().to_page())

    def kernel_launch(self) -> KernelLaunch:
        """What stage 2 tells the core."""

        def part(base: int, size: int) -> MemoryRange:
            return MemoryRange(Gpa(base), size)

        return KernelLaunch(
            cbit=C_BIT_POSITION,
            ghcb_version=2,
            hv_features=self.features,
            launch_info=Gpa(LAUNCH_INFO),
            ghcb=Gpa(SVSM_GHCB),
            page_table=Gpa(PAGE_TABLES),
            kernel_virt=IMAGE_MAP,
            kernel_entry=IMAGE_MAP,
            region=part(SVSM_BASE, RAM_SIZE - SVSM_BASE),
            stages=part(SVSM_BASE, 0x1_0000),
            kernel_file=part(self.info.svsm_kernel, self.info.svsm_kernel_size),
            symbols=part(self.info.svsm_kernel, 0),
            strings=part(self.info.svsm_kernel, 0),
            archive=part(self.info.svsm_archive, self.info.svsm_archive_size),
            heap=part(SVSM_HEAP, SVSM_FREE - SVSM_HEAP),
            page_tables=part(PAGE_TABLES, 6 * PAGE_SIZE),
            kernel=part(PAGE_TABLES + 6 * PAGE_SIZE, 9 * PAGE_SIZE),
            core_digest=self.info.svsm_core_digest,
            launched=0x84 * PAGE_SIZE,
            validated=RAM_SIZE - SVSM_BASE - 0x85 * PAGE_SIZE,
        )

    def offer(self, files: Mapping[str, bytes]) -> None:
        """What the host has in fw_cfg from now on."""
        self.devices = PortBus()
        FwCfg(files, Dma(self._host_page)).attach(self.devices)

    @property
    def now(self) -> int:
        """Ticks that VMPL0 has taken on all vCPUs."""
        return sum(port.ticks for port in self.ports)

    # Memory ----------------------------------------------------------------------------------

    def _host_page(self, spa: int) -> memoryview | None:
        if not 0 <= spa < RAM_SIZE or self.rmp.assigned(spa >> PAGE_SHIFT):
            return None
        return memoryview(self.pages[spa >> PAGE_SHIFT])

    def get(self, gpa: int, n: int) -> bytes:
        out = b""
        while n:
            part = min(n, PAGE_SIZE - (gpa & PAGE_MASK))
            page = self.pages.get(gpa >> PAGE_SHIFT)
            start = gpa & PAGE_MASK
            out += bytes(part) if page is None else bytes(page[start : start + part])
            gpa, n = gpa + part, n - part
        return out

    def put(self, gpa: int, data: bytes) -> None:
        self.known.memory_written(gpa, len(data))
        while data:
            start = gpa & PAGE_MASK
            part = data[: PAGE_SIZE - start]
            self.pages[gpa >> PAGE_SHIFT][start : start + len(part)] = part
            gpa, data = gpa + len(part), data[len(part) :]

    def vmsa(self, gpa: int) -> Vmsa:
        """The live VMSA at `gpa`."""
        return Vmsa(self.pages[gpa >> PAGE_SHIFT])

    # VMPL0 -----------------------------------------------------------------------------------

    def boot(self) -> None:
        """Run the boot CPU up to the guest's first instruction, and the other CPUs to HLT."""
        assert self.run(0) == "guest"
        for vcpu in range(1, self.info.cpu_count):
            assert self.run(vcpu) == "halt"

    def run(self, vcpu: int) -> str:
        """Run VMPL0 until "guest" (RUN_VMPL), "halt", "fault" or "end"."""
        for _ in range(100_000):
            end = self.step(vcpu)
            if end == "fault" and self.solve_fault(vcpu):
                continue
            if end is not None:
                return end
        raise AssertionError("VMPL0 does not let go")

    def solve_fault(self, vcpu: int) -> bool:
        """PSMASH for the last fault of a vCPU, if that helps and the host is willing."""
        fault = self.pending.pop(vcpu, None)
        if fault is None or not fault.error_code & NpfError.SIZEM or not self.solve_faults:
            return False
        self.rmp.psmash(Spa(fault.gpa & -HUGE_PAGE_SIZE))
        return True

    def step(self, vcpu: int) -> str | None:
        """Run VMPL0 up to the next yield of its handler; as `run`, or None if it goes on."""
        call = self.calls.get(vcpu)
        if call is None:
            call = FakeGateCall(self.ports[vcpu], vcpu)
            call.rbx = GateReason.AP if vcpu else GateReason.BOOT
            call.rax = 0 if vcpu else KERNEL_LAUNCH
            if (vcpu, 0) in self.vmsas:
                started = self.vmsa(self.vmsas[vcpu, 0])
                self.ports[vcpu].cr3, self.ports[vcpu].cr4 = started.rax, started.rcx
            self.calls[vcpu] = call
        before = (call.rax, call.rbx)
        try:
            self.core.gate_entry(call)
        except NestedFault as fault:
            assert (call.rax, call.rbx) == before, "the gate instruction is restarted"
            self.faults.append(fault)
            self.pending[vcpu] = fault
            self._check()
            return "fault"
        self._check()
        action = GateAction(call.rbx)
        request = call.rdx << 32 | call.rax
        call.rbx = GateReason.LOOP
        if action is GateAction.HLT:
            return "halt"
        if action is GateAction.START:
            call.port.write_cr3(request)
            call.port.cr4 = call.rcx
        if action in (GateAction.VMGEXIT, GateAction.PANIC):
            call.rbx = GateReason.VMGEXIT
            chosen = self.answer(request)
            call.rax = self._honest(vcpu, request) if chosen is None else chosen
            if self.terminated is not None:
                return "end"
            if isinstance(ghcb_msr.parse_request(request), ghcb_msr.RunVmpl):
                return "guest"
        return None

    def drive(self, vcpu: int, handler: Handler[T]) -> T:
        """Run a piece of a handler that the test has made, without the core, to its end."""
        answer: int | None = None
        while True:
            try:
                effect = next(handler) if answer is None else handler.send(answer)
            except StopIteration as stop:
                value: T = stop.value
                return value
            answer = 0
            if isinstance(effect, Vmgexit):
                chosen = self.answer(effect.msr_value)
                answer = self._honest(vcpu, effect.msr_value) if chosen is None else chosen

    def _check(self) -> None:
        for check in self.checks:
            check()

    def _honest(self, vcpu: int, request: int) -> int:
        match ghcb_msr.parse_request(request):
            case ghcb_msr.PageStateChange(gfn, MsrPscOperation.SHARED):
                spa = Spa(gfn << PAGE_SHIFT)
                assert not self.rmp.rmpupdate(spa, RmpUpdate())
                return ghcb_msr.psc_response()
            case ghcb_msr.RegisterGpa(gfn):
                self.ghcbs[vcpu] = gfn << PAGE_SHIFT
                return ghcb_msr.register_gpa_response(gfn)
            case ghcb_msr.RunVmpl():
                return ghcb_msr.run_vmpl_response()
            case ghcb_msr.GhcbGpa(gpa):
                ghcb = Ghcb(self.pages[gpa >> PAGE_SHIFT])
                ghcb.check_header()
                info = ghcb.sw_exit_info_1
                if ghcb.sw_exit_code == GhcbExit.SVM_EXIT_IOIO:
                    handle_ioio(self.devices, ghcb, gpa, info, 0)
                elif ghcb.sw_exit_code == GhcbExit.SVM_EXIT_MSR:
                    assert info == 1, "VMPL0 writes only"
                    if not self.planes[vcpu].msrs.write(ghcb.rcx, ghcb.rdx << 32 | ghcb.rax):
                        ghcb.set_exception(Vector.GP, 0)
                        return request
                else:
                    self.vmsas[info >> 32, info >> 16 & 0xF] = ghcb.sw_exit_info_2
                    self.features_named.append(ghcb.rax)
                ghcb.set_answer()
                return request
            case ghcb_msr.Terminate() as terminate:
                self.terminated = terminate
                return request
            case other:
                raise AssertionError(other)

    # The guest -------------------------------------------------------------------------------

    def call(
        self,
        rax: int,
        rcx: int = 0,
        rdx: int = 0,
        r8: int = 0,
        *,
        vcpu: int = 0,
        caa: int = GUEST_CAA,
        vmsa: int | None = None,
    ) -> Vmsa:
        """One call to the SVSM, by whoever runs at the guest's VMPL; returns its VMSA."""
        gpa = self.vmsas[vcpu, GUEST_VMPL] if vmsa is None else vmsa
        state = self.begin_call(rax, rcx, rdx, r8, gpa=gpa, caa=caa)
        end = self.run(vcpu)
        assert end in {"guest", "halt"}, (end, list(self.core.log.lines)[-5:])
        return state

    def begin_call(
        self, rax: int, rcx: int = 0, rdx: int = 0, r8: int = 0, *, gpa: int, caa: int
    ) -> Vmsa:
        """What the guest does before its VMGEXIT."""
        state = self.vmsa(gpa)
        assert state.efer & Efer.SVME, "VMRUN would refuse it"
        state.rax, state.rcx, state.rdx, state.r8 = rax, rcx, rdx, r8
        state.guest_exitcode = VmexitCode.VMGEXIT
        self.put(caa, b"\1")
        return state

    def write_list(self, gpa: int, entries: list[int], next_index: int = 0) -> None:
        """A list for SVSM_CORE_PVALIDATE."""
        header = len(entries).to_bytes(2, "little") + next_index.to_bytes(2, "little") + bytes(4)
        self.put(gpa, header + b"".join(e.to_bytes(8, "little") for e in entries))

    def write_vmsa(self, gpa: int, **changes: int) -> None:
        """A VMSA as Linux fills it for another vCPU, with `changes`."""
        state = Vmsa.reset_state(vmpl=GUEST_VMPL, sev_features=self.sev_features)
        for name, value in changes.items():
            setattr(state, name, value)
        self.put(gpa, state.tobytes())

    def check_security(self) -> None:
        """No page is open to the guest unless it is validated and its own; a VMSA is read-only."""
        gpa = 0
        while gpa < RAM_SIZE:
            entry = self.rmp.lookup(gpa)
            assert entry is not None
            if any(entry.permissions[1:]):
                assert entry.validated, f"{gpa:#x} is open to the guest but not validated"
                # A guest may look at a VMSA (Linux does), and nothing else.
                guest = set(entry.permissions[1:])
                assert not entry.vmsa or guest <= {Perm.NONE, Perm.READ}, (
                    f"{gpa:#x} is a VMSA and more than readable to the guest"
                )
                assert gpa < SVSM_BASE or gpa == GUEST_CAA, f"{gpa:#x} is the SVSM's"
            gpa += entry.page_size.nbytes if entry.assigned else PAGE_SIZE
