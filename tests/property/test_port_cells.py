# SPDX-License-Identifier: MIT
"""The ports that native code answers: guest and devices can't tell it from Python's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.host import port_cells
from svsmd.snp.exits import Exit, Vmgexit
from svsmd.snp.ghcb import GhcbExit, IoioInfo
from svsmd.snp.types import PAGE_SIZE
from svsmd.snp.vmcb import Vmcb
from tests.fake_silicon import GHCB_GPA, Rig

THR, IER, FCR, LCR, MCR, LSR = 0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FD
COUNTER, CONTROL, SYSTEM_CONTROL = 0x42, 0x43, 0x61
MODE_0 = 0xB0


@dataclasses.dataclass(frozen=True)
class Access:
    """A port access, and what is wrong with its GHCB."""

    port: int
    value: int | None = None
    """What OUT writes; None for IN."""
    address_size: int = 8
    spoil: str = ""
    ticks: int = 0
    """How long the guest computes before it."""


SPOILERS: dict[str, Callable[[Rig], None]] = {
    "version 1": lambda rig: setattr(rig.ghcb, "protocol_version", 1),
    "version 9": lambda rig: setattr(rig.ghcb, "protocol_version", 9),
    "usage": lambda rig: setattr(rig.ghcb, "ghcb_usage", 1),
    "nothing valid": lambda rig: rig.ghcb.clear_valid(),
    "not registered": lambda rig: setattr(rig.world.vmcb, "ghcb_msr", GHCB_GPA + PAGE_SIZE),
}

often = st.sampled_from(
    [Access(LSR), Access(THR, 0x41), Access(COUNTER), Access(LSR, address_size=0)]
)
sometimes = st.builds(
    Access,
    port=st.sampled_from([THR, IER, FCR, LCR, MCR, LSR, COUNTER, CONTROL, SYSTEM_CONTROL]),
    value=st.none() | st.sampled_from([0, 1, 2, 3, 0x0B, 0x10, 0x80, 0xFF, MODE_0, 0xB4, 0xE8]),
    address_size=st.sampled_from([0, 2, 4, 8]),
    spoil=st.sampled_from(["", "", "", *SPOILERS]),
    ticks=st.sampled_from([0, 1, 900, 12_345]),
)
typed = st.binary(max_size=20)
accesses = st.lists(often | sometimes, max_size=40)


def play(rig: Rig, rounds: Sequence[tuple[bytes, Sequence[Access]]]) -> list[object]:
    """What the guest sees, access by access, and what the host has at the end of each round."""
    seen: list[object] = []

    def guest(access: Access, vmcb: Vmcb) -> Exit:
        seen.append(bytes(rig.ghcb.memory))
        seen.append(rig.silicon.clock.now)
        rig.silicon.clock.now += access.ticks
        rig.ghcb.clear_valid()
        vmcb.ghcb_msr = GHCB_GPA
        info = IoioInfo(
            port=access.port, is_in=access.value is None, string=False, rep=False, size=1,
            address_size=access.address_size, segment=0,
        )  # fmt: skip
        rig.ghcb.set_request(GhcbExit.SVM_EXIT_IOIO, info.encode())
        if access.value is not None:
            rig.ghcb.rax = access.value
        if access.spoil:
            SPOILERS[access.spoil](rig)
        return Vmgexit()

    rig.register_ghcb()
    for text, batch in rounds:
        rig.platform.uart.receive(text)
        rig.silicon.script.extend(partial(guest, access) for access in batch)
        while rig.silicon.script:
            rig.hypervisor.step(rig.silicon.clock.now + 500)
        uart, counter = rig.platform.uart.state, rig.platform.pit.channels[2].state
        seen += [dataclasses.asdict(uart), dataclasses.asdict(counter), bytes(rig.console)]
    return seen


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(typed, accesses), min_size=1, max_size=4))
def test_nobody_can_tell(rounds: list[tuple[bytes, list[Access]]]) -> None:
    assert play(Rig(native=True), rounds) == play(Rig(), rounds)


def test_what_a_booting_kernel_polls_is_served() -> None:
    """The property above would hold as well if nothing ever were."""
    rig = Rig(native=True)
    boot = [
        Access(SYSTEM_CONTROL, 1), Access(CONTROL, MODE_0), Access(COUNTER, 0xFF),
        Access(COUNTER, 0xFF), *[Access(COUNTER, ticks=3)] * 100,
        *[Access(LSR), Access(THR, 0x2A)] * 100,
    ]  # fmt: skip
    play(rig, [(b"", boot)])
    cells = rig.hypervisor.port_cells
    assert cells is not None
    # All but the first four; the first VMGEXIT behind each deadline is Python's.
    assert 290 <= cells.served <= 300
    assert rig.console == b"*" * 100


def test_a_full_buffer_loses_nothing() -> None:
    rig = Rig(native=True)
    text = [Access(THR, n & 0xFF) for n in range(10_000)]
    rig.register_ghcb()
    play(rig, [(b"", [Access(LSR), *text])])
    assert rig.console == bytes(n & 0xFF for n in range(10_000))


def test_without_the_library_python_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_cells, "native_library", lambda: Path("/nowhere/port_cells.so"))
    rig = Rig(native=True)
    assert rig.hypervisor.port_cells is None
    play(rig, [(b"", [Access(THR, 0x41)])])
    assert rig.console == b"A"
