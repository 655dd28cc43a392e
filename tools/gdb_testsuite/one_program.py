# SPDX-License-Identifier: MIT
"""A machine with one program at CPL 3, served to one debugger with gdbserver's command line.

    one_program.py [--OPTION...] [HOST]:PORT PROGRAM [ARGUMENT...]

What gdb's testsuite starts in the place of gdbserver. The SVSM runs PROGRAM, a static executable,
as a module beside the demo guest. The machine is stopped before the first instruction of the
program, and the debugger is shown this process only: the tests know of one. All else is svsmd's own
stub. The run ends with the program, whose exit status is reported; with --once it ends when the
debugger goes, too. Other options of gdbserver mean nothing here.

Spec: gdbserver(1).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio
from elftools.elf.elffile import ELFFile

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from svsmd.config import DEMO_RTC, DEMO_SEED, MIB, MachineConfig
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.process import Process
from svsmd.endpoint import TcpEndpoint
from svsmd.errors import UserError
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.service import serve_gdb
from svsmd.gdbstub.target import MonitorCommand, Stopped, Thread
from svsmd.gdbstub.world_filter import PROGRAM_PID
from svsmd.gdbstub.worlds import Worlds
from svsmd.machine import SLICE_SECONDS, SLICE_TICKS, Machine
from svsmd.runner import Clock, RunnableMachine, Runner
from svsmd.slice_end import DebugEvent, Ended, SliceEnd
from svsmd.snp.breakpoint import Breakpoint
from tools.make_archive import make_archive

PATH: Final = "/bin/program"
MEMORY: Final = 256 * MIB
PAGES: Final = 8192
"""What the program may have, of 4 KiB."""
BOOT_SLICES: Final = 1000
"""So many slices the machine needs at most until the program begins."""
FAREWELL_SECONDS: Final = 5.0
"""How long a debugger may take to go when its program has ended."""
HURRIED_FAREWELL_SECONDS: Final = 0.1
"""The same when it has asked for the end."""
ONCE: Final = "--once"
MONITOR_EXIT: Final = "monitor exit"
IN_USE: Final = "Can't bind address: Address already in use."
"""What the testsuite takes another port for."""


class ProgramMachine(Machine):
    """A machine that ends when the first program of its SVSM does."""

    def __init__(self, config: MachineConfig) -> None:
        super().__init__(config)
        self._program: Process | None = None

    @property
    def pid(self) -> int:
        """The program's process, as debuggers know it."""
        assert self._program is not None
        return PROGRAM_PID + self._program.task.number

    def start_program(self, entry: int) -> None:
        """Run until the program is about to execute its first instruction, at `entry`.

        Raises:
            UserError: it does not come so far.
        """
        executing, core, debug = Worlds(self).executing, self.core, self.silicon.debug
        assert core is not None
        first = Breakpoint(entry, vmpl=0, accepts=lambda: executing().pid > PROGRAM_PID)
        debug.add_breakpoint(first)
        for _ in range(BOOT_SLICES):
            end = super().run_slice()
            if isinstance(end, DebugEvent):
                break
            if isinstance(end, Ended):
                raise UserError(f"the program does not start: {end.reason}")
        else:
            raise UserError("the program does not start")
        debug.remove_breakpoint(first)
        self._program = core.processes[0]
        ended = self._program.on_end

        def end_slice(cpu: PerCpu, process: Process) -> None:
            ended(cpu, process)
            self.request_stop()

        self._program.on_end = end_slice

    def run_slice(self, max_ticks: int = SLICE_TICKS, seconds: float = SLICE_SECONDS) -> SliceEnd:
        """See Machine."""
        end = super().run_slice(max_ticks, seconds)
        return self._program_end() or end

    def step_vcpu(
        self,
        index: int,
        within: range | None = None,
        most: int = 0,
        *,
        hold_interrupts: bool = False,
    ) -> SliceEnd:
        """See Machine."""
        end = super().step_vcpu(index, within, most, hold_interrupts=hold_interrupts)
        return self._program_end() or end

    def _program_end(self) -> Ended | None:
        if self._program is None or self.core is None or self._program in self.core.processes:
            return None
        return Ended(self._program.exit_status or 0, "the program has ended")


class ProgramTarget(MachineTarget):
    """A machine of which the debugger sees one process."""

    def __init__(self, machine: ProgramMachine, leave: MonitorCommand) -> None:
        super().__init__(machine)
        self._pid = machine.pid
        self._leave = leave

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        """See SupportsMonitor."""
        return {**super().monitor_commands, "exit": self._leave}

    def process_threads(self) -> Sequence[Thread]:
        """See SupportsProcesses."""
        return [thread for thread in super().process_threads() if thread.id.pid == self._pid]

    def name_process(self, event: Stopped) -> Stopped:
        """See SupportsProcesses. Whoever runs, it is this process that has been stopped."""
        return replace(super().name_process(event), pid=self._pid, tid=1)


class ProgramRunner(Runner):
    """Run control of a machine that no debugger lets go on: gdbserver's program waits as well.

    With `once`, the run is over when a debugger has gone.
    """

    def __init__(self, machine: RunnableMachine, *, once: bool) -> None:
        super().__init__(machine, clock=Clock.REAL, paused=True)
        self._once = once
        self.gone = trio.Event()
        """A debugger has."""

    def detach(self, resume: bool) -> None:
        """See Runner."""
        super().detach(resume=False)
        self.gone.set()
        if self._once:
            self.finish(0, "the debugger has gone")


def configuration(program: bytes, arguments: Sequence[str], archive: Path) -> MachineConfig:
    """A machine whose SVSM starts the program; its archive is written to `archive`.

    `arguments` begin with the name of the program.
    """
    texts = ", ".join(json.dumps(text) for text in arguments)
    entry = f'[[program]]\npath = "{PATH}"\narguments = [{texts}]\npages = {PAGES}\n'
    archive.write_bytes(make_archive({"/svsm.toml": entry.encode(), PATH: program}))
    return MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC, memory=MEMORY, archive=archive)


async def serve(machine: ProgramMachine, endpoint: TcpEndpoint, once: bool) -> int:
    """Serve the machine until it ends or, with `once`, the debugger goes; the exit code."""
    runner = ProgramRunner(machine, once=once)
    output = runner.between_slices(show_output)
    machine.on_svsm_console = output

    def leave(arguments: Sequence[str]) -> str:
        runner.finish(0, MONITOR_EXIT)
        return ""

    command = MonitorCommand("", "end the machine", leave)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.limit_slices)
        try:
            bound = await nursery.start(
                serve_gdb, endpoint, lambda: ProgramTarget(machine, command), runner
            )
        except UserError as error:
            print(IN_USE if "in use" in str(error) else f"one_program: {error}", file=sys.stderr)
            nursery.cancel_scope.cancel()
            return 1
        print(f"Listening on port {bound.port}", file=sys.stderr, flush=True)
        ended = await runner.run()
        hurry = ended.reason == MONITOR_EXIT
        with trio.move_on_after(HURRIED_FAREWELL_SECONDS if hurry else FAREWELL_SECONDS):
            while runner.debuggers:
                runner.gone = trio.Event()
                await runner.gone.wait()
        nursery.cancel_scope.cancel()
    return 0


def show_output(text: bytes) -> None:
    """What the program has printed; the SVSM's log says before each line who has."""
    for line in text.decode(errors="replace").splitlines():
        name, colon, said = line.partition(": ")
        if colon and name == Path(PATH).name:
            print(said, flush=True)


def main(arguments: list[str]) -> int:
    """Command line; 0 = it has run, 1 = one line on stderr says why not, 2 = usage."""
    options = list(itertools.takewhile(lambda text: text.startswith("--"), arguments))
    arguments = arguments[len(options) :]
    if len(arguments) < 2 or not arguments[0].rpartition(":")[2].isdecimal():
        print(__doc__, file=sys.stderr)
        return 2
    address, path, *rest = arguments
    host, _, port = address.rpartition(":")
    try:
        program = Path(path).read_bytes()
        entry = ELFFile(io.BytesIO(program)).header["e_entry"]
        with tempfile.TemporaryDirectory() as directory:
            machine = ProgramMachine(
                configuration(program, [path, *rest], Path(directory) / "modules.tar")
            )
            machine.start_program(entry)
            print(f"Process {path} created; pid = {os.getpid()}", file=sys.stderr, flush=True)
            host = "127.0.0.1" if host in ("", "localhost") else host
            return trio.run(serve, machine, TcpEndpoint(host, int(port)), ONCE in options)
    except (UserError, OSError) as error:
        print(f"one_program: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
