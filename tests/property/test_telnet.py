# SPDX-License-Identifier: MIT
"""The telnet codec against any peer: no error, no loop, and how bytes are cut does not matter."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.console.telnet import Break, Data, Event, Reply, TelnetCodec

COMMANDS = bytes([240, 243, 250, 251, 252, 253, 254, 255, 255, 255])
"""What makes a byte stream telnet, IAC more often than the others."""

anything = st.lists(
    st.sampled_from([bytes([byte]) for byte in COMMANDS + b"\0\x01\x03\r\n a"])
    | st.binary(max_size=4),
    max_size=60,
).map(b"".join)


def normalised(events: list[Event]) -> list[tuple[str, bytes]]:
    """Events with neighbouring data joined."""
    result: list[tuple[str, bytes]] = []
    for event in events:
        match event:
            case Data(data):
                if result and result[-1][0] == "data":
                    data = result.pop()[1] + data
                result.append(("data", data))
            case Reply(data):
                result.append(("reply", data))
            case Break():
                result.append(("break", b""))
    return result


@given(anything, st.lists(st.integers(0, 240), max_size=8))
@settings(max_examples=300, deadline=None)
def test_how_the_bytes_are_cut_does_not_matter(stream, cuts):
    whole = list(TelnetCodec().receive_data(stream))
    codec = TelnetCodec()
    pieces: list[Event] = []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        pieces += codec.receive_data(stream[start:end])
    assert normalised(pieces) == normalised(whole)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_no_more_answers_than_commands(stream):
    replies = [event for event in TelnetCodec().receive_data(stream) if isinstance(event, Reply)]
    assert len(replies) <= stream.count(0xFF)


@given(anything, anything)
@settings(max_examples=300, deadline=None)
def test_two_servers_wired_to_each_other_fall_silent(noise_a, noise_b):
    a, b = TelnetCodec(), TelnetCodec()
    to_b, to_a = noise_a + a.greeting(), noise_b + b.greeting()
    for _ in range(4 + len(noise_a) + len(noise_b)):
        answers_b = b"".join(
            event.data for event in b.receive_data(to_b) if isinstance(event, Reply)
        )
        answers_a = b"".join(
            event.data for event in a.receive_data(to_a) if isinstance(event, Reply)
        )
        to_a, to_b = answers_b, answers_a
        if not to_a and not to_b:
            return
    raise AssertionError(f"still talking: {to_a!r} {to_b!r}")


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_a_binary_line_carries_any_bytes(data):
    sender, receiver = TelnetCodec(), TelnetCodec()
    list(sender.receive_data(bytes([255, 253, 0])))  # DO BINARY
    list(receiver.receive_data(bytes([255, 251, 0])))  # WILL BINARY
    assert normalised(list(receiver.receive_data(sender.encode(data)))) == (
        [("data", data)] if data else []
    )


@given(st.lists(st.binary(max_size=20), max_size=10))
@settings(max_examples=300, deadline=None)
def test_a_line_of_text_carries_all_but_its_line_ends(chunks):
    """CR LF arrives as CR, as Enter does; all else arrives as it was."""
    sender, receiver = TelnetCodec(), TelnetCodec()
    sent = b"".join(sender.encode(chunk) for chunk in chunks)
    received = b"".join(
        event.data for event in receiver.receive_data(sent) if isinstance(event, Data)
    )
    expected = b"".join(chunk.replace(b"\r\n", b"\r") for chunk in chunks)
    assert received == expected
