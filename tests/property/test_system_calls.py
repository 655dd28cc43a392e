# SPDX-License-Identifier: MIT
"""Random system calls of several programs on two CPUs: each result is one of those that the table
names, no quota is overdrawn, and when all have ended nothing of them is left.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from svsmd.core.calls import MODULE_PROTOCOLS, Request
from svsmd.core.gate import Block, Handler
from svsmd.core.ipc.channel import ChannelEnd
from svsmd.core.ipc.event import Event
from svsmd.core.ipc.messages import MESSAGE_MAX
from svsmd.core.ipc.objects import IpcObject
from svsmd.core.ipc.served_protocol import ProtocolPort
from svsmd.core.ipc.services import Service
from svsmd.core.ipc.shared_memory import SharedMemory
from svsmd.core.percpu import GuestWorld, PerCpu
from svsmd.core.port import PRIVATE_MAP
from svsmd.core.syscalls.dispatch import signed
from svsmd.core.syscalls.ipc import MESSAGE
from svsmd.core.syscalls.protocol import ANSWER
from svsmd.core.syscalls.table import SYSTEM_CALLS
from svsmd.core.syscalls.tasks import BATCH_ENTRY, SPAWN
from svsmd.core.tasks.address_space import (
    MMAP_TOP,
    STACK_LIMIT,
    STACK_TOP,
    USER_END,
    USER_START,
    Quota,
)
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.files import File
from svsmd.core.tasks.process import Capability, Limits, Process
from svsmd.core.tasks.scheduler import TIME_SLICE
from svsmd.core.trap_frame import PAGE_FAULT, TrapFrame
from svsmd.snp.types import PAGE_SIZE, Gpa
from tests.property.test_executable import BASE
from tests.user_system import CPUS, DATA, NUMBERS, PROGRAM, UserSystem

T = TypeVar("T")

U64: Final = (1 << 64) - 1
CALLS: Final = {info.number: info for info in SYSTEM_CALLS}
NUMBER: Final = MODULE_PROTOCOLS.start
SCRATCH: Final = range(DATA.start + 2 * PAGE_SIZE, DATA.stop)
"""Where structures are put; what lies below is for buffers."""

PROGRAMS: Final = {
    "all": Capability(sum(Capability)),
    "some": Capability.SPAWN | Capability.REGISTER | Capability.SERVE_PROTOCOL,
    "none": Capability.NONE,
}

# Arguments -----------------------------------------------------------------------------------

Value = tuple[str, Any]
"""What an argument is made of when the call is made: a number, a handle that is open then, a child,
a time, or memory with something in it."""


def mostly(likely: st.SearchStrategy[T], *others: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """`one_of` takes each of its strategies as often as the others."""
    return st.integers(0, 9).flatmap(lambda n: likely if n < 9 else st.one_of(*others))


Call = tuple[int, tuple[Value, ...]]
"""Number and arguments."""

numbers = st.tuples(st.just("number"), st.integers(-2, 70))
handles = st.tuples(st.just("handle"), st.tuples(st.just(""), st.integers(0, 70)))


def handles_of(kind: type) -> st.SearchStrategy[Value]:
    """Of open ones of this kind, if there are any."""
    return st.tuples(st.just("handle"), st.tuples(st.just(kind.__name__), st.integers(0, 5)))


children = st.tuples(st.just("child"), st.integers(0, 4))
buffers = st.tuples(st.just("memory"), st.integers(0, 2 * PAGE_SIZE))
deadlines = st.one_of(
    st.tuples(st.just("number"), st.integers(0, 3)),
    st.tuples(st.just("soon"), st.integers(0, 3 * TIME_SLICE)),
)
borders = st.tuples(
    st.just("number"),
    st.sampled_from(
        (
            PAGE_SIZE - 1, USER_START - 1, USER_START, BASE, BASE + 0x1FFF, DATA.start - 1,
            DATA.stop - PAGE_SIZE, DATA.stop - 1, DATA.stop, MMAP_TOP - 1, MMAP_TOP,
            MMAP_TOP - PAGE_SIZE, MMAP_TOP - 2 * PAGE_SIZE, STACK_TOP - STACK_LIMIT, STACK_TOP - 8,
            USER_END, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 47) - 1, 1 << 47,
            1 << 62, (1 << 63) - 1, 1 << 63, U64 - PAGE_SIZE, PRIVATE_MAP,
        )
    ),
)  # fmt: skip
wild = st.one_of(numbers, handles, buffers, borders)


def one_number(*values: int) -> st.SearchStrategy[Value]:
    return st.tuples(st.just("number"), st.sampled_from(values))


sizes = mostly(
    one_number(0, 1, 8, 32, 64, PAGE_SIZE, 2 * PAGE_SIZE, MESSAGE_MAX + 1, 1 << 20), borders
)
texts = st.tuples(
    st.just("text"),
    st.sampled_from(
        (b"\0", b"\xff\0", b"x" * 32 + b"\0", b"x" * 300, b"/\0", b"/no/file\0",
         b"/svsm.toml\0")
    ),
)  # fmt: skip
names = st.one_of(*(st.just(("text", name)) for name in (b"a\0", b"b\0")), texts)
paths = mostly(st.just(("text", PROGRAM.encode() + b"\0")), texts)


def struct_of(*fields: tuple[int, st.SearchStrategy[Value] | int]) -> st.SearchStrategy[Value]:
    """A structure of fields with their sizes in bytes."""
    values = (st.just(("number", v)) if isinstance(v, int) else v for _, v in fields)
    sizes = [size for size, _ in fields]
    return st.tuples(
        st.just("struct"),
        st.tuples(*values).map(lambda each: tuple(zip(sizes, each, strict=True))),
    )


strings = struct_of((8, texts), (8, texts | numbers), (8, 0))
moved = handles_of(Event) | handles_of(SharedMemory) | handles_of(ChannelEnd)
watched = handles_of(IpcObject)
messages = struct_of(
    (4, MESSAGE.size), (4, one_number(0, 1, 64, 65, 1000, MESSAGE_MAX, MESSAGE_MAX + 1)),
    (8, buffers), (8, one_number(0, 1, 2, 3)), (4, one_number(0, 0, 0, 1, 1, 2, 4, 5)),
    (4, moved), (4, moved), (4, moved), (4, moved), (4, 0),
)  # fmt: skip
wanted = mostly(one_number(*range(10)), one_number(16))
items = struct_of(*3 * ((4, watched), (4, wanted), (8, 0)))
spawns = struct_of(
    (4, SPAWN.size), (4, one_number(0, 10, 20, 40, 100)), (4, one_number(0, 1, 3)),
    (4, one_number(0, 1, 3, 31, 32)), (8, 0),
)  # fmt: skip
answers = struct_of(
    (4, ANSWER.size), (4, one_number(0, 0, 1, 2)), (8, one_number(0, 1, 2, 3, 4)),
    (8, wild), (8, wild), (8, wild), (8, wild),
)  # fmt: skip
times = struct_of((8, one_number(0, 0, -1, 1)), (8, one_number(0, 1000, 999_999_999, 1 << 32)))
vectors = struct_of((8, buffers), (8, sizes), (8, buffers | wild), (8, sizes))

mappings = one_number(0, *DATA[::PAGE_SIZE], MMAP_TOP - PAGE_SIZE, MMAP_TOP - 4 * PAGE_SIZE)

PARAMETERS: Final = (
    ("svsm_message *", messages), ("svsm_wait_item *", items), ("svsm_spawn *", spawns),
    ("svsm_answer *", answers), ("timespec *duration", times), ("iovec *", vectors),
    ("char *const *", mostly(st.just(("number", 0)), strings)), ("*path", paths), ("*name", names),
    ("*address", mappings | borders), ("*end", borders), ("*", buffers), ("size", sizes),
    ("long address", mappings | borders), ("deadline", deadlines), ("pid", children),
    ("prot", one_number(*range(9), 3, 3, 3)),
    ("int flags", one_number(0x22, 1, 2, 0, 0x21, 0x12, 0x32, 0x11, 0x10_0022, 0x40)),
    ("count", mostly(one_number(1, 2, 3), one_number(0, 17))),
    ("int number", one_number(NUMBER, NUMBER + 1)),
    ("est", one_number(0, 1, 2)), ("token", one_number(0, 1, 2, 3)),
    ("directory", st.just(("number", -100))), ("offset", one_number(0, 0, PAGE_SIZE, 7)),
    ("priority", one_number(0, 1, 2, 3)), ("clock", one_number(0, 7, 8)),
    ("signal", one_number(9, 0, 15)), ("code", one_number(0x1002, 0x1003, 1)),
    ("int fd", handles_of(File) | handles_of(SharedMemory)),
    ("int channel", handles_of(ChannelEnd)),
    ("int event", handles_of(Event)), ("int service", handles_of(Service)),
    ("int protocol", handles_of(ProtocolPort)), ("int handle", handles_of(IpcObject)),
)  # fmt: skip
"""What a parameter of the table should be like, by the first part of its text that fits."""


def arguments_of(number: int) -> st.SearchStrategy[tuple[Value, ...]]:
    """Sensible ones, with some among them that are not."""
    info = CALLS.get(number)
    found = []
    for text in () if info is None else info.arguments:
        likely = next((values for part, values in PARAMETERS if part in text), numbers)
        found.append(mostly(likely, wild))
    return st.tuples(*found, *[wild] * (6 - len(found)))


ENDS: Final = (NUMBERS["exit"], NUMBERS["exit_group"])
usual = st.sampled_from([n for n in CALLS if n not in (NUMBERS["svsm_batch"], *ENDS)])
others = st.sampled_from((*ENDS, 4, 999, U64, 1 << 32 | 77, 3 << 32 | 6, 4 << 32, 1 << 63))
plain = mostly(usual, others).flatmap(
    lambda number: st.tuples(st.just(number), arguments_of(number))
)


def batch_of(calls: list[Call]) -> Call:
    fields = []
    for number, arguments in calls:
        fields += [
            (8, ("number", number)),
            *((8, value) for value in arguments),
            (8, ("number", 7)),
        ]
    values = (("struct", tuple(fields)), ("number", len(calls)), ("number", len(calls) & 1))
    return NUMBERS["svsm_batch"], values


batches = st.lists(plain, max_size=3).map(batch_of)
calls = mostly(plain, batches)

cpus = st.integers(0, CPUS - 1)
steps = mostly(
    st.tuples(st.just("call"), cpus, calls),
    st.tuples(st.just("turn"), cpus, st.integers(0, 2 * TIME_SLICE)),
    st.tuples(st.just("fault"), cpus, st.tuples(buffers | borders, st.integers(0, 31))),
    st.tuples(st.just("exception"), cpus, st.sampled_from((0, 1, 6, 13, 29))),
    st.tuples(st.just("kill"), cpus, st.integers(0, 9)),
    st.tuples(st.just("guest"), cpus, st.integers(0, 3)),
    st.tuples(st.just("memory"), cpus, st.integers(0, 9)),
)

BEGINNING: Final[tuple[Call, ...]] = (
    (NUMBERS["svsm_channel_create"], (("memory", 0),)),
    (NUMBERS["svsm_event_create"], ()),
    (NUMBERS["svsm_memory_create"], (("number", 2 * PAGE_SIZE),)),
    (NUMBERS["svsm_service_register"], (("text", b"a\0"),)),
    (NUMBERS["svsm_protocol_register"], (("number", NUMBER), ("number", 1), ("number", 1))),
)

# The world -----------------------------------------------------------------------------------


class World:
    """Three programs of different rights, their children, and a guest on each CPU."""

    def __init__(self) -> None:
        self.system = UserSystem()
        self.system.on_result = self.check_result
        self.quotas: list[Quota] = []
        self.wrong: list[tuple[int | str, int]] = []
        self._place = 0
        self._beginning: dict[Process, list[Call]] = {}
        self._asked = [0] * CPUS
        self.start_programs()
        for cpu in self.system.cpus:
            cpu.world = GuestWorld(cpu.apic_id, Gpa(0), Gpa(0))
            task = self.system.scheduler.start(
                cpu, "guest", self.guest(cpu), affinity=frozenset({cpu.apic_id})
            )
            task.killable, task.gives_way = False, True

    def start_programs(self) -> None:
        """All that should be there, and are not (any more)."""
        there = {process.task.name for process in self.system.alive}
        limits = Limits(pages=80, children=3)
        for name in sorted(PROGRAMS.keys() - there):
            process = self.system.start(name, PROGRAMS[name], ("a", "b"), (NUMBER,), limits)
            self._beginning[process] = list(BEGINNING)

    def next_call(self, process: Process, call: Call) -> Call:
        """At first each makes one object of each kind, as far as it may."""
        left = self._beginning.get(process)
        return left.pop(0) if left else call

    def guest(self, cpu: PerCpu) -> Handler[int]:
        """Calls the module, the same or another call, whenever the host lets it."""
        while True:
            port = self.system.served.get(NUMBER)
            if port is not None:
                yield from port.ask(cpu, Request(NUMBER << 32, self._asked[cpu.apic_id]))
            yield Block(self.system.scheduler.resumed(cpu.apic_id))

    # Arguments ---------------------------------------------------------------------------

    def resolve(self, process: Process, value: Value) -> int:
        match value:
            case "number", int(number):
                return number & U64
            case "handle", (str(kind), int(index)):
                of_kind = [
                    handle
                    for handle, target in process.handles
                    if kind in {base.__name__ for base in type(target).mro()}
                ]
                return of_kind[index % len(of_kind)] if of_kind else index
            case "child", int(index):
                family = [process.task.number, *process.children]
                return family[index % len(family)]
            case "memory", int(offset):
                return DATA.start + offset
            case "soon", int(ticks):
                return max(port.ticks for port in self.system.ports) + ticks
            case "text", bytes(text):
                return self.place(process, text)
            case "struct", tuple(fields):
                raw = b"".join(
                    (self.resolve(process, each) & (1 << 8 * size) - 1).to_bytes(size, "little")
                    for size, each in fields
                )
                return self.place(process, raw)
        raise AssertionError(value)

    def place(self, process: Process, raw: bytes) -> int:
        """The program writes something into its memory, if it still has that, and a page for it."""
        size = -(-len(raw) // 16) * 16
        if self._place + size > len(SCRATCH):
            self._place = 0
        where, self._place = SCRATCH.start + self._place, self._place + size
        try:
            process.space.write(process.cpu, where, raw)
        except CallFailed:
            pass
        return where

    # Steps ---------------------------------------------------------------------------------

    def act(self, kind: str, apic_id: int, value: Any) -> None:
        system = self.system
        if system.running(apic_id) is None:
            system.resume(apic_id)
        process = system.running(apic_id)
        match kind, value:
            case "turn", int(ticks):
                system.pass_time(ticks)
                system.turn(apic_id)
            case "kill", int(index) if system.alive:
                victim = system.alive[index % len(system.alive)]
                system.processes.kill(system.cpus[apic_id], victim)
            case "guest", int(what):
                self._asked[apic_id] += what & 1
                if what & 2:
                    system.cpus[apic_id].world = GuestWorld(apic_id, Gpa(0), Gpa(0))
            case "memory", int(left):
                system.pages.left = left
            case _ if process is None:
                pass
            case "call", _:
                number, values = self.next_call(process, value)
                arguments = [self.resolve(process, each) for each in values]
                system.call(apic_id, number, *arguments)
            case "fault", (address, int(code)):
                system.ports[apic_id].cr2 = self.resolve(process, address)
                system.leave(apic_id, PAGE_FAULT, code | 4)
            case "exception", int(vector):
                system.leave(apic_id, vector)
        assert not self.wrong
        self.check_quotas()
        if system.pages.left is None:
            self.start_programs()

    # Checks --------------------------------------------------------------------------------

    def check_one(self, number: int, result: int) -> None:
        """Not asserted here: this is called by the core, which would panic."""
        info = CALLS.get(number)
        allowed = (Errno.ENOSYS,) if info is None else info.errors
        if (result < 0 or info is None) and -result not in allowed:
            self.wrong.append((number if info is None else info.name, result))

    def check_result(self, process: Process, frame: TrapFrame, result: int) -> None:
        self.check_one(frame.rax, result)
        if frame.rax != NUMBERS["svsm_batch"]:
            return
        for index in range(result):
            where = frame.rdi + index * BATCH_ENTRY.size
            try:
                raw = process.space.read(process.cpu, where, BATCH_ENTRY.size)
            except CallFailed:
                return  # it has unmapped them
            number, *_, answer = BATCH_ENTRY.unpack(raw)
            if not process.exiting:
                self.check_one(number, signed(answer))

    def check_quotas(self) -> None:
        known = set(map(id, self.quotas))
        self.quotas += [p.quota for p in self.system.alive if id(p.quota) not in known]
        for quota in self.quotas:
            assert 0 <= quota.used <= quota.limit
        for process in self.system.alive:
            held = {id(t): t for _, t in process.handles if isinstance(t, IpcObject)}.values()
            made = sum(each._npages for each in held if each._quota is process.quota)
            assert process.quota.used >= made + process.space.table.tables

    def end(self) -> None:
        self.system.pages.left = None
        self.system.end()
        assert all(quota.used == 0 for quota in self.quotas)


class Calls(RuleBasedStateMachine):
    """One step after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(action=steps)
    def act(self, action: tuple[str, int, Any]) -> None:
        self.world.act(*action)

    def teardown(self) -> None:
        self.world.end()


Calls.TestCase.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestCalls = Calls.TestCase
