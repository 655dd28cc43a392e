# SPDX-License-Identifier: MIT
"""A session whose client sends conditions and commands."""

import pytest

from svsmd.gdbstub.packets import breakpoints
from svsmd.gdbstub.rsp import Decoder, Need, Packet, encode
from svsmd.gdbstub.session import Session
from svsmd.gdbstub.target import StopEvent
from tests.agent_code import EQUAL, REF64, const, printf, reg, tail
from tests.fake_target import COUNTER, INC, JMP, LOOP, NOP, FakeMachine, FakeRunner

RAX_IS_3 = tail(reg("rax") + const(3) + bytes([EQUAL]))
PRINTS = tail(commands=(printf(rb"rax %d\n", reg("rax")),))


class Client:
    """A client in no-ack mode; what comes back is a list of packets."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.runner = FakeRunner(self.machine)
        self._said: list[bytes] = []
        stop = self.runner.attach(self._on_stop)
        assert stop is not None
        self.session = Session(self.machine, self.runner, stop, was_running=False)
        self.ask(b"QStartNoAckMode")

    def _on_stop(self, event: StopEvent) -> None:
        self._said.append(self.session.stopped(event))

    def ask(self, body: bytes, steps: int = 100) -> list[bytes]:
        """Sends a packet, and lets the machine run; the bodies of what comes back."""
        self.session.receive_data(encode(body))
        self._said.extend(iter(self.session.next_reply, None))
        self.runner.slice(steps)
        said = b"".join(self._said)
        self._said.clear()
        bodies: list[bytes] = []
        if not said:
            return bodies
        decoder = Decoder()
        decoder.receive_data(said)
        while (event := decoder.next_event()) is not Need.DATA:
            if isinstance(event, Packet):
                bodies.append(bytes(event.body))
        return bodies

    @property
    def rax(self) -> int:
        return self.machine.vcpus[1].registers["rax"]

    @property
    def rip(self) -> int:
        return self.machine.vcpus[1].registers["rip"]


@pytest.fixture
def client() -> Client:
    return Client()


def text(*packets: bytes) -> bytes:
    """What console packets say."""
    assert all(packet[:1] == b"O" for packet in packets)
    return b"".join(bytes.fromhex(packet[1:].decode()) for packet in packets)


def test_they_are_announced(client: Client) -> None:
    (features,) = client.ask(b"qSupported:swbreak+")
    assert {b"ConditionalBreakpoints+", b"BreakpointCommands+"} <= set(features.split(b";"))


def test_a_condition(client: Client) -> None:
    assert client.ask(b"Z0,100b,1" + RAX_IS_3) == [b"OK"]
    (stop,) = client.ask(b"vCont;c")
    assert stop.startswith(b"T05")
    assert (client.rax, client.rip) == (3, NOP)
    # Sent again it is another one; the same one again is not.
    memory = const(COUNTER) + bytes([REF64]) + const(7) + bytes([EQUAL])
    for _ in range(2):
        assert client.ask(b"Z0,100b,1" + tail(memory)) == [b"OK"]
    client.ask(b"vCont;c")
    assert client.rax == 7
    assert client.ask(b"Z0,100b,1") == [b"OK"]
    client.ask(b"vCont;c")
    assert client.rax == 8
    assert client.ask(b"z0,100b,1") == [b"OK"]


def test_commands_print_before_the_stop(client: Client) -> None:
    assert client.ask(b"Z0,100b,1" + PRINTS) == [b"OK"]
    assert client.ask(b"Z1,1008,1" + RAX_IS_3) == [b"OK"]
    *printed, stop = client.ask(b"vCont;c")
    assert text(*printed) == b"rax 1\nrax 2\nrax 3\n"
    assert stop.startswith(b"T05")
    assert client.rip == INC
    # A step onto it prints, too; the one from there does not.
    *printed, stop = client.ask(b"vCont;s:1")
    assert text(*printed) == b"rax 4\n"
    assert stop.startswith(b"T05")
    assert len(client.ask(b"vCont;s:1")) == 1


def test_long_output_comes_in_packets_of_the_size_that_was_agreed(client: Client) -> None:
    long = printf(rb"%1000d\n", reg("rax"))
    assert client.ask(b"Z0,100b,1" + tail(commands=(long,))) == [b"OK"]
    assert client.ask(b"vCont;c", steps=4 * 200) == []
    client.session.receive_data(b"\x03")
    unknown, *printed, stop = client.ask(b"", steps=4)
    assert unknown == b""
    assert stop.startswith(b"T02")
    assert len(text(*printed)) in (1001 * 200, 1001 * 201)
    assert max(map(len, printed)) <= 0x20000


def test_a_range_step_honours_conditions(client: Client) -> None:
    assert client.ask(b"Z0,100b,1" + RAX_IS_3) == [b"OK"]
    assert client.ask(b"Z0,1008,1" + PRINTS) == [b"OK"]
    *printed, _ = client.ask(b"vCont;r1000,1010:1")
    assert (client.rax, client.rip) == (3, NOP)
    assert text(*printed) == b"rax 0\nrax 1\nrax 2\n"
    client.ask(b"vCont;r1000,100c:1")
    assert client.rip == JMP


def test_a_step_onto_a_condition_that_does_not_hold_is_a_step(client: Client) -> None:
    assert client.ask(b"Z0,1008,1" + RAX_IS_3) == [b"OK"]
    (stop,) = client.ask(b"vCont;s:1")
    assert stop.startswith(b"T05")
    assert client.rip == INC


@pytest.mark.parametrize(
    "packet",
    [
        b"Z0,1000,1" + tail(b"\x2c\0\1"),
        b"Z0,1000,1;X2,27",
        b"Z0,1000,1;nonsense",
        b"Z2,2000,8" + RAX_IS_3,
        b"z0,1000,1;nonsense",
    ],
)
def test_refused(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == [b"E16"]
    assert client.machine.breakpoints == []


def test_byte_code_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakpoints, "MAX_BYTE_CODE", 8)
    assert client.ask(b"Z0,1000,1" + RAX_IS_3) == [b"OK"]
    assert client.ask(b"Z0,1008,1" + RAX_IS_3) == [b"E1c"]
    assert client.ask(b"Z0,1008,1") == [b"OK"]
    assert client.ask(b"z0,1000,1") == [b"OK"]
    assert client.ask(b"Z0,1008,1" + RAX_IS_3) == [b"OK"]


def test_physical_addresses(client: Client) -> None:
    """Whoever sets the flag of the session: the machine is told."""
    client.session._context.physical = True
    assert client.ask(b"Z1,1008,1") == [b"OK"]
    assert client.machine.physical


def test_nothing_is_left_for_the_next_client(client: Client) -> None:
    assert client.ask(b"Z0,100b,1" + PRINTS) == [b"OK"]
    assert client.ask(b"vCont;c", steps=20) == []
    assert client.ask(b"D") == [b"OK"]
    assert client.machine.breakpoints == []
    assert client.machine.console.take() == b""
    assert LOOP <= client.rip <= JMP
