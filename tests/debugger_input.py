# SPDX-License-Identifier: MIT
"""Whatever a debugger may send, as people, Hypothesis and fuzzers write it down, and a session.

A dialogue is lines of bytes. A line is the body of a packet, which is sent with the checksum that
belongs to it; one that begins with `!` is sent as it stands behind that. The machine runs a little
after each line.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from svsmd.gdbstub.rsp import (
    Ack,
    ConnectionClosed,
    Decoder,
    Event,
    Nak,
    Need,
    Packet,
    RemoteProtocolError,
    encode,
)
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import StopEvent
from tests.fake_target import FakeMachine, FakeRunner

DIALOGUES: Final = Path(__file__).resolve().parent / "data" / "rsp"
STEPS: Final = 5
"""So many instructions the machine runs after each piece of input."""


def pieces_of(dialogue: bytes) -> list[bytes]:
    """What is sent for each line."""
    return [
        line[1:] if line.startswith(b"!") else encode(line)
        for line in dialogue.split(b"\n")
        if line
    ]


def events_of(chunks: Iterable[bytes]) -> list[Event | str]:
    """What a decoder makes of a stream: events, and a protocol error's text at its end."""
    decoder = Decoder()
    events: list[Event | str] = []
    for chunk in [*chunks, b""]:
        decoder.receive_data(chunk)
        while True:
            try:
                event = decoder.next_event()
            except RemoteProtocolError as error:
                return [*events, str(error)]
            if isinstance(event, Need):
                break
            events.append(event)
            if isinstance(event, ConnectionClosed):
                return events
    raise AssertionError("the end of the stream was not reported")


def converse(pieces: Sequence[bytes], machine: FakeMachine, *, was_running: bool = False) -> None:
    """A client that sends this and goes; AssertionError if the stub or the machine fares ill."""
    runner = FakeRunner(machine)
    sent: list[bytes] = []

    def on_stop(event: StopEvent) -> None:
        sent.append(session.stopped(event))

    stop = runner.attach(on_stop)
    assert stop is not None
    session = Session(machine, runner, stop, was_running=was_running)
    try:
        for piece in pieces:
            session.receive_data(piece)
            while (reply := session.next_reply()) is not None:
                assert reply
                sent.append(reply)
            runner.slice(STEPS)
    except RemoteProtocolError:
        pass
    session.close()
    if session.state is State.LEAVING:
        runner.slice(STEPS)
    assert session.state is State.DISCONNECTED
    assert runner.on_stop is None
    assert not machine.breakpoints
    assert not machine.watchpoints
    check_framing(sent)


def check_framing(sent: Iterable[bytes]) -> None:
    """AssertionError if what was sent to a client is not packets and acknowledgements."""
    decoder = Decoder()
    decoder.receive_data(b"".join(sent) or b"+")
    while (event := decoder.next_event()) is not Need.DATA:
        assert isinstance(event, Packet | Ack | Nak)
