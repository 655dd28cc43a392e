# SPDX-License-Identifier: MIT
"""Loads, stores and RMP instructions of the core, as pieces of handlers.

Each tries its instruction until no nested page fault stands in the way: PVALIDATE and RMPADJUST of
4 KiB inside a 2 MiB RMP entry, for one, ask the host for a PSMASH that way (24593, 15.36.11). In
between the host may run other vCPUs. All addresses are GPAs, of private memory unless the name
says so. What the CPU itself would refuse comes out as `GuestFault`.

Only the SVSM's own memory is mapped for good (`load_own` and the like). Every other page is mapped
for the access, in a slot of this CPU's address space, and the mapping is gone when the access is
over, however often it was tried. `mapped` keeps one for several accesses to the same page.

Spec: 24594 (PVALIDATE, RMPADJUST), 24593 15.36.7 (VMPL permissions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from svsmd.core import costs
from svsmd.core.gate import Handler, NestedPageFault, SvsmPanic
from svsmd.core.page_entry import PageFlags, leaf_entry
from svsmd.core.percpu import PerCpu, Slot, Window
from svsmd.core.port import PRIVATE_MAP
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.rmp import NUM_VMPLS, Perm, RmpAttributes, RmpReturn
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, PageSize

T = TypeVar("T")

_CACHE_LINE: Final = 64
_NOT_PRESENT: Final = bytes(8)
_LEAVES: Final = {
    (size, shared): leaf_entry(0, PageFlags.WRITE | (PageFlags.SHARED if shared else 0), size)
    for size in PageSize
    for shared in (False, True)
}
"""Entries of temporary mappings, by size and whether the page is shared."""

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


def _window(cpu: PerCpu, gpa: int, nbytes: int, shared: bool) -> Window | None:
    for window in cpu.windows:
        if window.start <= gpa and gpa + nbytes <= window.stop and window.shared == shared:
            return window
    return None


class mapped:
    """A temporary mapping of one page on this CPU; in its block the accesses to the page use it.

    Entering gives the GVA of `gpa`. A page that is mapped already stays as it is, so blocks nest.
    """

    __slots__ = ("_cpu", "_gpa", "_shared", "_size", "_slot", "_window")

    def __init__(
        self,
        cpu: PerCpu,
        gpa: int,
        size: PageSize = PageSize.SIZE_4K,
        *,
        shared: bool = False,
    ) -> None:
        self._cpu, self._gpa, self._size, self._shared = cpu, gpa, size, shared
        self._slot: Slot | None = None

    def __enter__(self) -> int:
        cpu, gpa, size = self._cpu, self._gpa, self._size
        window = _window(cpu, gpa, size.nbytes, self._shared)
        if window is None:
            free = cpu.slots[size]
            if not free:
                raise SvsmPanic(f"vCPU {cpu.apic_id} has no place to map page {gpa:#x}")
            self._slot = slot = free.pop()
            leaf = _LEAVES[size, self._shared] | gpa
            store_own(cpu, slot.entry, leaf.to_bytes(8, "little"))
            window = Window(gpa, gpa + size.nbytes, slot.gva, self._shared)
            cpu.windows.append(window)
        self._window = window
        return window.gva + gpa - window.start

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A handler that is closed while it is suspended has no machine any more.
        if self._slot is None or kind is GeneratorExit:
            return
        cpu, slot = self._cpu, self._slot
        cpu.windows.remove(self._window)
        store_own(cpu, slot.entry, _NOT_PRESENT)
        cpu.port.charge(costs.INVLPG)
        cpu.port.invlpg(slot.gva)
        cpu.slots[self._size].append(slot)


def _load(cpu: PerCpu, gpa: int, nbytes: int, shared: bool) -> Handler[bytes]:
    cpu.port.charge(_copy_cost(nbytes))
    window = _window(cpu, gpa, nbytes, shared)
    if window is not None:
        gva = window.gva + gpa - window.start
        # _retry() written out, here and in _store(): most accesses come this way.
        while True:
            try:
                return cpu.port.read(gva, nbytes)
            except NestedFault as fault:
                yield NestedPageFault(fault)
    parts: list[bytes] = []
    for start, chunk in _pages(gpa, nbytes):
        with mapped(cpu, start & ~PAGE_MASK, shared=shared) as page:
            gva = page + (start & PAGE_MASK)
            parts.append((yield from _retry(partial(_read, cpu, gva, chunk))))
    return b"".join(parts)


def _store(cpu: PerCpu, gpa: int, data: bytes, shared: bool) -> Handler[None]:
    cpu.port.charge(_copy_cost(len(data)))
    window = _window(cpu, gpa, len(data), shared)
    if window is not None:
        gva = window.gva + gpa - window.start
        while True:
            try:
                return cpu.port.write(gva, data)
            except NestedFault as fault:
                yield NestedPageFault(fault)
    for start, chunk in _pages(gpa, len(data)):
        part = data[start - gpa : start - gpa + chunk]
        with mapped(cpu, start & ~PAGE_MASK, shared=shared) as page:
            gva = page + (start & PAGE_MASK)
            yield from _retry(partial(_write, cpu, gva, part))


def _pages(gpa: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Start and length of the parts of a range that lie in different pages."""
    while nbytes:
        chunk = min(nbytes, PAGE_SIZE - (gpa & PAGE_MASK))
        yield gpa, chunk
        gpa += chunk
        nbytes -= chunk


def _read(cpu: PerCpu, gva: int, nbytes: int) -> bytes:
    # The port changes from one try to the next.
    return cpu.port.read(gva, nbytes)


def _write(cpu: PerCpu, gva: int, data: bytes) -> None:
    cpu.port.write(gva, data)


def load(cpu: PerCpu, gpa: int, nbytes: int) -> Handler[bytes]:
    """Read private memory, page by page."""
    return _load(cpu, gpa, nbytes, shared=False)


def store(cpu: PerCpu, gpa: int, data: bytes) -> Handler[None]:
    """Write private memory, page by page."""
    return _store(cpu, gpa, data, shared=False)


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
    return _load(cpu, gpa, nbytes, shared=True)


def store_shared(cpu: PerCpu, gpa: int, data: bytes) -> Handler[None]:
    """Write shared memory: the host sees it."""
    return _store(cpu, gpa, data, shared=True)


def zero(cpu: PerCpu, gpa: int, size: PageSize) -> Handler[None]:
    """Make a private page all zero."""
    cpu.port.charge(costs.COPY_PAGE * size.npages)
    with mapped(cpu, gpa, size) as gva:
        yield from _retry(lambda: cpu.port.zero(gva, size.nbytes))


def pvalidate(cpu: PerCpu, gpa: int, size: PageSize, validate: bool) -> Handler[tuple[int, bool]]:
    """PVALIDATE; returns EAX and CF."""
    cpu.port.charge(costs.PVALIDATE)
    with mapped(cpu, gpa, size) as gva:
        return (yield from _retry(lambda: cpu.port.pvalidate(gva, size, validate)))


def rmpadjust(cpu: PerCpu, gpa: int, size: PageSize, attributes: int) -> Handler[int]:
    """RMPADJUST; returns EAX. An exception counts as FAIL_INPUT, as COCONUT-SVSM has it too."""
    cpu.port.charge(costs.RMPADJUST)
    with mapped(cpu, gpa, size) as gva:
        try:
            return (yield from _retry(lambda: cpu.port.rmpadjust(gva, size, attributes)))
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
