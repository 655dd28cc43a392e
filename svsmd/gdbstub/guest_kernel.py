# SPDX-License-Identifier: MIT
"""The guest's Linux kernel, if it is a bzImage: its symbols, and where it lies.

A bzImage has no symbols that a debugger could read, but all of them in tables of its own, out of
which a file is made when somebody asks for it (svsmd.symbols). That takes seconds, so a process of
its own does it.

A kernel that unpacks itself chooses an address (KASLR). The page tables that it makes then map
nothing below itself, so that they tell where it begins. A debugger that knows it by its symbols
stops at the first C function of it that runs there, wherever that is: it is at as many places as
there are addresses to choose.

Spec: Linux Documentation/arch/x86/x86_64/mm.rst (where a kernel may be), arch/x86/boot/compressed/
kaslr.c (`find_random_virt_addr`), arch/x86/kernel/head64.c (`__startup_64`, `x86_64_start_kernel`),
Documentation/arch/x86/boot.rst (`pref_address`, `kernel_alignment`, `init_size`).
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import trio

from svsmd.config import Decompress
from svsmd.gdbstub.target import Preparing
from svsmd.gdbstub.world_view import WorldView
from svsmd.gdbstub.worlds import Worlds
from svsmd.host.bzimage import is_bzimage, parse_bzimage
from svsmd.machine import Machine
from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.symbols.elf_file import find_symbol

log = logging.getLogger(__name__)

FIRST_FUNCTION: Final = "x86_64_start_kernel"
"""The first one in C that the boot CPU executes where the kernel was linked, or moved, to be."""
MAP_BASE: Final = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map: a kernel is linked to run so much above its physical address."""
MAP_SIZE: Final = 1 << 30
"""KERNEL_IMAGE_SIZE of a kernel that may choose its address."""
STEP: Final = 1 << 21
"""A kernel begins at a multiple of that: MIN_KERNEL_ALIGN."""


class GuestKernel:
    """The kernel of a machine whose guest is a bzImage."""

    def __init__(self, machine: Machine, worlds: Worlds) -> None:
        self._machine = machine
        self._worlds = worlds
        header = parse_bzimage(machine.payload.kernel)
        self.linked: Final = MAP_BASE + header.pref_address
        """Where the kernel was linked to begin: its symbol _text."""
        self._size = header.init_size
        self._file: bytes | None = None
        self._awaited: list[Breakpoint] = []
        self._has_moved = False
        self._reports_moves = False
        self._is_told_of = False
        """The debugger knows the symbols from here."""
        self._host = machine.hypervisor

    @classmethod
    def of(cls, machine: Machine, worlds: Worlds) -> GuestKernel | None:
        """The machine's; None if its guest is something else."""
        return cls(machine, worlds) if is_bzimage(machine.payload.kernel) else None

    # -- its symbols ------------------------------------------------------------------------

    @property
    def has_symbols(self) -> bool:
        """Whether there are any, as far as is known."""
        return self._file != b""

    def symbols(self) -> bytes | None:
        """An ELF file; None if nothing can be made of this kernel.

        Raises:
            Preparing: it has to be made first.
        """
        if self._file is None:
            raise Preparing(self._make)
        if self._reports_moves and self._file:
            self._is_told_of = True
            if self.start is None:
                self._await_move()
        return self._file or None

    async def _make(self) -> None:
        command = [sys.executable, "-P", "-m", "svsmd", "symbols", "-", "-"]
        kernel = self._machine.payload.kernel
        began = trio.current_time()
        try:
            done = await trio.run_process(
                command, stdin=kernel, capture_stdout=True, capture_stderr=True, check=False
            )
        except OSError as error:
            log.warning("no symbols of the guest's kernel: %s", error)
            self._file = b""
            return
        for line in done.stderr.decode(errors="backslashreplace").splitlines():
            log.warning("symbols of the guest's kernel: %s", line.removeprefix("svsmd: "))
        self._file = b"" if done.returncode else done.stdout
        log.info("symbols of the guest's kernel took %.1f s", trio.current_time() - began)

    # -- where it lies ----------------------------------------------------------------------

    @property
    def _chooses(self) -> bool:
        return self._machine.config.decompress is Decompress.GUEST

    @property
    def start(self) -> int | None:
        """Where it begins; None as long as it does not run yet where it will."""
        if not self._chooses:
            return self.linked
        for thread in self._worlds.threads():
            if thread.id.pid != self._worlds.guest_pid:
                continue
            found = self._worlds.place(thread.id)
            view = WorldView(self._machine.silicon, None if found is None else found[1])
            if view.load() is not None and (start := self._first_mapped()) is not None:
                return start
        return None

    def _first_mapped(self) -> int | None:
        translate = self._machine.silicon.processor.translate_leaf_for_debugger
        for address in range(MAP_BASE, MAP_BASE + MAP_SIZE, STEP):
            try:
                translate(address)
            except (GuestFault, NestedFault):
                continue
            return address
        return None

    # -- when it moves ----------------------------------------------------------------------

    def report_moves(self, on: bool) -> None:
        """Whether there is a debugger that wants to stop when the kernel is where it will be."""
        if on != self._reports_moves:
            self._reports_moves, self._is_told_of = on, False
        if not on:
            self._forget_awaited()

    def between_slices(self) -> None:
        """A guest that has been started again chooses anew."""
        restarted = self._host is not self._machine.hypervisor
        self._host = self._machine.hypervisor
        if restarted and self._is_told_of and self._chooses:
            self._await_move()

    def has_moved(self) -> bool:
        """Whether the kernel is where it will be, and was not when this was last asked."""
        moved, self._has_moved = self._has_moved, False
        if moved:
            self._forget_awaited()
        return moved

    def _await_move(self) -> None:
        function = find_symbol(self._file or b"", FIRST_FUNCTION)
        if self._awaited or function is None:
            return
        moves = range(0, MAP_BASE + MAP_SIZE - self._size - self.linked, STEP)
        vmpl = self._machine.config.guest_vmpl
        self._awaited = [
            Breakpoint(function + move, vmpl=vmpl, on_hit=self._arrived) for move in moves
        ]
        for breakpoint_ in self._awaited:
            self._machine.silicon.debug.add_breakpoint(breakpoint_)

    def _arrived(self) -> bool:
        self._has_moved = True
        return True

    def _forget_awaited(self) -> None:
        debug = self._machine.silicon.debug
        for breakpoint_ in self._awaited:
            debug.remove_breakpoint(breakpoint_)
            # So many slow down the translation of all code, even as long as nothing reaches them.
            debug.forget_breakpoint(breakpoint_.address)
        self._awaited.clear()
        self._has_moved = False
