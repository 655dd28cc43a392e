# SPDX-License-Identifier: MIT
"""The processes of a machine: its worlds, and the programs under the SVSM.

The guest's world comes first, and is there before the guest is: gdb makes its first inferior of
that, and it is the guest's symbols that people give on gdb's command line.
"""

from __future__ import annotations

from collections.abc import Iterator

from svsmd.core.tasks.program_view import ProgramView
from svsmd.elf_symbols import elf_symbols
from svsmd.gdbstub.svsm_program import ExitCode, ProgramThread
from svsmd.gdbstub.target import ANY_WORLD, Thread, ThreadId
from svsmd.gdbstub.world_filter import PROGRAM_PID
from svsmd.gdbstub.world_view import ACTIVITY, View, WorldView
from svsmd.host.vcpu import Vcpu, World
from svsmd.images import image_path
from svsmd.machine import Machine
from svsmd.snp.types import Vmpl
from svsmd.snp.vmcb import Vmcb


def pid_of(vmpl: Vmpl) -> int:
    """The process that a world is."""
    return int(vmpl) + 1


class Worlds:
    """Finds processes, threads, and what a debugger sees of them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._exit_code: ExitCode | None = None

    # -- who is there -----------------------------------------------------------------------

    @property
    def guest_pid(self) -> int:
        """The guest's world."""
        return pid_of(Vmpl(self._machine.config.guest_vmpl))

    def programs(self) -> tuple[ProgramView, ...]:
        """The programs at CPL 3."""
        core = self._machine.core
        return () if core is None else core.programs

    def program(self, pid: int) -> ProgramView | None:
        """The program that is process `pid`."""
        return next((p for p in self.programs() if PROGRAM_PID + p.number == pid), None)

    def threads(self) -> list[Thread]:
        """All threads of all processes, the guest's first."""
        vmpls = sorted(Vmpl, key=lambda vmpl: (pid_of(vmpl) != self.guest_pid, vmpl))
        threads = [thread for vmpl in vmpls for thread in self._threads_of(vmpl)]
        if all(thread.id.pid != self.guest_pid for thread in threads):
            vmpl = self._machine.config.guest_vmpl
            waiting = Thread(ThreadId(self.guest_pid, 1), f"vcpu0/VMPL{vmpl}", "not started", 0)
            threads.insert(0, waiting)
        return threads + [self._thread_of(program) for program in self.programs()]

    def _threads_of(self, vmpl: Vmpl) -> Iterator[Thread]:
        for vcpu in self._machine.hypervisor.vcpus:
            for world in vcpu.worlds:
                if world.vmpl == vmpl:
                    doing = ACTIVITY[world.activity]
                    if world is not vcpu.world:
                        doing = f"stands still, VMPL{int(vcpu.vmpl)} runs"
                    elif (program := self._at_cpl3(vcpu)) is not None:
                        doing = f"runs task {program.number} {program.name}"
                    name = f"vcpu{vcpu.index}/VMPL{int(vmpl)}"
                    yield Thread(ThreadId(pid_of(vmpl), vcpu.index + 1), name, doing, vcpu.index)

    def _thread_of(self, program: ProgramView) -> Thread:
        name = f"task {program.number} {program.name}"
        vcpu = self._vcpu_of(program)
        if vcpu is not None:
            name = f"vcpu{vcpu.index}/VMPL0 {name}"
        id_ = ThreadId(PROGRAM_PID + program.number, 1)
        return Thread(id_, name, program.doing, None if vcpu is None else vcpu.index)

    def _vcpu_of(self, program: ProgramView) -> Vcpu | None:
        """The vCPU that has the program's page tables loaded."""
        vcpus = self._machine.hypervisor.vcpus
        return next((v for v in vcpus if v.apic_id == program.loaded_on), None)

    # -- who runs ---------------------------------------------------------------------------

    def running(self, vcpu: Vcpu) -> ThreadId:
        """The thread that executes on a vCPU: of a program at CPL 3, else of its world."""
        if vcpu.world is None:
            return ThreadId(self.guest_pid, vcpu.index + 1)
        program = self._at_cpl3(vcpu)
        if program is not None:
            return ThreadId(PROGRAM_PID + program.number, 1)
        return ThreadId(pid_of(vcpu.vmpl), vcpu.index + 1)

    def executing(self) -> ThreadId:
        """The thread that the engine has loaded: asked while it runs, too."""
        silicon = self._machine.silicon
        cpu, loaded = silicon.cpu, silicon.processor.vmcb
        vcpu = next(
            vcpu
            for vcpu in self._machine.hypervisor.vcpus
            if any(world.vmcb is loaded for world in vcpu.worlds)
        )
        if cpu.vmpl == Vmpl.VMPL0 and cpu.cpl == 3:
            for program in self.programs():
                if program.in_user and program.loaded_on == vcpu.apic_id:
                    return ThreadId(PROGRAM_PID + program.number, 1)
        return ThreadId(pid_of(Vmpl(cpu.vmpl)), vcpu.index + 1)

    def _at_cpl3(self, vcpu: Vcpu) -> ProgramView | None:
        if vcpu.vmpl != Vmpl.VMPL0 or self._machine.core is None:
            return None
        for program in self.programs():
            if program.loaded_on == vcpu.apic_id and self._program_thread(program).live:
                return program
        return None

    def vcpu_of(self, thread: ThreadId) -> Vcpu | None:
        """The vCPU on which a thread executes now; None if it does not."""
        vcpus = self._machine.hypervisor.vcpus
        if thread.pid > PROGRAM_PID:
            program = self.program(thread.pid)
            if program is None or not self._program_thread(program).live:
                return None
            vcpu = self._vcpu_of(program)
            return vcpu if vcpu is not None and vcpu.vmpl == Vmpl.VMPL0 else None
        if thread.tid > len(vcpus):
            return None
        vcpu = vcpus[thread.tid - 1]
        here = vcpu.world is not None and pid_of(vcpu.vmpl) == thread.pid
        return vcpu if here or thread.pid == ANY_WORLD else None

    def can_run(self, thread: ThreadId) -> bool:
        """Whether a thread has anything to execute: a world that has a VMSA, or a program."""
        return self.program(thread.pid) is not None or self.vmcb_of(thread) is not None

    def vmcb_of(self, thread: ThreadId) -> Vmcb | None:
        """The control block that runs a thread; None if it has none now."""
        found = None if thread.pid >= PROGRAM_PID else self.place(thread)
        return None if found is None or found[1] is None else found[1].vmcb

    def place(self, thread: ThreadId) -> tuple[Vcpu, World | None] | None:
        """The vCPU of a thread, and its world there if there is one.

        For a program those that have its page tables; None if none has.
        """
        vcpus = self._machine.hypervisor.vcpus
        if thread.pid >= PROGRAM_PID:
            program = self.program(thread.pid)
            vcpu = None if program is None else self._vcpu_of(program)
            return None if vcpu is None else (vcpu, _world(vcpu, Vmpl.VMPL0))
        if thread.tid > len(vcpus):
            return None
        vcpu = vcpus[thread.tid - 1]
        if thread.pid == ANY_WORLD:
            return vcpu, vcpu.world
        return vcpu, _world(vcpu, Vmpl(thread.pid - 1))

    # -- what they are ----------------------------------------------------------------------

    def view(self, thread: ThreadId) -> View:
        """What a debugger sees of a thread; nothing if there is no such thread any more."""
        silicon = self._machine.silicon
        if thread.pid >= PROGRAM_PID:
            program = self.program(thread.pid)
            if program is None:
                return View(silicon, f"task {thread.pid - PROGRAM_PID} has ended")
            return self._program_thread(program)
        found = self.place(thread)
        return WorldView(silicon, None if found is None else found[1])

    def _program_thread(self, program: ProgramView) -> ProgramThread:
        silicon = self._machine.silicon
        vcpu = self._vcpu_of(program)
        cpu = None
        if vcpu is not None:
            cpu = WorldView(silicon, _world(vcpu, Vmpl.VMPL0))
        if self._exit_code is None:
            self._exit_code = _exit_code(image_path("svsm").read_bytes())
        return ProgramThread(silicon, program, cpu, self._exit_code)


def _world(vcpu: Vcpu, vmpl: Vmpl) -> World | None:
    return next((world for world in vcpu.worlds if world.vmpl == vmpl), None)


def _exit_code(kernel: bytes) -> ExitCode:
    """From the gate's way out to the IRETQ that goes on at CPL 3."""
    symbols = elf_symbols(kernel)
    return ExitCode(symbols["svsm_gate_action"].start, symbols["svsm_enter_user"].stop)
