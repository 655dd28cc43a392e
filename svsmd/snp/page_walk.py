# SPDX-License-Identifier: MIT
"""The page table walker, for accesses that the silicon makes outside the CPU engine.

All paging modes of the engine's CPU are here: none, 32-bit, PAE and 4-level.

Spec: 24593, 5.2 to 5.6 (translation, protection), 8.4.2 (#PF error code), 15.36.8 (walks of an SNP
guest are private, whatever the C-bit of the table's address).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, PfError, Vector
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.types import C_BIT, PAGE_SHIFT, PAGE_SIZE

CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
RFLAGS_AC: Final = 1 << 18

_P: Final = 1 << 0
_W: Final = 1 << 1
_U: Final = 1 << 2
_A: Final = 1 << 5
_D: Final = 1 << 6
_PS: Final = 1 << 7
_PAT_LARGE: Final = 1 << 12
_NX: Final = 1 << 63
_FRAME: Final = ((1 << 40) - 1) & ~(PAGE_SIZE - 1)
_RESERVED: Final = ((1 << 52) - 1) & ~((1 << 40) - 1)


class PagingState(NamedTuple):
    """The registers that decide how an address is translated."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int = 0


class Translation(NamedTuple):
    """Where a linear address is.

    `gpa` has the C-bit of the leaf; `page_size` is in bytes. `written` says that a supervisor's
    write needs no other walk: it is allowed, and the page is Dirty already.
    """

    gpa: int
    page_size: int
    written: bool = False


class Refusal(Enum):
    """Why page tables that map an address do not allow an access (24593, 5.6); how it is said."""

    USER = "U/S is clear: a supervisor's page"
    READ_ONLY = "R/W is clear"
    NO_EXECUTE = "NX is set"
    SMEP = "U/S is set and CR4.SMEP forbids a supervisor to execute a user's page"
    SMAP = "U/S is set and CR4.SMAP forbids a supervisor to touch a user's page (RFLAGS.AC = 0)"


def refusal(
    state: PagingState, kind: AccessKind, cpl: int, allowed: int, no_execute: int
) -> Refusal | None:
    """Whether the flags of all levels allow an access: `allowed` is R/W and U/S of all of them."""
    user = cpl == 3
    if user and not allowed & _U:
        return Refusal.USER
    if kind is AccessKind.WRITE and not allowed & _W and (user or state.cr0 & CR0_WP):
        return Refusal.READ_ONLY
    if kind is AccessKind.FETCH:
        if no_execute:
            return Refusal.NO_EXECUTE
        if state.cr4 & CR4_SMEP and not user and allowed & _U:
            return Refusal.SMEP
    elif not user and state.cr4 & CR4_SMAP and allowed & _U and not state.rflags & RFLAGS_AC:
        return Refusal.SMAP
    return None


LAST_TABLE_SHIFT: Final = 21


class LastTable(NamedTuple):
    """The page table of 2 MiB of addresses, and what the levels above it allow."""

    table: int
    allowed: int
    no_execute: int


class KnownTables:
    """Page tables of the last level that walks have found, and what they are known by.

    A walk from here on gives what a whole one would, as long as whoever keeps it reports every
    change of memory and of the RMP: what hangs on an entry that changes is forgotten.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], LastTable] = {}
        self._by_entry: dict[int, set[tuple[int, int]]] = {}
        self._pages: set[int] = set()
        """Numbers of the pages with such entries."""

    def find(self, cr3: int, address: int) -> LastTable | None:
        """The page table of an address in long mode."""
        return self._tables.get((cr3, address >> LAST_TABLE_SHIFT))

    def add(self, cr3: int, address: int, table: LastTable, path: Sequence[int]) -> None:
        """Note a table, to which the entries at the GPAs of `path` have led."""
        key = cr3, address >> LAST_TABLE_SHIFT
        self._tables[key] = table
        for entry in path:
            self._by_entry.setdefault(entry, set()).add(key)
            self._pages.add(entry >> PAGE_SHIFT)

    def __len__(self) -> int:
        return len(self._tables)

    def memory_written(self, gpa: int, nbytes: int) -> None:
        """These bytes may have changed."""
        first, last = gpa >> PAGE_SHIFT, (gpa + nbytes - 1) >> PAGE_SHIFT
        if first == last and first not in self._pages:
            return
        stop = gpa + nbytes
        for page in [page for page in self._pages if first <= page <= last]:
            start = page << PAGE_SHIFT
            entries = range(max(gpa & -8, start), min(stop, start + PAGE_SIZE), 8)
            for entry in entries:
                for key in self._by_entry.pop(entry, ()):
                    self._tables.pop(key, None)

    def rmp_changed(self, first_page: int, npages: int) -> None:
        """A page may not be what it was for VMPL0."""
        if any(first_page <= page < first_page + npages for page in self._pages):
            self._tables.clear()
            self._by_entry.clear()
            self._pages.clear()


class PageWalker:
    """Walks guest page tables as one VMPL.

    Args:
        debug: permissions of the tables do not matter, and no Accessed or Dirty bit is set.
    """

    def __init__(self, access: PhysicalAccess, vmpl: int, *, debug: bool = False) -> None:
        self._access = access
        self._vmpl = vmpl
        self._debug = debug

    def translate(
        self,
        state: PagingState,
        address: int,
        kind: AccessKind,
        cpl: int,
        known: KnownTables | None = None,
    ) -> Translation:
        """Translates a linear address.

        Args:
            known: for long mode, page tables of former walks; used, and added to.

        Raises:
            GuestFault: #PF with its error code and address, or #GP for a non-canonical one.
            NestedFault, GuestFault #VC: a table's page is not accessible.
        """
        if not state.cr0 & CR0_PG:
            # Without paging an SNP guest's accesses are private (24593, 15.34.10).
            return Translation((address & 0xFFFF_FFFF) | C_BIT, PAGE_SIZE)
        try:
            return self._paged(state, address, kind, cpl, known)
        except GuestFault as fault:
            if fault.address is None:  # #VC 0x404 of a table's page
                fault.address = address
            raise

    def _paged(
        self,
        state: PagingState,
        address: int,
        kind: AccessKind,
        cpl: int,
        known: KnownTables | None,
    ) -> Translation:
        if not state.cr4 & CR4_PAE:
            return self._two_levels(state, address & 0xFFFF_FFFF, kind, cpl)
        if state.efer & EFER_LMA:
            sign = address >> 47
            if sign not in (0, 0x1FFFF):
                raise GuestFault(Vector.GP, 0)
            return self._levels(state, address, kind, cpl, state.cr3 & _FRAME, 39, known)
        return self._levels(state, address & 0xFFFF_FFFF, kind, cpl, state.cr3 & 0xFFFF_FFE0, 30)

    def _entry(self, gpa: int) -> int:
        return self._access.read_u64(self._vmpl, gpa | C_BIT, AccessKind.WALK)

    def _levels(
        self, state: PagingState, address: int, kind: AccessKind, cpl: int, table: int, shift: int,
        known: KnownTables | None = None,
    ) -> Translation:  # fmt: skip
        legacy_pointers = shift == 30
        allowed = _W | _U
        no_execute = 0
        path: list[int] = []
        last = None if known is None else known.find(state.cr3, address)
        if last is not None:
            table, allowed, no_execute = last
            shift = PAGE_SHIFT
        while True:
            index = (address >> shift) & (3 if legacy_pointers and shift == 30 else 0x1FF)
            where = (table & ~C_BIT) + index * 8
            entry = self._entry(where)
            if not entry & _P:
                raise self._fault(state, address, kind, cpl, present=False)
            reserved = entry & _RESERVED
            if not state.efer & EFER_NXE:
                reserved |= entry & _NX
            if reserved or (entry & _PS and shift == 39):
                raise self._fault(state, address, kind, cpl, present=True, reserved=True)
            if not (legacy_pointers and shift == 30):
                allowed &= entry
                no_execute |= entry & _NX
            large = bool(entry & _PS) and (shift == 21 or (shift == 30 and not legacy_pointers))
            if shift == 12 or large:
                size = 1 << shift
                if entry & _FRAME & (size - 1) & ~_PAT_LARGE:
                    raise self._fault(state, address, kind, cpl, present=True, reserved=True)
                self._check(state, address, kind, cpl, allowed, no_execute)
                self._mark(where, entry, dirty=kind is AccessKind.WRITE)
                frame = entry & _FRAME & ~(size - 1)
                written = bool(allowed & _W) and (kind is AccessKind.WRITE or bool(entry & _D))
                return Translation(frame | (address & (size - 1)), size, written)
            if not (legacy_pointers and shift == 30):
                self._mark(where, entry, dirty=False)
            table = entry & _FRAME
            shift -= 9
            path.append(where)
            if shift == PAGE_SHIFT and known is not None:
                known.add(state.cr3, address, LastTable(table, allowed, no_execute), path)

    def _two_levels(
        self, state: PagingState, address: int, kind: AccessKind, cpl: int
    ) -> Translation:
        where = (state.cr3 & 0xFFFF_F000) + (address >> 22) * 4
        entry = self._short_entry(where)
        if not entry & _P:
            raise self._fault(state, address, kind, cpl, present=False)
        allowed = entry & (_W | _U)
        if entry & _PS and state.cr4 & CR4_PSE:
            self._check(state, address, kind, cpl, allowed, 0)
            self._mark(where, entry, dirty=kind is AccessKind.WRITE, size=4)
            return Translation((entry & 0xFFC0_0000) | (address & 0x3F_FFFF) | C_BIT, 1 << 22)
        self._mark(where, entry, dirty=False, size=4)
        where = (entry & 0xFFFF_F000) + ((address >> 12) & 0x3FF) * 4
        entry = self._short_entry(where)
        if not entry & _P:
            raise self._fault(state, address, kind, cpl, present=False)
        self._check(state, address, kind, cpl, allowed & entry, 0)
        self._mark(where, entry, dirty=kind is AccessKind.WRITE, size=4)
        return Translation((entry & 0xFFFF_F000) | (address & 0xFFF) | C_BIT, PAGE_SIZE)

    def _short_entry(self, where: int) -> int:
        return self._entry(where & ~7) >> (8 * (where & 4)) & 0xFFFF_FFFF

    def _mark(self, where: int, entry: int, *, dirty: bool, size: int = 8) -> None:
        marked = entry | _A | (_D if dirty else 0)
        if marked != entry and not self._debug:
            data = marked.to_bytes(size, "little")
            self._access.write(self._vmpl, where | C_BIT, data, AccessKind.WALK_UPDATE)

    def _check(
        self, state: PagingState, address: int, kind: AccessKind, cpl: int, allowed: int, nx: int
    ) -> None:
        if not self._debug and refusal(state, kind, cpl, allowed, nx) is not None:
            raise self._fault(state, address, kind, cpl, present=True)

    @staticmethod
    def _fault(
        state: PagingState, address: int, kind: AccessKind, cpl: int, *, present: bool,
        reserved: bool = False,
    ) -> GuestFault:  # fmt: skip
        code = PfError(0)
        if present:
            code |= PfError.P
        if kind is AccessKind.WRITE:
            code |= PfError.W
        if cpl == 3:
            code |= PfError.U
        if reserved:
            code |= PfError.RSVD
        if kind is AccessKind.FETCH and (state.efer & EFER_NXE or state.cr4 & CR4_SMEP):
            code |= PfError.ID
        return GuestFault(Vector.PF, int(code), address)
