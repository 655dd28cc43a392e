# SPDX-License-Identifier: MIT
"""The files of a machine that a debugger may read: the executables of its processes.

Names are the machine's own, and contents come from what it was launched with. There is no way from
here to any other file of the host.

/svsm.elf
    the SVSM's kernel, where it is mapped
/stages.elf
    its two boot stages, moved to where they run
/guest.elf
    the guest's kernel if it was given as an ELF file; the symbols of a bzImage
/modules/PATH
    programs of the archive, a static-PIE moved to where the SVSM loads it
/svsmd-gdb.py
    the extension of gdb, which is the same for all machines
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Mapping
from typing import Final

from svsmd.core.tasks.executable import PIE_BASE
from svsmd.gdbstub import extension
from svsmd.gdbstub.guest_kernel import GuestKernel
from svsmd.gdbstub.moved_elf import is_position_independent, moved
from svsmd.gdbstub.worlds import Worlds, pid_of
from svsmd.host.layout import SvsmRegion
from svsmd.images import image_path
from svsmd.machine import Machine
from svsmd.snp.types import Vmpl

SVSM: Final = "/svsm.elf"
STAGES: Final = "/stages.elf"
GUEST: Final = "/guest.elf"
MODULES: Final = "/modules"
EXTENSION: Final = "/svsmd-gdb.py"
_ELF_MAGIC: Final = b"\x7fELF"


class MachineFiles:
    """Finds files by name, and the file of a process."""

    def __init__(self, machine: Machine, worlds: Worlds, kernel: GuestKernel | None) -> None:
        self._machine = machine
        self._worlds = worlds
        self._kernel = kernel
        self._makers: Mapping[str, Callable[[], bytes | None]] = {
            SVSM: self._svsm,
            STAGES: self._stages,
            GUEST: self._guest,
            EXTENSION: lambda: extension.script().encode(),
        }
        self._programs: dict[str, bytes] | None = None

    def executable(self, pid: int) -> str | None:
        """Name of the file that a process runs; None if there is none."""
        program = self._worlds.program(pid)
        if program is not None:
            return posixpath.normpath(f"{MODULES}/{program.path}")
        if pid == self._worlds.guest_pid:
            return GUEST if self._has_guest else None
        return SVSM if pid == pid_of(Vmpl.VMPL0) else None

    def read(self, name: str) -> bytes | None:
        """Contents of a file; None if there is none of that name. Raises `Preparing`."""
        maker = self._makers.get(name)
        return self._program(name) if maker is None else maker()

    def _svsm(self) -> bytes | None:
        return image_path("svsm").read_bytes() if self._machine.config.svsm else None

    def _stages(self) -> bytes | None:
        if not self._machine.config.svsm:
            return None
        return moved(image_path("stages").read_bytes(), self._region().image)

    def _region(self) -> SvsmRegion:
        machine = self._machine
        archive = len(machine.payload.archive)
        return SvsmRegion.at_top_of(machine.silicon.memory.ranges, machine.config.cpus, archive)

    @property
    def _has_guest(self) -> bool:
        return self._guest() is not None if self._kernel is None else self._kernel.has_symbols

    def _guest(self) -> bytes | None:
        if self._kernel is not None:
            return self._kernel.symbols()
        kernel = self._machine.payload.kernel
        return kernel if kernel.startswith(_ELF_MAGIC) else None

    def _program(self, name: str) -> bytes | None:
        if self._programs is None:
            self._programs = _read_archive(self._machine.payload.archive)
        data = self._programs.get(name)
        if data is not None and is_position_independent(data):
            return moved(data, PIE_BASE)
        return data


def _read_archive(archive: bytes) -> dict[str, bytes]:
    """Contents of the files, by the names that debuggers know. What it cannot be read has none."""
    files: dict[str, bytes] = {}
    if not archive:
        return files
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    files[posixpath.normpath(f"{MODULES}/{member.name}")] = file.read()
    except (tarfile.TarError, ValueError, OverflowError):
        return {}
    return files
