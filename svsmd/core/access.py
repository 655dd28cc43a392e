# SPDX-License-Identifier: MIT
"""Loads, stores and RMP instructions of the core, as pieces of handlers.

Each tries its instruction until no nested page fault stands in the way: PVALIDATE and RMPADJUST of
4 KiB inside a 2 MiB RMP entry, for one, ask the host for a PSMASH that way (24593, 15.36.11). In
between the host may run other vCPUs. All addresses are GPAs, in the private map unless the name
says so. What the CPU itself would refuse comes out as `GuestFault`.

Spec: 24594 (PVALIDATE, RMPADJUST), 24593 15.36.7 (VMPL permissions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from svsmd.core import costs
from svsmd.core.gate import Handler, NestedPageFault, SvsmPanic
from svsmd.core.percpu import PerCpu
from svsmd.core.port import PRIVATE_MAP, SHARED_MAP
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.rmp import NUM_VMPLS, Perm, RmpAttributes, RmpReturn
from svsmd.snp.types import PAGE_SIZE, PageSize

T = TypeVar("T")

_CACHE_LINE: Final = 64

PERM_ALL: Final = int(Perm.ALL) << RmpAttributes.PERM_SHIFT
"""RDX[11:8] of RMPADJUST: read, write, execute at every CPL."""


def _copy_cost(nbytes: int) -> int:
    if nbytes <= _CACHE_LINE:
        return costs.MEMORY_ACCESS
    return costs.MEMORY_ACCESS + costs.COPY_PAGE * nbytes // PAGE_SIZE


def _retry(instruction: Callable[[], T]) -> Handler[T]:
    while True:
        try:
            return instruction()
        except NestedFault as fault:
            yield NestedPageFault(fault)


def load(cpu: PerCpu, gpa: int, nbytes: int) -> Handler[bytes]:
    """Read private memory."""
    cpu.port.charge(_copy_cost(nbytes))
    return (yield from _retry(lambda: cpu.port.read(PRIVATE_MAP + gpa, nbytes)))


def store(cpu: PerCpu, gpa: int, data: bytes) -> Handler[None]:
    """Write private memory."""
    cpu.port.charge(_copy_cost(len(data)))
    yield from _retry(lambda: cpu.port.write(PRIVATE_MAP + gpa, data))


def load_own(cpu: PerCpu, gpa: int, nbytes: int) -> bytes:
    """Read memory of the SVSM itself; never suspends.

    Panics if it is not there: only a host that took it away, or put another page in its place, can
    be the reason.
    """
    cpu.port.charge(_copy_cost(nbytes))
    try:
        return cpu.port.read(PRIVATE_MAP + gpa, nbytes)
    except (GuestFault, NestedFault) as fault:
        raise SvsmPanic(f"memory of the SVSM is gone: {fault}") from fault


def store_own(cpu: PerCpu, gpa: int, data: bytes) -> None:
    """Write memory of the SVSM itself; otherwise as `load_own`."""
    cpu.port.charge(_copy_cost(len(data)))
    try:
        cpu.port.write(PRIVATE_MAP + gpa, data)
    except (GuestFault, NestedFault) as fault:
        raise SvsmPanic(f"memory of the SVSM is gone: {fault}") from fault


def zero_own(cpu: PerCpu, gpa: int, nbytes: int) -> None:
    """Make memory of the SVSM itself zero; otherwise as `load_own`."""
    cpu.port.charge(_copy_cost(nbytes))
    try:
        cpu.port.zero(PRIVATE_MAP + gpa, nbytes)
    except (GuestFault, NestedFault) as fault:
        raise SvsmPanic(f"memory of the SVSM is gone: {fault}") from fault


def load_shared(cpu: PerCpu, gpa: int, nbytes: int) -> Handler[bytes]:
    """Read shared memory: bytes that the host wrote, or may change at any time."""
    cpu.port.charge(_copy_cost(nbytes))
    return (yield from _retry(lambda: cpu.port.read(SHARED_MAP + gpa, nbytes)))


def store_shared(cpu: PerCpu, gpa: int, data: bytes) -> Handler[None]:
    """Write shared memory: the host sees it."""
    cpu.port.charge(_copy_cost(len(data)))
    yield from _retry(lambda: cpu.port.write(SHARED_MAP + gpa, data))


def zero(cpu: PerCpu, gpa: int, size: PageSize) -> Handler[None]:
    """Make a private page all zero."""
    cpu.port.charge(costs.COPY_PAGE * size.npages)
    yield from _retry(lambda: cpu.port.zero(PRIVATE_MAP + gpa, size.nbytes))


def pvalidate(cpu: PerCpu, gpa: int, size: PageSize, validate: bool) -> Handler[tuple[int, bool]]:
    """PVALIDATE; returns EAX and CF."""
    cpu.port.charge(costs.PVALIDATE)
    return (yield from _retry(lambda: cpu.port.pvalidate(PRIVATE_MAP + gpa, size, validate)))


def rmpadjust(cpu: PerCpu, gpa: int, size: PageSize, attributes: int) -> Handler[int]:
    """RMPADJUST; returns EAX. An exception counts as FAIL_INPUT, as COCONUT-SVSM has it too."""
    cpu.port.charge(costs.RMPADJUST)
    try:
        return (yield from _retry(lambda: cpu.port.rmpadjust(PRIVATE_MAP + gpa, size, attributes)))
    except GuestFault:
        return RmpReturn.FAIL_INPUT


def grant(cpu: PerCpu, gpa: int, size: PageSize, vmpl: int) -> Handler[int]:
    """Let `vmpl` read, write and execute a page that is no VMSA any more; returns EAX."""
    return (yield from rmpadjust(cpu, gpa, size, PERM_ALL | vmpl))


def revoke(cpu: PerCpu, gpa: int, size: PageSize, vmpl: int) -> Handler[int]:
    """Take every permission from `vmpl` and the VMPLs below it, which it may have granted itself.

    Returns the first EAX that is not SUCCESS; then the permissions of some VMPLs are gone already.
    """
    for target in range(vmpl, NUM_VMPLS):
        code = yield from rmpadjust(cpu, gpa, size, target)
        if code != RmpReturn.SUCCESS:
            return code
    return RmpReturn.SUCCESS


def flush_tlb(cpu: PerCpu) -> None:
    """Make every vCPU forget its translations; returns when they have."""
    cpu.port.charge(costs.FLUSH_TLB)
    cpu.port.flush_tlb()
