# SPDX-License-Identifier: MIT
"""What a machine is built from: values that are checked once, here, whoever made them.

Spec: docs/cli.md, options of `svsmd run`.
"""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from svsmd.errors import UserError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

DEFAULT_MEMORY: Final = 512 * MIB
MIN_MEMORY: Final = 32 * MIB
"""Less than this leaves no room for a guest beside the SVSM's region of 4 MiB."""
MAX_MEMORY: Final = 256 * GIB
"""The private half of the physical address space is 512 GiB (the C-bit is bit 39)."""
MEMORY_GRANULE: Final = 2 * MIB
"""Memory comes in the larger page size of the RMP."""

MAX_CPUS: Final = 255
"""APIC IDs have 8 bits, and 255 is the broadcast address."""

MAX_DISKS: Final = 4
"""The machine has so many slots for disks."""

MAX_COMMAND_LINE: Final = 4095
"""Bytes of a guest's command line: one page with its final NUL."""

MAX_SEED: Final = 64
"""Bytes of a seed."""

DEMO_SEED: Final = b"svsmd demo guest"
"""Seed of the demo guest, so that its runs are the same everywhere. It keeps no secrets."""
DEMO_RTC: Final = 1_767_225_600
"""Date of the demo guest, for the same reason: 2026-01-01 00:00:00 UTC."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG])(iB|B)?", re.IGNORECASE)
_SIZE_UNITS: Final = {"K": KIB, "M": MIB, "G": GIB}


class Decompress(Enum):
    """Who unpacks a bzImage."""

    HOST = "host"
    """The ELF inside is loaded and measured; the kernel runs where it was linked to."""
    GUEST = "guest"
    """The bzImage is loaded and measured as it is, and unpacks itself to a random place."""


class OnReboot(Enum):
    """What a reset of the guest does."""

    RESTART = "restart"
    """The machine starts again, from its launch."""
    EXIT = "exit"
    """The machine ends, as after power off."""


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk.

    Attributes:
        path: of the file or block device that it is.
        read_only: the guest cannot write to it.
    """

    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """Everything that decides what a machine computes. Two equal ones run identically.

    Attributes:
        seed: 1 to `MAX_SEED` bytes; all keys and random numbers of the machine come from it.
        rtc: date at power-on, seconds since 1970-01-01 00:00 UTC.
        name: of the machine, for humans and for file names.
        memory: bytes of RAM, a multiple of `MEMORY_GRANULE`.
        cpus: number of vCPUs.
        kernel: ELF or bzImage to boot; None is the demo guest.
        decompress: who unpacks a kernel that is a bzImage.
        initrd: file that the kernel gets as its initial RAM disk.
        append: command line of the guest, at most `MAX_COMMAND_LINE` bytes of UTF-8.
        disks: at most `MAX_DISKS`, in the order in which the guest finds them.
        svsm: there is an SVSM at VMPL0; without it, the guest runs there.
        archive: tar file of the SVSM's modules; None is the one that comes with svsmd.
        guest_vmpl: 1 to 3 under an SVSM, 0 without one.
        secure_tsc: the guest's TSC is its own; its kernel has to know that.
        on_reboot: what a reset of the guest does.

    Raises:
        UserError: a value is out of its bounds, or does not go with another.
    """

    seed: bytes
    rtc: int
    name: str = "default"
    memory: int = DEFAULT_MEMORY
    cpus: int = 1
    kernel: Path | None = None
    decompress: Decompress = Decompress.HOST
    initrd: Path | None = None
    append: str = ""
    disks: tuple[DiskConfig, ...] = ()
    svsm: bool = True
    archive: Path | None = None
    guest_vmpl: int = 2
    secure_tsc: bool = False
    on_reboot: OnReboot = OnReboot.RESTART

    def __post_init__(self) -> None:
        if not 1 <= len(self.seed) <= MAX_SEED:
            raise UserError(f"a seed has 1 to {MAX_SEED} bytes, not {len(self.seed)}")
        if not 0 <= self.rtc < 1 << 40:
            raise UserError(f"{self.rtc} is not a date: seconds since 1970 are meant")
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} is not a name for a machine",
                hint="up to 64 letters, digits and any of _ . - after the first",
            )
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY:
            raise UserError(
                f"memory of {format_size(self.memory)} makes no sense: "
                f"{format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}"
            )
        if self.memory % MEMORY_GRANULE:
            raise UserError(f"memory of {format_size(self.memory)} is not a multiple of 2M")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise UserError(f"{self.cpus} vCPUs make no sense: 1 to {MAX_CPUS}")
        if self.decompress is Decompress.GUEST and self.kernel is None:
            raise UserError("the demo guest is no bzImage: nothing of it could unpack itself")
        if self.initrd is not None and self.kernel is None:
            raise UserError("an initrd goes with a kernel: the demo guest takes none")
        if "\0" in self.append or len(self.append.encode()) > MAX_COMMAND_LINE:
            raise UserError(
                f"the guest's command line has at most {MAX_COMMAND_LINE} bytes, none of them NUL"
            )
        if len(self.disks) > MAX_DISKS:
            raise UserError(f"there is room for {MAX_DISKS} disks, not for {len(self.disks)}")
        if self.svsm and not 1 <= self.guest_vmpl <= 3:
            raise UserError(f"under an SVSM a guest runs at VMPL 1, 2 or 3, not {self.guest_vmpl}")
        if not self.svsm and self.archive is not None:
            raise UserError("modules run under an SVSM: an archive does not go without one")
        if not self.svsm and self.guest_vmpl != 0:
            raise UserError(
                f"without an SVSM the guest runs at VMPL0, not at VMPL{self.guest_vmpl}"
            )


def parse_disk(text: str) -> DiskConfig:
    """A disk as FILE, or FILE,ro for one that is only read; FILE may have commas of its own.

    Raises:
        UserError: there is no name of a file.
    """
    path = text.removesuffix(",ro")
    if not path or "\0" in path:
        raise UserError(f"{text!r} names no disk", hint="FILE or FILE,ro")
    return DiskConfig(Path(path), read_only=path != text)


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 2G, 64KiB; units are powers of 1024.

    Raises:
        UserError: it is not such a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} is not a size", hint="write a whole number and K, M or G: 512M, 2G"
        )
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


def format_size(size: int) -> str:
    """A size in the largest unit that divides it, such as 512M."""
    for unit in "GMK":
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size} bytes"
