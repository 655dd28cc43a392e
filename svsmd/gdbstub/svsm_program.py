# SPDX-License-Identifier: MIT
"""Registers and memory of a program that runs at CPL 3 under the SVSM.

Theory of operation. Where its registers are depends on how far it has got: in the CPU while it
executes; on the CPU's stack, or partly still in the CPU, while native code of the SVSM leaves or
enters CPL 3; with the core while that serves it; in memory of the SVSM while it has no CPU. Its
memory is what its own page tables map; a page that it has not touched yet shows what it will begin
with. None of it runs an instruction, or the clock.

Spec: 24593, 8.9.3 (exception frames), 11.4.4 (FXSAVE format), 5.3.3 (4-level paging), 24594,
SYSCALL (RCX and R11); `svsmd/core/native/gate.S` makes and restores the frames.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, fields
from typing import Final, NamedTuple

from svsmd.core.page_entry import ADDRESS, LARGE
from svsmd.core.paging.cpu_area import CONTROL, FPU, FPU_SIZE, IST_STACK, STACK
from svsmd.core.tasks.process import FRAME
from svsmd.core.tasks.program_view import ProgramView
from svsmd.core.trap_frame import FRAME_SIZE, TrapFrame
from svsmd.gdbstub.target import G_LAYOUT, NO_SYSCALL, TargetError
from svsmd.gdbstub.target_xml import SYSTEM_REGISTERS
from svsmd.gdbstub.world_view import View, WorldView
from svsmd.snp.cpu_mode import CpuMode
from svsmd.snp.silicon import Silicon
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

USER_RSP: Final = CONTROL + 0x10
"""Where SYSCALL's entry keeps RSP of CPL 3 (SVSM_CPU_USER_RSP)."""
_PRESENT: Final = 1
_LEVELS: Final = (30, 21, 12)
"""Lowest address bit that each table looks at, from the top table of a program on."""
_USER_SIZE: Final = 1 << 39
_WORD: Final = struct.Struct("<Q")
_FXSAVE: Final = struct.Struct("<HHBxHQQII128s256s96x")
_G_NAMES: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_LAYOUT_NAMES: Final = (*_G_NAMES, "rip")
_GENERAL_COUNT: Final = 24
"""So many values of `G_LAYOUT` come before those of x87."""
_SLOTS: Final = tuple(field.name for field in fields(TrapFrame))


class ExitCode(NamedTuple):
    """Where the SVSM's code is that goes on at CPL 3 out of a complete frame: [start, stop)."""

    start: int
    stop: int


class ProgramThread(View):
    """What a debugger sees of a program.

    Args:
        silicon: where it runs.
        program: how it is now.
        cpu: VMPL0 of the vCPU that has its page tables; None if none has.
        exit_code: see there.
    """

    def __init__(
        self,
        silicon: Silicon,
        program: ProgramView,
        cpu: WorldView | None,
        exit_code: ExitCode,
    ) -> None:
        super().__init__(silicon, f"task {program.number} is not at CPL 3")
        self._program = program
        self._cpu = cpu
        self._exit_code = exit_code

    @property
    def live(self) -> bool:
        """Whether its registers are in the CPU (or its VMSA): it executes at CPL 3."""
        return self._program.in_user and self._cpu is not None and self._cpu.cpl == 3

    # -- registers --------------------------------------------------------------------------

    def read_registers(self) -> bytes:
        """See Target."""
        cpu = self._cpu
        if cpu is None:
            memory = self._silicon.memory
            state = memory.read(self._program.state, FPU_SIZE + FRAME_SIZE)
            return self._pack(TrapFrame.unpack(state[FPU_SIZE:]), state[:FPU_SIZE])
        if self.live:
            return cpu.read_registers()
        if self._program.frame is not None:
            return self._pack(self._program.frame, cpu.read_memory(FPU, FPU_SIZE))
        return self._on_the_way(cpu)

    def _on_the_way(self, cpu: WorldView) -> bytes:
        """The registers while native code enters CPL 3, or has just left it."""
        values = G_LAYOUT.unpack(cpu.read_registers())
        names = dict(zip(_LAYOUT_NAMES, values, strict=False))
        start, stop = self._exit_code
        if start <= names["rip"] < stop:
            frame = TrapFrame.unpack(cpu.read_memory(FRAME, FRAME_SIZE))
            return self._pack(frame, cpu.read_memory(FPU, FPU_SIZE))
        # On the way in: what was pushed is in the frame, the rest is in the CPU.
        rsp = names["rsp"]
        live = {name: names[name] for name in _SLOTS if name in names}
        live |= {"rip": names["rcx"], "rflags": names["r11"]}  # of SYSCALL, which pushes nothing
        frame = TrapFrame(**live)
        stack = next((s for s in (STACK, IST_STACK) if s.start < rsp <= s.stop), None)
        if stack is not None:
            frame.rsp = _WORD.unpack(cpu.read_memory(USER_RSP, _WORD.size))[0]
            base = stack.stop - FRAME_SIZE
            pushed = astuple(TrapFrame.unpack(cpu.read_memory(base, FRAME_SIZE)))
            for slot, (name, value) in enumerate(zip(_SLOTS, pushed, strict=True)):
                if base + slot * _WORD.size >= rsp:
                    setattr(frame, name, value)
        # The GS base is the SVSM's by now; that of programs is 0.
        return G_LAYOUT.pack(*_general(frame), *values[_GENERAL_COUNT:-1], 0)

    def _pack(self, frame: TrapFrame, fxsave: bytes) -> bytes:
        fcw, fsw, tags, _, _, _, mxcsr, _, stack, vectors = _FXSAVE.unpack(fxsave)
        empty = sum(3 << (2 * n) for n in range(8) if not tags >> n & 1)
        x87 = b"".join(stack[n : n + 10] for n in range(0, 128, 16))
        return G_LAYOUT.pack(
            *_general(frame), x87, fcw, fsw, empty, 0, 0, 0, 0, 0,
            vectors, mxcsr, NO_SYSCALL, self._program.fs_base, 0,
        )  # fmt: skip

    def read_register(self, name: str) -> int | None:
        """See Target."""
        if self.live and self._cpu is not None:
            return self._cpu.read_register(name)
        if name not in SYSTEM_REGISTERS:
            raise TargetError(f"there is no register {name}")
        match name:
            case "cpu_mode":
                return CpuMode.LONG_64
            case "pc_lin":
                return self.pc
        return None

    def write_register(self, name: str, value: int) -> None:
        """See Target."""
        if not self.live or self._cpu is None:
            raise TargetError(f"{self._nothing}, its registers cannot be written")
        self._cpu.write_register(name, value)

    def code_bits(self) -> int:
        """See View."""
        return 64

    # -- memory -----------------------------------------------------------------------------

    def span(self, gva: int) -> tuple[int, int]:
        """See View."""
        program, memory = self._program, self._silicon.memory
        entry = program.table | _PRESENT
        if gva < _USER_SIZE:
            for shift in _LEVELS:
                at = (entry & ADDRESS) + (gva >> shift & 0x1FF) * _WORD.size
                entry = _WORD.unpack(memory.read(at, _WORD.size))[0]
                size = 1 << shift
                if not entry & _PRESENT or (entry & LARGE and size > PAGE_SIZE):
                    break
            else:
                return (entry & ADDRESS) + (gva & PAGE_MASK), PAGE_SIZE - (gva & PAGE_MASK)
        raise TargetError(f"task {program.number} has no memory at {gva:#x}")

    def _read_some(self, gva: int, length: int) -> bytes:
        try:
            return super()._read_some(gva, length)
        except TargetError:
            offset = gva & PAGE_MASK
            page = self._program.untouched(gva - offset)
            if page is None:
                raise
            return page.ljust(PAGE_SIZE, b"\0")[offset : offset + length]


def _general(frame: TrapFrame) -> tuple[int, ...]:
    """The first part of a `g` packet: DS, ES, FS and GS are nobody's at CPL 3."""
    general = (getattr(frame, name) for name in _G_NAMES)
    return (*general, frame.rip, frame.rflags & 0xFFFF_FFFF, frame.cs, frame.ss, 0, 0, 0, 0)
