# SPDX-License-Identifier: MIT
"""What the session answers, packet by packet, with a fake machine behind it."""

import itertools
import struct

import pytest

from svsmd.gdbstub.packets import breakpoints, context, mem, monitor, regs, resume
from svsmd.gdbstub.rsp import (
    MAX_NOISE,
    Decoder,
    Need,
    Packet,
    RemoteProtocolError,
    encode,
)
from svsmd.gdbstub.session import (
    MAX_RETRANSMITS,
    TRANSITIONS,
    LocalProtocolError,
    Session,
    State,
    Trigger,
)
from svsmd.gdbstub.target import (
    ANY_WORLD,
    BreakpointKind,
    Exited,
    MonitorCommand,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    TargetError,
    ThreadId,
    WatchpointKind,
)
from svsmd.gdbstub.target_xml import REGISTER_NUMBERS, TARGET_XML
from tests.fake_target import (
    BASE,
    CODE,
    INC,
    JMP,
    LOOP,
    NOP,
    SIZE,
    FakeMachine,
    FakeRunner,
)

GDB_FEATURES = b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+;xmlRegisters=i386"


class Client:
    """A client in no-ack mode whose session is driven by hand."""

    def __init__(
        self, machine: FakeMachine | None = None, *, was_running: bool = False, hello: bytes = b""
    ) -> None:
        self.machine = machine or FakeMachine()
        self.runner = FakeRunner(self.machine)
        stop = self.runner.attach(self._on_stop)
        assert stop is not None
        self.session = Session(self.machine, self.runner, stop, was_running=was_running)
        self.stop_replies: list[bytes] = []
        assert self.raw(b"$QStartNoAckMode#b0") == b"+$OK#9a"
        if hello:
            self.ask(hello)

    def _on_stop(self, event: StopEvent) -> None:
        self.stop_replies.append(self.session.stopped(event))

    def raw(self, data: bytes) -> bytes:
        """Send bytes; all that comes back."""
        self.session.receive_data(data)
        return b"".join(iter(self.session.next_reply, None))

    def ask(self, body: bytes) -> bytes:
        """Send a packet; the body of the one packet that comes back."""
        return self._body(self.raw(encode(body)))

    def go(self, body: bytes = b"vCont;c", steps: int = 100) -> bytes | None:
        """Resume the machine; the stop reply, or None if it still runs after so many steps."""
        assert self.raw(encode(body)) == b""
        self.runner.slice(steps)
        return self._body(self.stop_replies.pop()) if self.stop_replies else None

    def is_in(self, state: State) -> bool:
        return self.session.state is state

    @staticmethod
    def _body(data: bytes) -> bytes:
        decoder = Decoder()
        decoder.receive_data(data)
        packet = decoder.next_event()
        assert isinstance(packet, Packet), data
        assert decoder.next_event() is Need.DATA
        return packet.body


@pytest.fixture
def client() -> Client:
    return Client()


def stop(
    pc: int, signal: Signal = Signal.SIGTRAP, extra: bytes = b"", *, tid: int = 1, rsp: int = 0x2FF8
) -> bytes:
    """A stop reply with rbp, rsp and rip in it."""
    registers = (
        f"06:{bytes(8).hex()};07:{struct.pack('<Q', rsp).hex()};10:{struct.pack('<Q', pc).hex()};"
    )
    return b"T%02x%bthread:%x;%b" % (signal, registers.encode(), tid, extra)


# Negotiation


def test_supported_features(client: Client) -> None:
    features = client.ask(GDB_FEATURES).split(b";")
    assert features[0] == b"PacketSize=20000"
    assert {
        b"QStartNoAckMode+",
        b"vContSupported+",
        b"qXfer:features:read+",
        b"qXfer:threads:read+",
        b"swbreak+",
        b"hwbreak+",
    } <= set(features)
    assert not any(feature.startswith((b"multiprocess", b"QNonStop")) for feature in features)


class BareMachine:
    """A target that has nothing optional."""

    def __init__(self) -> None:
        whole = FakeMachine()
        self.threads = whole.threads
        self.read_registers = whole.read_registers
        self.read_register = whole.read_register
        self.write_register = whole.write_register
        self.read_memory = whole.read_memory
        self.write_memory = whole.write_memory
        self.step = whole.step


def test_what_the_target_lacks_is_not_advertised() -> None:
    session = Session(BareMachine(), FakeRunner(FakeMachine()), Stopped(1), was_running=False)

    def ask(body: bytes) -> bytes:
        session.receive_data(encode(body))
        return session.next_reply() or b""

    assert b"swbreak" not in ask(GDB_FEATURES)
    for packet in (b"Z0,1000,1", b"z1,1000,1", b"Z2,2000,8", b"z4,2000,8", b"qRcmd,68"):
        assert ask(packet) == b"+$#00"
    session.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"vMustReplyEmpty",
        b"QCatchSyscalls:1",
        b"qTStatus",
        b"!",
        b"",
        b"\xff",
        b"q",
        b"Z9,0,0",
        b"vCont",
        b"qXfer:memory-map:read::0,10",
        b"qXfer:features:write:x:0:",
        b"vFile:setfs:0",
        b"R00",
    ],
)
def test_unknown_packets_get_the_empty_reply(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b""


def test_attached(client: Client) -> None:
    assert client.ask(b"qAttached") == b"1"


# Acknowledgements


def acknowledging_session() -> Session:
    machine = FakeMachine()
    return Session(machine, FakeRunner(machine), Stopped(1), was_running=False)


def test_acknowledgements_until_no_ack_mode() -> None:
    session = acknowledging_session()
    session.receive_data(b"$qC#b4+$QStartNoAckMode#b0+$qC#b4")
    assert list(iter(session.next_reply, None)) == [b"+$QC1#c5", b"+$OK#9a", b"$QC1#c5"]


def test_bad_checksum_gets_a_nak_and_nothing_is_done() -> None:
    session = acknowledging_session()
    session.receive_data(b"$D#00$qC#b4")
    assert list(iter(session.next_reply, None)) == [b"-", b"+$QC1#c5"]
    assert session.state is State.IDLE


def test_nak_gets_the_last_packet_again_so_many_times() -> None:
    session = acknowledging_session()
    session.receive_data(b"-$qC#b4")
    assert session.next_reply() == b"+$QC1#c5"
    session.receive_data(b"-" * (MAX_RETRANSMITS + 1))
    for _ in range(MAX_RETRANSMITS):
        assert session.next_reply() == b"$QC1#c5"
    with pytest.raises(RemoteProtocolError):
        session.next_reply()


def test_stray_bytes_are_ignored(client: Client) -> None:
    assert client.raw(b"\r\nhello$qC#b4\0") == b"$QC1#c5"


def test_noise_is_a_protocol_error(client: Client) -> None:
    with pytest.raises(RemoteProtocolError):
        client.raw(b"?" * MAX_NOISE)


# Registers


def test_read_all_registers(client: Client) -> None:
    data = bytes.fromhex(client.ask(b"g").decode())
    assert len(data) == 560
    assert struct.unpack_from("<Q", data, 128) == (LOOP,)


def test_write_all_registers_writes_what_differs(client: Client) -> None:
    written = []
    write = client.machine.write_register

    def write_register(thread: ThreadId, name: str, value: int) -> None:
        written.append(name)
        write(thread, name, value)

    client.machine.write_register = write_register  # type: ignore[method-assign]
    data = bytearray.fromhex(client.ask(b"g").decode())
    struct.pack_into("<Q", data, 8, 0x1234)
    data[276:292] = bytes(range(16))
    assert client.ask(b"G" + data.hex().encode()) == b"OK"
    assert written == ["rbx", "xmm0"]
    assert client.ask(b"g") == data.hex().encode()


@pytest.mark.parametrize("name", ["rax", "eflags", "st3", "xmm7", "gs_base", "cr3", "efer", "tr"])
def test_write_and_read_one_register(client: Client, name: str) -> None:
    number = REGISTER_NUMBERS[name]
    nbytes = {"eflags": 4, "efer": 4, "st3": 10, "xmm7": 16, "tr": 4}.get(name, 8)
    value = bytes(range(1, nbytes + 1)).hex().encode()
    assert client.ask(b"P%x=%b" % (number, value)) == b"OK"
    assert client.ask(b"p%x" % number) == value


def test_the_value_that_is_there_can_be_written_to_any_register(client: Client) -> None:
    """gdb puts all of them back when it has called a function."""

    def refuse(thread: ThreadId, name: str, value: int) -> None:
        raise TargetError(f"{name} cannot be written")

    client.machine.write_register = refuse  # type: ignore[method-assign]
    for name in ("cr0", "rip"):
        number = REGISTER_NUMBERS[name]
        value = client.ask(b"p%x" % number)
        assert client.ask(b"P%x=%b" % (number, value)) == b"OK"
        assert client.ask(b"P%x=%b" % (number, value[::-1])).startswith(b"E")


def test_orig_rax_takes_a_write_and_keeps_its_value(client: Client) -> None:
    number = REGISTER_NUMBERS["orig_rax"]
    assert client.ask(b"P%x=0000000000000000" % number) == b"OK"
    assert client.ask(b"p%x" % number) == b"f" * 16


@pytest.mark.parametrize(
    "packet",
    [
        b"p1000",
        b"pffffffffffffffff",
        b"p",
        b"p-1",
        b"p0x0",
        b"p 1",
        b"P0",
        b"P0=",
        b"P0=00",
        b"P0=000000000000000000",
        b"P0=zz00000000000000",
        b"P1000=0000000000000000",
        b"G",
        b"G00",
    ],
)
def test_malformed_register_packets(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b"E16"


def test_a_read_only_register_says_so(client: Client) -> None:
    packet = b"P%x=00000000" % REGISTER_NUMBERS["vmpl"]
    assert client.ask(packet) == b"E.the VMPL of a VMSA is fixed"


def test_a_value_that_is_there_can_be_written_anywhere(client: Client) -> None:
    """gdb puts registers back that it has not looked at in the meantime."""
    assert client.ask(b"P%x=02000000" % REGISTER_NUMBERS["vmpl"]) == b"OK"


def test_what_was_read_of_a_register_that_changes_by_itself_can_be_put_back(client: Client) -> None:
    """gdb does so after it has called a function, and after calls in calls."""
    number, registers = REGISTER_NUMBERS["vmpl"], client.machine.vcpus[1].registers
    told = []
    for value in (1, 2, 3):
        registers["vmpl"] = value
        told.append(client.ask(b"p%x" % number))
    for text in told:
        assert client.ask(b"P%x=%b" % (number, text)) == b"OK"
    assert registers["vmpl"] == 3
    assert client.ask(b"P%x=00000000" % number).startswith(b"E.")
    for value in range(4, 4 + regs.MAX_TOLD):
        registers["vmpl"] = value
        client.ask(b"p%x" % number)
    assert client.ask(b"P%x=%b" % (number, told[0])).startswith(b"E.")


def test_write_all_registers_with_a_selector_that_brings_a_base(client: Client) -> None:
    machine = client.machine
    write = machine.write_register

    def write_register(thread: ThreadId, name: str, value: int) -> None:
        write(thread, name, value)
        if name == "fs":
            write(thread, "fs_base", 0x5000)

    machine.write_register = write_register  # type: ignore[method-assign]
    data = bytearray.fromhex(client.ask(b"g").decode())
    data[156:160] = bytes.fromhex("2b000000")
    assert client.ask(b"G" + data.hex().encode()) == b"OK"
    assert client.ask(b"g") == data.hex().encode()


def test_write_all_registers_or_none(client: Client) -> None:
    machine = client.machine
    write = machine.write_register

    def write_register(thread: ThreadId, name: str, value: int) -> None:
        if name == "cs":
            raise TargetError("cs cannot be null")
        write(thread, name, value)

    machine.write_register = write_register  # type: ignore[method-assign]
    before = client.ask(b"g")
    data = bytearray.fromhex(before.decode())
    struct.pack_into("<Q", data, 8, 0x1234)
    data[140:144] = b"\x33\0\0\0"
    assert client.ask(b"G" + data.hex().encode()) == b"E0e"
    assert client.ask(b"g") == before


# Memory


def test_read_memory(client: Client) -> None:
    assert client.ask(b"m1000,e") == CODE.hex().encode()
    assert client.ask(b"x1000,e") == b"b" + CODE
    assert client.ask(b"x0,0") == b"b"


def test_a_read_ends_where_memory_ends(client: Client) -> None:
    end = BASE + SIZE
    assert client.ask(b"m%x,20" % (end - 16)) == b"0" * 32
    assert client.ask(b"x%x,20" % (end - 16)) == b"b" + bytes(16)
    assert client.ask(b"m%x,1" % end) == b"E0e"


def test_reads_are_limited_to_a_packet() -> None:
    class Large(FakeMachine):
        def read_memory(self, thread: ThreadId, gva: int, length: int) -> bytes:
            return bytes(length)

    client = Client(Large())
    assert len(client.ask(b"m0,ffffffff")) == 2 * mem.MAX_HEX_READ
    assert len(client.ask(b"x0,ffffffff")) == 1 + mem.MAX_BINARY_READ


def test_write_memory(client: Client) -> None:
    assert client.ask(b"M2000,4:01020304") == b"OK"
    assert client.ask(b"X2004,4:#$}*") == b"OK"
    assert client.ask(b"m2000,8") == b"01020304" + b"#$}*".hex().encode()
    assert client.ask(b"X2000,0:") == b"OK"
    assert client.ask(b"M2fff,2:0000") == b"E0e"


@pytest.mark.parametrize(
    "packet",
    [
        b"m",
        b"m1000",
        b"m1000,",
        b"m,1",
        b"m1000,1,1",
        b"m-1,1",
        b"m1_0,1",
        b"m10000000000000000,1",
        b"mffffffffffffffff,2",
        b"x",
        b"M1000,2:00",
        b"M1000,1:0",
        b"M1000,1:zz",
        b"X1000,2:a",
    ],
)
def test_malformed_memory_packets(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b"E16"


# Breakpoints and watchpoints


def test_breakpoints_are_inserted_and_removed_once(client: Client) -> None:
    for _ in range(2):
        assert client.ask(b"Z0,1008,1") == b"OK"
    assert client.ask(b"Z1,1008,1") == b"OK"
    assert client.machine.breakpoints == [
        (ANY_WORLD, BreakpointKind.SOFTWARE, INC),
        (ANY_WORLD, BreakpointKind.HARDWARE, INC),
    ]
    for _ in range(2):
        assert client.ask(b"z0,1008,1") == b"OK"
    assert client.machine.breakpoints == [(ANY_WORLD, BreakpointKind.HARDWARE, INC)]


def test_watchpoints_are_inserted_and_removed_once(client: Client) -> None:
    for _ in range(2):
        for digit in (b"2", b"3", b"4"):
            assert client.ask(b"Z%b,2000,8" % digit) == b"OK"
    assert [kind for _, kind, *_ in client.machine.watchpoints] == list(WatchpointKind)
    for _ in range(2):
        assert client.ask(b"z3,2000,8") == b"OK"
    assert len(client.machine.watchpoints) == 2


def test_a_refused_watchpoint_is_not_remembered(client: Client) -> None:
    assert client.ask(b"Z2,2000,10") == b"E0e"
    assert client.ask(b"z2,2000,10") == b"OK"


@pytest.mark.parametrize(
    "packet",
    [
        b"Z0,1000",
        b"Z0",
        b"Z0,,1",
        b"Z2,2000,0",
        b"Z2,ffffffffffffffff,2",
        b"Z0,1000,1;X1,00",
        b"Z0,1000,1;cmds:0,X1,00",
        b"z0,1000,x",
    ],
)
def test_malformed_breakpoints(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b"E16"


def test_the_number_of_breakpoints_is_bounded(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakpoints, "MAX_POINTS", 2)
    for packet in (b"Z0,1,1", b"Z1,1,1", b"Z2,1,1", b"Z3,1,1"):
        assert client.ask(packet) == b"OK"
    for packet in (b"Z0,2,1", b"Z2,2,1"):
        assert client.ask(packet) == b"E1c"
    assert client.ask(b"z0,1,1") == b"OK"
    assert client.ask(b"Z0,2,1") == b"OK"


# Execution


def test_why_it_stands_still(client: Client) -> None:
    assert client.ask(b"?") == stop(LOOP)


@pytest.mark.parametrize(
    ("kind", "features", "extra"),
    [
        (b"0", GDB_FEATURES, b"swbreak:;"),
        (b"1", GDB_FEATURES, b"hwbreak:;"),
        (b"0", b"", b""),  # never announced
    ],
)
def test_breakpoint_stop(kind: bytes, features: bytes, extra: bytes) -> None:
    client = Client(hello=features)
    assert client.ask(b"Z%b,1008,1" % kind) == b"OK"
    assert client.go() == stop(INC, extra=extra)
    assert client.is_in(State.IDLE)
    assert client.ask(b"m2000,1") == b"01"
    assert client.go() == stop(INC, extra=extra)
    assert client.ask(b"m2000,1") == b"02"


@pytest.mark.parametrize(
    ("digit", "name"), [(b"2", b"watch"), (b"3", b"rwatch"), (b"4", b"awatch")]
)
def test_watchpoint_stop(client: Client, digit: bytes, name: bytes) -> None:
    assert client.ask(b"Z%b,2004,4" % digit) == b"OK"
    assert client.go() == stop(INC, extra=name + b":2004;")


@pytest.mark.parametrize(
    "packet", [b"vCont;s:1", b"vCont;s:1;c", b"vCont;S05:1;c:-1", b"s", b"S05"]
)
def test_step(client: Client, packet: bytes) -> None:
    for pc in (INC, NOP, JMP, LOOP):
        assert client.ask(packet) == stop(pc)
    assert client.ask(b"p10") == struct.pack("<Q", LOOP).hex().encode()


def test_step_over_a_watched_access(client: Client) -> None:
    assert client.ask(b"Z2,2000,8") == b"OK"
    assert client.ask(b"vCont;s:1") == stop(INC, extra=b"watch:2000;")


def test_step_of_another_thread_makes_it_current(client: Client) -> None:
    assert client.ask(b"vCont;s:2") == stop(INC, tid=2)
    assert client.ask(b"qC") == b"QC2"
    assert client.ask(b"Hc1") == b"OK"
    assert client.ask(b"s") == stop(INC, tid=1)


class RangingMachine(FakeMachine):
    """Goes on with range steps by itself."""

    def step_within(
        self, thread: ThreadId, within: range, most: int, *, alone: bool = False
    ) -> tuple[StopEvent | None, int]:
        event, more = self.step(thread, alone=alone), 0
        while event == Stopped(thread.tid) and more < most and self.pc(thread) in within:
            if self.arrived(thread):
                return Stopped(thread.tid, reason=StopReason.SWBREAK), more
            event, more = self.step(thread, alone=alone), more + 1
        return event, more

    def pc(self, thread: ThreadId) -> int:
        return self.vcpus[thread.tid].registers["rip"]


@pytest.fixture(params=[FakeMachine, RangingMachine])
def stepper(request: pytest.FixtureRequest) -> Client:
    """Of a machine that knows no ranges, and of one that does."""
    return Client(request.param())


def test_range_step_ends_outside_of_the_range(stepper: Client) -> None:
    assert stepper.ask(b"vCont;r1000,100c:1;c") == stop(JMP)


def test_range_step_ends_at_a_breakpoint(stepper: Client) -> None:
    assert stepper.ask(b"Z0,100b,1") == b"OK"
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(NOP)


def test_range_step_ends_at_another_stop(stepper: Client) -> None:
    assert stepper.ask(b"Z2,2000,8") == b"OK"
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(INC, extra=b"watch:2000;")


def test_range_step_is_bounded(stepper: Client) -> None:
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(LOOP)
    most = resume.MAX_RANGE_STEPS
    ranging = isinstance(stepper.machine, RangingMachine)
    rounds = (most if ranging else most // resume.STEP_COST) // 4
    assert stepper.ask(b"m2000,8") == struct.pack("<Q", rounds).hex().encode()


def test_ctrl_c_ends_a_range_step_that_takes_long(stepper: Client) -> None:
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(LOOP)
    assert stepper.raw(b"\x03") == b""
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(LOOP, Signal.SIGINT)
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(LOOP)


def test_ctrl_c_behind_a_range_step_is_ignored(stepper: Client) -> None:
    assert stepper.ask(b"vCont;r1000,100c:1") == stop(JMP)
    assert stepper.raw(b"\x03") == b""
    assert stepper.ask(b"vCont;r1000,1010:1") == stop(JMP)


def test_a_stop_that_comes_at_once() -> None:
    """It is the answer to the packet, behind what was printed until then."""
    client = Client()
    client.runner.sprint_steps = 100
    assert client.ask(b"Z0,1008,1") == b"OK"
    client.machine.console.write(b"printed")
    assert client.raw(encode(b"vCont;c")) == encode(b"O" + b"printed".hex().encode()) + encode(
        stop(INC)
    )
    assert client.is_in(State.IDLE)
    assert client.ask(b"z0,1008,1") == b"OK"
    assert client.raw(encode(b"vCont;c")) == b""
    assert client.is_in(State.RUNNING)
    client.runner.interrupt()
    client.runner.slice(4)
    assert len(client.stop_replies) == 1


def test_continue_at_an_address() -> None:
    for packet in (b"c1008", b"C05;1008"):
        client = Client()
        assert client.ask(b"Z0,1000,1") == b"OK"
        assert client.go(packet) == stop(LOOP)
        assert client.ask(b"m2000,1") == b"00"  # the increment was skipped
    assert Client().ask(b"s100b") == stop(JMP)


@pytest.mark.parametrize(
    "packet",
    [
        b"vCont;",
        b"vCont;x",
        b"vCont;c:p1.1",
        b"vCont;S",
        b"vCont;r1000",
        b"vCont;s:",
        b"vCont;c;;c",
        b"cxyz",
        b"vCont;s:99999999999999999",
    ],
)
def test_malformed_resumption(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b"E16"
    assert client.is_in(State.IDLE)


def test_unknown_threads(client: Client) -> None:
    for packet in (b"vCont;s:3", b"vCont;c:3", b"Hg3", b"Hc9", b"T3", b"qThreadExtraInfo,3"):
        assert client.ask(packet) == b"E03"


def test_vcont_actions(client: Client) -> None:
    assert client.ask(b"vCont?") == b"vCont;c;C;s;S;t;r"
    assert client.ask(b"vCont;t") == b"T00thread:1;"


def test_interrupt(client: Client) -> None:
    assert client.go() is None
    assert client.is_in(State.RUNNING)
    assert client.raw(b"\x03\x03") == b""
    assert client.is_in(State.INTERRUPTING)
    client.runner.slice(3)
    assert client.stop_replies == [encode(stop(JMP, Signal.SIGINT))]
    assert client.is_in(State.IDLE)


def test_interrupt_by_vcont(client: Client) -> None:
    assert client.go() is None
    assert client.raw(encode(b"vCont;t")) == b""
    assert client.is_in(State.INTERRUPTING)


def test_interrupt_of_a_machine_that_stands_still_is_ignored(client: Client) -> None:
    assert client.raw(b"\x03") == b""
    assert client.go() is None  # it was not kept for later either


def test_a_breakpoint_that_comes_before_the_interruption_wins(client: Client) -> None:
    assert client.ask(b"Z0,1008,1") == b"OK"
    assert client.go(steps=0) is None
    assert client.raw(b"\x03") == b""
    client.runner.slice(100)
    assert client.stop_replies == [encode(stop(INC))]


@pytest.mark.parametrize(
    "packet", [b"g", b"m1000,1", b"M2000,1:00", b"Z0,1000,1", b"?", b"vCont;c"]
)
def test_a_running_machine_is_not_touched(packet: bytes) -> None:
    client = Client()
    assert client.go() is None
    assert client.ask(packet) == b"E10"
    client = Client(hello=b"qSupported:error-message+")
    assert client.go() is None
    assert client.ask(packet) == b"E.the machine is running"


def test_the_end_of_the_machine(client: Client) -> None:
    client.machine.ended = Exited(3)
    assert client.go() == b"W03"
    for packet in (b"?", b"vCont;c", b"vCont;s:1", b"vCont;r0,1:1", b"c", b"s"):
        assert client.ask(packet) == b"W03"


def test_the_end_of_the_machine_while_it_stands_still(client: Client) -> None:
    assert client.session.stopped(Exited(5)) == b""
    assert client.ask(b"vCont;c") == b"W05"


# Threads


def test_threads(client: Client) -> None:
    assert client.ask(b"qfThreadInfo") == b"m1,2"
    assert client.ask(b"qsThreadInfo") == b"l"
    assert client.ask(b"T2") == b"OK"
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()) == b"vcpu1: VMPL2, halted"


def test_selected_thread(client: Client) -> None:
    client.machine.vcpus[2].registers["rax"] = 0x22
    assert client.ask(b"Hg2") == b"OK"
    assert client.ask(b"p0") == b"2200000000000000"
    assert client.ask(b"Hg0") == b"OK"  # any: stays
    assert client.ask(b"qC") == b"QC2"
    assert client.ask(b"Hg-1") == b"OK"
    assert client.ask(b"Hg1") == b"OK"
    assert client.ask(b"p0") == b"0000000000000000"
    assert client.ask(b"Hx1") == b"E16"


def test_thread_list_document(client: Client) -> None:
    assert client.ask(b"qXfer:threads:read::0,1000") == (
        b'l<?xml version="1.0"?><threads>'
        b'<thread id="1" name="vcpu0">VMPL2 &amp; running</thread>'
        b'<thread id="2" name="vcpu1">VMPL2, halted</thread></threads>'
    )


def test_target_description_in_parts(client: Client) -> None:
    document = b""
    while True:
        part = client.ask(b"qXfer:features:read:target.xml:%x,3e8" % len(document))
        document += part[1:]
        if part[:1] == b"l":
            break
        assert len(part) == 1001
    assert document == TARGET_XML
    assert client.ask(b"qXfer:features:read:target.xml:ffffffff,10") == b"l"
    assert client.ask(b"qXfer:features:read:other.xml:0,10") == b"E16"
    assert client.ask(b"qXfer:features:read:target.xml:0") == b"E16"


# monitor


def monitor_output(client: Client, line: str) -> str:
    return bytes.fromhex(client.ask(b"qRcmd," + line.encode().hex().encode()).decode()).decode()


def test_monitor(client: Client) -> None:
    assert monitor_output(client, "echo a  b") == "a b\n"
    assert monitor_output(client, "echo/4xb 0") == "/4xb 0\n"
    assert monitor_output(client, "fail") == "fail: that does not work\n"
    assert monitor_output(client, "x") == "unknown command 'x'; try: monitor help\n"
    assert client.ask(b"qRcmd,6563686f") == b"OK"  # echo of nothing
    assert client.ask(b"qRcmd,6") == b"E16"


@pytest.mark.parametrize("line", ["help", "", "  "])
def test_monitor_help(client: Client, line: str) -> None:
    assert monitor_output(client, line) == (
        "help [COMMAND]  list the commands, or explain one\n"
        "echo [WORD...]  print the words\n"
        "fail            fail\n"
    )


def test_monitor_help_of_one_command(client: Client) -> None:
    assert monitor_output(client, "help echo") == "echo [WORD...]  print the words\n"
    assert monitor_output(client, "help x") == "unknown command 'x'; try: monitor help\n"


def test_long_output_comes_in_pieces_and_has_an_end() -> None:
    class Talker(FakeMachine):
        @property
        def monitor_commands(self) -> dict[str, MonitorCommand]:
            return {"talk": MonitorCommand("", "", lambda args: "x" * int(args[0]))}

    client = Client(Talker())
    assert console_output(client, "talk 100000") == [
        "x" * context.MAX_CONSOLE,
        "x" * (100_000 - context.MAX_CONSOLE) + "\n",
    ]
    # What is said just fits: the last packet is the reply, never an empty one, which means OK.
    length = context.MAX_CONSOLE - 1
    assert console_output(client, f"talk {length}") == ["x" * length + "\n"]
    output = "".join(console_output(client, "talk 10000000"))
    assert len(output) == monitor.MAX_OUTPUT
    assert output.endswith("x\n[output truncated]\n")
    assert monitor_output(client, "talk 1") == "x\n"


def console_output(client: Client, line: str) -> list[str]:
    """What a command prints, packet by packet: console packets, and the reply."""
    decoder = Decoder()
    decoder.receive_data(client.raw(encode(b"qRcmd," + line.encode().hex().encode())))
    bodies = []
    while isinstance(packet := decoder.next_event(), Packet):
        bodies.append(packet.body)
    assert all(body[:1] == b"O" for body in bodies[:-1])
    texts = [*(body[1:] for body in bodies[:-1]), bodies[-1]]
    return [bytes.fromhex(text.decode()).decode() for text in texts]


# The end of a session


@pytest.mark.parametrize(
    ("packet", "reply"), [(b"D", b"$OK#9a"), (b"vKill;a410", b"$OK#9a"), (b"k", b"")]
)
def test_detach(packet: bytes, reply: bytes) -> None:
    client = Client(was_running=True)
    client.ask(b"Z0,1000,1")
    client.ask(b"Z2,2000,8")
    assert client.raw(encode(packet) + b"$g#67") == reply
    assert client.is_in(State.DISCONNECTED)
    assert client.runner.running
    assert client.runner.on_stop is None
    assert client.machine.breakpoints == []
    assert client.machine.watchpoints == []


def test_a_machine_that_was_never_started_stays_so(client: Client) -> None:
    client.ask(b"vCont;s:1")
    assert client.raw(b"$D#44") == b"$OK#9a"
    assert not client.runner.running


def test_a_machine_that_was_started_goes_on(client: Client) -> None:
    client.ask(b"Z0,1008,1")
    client.go()
    assert client.raw(b"$D#44") == b"$OK#9a"
    assert client.runner.running


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_client_that_leaves_a_running_machine(client: Client, interrupted: bool) -> None:
    client.ask(b"Z0,0,1")
    assert client.go() is None
    if interrupted:
        client.raw(b"\x03")
    assert client.raw(b"") == b""
    assert client.is_in(State.LEAVING)
    client.session.close()
    assert client.machine.breakpoints  # not to be touched yet
    client.runner.slice()
    assert client.stop_replies == [b""]
    assert client.is_in(State.DISCONNECTED)
    assert client.machine.breakpoints == []
    assert client.runner.running


def test_detach_from_a_running_machine(client: Client) -> None:
    assert client.go() is None
    assert client.raw(b"$D#44") == b"$OK#9a"
    assert client.is_in(State.LEAVING)


# The table


def test_every_state_can_be_left_and_no_transition_leaves_the_end() -> None:
    for state in State:
        assert (state, Trigger.LEAVE) in TRANSITIONS
    assert [t for s, t in TRANSITIONS if s is State.DISCONNECTED] == [Trigger.LEAVE]


def test_the_machine_runs_only_in_states_that_wait_for_a_stop() -> None:
    waiting = {state for state, trigger in TRANSITIONS if trigger is Trigger.STOP}
    assert waiting == {State.RUNNING, State.INTERRUPTING, State.LEAVING}
    for state, trigger in itertools.product(State, Trigger):
        if state not in waiting and TRANSITIONS.get((state, trigger)) in waiting:
            assert trigger is Trigger.RESUME


def test_a_stop_that_nobody_waits_for_is_a_bug(client: Client) -> None:
    with pytest.raises(LocalProtocolError):
        client.session.stopped(Stopped(1))
