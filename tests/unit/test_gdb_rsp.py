# SPDX-License-Identifier: MIT
"""Framing of the remote serial protocol, byte by byte."""

import pytest

from svsmd.gdbstub.rsp import (
    MAX_BODY,
    MAX_NOISE,
    Ack,
    BadChecksum,
    ConnectionClosed,
    Decoder,
    Event,
    Interrupt,
    Nak,
    Need,
    Packet,
    RemoteProtocolError,
    checksum,
    encode,
    unescape,
)


def decode(data: bytes) -> list[Event]:
    decoder = Decoder()
    decoder.receive_data(data)
    events: list[Event] = []
    while (event := decoder.next_event()) is not Need.DATA:
        assert not isinstance(event, Need)
        events.append(event)
    return events


def test_packet_of_the_manual() -> None:
    # GDB manual, E.9: `$QStartNoAckMode#b0`.
    assert encode(b"QStartNoAckMode") == b"$QStartNoAckMode#b0"
    assert decode(b"$QStartNoAckMode#b0") == [Packet(b"QStartNoAckMode")]


def test_bytes_between_packets() -> None:
    events = decode(b"+\x03garbage-$g#67$#00\r\n")
    assert events == [Ack(), Interrupt(), Nak(), Packet(b"g"), Packet(b"")]


@pytest.mark.parametrize("digits", [b"66", b"00", b"zz", b" 7", b"+7", b"0x"])
def test_bad_checksum(digits: bytes) -> None:
    assert decode(b"$g#" + digits) == [BadChecksum()]


def test_checksum_digits_of_either_case() -> None:
    assert decode(b"$m#6D$m#6d") == [Packet(b"m"), Packet(b"m")]


def test_control_characters_inside_a_packet_are_data() -> None:
    body = b"X0,3:\x03+-"
    assert decode(encode(body)) == [Packet(body)]


def test_escapes() -> None:
    assert encode(b"#$}*") == b"$}\x03}\x04}]}\n#%02x" % checksum(b"}\x03}\x04}]}\n")
    assert unescape(b"}\x03}\x04}]}\n}A") == b"#$}*a"
    assert unescape(b"}}") == b"]"
    assert unescape(b"}") == b"}"


def test_a_lost_end_does_not_swallow_the_next_packet() -> None:
    assert decode(b"$m1000,$g#67") == [Packet(b"g")]


def test_end_of_file() -> None:
    decoder = Decoder()
    decoder.receive_data(b"$g#67$m10")
    decoder.receive_data(b"")
    assert decoder.next_event() == Packet(b"g")
    assert decoder.next_event() == ConnectionClosed()


def test_longest_packet() -> None:
    body = b"m" * MAX_BODY
    assert decode(encode(body)) == [Packet(body)]
    with pytest.raises(RemoteProtocolError, match="longer"):
        decode(encode(body + b"m"))
    with pytest.raises(RemoteProtocolError, match="longer"):
        decode(b"$" + body + b"m")  # nothing to wait for
    with pytest.raises(RemoteProtocolError, match="longer"):
        decode(b"$" + body + b"m$g#67")


def test_the_limit_counts_escapes_as_they_are_sent() -> None:
    with pytest.raises(RemoteProtocolError, match="longer"):
        decode(encode(b"#" * (MAX_BODY // 2 + 1)))


@pytest.mark.parametrize(
    "noise",
    [
        b"x" * MAX_NOISE,
        b"+" * MAX_NOISE,
        b"\x03" * MAX_NOISE,
        b"$" * MAX_NOISE + b"$",
        b"$m#00" * (MAX_NOISE // 5 + 1),
    ],
)
def test_too_much_noise(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="noise"):
        decode(noise)
    decode(noise[: MAX_NOISE - 1])


def test_a_packet_makes_good_for_the_noise_before_it() -> None:
    noise = b"x" * (MAX_NOISE - 1)
    assert decode(noise + b"$g#67" + noise) == [Packet(b"g")]


def test_an_error_stays() -> None:
    decoder = Decoder()
    decoder.receive_data(b"x" * MAX_NOISE)
    for data in (b"", b"$g#67"):
        with pytest.raises(RemoteProtocolError):
            decoder.next_event()
        decoder.receive_data(data)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 513, 70000])
@pytest.mark.parametrize("byte", [0x00, 0x66, 0xFF])
def test_checksum_is_the_sum(size: int, byte: int) -> None:
    assert checksum(bytes([byte]) * size) == size * byte % 256
