# SPDX-License-Identifier: MIT
"""The machine as software at VMPL0 sees it, and where VMPL0's page tables map what.

Everything the core does to the machine goes through `Port`; the silicon provides one for each vCPU
and checks every access as it checks the CPU's own.

Spec: 24594 (PVALIDATE, RMPADJUST, INVLPGB, TLBSYNC); the map is `svsmd/core/native/layout.h`.
"""

from __future__ import annotations

from typing import Final, Protocol

from svsmd.snp.types import PageSize

PRIVATE_MAP: Final = 0xFFFF_8000_0000_0000
"""Plus a GPA: the SVSM's own memory, C-bit set (SVSM_PRIVATE_MAP)."""
PERCPU_MAP: Final = 0xFFFF_FF00_0000_0000
"""The area of the CPU that looks, `svsmd/core/paging/cpu_area.py` (SVSM_PERCPU_MAP)."""
IMAGE_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where the native kernel is linked and mapped (SVSM_IMAGE_VIRT)."""


class Port(Protocol):
    """Loads, stores and instructions of VMPL0 on one vCPU.

    Every method may raise `GuestFault` (the exception that the instruction takes) or `NestedFault`
    (the host has to act before the instruction can be tried again).
    """

    def read(self, gva: int, n: int, /) -> bytes:
        """Load `n` bytes from `gva`."""
        ...

    def write(self, gva: int, data: bytes, /) -> None:
        """Store `data` at `gva`."""
        ...

    def zero(self, gva: int, n: int, /) -> None:
        """Store `n` zero bytes at `gva`, as REP STOS does: a fault may leave some stored."""
        ...

    def pvalidate(self, gva: int, size: PageSize, validate: bool, /) -> tuple[int, bool]:
        """PVALIDATE; returns EAX and CF."""
        ...

    def rmpadjust(self, gva: int, size: PageSize, attributes: int, /) -> int:
        """RMPADJUST with RDX = `attributes`; returns EAX."""
        ...

    def rdmsr(self, index: int, /) -> int:
        """RDMSR of an MSR that the hypervisor cannot intercept; else #VC."""
        ...

    def write_cr3(self, value: int, /) -> None:
        """MOV to CR3, which also makes this CPU forget its translations."""
        ...

    def invlpg(self, gva: int, /) -> None:
        """INVLPG: this CPU forgets the translation of the page that `gva` lies in."""
        ...

    def read_cr2(self) -> int:
        """MOV from CR2: the address of the last #PF."""
        ...

    def rdtsc(self) -> int:
        """RDTSC; #VC where the hypervisor intercepts it."""
        ...

    def rdrand(self) -> int:
        """RDRAND of 64 bits; it never runs dry."""
        ...

    def flush_tlb(self) -> None:
        """INVLPGB of everything, and TLBSYNC."""
        ...

    def charge(self, ticks: int, /) -> None:
        """Let `ticks` of guest time pass."""
        ...


class GateCall(Protocol):
    """One execution of the gate instruction: who came, and the registers it came with.

    What is written to RAX to RDX is what the stub finds there. The others can only be read: RIP is
    that of the gate instruction, linear.
    """

    @property
    def port(self) -> Port:
        """The port of the vCPU that came."""
        ...

    @property
    def vcpu(self) -> int:
        """Number of the vCPU, which is its APIC id."""
        ...

    rax: int
    rbx: int
    rcx: int
    rdx: int

    @property
    def rdi(self) -> int:
        """RDI."""
        ...

    @property
    def rbp(self) -> int:
        """RBP: the chain of the native frames."""
        ...

    @property
    def rsp(self) -> int:
        """RSP."""
        ...

    @property
    def rip(self) -> int:
        """GVA of the gate instruction."""
        ...
