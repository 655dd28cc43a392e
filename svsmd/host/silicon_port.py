# SPDX-License-Identifier: MIT
"""What the silicon offers a hypervisor, and nothing more: the trust border as seen from the host.

The host starts and stops virtual CPUs, keeps the RMP's assignments and talks to the security
processor. Of private memory it can read ciphertext only.

Spec: 24593, 15.5 (VMRUN), 15.36.3 (RMP), 15.36.12 (VMRUN page checks); 56860 (security processor).
"""

from __future__ import annotations

from typing import Protocol

from svsmd.snp.exits import Exit
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.launch_digest import PageType
from svsmd.snp.rmp import Rmp
from svsmd.snp.types import PageSize, Spa
from svsmd.snp.vmcb import Vmcb


class Clock(Protocol):
    """Time in ticks."""

    @property
    def now(self) -> int: ...


class Ram(Protocol):
    """Where RAM is; what is in it, the host has to ask for."""

    @property
    def ranges(self) -> tuple[range, ...]:
        """RAM by system physical address, in multiples of 2 MiB."""
        ...


class Psp(Protocol):
    """The security processor's mailbox (56860, chapter 8)."""

    @property
    def launch_digest(self) -> bytes: ...

    def launch_start(self, policy: int, *, desired_tsc_khz: int) -> FirmwareStatus: ...
    def launch_update(
        self,
        spa: Spa,
        page_type: PageType,
        page_size: PageSize,
        *,
        vmpl_permissions: tuple[int, int, int],
    ) -> FirmwareStatus: ...
    def launch_finish(self, *, host_data: bytes) -> FirmwareStatus: ...
    def guest_request(self, request: bytes) -> tuple[bytes, int]: ...


class HostSilicon(Protocol):
    """The silicon, seen by the host."""

    @property
    def clock(self) -> Clock: ...
    @property
    def memory(self) -> Ram: ...
    @property
    def rmp(self) -> Rmp: ...
    @property
    def psp(self) -> Psp: ...

    def vmrun(self, vmcb: Vmcb, until: int) -> Exit:
        """Run a VMPL until it exits or the clock reaches `until`."""
        ...

    @property
    def stop_requested(self) -> bool:
        """Whether somebody waits for the machine to stand still."""
        ...

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        """Ask a C function at each VMGEXIT before VMRUN ends; whether that is possible here.

        It is called with `argument`, the GHCB MSR, the clock and the vector that still waits
        (negative: none), and says whether it has answered: then the guest goes on.
        """
        ...

    def forget(self, vmcb: Vmcb) -> None:
        """The host gives up a VMCB."""
        ...

    def host_page(self, spa: int) -> memoryview | None:
        """Live 4 KiB page at `spa`, or None unless a page of RAM that is not assigned starts there.

        Guest physical addresses are system physical addresses here.
        """
        ...

    def host_write(self, spa: int, data: bytes) -> None:
        """Write RAM that is not assigned in the RMP."""
        ...
