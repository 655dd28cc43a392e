# SPDX-License-Identifier: MIT
"""The codec of the remote serial protocol takes any bytes, however they are cut."""

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.rsp import ConnectionClosed, Packet, checksum, encode, escape, unescape
from tests.debugger_input import events_of

# Bytes that mean something to the framing are frequent; so are whole packets.
_pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"$", b"#", b"}", b"*", b"+", b"-", b"\x03", b"$g#67", b"$g#00", b"$m10"]),
    st.binary(max_size=40).map(encode),
    st.builds(
        lambda byte, count: byte * count,
        st.sampled_from([b"x", b"$", b"+"]),
        st.integers(0, 70_000),
    ),
    st.builds(lambda count: b"$" + b"m" * count, st.integers(130_000, 132_000)),
)
_streams = st.lists(_pieces, max_size=12).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(_streams, st.data())
def test_chunks_make_no_difference(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    assert events_of(chunks) == events_of([stream] if stream else [])


@settings(max_examples=150, deadline=None)
@given(st.lists(_pieces.filter(lambda piece: len(piece) < 100), max_size=12).map(b"".join))
def test_byte_by_byte_makes_no_difference(stream: bytes) -> None:
    chunks = [stream[i : i + 1] for i in range(len(stream))]
    assert events_of(chunks) == events_of([stream] if stream else [])


@given(st.binary(max_size=2000))
def test_what_is_encoded_is_decoded(data: bytes) -> None:
    packet = encode(data)
    assert unescape(escape(data)) == data
    assert not set(packet[1:-3]) & set(b"#$*")
    assert events_of([packet]) == [Packet(data), ConnectionClosed()]


@given(st.binary(max_size=3000))
def test_checksum_is_the_sum(data: bytes) -> None:
    assert checksum(data) == sum(data) % 256
