# SPDX-License-Identifier: MIT
"""Debuggers come to a real machine, look, step, send garbage, and go or are lost, at any time.

None of them writes, so the machine ends where it ends without them, to the tick.
"""

import functools
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from svsmd.gdbstub.catchpoints import event_stop
from svsmd.gdbstub.rsp import Ack, Decoder, Nak, Need, Packet, RemoteProtocolError, encode
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import Exited, Signal, StopEvent, Stopped
from svsmd.runner import _STOP_REASONS, stop_signal
from svsmd.slice_end import DebugEvent, Ended
from svsmd.snp.events import SnpEvent
from tests.event_machine import HANDLER, EventMachine
from tests.unit.test_machine_target import CODE

_SLICES_MAX = 1000


class SliceRunner:
    """Run control without threads: the test says when a slice runs."""

    def __init__(self, world: EventMachine) -> None:
        self._machine = world.machine
        self.running = True
        self.on_stop: Callable[[StopEvent], None] | None = None
        self.after_slice: Callable[[], None] = lambda: None
        self.ended: Exited | None = None
        self._interruption: Stopped | None = None
        self._last: StopEvent = Stopped(1)

    def attach(self, on_stop: Callable[[StopEvent], None]) -> StopEvent | None:
        self.on_stop = on_stop
        if not self.running:
            return self.ended or self._last
        self._interruption = Stopped(1)
        return None

    def resume(self, *, at_once: bool = False) -> None:
        assert not self.running
        self.running = True

    def interrupt(self) -> None:
        self._interruption = Stopped(1, Signal.SIGINT)

    def detach(self, resume: bool) -> None:
        self.on_stop = None
        self.running = self.running or (resume and self.ended is None)

    def slice(self, ticks: int) -> None:
        """Run for some ticks, if the machine runs, and report what stops it."""
        if not self.running:
            return
        event: StopEvent | None = self._interruption
        match self._machine.run_slice(ticks):
            case Ended(code, _):
                event = self.ended = Exited(code)
            case DebugEvent(event=SnpEvent() as snp) if self.on_stop is not None:
                event = event_stop(snp)
            case DebugEvent(vcpu, kind, address) if self.on_stop is not None:
                event = Stopped(vcpu + 1, stop_signal(kind), _STOP_REASONS[kind], address)
        self.after_slice()
        if event is not None and (self.on_stop is not None or self.ended is not None):
            self._interruption = None
            self.running = False
            self._last = event
            if self.on_stop is not None:
                self.on_stop(event)


@functools.cache
def undisturbed() -> tuple[int, bytes]:
    """When a machine ends that nobody looks at, and the registers that it ends with."""
    world = EventMachine()
    assert world.run() is None
    return _end(world)


def _end(world: EventMachine) -> tuple[int, bytes]:
    return world.machine.clock_now, world.target.read_registers(world.target.threads()[0].id)


def _monitor(line: str) -> bytes:
    return b"qRcmd," + line.encode().hex().encode()


_addresses = st.sampled_from(
    [f"{CODE + n:x}".encode() for n in (0, 7, 0xC, 0x12, 0x40)] + [b"%x" % HANDLER, b"0", b"fffff"]
)
_looks = st.one_of(
    st.sampled_from(
        b"? g p10 p3c p5f qC qAttached qfThreadInfo qXfer:threads:read::0,1000 QStartNoAckMode "
        b"qXfer:features:read:target.xml:0,100 qXfer:osdata:read::0,1000 vCont? Hg1 Hgp1.1 Hc-1 "
        b"qXfer:osdata:read:rmp:0,400 QPassSignals:35;36 QPassSignals: QThreadSuffixSupported "
        b"qThreadStopInfo1 qHostInfo - +".split()
    ),
    st.sampled_from(["help", "why", "catch", "event", "catch pvalidate", "catch vc", "uncatch all",
                     "catch rmpadjust vmsa == 1", "catch vmgexit", "cpu", "breakpoints"]
                    ).map(_monitor),
    st.builds(lambda at: b"m" + at + b",20", _addresses),
    st.builds(lambda kind, at: kind + b"," + at + b",1",
              st.sampled_from([b"Z0", b"Z1", b"z0", b"z1"]), _addresses),
    st.builds(lambda kind, at: kind + b"," + at + b",8",
              st.sampled_from([b"Z2", b"Z3", b"Z4", b"z2", b"z3", b"z4"]), _addresses),
)  # fmt: skip
_runs = st.sampled_from([b"vCont;c", b"vCont;s:1", b"vCont;s:p1.1", b"c", b"s", b"vCont;C37;c",
                         b"vCont;r%x,%x:1" % (CODE, CODE + 0x100)])  # fmt: skip


class Sessions(RuleBasedStateMachine):
    """One client after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.world = EventMachine()
        self.runner = SliceRunner(self.world)
        self.session: Session | None = None
        self.sent = bytearray()

    def _stopped(self, event: StopEvent) -> None:
        if self.session is not None:
            self.sent += self.session.stopped(event)

    @precondition(lambda self: self.session is None)
    @rule(hello=st.sampled_from([b"qSupported:multiprocess+;swbreak+;hwbreak+", b"qSupported:"]))
    def connect(self, hello: bytes) -> None:
        arrived: list[StopEvent] = []
        held = self.runner.attach(arrived.append)
        was_running = held is None
        while held is None:
            self.runner.slice(1)
            held = arrived[0] if arrived else None
        self.runner.on_stop = self._stopped
        self.session = Session(self.world.target, self.runner, held, was_running=was_running)
        self._receive(encode(hello))

    @precondition(lambda self: self.session is not None)
    @rule(packet=st.one_of(_looks, _runs))
    def say(self, packet: bytes) -> None:
        self._receive(packet if packet in (b"+", b"-") else encode(packet))

    @precondition(lambda self: self.session is not None)
    @rule(data=st.one_of(st.binary(max_size=30), st.just(b"\x03"), st.just(b"$m")))
    def say_nonsense(self, data: bytes) -> None:
        self._receive(data)

    @rule(ticks=st.integers(1, 60))
    def run_on(self, ticks: int) -> None:
        self.runner.slice(ticks)

    @precondition(lambda self: self.session is not None)
    @rule()
    def connection_lost(self) -> None:
        assert self.session is not None
        self.session.close()
        self._released()

    def _receive(self, data: bytes) -> None:
        session = self.session
        assert session is not None
        session.receive_data(data)
        try:
            while (reply := session.next_reply()) is not None:
                self.sent += reply
        except RemoteProtocolError:
            session.close()
        if session.state in (State.LEAVING, State.DISCONNECTED):
            self._released()

    def _released(self) -> None:
        session = self.session
        assert session is not None
        for _ in range(_SLICES_MAX):
            if session.state is State.DISCONNECTED:
                break
            self.runner.slice(1)
        assert session.state is State.DISCONNECTED
        self.session = None
        assert self.runner.on_stop is None
        assert not self.world.machine.events.armed

    def teardown(self) -> None:
        if self.session is not None:
            self.session.close()
            self._released()
        decoder = Decoder()
        decoder.receive_data(bytes(self.sent) or b"+")
        while (event := decoder.next_event()) is not Need.DATA:
            assert isinstance(event, Packet | Ack | Nak), "what was sent is well-formed"
        self.runner.detach(resume=True)
        for _ in range(_SLICES_MAX):
            if self.runner.ended is not None:
                break
            self.runner.slice(1_000_000)
        assert self.runner.ended is not None
        assert _end(self.world) == undisturbed()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
