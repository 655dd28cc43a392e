# SPDX-License-Identifier: MIT
"""Which memory is the guest's, what is special in it, and who is changing it.

Four things are kept here:

* the map: RAM without what belongs to the SVSM, from the start or because the guest has deposited
  it. The guest may have pages validated, rescinded or made VMSAs inside it, and nowhere else;
* the calling area that the SVSM itself provides for the boot CPU. The guest may use it, but its
  state never changes;
* the registered VMSAs and calling areas. No call may change the state of such a page;
* which pages are validated (`validation_bitmap.py`).

Page locks keep a page from two handlers when one of them is suspended: between two yields a handler
is alone, across a yield its pages are locked, and whoever else wants one answers BUSY.

Spec: 58019 (SVSM), section 6 (what the core protocol's calls refuse).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from svsmd.core.memory import PageAllocator
from svsmd.core.percpu import GuestWorld, PerCpu
from svsmd.core.result_codes import SvsmError, SvsmResult
from svsmd.core.validation_bitmap import ValidationBitmap
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa


def subtract(ranges: Iterable[range], holes: Iterable[range]) -> tuple[range, ...]:
    """`ranges` without `holes`, as ascending ranges with step 1 that do not touch the holes."""
    result = [r for r in ranges if r]
    for hole in holes:
        pieces = []
        for r in result:
            pieces.append(range(r.start, min(r.stop, max(hole.start, r.start))))
            pieces.append(range(max(r.start, min(hole.stop, r.stop)), r.stop))
        result = [r for r in pieces if r] if hole else result
    return tuple(sorted(result, key=lambda r: r.start))


def _covers(ranges: Sequence[range], start: int, nbytes: int) -> bool:
    return any(r.start <= start and start + nbytes <= r.stop for r in ranges)


class GuestMemory:
    """The guest's memory as the core knows it.

    `owned` are the guest's ranges in bytes, whole pages; `launch_caa` is the SVSM's page that
    serves as the boot CPU's first calling area; `pages` is where deposits go.
    """

    def __init__(
        self,
        owned: Sequence[range],
        launch_caa: Gpa,
        validated: ValidationBitmap,
        pages: PageAllocator,
    ) -> None:
        self.owned: Final = tuple(owned)
        self.launch_caa: Final = launch_caa
        self.validated: Final = validated
        self._pages = pages
        self._worlds: dict[Gpa, GuestWorld] = {}
        self._locks: list[tuple[range, int]] = []

    # Map -------------------------------------------------------------------------------------

    def owns(self, gpa: int, nbytes: int = PAGE_SIZE) -> bool:
        """Whether all of it is the guest's own memory, and not deposited."""
        return _covers(self.owned, gpa, nbytes) and not self._pages.has_deposited(gpa, nbytes)

    @property
    def can_withdraw(self) -> bool:
        """Whether the guest could take a deposited page back."""
        return self._pages.withdrawable > 0

    def check_usable(self, cpu: PerCpu, gpa: int) -> None:
        """INVALID_ADDRESS unless the guest may name the page at `gpa` for data of its calls.

        It has to be the guest's and validated (or the SVSM's first calling area), and no VMSA.
        """
        page = gpa & ~PAGE_MASK
        if page != self.launch_caa:
            if not self.owns(page) or page in self._worlds:
                raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)
            if not self.validated.is_validated(cpu, page):
                raise SvsmError(SvsmResult.SVSM_ERR_INVALID_ADDRESS)

    # Registered pages ------------------------------------------------------------------------

    def register(self, world: GuestWorld) -> None:
        """Make `world.vmsa` and `world.caa` special."""
        self._worlds[world.vmsa] = world

    def unregister(self, world: GuestWorld) -> None:
        """Make the pages of `world` ordinary again, unless another world has them too."""
        del self._worlds[world.vmsa]

    @property
    def worlds(self) -> tuple[GuestWorld, ...]:
        """All that are registered."""
        return tuple(self._worlds.values())

    def world_of(self, vmsa: int) -> GuestWorld | None:
        """The world whose VMSA lies at this GPA, or None."""
        return self._worlds.get(Gpa(vmsa))

    def caa_owner(self, gpa: int) -> int | None:
        """APIC id of the vCPU whose registered calling area lies at `gpa`, or None."""
        for world in self._worlds.values():
            if world.caa == gpa:
                return world.apic_id
        return None

    def has_registered(self, gpa: int, nbytes: int) -> bool:
        """Whether a registered VMSA or calling area lies in this range."""
        return any(
            gpa <= page < gpa + nbytes
            for world in self._worlds.values()
            for page in (world.vmsa, world.caa)
        )

    # Locks -----------------------------------------------------------------------------------

    def is_locked(self, cpu: PerCpu, gpa: int, nbytes: int = PAGE_SIZE) -> bool:
        """Whether a handler of another vCPU holds a page of this range."""
        return any(
            held.start < gpa + nbytes and gpa < held.stop and owner != cpu.apic_id
            for held, owner in self._locks
        )

    def is_any_locked(self, cpu: PerCpu) -> bool:
        """Whether a handler of another vCPU holds any page."""
        return any(owner != cpu.apic_id for _held, owner in self._locks)

    @contextmanager
    def locked(self, cpu: PerCpu, gpa: int, nbytes: int = PAGE_SIZE) -> Iterator[None]:
        """Hold the pages of this range across yields; BUSY if another vCPU's handler has one."""
        if self.is_locked(cpu, gpa, nbytes):
            raise SvsmError(SvsmResult.SVSM_ERR_BUSY)
        lock = (range(gpa, gpa + nbytes), cpu.apic_id)
        self._locks.append(lock)
        try:
            yield
        finally:
            self._locks.remove(lock)
