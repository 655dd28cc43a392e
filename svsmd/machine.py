# SPDX-License-Identifier: MIT
"""The machine: silicon, host and SVSM core, put together from a configuration.

The only place that knows all three. The host gets the silicon's side for hypervisors, the core gets
the silicon's port of VMPL0, and the two never meet.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final, assert_never

from svsmd.config import Decompress, MachineConfig, OnReboot
from svsmd.core.core import Core, CoreConfig
from svsmd.core.guest_memory import subtract
from svsmd.core.launch_info import (
    EntryState,
    LaunchInfo,
    LaunchRangeFlags,
    RamRange,
    ValidatedRange,
)
from svsmd.core.paging.kernel_maps import ImageLayout
from svsmd.core.restart import PAYLOAD_FILE, RESTART_FILE
from svsmd.core_digest import core_digest_page, read_core_sources
from svsmd.disk_file import DiskFile
from svsmd.errors import ExitCode, UserError
from svsmd.host.certificate_table import CertificateGuid, certificate_table
from svsmd.host.direct_boot import DirectBoot, build_direct_boot
from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.launch import (
    LaunchError,
    LaunchPlan,
    LaunchRange,
    LaunchVmsa,
    assign_the_rest,
    launch,
)
from svsmd.host.layout import DIRECT_BOOT_LAYOUT, SVSM_IMAGE_MAX_SIZE, SvsmRegion
from svsmd.host.loader_error import LoaderError
from svsmd.host.outcome import (
    AllHalted,
    Continue,
    Crashed,
    Debug,
    HostOutcome,
    PoweredOff,
    Reset,
    Terminated,
)
from svsmd.host.platform import Platform, PlatformConfig
from svsmd.host.termination import describe
from svsmd.host.timers import TICKS_PER_SECOND
from svsmd.images import image_path
from svsmd.payload import Payload, read_payload
from svsmd.slice_end import DebugEvent, Ended, Idle, SliceEnd, Stopped
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.entropy import EntropySource
from svsmd.snp.events import SnpEvents
from svsmd.snp.exits import DebugReason
from svsmd.snp.launch_digest import PageType
from svsmd.snp.silicon import GateCall, Silicon
from svsmd.snp.types import C_BIT_POSITION, PAGE_SIZE, Gpa, Vmpl
from svsmd.snp.vmsa import SevFeatures, Vmsa
from svsmd.svsm_image import SvsmImage, load_svsm_image

log = logging.getLogger(__name__)

SLICE_TICKS: Final = 20_000_000
"""Instructions after which run_slice() gives the machine back at the latest."""
SLICE_SECONDS: Final = 0.01
"""After which it does as soon as an exit or a fault has been served in Python. The thread that
serves them takes Python's lock again and again, and who waits for the lock is only told that it was
free when it is no more: nobody outside could ask this thread to stop."""
_STEP_TRIES: Final = 64
"""Scheduling decisions that one instruction may take, exits to the host and back included."""
BARE_VMSA: Final = Gpa(0xF000)
"""VMSA of a guest without an SVSM: below 64 KiB nothing is the guest's RAM."""
_NEVER: Final = (1 << 64) - 1
SVSM_LINE_LENGTH: Final = 400
"""Bytes of a line that the SVSM writes to the debug port; a longer one is cut into pieces."""


class Machine:
    """One SNP machine. Used by one thread at a time.

    Attributes:
        on_console: called with what the guest writes to COM1, during a slice.
        on_svsm_console: called with the SVSM's log, a line at a time.
        events: what a debugger can wait for; the same object after a reset.

    Raises:
        UserError: the guest cannot be loaded.
    """

    def __init__(self, config: MachineConfig, payload: Payload | None = None) -> None:
        """`payload` is what read_payload() gave for this configuration, if it was called."""
        self.config = config
        self.on_console: Callable[[bytes], None] = lambda data: None
        self.on_svsm_console: Callable[[bytes], None] = lambda data: None
        self._payload = payload or read_payload(config)
        self._disks = tuple(DiskFile(disk.path, read_only=disk.read_only) for disk in config.disks)
        self._entropy = EntropySource(config.seed)
        # It goes on after a reset: nobody is given the same bytes twice.
        self._guest_entropy = self._entropy.stream("virtio entropy device")
        self.events = SnpEvents()
        self._power_on()

    @property
    def payload(self) -> Payload:
        """What the guest and the SVSM's programs are made of."""
        return self._payload

    # -- power ------------------------------------------------------------------------------

    def _power_on(self) -> None:
        with self.events.muted():
            self._launch()

    def _launch(self) -> None:
        config = self.config
        self.silicon = Silicon(config.memory, self._entropy, self.events)
        self.core: Core | None = None
        self._restarts = 0
        self._debug_line = bytearray()
        self._build_host({})
        try:
            plan = self._plan_with_svsm() if config.svsm else self._plan_without_svsm()
            self.launch_digest = launch(self.silicon, plan)
        except LoaderError as error:
            raise UserError(str(error), error.hint) from None
        except LaunchError as error:
            raise UserError(str(error)) from None
        for vmsa in plan.vmsas:
            self.hypervisor.vcpus[vmsa.vcpu].start(vmsa.vmpl, vmsa.gpa)

    def _build_host(self, files: Mapping[str, bytes]) -> None:
        """A hypervisor and its devices, just switched on; `files` are those of fw_cfg."""
        config, silicon = self.config, self.silicon
        self.platform = Platform(
            PlatformConfig(ncpus=config.cpus, rtc_epoch=config.rtc),
            lambda: silicon.clock.now,
            lambda data: self.on_console(data),
            self._debug_port,
        )
        self.platform.attach_virtio(silicon.host_page, self._disks, self._guest_entropy)
        self.platform.attach_fw_cfg(silicon.host_page, files)
        self.hypervisor = Hypervisor(
            silicon,
            self.platform,
            HypervisorConfig(
                guest_vmpl=Vmpl(config.guest_vmpl),
                sev_features=self._sev_features,
                certificates=self._certificates,
            ),
        )

    def _certificates(self) -> bytes:
        """What the operator of a real host gets from AMD for its chip."""
        # Takes half a second, and few guests ask.
        from svsmd.snp.certificate_chain import Chip, certificate_chain

        psp = self.silicon.psp
        chip = Chip(psp.chip_id, psp.reported_tcb, psp.vcek_public_key)
        chain = certificate_chain(self._entropy.stream("manufacturer"), chip, self.config.rtc)
        return certificate_table(
            {
                CertificateGuid.VCEK: chain.vcek,
                CertificateGuid.ASK: chain.ask,
                CertificateGuid.ARK: chain.ark,
            }
        )

    @property
    def _sev_features(self) -> SevFeatures:
        features = SevFeatures.SNP_ACTIVE
        return features | SevFeatures.SECURE_TSC if self.config.secure_tsc else features

    def _launch_plan(self, ranges: list[LaunchRange], gpa: Gpa, vmsa: Vmsa) -> LaunchPlan:
        """The pages in their order, then the VMSA of the boot CPU at VMPL0."""
        return LaunchPlan(
            tuple(ranges),
            (LaunchVmsa(gpa, vmsa.tobytes()),),
            desired_tsc_khz=TICKS_PER_SECOND // 1000 if self.config.secure_tsc else 0,
        )

    def _direct_boot(self, region: SvsmRegion | None) -> DirectBoot:
        payload = self._payload
        return build_direct_boot(
            payload.kernel, payload.initrd, payload.append, self.silicon.memory.ranges,
            self.config.cpus, region, DIRECT_BOOT_LAYOUT,
            self_decompressing=self.config.decompress is Decompress.GUEST, unpack=payload.unpack,
        )  # fmt: skip

    def _cpuid_page(self) -> bytes:
        return CpuidPage.build(ncpus=self.config.cpus).tobytes()

    def _plan_with_svsm(self) -> LaunchPlan:
        """Measured: the SVSM's image, what it is told, the guest's payload, the first VMSA.

        The image has a digest of the core's sources in it.
        """
        region = self._svsm_region()
        boot = self._direct_boot(region)
        image = load_svsm_image(
            image_path("stages").read_bytes(),
            image_path("svsm").read_bytes(),
            core_digest_page(read_core_sources()),
        )
        if len(image.data) > SVSM_IMAGE_MAX_SIZE:
            raise UserError(f"the SVSM image has {len(image.data)} bytes, too many")
        self._connect_core(image)
        info = self._launch_info(region, boot, image).to_page()
        ranges = [
            LaunchRange(region.image, PageType.NORMAL, image.data),
            LaunchRange(region.launch_info, PageType.NORMAL, info),
            LaunchRange(region.cpuid, PageType.CPUID, self._cpuid_page()),
            LaunchRange(region.secrets, PageType.SECRETS, size=PAGE_SIZE),
        ]
        if self._payload.archive:
            ranges.append(LaunchRange(region.archive, PageType.NORMAL, self._archive()))
        ranges += [LaunchRange(r.gpa, PageType.NORMAL, r.data) for r in boot.ranges]
        vmsa = Vmsa.protected_mode_start(region.base + image.start, sev_features=self._sev_features)
        vmsa.rsi = region.base
        vmsa.rdi = region.launch_info
        return self._launch_plan(ranges, region.vmsa, vmsa)

    def _svsm_region(self) -> SvsmRegion:
        ram = self.silicon.memory.ranges
        return SvsmRegion.at_top_of(ram, self.config.cpus, len(self._payload.archive))

    def _archive(self) -> bytes:
        """The archive in whole pages."""
        data = self._payload.archive
        return data.ljust(_whole_pages(len(data)), b"\0")

    def _launch_info(self, region: SvsmRegion, boot: DirectBoot, image: SvsmImage) -> LaunchInfo:
        own = LaunchRangeFlags.SVSM
        validated = [
            ValidatedRange(region.image, len(image.data) // PAGE_SIZE, own),
            # Launch info, CPUID page, secrets page and VMSA follow each other.
            ValidatedRange(region.launch_info, 4, own),
        ]
        if self._payload.archive:
            npages = len(self._archive()) // PAGE_SIZE
            validated.append(ValidatedRange(region.archive, npages, own))
        validated += [
            ValidatedRange(r.gpa, len(r.data) // PAGE_SIZE, sha256=hashlib.sha256(r.data).digest())
            for r in boot.ranges
        ]
        entry = boot.entry
        return LaunchInfo(
            cbit=C_BIT_POSITION,
            guest_vmpl=self.config.guest_vmpl,
            cpu_count=self.config.cpus,
            svsm_base=region.base,
            svsm_size=region.size,
            svsm_vmsa=region.vmsa,
            svsm_cpuid=region.cpuid,
            svsm_secrets=region.secrets,
            guest_cpuid=boot.cpuid_gpa,
            guest_secrets=boot.secrets_gpa,
            guest_caa=region.caa,
            svsm_kernel=Gpa(region.image + image.kernel),
            svsm_kernel_size=image.kernel_size,
            svsm_archive=region.archive,
            svsm_archive_size=len(self._payload.archive),
            svsm_core_digest=Gpa(region.image + image.core_digest),
            svsm_ghcb=region.ghcb,
            entry=EntryState(
                entry.rip, entry.rsp, entry.rsi, entry.cr3, entry.gdt_base, entry.gdt_limit
            ),
            ram=tuple(RamRange(Gpa(r.start), len(r)) for r in self.silicon.memory.ranges),
            validated=tuple(validated),
        )

    def _connect_core(self, image: SvsmImage) -> None:
        """The one way from the silicon into the core: the two gate instructions.

        And the one at which the SVSM stops for a debugger when it panics.
        """
        layout = ImageLayout(image.text_end, image.rodata_end, image.end)
        core = self.core = Core(
            CoreConfig(image.cpu_start, layout, self._svsm_line, events=self.events)
        )

        def gate(call: GateCall) -> None:
            core.gate_entry(call)

        def exception_gate(call: GateCall) -> None:
            core.exception_entry(call)

        self.silicon.register_gate(image.core_gate, gate)
        self.silicon.register_gate(image.exception_gate, exception_gate)
        self.silicon.register_stop(image.panic_gate, DebugReason.PANIC)

    def _debug_port(self, data: bytes) -> None:
        """What VMPL0 writes there is the SVSM's log before its core runs; others only think so."""
        if self.core is None or self.hypervisor.exiting is not Vmpl.VMPL0:
            log.info("debug port: %s", data.hex())
            return
        line = self._debug_line
        if data != b"\n":
            line += data
        if data == b"\n" or len(line) >= SVSM_LINE_LENGTH:
            self._svsm_line(line.decode("utf-8", "replace"))
            line.clear()

    def _svsm_line(self, line: str) -> None:
        log.debug("svsm: %s", line)
        self.on_svsm_console(line.encode("utf-8", "replace") + b"\n")

    def _plan_without_svsm(self) -> LaunchPlan:
        """Without an SVSM the guest is VMPL0, and all its memory is valid from the start."""
        boot = self._direct_boot(None)
        ranges = [LaunchRange(r.gpa, PageType.NORMAL, r.data) for r in boot.ranges]
        ranges.append(LaunchRange(boot.cpuid_gpa, PageType.CPUID, self._cpuid_page()))
        ranges.append(LaunchRange(boot.secrets_gpa, PageType.SECRETS, size=PAGE_SIZE))
        taken = sorted([*((r.gpa, r.gpa + r.nbytes) for r in ranges),
                        (BARE_VMSA, BARE_VMSA + PAGE_SIZE)])  # fmt: skip
        for ram in self.silicon.memory.ranges:
            start = ram.start
            for first, end in [*taken, (ram.stop, ram.stop)]:
                if ram.start <= first <= ram.stop and first > start:
                    ranges.append(LaunchRange(Gpa(start), PageType.ZERO, size=first - start))
                if ram.start <= first < ram.stop:
                    start = max(start, end)
        entry = boot.entry
        vmsa = Vmsa.long_mode_start(
            entry.rip, entry.rsp, entry.cr3, entry.rsi,
            gdt_base=entry.gdt_base, gdt_limit=entry.gdt_limit, sev_features=self._sev_features,
        )  # fmt: skip
        return self._launch_plan(ranges, BARE_VMSA, vmsa)

    # -- running ----------------------------------------------------------------------------

    @property
    def clock_now(self) -> int:
        """Ticks since power-on."""
        return self.silicon.clock.now

    def request_stop(self) -> None:
        """Ends a slice within one basic block; from any thread."""
        self.silicon.cpu.request_stop()

    def skip_idle(self, ticks: int) -> None:
        """All vCPUs were halted for so long."""
        self.silicon.clock.advance(ticks)

    def run_slice(self, max_ticks: int = SLICE_TICKS, seconds: float = SLICE_SECONDS) -> SliceEnd:
        """Runs for a bounded number of ticks, or until something ends the slice.

        After `seconds` that is the next exit or fault that is served in Python.
        """
        cpu = self.silicon.cpu
        self.silicon.debug.set_stepping(False)
        cpu.shared.slice_end = self.clock_now + max_ticks
        end_of_patience = monotonic() + seconds
        cpu.stop_when(lambda: monotonic() >= end_of_patience)
        try:
            while True:
                outcome = self.hypervisor.step(_NEVER)
                end = self._slice_end(outcome)
                if end is not None:
                    return end
                if cpu.stop_requested or self.clock_now >= cpu.shared.slice_end:
                    return Stopped()
        finally:
            cpu.clear_stop()
            cpu.stop_when()
            cpu.shared.slice_end = _NEVER

    def _slice_end(self, outcome: HostOutcome) -> SliceEnd | None:
        match outcome:
            case Continue():
                return None
            case AllHalted(next_deadline):
                return Idle(next_deadline)
            case PoweredOff():
                return Ended(ExitCode.OK, "the guest powered off")
            case Reset():
                return self._reset()
            case Terminated(reason_set, reason_code, vcpu, vmpl):
                who, code = "the guest", ExitCode.GUEST_TERMINATED
                if self.core is not None and vmpl == 0:
                    who, code = "the SVSM", ExitCode.GUEST_CRASHED
                return Ended(
                    code,
                    f"{who} asked to be terminated (vCPU {vcpu}, VMPL{vmpl}), "
                    f"{describe(reason_set, reason_code)}",
                    self._panic_report,
                )
            case Crashed(text):
                reason = f"the guest crashed: {text}"
                return Ended(ExitCode.GUEST_CRASHED, reason, self._panic_report)
            case Debug(stop, vcpu, _):
                return DebugEvent(vcpu, stop.reason, stop.address, stop.event)
            case unreachable:
                assert_never(unreachable)

    @property
    def _panic_report(self) -> tuple[str, ...]:
        return self.core.panic_report if self.core is not None else ()

    def _reset(self) -> SliceEnd:
        if self.config.on_reboot is OnReboot.EXIT:
            return Ended(ExitCode.OK, "the guest reset the machine")
        if self.core is not None:
            self._restart_guest()
            return Stopped()
        log.info("the guest reset the machine; it starts again from its launch")
        ticks = self.clock_now
        debug = self.silicon.debug
        self._power_on()
        self.silicon.debug.take_over(debug)
        self.silicon.clock.advance(ticks)
        # The slice was that of the old silicon.
        return Stopped()

    def _restart_guest(self) -> None:
        """New devices under the SVSM that stays, and an offer of what was launched."""
        log.info("the guest reset the machine; the SVSM starts it again")
        silicon, old = self.silicon, self.hypervisor
        ram = silicon.memory.ranges
        region = self._svsm_region()
        boot = self._direct_boot(region)
        self._restarts += 1
        files = {PAYLOAD_FILE.format(n): r.data for n, r in enumerate(boot.ranges)}
        files[RESTART_FILE] = self._restarts.to_bytes(4, "little")
        self._build_host(files)
        self.hypervisor.take_over(old)
        with self.events.muted():
            assign_the_rest(silicon, subtract(ram, [range(region.base, region.end)]))

    # -- debugging --------------------------------------------------------------------------

    @property
    def current_vcpu(self) -> int:
        """The vCPU that ran last, or runs next."""
        return self.hypervisor.current_vcpu

    def step_vcpu(
        self,
        index: int,
        within: range | None = None,
        most: int = 0,
        *,
        hold_interrupts: bool = False,
    ) -> SliceEnd:
        """Executes one instruction of a vCPU while the others stand still.

        It goes on while the next one is at the linear addresses `within`, `most` times at most, as
        long as it needs nobody for that (`DebugSupport.steps` tells how often): a stop at a
        breakpoint there comes first.

        Interrupts and timers that are due come as in a free run; the delivery of one is a step of
        its own. With `hold_interrupts` they stay pending (see Hypervisor.step_vcpu). If all vCPUs
        are halted, the clock jumps to the next timer, once. A vCPU that has nothing to run comes
        back at once, as Idle; a machine that was reset, as Stopped.
        """
        silicon, hypervisor = self.silicon, self.hypervisor
        silicon.cpu.clear_stop()
        # Until run_slice(): most steps are followed by another one.
        silicon.debug.set_stepping(True, within, most)
        jumped = False
        for _ in range(_STEP_TRIES):
            outcome = hypervisor.step_vcpu(index, hold_interrupts=hold_interrupts)
            match outcome:
                case Debug(stop, vcpu, _):
                    return DebugEvent(vcpu, stop.reason, stop.address, stop.event)
                case None:
                    return Idle(None)
                case AllHalted(int() as deadline) if not jumped:
                    jumped = True
                    self.skip_idle(max(0, deadline - self.clock_now))
                    continue
            end = self._slice_end(outcome)
            if end is not None:
                return end
        return Idle(None)

    # -- console ----------------------------------------------------------------------------

    def console_write(self, data: bytes) -> None:
        """Types on the guest's COM1."""
        self.platform.uart.receive(data)

    @property
    def console_waiting(self) -> int:
        """Bytes typed that the guest has not read."""
        return self.platform.uart.waiting


def _whole_pages(nbytes: int) -> int:
    """`nbytes`, rounded up to pages."""
    return -(-nbytes // PAGE_SIZE) * PAGE_SIZE


def build_machine(config: MachineConfig, payload: Payload | None = None) -> Machine:
    """Makes a machine, launched and ready for its first instruction.

    Args:
        config: what is wanted.
        payload: what read_payload() gave for it, if it was called.

    Raises:
        UserError: what was asked for cannot be built.
    """
    return Machine(config, payload)
