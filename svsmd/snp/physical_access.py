# SPDX-License-Identifier: MIT
"""Accesses to guest-physical memory under the rules of the RMP, outside the CPU engine.

The engine does the same by its nested tables; here are the accesses that the silicon makes itself:
page walks, exception delivery, the instructions it serves, and VMPL0's port.

Spec: 24593, 15.36.10; docs/access-checks.md.
"""

from __future__ import annotations

from typing import Final, Protocol

from svsmd.snp.access import Access, AccessKind, Ciphertext, Done, NestedPageFault, VcNotValidated
from svsmd.snp.access import check as check_access
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, NpfError, Vector
from svsmd.snp.memory import GuestMemory
from svsmd.snp.rmp import Perm, Rmp
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Vmpl


class PageCipher(Protocol):
    """What a reader without the guest's key sees of a page."""

    def encrypt_page(self, spa: int, plaintext: bytes | memoryview) -> bytes:
        """The page's bytes as they lie in DRAM."""


_NEEDED = {
    AccessKind.READ: int(Perm.READ),
    AccessKind.WRITE: int(Perm.READ | Perm.WRITE),
    AccessKind.WALK: int(Perm.READ),
    AccessKind.WALK_UPDATE: int(Perm.READ | Perm.WRITE),
}

_READ_WRITE: Final = int(Perm.READ | Perm.WRITE)


class PhysicalAccess:
    """Reads and writes of guest-physical addresses, checked as the hardware checks them."""

    def __init__(self, memory: GuestMemory, rmp: Rmp, cipher: PageCipher) -> None:
        self._memory = memory
        self._rmp = rmp
        self._cipher = cipher
        self._vmpl0_pages: set[int] = set()
        """Numbers of pages that VMPL0 may read and write: the SVSM asks for the same again and
        again, and the RMP's answer takes ten times as long."""
        rmp.on_change.append(self._rmp_changed)

    def _rmp_changed(self, first_page: int, npages: int) -> None:
        if npages == 1:
            self._vmpl0_pages.discard(first_page)
        else:
            self._vmpl0_pages.difference_update(range(first_page, first_page + npages))

    def resolve(self, vmpl: int, gpa: int, kind: AccessKind, cpl: int = 0) -> tuple[int, bool]:
        """Checks one access within one page.

        Args:
            gpa: guest-physical address with its C-bit.

        Returns:
            The system physical address, and whether the reader gets ciphertext.

        Raises:
            NestedFault: VMEXIT_NPF; also for an address that is not RAM.
            GuestFault: #VC 0x404, the page is not validated.
        """
        plain = gpa & ~C_BIT
        page = plain >> PAGE_SHIFT
        if page in self._vmpl0_pages and not vmpl and gpa & C_BIT and kind is not AccessKind.FETCH:
            return plain, False
        needed = _NEEDED.get(kind)
        if needed is not None and (
            gpa & C_BIT or kind is AccessKind.WALK or kind is AccessKind.WALK_UPDATE
        ):
            allowed = self._rmp.permissions(page, vmpl)
            if not vmpl and allowed & _READ_WRITE == _READ_WRITE:
                self._vmpl0_pages.add(page)
            if allowed & needed == needed:
                return plain, False
        access = self._access(vmpl, gpa, kind, cpl)
        if not self._memory.contains(plain & ~PAGE_MASK, PAGE_SIZE):
            bits = NpfError.U | NpfError.FINAL
            if kind is AccessKind.WRITE:
                bits |= NpfError.W
            raise NestedFault(plain, int(bits), "no RAM")
        verdict = check_access(self._rmp.lookup(plain), access)
        match verdict:
            case Done():
                return plain, False
            case Ciphertext():
                return plain, True
            case VcNotValidated():
                raise GuestFault(Vector.VC, PAGE_NOT_VALIDATED)
            case NestedPageFault(row=row, error_code=error_code):
                raise NestedFault(plain, error_code, row)
            case _:
                raise AssertionError(verdict)  # a guest's access never ends as the host's #PF

    def _access(self, vmpl: int, gpa: int, kind: AccessKind, cpl: int) -> Access:
        plain = gpa & ~C_BIT
        entry = self._rmp.lookup(plain)
        # The host maps pages in the size that the RMP gives them.
        size = PageSize.SIZE_4K if entry is None else entry.page_size
        return Access(kind=kind, c_bit=bool(gpa & C_BIT), gpa=Gpa(plain), vmpl=Vmpl(vmpl),
                      cpl=cpl, mapping_size=size)  # fmt: skip

    def ciphertext(self, page: int) -> bytes:
        """A page as a reader without the guest's key sees it."""
        return self._cipher.encrypt_page(page, self._memory.page(page))

    def read(
        self, vmpl: int, gpa: int, n: int, kind: AccessKind = AccessKind.READ, cpl: int = 0
    ) -> bytes:
        """Reads within one page."""
        spa, encrypted = self.resolve(vmpl, gpa, kind, cpl)
        if encrypted:
            page = spa & ~PAGE_MASK
            return self.ciphertext(page)[spa & PAGE_MASK :][:n]
        return self._memory.read(spa, n)

    def read_u64(self, vmpl: int, gpa: int, kind: AccessKind = AccessKind.READ) -> int:
        """Reads an aligned quadword."""
        return int.from_bytes(self.read(vmpl, gpa, 8, kind), "little")

    def write(self, vmpl: int, gpa: int, data: bytes, kind: AccessKind = AccessKind.WRITE) -> int:
        """Writes within one page; returns its system physical address."""
        spa, _ = self.resolve(vmpl, gpa, kind)
        self._memory.write(spa, data)
        return spa
