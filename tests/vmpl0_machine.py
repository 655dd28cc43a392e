# SPDX-License-Identifier: MIT
"""The whole machine, with looks into VMPL0: its page tables, and code that runs there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from svsmd.config import MIB, MachineConfig
from svsmd.core.page_entry import Mapping, PageFlags
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import Ended, Idle, SliceEnd
from svsmd.snp.silicon import GateCall
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize
from svsmd.svsm_image import SvsmImage
from tests.bare_machine import assemble
from tests.svsm_image import built_svsm_image

_P, _W, _U, _PS, _NX = 1, 2, 4, 0x80, 1 << 63
_ADDRESS = ((1 << 40) - 1) & ~0xFFF & ~C_BIT
_ROOM = 0x80
"""Bytes at the end of the native image's text, where it has padding only."""


class Leaf(NamedTuple):
    """A page that some tables map."""

    gva: int
    mapping: Mapping


class TookException(NamedTuple):
    """What the native part handed over."""

    vcpu: int
    vector: int
    error_code: int
    cr2: int


class Vmpl0Machine:
    """A machine that notes CR3 of each vCPU at VMPL0, and can make it execute other code."""

    def __init__(self, cpus: int = 2, memory: int = 64 * MIB, append: str = "selftest") -> None:
        config = MachineConfig(
            seed=b"test", rtc=1_767_225_600, memory=memory, cpus=cpus, append=append
        )
        self.machine: Machine = build_machine(config)
        self.svsm_lines: list[str] = []
        self.machine.on_svsm_console = lambda data: self.svsm_lines.append(data.decode())
        self.image: SvsmImage = built_svsm_image()
        self.exceptions: list[TookException] = []
        self.cr3: dict[int, int] = {}
        self.at_gate: Callable[[int], None] = lambda vcpu: None
        """Called after each gate call, with the vCPU."""
        silicon = self.machine.silicon
        core = self.machine.core
        assert core is not None
        real_gate, real_exception = core.gate_entry, core.exception_entry

        def gate(call: GateCall) -> None:
            self.cr3[call.vcpu] = silicon.cpu.cr[3]
            try:
                real_gate(call)
            finally:
                self.at_gate(call.vcpu)

        def exception(call: GateCall) -> None:
            frame = silicon.cpu.regs[7]
            error = int.from_bytes(call.port.read(frame + 16 * 8, 8), "little")
            self.exceptions.append(TookException(call.vcpu, call.rbx, error, silicon.cpu.cr[2]))
            real_exception(call)

        silicon.register_gate(self.image.core_gate, gate)
        silicon.register_gate(self.image.exception_gate, exception)

    def execute(self, vcpu: int, source: str, when: Callable[[], bool] = lambda: True) -> None:
        """Put code where `vcpu` goes on after its next gate call, once `when` is true."""
        text = self.machine.silicon
        at = self.image.text_end - _ROOM
        # The engine translates up to the next jump or trap, and must not run into the next page.
        code = assemble(f"{source}; ud2", origin=at)
        assert len(code) <= _ROOM
        done = False

        def take_over(came: int) -> None:
            nonlocal done
            if came == vcpu and not done and when():
                done = True
                cpu = text.cpu
                gpa = text.processor.translate_for_debugger(at) & ~C_BIT
                assert not any(text.memory.read(gpa, _ROOM)), "the text has no room at its end"
                text.debug_write(gpa, code)
                cpu.rip = at - 2  # UD2 is stepped over

        self.at_gate = take_over

    def run(self, until: Callable[[], bool] = lambda: False) -> SliceEnd | None:
        """Until the machine ends, or `until` says so after a slice."""
        for _ in range(10_000):
            end = self.machine.run_slice(100_000)
            if isinstance(end, Ended):
                return end
            if isinstance(end, Idle):
                if end.deadline is None:
                    return end
                self.machine.skip_idle(max(0, end.deadline - self.machine.clock_now))
            if until():
                return None
        raise AssertionError("the machine does not end")

    def leaves(self, cr3: int) -> list[Leaf]:
        """Every page that these tables map."""
        return list(self._walk(cr3 & _ADDRESS, 4, 0, _W | _U))

    def _walk(self, table: int, level: int, base: int, allowed: int) -> list[Leaf]:
        found: list[Leaf] = []
        shift = 12 + 9 * (level - 1)
        raw = self.machine.silicon.memory.read(table, PAGE_SIZE)
        for index, entry in enumerate(struct.unpack("<512Q", raw)):
            if not entry:
                continue
            assert entry & _P
            gva = base + (index << shift)
            if level == 4 and index >= 256:
                gva |= 0xFFFF << 48
            if level > 1 and not entry & _PS:
                assert entry & C_BIT, "tables are private"
                found += self._walk(entry & _ADDRESS, level - 1, gva, allowed & entry)
                continue
            flags = PageFlags.READ
            if allowed & entry & _W:
                flags |= PageFlags.WRITE
            if allowed & entry & _U:
                flags |= PageFlags.USER
            if not entry & _NX:
                flags |= PageFlags.EXECUTE
            if not entry & C_BIT:
                flags |= PageFlags.SHARED
            assert level <= 2, "the core maps no GiB"
            size = PageSize.SIZE_2M if level == 2 else PageSize.SIZE_4K
            found.append(Leaf(gva, Mapping(Gpa(entry & _ADDRESS), flags, size)))
        return found


def pages_of(leaf: Leaf) -> range:
    """GPAs of the 4 KiB pages of a leaf."""
    size = HUGE_PAGE_SIZE if leaf.mapping.size is PageSize.SIZE_2M else PAGE_SIZE
    return range(leaf.mapping.gpa, leaf.mapping.gpa + size, PAGE_SIZE)
