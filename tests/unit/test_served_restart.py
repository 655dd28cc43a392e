# SPDX-License-Identifier: MIT
"""Requests of a guest that starts again: nobody answers them, and the new guest has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from svsmd.core import costs
from svsmd.core.gate import NestedPageFault
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmResult
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.rmp import GUEST_ASID, RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from tests.fake_vmpl0 import FakeVmpl0
from tests.unit.test_core_restart import offer, reset
from tests.unit.test_served_protocol import (
    BUFFER,
    CALL,
    NUMBER,
    OTHER_CAA,
    OTHER_VMSA,
    Module,
    begin,
    expire,
    other_vcpu,
)

OLD, NEW = 0xBAD, 0x900D
ROUNDS = (2, 3)
"""Numbers of the restarts; the first one finds fw_cfg, for which it keeps some pages."""


@pytest.fixture
def machine() -> FakeVmpl0:
    machine = FakeVmpl0()
    machine.boot()
    restart(machine, 1)
    return machine


@pytest.fixture
def module(machine: FakeVmpl0) -> Iterator[Module]:
    """A program that serves, and of which nothing is left."""
    assert machine.core.machine is not None
    pages = machine.core.machine.pages
    free = pages.statistics().free
    module = Module(machine)
    assert module.call("protocol_register", NUMBER, 1, 1) == 0
    module.space.write(module.cpu, module.buffer, bytes(2 * PAGE_SIZE))
    used = module.quota.used
    yield module
    assert module.quota.used == used
    module.end()
    assert (module.quota.used, pages.statistics().free) == (0, free)
    machine.check_security()


def restart(machine: FakeVmpl0, count: int, between: Callable[[], None] = lambda: None) -> None:
    assert reset(machine, offer(count), between) == "guest"
    assert machine.core.log.lines[-1].startswith("guest starts at")


def delete_other(machine: FakeVmpl0) -> None:
    delete = SvsmCoreCall.SVSM_CORE_DELETE_VCPU
    assert machine.call(delete, OTHER_VMSA).rax == SvsmResult.SVSM_SUCCESS


def other_call(machine: FakeVmpl0) -> None:
    """The second vCPU makes a call, and waits."""
    machine.begin_call(CALL, 1, 2, 3, gpa=OTHER_VMSA, caa=OTHER_CAA)
    assert machine.run(1) == "halt"


def next_token(module: Module) -> int:
    """That of a request that was not received."""
    return module.served[NUMBER]._last_token


def check_cancelled(module: Module, token: int) -> None:
    """Whatever the program does with a request fails."""
    for name in ("guest_read", "guest_write"):
        assert module.call(name, 0, token, BUFFER, module.buffer, 4) == -Errno.ECANCELED
    assert module.answer(0, token, 0, OLD) == -Errno.ECANCELED


def check_served(machine: FakeVmpl0, module: Module, vcpu: int) -> None:
    """A call of the new guest has an answer of its own."""
    assert module.call("protocol_receive", 0, module.buffer, 1) == -Errno.EAGAIN
    if vcpu:
        machine.begin_call(CALL, 1, 2, 3, gpa=OTHER_VMSA, caa=OTHER_CAA)
    else:
        begin(machine)
    assert machine.run(vcpu) == "halt"
    _, token, rcx, *_, apic_id, _ = module.receive(0)
    assert (rcx, apic_id) == (1, vcpu)
    assert module.call("guest_read", 0, token, BUFFER, module.buffer, 4) == 4
    assert module.answer(0, token, 0, NEW) == 0
    assert machine.run(vcpu) == "guest"
    gpa = OTHER_VMSA if vcpu else machine.vmsas[0, 2]
    assert (machine.vmsa(gpa).rax, machine.vmsa(gpa).rcx) == (SvsmResult.SVSM_SUCCESS, NEW)


@pytest.mark.parametrize("received", [False, True])
def test_a_vcpu_that_waits_when_the_guest_starts_again(
    machine: FakeVmpl0, module: Module, received: bool
) -> None:
    for count in ROUNDS:
        other_vcpu(machine)
        other_call(machine)
        token = module.receive(0)[1] if received else next_token(module)
        restart(machine, count)
        check_cancelled(module, token)
        # The second vCPU's task may still wait for the old answer, which does no harm.
        machine.write_vmsa(OTHER_VMSA)
        create = SvsmCoreCall.SVSM_CORE_CREATE_VCPU
        assert machine.call(create, OTHER_VMSA, OTHER_CAA, 1).rax == SvsmResult.SVSM_SUCCESS
        assert machine.run(1) == "halt"
        check_cancelled(module, token)
        machine.ports[1].ticks += costs.MODULE_CALL_BUDGET
        assert machine.run(1) == "guest"
        check_served(machine, module, 1)
        delete_other(machine)


@pytest.mark.parametrize("state", ["pending", "received", "answered"])
def test_a_call_that_was_incomplete_when_the_guest_starts_again(
    machine: FakeVmpl0, module: Module, state: str
) -> None:
    for count in ROUNDS:
        begin(machine)
        assert machine.run(0) == "halt"
        token = next_token(module) if state == "pending" else module.receive(0)[1]
        expire(machine)
        if state == "answered":
            assert module.answer(0, token, 0, OLD) == 0
        restart(machine, count)
        check_cancelled(module, token)
        check_served(machine, module, 0)


def test_the_boot_cpu_waits_when_the_host_is_asked_again(
    machine: FakeVmpl0, module: Module
) -> None:
    """A host may refuse to run the guest that it has not reset: its call comes first."""
    for count in ROUNDS:
        state = begin(machine)
        assert machine.run(0) == "halt"
        assert module.answer(0, module.receive(0)[1], 0, NEW) == 0
        answers = []
        restart(machine, count, lambda: answers.append(state.rcx))  # noqa: B023
        assert answers == [NEW]
        check_served(machine, module, 0)


@pytest.mark.parametrize("name", ["guest_read", "guest_write"])
def test_memory_of_the_guest_is_in_use_when_it_starts_again(
    machine: FakeVmpl0, module: Module, name: str
) -> None:
    """The page at hand is waited for; the next one is not the old guest's any more."""
    module.cpu = machine.core.cpus[1]
    for count in ROUNDS:
        other_vcpu(machine)
        other_call(machine)
        token = module.receive(0)[1]
        arguments = (0, token, BUFFER, module.buffer, 2 * PAGE_SIZE, 0)
        transfer = module._functions[f"svsm_{name}"](cast("Any", module), arguments)
        assert not isinstance(transfer, int)
        machine.put(BUFFER, b"data of the guest")
        rounds = 0

        def finish() -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 300:
                assert machine.get(BUFFER, 4) == b"data", "the guest's page is not touched yet"
                machine.checks.remove(finish)
                with pytest.raises(CallFailed, match="ECANCELED"):
                    transfer.send(0)  # noqa: B023

        with the_host_takes(machine, BUFFER):
            assert isinstance(next(transfer), NestedPageFault)
        machine.checks.append(finish)
        restart(machine, count)
        assert rounds == 300
        assert machine.get(BUFFER, PAGE_SIZE) == bytes(PAGE_SIZE)
        check_cancelled(module, token)
        assert not module.memory._locks
        module.cpu = machine.core.cpus[0]
        check_served(machine, module, 0)
        module.cpu = machine.core.cpus[1]
        machine.ports[1].ticks += costs.MODULE_CALL_BUDGET
        assert machine.run(1) == "halt"


@contextmanager
def the_host_takes(machine: FakeVmpl0, gpa: int) -> Iterator[None]:
    """A page is not there for a while; nothing is lost of it."""
    base = gpa & -HUGE_PAGE_SIZE
    machine.rmp.psmash(Spa(base))
    entry = machine.rmp.lookup(gpa)
    assert entry is not None
    machine.rmp.rmpupdate(Spa(gpa), RmpUpdate())
    yield
    state = RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(gpa), GUEST_ASID)
    machine.rmp.rmpupdate(Spa(gpa), state)
    machine.rmp.firmware_update(Spa(gpa), validated=True)
