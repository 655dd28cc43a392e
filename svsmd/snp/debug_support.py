# SPDX-License-Identifier: MIT
"""Breakpoints, watchpoints and steps, none of which the guest can see.

Breakpoints are the engine's; no memory is patched, and hits that do not count are seen by the
engine without an exit where that can be. Watchpoints are looked for in each access to their pages
(native/watchpoints.c). Without native code they are nested leaves that are kept away from the
watched page: each access to it faults, is looked at, and runs as one instruction on a leaf of its
own; so it is, with or without, on pages that must have no lasting leaf. The guest's debug registers
stay the guest's. What is watched are the operands of instructions; not what the silicon itself
writes when it delivers an exception, nor what the host writes to shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from svsmd.snp.access import AccessKind
from svsmd.snp.breakpoint import ROOT_MASK, Breakpoint
from svsmd.snp.exits import DebugReason
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.hit_view import HitView
from svsmd.snp.physical_breakpoints import PhysicalBreakpoints
from svsmd.snp.predicate import NoValue
from svsmd.snp.types import C_BIT, HUGE_PAGE_SHIFT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from svsmd.snp.memory_operands import MemoryOperand, OperandDecoder
    from svsmd.snp.processor import Processor

_ACCESSES: Final = {
    DebugReason.WRITE_WATCHPOINT: (AccessKind.WRITE,),
    DebugReason.READ_WATCHPOINT: (AccessKind.READ,),
    DebugReason.ACCESS_WATCHPOINT: (AccessKind.READ, AccessKind.WRITE),
}
_LOAD, _STORE = 1, 2
_KIND_BITS: Final = {
    DebugReason.WRITE_WATCHPOINT: _STORE,
    DebugReason.READ_WATCHPOINT: _LOAD,
    DebugReason.ACCESS_WATCHPOINT: _LOAD | _STORE,
}
"""As EngineCallbacks.watch() has them."""
_MAX_ADDRESS: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Watch:
    """A watched range of memory.

    Attributes:
        address: linear address, as the debugger named it.
        gpa: where that was when it was set, without the C-bit.
    """

    reason: DebugReason
    address: int
    length: int
    gpa: int


class DebugSupport:
    """What the debugger has asked the processor to look for."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._cpu = processor.cpu
        self.stepping = False
        self.stepped = False
        """The instruction of this step has exited to the host: it ends with the next VMRUN."""
        self._transient = False
        self.view = HitView(processor)
        """What conditions read."""
        self._breakpoints: dict[int, list[Breakpoint]] = {}
        self._aliases = PhysicalBreakpoints(processor)
        self._changed: set[int] = set()
        self._forgotten: set[int] = set()
        self._watches: list[Watch] = []
        self._decoder: OperandDecoder | None = None

    # -- steps ------------------------------------------------------------------------------

    def set_stepping(self, on: bool, within: range | None = None, most: int = 0) -> None:
        """Each completed instruction ends the run while this is on.

        Args:
            within: but not where the next one is at these linear addresses, at the same CPL and in
                the same address space.
            most: so often, that is.
        """
        self.stepped = False
        shared = self._cpu.shared
        shared.range_left = most
        shared.range_steps = 0
        if within is not None:
            shared.range_start = within.start
            shared.range_size = max(0, within.stop - within.start)
            shared.range_cpl, shared.range_cr3 = self._cpu.cpl, self._cpu.cr[3]
        if on is not self.stepping:
            self.stepping = on
            self._apply()

    @property
    def steps(self) -> int:
        """Instructions that the step under way has gone on for, or the last one has."""
        return self._cpu.shared.range_steps

    @property
    def last_pc(self) -> int:
        """Linear address of the instruction that was stepped last."""
        return self._cpu.shared.first_pc

    def hidden_step(self, on: bool) -> None:
        """One instruction on leaves of its own."""
        self._transient = on
        self._apply()

    @property
    def hidden(self) -> bool:
        """Whether single-step traps are ours, unless the guest set its own TF."""
        return self.stepping or self._transient

    def _apply(self) -> None:
        self._cpu.shared.plain_steps = int(self.stepping and not self._transient)
        if self.hidden != bool(self._cpu.shared.stepping):
            self._cpu.set_stepping(self.hidden)

    # -- breakpoints ------------------------------------------------------------------------

    def add_breakpoint(self, breakpoint_: Breakpoint) -> None:
        """From the next run on, hits of it stop the machine, or do what its `on_hit` does."""
        if breakpoint_.physical:
            self._aliases.add(breakpoint_)
        else:
            self._breakpoints.setdefault(breakpoint_.address, []).append(breakpoint_)
            self._changed.add(breakpoint_.address)

    def remove_breakpoint(self, breakpoint_: Breakpoint) -> None:
        """Forgets one that was added."""
        self.count_evaluations()
        if breakpoint_.physical:
            self._changed |= self._aliases.remove(breakpoint_)
        else:
            self._breakpoints[breakpoint_.address].remove(breakpoint_)
            if not self._breakpoints[breakpoint_.address]:
                del self._breakpoints[breakpoint_.address]
            self._changed.add(breakpoint_.address)

    def breakpoints_at(self, address: int) -> list[Breakpoint]:
        """All that may be hit at a linear address."""
        return [*self._breakpoints.get(address, ()), *self._aliases.at(address)]

    @property
    def has_breakpoints(self) -> bool:
        """Whether any may be hit."""
        return bool(self._breakpoints) or self._aliases.seen

    def hit(self, address: int) -> bool:
        """The loaded context is about to execute the instruction at a linear address.

        Returns:
            Whether a breakpoint there wants the machine to stop.
        """
        stop = False
        for breakpoint_ in self.breakpoints_at(address):
            if self._is_hit(breakpoint_, address):
                breakpoint_.hits += 1
                stop = (breakpoint_.on_hit is None or breakpoint_.on_hit()) or stop
        return stop

    def _is_hit(self, breakpoint_: Breakpoint, address: int) -> bool:
        processor, wanted = self._p, breakpoint_
        if wanted.vmpl is not None and wanted.vmpl != processor.vmpl:
            return False
        if wanted.root is not None and wanted.root != self._cpu.cr[3] & ROOT_MASK:
            return False
        if wanted.physical and self._gpa(address) != wanted.address:
            return False
        if wanted.accepts is not None and not wanted.accepts():
            return False
        if not wanted.conditions:
            return True
        wanted.evaluations += 1
        try:
            return any(program.evaluate(self.view) for program in wanted.conditions)
        except NoValue:
            return True

    def count_evaluations(self) -> None:
        """Brings `Breakpoint.evaluations` up to date."""
        self._cpu.count_evaluations()

    def forget_breakpoint(self, address: int) -> bool:
        """A breakpoint was hit: if nobody wants it any more, the engine forgets it with arm()."""
        if self.breakpoints_at(address):
            return False
        self._forgotten.add(address)
        return True

    def arm(self) -> None:
        """Before a run: the engine knows all breakpoints.

        One that was removed stays armed until it is hit: debuggers remove all of them whenever
        the machine stops, and translated code is lost with every change.
        """
        if self._forgotten:
            for address in self._forgotten:
                if not self.breakpoints_at(address):
                    self._cpu.disarm_breakpoint(address)
            self._forgotten.clear()
        if self._changed:
            for address in self._changed:
                points = self.breakpoints_at(address)
                if points or address in self._cpu.armed_breakpoints:
                    self._cpu.arm_breakpoint(address, points)
            self._changed.clear()
        self._aliases.arm()

    def code_page(self, address: int) -> None:
        """A new block of code is about to run on a page with breakpoints by physical address."""
        for alias in self._aliases.found(address):
            self._cpu.arm_breakpoint(alias, self.breakpoints_at(alias))

    # -- watchpoints ------------------------------------------------------------------------

    def add_watch(self, watch: Watch) -> None:
        """Starts watching; its pages lose their leaves."""
        self._watches.append(watch)
        self._watches_changed(watch)

    def remove_watch(self, reason: DebugReason, address: int, length: int) -> None:
        """Stops watching."""
        for watch in self._watches:
            if (watch.reason, watch.address, watch.length) == (reason, address, length):
                self._watches.remove(watch)
                self._watches_changed(watch)
                return

    def take_over(self, other: DebugSupport) -> None:
        """Looks for all that another one has been asked for: the machine was reset."""
        for breakpoints in other._breakpoints.values():
            for breakpoint_ in breakpoints:
                self.add_breakpoint(breakpoint_)
        for breakpoint_ in other._aliases.all():
            self.add_breakpoint(breakpoint_)
        for watch in other._watches:
            self.add_watch(watch)

    def _watches_changed(self, watch: Watch) -> None:
        self._cpu.watch(
            [(w.gpa, w.gpa + w.length - 1, _KIND_BITS[w.reason]) for w in self._watches]
        )
        first = watch.gpa >> PAGE_SHIFT
        last = (watch.gpa + watch.length - 1) >> PAGE_SHIFT
        self._cpu.nested.unmap(first, last - first + 1)
        self._cpu.flush_tlb()

    def watches_page(self, page: int) -> bool:
        """Whether any byte of a page is watched."""
        return any(
            w.gpa >> PAGE_SHIFT <= page <= (w.gpa + w.length - 1) >> PAGE_SHIFT
            for w in self._watches
        )

    def watches_region(self, gpa: int) -> bool:
        """Whether any byte of the 2 MiB around an address is watched."""
        region = gpa >> HUGE_PAGE_SHIFT
        return any(
            w.gpa >> HUGE_PAGE_SHIFT <= region <= (w.gpa + w.length - 1) >> HUGE_PAGE_SHIFT
            for w in self._watches
        )

    def watch_hit(self, gpa: int, kind: AccessKind) -> Watch | None:
        """The watchpoint that the instruction at RIP is about to hit on the page of `gpa`."""
        watches = [
            w
            for w in self._watches
            if w.gpa >> PAGE_SHIFT <= gpa >> PAGE_SHIFT <= (w.gpa + w.length - 1) >> PAGE_SHIFT
        ]
        if not watches:
            return None
        for operand in self._operands():
            wanted = [w for w in watches if set(operand.kinds) & set(_ACCESSES[w.reason])]
            if not wanted:
                continue
            for at, length in self._pieces(operand):
                for watch in wanted:
                    if at < watch.gpa + watch.length and watch.gpa < at + length:
                        return watch
        return None

    def accessed(self) -> Watch | None:
        """The watchpoint that the engine's next access (`Trap.WATCH`) hits.

        The engine's loads may be wider than the instruction's, and it names stores that are not
        aligned by other bytes (native/watchpoints.c): the operands tell, if there is one there.
        """
        shared = self._cpu.shared
        first, last = shared.watched_access, shared.watched_access + shared.watched_length - 1
        watches = [
            w
            for w in self._watches
            if _KIND_BITS[w.reason] & shared.watched_kind
            and first < w.gpa + w.length
            and w.gpa <= last
        ]
        length = shared.watched_length
        if watches and shared.watched_kind == _STORE and not first & (length - 1):
            return watches[0]  # most of them: one store of no more bytes than the instruction's
        kind = AccessKind.READ if shared.watched_kind == _LOAD else AccessKind.WRITE
        there = [
            (at, length)
            for operand in self._operands()
            for at, length in self._pieces(operand)
            if kind in operand.kinds and at <= last and first < at + length
        ]
        for at, length in there:
            for watch in watches:
                if at < watch.gpa + watch.length and watch.gpa < at + length:
                    return watch
        return watches[0] if watches and not there else None

    def _pieces(self, operand: MemoryOperand) -> Iterator[tuple[int, int]]:
        """Guest-physical address and length of what an operand has on each page."""
        address, left = operand.address, operand.length
        while left:
            length = min(left, PAGE_SIZE - (address & PAGE_MASK))
            gpa = self._gpa(address)
            if gpa is not None:
                yield gpa, length
            address = (address + length) & _MAX_ADDRESS
            left -= length

    def _gpa(self, address: int) -> int | None:
        try:
            return self._p.translate_for_debugger(address) & ~C_BIT
        except (GuestFault, NestedFault):
            return None

    # -- what an instruction is about to touch ----------------------------------------------

    def operand_spans(self) -> list[tuple[int, int]]:
        """First and last byte of each memory operand of the instruction at RIP."""
        return [(o.address, o.address + o.length - 1) for o in self._operands()]

    def _operands(self) -> Iterator[MemoryOperand]:
        try:
            code = self._p.code_bytes()
        except (GuestFault, NestedFault):
            return
        if self._decoder is None:
            # The disassembler takes 20 ms to import, which most runs never need.
            from svsmd.snp.memory_operands import OperandDecoder

            self._decoder = OperandDecoder(self._cpu)
        yield from self._decoder.operands(code)
