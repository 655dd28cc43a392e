# SPDX-License-Identifier: MIT
"""The kernel-launch page: what the second stage of the boot tells the SVSM kernel.

Spec: none of AMD's; ours. The same layout in C, with the meaning of each field and the state of the
region at that time, is ``svsmd/core/native/kernel_launch.h``; tests compare the two. All fields are
little-endian, addresses are guest-physical bytes unless they say otherwise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from svsmd.snp.ghcb_msr import HvFeature
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa

KERNEL_LAUNCH_MAGIC: Final = b"SVSMDKL1"
KERNEL_LAUNCH_VERSION: Final = 1

_HEADER: Final = struct.Struct("<8s4I6Q")
_RANGE: Final = struct.Struct("<2Q")
_RANGES: Final = (
    "region",
    "stages",
    "kernel_file",
    "symbols",
    "strings",
    "archive",
    "heap",
    "page_tables",
    "kernel",
)
_TAIL: Final = struct.Struct("<3Q")
KERNEL_LAUNCH_SIZE: Final = _HEADER.size + len(_RANGES) * _RANGE.size + _TAIL.size
"""Bytes of ``struct kernel_launch``; the rest of its page is zero."""


class KernelLaunchError(ValueError):
    """The page does not hold what stage 2 writes there."""


class MemoryRange(NamedTuple):
    """GPA and bytes."""

    base: Gpa
    size: int

    @property
    def pages(self) -> range:
        """All pages that it touches, in bytes."""
        return range(self.base & ~PAGE_MASK, (self.base + self.size + PAGE_MASK) & ~PAGE_MASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLaunch:
    """All of the page. Field meanings: ``kernel_launch.h``."""

    cbit: int
    ghcb_version: int
    hv_features: HvFeature
    launch_info: Gpa
    ghcb: Gpa
    page_table: Gpa
    kernel_virt: int
    kernel_entry: int
    region: MemoryRange
    stages: MemoryRange
    kernel_file: MemoryRange
    symbols: MemoryRange
    strings: MemoryRange
    archive: MemoryRange
    heap: MemoryRange
    page_tables: MemoryRange
    kernel: MemoryRange
    core_digest: Gpa
    launched: int
    validated: int

    def to_page(self) -> bytes:
        """The page, 4096 bytes."""
        parts = [
            _HEADER.pack(
                KERNEL_LAUNCH_MAGIC,
                KERNEL_LAUNCH_VERSION,
                KERNEL_LAUNCH_SIZE,
                self.cbit,
                self.ghcb_version,
                self.hv_features,
                self.launch_info,
                self.ghcb,
                self.page_table,
                self.kernel_virt,
                self.kernel_entry,
            ),
            *(_RANGE.pack(*getattr(self, name)) for name in _RANGES),
            _TAIL.pack(self.core_digest, self.launched, self.validated),
        ]
        return b"".join(parts).ljust(PAGE_SIZE, b"\0")

    @classmethod
    def from_page(cls, page: bytes) -> Self:
        """Read and check a page; raises KernelLaunchError."""
        (
            magic,
            version,
            size,
            cbit,
            ghcb_version,
            hv_features,
            launch_info,
            ghcb,
            page_table,
            kernel_virt,
            kernel_entry,
        ) = _HEADER.unpack_from(page)
        if (magic, version, size) != (
            KERNEL_LAUNCH_MAGIC,
            KERNEL_LAUNCH_VERSION,
            KERNEL_LAUNCH_SIZE,
        ):
            raise KernelLaunchError(f"kernel launch has version {version}, size {size:#x}")
        end = _HEADER.size + len(_RANGES) * _RANGE.size
        ranges = dict(
            zip(
                _RANGES,
                (MemoryRange(Gpa(b), n) for b, n in _RANGE.iter_unpack(page[_HEADER.size : end])),
                strict=True,
            )
        )
        core_digest, launched, validated = _TAIL.unpack_from(page, end)
        launch = cls(
            cbit=cbit,
            ghcb_version=ghcb_version,
            hv_features=HvFeature(hv_features),
            launch_info=launch_info,
            ghcb=ghcb,
            page_table=page_table,
            kernel_virt=kernel_virt,
            kernel_entry=kernel_entry,
            **ranges,
            core_digest=core_digest,
            launched=launched,
            validated=validated,
        )
        launch._check(ranges)
        return launch

    def _check(self, ranges: dict[str, MemoryRange]) -> None:
        start, stop = self.region.base, self.region.base + self.region.size
        for name, part in ranges.items():
            if not start <= part.base <= part.base + part.size <= stop:
                raise KernelLaunchError(
                    f"{name}, {part.size:#x} bytes at {part.base:#x}, is outside"
                )
        for gpa in (self.launch_info, self.ghcb, self.page_table, self.core_digest):
            if gpa & PAGE_MASK or not start <= gpa < stop:
                raise KernelLaunchError(f"page {gpa:#x} is outside of the region")

    @property
    def free(self) -> range:
        """The pages behind the heap: validated and nobody's, not cleared."""
        return range(self.heap.pages.stop, self.region.base + self.region.size)
