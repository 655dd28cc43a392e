# SPDX-License-Identifier: MIT
"""A machine before the first instruction of its SVSM's boot, for hosts and launchers that lie."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Never

import pytest

from svsmd.config import MIB, MachineConfig
from svsmd.core.gate import Handler, Wait
from svsmd.core.hypervisor import SVSM_REASON_SET, SvsmReason
from svsmd.core.kernel_launch import KernelLaunch
from svsmd.core.port import GateCall
from svsmd.errors import ExitCode
from svsmd.host.layout import SvsmRegion, ram_ranges
from svsmd.images import image_path
from svsmd.machine import build_machine
from svsmd.slice_end import Ended
from svsmd.snp import ghcb_msr
from svsmd.snp.types import PAGE_SIZE

MEMORY = 64 * MIB


class Boot:
    """A machine before its first instruction, and what its SVSM says."""

    def __init__(self, memory: int = MEMORY, cpus: int = 1, archive: Path | None = None) -> None:
        self.machine = build_machine(
            MachineConfig(seed=b"test", rtc=0, memory=memory, cpus=cpus, archive=archive)
        )
        self.log: list[str] = []
        self.machine.on_svsm_console = lambda data: self.log.append(data.decode().rstrip("\n"))
        size = (archive or image_path("modules")).stat().st_size
        self.region = SvsmRegion.at_top_of(ram_ranges(memory), cpus, size)

    def to_the_core(self) -> KernelLaunch:
        """Run up to the first gate call; what stage 2 passes."""
        seen: list[int] = []
        core = self.machine.core
        assert core is not None

        def stop(call: GateCall) -> Handler[Never]:
            seen.append(call.rax)
            self.machine.request_stop()
            while True:
                yield Wait()

        core._gate._start = stop
        while not seen:
            end = self.machine.run_slice(100_000)
            assert not isinstance(end, Ended), (end, self.log)
        return KernelLaunch.from_page(self.read(seen[0], PAGE_SIZE))

    def ends(self) -> tuple[SvsmReason, list[str]]:
        """Run into the stages' refusal; the reason code, and the log."""
        for _ in range(1000):
            end = self.machine.run_slice(1_000_000)
            if isinstance(end, Ended):
                assert end.exit_code == ExitCode.GUEST_CRASHED, end
                found = re.search(r"the SVSM asked .*reason set (\d+), code 0x(\d+)", end.reason)
                assert found, end
                assert int(found[1]) == SVSM_REASON_SET
                return SvsmReason(int(found[2])), self.log
        pytest.fail("the machine goes on")

    def read(self, gpa: int, nbytes: int) -> bytes:
        return self.machine.silicon.memory.read(gpa, nbytes)

    def launcher_writes(self, gpa: int, data: bytes) -> None:
        """As if it had been launched so."""
        self.machine.silicon.debug_write(gpa, data)

    def answer(self, info: ghcb_msr.GhcbInfo, answer: Callable[[int], int]) -> None:
        """The host answers requests of the MSR protocol in its own way."""
        exits = self.machine.hypervisor._msr_exits
        honest = exits.handle

        def handle(vcpu, world):
            request = world.vmcb.ghcb_msr
            end = honest(vcpu, world)
            if request & 0xFFF == info:
                world.vmcb.ghcb_msr = answer(world.vmcb.ghcb_msr)
            return end

        exits.handle = handle  # type: ignore[method-assign]
