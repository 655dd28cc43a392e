# SPDX-License-Identifier: MIT
"""A machine for the core's tests: the real RMP over a little sparse memory, and no CPU.

The native stub is a loop here (`run`), the host answers the GHCB requests of a boot and solves size
mismatches by PSMASH, and the guest is the test: it fills a VMSA and a calling area and looks at
what comes back.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from svsmd.core.core import Core, CoreConfig
from svsmd.core.gate import GateAction, GateReason
from svsmd.core.launch_info import (
    EntryState,
    LaunchInfo,
    LaunchRangeFlags,
    RamRange,
    ValidatedRange,
)
from svsmd.core.port import IMAGE_MAP, PRIVATE_MAP, SHARED_MAP
from svsmd.host.dma import Dma
from svsmd.host.fw_cfg import FwCfg
from svsmd.host.io_exits import handle_ioio
from svsmd.host.port_bus import PortBus
from svsmd.snp import ghcb_msr
from svsmd.snp.cpuid_page import CpuidFunction, CpuidPage
from svsmd.snp.faults import GuestFault, NestedFault, NpfError, Vector
from svsmd.snp.ghcb import Ghcb, GhcbExit
from svsmd.snp.ghcb_msr import HvFeature, MsrPscOperation
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
from svsmd.snp.vmsa import (
    SEV_STATUS_FEATURES_SHIFT,
    SEV_STATUS_MSR,
    Efer,
    SevFeatures,
    VmexitCode,
    Vmsa,
)

MIB = 1 << 20
RAM_SIZE = 16 * MIB
SVSM_BASE = RAM_SIZE - 4 * MIB
LAUNCH_INFO = SVSM_BASE + 0x8_0000
SVSM_CPUID = SVSM_BASE + 0x8_1000
SVSM_SECRETS = SVSM_BASE + 0x8_2000
SVSM_VMSA = SVSM_BASE + 0x8_3000
GUEST_CAA = SVSM_BASE + 0x8_4000
GUEST_CPUID = 0x1_3000
GUEST_SECRETS = 0x1_4000
KERNEL = 2 * MIB
KERNEL_PAGES = 0x240
"""More than 2 MiB, so that one region is measured as a whole and one in part."""
GUEST_VMPL = Vmpl.VMPL2

AP_START = IMAGE_MAP + 0x2345
PAGE_TABLES = IMAGE_MAP + 0x5000
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


class FakePort:
    """VMPL0's port: the two direct maps, the RMP's checks, a log of what was done."""

    def __init__(self, machine: FakeVmpl0) -> None:
        self.machine = machine
        self.ticks = 0
        self.log: list[tuple[str, int]] = []

    def _gpa(self, gva: int) -> int:
        shared = gva >= SHARED_MAP
        gpa = gva - (SHARED_MAP if shared else PRIVATE_MAP)
        entry = self.machine.rmp.lookup(gpa) if 0 <= gpa < RAM_SIZE else None
        if entry is None or entry.assigned == shared:
            raise NestedFault(gpa, int(NpfError.U | NpfError.RMP), "not that alias")
        if not shared and not entry.validated:
            raise GuestFault(Vector.VC, 0x404, gva)
        return gpa

    def read(self, gva: int, n: int, /) -> bytes:
        assert n > 0
        first = self._gpa(gva)
        self._gpa(gva + n - 1)
        return self.machine.get(first, n)

    def write(self, gva: int, data: bytes, /) -> None:
        first = self._gpa(gva)
        self._gpa(gva + len(data) - 1)
        self.machine.put(first, data)

    def zero(self, gva: int, n: int, /) -> None:
        first = self._gpa(gva)
        self.log.append(("zero", first))
        for page in range(first >> PAGE_SHIFT, (first + n) >> PAGE_SHIFT):
            self.machine.pages.pop(page, None)

    def pvalidate(self, gva: int, size: PageSize, validate: bool, /) -> tuple[int, bool]:
        gpa = gva - PRIVATE_MAP
        self.log.append(("validate" if validate else "rescind", gpa))
        return self.machine.rmp.pvalidate(Spa(gpa), Gpa(gpa), Vmpl.VMPL0, size, validate)

    def rmpadjust(self, gva: int, size: PageSize, attributes: int, /) -> int:
        gpa = gva - PRIVATE_MAP
        self.log.append(("grant" if attributes & 0xF00 else "revoke", gpa))
        return self.machine.rmp.rmpadjust(Spa(gpa), Gpa(gpa), Vmpl.VMPL0, size, attributes)

    def rdmsr(self, index: int, /) -> int:
        assert index == SEV_STATUS_MSR
        return self.machine.sev_features << SEV_STATUS_FEATURES_SHIFT | 0b11

    def flush_tlb(self) -> None:
        self.log.append(("flush", 0))

    def charge(self, ticks: int, /) -> None:
        assert ticks >= 0
        self.ticks += ticks


@dataclass
class FakeVmpl0:
    """The machine. `run` drives one vCPU at VMPL0 until it enters the guest, halts or ends."""

    info: LaunchInfo = INFO
    features: HvFeature = HvFeature.SNP | HvFeature.SNP_AP_CREATION | HvFeature.SNP_MULTI_VMPL
    sev_features: SevFeatures = SevFeatures.SNP_ACTIVE
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
        self.rmp = Rmp([range(RAM_SIZE)])
        self.core = Core(CoreConfig(AP_START, PAGE_TABLES))
        self.ports = [FakePort(self) for _ in range(self.info.cpu_count)]
        self.calls: dict[int, FakeGateCall] = {}
        self.vmsas: dict[tuple[int, int], int] = {}
        """What SNP_AP_CREATION named, by APIC id and VMPL."""
        self.ghcbs: dict[int, int] = {}
        """The GHCB page of the SVSM on each vCPU."""
        self.features_named: list[int] = []
        """SEV_FEATURES that it said the VMSAs have."""
        self.checks: list[Callable[[], None]] = []
        """Called whenever VMPL0 has let go of the CPU."""
        self.devices = PortBus()
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

    def offer(self, files: Mapping[str, bytes]) -> None:
        """What the host has in fw_cfg from now on."""
        self.devices = PortBus()
        FwCfg(files, Dma(self._host_page)).attach(self.devices)

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
        call = self.calls.get(vcpu)
        if call is None:
            call = FakeGateCall(self.ports[vcpu], vcpu)
            call.rbx = GateReason.AP if vcpu else GateReason.BOOT
            call.rax = 0 if vcpu else LAUNCH_INFO
            self.calls[vcpu] = call
        for _ in range(100_000):
            before = (call.rax, call.rbx)
            try:
                self.core.gate_entry(call)
            except NestedFault as fault:
                assert (call.rax, call.rbx) == before, "the gate instruction is restarted"
                self.faults.append(fault)
                self._check()
                if fault.error_code & NpfError.SIZEM and self.solve_faults:
                    self.rmp.psmash(Spa(fault.gpa & -HUGE_PAGE_SIZE))
                    continue
                return "fault"
            self._check()
            action = GateAction(call.rbx)
            request = call.rdx << 32 | call.rax
            call.rbx = GateReason.LOOP
            if action is GateAction.HLT:
                return "halt"
            if action is GateAction.VMGEXIT:
                call.rbx = GateReason.VMGEXIT
                chosen = self.answer(request)
                call.rax = self._honest(vcpu, request) if chosen is None else chosen
                if self.terminated is not None:
                    return "end"
                if isinstance(ghcb_msr.parse_request(request), ghcb_msr.RunVmpl):
                    return "guest"
        raise AssertionError("VMPL0 does not let go")

    def _check(self) -> None:
        for check in self.checks:
            check()

    def _honest(self, vcpu: int, request: int) -> int:
        match ghcb_msr.parse_request(request):
            case ghcb_msr.SevInfoRequest():
                return ghcb_msr.sev_info_response(1, 2, C_BIT_POSITION)
            case ghcb_msr.HvFeatures():
                return ghcb_msr.hv_features_response(self.features)
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
