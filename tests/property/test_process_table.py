# SPDX-License-Identifier: MIT
"""Families of processes on two CPUs against a tree: who may start whom, who learns of whose end,
and that a family ends with its head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from svsmd.core.ipc.objects import POLL
from svsmd.core.syscalls.tasks import SPAWN
from svsmd.core.tasks.errno import Errno
from svsmd.core.tasks.process import (
    KILLED,
    KILLED_BY_EXCEPTION,
    Capability,
    Limits,
    Process,
)
from svsmd.core.tasks.task import TaskState
from svsmd.core.trap_frame import TrapFrame
from tests.user_system import CPUS, DATA, NUMBERS, PROGRAM, UserSystem

PAGES: Final = 20
PROCESSES: Final = 20
"""As many as there is memory for."""
STATUS_AT: Final = DATA.start
PATH_AT: Final = DATA.start + 16
HOW_AT: Final = DATA.start + 64
UNDEFINED_OPCODE: Final = 6
PATIENCE: Final = 1 << 40
"""Ticks; nothing takes so long."""


@dataclass(eq=False)
class Node:
    """A process as the model has it."""

    process: Process
    parent: Node | None
    room: int
    """Children that it may have."""
    children: list[Node] = field(default_factory=list)
    """Those that it was not told the end of, oldest first."""
    status: int | None = None
    waits: int | None = None
    """Number of the child that it waits for, -1 for any."""
    deadline: int | None = None
    result: int | None = None
    """Of its last call, if that has come back."""

    @property
    def number(self) -> int:
        return self.process.task.number

    def candidates(self, number: int) -> list[Node]:
        return [child for child in self.children if number in (-1, child.number)]

    def ended(self, number: int) -> Node | None:
        """Whom a wait for that number would tell of."""
        return next((c for c in self.candidates(number) if c.status is not None), None)


class Families(RuleBasedStateMachine):
    """What a process does takes effect before the next rule."""

    def __init__(self) -> None:
        super().__init__()
        self.system = UserSystem()
        self.system.on_result = self.on_result
        self.nodes: dict[Process, Node] = {}

    @initialize()
    def begin(self) -> None:
        self.start(3)
        for _ in range(2):
            self.spawn(0, 3, 1)

    def on_result(self, process: Process, _frame: TrapFrame, result: int) -> None:
        self.nodes[process].result = result

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.status is None]

    @property
    def idle(self) -> list[Node]:
        """Those that can make a call."""
        return [node for node in self.alive if node.waits is None]

    @property
    def heads(self) -> list[Node]:
        """Those of them that have children, or all if nobody has."""
        return [node for node in self.idle if node.children] or self.idle

    def pick(self, nodes: list[Node], index: int) -> Node:
        return nodes[index % len(nodes)]

    # Driving -----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Whoever is ready runs, until all wait or compute."""
        for _ in range(2 * (len(self.nodes) + CPUS)):
            for apic_id in range(CPUS):
                self.system.turn(apic_id)

    def find(self, node: Node) -> int:
        """Let others have their turns until this one runs; on which CPU it does."""
        for _ in range(8 * PROCESSES):
            for apic_id in range(CPUS):
                if self.system.running(apic_id) is node.process:
                    return apic_id
                self.system.turn(apic_id)
        raise AssertionError("it never runs")

    def call(self, node: Node, name: str, *arguments: int) -> int | None:
        """A system call of a process, and its result if there is one at once."""
        node.result = None
        self.system.call(self.find(node), NUMBERS[name], *(a & (1 << 64) - 1 for a in arguments))
        return node.result

    def put(self, node: Node, where: int, data: bytes) -> None:
        node.process.space.write(self.system.cpus[0], where, data)

    def told(self, node: Node, child: Node) -> None:
        """The parent knows of the end."""
        assert node.result == child.number
        raw = node.process.space.read(self.system.cpus[0], STATUS_AT, 4)
        assert int.from_bytes(raw, "little") == child.status
        node.children.remove(child)
        node.waits = node.deadline = None

    # Model of an end -----------------------------------------------------------------------------

    def ended(self, node: Node, status: int) -> None:
        """The model's side of an end, and of all ends that follow."""
        fresh = self.end_tree(node, status)
        self.settle()
        for each in fresh:
            assert each.process.exit_status == each.status
            assert each.process.task.state is TaskState.ENDED
            parent = each.parent
            if parent is None or parent.status is not None or parent.waits is None:
                continue
            if parent.ended(parent.waits) is not None:
                first = parent.ended(parent.waits)
                assert first is not None
                self.told(parent, first)

    def end_tree(self, node: Node, status: int) -> list[Node]:
        node.status, node.waits = status, None
        fresh = [node]
        for child in node.children:
            if child.status is None:
                fresh += self.end_tree(child, KILLED)
        return fresh

    # Rules ---------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.alive) < PROCESSES)
    @rule(room=st.integers(0, 3))
    def start(self, room: int) -> None:
        """A program of the SVSM's own choice."""
        process = self.system.start(
            "root", Capability.SPAWN, limits=Limits(pages=PAGES, children=room)
        )
        self.nodes[process] = Node(process, None, room)

    @precondition(lambda self: self.idle and len(self.alive) < PROCESSES)
    @rule(index=st.integers(0, 30), room=st.integers(0, 3), may=st.integers(0, 3))
    def spawn(self, index: int, room: int, may: int) -> None:
        node = self.pick(self.idle, index)
        capabilities = Capability.SPAWN if may else Capability.NONE
        self.put(node, PATH_AT, PROGRAM.encode() + b"\0")
        self.put(node, HOW_AT, SPAWN.pack(SPAWN.size, PAGES, room, capabilities, 0))
        before = dict(self.system.processes._processes)
        result = self.call(node, "svsm_spawn", PATH_AT, 0, 0, HOW_AT)
        fresh = [p for t, p in self.system.processes._processes.items() if t not in before]
        if not node.process.program.capabilities & Capability.SPAWN:
            assert (result, fresh) == (-Errno.EPERM, [])
        elif len(node.children) >= node.room:
            assert (result, fresh) == (-Errno.EAGAIN, []), "those that it was not told of count"
        else:
            (process,) = fresh
            assert result == process.task.number
            child = Node(process, node, min(room, node.room))
            assert process.program.limits.children == child.room
            self.nodes[process] = child
            node.children.append(child)

    @precondition(lambda self: self.alive)
    @rule(
        index=st.integers(0, 30),
        how=st.sampled_from(("exit", "exit", "fault", "kill")),
        status=st.integers(0, 511),
        cpu=st.integers(0, CPUS - 1),
    )
    def end(self, index: int, how: str, status: int, cpu: int) -> None:
        """Those with a parent first: the others take their families along."""
        nodes = self.alive if how == "kill" else self.idle
        nodes = [node for node in nodes if node.parent is not None] or nodes
        if not nodes:
            return
        node = self.pick(nodes, index)
        if how == "exit":
            self.call(node, "exit", status)
            self.ended(node, status & 0xFF)
        elif how == "fault":
            self.system.leave(self.find(node), UNDEFINED_OPCODE)
            self.ended(node, KILLED_BY_EXCEPTION + UNDEFINED_OPCODE)
        else:
            # Wherever it is: at CPL 3, ready, or waiting.
            self.system.processes.kill(self.system.cpus[cpu], node.process)
            self.ended(node, KILLED)

    @precondition(lambda self: self.idle)
    @rule(index=st.integers(0, 30), victim=st.integers(0, 30), signal=st.sampled_from((9, 9, 0, 3)))
    def kill(self, index: int, victim: int, signal: int) -> None:
        node = self.pick(self.heads, index)
        other = self.pick(node.children or list(self.nodes.values()), victim)
        result = self.call(node, "kill", other.number, signal)
        if other not in node.children:
            assert result == -Errno.ESRCH
        elif signal == 3:
            assert result == -Errno.EINVAL
        else:
            assert result == 0
            if signal and other.status is None:
                self.ended(other, KILLED)

    @precondition(lambda self: self.idle)
    @rule(
        index=st.integers(0, 30),
        child=st.one_of(st.none(), st.integers(0, 3)),
        how=st.sampled_from(("poll", "block", "block", "deadline")),
    )
    def wait(self, index: int, child: int | None, how: str) -> None:
        node = self.pick(self.heads, index)
        number = -1
        if child is not None:
            number = self.pick(node.children or list(self.nodes.values()), child).number
        now = max(port.ticks for port in self.system.ports)
        deadline = {"poll": POLL, "block": 0, "deadline": now + PATIENCE}[how]
        found = node.ended(number)
        result = self.call(node, "svsm_wait", number, STATUS_AT, deadline)
        if not node.candidates(number):
            assert result == -Errno.ECHILD
        elif found is not None:
            self.told(node, found)
        elif how == "poll":
            assert result == -Errno.ETIMEDOUT
        else:
            assert result is None
            node.waits, node.deadline = number, deadline or None

    @precondition(lambda self: any(node.deadline for node in self.alive))
    @rule()
    def deadlines_come(self) -> None:
        self.system.pass_time(2 * PATIENCE)
        self.settle()
        for node in self.alive:
            if node.deadline is not None:
                assert node.result == -Errno.ETIMEDOUT
                node.waits = node.deadline = None

    # Always --------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        processes: Any = self.system.processes
        assert set(self.system.alive) == {node.process for node in self.alive}
        assert len(processes) == len(self.alive) == len(processes._child_ended)
        for node in self.alive:
            assert list(node.process.children) == [child.number for child in node.children]
            assert node.process.exit_status is None
            parent = node.parent
            assert processes.parent_number(node.process) == (parent.number if parent else 0)
            waiting = node.process.task.state is TaskState.BLOCKED
            assert waiting == (node.waits is not None)
            assert node.result is None or node.waits is None
        known = {c.process for node in self.alive for c in node.children}
        assert processes._parents.keys() == known, "nobody knows of those that nobody can wait for"

    def teardown(self) -> None:
        self.system.end()


Families.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFamilies = Families.TestCase
