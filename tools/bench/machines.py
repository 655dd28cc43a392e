# SPDX-License-Identifier: MIT
"""Two ways to run the same guest code: on the silicon as guests have it, and on the bare engine.
And the least that two VMPLs can do on it: switch.

Both have 64-bit code at CPL 0 on 2 MiB identity pages, all private. On the silicon there are a
launch, an RMP with 4 KiB entries, nested tables that follow it, and the exact clock. On the bare
engine there are nested 2 MiB identity leaves and nothing that looks at blocks.
"""

from __future__ import annotations

import ctypes
import struct
import time
from typing import Any, Final

from unicorn import unicorn_const as ucc

from svsmd.host.launch import LaunchPlan, LaunchRange, LaunchVmsa, launch
from svsmd.snp.cpu_unicorn import RDI, RSP, UnicornCpu
from svsmd.snp.engine_callbacks import Engine, EngineExit
from svsmd.snp.entropy import EntropySource
from svsmd.snp.exits import Hlt, Vmgexit
from svsmd.snp.launch_digest import PageType
from svsmd.snp.memory import MIB, GuestMemory
from svsmd.snp.rmp import Perm
from svsmd.snp.silicon import Silicon
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import Efer, Vmsa
from tools.bench.guest_code import ARENA, CODE, snippet

MEMORY: Final = 32 * MIB
TABLES: Final = 0x1_0000
VMSA: Final = 0xF000
_ARENA_END: Final = 16 * MIB
STACK: Final = _ARENA_END
_TABLE: Final = 7 | C_BIT
_LEAF: Final = 0x87 | C_BIT
_NO_EXECUTE: Final = 1 << 63
_NEVER: Final = (1 << 64) - 1


def _page_tables() -> bytes:
    """Identity, 2 MiB pages, C-bit set (24593, 5.3); data is not executable.

    Without that the bare engine would look for code to drop at every store.
    """
    top = struct.pack("<Q", TABLES + PAGE_SIZE | _TABLE).ljust(PAGE_SIZE, b"\0")
    pointers = struct.pack("<Q", TABLES + 2 * PAGE_SIZE | _TABLE).ljust(PAGE_SIZE, b"\0")
    leaves = [
        gpa | _LEAF | (_NO_EXECUTE if gpa >= ARENA else 0)
        for gpa in range(0, MEMORY, HUGE_PAGE_SIZE)
    ]
    return top + pointers + struct.pack(f"<{len(leaves)}Q", *leaves).ljust(PAGE_SIZE, b"\0")


class FullMachine:
    """The silicon with a launched guest, one vCPU at VMPL0."""

    def __init__(self, code: bytes, amount: int) -> None:
        self._silicon = silicon = Silicon(MEMORY, EntropySource(b"benchmark"))
        padded = code.ljust(-(-len(code) // PAGE_SIZE) * PAGE_SIZE, b"\0")
        vmsa = Vmsa.long_mode_start(CODE, STACK, TABLES | C_BIT)
        vmsa.efer |= Efer.NXE
        vmsa.rdi = amount
        arena = [
            # By pieces that are smaller than 2 MiB, so that the RMP gets 4 KiB entries.
            LaunchRange(Gpa(start), PageType.ZERO, size=HUGE_PAGE_SIZE // 2)
            for start in range(ARENA, _ARENA_END, HUGE_PAGE_SIZE // 2)
        ]
        ranges = (
            LaunchRange(Gpa(TABLES), PageType.NORMAL, _page_tables()),
            LaunchRange(Gpa(CODE), PageType.NORMAL, padded),
            *arena,
        )
        launch(silicon, LaunchPlan(ranges, (LaunchVmsa(Gpa(VMSA), vmsa.tobytes()),)))
        self._vmcb = Vmcb(VMSA)

    def run(self) -> float:
        """Seconds of one run of the work."""
        begin = time.perf_counter()
        exit_ = self._silicon.vmrun(self._vmcb, _NEVER)
        seconds = time.perf_counter() - begin
        if not isinstance(exit_, Hlt):
            raise RuntimeError(f"the benchmark's guest ended with {exit_}")
        return seconds

    @property
    def ticks(self) -> int:
        """Instructions so far."""
        return self._silicon.clock.now


class WorldSwitches:
    """VMPL0 and VMPL2 of one vCPU, which take turns by VMGEXIT; nobody looks what they want."""

    def __init__(self) -> None:
        self._silicon = silicon = Silicon(MEMORY, EntropySource(b"benchmark"))
        code = snippet("vmgexit.S").ljust(PAGE_SIZE, b"\0")
        everything = (Perm.ALL, Perm.ALL, Perm.ALL)
        vmsas = []
        for gpa, vmpl in ((VMSA, Vmpl.VMPL0), (VMSA - PAGE_SIZE, Vmpl.VMPL2)):
            vmsa = Vmsa.long_mode_start(CODE, STACK, TABLES | C_BIT)
            vmsa.efer |= Efer.NXE
            vmsa.vmpl = vmpl
            vmsas.append(LaunchVmsa(Gpa(gpa), vmsa.tobytes(), vmpl=vmpl))
        ranges = (
            LaunchRange(Gpa(TABLES), PageType.NORMAL, _page_tables(), vmpl_permissions=everything),
            LaunchRange(Gpa(CODE), PageType.NORMAL, code, vmpl_permissions=everything),
            LaunchRange(
                Gpa(STACK - PAGE_SIZE), PageType.ZERO, size=PAGE_SIZE, vmpl_permissions=everything
            ),
        )
        launch(silicon, LaunchPlan(ranges, tuple(vmsas)))
        self._vmcbs = [Vmcb(vmsa.gpa) for vmsa in vmsas]

    def run(self, switches: int) -> tuple[float, int]:
        """Seconds and ticks of so many switches, an even number."""
        vmrun, (first, second) = self._silicon.vmrun, self._vmcbs
        ticks, begin = self._silicon.clock.now, time.perf_counter()
        for _ in range(switches // 2):
            vmrun(first, _NEVER)
            exit_ = vmrun(second, _NEVER)
        seconds = time.perf_counter() - begin
        if not isinstance(exit_, Vmgexit):
            raise RuntimeError(f"a world ended with {exit_}")
        return seconds, self._silicon.clock.now - ticks


class _UnhookedEngine(Engine):
    """The engine without the callbacks that count instructions and look at new blocks."""

    def hook(
        self, kind: int, function: Any, user: Any, *extra: Any, begin: int = 1, end: int = 0
    ) -> ctypes.c_size_t:
        if kind in (ucc.UC_HOOK_BLOCK, ucc.UC_HOOK_EDGE_GENERATED):
            return ctypes.c_size_t()
        return super().hook(kind, function, user, *extra, begin=begin, end=end)


class _UncountedCpu(UnicornCpu):
    engine_class = _UnhookedEngine


class RawEngine:
    """Unicorn in SVM guest mode, by itself.

    Args:
        counted: the virtual clock ticks.
        native_rdtsc: RDTSC does not exit, but reads this computer's counter.
    """

    def __init__(
        self, code: bytes, amount: int, *, counted: bool = False, native_rdtsc: bool = False
    ) -> None:
        memory = GuestMemory(MEMORY)
        memory.write(TABLES, _page_tables())
        memory.write(CODE, code)
        self._cpu = cpu = (UnicornCpu if counted else _UncountedCpu)(memory)
        cpu.assigned[:] = b"\1" * len(cpu.assigned)
        for gpa in range(0, MEMORY, HUGE_PAGE_SIZE):
            cpu.nested.map_huge_page(0, gpa | C_BIT, gpa, writable=True)
        cpu.cr[3] = TABLES | C_BIT
        cpu.select_nested_tables(0)
        # Every exit goes to _exit(): there is no guest handler to serve one natively for.
        cpu.shared.fast = 0
        if native_rdtsc:
            intercepts = cpu.word(cpu.layout.intercept)
            cpu.set_word(cpu.layout.intercept, intercepts & ~(1 << EngineExit.RDTSC - 0x160))
        cpu.exit_handler = self._exit
        cpu.rip, cpu.regs[RSP], cpu.regs[RDI] = CODE, STACK, amount
        self._failure: str | None = None

    def _exit(self, code: int) -> None:
        cpu = self._cpu
        match code:
            case EngineExit.CPUID:
                cpu.rip += 2
            case EngineExit.HLT:
                cpu.rip += 1
                cpu.leave()
            case _:
                self._failure = f"exit {code:#x} at {cpu.rip:#x}"
                cpu.leave()

    def run(self) -> float:
        """Seconds of one run of the work."""
        begin = time.perf_counter()
        self._cpu.run()
        seconds = time.perf_counter() - begin
        if self._failure is not None:
            raise RuntimeError(f"the bare engine's guest ended with {self._failure}")
        return seconds
