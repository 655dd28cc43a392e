# SPDX-License-Identifier: MIT
"""The CPUID page: a table of CPUID results that the security processor has checked.

Spec: SNP firmware ABI (56860), SNP_LAUNCH_UPDATE, "CPUID page", tables "CPUID page" and "CPUID
function structure"; the same structure is in MSG_CPUID_REQ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from svsmd.snp import cpuid_policy
from svsmd.snp.cpuid_policy import CpuidResult
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.page_view import U32, U64, PageView, WritableBuffer
from svsmd.snp.types import PAGE_SIZE

CPUID_COUNT_MAX: Final = 64

CPUID_FUNCTION: Final = struct.Struct("<IIQQIIIIQ")
"""EAX_IN, ECX_IN, XCR0_IN, XSS_IN, EAX, EBX, ECX, EDX, reserved."""


class CpuidFunction(NamedTuple):
    """One entry of the table."""

    eax_in: int
    ecx_in: int
    xcr0_in: int
    xss_in: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    reserved: int = 0

    @property
    def result(self) -> CpuidResult:
        """The four registers."""
        return CpuidResult(self.eax, self.ebx, self.ecx, self.edx)


def check_function(entry: CpuidFunction) -> CpuidFunction:
    """Return `entry` as the firmware corrects it; the same if nothing is wrong with it."""
    corrected = cpuid_policy.sanitize(entry.eax_in, entry.ecx_in, entry.result)
    return entry._replace(**corrected._asdict())


class CpuidPage(PageView):
    """One CPUID page."""

    __slots__ = ()

    SIZE = PAGE_SIZE

    FUNCTIONS_OFFSET: Final = 0x10

    count = U32(0x000)
    reserved = U32(0x004)
    reserved_2 = U64(0x008)

    @classmethod
    def build(
        cls, ncpus: int = 1, page: WritableBuffer | None = None, extra: Iterable[CpuidFunction] = ()
    ) -> CpuidPage:
        """Fill `page` (or a new one) with all that this machine has, as its boot CPU sees it.

        `extra` entries come behind. ValueError if there are more than 64.
        """
        view = cls(page)
        view.clear()
        table = cpuid_policy.table(ncpus)
        entries = [CpuidFunction(*key, 0, 0, *result) for key, result in table.items()]
        view.set_functions([*entries, *extra])
        return view

    def functions(self) -> list[CpuidFunction]:
        """Return the entries; of a count that is too large, the 64 that a page can have."""
        return [self.function(index) for index in range(min(self.count, CPUID_COUNT_MAX))]

    def function(self, index: int) -> CpuidFunction:
        """Return entry `index`, counted or not; IndexError above 63."""
        return CpuidFunction._make(CPUID_FUNCTION.unpack_from(self.memory, self._offset(index)))

    def set_function(self, index: int, entry: CpuidFunction) -> None:
        """Write entry `index`; IndexError above 63."""
        CPUID_FUNCTION.pack_into(self.memory, self._offset(index), *entry)

    def set_functions(self, entries: list[CpuidFunction]) -> None:
        """Write all entries and their count; ValueError if there are more than 64."""
        if len(entries) > CPUID_COUNT_MAX:
            raise ValueError(f"{len(entries)} entries, the page has {CPUID_COUNT_MAX}")
        for index, entry in enumerate(entries):
            self.set_function(index, entry)
        self.count = len(entries)

    def lookup(self, function: int, index: int = 0) -> CpuidResult:
        """Return what a guest reads from the table: zeros for a function that is not in it.

        The index counts only for the functions that look at it, as in CPUID itself.
        """
        for entry in self.functions():
            if entry.eax_in == function and (
                entry.ecx_in == index or not cpuid_policy.is_indexed(function)
            ):
                return entry.result
        return CpuidResult()

    def check(self) -> FirmwareStatus:
        """Check the page as SNP_LAUNCH_UPDATE does, and write corrected values into it.

        INVALID_PARAM if anything had to be corrected, if there are more than 64 entries, or if a
        reserved field is set (56860, SNP_LAUNCH_UPDATE, actions for a CPUID page).
        """
        if self.reserved or self.reserved_2 or self.count > CPUID_COUNT_MAX:
            return FirmwareStatus.INVALID_PARAM
        status = FirmwareStatus.SUCCESS
        for index, entry in enumerate(self.functions()):
            corrected = check_function(entry)
            if corrected != entry:
                self.set_function(index, corrected)
                status = FirmwareStatus.INVALID_PARAM
            if entry.reserved:
                status = FirmwareStatus.INVALID_PARAM
        return status

    @classmethod
    def _offset(cls, index: int) -> int:
        if not 0 <= index < CPUID_COUNT_MAX:
            raise IndexError(f"no entry {index} in a CPUID page")
        return cls.FUNCTIONS_OFFSET + index * CPUID_FUNCTION.size
