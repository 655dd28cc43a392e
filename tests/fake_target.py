# SPDX-License-Identifier: MIT
"""A machine of four instructions, for the tests of the gdb stub: two vCPUs, 8 KiB, one loop.

LOOP:   inc qword ptr [COUNTER]     8 bytes, at 0x1000
INC:    inc rax                     3 bytes, at 0x1008
NOP:    nop                         1 byte,  at 0x100b
JMP:    jmp LOOP                    2 bytes, at 0x100c
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import trio
from outcome import Outcome, capture

from svsmd.gdbstub.agent.commands import Console, run_commands
from svsmd.gdbstub.agent.packet import Options
from svsmd.gdbstub.target import (
    ANY_WORLD,
    G_LAYOUT,
    NO_SYSCALL,
    BreakpointKind,
    Exited,
    MonitorCommand,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    TargetError,
    Thread,
    ThreadId,
    WatchpointKind,
)
from svsmd.gdbstub.target_xml import REGISTERS, SYSTEM_REGISTERS
from svsmd.snp.predicate import NoValue

T = TypeVar("T")
BASE = 0x1000
SIZE = 0x2000
LOOP, INC, NOP, JMP = 0x1000, 0x1008, 0x100B, 0x100C
COUNTER = 0x2000
CODE = bytes.fromhex("48ff042500200000 48ffc0 90 ebf2")
_NAMES = [register.name for register in REGISTERS]
GPRS = _NAMES[:16]
SELECTORS = _NAMES[18:24]
FPU = _NAMES[32:40]


class FakeVcpu:
    """Registers of one vCPU by name."""

    def __init__(self) -> None:
        self.registers: dict[str, int] = dict.fromkeys((*GPRS, *SELECTORS, *FPU), 0)
        self.registers |= dict.fromkeys(SYSTEM_REGISTERS, 0)
        self.registers |= {f"st{n}": 0 for n in range(8)} | {f"xmm{n}": 0 for n in range(16)}
        self.registers |= {"rip": LOOP, "eflags": 2, "mxcsr": 0x1F80, "fs_base": 0, "gs_base": 0}
        self.registers |= {"rsp": BASE + SIZE - 8, "cr0": 0x80000011, "vmpl": 2}
        self.reported_at: int | None = None
        """The breakpoint whose stop was reported, which the next resumption goes past."""


class FakeView:
    """What conditions and commands read."""

    def __init__(self, machine: "FakeMachine", tid: int) -> None:
        self._machine = machine
        self._tid = tid

    def register(self, name: str) -> int:
        return self._machine.vcpus[self._tid].registers[name]

    def load(self, address: int, nbytes: int) -> int:
        return int.from_bytes(self.read(address, nbytes), "little")

    def read(self, address: int, nbytes: int) -> bytes:
        if not BASE <= address <= BASE + SIZE - nbytes:
            raise NoValue(f"cannot read memory at {address:#x}")
        return bytes(self._machine.memory[address - BASE :][:nbytes])

    def call(self, index: int, arguments: Sequence[int]) -> None:
        raise NoValue("a condition calls no function")


class FakeMachine:
    """Implements `Target` and everything that may be supported."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.memory[: len(CODE)] = CODE
        self.vcpus = {1: FakeVcpu(), 2: FakeVcpu()}
        self.breakpoints: list[tuple[int, BreakpointKind, int]] = []
        self.options: dict[tuple[int, BreakpointKind, int], Options] = {}
        self.console = Console()
        self.physical = False
        """Whether the last breakpoint was by physical address."""
        self.watchpoints: list[tuple[int, WatchpointKind, int, int]] = []
        self.step_interrupts = False
        self.in_slice = False
        self.steps = 0
        """Instructions executed."""
        self.ended: Exited | None = None

    # Target

    def threads(self) -> Sequence[Thread]:
        self._check_stopped()
        return [
            Thread(ThreadId(ANY_WORLD, 1), "vcpu0", "VMPL2 & running"),
            Thread(ThreadId(ANY_WORLD, 2), "vcpu1", "VMPL2, halted"),
        ]

    def read_registers(self, thread: ThreadId) -> bytes:
        self._check_stopped()
        get = self.vcpus[thread.tid].registers.__getitem__
        return G_LAYOUT.pack(
            *map(get, GPRS),
            get("rip"),
            get("eflags"),
            *map(get, SELECTORS),
            b"".join(get(f"st{n}").to_bytes(10, "little") for n in range(8)),
            *map(get, FPU),
            b"".join(get(f"xmm{n}").to_bytes(16, "little") for n in range(16)),
            get("mxcsr"),
            NO_SYSCALL,
            get("fs_base"),
            get("gs_base"),
        )

    def read_register(self, thread: ThreadId, name: str) -> int:
        self._check_stopped()
        return self.vcpus[thread.tid].registers[name]

    def write_register(self, thread: ThreadId, name: str, value: int) -> None:
        self._check_stopped()
        if name == "vmpl":
            raise TargetError("the VMPL of a VMSA is fixed")
        assert name in self.vcpus[thread.tid].registers
        self.vcpus[thread.tid].registers[name] = value

    def read_memory(self, thread: ThreadId, gva: int, length: int) -> bytes:
        self._check_stopped()
        if not BASE <= gva < BASE + SIZE:
            raise TargetError(f"no page table maps {gva:#x}")
        return bytes(self.memory[gva - BASE : gva - BASE + length])

    def write_memory(self, thread: ThreadId, gva: int, data: bytes) -> None:
        self._check_stopped()
        if not BASE <= gva <= gva + len(data) <= BASE + SIZE:
            raise TargetError(f"no page table maps {gva:#x}")
        self.memory[gva - BASE : gva - BASE + len(data)] = data

    def read_physical_memory(self, gpa: int, length: int) -> bytes:
        return self.read_memory(ThreadId(ANY_WORLD, 1), gpa + BASE, length)

    def write_physical_memory(self, gpa: int, data: bytes) -> None:
        self.write_memory(ThreadId(ANY_WORLD, 1), gpa + BASE, data)

    def step(self, thread: ThreadId, *, alone: bool = False) -> StopEvent | None:
        self._check_stopped()
        tid = thread.tid
        event = self._execute(tid) or Stopped(tid)
        self.vcpus[tid].reported_at = self.vcpus[tid].registers["rip"]
        return event

    def insert_breakpoint(
        self, pid: int, kind: BreakpointKind, address: int, options: Options, *, physical: bool
    ) -> None:
        self._check_stopped()
        assert self.options.get((pid, kind, address)) != options
        if (pid, kind, address) not in self.breakpoints:
            self.breakpoints.append((pid, kind, address))
        self.options[pid, kind, address] = options
        self.physical = physical

    def remove_breakpoint(
        self, pid: int, kind: BreakpointKind, address: int, *, physical: bool
    ) -> None:
        self._check_stopped()
        self.breakpoints.remove((pid, kind, address))
        del self.options[pid, kind, address]

    def forget_removed_breakpoints(self) -> None:
        self._check_stopped()

    def arrived(self, thread: ThreadId) -> bool:
        self._check_stopped()
        rip = self.vcpus[thread.tid].registers["rip"]
        hits = [self._hit(thread.tid, point) for point in self.breakpoints if point[2] == rip]
        return any(hits)

    def take_output(self) -> bytes:
        self._check_stopped()
        return self.console.take()

    def _hit(self, tid: int, point: tuple[int, BreakpointKind, int]) -> bool:
        """Whether the breakpoint, which has been reached, stops."""
        options, view = self.options[point], FakeView(self, tid)
        conditions = [c.program.evaluate(view) for c in options.conditions]
        if conditions and not any(conditions):
            return False
        run_commands(options.commands, view, self.console)
        return not options.commands

    def insert_watchpoint(
        self, thread: ThreadId, kind: WatchpointKind, address: int, length: int
    ) -> None:
        self._check_stopped()
        if length > 8:
            raise TargetError("a watchpoint has 8 bytes at most")
        assert (thread.pid, kind, address, length) not in self.watchpoints
        self.watchpoints.append((thread.pid, kind, address, length))

    def remove_watchpoint(self, pid: int, kind: WatchpointKind, address: int, length: int) -> None:
        self._check_stopped()
        self.watchpoints.remove((pid, kind, address, length))

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        def fail(args: Sequence[str]) -> str:
            raise TargetError("that does not work")

        return {
            "echo": MonitorCommand("[WORD...]", "print the words", " ".join),
            "fail": MonitorCommand("", "fail", fail),
        }

    # The processor

    def run(self, steps: int) -> StopEvent | None:
        """Run vCPU 1 (vCPU 2 is halted); None if nothing has happened in so many steps."""
        self.in_slice = True
        try:
            vcpu = self.vcpus[1]
            for _ in range(steps):
                if self.ended is not None:
                    return self.ended
                rip = vcpu.registers["rip"]
                for point in self.breakpoints:
                    _, kind, address = point
                    if address == rip and vcpu.reported_at != rip and self._hit(1, point):
                        vcpu.reported_at = rip
                        software = kind is BreakpointKind.SOFTWARE
                        reason = StopReason.SWBREAK if software else StopReason.HWBREAK
                        return Stopped(1, reason=reason)
                vcpu.reported_at = None
                if (event := self._execute(1)) is not None:
                    return event
            return None
        finally:
            self.in_slice = False

    def _execute(self, tid: int) -> Stopped | None:
        self.steps += 1
        registers = self.vcpus[tid].registers
        match registers["rip"]:
            case 0x1000:
                start = COUNTER - BASE
                value = int.from_bytes(self.memory[start : start + 8], "little") + 1
                self.memory[start : start + 8] = value.to_bytes(8, "little")
                registers["rip"] = INC
                return self._watch(tid)
            case 0x1008:
                registers["rax"] += 1
                registers["rip"] = NOP
            case 0x100B:
                registers["rip"] = JMP
            case 0x100C:
                registers["rip"] = LOOP
            case _:
                return Stopped(tid, Signal.SIGILL)
        return None

    def _watch(self, tid: int) -> Stopped | None:
        for _, kind, address, length in self.watchpoints:
            if address < COUNTER + 8 and address + length > COUNTER:
                reason = {
                    WatchpointKind.WRITE: StopReason.WATCH,
                    WatchpointKind.READ: StopReason.RWATCH,
                    WatchpointKind.ACCESS: StopReason.AWATCH,
                }[kind]
                return Stopped(tid, reason=reason, address=max(address, COUNTER))
        return None

    def _check_stopped(self) -> None:
        assert not self.in_slice, "the machine was touched while it runs"


class FakeRunner:
    """Run control of a `FakeMachine`; the test says when time passes."""

    def __init__(self, machine: FakeMachine, *, running: bool = False) -> None:
        self.machine = machine
        self.running = running
        self.on_stop: Callable[[StopEvent], None] | None = None
        self.after_slice: Callable[[], None] = lambda: None
        self.sprint_steps = 0
        """So many instructions `resume` runs at once."""
        self.on_rest: Callable[[], None] = lambda: None
        self.debuggers = 0
        self.last_stop: StopEvent = Stopped(1)
        self._visits: list[Callable[[], None]] = []
        self._interruption: Stopped | None = None
        self._changed = trio.Event()
        # While it runs, the machine is in a slice whenever the client is served.
        machine.in_slice = running

    @property
    def position(self) -> int:
        assert not self.machine.in_slice
        return self.machine.steps

    async def visit(self, look: Callable[[], T]) -> T:
        if not self.machine.in_slice:
            return look()
        done = trio.Event()
        result: list[Outcome[T]] = []

        def visit() -> None:
            result.append(capture(look))
            done.set()

        self._visits.append(visit)
        await done.wait()
        return result[0].unwrap()

    def attach(self, on_stop: Callable[[StopEvent], None]) -> StopEvent:
        assert not self.machine.in_slice
        self.on_stop = on_stop
        self._interruption = None
        if self.running:
            self.running = False
            self.last_stop = Stopped(1)
        return self.last_stop

    def resume(self, *, at_once: bool = False) -> StopEvent | None:
        if at_once and self.sprint_steps:
            self.machine.in_slice = True
            event = self.machine.run(self.sprint_steps)
            if event is not None:
                return event
        assert not self.running
        self.running = self.machine.in_slice = True
        self._changed.set()
        return None

    def interrupt(self) -> None:
        self._interruption = Stopped(1, Signal.SIGINT)

    def detach(self, resume: bool) -> None:
        self.on_stop = None
        if resume and not self.running:
            self.resume()

    def slice(self, steps: int = 1000) -> None:
        """Run so many instructions, if the machine runs, and report what happened."""
        if not self.running:
            return
        event = self.machine.run(steps)
        self.after_slice()
        if event is not None:
            self._report(event)
        visits, self._visits = self._visits, []
        for visit in visits:
            visit()
        if self.running and self._interruption is not None:
            self._report(self._interruption)
        self.machine.in_slice = self.running

    def _report(self, event: StopEvent) -> None:
        self._interruption = None
        self.running = False
        self.last_stop = event
        if self.on_stop is not None:
            self.on_stop(event)
        self.on_rest()

    async def run(self) -> None:
        """Run slices for ever."""
        while True:
            if not self.running:
                await self._changed.wait()
                self._changed = trio.Event()
            self.slice()
            # A loop that never sleeps starves the thread in which trio starts a process: it gives
            # the GIL away and takes it back before the other thread is awake, for seconds.
            await trio.sleep(0.001)
