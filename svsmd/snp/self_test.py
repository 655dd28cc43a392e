# SPDX-License-Identifier: MIT
"""The engine's self-test at start: what everything above relies on, and no manual promises.

A small loop of locked and plain increments runs freely, stopped at every block, stopped in the
middle of each store, step by step, and through a breakpoint. Each time the count of instructions,
the registers and the memory have to come out the same. A stop in the middle of a store is what
another thread's request would be; an engine that looks for one within an instruction executes
that instruction twice.

Spec: none of AMD's; docs/engine.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from svsmd.snp.cpu_unicorn import RAX, UnicornCpu
from svsmd.snp.engine_callbacks import EngineExit, Stop, Trap
from svsmd.snp.engine_layout import EngineMismatch
from svsmd.snp.types import C_BIT, PAGE_SIZE
from svsmd.snp.vmsa import Vmsa
from svsmd.snp.vmsa_state import load

_CODE: Final = 0x1000
_DATA: Final = 0x2000
_ROUNDS: Final = 12
_PROGRAM: Final = bytes.fromhex(
    "b9 0c 00 00 00"           # mov ecx, 12
    "f0 ff 05 00 20 00 00"     # lock inc dword [0x2000]
    "ff 05 04 20 00 00"        # inc dword [0x2004]
    "01 c8"                    # add eax, ecx
    "49"                       # dec ecx
    "75 ee"                    # jnz to the locked increment
    "f4"                       # hlt
)  # fmt: skip
_LOOP: Final = _CODE + 5
_HALT: Final = _CODE + len(_PROGRAM) - 1
_LOOP_LENGTH: Final = 5
_TICKS: Final = 1 + _ROUNDS * _LOOP_LENGTH
_SUM: Final = _ROUNDS * (_ROUNDS + 1) // 2
_VMPL: Final = 0
_NEVER: Final = (1 << 64) - 1


class _SelfTest:
    """Runs the program on an engine whose machine has not started yet."""

    def __init__(self, cpu: UnicornCpu) -> None:
        self._cpu = cpu
        self._steps = 0
        self._hits: list[int] = []

    def _on_exit(self, code: int) -> None:
        cpu = self._cpu
        if code == EngineExit.HLT:
            cpu.leave()
        elif code != EngineExit.DB:
            raise EngineMismatch(f"the engine reported exit {code:#x} in its self-test")
        elif cpu.shared.trap == Trap.BREAKPOINT:
            cpu.shared.trap = Trap.NONE
            cpu.shared.skip_breakpoint = cpu.linear_rip
            self._hits.append(cpu.shared.ticks)
        else:
            self._steps += 1

    def _start(self) -> None:
        cpu = self._cpu
        cpu.memory.write(_DATA, bytes(8))
        load(cpu, Vmsa.protected_mode_start(_CODE))
        cpu.select_nested_tables(_VMPL)
        cpu.shared.ticks = 0
        cpu.shared.slice_end = cpu.shared.deadline = _NEVER

    def _finish(self, how: str) -> None:
        cpu = self._cpu
        counters = cpu.memory.read(_DATA, 8)
        found = (cpu.shared.ticks, cpu.regs[RAX], cpu.rip, *struct.unpack("<II", counters))
        if found != (_TICKS, _SUM, _HALT, _ROUNDS, _ROUNDS):
            raise EngineMismatch(f"the engine's self-test failed {how}: {found}")

    def _run(self, how: str, stops: int = 0) -> None:
        self._start()
        for _ in range(stops + 1):
            if self._cpu.run() is Stop.EXIT:
                break
        self._finish(how)

    def freely(self) -> None:
        self._run("without a stop")

    def stopped_at_blocks(self) -> None:
        cpu = self._cpu
        self._start()
        while True:
            cpu.shared.slice_end = 0
            before = cpu.shared.ticks
            if cpu.run() is Stop.EXIT:
                break
            if cpu.shared.ticks == before:
                raise EngineMismatch("the engine made no progress between two stops")
        self._finish("with a stop at each block")

    def stopped_in_stores(self) -> None:
        cpu = self._cpu

        def stop() -> None:
            cpu.shared.stopped = Stop.REQUESTED
            cpu.stop_engine()

        with cpu.calling_at_stores(_DATA, stop):
            self._run("with a stop in each store", stops=_ROUNDS)

    def stepped(self) -> None:
        cpu = self._cpu
        cpu.set_stepping(True)
        try:
            self._run("step by step")
        finally:
            cpu.set_stepping(False)
        if self._steps != _TICKS:
            raise EngineMismatch(f"the engine made {self._steps} steps of {_TICKS} instructions")

    def through_a_breakpoint(self) -> None:
        cpu = self._cpu
        cpu.arm_breakpoint(_LOOP)
        try:
            self._run("through a breakpoint")
        finally:
            cpu.disarm_breakpoint(_LOOP)
        if self._hits != [1 + _LOOP_LENGTH * i for i in range(_ROUNDS)]:
            raise EngineMismatch(f"the engine hit its breakpoint at ticks {self._hits}")

    def run(self) -> None:
        cpu = self._cpu
        page = _CODE // PAGE_SIZE
        cpu.exit_handler = self._on_exit
        cpu.memory.write(_CODE, _PROGRAM)
        cpu.assigned[page : page + 2] = b"\1\1"
        for address in (_CODE, _DATA):
            cpu.nested.map_page(_VMPL, address | C_BIT, address, writable=True)
        try:
            tests: tuple[Callable[[], None], ...] = (
                self.freely, self.stopped_at_blocks, self.stopped_in_stores, self.stepped,
                self.through_a_breakpoint,
            )  # fmt: skip
            for test in tests:
                test()
        finally:
            cpu.assigned[page : page + 2] = bytes(2)
            cpu.memory.write(_CODE, bytes(2 * PAGE_SIZE))
            cpu.nested.unmap(page, 2)
            cpu.power_on()


def check_engine(cpu: UnicornCpu) -> None:
    """Tests the engine, and leaves RAM, tables and counters as they were at power-on.

    Raises:
        EngineMismatch: the engine does not behave as svsmd needs it.
    """
    _SelfTest(cpu).run()
