# SPDX-License-Identifier: MIT
"""What a handler is resumed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Never, cast

import pytest

from svsmd.core.gate import (
    CpuEffect,
    EnterUser,
    Gate,
    GateReason,
    Handler,
    NestedPageFault,
    Preempt,
    Vmgexit,
    Wait,
)
from svsmd.core.port import GateCall
from svsmd.snp.faults import NestedFault


class Port:
    """Costs nothing."""

    def charge(self, ticks: int) -> None:
        """No clock."""


PORT = Port()
FAULT = NestedPageFault(NestedFault(0x1000, 0, "away"))


@dataclass
class Call:
    """The registers of one gate instruction."""

    rbx: int
    rax: int = 0
    rcx: int = 0
    rdx: int = 0
    rdi: int = 0
    vcpu: int = 0
    port: Port = PORT


class Rig:
    """A handler that yields these effects, and notes what comes back for them."""

    def __init__(self, *effects: CpuEffect) -> None:
        self.answers: list[int] = []
        self._effects = effects
        self._gate = Gate(lambda call: self._handler(), lambda: 0, self._on_panic)

    def _handler(self) -> Handler[Never]:
        for effect in self._effects:
            self.answers.append((yield effect))
        while True:
            yield Wait()

    @staticmethod
    def _on_panic(call: GateCall, error: Exception | None) -> None:
        raise AssertionError from error

    def entry(self, reason: GateReason, rax: int = 0, rdi: int = 0) -> None:
        self._gate.entry(cast("GateCall", Call(reason, rax, rdi=rdi)))


@pytest.mark.parametrize(
    ("effect", "reason", "registers", "answer"),
    [
        (Vmgexit(0x14), GateReason.VMGEXIT, {"rax": 0x15}, 0x15),
        (Wait(), GateReason.LOOP, {"rax": 1}, 1),
        (EnterUser(0x5000, 0), GateReason.USER, {"rdi": 0x5000, "rax": 39}, 0x5000),
    ],
)
def test_a_nested_page_fault_brings_nothing(
    effect: CpuEffect, reason: GateReason, registers: dict[str, int], answer: int
) -> None:
    """The gate instruction is restarted with the registers that it had before."""
    rig = Rig(effect, FAULT, FAULT, Preempt())
    rig.entry(GateReason.AP)
    for _ in range(2):
        with pytest.raises(NestedFault):
            rig.entry(reason, **registers)
    rig.entry(reason, **registers)
    rig.entry(GateReason.LOOP)
    assert rig.answers == [answer, 0, 0, 0]


def test_a_nested_page_fault_of_the_first_call() -> None:
    rig = Rig(FAULT, Vmgexit(0x14))
    with pytest.raises(NestedFault):
        rig.entry(GateReason.BOOT, rax=0x5000)
    rig.entry(GateReason.BOOT, rax=0x5000)
    rig.entry(GateReason.VMGEXIT, rax=0x15)
    assert rig.answers == [0, 0x15]
