# SPDX-License-Identifier: MIT
"""A machine without SVSM whose guest makes events of many classes, round after round, and ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from svsmd.config import MachineConfig
from svsmd.gdbstub.catchpoints import event_stop
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.target import Exited, Signal, StopEvent, Stopped
from svsmd.machine import Machine
from svsmd.slice_end import DebugEvent, Ended
from svsmd.slice_end import Stopped as SliceStopped
from svsmd.snp.events import SnpEvent
from tests.bare_machine import KERNEL_CS, assemble
from tests.unit.test_machine_target import CODE, MEMORY, elf

ROUNDS: Final = 3
PAGE: Final = 0x140_0000
VMSA_PAGE: Final = 0x150_0000
SHARED_PAGE: Final = 0x160_0000
HANDLER: Final = CODE + 0x400
IDT: Final = CODE + 0x600
_VC: Final = 29
_VMGEXIT: Final = "mov ecx, 0xc0010130; wrmsr; .byte 0xf3, 0x0f, 0x01, 0xd9"
_PSC: Final = 0x14
_TERMINATE: Final = 0x100

SOURCE: Final = f"""
    lidt [rip + descriptor]
    mov ebp, {ROUNDS}
round:
    mov rax, {PAGE}; xor ecx, ecx; xor edx, edx; pvalidate
    cpuid
    mov rax, {PAGE}; xor ecx, ecx; mov edx, 1; pvalidate
    mov rax, {PAGE}; xor ecx, ecx; mov edx, 0x0301; rmpadjust
    mov rax, {VMSA_PAGE}; xor ecx, ecx; mov edx, 0x10001; rmpadjust
    mov rax, {VMSA_PAGE}; xor ecx, ecx; mov edx, 1; rmpadjust
    mov eax, 0x80; xor edx, edx; {_VMGEXIT}
    mov eax, {SHARED_PAGE & 0xFFFFFFFF | _PSC}; mov edx, 0x200000; {_VMGEXIT}
    cpuid
    mov eax, {SHARED_PAGE & 0xFFFFFFFF | _PSC}; mov edx, 0x100000; {_VMGEXIT}
    dec ebp
    jnz round
    mov eax, {_TERMINATE}; xor edx, edx; {_VMGEXIT}
descriptor:
    .short 0xfff
    .quad {IDT}
    .org {HANDLER - CODE}
    add qword ptr [rsp + 8], 2
    add rsp, 8
    iretq
    .org {IDT - CODE + 16 * _VC}
    .short {HANDLER & 0xFFFF}, {KERNEL_CS}, 0x8e00, {HANDLER >> 16}
    .quad 0
"""


class EventMachine:
    """The machine, and the runner of a debugging session for it, without threads."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            kernel = Path(directory) / "kernel"
            kernel.write_bytes(elf(assemble(SOURCE, origin=CODE)))
            self.machine = Machine(
                MachineConfig(
                    seed=b"test", rtc=0, kernel=kernel, svsm=False, guest_vmpl=0, memory=MEMORY
                )
            )
        self.target = MachineTarget(self.machine)
        self.on_stop: Callable[[StopEvent], None] | None = None
        self.after_slice: Callable[[], None] = lambda: None
        self.running = False

    def run(self) -> SnpEvent | None:
        """Until an event stops it; None when it has ended."""
        while True:
            match self.machine.run_slice():
                case DebugEvent(event=SnpEvent() as event):
                    return event
                case Ended():
                    return None
                case SliceStopped():
                    pass
                case other:
                    raise AssertionError(other)

    # Runner

    def attach(self, on_stop: Callable[[StopEvent], None]) -> StopEvent | None:
        self.on_stop = on_stop
        return Stopped(1, Signal.SIGTRAP)

    def resume(self, *, at_once: bool = False) -> StopEvent | None:
        self.running = True
        return None

    def interrupt(self) -> None:
        pass

    def detach(self, resume: bool) -> None:
        self.on_stop = None
        self.running = resume

    def serve(self) -> None:
        """What a runner does between two packets of the client."""
        if self.running:
            event = self.run()
            self.running = False
            if self.on_stop is not None:
                self.on_stop(Exited(3) if event is None else event_stop(event))
