# SPDX-License-Identifier: MIT
"""Whatever a guest does with its UART: no exception, no lost character, the right IRQ level."""

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.host.port_bus import PortBus
from svsmd.host.uart16550 import Uart16550

OPERATIONS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 7), st.just(b"")),
    st.tuples(st.just("write"), st.integers(0, 7), st.binary(min_size=1, max_size=1)),
    st.tuples(st.just("receive"), st.just(0), st.binary(max_size=40)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_any_sequence_keeps_the_invariants(operations):
    sent = bytearray()
    edges: list[bool] = []
    uart = Uart16550(edges.append, sent.extend)
    bus = PortBus()
    uart.attach(bus)
    for kind, register, data in operations:
        if kind == "read":
            assert 0 <= bus.read(0x3F8 + register, 1) <= 0xFF
        elif kind == "write":
            bus.write(0x3F8 + register, 1, data[0])
        else:
            uart.receive(data)
        state = uart.state
        assert len(state.receiver) <= (16 if state.fifo_enabled else 1)
        # Only changes of the line are reported.
        assert all(now != before for before, now in zip([False, *edges], edges, strict=False))
        level = bool(edges) and edges[-1]
        if not state.mcr & 8 or state.mcr & 16:
            assert not level
        # A line that is up has a reason that IIR names.
        if level:
            assert bus.read(0x3FA, 1) & 1 == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=10), st.booleans(), st.integers(0, 3))
def test_every_typed_byte_arrives_once_and_in_order(chunks, fifo, trigger):
    edges: list[bool] = []
    uart = Uart16550(edges.append, lambda data: None)
    bus = PortBus()
    uart.attach(bus)
    bus.write(0x3FA, 1, trigger << 6 | fifo)
    bus.write(0x3FC, 1, 0x0B)
    bus.write(0x3F9, 1, 1)
    got = bytearray()
    for chunk in chunks:
        uart.receive(chunk)
        # An interrupt handler: drain while the line is up.
        while edges and edges[-1]:
            got.append(bus.read(0x3F8, 1))
    assert got == b"".join(chunks)
