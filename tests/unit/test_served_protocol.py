# SPDX-License-Identifier: MIT
"""Protocols that programs serve: who waits for what, and what becomes of it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from svsmd.core import costs
from svsmd.core.calls import MODULE_PROTOCOLS
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.ipc.objects import Ready
from svsmd.core.ipc.served_protocol import ProtocolPort, ServedProtocols
from svsmd.core.percpu import PerCpu
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmResult
from svsmd.core.syscalls.dispatch import Function
from svsmd.core.syscalls.protocol import (
    ANSWER,
    GUEST_TRANSFER_MAX,
    REQUEST,
    ProtocolCalls,
)
from svsmd.core.tasks.address_space import Access, AddressSpace, Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.handles import HandleTable
from svsmd.core.tasks.process import Capability, Program
from svsmd.snp.types import PAGE_SIZE
from svsmd.snp.vmsa import Vmsa
from tests.fake_vmpl0 import (
    GUEST_CAA,
    GUEST_VMPL,
    LAUNCH_INFO,
    RAM_SIZE,
    SVSM_BASE,
    FakeVmpl0,
)

NUMBER = MODULE_PROTOCOLS.start
CALL = NUMBER << 32 | 3
QUERY = SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL
OTHER_VMSA, OTHER_CAA = 0x40_1000, 0x40_2000
BUFFER = 0x50_0000
ALL = Capability.SERVE_PROTOCOL | Capability.GUEST_MEMORY


class Module:
    """A program of a fake machine: what the calls of class 3 know as a `Process`."""

    def __init__(self, machine: FakeVmpl0, capabilities: Capability = ALL) -> None:
        core = machine.core
        assert core._machine is not None
        assert core._loop is not None
        self.machine = machine
        self.memory: GuestMemory = core._machine.memory
        self.served = cast("ServedProtocols", core._loop._served)
        self.cpu: PerCpu = core.cpus[0]
        self.quota = Quota(64)
        self.space = AddressSpace(self.cpu, core._machine.pages, self.quota)
        self.handles = HandleTable()
        self.program = Program(
            "module", cast("Any", None), (), capabilities=capabilities,
            protocols=frozenset({NUMBER, 0}),
        )  # fmt: skip
        self.buffer = self.space.map(self.cpu, None, 16 * PAGE_SIZE, Access.READ | Access.WRITE)
        self._functions: dict[str, Function] = ProtocolCalls(self.served, self.memory).functions

    def call(self, name: str, *arguments: int) -> int:
        """A system call that does not have to wait; its result."""
        values = cast("Any", (*arguments, 0, 0, 0, 0, 0, 0)[:6])
        try:
            result = self._functions[f"svsm_{name}"](cast("Any", self), values)
            return result if isinstance(result, int) else self.machine.drive(0, result)
        except CallFailed as error:
            return -error.errno

    def receive(self, handle: int) -> tuple[int, ...]:
        """Call, token, RCX, RDX, R8, R9, APIC id, VMPL of the next request."""
        assert self.call("protocol_receive", handle, self.buffer, 1) == 0
        size, *fields = REQUEST.unpack(self.space.read(self.cpu, self.buffer, REQUEST.size))
        assert size == REQUEST.size
        return tuple(fields)

    def answer(self, handle: int, token: int, *registers: int, flags: int = 0) -> int:
        values = (*registers, 0, 0, 0, 0)[:4]
        raw = ANSWER.pack(ANSWER.size, flags, token, *values)
        self.space.write(self.cpu, self.buffer, raw)
        return self.call("protocol_answer", handle, self.buffer)

    def end(self) -> None:
        """It gives everything back, as a process that ends."""
        self.handles.close_all(self.cpu)
        self.space.free(self.cpu)


@pytest.fixture
def machine() -> FakeVmpl0:
    machine = FakeVmpl0()
    machine.boot()
    return machine


@pytest.fixture
def module(machine: FakeVmpl0) -> Module:
    module = Module(machine)
    assert module.call("protocol_register", NUMBER, 1, 4) == 0
    return module


def begin(machine: FakeVmpl0, rax: int = CALL, rcx: int = 1) -> Vmsa:
    """The boot CPU makes a call."""
    state = machine.begin_call(rax, rcx, 2, 3, gpa=machine.vmsas[0, GUEST_VMPL], caa=GUEST_CAA)
    state.r9 = 4
    return state


def expire(machine: FakeVmpl0) -> None:
    """The budget of a call is spent; the guest runs again."""
    machine.ports[0].ticks += costs.MODULE_CALL_BUDGET
    assert machine.run(0) == "guest"


def registers(state: Vmsa) -> tuple[int, int, int, int]:
    return state.rax, state.rcx, state.rdx, state.r8


def test_an_answer_comes_to_the_guest(machine: FakeVmpl0, module: Module) -> None:
    state = begin(machine)
    assert machine.run(0) == "halt"
    call, token, *rest = module.receive(0)
    assert (call, rest) == (3, [1, 2, 3, 4, 0, GUEST_VMPL])
    answer = ((1 << 64) - 1, 1 << 63, 0xABC, 0xDEF)
    assert module.answer(0, token, *answer) == 0
    assert machine.run(0) == "guest"
    assert registers(state) == answer
    assert (state.r9, state.rip) == (4, state.rip)
    assert module.answer(0, token) == -Errno.ECANCELED
    assert module.call("protocol_receive", 0, module.buffer, 1) == -Errno.EAGAIN
    machine.check_security()


def test_an_answer_before_the_vcpu_waits_is_not_lost(machine: FakeVmpl0, module: Module) -> None:
    state = begin(machine)
    machine.run(0)
    expire(machine)
    assert registers(state) == (SvsmResult.SVSM_ERR_INCOMPLETE, 1, 2, 3)
    assert module.answer(0, module.receive(0)[1], 0, 7) == 0
    state = begin(machine)
    assert machine.run(0) == "guest"
    assert registers(state) == (0, 7, 0, 0)
    # The next one is a new one.
    begin(machine)
    assert machine.run(0) == "halt"


def test_the_same_call_again_is_the_same_request(machine: FakeVmpl0, module: Module) -> None:
    begin(machine)
    machine.run(0)
    _, token, *_ = module.receive(0)
    for _ in range(3):
        expire(machine)
        # Another protocol in between, as in an interrupt handler, changes nothing.
        assert machine.call(QUERY, 1).rax == SvsmResult.SVSM_SUCCESS
        begin(machine)
        assert machine.run(0) == "halt"
        assert module.call("protocol_receive", 0, module.buffer, 1) == -Errno.EAGAIN
    assert module.answer(0, token, 0, 9) == 0
    assert machine.run(0) == "guest"
    assert machine.vmsa(machine.vmsas[0, GUEST_VMPL]).rcx == 9


@pytest.mark.parametrize("received", [False, True])
def test_another_call_gives_the_first_one_up(
    machine: FakeVmpl0, module: Module, received: bool
) -> None:
    begin(machine)
    machine.run(0)
    old = module.receive(0)[1] if received else 1
    expire(machine)
    state = begin(machine, rcx=99)
    assert machine.run(0) == "halt"
    assert module.answer(0, old, 0, 0xBAD) == -Errno.ECANCELED
    assert module.call("guest_read", 0, old, BUFFER, module.buffer, 4) == -Errno.ECANCELED
    _, token, rcx, *_ = module.receive(0)
    assert rcx == 99
    assert module.call("protocol_receive", 0, module.buffer, 1) == -Errno.EAGAIN
    assert module.answer(0, token, 0, 1) == 0
    assert machine.run(0) == "guest"
    assert registers(state) == (0, 1, 0, 0)


@pytest.mark.parametrize("received", [False, True])
def test_a_module_that_dies(machine: FakeVmpl0, module: Module, received: bool) -> None:
    state = begin(machine)
    machine.run(0)
    if received:
        module.receive(0)
    module.end()
    assert machine.run(0) == "guest"
    assert registers(state) == (SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL, 1, 2, 3)
    assert machine.call(CALL, 1).rax == SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL
    assert machine.call(QUERY, NUMBER << 32 | 1).rcx == 0
    assert not module.served
    # Another one may take its place.
    assert module.call("protocol_register", NUMBER, 2, 2) == 0
    assert machine.call(QUERY, NUMBER << 32 | 2).rcx == 2 << 32 | 2


def test_an_answer_counts_though_the_module_dies_at_once(
    machine: FakeVmpl0, module: Module
) -> None:
    state = begin(machine)
    machine.run(0)
    assert module.answer(0, module.receive(0)[1], 0, 5) == 0
    module.end()
    assert machine.run(0) == "guest"
    assert registers(state) == (0, 5, 0, 0)


def test_the_guest_learns_of_it(machine: FakeVmpl0, module: Module) -> None:
    for version, answer in ((0, 0), (1, 4 << 32 | 1), (4, 4 << 32 | 1), (5, 0)):
        assert machine.call(QUERY, NUMBER << 32 | version).rcx == answer


def test_who_may_serve(machine: FakeVmpl0, module: Module) -> None:
    register = module.call
    assert register("protocol_register", NUMBER, 1, 1) == -Errno.EEXIST
    assert register("protocol_register", NUMBER + 1, 1, 1) == -Errno.EPERM
    assert register("protocol_register", 0, 0, 1) == -Errno.EINVAL
    assert register("protocol_register", 0, 2, 1) == -Errno.EINVAL
    other = Module(machine, Capability.GUEST_MEMORY)
    assert other.call("protocol_register", 0, 1, 1) == -Errno.EPERM


def no_window(cpu: PerCpu) -> bool:
    """Whether a CPU has nothing mapped but its GHCB."""
    return all(window.shared for window in cpu.windows)


def other_vcpu(machine: FakeVmpl0) -> None:
    """The guest has a second vCPU."""
    machine.write_vmsa(OTHER_VMSA)
    create = SvsmCoreCall.SVSM_CORE_CREATE_VCPU
    assert machine.call(create, OTHER_VMSA, OTHER_CAA, 1).rax == SvsmResult.SVSM_SUCCESS
    assert machine.run(1) == "guest"


def two_calls(machine: FakeVmpl0, number: int) -> tuple[Vmsa, Vmsa]:
    """Both vCPUs make the same call, and wait."""
    rax = QUERY if number == 0 else number << 32 | 3
    states = (
        begin(machine, rax),
        machine.begin_call(rax, 1, 2, 3, gpa=OTHER_VMSA, caa=OTHER_CAA),
    )
    assert (machine.run(0), machine.run(1)) == ("halt", "halt")
    return states


def test_who_waits_holds_nothing(machine: FakeVmpl0, module: Module) -> None:
    """And may be deleted by another vCPU."""
    other_vcpu(machine)
    machine.begin_call(CALL, 1, gpa=OTHER_VMSA, caa=OTHER_CAA)
    assert machine.run(1) == "halt"
    assert no_window(machine.core.cpus[1])
    assert not module.memory.is_any_locked(module.cpu)
    token = module.receive(0)[1]
    delete = SvsmCoreCall.SVSM_CORE_DELETE_VCPU
    assert machine.call(delete, OTHER_VMSA).rax == SvsmResult.SVSM_SUCCESS
    before = machine.get(OTHER_VMSA, PAGE_SIZE)
    assert module.call("guest_write", 0, token, BUFFER, module.buffer, 4) == -Errno.ECANCELED
    assert module.answer(0, token, 0xBAD) == -Errno.ECANCELED
    machine.ports[1].ticks += costs.MODULE_CALL_BUDGET
    assert machine.run(1) == "halt"
    assert machine.get(OTHER_VMSA, PAGE_SIZE) == before, "it is the guest's page again"
    machine.check_security()


def test_a_request_of_a_vcpu_that_is_gone_is_not_received(
    machine: FakeVmpl0, module: Module
) -> None:
    other_vcpu(machine)
    machine.begin_call(CALL, 1, gpa=OTHER_VMSA, caa=OTHER_CAA)
    machine.run(1)
    machine.call(SvsmCoreCall.SVSM_CORE_DELETE_VCPU, OTHER_VMSA)
    assert module.served[NUMBER].ready is Ready.READABLE
    assert module.call("protocol_receive", 0, module.buffer, 1) == -Errno.EAGAIN


def test_a_vcpu_that_is_made_anew_does_not_get_the_old_answer(
    machine: FakeVmpl0, module: Module
) -> None:
    other_vcpu(machine)
    machine.begin_call(CALL, 1, gpa=OTHER_VMSA, caa=OTHER_CAA)
    machine.run(1)
    old = module.receive(0)[1]
    machine.call(SvsmCoreCall.SVSM_CORE_DELETE_VCPU, OTHER_VMSA)
    machine.write_vmsa(OTHER_VMSA)
    machine.call(SvsmCoreCall.SVSM_CORE_CREATE_VCPU, OTHER_VMSA, OTHER_CAA, 1)
    machine.ports[1].ticks += costs.MODULE_CALL_BUDGET
    assert machine.run(1) == "guest"
    state = machine.begin_call(CALL, 1, gpa=OTHER_VMSA, caa=OTHER_CAA)
    assert machine.run(1) == "halt"
    assert module.answer(0, old, 0, 0xBAD) == -Errno.ECANCELED
    assert module.answer(0, module.receive(0)[1], 0, 6) == 0
    assert machine.run(1) == "guest"
    assert state.rcx == 6


def test_two_vcpus_wait_and_are_answered_the_other_way_round(
    machine: FakeVmpl0, module: Module
) -> None:
    other_vcpu(machine)
    first = begin(machine)
    machine.run(0)
    second = machine.begin_call(CALL, 1, gpa=OTHER_VMSA, caa=OTHER_CAA)
    machine.run(1)
    tokens = [module.receive(0)[1] for _ in range(2)]
    for token, value in zip(reversed(tokens), (20, 10), strict=True):
        assert module.answer(0, token, 0, value) == 0
    assert (machine.run(0), machine.run(1)) == ("guest", "guest")
    assert (first.rcx, second.rcx) == (10, 20)


@pytest.mark.parametrize("received", [0, 1, 2])
@pytest.mark.parametrize("number", [NUMBER, 0])
def test_a_module_that_dies_while_two_vcpus_wait(
    machine: FakeVmpl0, received: int, number: int
) -> None:
    other_vcpu(machine)
    assert machine.core.machine is not None
    pages = machine.core.machine.pages
    for _ in range(2):
        free = pages.statistics().free
        module = Module(machine)
        module.space.write(module.cpu, module.buffer, b"touched")
        used = module.quota.used
        assert module.call("protocol_register", number, 1, 1) == 0
        states = two_calls(machine, number)
        for _ in range(received):
            module.receive(0)
        module.handles.close_all(module.cpu)
        assert (machine.run(0), machine.run(1)) == ("guest", "guest")
        for state in states:
            if number == NUMBER:
                answer = (SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL, 1, 2, 3)
            else:
                answer = (SvsmResult.SVSM_SUCCESS, 1 << 32 | 1, 2, 3)
            assert registers(state) == answer
        assert (module.quota.used, len(module.handles), len(module.served)) == (used, 0, 0)
        # The next one of that number has both.
        assert module.call("protocol_register", number, 1, 1) == 0
        states = two_calls(machine, number)
        for value, token in enumerate([module.receive(0)[1] for _ in states]):
            assert module.answer(0, token, 0, value) == 0
        assert (machine.run(0), machine.run(1)) == ("guest", "guest")
        assert [state.rcx for state in states] == [0, 1]
        module.end()
        assert pages.statistics().free == free
    machine.check_security()


def test_the_core_protocol_may_be_served_too(machine: FakeVmpl0, module: Module) -> None:
    handle = module.call("protocol_register", 0, 1, 2)
    assert handle == 1
    state = begin(machine, QUERY, rcx=2)
    assert machine.run(0) == "halt"
    assert module.answer(handle, module.receive(handle)[1], flags=1) == 0
    assert machine.run(0) == "guest"
    assert registers(state) == (0, 2 << 32 | 1, 2, 3), "the SVSM's own answer, with its versions"
    state = begin(machine, QUERY, rcx=1)
    machine.run(0)
    assert module.answer(handle, module.receive(handle)[1], 0x8000_1234) == 0
    machine.run(0)
    assert state.rax == 0x8000_1234
    begin(machine, QUERY, rcx=1)
    machine.run(0)
    module.end()
    assert machine.run(0) == "guest"
    assert machine.vmsa(machine.vmsas[0, GUEST_VMPL]).rcx == 1 << 32 | 1, "the SVSM's own again"


def test_a_default_without_a_protocol_of_the_svsm(machine: FakeVmpl0, module: Module) -> None:
    state = begin(machine)
    machine.run(0)
    assert module.answer(0, module.receive(0)[1], flags=1) == 0
    assert machine.run(0) == "guest"
    assert state.rax == SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL


def test_bad_answers(machine: FakeVmpl0, module: Module) -> None:
    begin(machine)
    machine.run(0)
    _, token, *_ = module.receive(0)
    assert module.answer(0, token, flags=2) == -Errno.EINVAL
    assert module.answer(0, token + 1) == -Errno.ECANCELED
    assert module.answer(0, 0) == -Errno.ECANCELED
    assert module.answer(7, token) == -Errno.EBADF
    module.space.write(module.cpu, module.buffer, ANSWER.pack(99, 0, token, 0, 0, 0, 0))
    assert module.call("protocol_answer", 0, module.buffer) == -Errno.EINVAL
    for where in (0, SVSM_BASE, 1 << 47):
        assert module.call("protocol_answer", 0, where) == -Errno.EFAULT
        assert module.call("protocol_receive", 0, where, 1) == -Errno.EFAULT


# The guest's memory --------------------------------------------------------------------------


@pytest.fixture
def token(machine: FakeVmpl0, module: Module) -> int:
    begin(machine)
    machine.run(0)
    return module.receive(0)[1]


def test_the_memory_that_a_call_names(machine: FakeVmpl0, module: Module, token: int) -> None:
    where = BUFFER + PAGE_SIZE - 5
    machine.put(where, b"0123456789")
    assert module.call("guest_read", 0, token, where, module.buffer, 10) == 10
    assert module.space.read(module.cpu, module.buffer, 10) == b"0123456789"
    module.space.write(module.cpu, module.buffer, b"abcdefghij")
    assert module.call("guest_write", 0, token, where, module.buffer, 9) == 9
    assert machine.get(where, 10) == b"abcdefghi9"
    assert module.call("guest_read", 0, token, where, module.buffer, 0) == 0
    assert module.call("guest_write", 0, token, where, 0, 0) == 0
    assert module.call("guest_read", 0, token, GUEST_CAA, module.buffer, 1) == 1
    assert no_window(module.cpu)
    assert not module.memory._locks


@pytest.mark.parametrize(
    "gpa",
    [SVSM_BASE, LAUNCH_INFO, RAM_SIZE, RAM_SIZE - 1, 1 << 51, (1 << 64) - 1, (1 << 64) - 4096],
)
@pytest.mark.parametrize("name", ["guest_read", "guest_write"])
def test_memory_that_is_not_the_guests(module: Module, token: int, name: str, gpa: int) -> None:
    assert module.call(name, 0, token, gpa, module.buffer, 4) == -Errno.EACCES


def test_vmsas_and_pages_without_validation(machine: FakeVmpl0, module: Module, token: int) -> None:
    expire(machine)
    other_vcpu(machine)
    begin(machine)
    machine.run(0)
    module.memory.validated.set(module.cpu, BUFFER, 1, False)
    own = machine.vmsas[0, GUEST_VMPL]
    for gpa in (OTHER_VMSA, own, BUFFER):
        for name in ("guest_read", "guest_write"):
            assert module.call(name, 0, token, gpa, module.buffer, 4) == -Errno.EACCES


def test_a_page_that_another_vcpu_is_changing(module: Module, token: int) -> None:
    with module.memory.locked(module.machine.core.cpus[1], BUFFER):
        for name in ("guest_read", "guest_write"):
            assert module.call(name, 0, token, BUFFER, module.buffer, 4) == -Errno.EBUSY


def test_limits_of_a_transfer(machine: FakeVmpl0, module: Module, token: int) -> None:
    for size in (GUEST_TRANSFER_MAX + 1, 1 << 63):
        assert module.call("guest_read", 0, token, BUFFER, module.buffer, size) == -Errno.EINVAL
    size = GUEST_TRANSFER_MAX
    assert module.call("guest_read", 0, token, BUFFER, module.buffer, size) == size
    for where in (0, 0x1000, 1 << 47):
        for name in ("guest_read", "guest_write"):
            assert module.call(name, 0, token, BUFFER, where, 4) == -Errno.EFAULT
    assert module.answer(0, token) == 0
    assert module.call("guest_read", 0, token, BUFFER, module.buffer, 4) == -Errno.ECANCELED


def test_the_guests_memory_takes_a_capability(machine: FakeVmpl0) -> None:
    module = Module(machine, Capability.SERVE_PROTOCOL)
    assert module.call("protocol_register", NUMBER, 1, 1) == 0
    begin(machine)
    machine.run(0)
    _, token, *_ = module.receive(0)
    for name in ("guest_read", "guest_write"):
        assert module.call(name, 0, token, BUFFER, module.buffer, 4) == -Errno.EPERM


def test_ports_do_not_move(module: Module) -> None:
    port = module.handles.get(0, ProtocolPort)
    assert not port.movable
    assert not port.duplicable
