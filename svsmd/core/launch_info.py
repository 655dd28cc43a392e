# SPDX-License-Identifier: MIT
"""The launch-info page: what the launcher tells the SVSM.

Spec: none of AMD's; ours. The same layout in C, with the meaning of each field, is
``svsmd/core/native/launch_info.h``; sizes and offsets there are asserted by the compiler and here
by tests. All fields are little-endian, addresses are guest-physical bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self

from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_MASK, PAGE_SIZE, Gpa

LAUNCH_INFO_MAGIC: Final = b"SVSMDLI1"
LAUNCH_INFO_VERSION: Final = 3
MAX_RAM_RANGES: Final = 8
MAX_VALIDATED_RANGES: Final = 16

_HEADER: Final = struct.Struct("<8s6I14Q")
_ENTRY: Final = struct.Struct("<5QII")
_RAM: Final = struct.Struct("<QQ")
_COUNT: Final = struct.Struct("<II")
_VALIDATED: Final = struct.Struct("<QII32s")

SHA256_SIZE: Final = 32

LAUNCH_INFO_SIZE: Final = (
    _HEADER.size
    + _ENTRY.size
    + MAX_RAM_RANGES * _RAM.size
    + _COUNT.size
    + MAX_VALIDATED_RANGES * _VALIDATED.size
)
"""Bytes of ``struct launch_info``; the rest of its page is zero."""


class LaunchInfoError(ValueError):
    """The page does not hold what a launcher may write there."""


class LaunchRangeFlags(IntFlag):
    """``launch_validated_range.flags``."""

    NONE = 0
    SVSM = 1
    """Belongs to the SVSM: never granted to the guest."""


@dataclass(frozen=True, slots=True)
class RamRange:
    """One run of RAM: GPA and size in bytes, both whole pages."""

    base: Gpa
    size: int


@dataclass(frozen=True, slots=True)
class ValidatedRange:
    """Pages that LAUNCH_UPDATE has put there, private and validated already.

    ``npages`` counts 4 KiB pages. ``sha256`` is that of all their bytes at launch, for pages of the
    guest, which a restart puts there again; for those of the SVSM it is zero.
    """

    gpa: Gpa
    npages: int
    flags: LaunchRangeFlags = LaunchRangeFlags.NONE
    sha256: bytes = bytes(SHA256_SIZE)


@dataclass(frozen=True, slots=True)
class EntryState:
    """Registers with which the payload starts in 64-bit mode.

    ``cr3`` has the C-bit; the boot GDT offers CS 0x10 and DS/ES/SS 0x18, as Linux's 64-bit boot
    protocol wants it.
    """

    rip: int
    rsp: int
    rsi: int
    cr3: int
    gdtr_base: int
    gdtr_limit: int


@dataclass(frozen=True, slots=True)
class LaunchInfo:
    """All of the page. Field meanings: ``launch_info.h``."""

    cbit: int
    guest_vmpl: int
    cpu_count: int
    svsm_base: Gpa
    svsm_size: int
    svsm_vmsa: Gpa
    svsm_cpuid: Gpa
    svsm_secrets: Gpa
    guest_cpuid: Gpa
    guest_secrets: Gpa
    guest_caa: Gpa
    svsm_kernel: Gpa
    svsm_kernel_size: int
    svsm_archive: Gpa
    svsm_archive_size: int
    svsm_core_digest: Gpa
    svsm_ghcb: Gpa
    entry: EntryState
    ram: tuple[RamRange, ...]
    validated: tuple[ValidatedRange, ...]

    def to_page(self) -> bytes:
        """The page, 4096 bytes. Raises LaunchInfoError for what `from_page` would refuse."""
        self.check()
        entry = self.entry
        parts = [
            _HEADER.pack(
                LAUNCH_INFO_MAGIC,
                LAUNCH_INFO_VERSION,
                LAUNCH_INFO_SIZE,
                self.cbit,
                self.guest_vmpl,
                self.cpu_count,
                len(self.ram),
                self.svsm_base,
                self.svsm_size,
                self.svsm_vmsa,
                self.svsm_cpuid,
                self.svsm_secrets,
                self.guest_cpuid,
                self.guest_secrets,
                self.guest_caa,
                self.svsm_kernel,
                self.svsm_kernel_size,
                self.svsm_archive,
                self.svsm_archive_size,
                self.svsm_core_digest,
                self.svsm_ghcb,
            ),
            _ENTRY.pack(
                entry.rip,
                entry.rsp,
                entry.rsi,
                entry.cr3,
                entry.gdtr_base,
                entry.gdtr_limit,
                0,
            ),
            b"".join(_RAM.pack(r.base, r.size) for r in self.ram).ljust(
                MAX_RAM_RANGES * _RAM.size, b"\0"
            ),
            _COUNT.pack(len(self.validated), 0),
            b"".join(_VALIDATED.pack(v.gpa, v.npages, v.flags, v.sha256) for v in self.validated),
        ]
        return b"".join(parts).ljust(PAGE_SIZE, b"\0")

    @classmethod
    def from_page(cls, page: bytes) -> Self:
        """Read and check a page. Raises LaunchInfoError; the page may hold anything."""
        if len(page) != PAGE_SIZE:
            raise LaunchInfoError(f"launch info has {len(page)} bytes, not {PAGE_SIZE}")
        (
            magic,
            version,
            size,
            cbit,
            guest_vmpl,
            cpu_count,
            ram_count,
            svsm_base,
            svsm_size,
            svsm_vmsa,
            svsm_cpuid,
            svsm_secrets,
            guest_cpuid,
            guest_secrets,
            guest_caa,
            svsm_kernel,
            svsm_kernel_size,
            svsm_archive,
            svsm_archive_size,
            svsm_core_digest,
            svsm_ghcb,
        ) = _HEADER.unpack_from(page, 0)
        if magic != LAUNCH_INFO_MAGIC:
            raise LaunchInfoError("launch info has no magic")
        if (version, size) != (LAUNCH_INFO_VERSION, LAUNCH_INFO_SIZE):
            raise LaunchInfoError(f"launch info has version {version}, size {size:#x}")
        if ram_count > MAX_RAM_RANGES:
            raise LaunchInfoError(f"launch info has {ram_count} RAM ranges")
        offset = _HEADER.size
        *registers, reserved = _ENTRY.unpack_from(page, offset)
        offset += _ENTRY.size
        ram = tuple(
            RamRange(Gpa(base), length)
            for base, length in _RAM.iter_unpack(page[offset : offset + ram_count * _RAM.size])
        )
        offset += MAX_RAM_RANGES * _RAM.size
        validated_count, reserved_too = _COUNT.unpack_from(page, offset)
        offset += _COUNT.size
        if validated_count > MAX_VALIDATED_RANGES:
            raise LaunchInfoError(f"launch info has {validated_count} validated ranges")
        end = offset + validated_count * _VALIDATED.size
        try:
            validated = tuple(
                ValidatedRange(Gpa(gpa), npages, LaunchRangeFlags(_known_flags(flags)), sha256)
                for gpa, npages, flags, sha256 in _VALIDATED.iter_unpack(page[offset:end])
            )
        except ValueError as error:
            raise LaunchInfoError(str(error)) from None
        if reserved or reserved_too or any(page[end:]):
            raise LaunchInfoError("launch info has reserved bytes that are not zero")
        info = cls(
            cbit=cbit,
            guest_vmpl=guest_vmpl,
            cpu_count=cpu_count,
            svsm_base=svsm_base,
            svsm_size=svsm_size,
            svsm_vmsa=svsm_vmsa,
            svsm_cpuid=svsm_cpuid,
            svsm_secrets=svsm_secrets,
            guest_cpuid=guest_cpuid,
            guest_secrets=guest_secrets,
            guest_caa=guest_caa,
            svsm_kernel=svsm_kernel,
            svsm_kernel_size=svsm_kernel_size,
            svsm_archive=svsm_archive,
            svsm_archive_size=svsm_archive_size,
            svsm_core_digest=svsm_core_digest,
            svsm_ghcb=svsm_ghcb,
            entry=EntryState(*registers),
            ram=ram,
            validated=validated,
        )
        info.check()
        return info

    def check(self) -> None:
        """Raise LaunchInfoError unless the values make sense together."""
        if not 32 <= self.cbit <= 51:
            raise LaunchInfoError(f"C-bit {self.cbit} is not between 32 and 51")
        if not 1 <= self.guest_vmpl <= 3:
            raise LaunchInfoError(f"guest VMPL {self.guest_vmpl} is not between 1 and 3")
        if not self.cpu_count:
            raise LaunchInfoError("a machine without CPUs")
        if len(self.ram) > MAX_RAM_RANGES or len(self.validated) > MAX_VALIDATED_RANGES:
            raise LaunchInfoError("more ranges than the launch info holds")
        in_ram = self.svsm_size > 0 and self._is_ram(self.svsm_base, self.svsm_size)
        if self.svsm_base % HUGE_PAGE_SIZE or not in_ram:
            raise LaunchInfoError(f"SVSM region {self.svsm_base:#x} is not 2 MiB aligned RAM")
        spans = [(ram.base, ram.size) for ram in self.ram]
        spans += [(v.gpa, v.npages * PAGE_SIZE) for v in self.validated]
        pages = (
            self.svsm_vmsa,
            self.svsm_cpuid,
            self.svsm_secrets,
            self.guest_cpuid,
            self.guest_secrets,
            self.guest_caa,
            self.svsm_core_digest,
            self.svsm_ghcb,
        )
        files = (
            (self.svsm_kernel, self.svsm_kernel_size),
            (self.svsm_archive, self.svsm_archive_size),
        )
        for base, size in files:
            if base & PAGE_MASK or not self._in_region(base, size):
                raise LaunchInfoError(f"file {base:#x}, {size:#x} bytes, is not in the SVSM region")
        spans += [(gpa, PAGE_SIZE) for gpa in pages]
        for base, size in spans:
            if (base | size) & PAGE_MASK or not size or base + size > 1 << self.cbit:
                raise LaunchInfoError(
                    f"range {base:#x}, {size:#x} bytes, is not whole pages below the C-bit"
                )
        for base, size in spans[len(self.ram) :]:
            if not self._is_ram(base, size):
                raise LaunchInfoError(f"range {base:#x}, {size:#x} bytes, is not RAM")

    def _in_region(self, base: int, size: int) -> bool:
        return self.svsm_base <= base and base + size <= self.svsm_base + self.svsm_size

    def _is_ram(self, base: int, size: int) -> bool:
        return any(r.base <= base and base + size <= r.base + r.size for r in self.ram)


def _known_flags(flags: int) -> int:
    if flags & ~LaunchRangeFlags.SVSM.value:
        raise LaunchInfoError(f"launch info has unknown range flags {flags:#x}")
    return flags
