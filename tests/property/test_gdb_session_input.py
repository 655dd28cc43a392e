# SPDX-License-Identifier: MIT
"""Whatever a client sends, a session answers or gives the client up, and the machine survives."""

import gc
import tracemalloc
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.agent.packet import NO_OPTIONS
from svsmd.gdbstub.rsp import RemoteProtocolError, encode
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import BreakpointKind, Signal, StopEvent, Stopped, TargetError
from tests.debugger_input import DIALOGUES, check_framing, converse, pieces_of
from tests.fake_target import NOP, FakeMachine, FakeRunner
from tests.unit.test_gdb_processes import Worlds

_numbers = st.one_of(
    st.integers(0, 70).map(lambda n: b"%x" % n),
    st.sampled_from(
        [
            b"1000",
            b"2000",
            b"2ff8",
            b"ffffffffffffffff",
            b"-1",
            b"",
            b"p1.1",
            b"1_0",
            b"p3.1",
            b"p11.1",
            b"p3.-1",
            b"p-1.-1",
        ]
    ),
    st.integers(0, 1 << 70).map(lambda n: b"%x" % n),
)
_names = st.sampled_from(
    b"g G p P m x M X Z0 Z1 Z2 Z3 Z4 Z5 z0 z1 z2 z3 z4 ? c C s S vCont vCont? vCont;c vCont;s "
    b"vCont;r vCont;t vCont;s:1;c H Hg Hc T qSupported qC qAttached qfThreadInfo qsThreadInfo "
    b"qThreadExtraInfo qXfer:features:read:target.xml qXfer:threads:read: qRcmd D k vKill "
    b"QStartNoAckMode ! R vMustReplyEmpty qqemu.PhyMemMode Qqemu.PhyMemMode qSearch:memory qCRC "
    b"qXfer:osdata:read: qXfer:osdata:read:rmp qSupported:multiprocess+ vAttach;3 D;3 D;1 D;11 "
    b"Hgp3.1 vKill;1 vCont;c:p11.-1 vCont;s:p3.1 qXfer:exec-file:read: vFile:open vFile:pread:3 "
    b"QThreadSuffixSupported qHostInfo qProcessInfo qThreadStopInfo1 qThreadStopInfo "
    b"vFile:close:3 qSymbol Tp1.1 vFile:fstat vFile:open:2f7376736d2e656c66,0,0 "
    b"Z0,1008,1;X3,220127 Z1,100b,1;X6,260000220127 Z0,100b,1;cmds:0,Xd,22002200340000044869210027 "
    b"Z0,1008,1;X vCont;c:1 vCont;t vCont;s:2 QPassSignals:34 QNonStop:1 "
    b"qRcmd,72756e2d636f6e74726f6c qRcmd,72756e2d636f6e74726f6c2074616b65".split()
)
_separators = st.sampled_from([b"", b",", b":", b";", b"="])
_rest = st.one_of(_numbers, st.binary(max_size=12).map(lambda data: data.hex().encode()))
_bodies = st.one_of(
    st.builds(
        lambda name, parts: name + b"".join(a + b for a, b in parts),
        _names,
        st.lists(st.tuples(_separators, _rest), max_size=4),
    ),
    st.binary(max_size=20),
)
_pieces = st.one_of(
    _bodies.map(encode), st.sampled_from([b"\x03", b"+", b"-", b"$"]), st.binary(max_size=8)
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_pieces, max_size=20), st.booleans(), st.sampled_from([FakeMachine, Worlds]))
def test_any_input_is_answered_and_the_machine_is_released(
    pieces: list[bytes], was_running: bool, kind: type[FakeMachine]
) -> None:
    converse(pieces, kind(), was_running=was_running)


@pytest.mark.parametrize("path", sorted(DIALOGUES.glob("*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", [FakeMachine, Worlds])
def test_what_debuggers_say(path: Path, kind: type[FakeMachine]) -> None:
    converse(pieces_of(path.read_bytes()), kind())


_ROUNDS: Final = 300
_GROWTH: Final = 64 << 10
"""Bytes that `_ROUNDS` more rounds may keep: caches of the interpreter, and the like."""


@settings(max_examples=40, deadline=None)
@given(
    st.lists(_bodies.map(encode), min_size=1, max_size=6), st.sampled_from([FakeMachine, Worlds])
)
def test_the_same_again_takes_no_more_memory(pieces: list[bytes], kind: type[FakeMachine]) -> None:
    """Whatever a client repeats for ever: what is kept for it has a bound."""
    machine = kind()
    runner = FakeRunner(machine)

    def on_stop(event: StopEvent) -> None:
        session.stopped(event)

    stop = runner.attach(on_stop)
    assert stop is not None
    session = Session(machine, runner, stop, was_running=False)
    held = []
    tracemalloc.start()
    try:
        for _ in range(3):
            for _ in range(_ROUNDS):
                for piece in pieces:
                    session.receive_data(piece)
                    while session.next_reply() is not None:
                        pass
                    runner.slice(1)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[2] - held[1] < _GROWTH


class _Control:
    """Somebody else has the run control, and keeps it."""

    is_free = False

    def describe(self) -> str:
        return "somebody has it"

    def take(self, *, force: bool) -> None:
        raise TargetError("it is taken")

    def give(self) -> None:
        raise AssertionError("a reader has nothing to give")


@settings(max_examples=400, deadline=None)
@given(st.lists(_pieces, max_size=20), st.sampled_from([FakeMachine, Worlds]), st.booleans())
def test_whatever_a_reader_sends_the_machine_computes_the_same(
    pieces: list[bytes], kind: type[FakeMachine], running: bool
) -> None:
    machine, alone = kind(), kind()
    for each in (machine, alone):
        each.insert_breakpoint(0, BreakpointKind.HARDWARE, NOP, NO_OPTIONS, physical=False)
    runner = FakeRunner(machine)
    session = Session(
        machine, runner, Stopped(1), was_running=False, control=_Control(), in_control=False
    )
    sent: list[bytes] = []
    try:
        for piece in pieces:
            session.receive_data(piece)
            while (reply := session.next_reply()) is not None:
                sent.append(reply)
            if running:
                assert machine.run(7) == alone.run(7)
            if session.waits and running:
                sent.append(session.observe(Stopped(1, Signal.NONE)))
                assert not session.waits
    except RemoteProtocolError:
        pass
    session.close()
    assert session.state is State.DISCONNECTED
    assert runner.on_stop is None
    assert not runner.running
    assert machine.memory == alone.memory
    assert [vcpu.registers for vcpu in machine.vcpus.values()] == [
        vcpu.registers for vcpu in alone.vcpus.values()
    ]
    assert (machine.breakpoints, machine.options) == (alone.breakpoints, alone.options)
    assert not machine.watchpoints
    check_framing(sent)
